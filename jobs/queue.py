"""wake: the one way to say that a job has something to do, now or later."""

import datetime as dt
from typing import Any

from django.apps import apps
from django.db.models import Q
from django.utils import timezone

from volmig.queue import later


def wake(job_id: int, at: dt.datetime | None = None, by: Any = None) -> None:
    """Set the job's alarm to the earlier of its old time and `at` (now, when not given), and queue a tick if due.

    `by` is the person whose action this is; raises Refused when they have taken too many in the last minutes.
    """
    now = timezone.now()
    due = at or now
    jobs = apps.get_model("jobs", "Job").objects
    jobs.filter(pk=job_id).filter(Q(wake_at=None) | Q(wake_at__gt=due)).update(wake_at=due)
    if due <= now:
        later("jobs.tick.run", job_id, by=by)
