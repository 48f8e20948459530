"""A database that is away: every process waits for it, and says so once for each outage."""

import asyncio
import logging
import re
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from time import monotonic
from typing import Any

from django.db import InterfaceError, OperationalError, connection, connections
from psycopg_pool import PoolTimeout

from volmig import data_dir

log = logging.getLogger(__name__)
FIRST, LONGEST = 0.5, 5.0  # seconds between tries of what runs; they grow
PATIENCE = 60  # seconds for what waiting does not mend: a container may still be making role and database
SAY_AGAIN = 60.0
# What PostgreSQL says, in English, of an address that waiting does not mend; whom it does not let in gets no code.
WRONG = re.compile(
    r'authentication failed|no password supplied|no pg_hba\.conf entry|(database|role) ".*" does not exist'
)
# What it says, too, when it is there and every connection that it allows is taken.
FULL = re.compile(r"too many (clients|connections)|remaining connection slots")
AWAY = (OperationalError, InterfaceError)
# SQLSTATE classes and codes of a server that is away, full, shutting down or starting (PostgreSQL, appendix A).
AWAY_CLASSES, AWAY_CODES = ("08", "53"), {"57P01", "57P02", "57P03", "57P05"}
BUSY_FILE = re.compile(r"database is locked|unable to open database file|database or disk is full|disk I/O error")
# Of a web process, beside one for each request that is answered: the probe of a health check, the two requests of
# health checks themselves, two logins, heartbeat, metrics, live pages (what changed; who may see it), sealing.
BESIDE_REQUESTS = 10
asking = threading.Lock()
POOL_SECONDS = 2.0  # that a request waits for a connection; then 503


class Unusable(Exception):  # noqa: N818 - a sentence for an operator
    """VOLMIG_DB leads to no database that volmig can use."""


class Outage:
    """One line when the database goes, one when it is back, and pauses between tries that grow meanwhile.

    A database that is there and refuses statements is an outage, too: a refusal of each kind is said, with its
    traceback, and not each of those that follow it within a minute. Once it is back the outage is noted there, for the
    overview.
    """

    def __init__(self, who: str, longest: float = LONGEST, noted: bool = True) -> None:
        self.who, self.longest, self.noted = who, longest, noted
        self.since: float | None = None
        self.pause, self.said, self.said_at = FIRST, "", 0.0
        self.seconds = defaultdict[str, float](float)  # by kind of incident
        self.refusals = dict[object, float]()  # when each was said

    def failed(self, error: BaseException) -> float:
        """Says what is wrong, unless it was said a moment ago; returns for how many seconds to pause."""
        error = in_its_words(error)
        now, said = monotonic(), one_line(error)
        if self.since is None:
            self.since, self.pause = now, FIRST
        if kind := kind_of(error):
            self.seconds[kind] += self.pause
        if not isinstance(error, AWAY):
            self.refused(error)
        elif said != self.said or now - self.said_at > SAY_AGAIN:
            log.error("%s: waiting for the database: %s", self.who, said)
            self.said, self.said_at = said, now
        pause, self.pause = self.pause, min(self.pause * 2, self.longest)
        return pause

    def refused(self, error: BaseException) -> None:
        """Each kind once in a minute: what is refused in each turn must not hide another refusal."""
        kind, now = kind_of_refusal(error), monotonic()
        if kind not in self.refusals or now - self.refusals[kind] > SAY_AGAIN:
            self.refusals[kind] = now
            again = f"Retrying. Repeats are not logged for {SAY_AGAIN:.0f} s."
            log.error("%s: the database refused a statement. %s", self.who, again, exc_info=error)

    def over(self) -> None:
        """What failed has succeeded. That may have asked nothing of the database, so it is asked before it is said."""
        if self.since is not None and not (may_ask() and fault()):
            lasted = monotonic() - self.since
            log.warning("%s: the database responds again after %.0f s.", self.who, lasted)
            kind, self.since, self.said = max(self.seconds, key=self.seconds.__getitem__, default=""), None, ""
            self.seconds.clear()
            self.refusals.clear()
            if kind and self.noted:
                note(kind, self.who, lasted)


def kind_of_refusal(error: BaseException) -> object:
    """What tells refusals apart whose words have other values each time: where it was, and what PostgreSQL names."""
    cause = error.__cause__
    named = getattr(cause, "diag", None)
    names = [getattr(named, each, None) for each in ("table_name", "constraint_name", "column_name")]
    where = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return type(error), getattr(cause, "sqlstate", None), *names, *where


