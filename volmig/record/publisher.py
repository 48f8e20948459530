"""Publishes the heads of the audit log, on whichever machine with workers holds the lease."""

import logging
import secrets
import threading

from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from volmig import data_dir, database, incarnation
from volmig.record import heads
from volmig.record.models import Publisher

log = logging.getLogger(__name__)
EVERY_SECONDS = 15.0
REST_SECONDS = 120.0  # for which a machine that could not write leaves it to others


def begin() -> None:
    """Starts publishing in a thread, which ends with this process."""
    threading.Thread(target=Publishing().run, args=(threading.Event(),), name="audit heads", daemon=True).start()


class Publishing:
    """One process, which publishes while it holds the lease."""

    def __init__(self) -> None:
        self.owner = secrets.token_hex(16)  # host names and process numbers are the same in many containers
        self.said = ""

    def run(self, stop: threading.Event) -> None:
        """Publishes a head a minute until it is stopped; failures are logged once."""
        outage, pause = database.Outage("audit heads"), 0.0
        while not stop.wait(pause):
            try:
                close_old_connections()
                pause = self.turn()
                outage.over()
            except (DatabaseError, InterfaceError) as error:
                pause = outage.failed(error)
            except Exception:  # whatever it is: if this thread ended, no machine might publish any more
                log.exception("The head of the audit log could not be published. Retrying.")
                pause = REST_SECONDS

    def turn(self) -> float:
        """Publishes if this process has the lease; returns for how many seconds to pause.

        A data directory that did not join yet (`manage.py adopt --join`) may be a copy, and takes nothing over.
        """
        state = incarnation.read_only()
        if state and state.is_local:
            return EVERY_SECONDS
        if not Publisher.take(self.owner, heads.this_file()[0], data_dir.here(), heads.this_file()[1]):
            return EVERY_SECONDS
        try:
            heads.publish_due()
            self.said = ""
        except (OSError, ValueError) as error:  # a full disk, a key that was replaced: another machine may be able to
            if str(error) != self.said:
                log.error("The head of the audit log could not be published to %s: %s", settings.AUDIT_HEADS, error)
            self.said = str(error)
            Publisher.give_back(self.owner)
            return REST_SECONDS
        return EVERY_SECONDS
