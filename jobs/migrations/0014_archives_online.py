from django.db import migrations, models

from volmig.online import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("jobs", "0013_archives"),
    ]

    operations = [
        AddIndexOnline(
            "job",
            models.Index(
                fields=["id"],
                condition=models.Q(("archived_at", None), ("ended_at__isnull", False)),
                name="job_unarchived",
            ),
        ),
    ]
