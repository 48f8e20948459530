"""All sessions are remembered that have asked the hypervisors of a migration who owns them, not the last one alone.

Nothing is taken over from before: the sessions that begin after the upgrade ask once.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0016_open_runs")]

    operations = [
        migrations.RemoveField("job", "judged_by"),
        migrations.AddField("job", "judges", models.CharField(blank=True, default="", max_length=200)),
    ]
