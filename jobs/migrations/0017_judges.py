"""Several sessions are remembered that have asked the hypervisors of a migration who owns them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0016_open_runs")]

    operations = [
        # A longer limit alone: PostgreSQL rewrites no row for it (ALTER TABLE, Notes).
        migrations.AlterField("job", "judged_by", models.CharField(blank=True, max_length=200)),
    ]
