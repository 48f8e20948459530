"""An index for the runs that have not ended: a watcher asks for them every second, among those of all migrations."""

from django.db import migrations, models

from volmig.online import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("jobs", "0015_notify_changes"),
    ]

    operations = [
        AddIndexOnline(
            "steprun",
            models.Index(fields=["ended_at", "hypervisor"], condition=models.Q(("ended_at", None)), name="run_open"),
        ),
    ]