def kind_of(error: BaseException) -> str:
    """The kind of incident that this is while it lasts; empty where it says nothing of the database."""
    if not isinstance(error, AWAY) or isinstance(error.__cause__, PoolTimeout):
        return ""
    return "slots" if FULL.search(str(error)) else "database"


def in_its_words(error: BaseException) -> BaseException:
    """What PostgreSQL says to whom it does not let in, where the pool only says that it got no connection in time.

    Unchanged where it does let in, for then all connections of the pool are in use, and where it must not be asked.
    """
    if not isinstance(error.__cause__, PoolTimeout) or not may_ask():
        return error
    # Beside the pool, in place of the asker's own there, which it did not get; one at a time, for many ask at once when
    # a server that refuses them has no room.
    with asking:
        own = unpooled()
        try:
            own.ensure_connection()
        except AWAY as found:
            return found
        finally:
            own.close()
    return error


def unpooled() -> Any:
    """A connection outside of the pool of a web process; to be closed."""
    own = connection.copy()
    own.settings_dict["OPTIONS"].pop("pool", None)
    return own


def note(kind: str, who: str, seconds: float) -> None:
    """For the overview: whom the database was away for, and for how long until now.

    Not from an event loop, where no query is allowed: other threads of the same process have met the same outage.
    """
    from volmig.health.models import Incident  # this module is read before models are

    if may_ask():
        Incident.objects.note(kind, data_dir.here(), who, seconds)


def may_ask() -> bool:
    """Whether queries are allowed here: not in an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def one_line(error: BaseException | str) -> str:
    """An error of the database in one line, 300 characters at most."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_away(error: BaseException | None) -> bool:
    """Whether a statement failed because the database is away, full or busy, and not because of what it says."""
    if not isinstance(error, AWAY):
        return False
    if not is_postgresql():
        return bool(BUSY_FILE.search(str(error)))
    code = getattr(error.__cause__, "sqlstate", None)
    return code is None or code.startswith(AWAY_CLASSES) or code in AWAY_CODES


def is_postgresql() -> bool:
    """False for SQLite."""
    return bool(connection.vendor == "postgresql")


def pool(requests: int) -> None:
    """In a web process, whose threads live for one request each: they share connections, this many at most.

    Without it each thread has a connection that stays open until the thread is collected. To be called before the
    first query; for other processes, which have few threads, and hold locks for as long as a connection lasts, never.
    """
    if not is_postgresql():
        return
    own = connections.settings["default"]
    own["CONN_MAX_AGE"] = 0  # given back after each request
    own["OPTIONS"]["pool"] = {
        "name": "web",
        "min_size": 1,
        "max_size": requests + BESIDE_REQUESTS - 1,  # the probe of a health check is outside of it
        "timeout": POOL_SECONDS,
        "max_idle": 60.0,  # seconds after which what a burst needed is closed
        # Tries of one connection end after so long, and the next request begins new ones: their pauses double, and
        # after a long outage nobody should wait for the end of a long one.
        "reconnect_timeout": 4.0,
        "num_workers": 2,
    }


def wait(who: str, sleep: Callable[[float], object] = time.sleep) -> None:
    """Returns once the database lets this process in, or once `sleep` says that the process was asked to stop.

    A server that is away, starting, or full is waited for without end. Raises Unusable where the address is wrong: for
    PostgreSQL after a minute, for its container may still be making role and database; for a file at once.
    """
    outage, began = Outage(who, longest=15, noted=False), monotonic()  # before the first start it has no tables
    while error := fault():
        if not is_postgresql():
            raise Unusable(f"The database {connection.settings_dict['NAME']} cannot be opened: {one_line(error)}.")
        if is_wrong(error) and monotonic() - began > PATIENCE:
            raise Unusable(
                f"VOLMIG_DB is wrong, or its database does not exist yet: {one_line(error)}. Correct it "
                "(docs/configuration.md, PostgreSQL), then start again."
            )
        if sleep(outage.failed(error)):
            return  # asked to stop
    outage.over()


def fault() -> OperationalError | InterfaceError | None:
    """Why this process gets no connection now; None when it has one that works."""
    try:
        connection.ensure_connection()
        if connection.is_usable():
            return None
        connection.close()
        connection.ensure_connection()
    except AWAY as error:
        connection.close()
        return error
    return None


def is_wrong(error: BaseException) -> bool:
    """Whether the address, and not the server, is at fault, as far as PostgreSQL says."""
    return bool(WRONG.search(str(error)))
