"""Indexes for what is archived and for what of the ledger still stands; those go that another begins with."""

from django.db import migrations, models

from volmig.online import AddIndexOnline, RemoveKeyIndexOnline

STANDS = models.Q(("state", "gone"), _negated=True)


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
        AddIndexOnline(
            "job",
            models.Index(fields=["-id"], condition=models.Q(("waiting_for", ""), _negated=True), name="job_waiting"),
        ),
        AddIndexOnline(
            "footprint",
            models.Index(
                fields=["hypervisor", "name"], condition=models.Q(("state", "reserved")), name="footprint_reserved"
            ),
        ),
        AddIndexOnline(
            "footprint",
            models.Index(
                fields=["id"],
                condition=models.Q(("kind", "backup"), ("state", "present")),
                name="footprint_kept_by_age",
            ),
        ),
        AddIndexOnline("footprint", models.Index(fields=["share"], condition=STANDS, name="footprint_left_of")),
        RemoveKeyIndexOnline("job", "source"),  # job_hypervisors
        RemoveKeyIndexOnline("footprint", "job"),  # one_footprint
        RemoveKeyIndexOnline("steprun", "job"),  # one_attempt
    ]
