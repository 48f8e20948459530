"""A tick whose time has come."""

import datetime as dt

from jobs.models import Job
from jobs.worker import tick

LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def tick_now(pk):
    """Runs a tick of this migration as if its alarm had just gone off, whatever clock the test lives by."""
    Job.objects.filter(pk=pk, lease_until=None).update(wake_at=LONG_AGO)
    tick.run(pk)


def claim_now(pk, owner, seconds):
    """The migration for this owner, as if its alarm had just gone off."""
    Job.objects.filter(pk=pk, lease_until=None).update(wake_at=LONG_AGO)
    return Job.objects.claim(pk, owner, seconds)
