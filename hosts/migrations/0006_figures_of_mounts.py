"""Sizes of shares are kept for each mount: what one hypervisor reports is no fact about the others."""

from django.db import migrations, models
from django.db.models import OuterRef, Subquery


def take_over(apps, schema_editor):
    share = apps.get_model("hosts", "Share").objects.filter(pk=OuterRef("share"))
    figures = {name: Subquery(share.values(name)[:1]) for name in ("size", "free")}
    apps.get_model("hosts", "Mount").objects.update(**figures)


class Migration(migrations.Migration):
    dependencies = [
        ("hosts", "0005_hostctl_versions"),
    ]

    operations = [
        migrations.AddField("mount", "size", models.BigIntegerField(default=0)),
        migrations.AddField("mount", "free", models.BigIntegerField(default=0)),
        migrations.RunPython(take_over, migrations.RunPython.noop, elidable=True),
        migrations.RemoveField("share", "size"),
        migrations.RemoveField("share", "free"),
        migrations.RemoveField("share", "seen_at"),
    ]
