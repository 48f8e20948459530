"""Index for the space that kept disks use on each share, read without the table."""

from django.db import migrations, models

from volmig.online import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [
        ("jobs", "0017_judges"),
    ]

    operations = [
        AddIndexOnline(
            "footprint",
            models.Index(
                fields=["share", "bytes"],
                condition=models.Q(("kind", "backup"), ("state", "present")),
                name="footprint_kept_of",
            ),
        ),
    ]
