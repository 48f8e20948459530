"""A tick: one short task that claims a job, moves it as far as nothing has to wait, and lets go."""

import datetime as dt
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.db.models.functions import Now
from django.utils import timezone

from hosts.remote import nova, ssh
from jobs.models import Job, Moved
from jobs.models.wake import wake
from jobs.worker.executor import Work
from jobs.worker.gateway import Hands
from volmig import beats, data_dir, incarnation
from volmig.health import tallies
from volmig.logs import about

log = logging.getLogger(__name__)
AFTER_A_FAULT = dt.timedelta(seconds=60)
BEAT_EVERY = 8.0  # seconds, at most: its supervisor takes workers that are silent for half a minute for stuck
LONGEST = 90.0  # seconds; a tick that takes longer hangs, and its job is given to another worker


def run(job_id: int) -> None:
    """Task: does nothing when somebody else works on the job, who will see when it is due again."""
    owner = f"{data_dir.here()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    job = Job.objects.claim(job_id, owner, settings.LEASE_SECONDS)
    if job is None:
        return
    job.renew_hostctl()
    hands = Hands(job, ssh.connect, nova.connect)
    try:
        with kept_alive(job):
            go_on(job, hands)
    except Moved as moved:
        log.info("%s", moved)
        wake(job.pk)
    except incarnation.ReadOnly:
        wake(job.pk, timezone.now())  # nobody claims it until it was adopted
    except incarnation.Unwritable as error:  # before anything was sent; this machine takes no more tasks meanwhile
        log.error("migration %s is left to another machine: %s", job.pk, error, extra={"migration": job.pk})
        wake(job.pk)
    finally:
        hands.close()
    # Whatever else is raised, such as a task's limit, keeps the lease: it runs out, and another worker takes over.
    release(job)


def go_on(job: Job, hands: Hands) -> None:
    """Work on the job; a fault of volmig itself is shown and retried, Moved is raised.

    So is SystemExit, by which a worker ends a task that takes too long.
    """
    began = time.monotonic()
    try:
        with about(migration=job.pk):
            Work(job, hands).go_on()
    except (Moved, incarnation.ReadOnly, incarnation.Unwritable):
        raise
    except (Exception, SystemExit) as error:
        log.exception("tick of migration %s", job.pk, extra={"migration": job.pk})
        said = f"Internal error: {type(error).__name__}: {error}. Retrying in one minute."
        job.put(waiting_for=said, wait_kind="fault", wait_hosts="", waiting_since=timezone.now())
        wake(job.pk, timezone.now() + AFTER_A_FAULT)
        if isinstance(error, SystemExit):
            raise
    finally:
        tallies.observe("volmig_tick_seconds", time.monotonic() - began, status=job.status)


@contextmanager
def kept_alive(job: Job) -> Iterator[None]:
    """Renew the lease while its owner lives: one call may take longer than the lease of a dead one may last."""
    over = threading.Event()
    heart = threading.Thread(target=beat, args=(job, over), name=f"lease of migration {job.pk}", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()


def beat(job: Job, over: threading.Event) -> None:
    """Renew until it is over, or the job is somebody else's, or this takes too long to be alive."""
    began, seconds = time.monotonic(), settings.LEASE_SECONDS
    try:
        while not over.wait(min(seconds / 4, BEAT_EVERY)) and time.monotonic() - began < LONGEST:
            beats.beat()
            if not renew(job, seconds):
                return
    finally:
        connection.close()


def renew(job: Job, seconds: float) -> bool:
    """Whether this is still the owner, as far as the database says just now."""
    until = Now() + dt.timedelta(seconds=seconds)
    try:
        return bool(Job.objects.filter(pk=job.pk, fence=job.fence).update(lease_until=until))
    except (DatabaseError, InterfaceError) as error:
        log.warning("the lease of migration %s could not be renewed: %s", job.pk, error)
        return True


def release(job: Job) -> None:
    """Let go of the job; what woke it meanwhile is not lost."""
    Job.objects.filter(pk=job.pk, fence=job.fence).update(lease_until=None, lease_owner="")
    if Job.objects.filter(pk=job.pk, wake_at__lte=Now()).exists():
        wake(job.pk)
