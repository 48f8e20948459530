"""Index for what still stands of the ledger on each hypervisor."""

from django.db import migrations, models

from volmig.online import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("jobs", "0018_kept_disks"),
    ]

    operations = [
        AddIndexOnline(
            "footprint",
            models.Index(
                fields=["hypervisor"], condition=models.Q(("state", "gone"), _negated=True), name="footprint_left_on"
            ),
        ),
    ]
