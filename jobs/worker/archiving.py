"""The background task that archives plans and journals of migrations that ended: see jobs/models/archive.py."""

import time

from jobs.models import Job
from volmig import incarnation

BATCH = 50  # keys that are read at once
SECONDS = 20.0  # for which one call goes on; the next comes within a minute


def sweep() -> None:
    """Task, once a minute: archives what ended since, and after an upgrade, bit by bit, what ended before it."""
    if incarnation.read_only():
        return
    until = time.monotonic() + SECONDS
    last: int | None = 0
    while last is not None and time.monotonic() < until:
        last = Job.objects.archive(BATCH, last)
