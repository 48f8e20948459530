"""A tick: one short task that claims a job, moves it as far as nothing has to wait, and lets go."""

import datetime as dt
import logging
import os
import socket
import uuid

from django.conf import settings
from django.utils import timezone

from hosts.remote import ssh
from jobs.hands import Hands
from jobs.models import Job, Moved
from jobs.queue import wake
from jobs.work import Work
from volmig.queue import later

log = logging.getLogger(__name__)
AFTER_A_FAULT = dt.timedelta(seconds=60)


def run(job_id: int) -> None:
    """Task: does nothing when somebody else works on the job, who will see when it is due again."""
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    job = Job.objects.claim(job_id, owner, settings.LEASE_SECONDS)
    if job is None:
        return
    hands = Hands(job, ssh.connect)
    try:
        Work(job, hands).go_on()
    except Moved as moved:
        log.info("%s", moved)
        wake(job.pk)
    except Exception as error:
        log.exception("tick of migration %s", job.pk)
        job.put(waiting_for=f"volmig itself met a fault: {type(error).__name__}: {error}. It tries again in a minute.")
        wake(job.pk, timezone.now() + AFTER_A_FAULT)
    finally:
        hands.close()
        release(job)


def release(job: Job) -> None:
    """Let go of the job; what woke it meanwhile is not lost."""
    Job.objects.filter(pk=job.pk, fence=job.fence).update(lease_until=None, lease_owner="")
    if Job.objects.filter(pk=job.pk, wake_at__lte=timezone.now()).exists():
        later("jobs.tick.run", job.pk)
