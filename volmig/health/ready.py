"""Whether this machine can serve: each check answers with sentences that anyone may read, so they name no secret.

`CHECKS` is the registry: a check is a function without arguments that returns a list of sentences, empty when all is
well. They run one after the other in one thread, with a database connection that is closed afterwards.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, connection, connections, transaction
from django.utils import timezone

from volmig import keys, schema
from volmig.database import FULL, is_postgresql, unpooled
from volmig.health import heart
from volmig.health.models import Probe

log = logging.getLogger(__name__)
T = TypeVar("T")
Check = Callable[[], list[str]]
WRITE_SECONDS = 2  # that the database may take for the probe's write
ROUND_SECONDS = 4.0  # that all checks may take together
FRESH = 2.0  # seconds for which an answer holds: anyone may ask, and each round writes
NO_ANSWER = "The database does not respond."
NO_CONNECTION = "The database has no free connection."
NO_WRITE = "The database rejects writes."
FAILED = "A check failed: see the log of this process."


class TooSlow(Exception):  # noqa: N818 - as TimeoutError reads
    """It did not come to its end in time; it goes on in its thread."""


def begin(call: Callable[[], T]) -> "Future[T]":
    """Calls it in a thread with a separate database connection, for which no other call has to wait."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(apart(call))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="health check", daemon=True).start()
    return future


def apart(call: Callable[[], T]) -> T:
    """Calls in a connection of its own thread, outside of the pool, which may be exhausted."""
    connections["default"] = unpooled()  # of this thread
    try:
        return call()
    finally:
        connection.close()


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns, as `begin` calls it; raises TooSlow after so many seconds."""
    future = begin(call)
    if not wait([future], seconds).done:
        raise TooSlow(f"no end within {seconds:g} s")
    return future.result()


def database() -> list[str]:
    """One row is written and committed: a full disk, a read-only standby and a lock that nobody ends all show here."""
    try:
        connection.ensure_connection()
    except (DatabaseError, InterfaceError) as error:
        return [NO_CONNECTION if FULL.search(str(error)) else NO_ANSWER]
    try:
        write()
    except (DatabaseError, InterfaceError):
        # Before its first migration it has no such table; that is for the next check to say.
        return [] if unapplied() else [NO_WRITE]
    return []


def write() -> None:
    """Writes a row and rolls back; raises what the database raises, after WRITE_SECONDS at most."""
    with connection.cursor() as cursor:
        if not is_postgresql():
            cursor.execute(f"PRAGMA busy_timeout = {WRITE_SECONDS * 1000}")
        with transaction.atomic():
            if is_postgresql():
                cursor.execute(f"SET LOCAL statement_timeout = '{WRITE_SECONDS}s'")
            now = timezone.now()
            if not Probe.objects.filter(pk=1).update(at=now):
                Probe.objects.create(pk=1, at=now)


def unapplied() -> int:
    """How many database migrations are missing; 0 when that cannot be read."""
    try:
        return len(schema.unapplied())
    except (DatabaseError, InterfaceError):
        return 0


def migrations() -> list[str]:
    """A sentence when database migrations are not applied."""
    missing = unapplied()
    if not missing:
        return []
    what = "database migration is" if missing == 1 else "database migrations are"
    return [f"{missing} {what} not applied: run manage.py prepare."]


def disk() -> list[str]:
    """A sentence when the data directory is full or cannot be read."""
    free = heart.disk()["disk_free"]
    if free is None:
        return ["The data directory cannot be read."]
    return [f"The disk of the data directory is full: {free // 1024**2} MiB free."] if free < heart.FULL else []


def same_keys() -> list[str]:
    """Not the sentences of volmig.keys: they name machines, and anyone may read these."""
    if not keys.are_kept() or not keys.mismatches():
        return []
    return ["The keys of this machine are not those of this volmig: run manage.py keys."]


CHECKS: list[Check] = [
    disk,
    database,
    migrations,
    same_keys,
]
# What is said of a check that hangs, where that is not NO_ANSWER.
HANGS: dict[Check | None, str] = {disk: "The data directory is not responding."}


class Run:
    """One round of checks; `found` grows as they go, so that what hangs hides nothing that was found before it."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.check: Check | None = None
        self.until = time.monotonic() + ROUND_SECONDS
        self.end = begin(self.go)

    def go(self) -> None:
        """Runs all checks; `check` names the one that hangs, if any does."""
        for check in CHECKS:
            self.check = check
            self.found += check()

    def reasons(self) -> list[str]:
        """What it finds within ROUND_SECONDS after it began; what hangs longer is not waited for again."""
        if not wait([self.end], max(0.0, self.until - time.monotonic())).done:
            return list(dict.fromkeys([*self.found, HANGS.get(self.check, NO_ANSWER)]))
        try:
            self.end.result()
        except (DatabaseError, InterfaceError):  # a check that needs the database, of which it may be known why not
            return self.found if NO_CONNECTION in self.found else list(dict.fromkeys([*self.found, NO_ANSWER]))
        except Exception:
            log.exception("a health check failed")
            return [*self.found, FAILED]
        return self.found


class Round:
    """The last answer, and at most one round of checks at a time, however many ask."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = -FRESH
        self.found: list[str] = []
        self.run: Run | None = None

    def reasons(self) -> list[str]:
        """What is wrong, from checks that are at most FRESH seconds old; one run for all who ask."""
        with self.lock:
            if time.monotonic() - self.asked >= FRESH:
                # What hangs must not use up one more thread and connection each time.
                if self.run is None or self.run.end.done():
                    self.run = Run()
                self.found = self.run.reasons()
                self.asked = time.monotonic()
            return self.found


last = Round()


def reasons() -> list[str]:
    """Why this machine cannot serve now, a sentence each; empty when it can. At most FRESH seconds old."""
    return last.reasons()
