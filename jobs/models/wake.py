"""wake: the one way to say that a job has something to do, now or later."""

import datetime as dt
from typing import Any

from django.apps import apps
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from jobs.engine import states
from volmig.queue import later


def wake(job_id: int, at: dt.datetime | None = None, by: Any = None) -> None:
    """Set the job's alarm to the earlier of its old time and `at` (now, when not given), and queue a tick if due.

    Now is the database's, which decides what is due: a machine whose clock is fast would have its tick come too early.
    `by` is the person whose action this is; raises Refused when they have taken too many in the last minutes.
    """
    at_once = at is None or at <= timezone.now()
    due: Any = Now() if at_once else at
    job = apps.get_model("jobs", "Job").objects.filter(pk=job_id)
    job.filter(Q(wake_at=None) | Q(wake_at__gt=due)).update(wake_at=due)
    if at_once:
        urgent = job.filter(status__in=states.MAY_BE_DOWN).exists()
        later("jobs.worker.tick.run", job_id, by=by, urgent=urgent)
