from django.db import migrations, models


class Migration(migrations.Migration):
    """The same column under a name of its own: a place is that of a data directory."""

    dependencies = [
        ("health", "0002_incidents"),
    ]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RenameField("process", "place", "pid_space"),
                migrations.AlterField("process", "pid_space", models.CharField(db_column="place", max_length=32)),
            ],
        ),
    ]
