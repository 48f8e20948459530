"""What a web process does about seals beside its pages: see jobs/models/sealing.py."""

import logging
import threading
import time

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections, transaction

from hosts.models import Hypervisor
from jobs.models import Approval, sealing
from jobs.models.wake import wake
from volmig import database

EVERY_SECONDS = 2
log = logging.getLogger(__name__)


def begin() -> None:
    """Start what runs beside the pages of this process; it ends with it."""
    threading.Thread(target=run, name="sealing", daemon=True).start()


def run() -> None:
    """Once: note by which key each hypervisor's seals are made. For ever, at a site of one person: seal approvals."""
    outage = database.Outage("sealing of approvals")
    while True:
        pause = float(EVERY_SECONDS)
        try:
            close_old_connections()
            for hypervisor in Hypervisor.objects.filter(seal_fingerprint=""):
                hypervisor.seal_key()
            if settings.APPROVERS:
                return close_old_connections()
            seal_what_asks_nobody()
            outage.over()
        except (DatabaseError, InterfaceError) as error:  # it may be away for a while, or not migrated yet
            pause = max(pause, outage.failed(error))
        except Exception:  # whatever it is: if this thread ended, approvals would wait until the next restart
            log.exception("Approvals could not be sealed. Retrying.")
        time.sleep(pause)


def seal_what_asks_nobody() -> None:
    """Where VOLMIG_APPROVERS is 0 no page completes an approval: it is complete when a worker makes it."""
    waiting = Approval.objects.open().filter(approvers=0, granted_by=None, seals={}).select_related("job")
    for approval in waiting:
        with transaction.atomic():
            sealing.seal(approval)
            wake(approval.job_id)
