from django.db import migrations, models

# Those that hold their volume and their instance, and have a plan or are about to have one.
UNDER_WAY = ("planned", "preparing", "awaiting_approval", "approved", "swapping", "on_trial", "rolling_back", "undoing")


def keep_the_version_they_began_with(apps, schema_editor):
    """Migrations under way go on with the hostctl of the release that began them.

    What was approved names it; else it is what was last seen on their hypervisors, which ran that release's.
    """
    for job in apps.get_model("jobs", "Job").objects.filter(status__in=UNDER_WAY):
        bound = job.approvals.filter(kind="swap").order_by("-pk").values_list("bound", flat=True).first() or {}
        seen = [host.hostctl_hash for host in (job.destination, job.relay, job.source) if host.hostctl_hash]
        job.hostctl = str(bound.get("hostctl") or (seen[0] if seen else ""))[:16]
        job.save(update_fields=["hostctl"])


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0008_condition"),
        ("hosts", "0005_hostctl_versions"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="hostctl",
            field=models.CharField(blank=True, max_length=16),
        ),
        migrations.AddField(
            model_name="steprun",
            name="unread",
            field=models.BooleanField(default=False),
        ),
        migrations.RunPython(keep_the_version_they_began_with, migrations.RunPython.noop),
    ]
