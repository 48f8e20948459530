"""Plans and journals of migrations that ended go into archives; their columns stay as they are in the database."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

from jobs.models.archive import ArchivedJSONField


def archived(model, name, default):
    return migrations.AlterField(model, name, ArchivedJSONField(blank=True, default=default))


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0012_adoption_seals"),
    ]

    operations = [
        migrations.CreateModel(
            name="Archive",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("content", models.BinaryField()),
                ("made_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "job",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="archives",
                        to="jobs.job",
                    ),
                ),
            ],
            options={"ordering": ["pk"]},
        ),
        migrations.AddField("job", "archived_at", models.DateTimeField(blank=True, null=True)),
        migrations.SeparateDatabaseAndState(
            state_operations=[
                archived("job", "plan", dict),
                archived("job", "facts", dict),
                archived("job", "checks", list),
                archived("job", "halt_data", dict),
                archived("steprun", "args", dict),
                archived("steprun", "commands", list),
            ]
        ),
    ]
