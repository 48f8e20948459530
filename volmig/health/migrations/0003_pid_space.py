from django.db import migrations


class Migration(migrations.Migration):
    """The right name: a place is that of a data directory."""

    dependencies = [
        ("health", "0002_incidents"),
    ]

    operations = [
        migrations.RenameField("process", "place", "pid_space"),
    ]
