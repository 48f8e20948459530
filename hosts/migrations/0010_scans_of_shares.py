"""What a scan lists on shares gets a column of its own: it is read only where it counts."""

from typing import Any

from django.db import migrations, models


def split(apps: Any, _: Any) -> None:
    """Of each hypervisor one row, of a few hundred kilobytes at most."""
    for scan in apps.get_model("hosts", "Scan").objects.iterator(chunk_size=10):
        listed = [*scan.things, *scan.on_shares]  # also when this was interrupted
        scan.things = [row for row in listed if not row["share"]]
        scan.on_shares = [row for row in listed if row["share"]]
        scan.listed = len(listed)
        scan.save(update_fields=["things", "on_shares", "listed"])


def join(apps: Any, _: Any) -> None:
    for scan in apps.get_model("hosts", "Scan").objects.iterator(chunk_size=10):
        scan.things = [*scan.things, *scan.on_shares]
        scan.save(update_fields=["things"])


class Migration(migrations.Migration):
    dependencies = [
        ("hosts", "0009_reach_error"),
    ]

    operations = [
        migrations.AddField("scan", "on_shares", models.JSONField(blank=True, default=list)),
        migrations.AddField("scan", "listed", models.PositiveIntegerField(default=0)),
        migrations.RunPython(split, join, hints={"model_name": "scan"}),
    ]
