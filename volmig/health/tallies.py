"""What processes count and time, summed up in the database: any process can then report those of all.

Processes come and go (workers are replaced every 200 tasks), so each adds what it counted to rows that stay. A process
that is killed loses what it counted in the last seconds.
"""

import json
import os
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass

from django.db import DatabaseError, InterfaceError, connection

from volmig.health.models import Tally

FLUSH_EVERY = 5.0  # seconds, in workers; each flush takes the rows' locks
QUICK = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LONG = (10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True)
class Series:
    """A counter, or with `bounds` a histogram, under its name for Prometheus without the suffix _total."""

    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


SERIES = {
    "volmig_tick_seconds": Series(
        "Time that a tick of a migration took, by its status at the end.", ("status",), QUICK
    ),
    "volmig_ssh_connects": Series("SSH connections tried, by outcome.", ("outcome",)),
    "volmig_ssh_connect_seconds": Series("Time to open an SSH connection, with the wait for its turn.", (), QUICK),
    "volmig_downtime_seconds": Series("Time for which an instance was shut off by a swap or a rollback.", (), LONG),
    "volmig_audit_lock_wait_seconds": Series("Time that an event waited for its place in the audit log.", (), QUICK),
    "volmig_watcher_leases_lost": Series("Leases of a watcher that another one took."),
    "volmig_unavailable_answers": Series(
        "Requests and live pages answered with 'try again later', by reason.", ("reason",)
    ),
    "volmig_migrations_ended": Series("Migrations that ended, by outcome.", ("outcome",)),
}
# Values of a label that are reported from the start, or the first one would be no increase.
UNAVAILABLE = ("busy", "database", "live-pages")
Key = tuple[str, str, str]
counted: dict[Key, float] = {}
lock = threading.Lock()
flushed = time.monotonic()


def forked() -> None:
    """In a child: what the parent counted is the parent's to write."""
    global lock
    lock = threading.Lock()
    counted.clear()


os.register_at_fork(after_in_child=forked)


def keys(name: str, labels: dict[str, str], seconds: float | None = None) -> dict[Key, float]:
    """What one observation adds to which rows."""
    series, text = SERIES[name], json.dumps(labels, sort_keys=True)
    if tuple(sorted(labels)) != series.labels:
        raise ValueError(f"{name} has the labels {series.labels}, not {sorted(labels)}")
    if seconds is None:
        return {(name, text, ""): 1.0}
    bounds = [*(f"{bound:g}" for bound in series.bounds), "+Inf"]
    return {(name, text, bounds[bisect_left(series.bounds, seconds)]): 1.0, (name, text, "sum"): seconds}


def count(name: str, **labels: str) -> None:
    """One more of a counter; written at the next flush."""
    note(keys(name, labels))


def observe(name: str, seconds: float, **labels: str) -> None:
    """One more value of a histogram; written at the next flush."""
    note(keys(name, labels, max(0.0, seconds)))


def note(found: dict[Key, float]) -> None:
    """Adds to the counters of this process; they reach the database with its heartbeat."""
    with lock:
        for key, value in found.items():
            counted[key] = counted.get(key, 0.0) + value


def record(name: str, seconds: float | None = None, **labels: str) -> None:
    """The same at once, in the caller's transaction, so that what is rare is exact; a rollback undoes it."""
    write(keys(name, labels, seconds))


def flush_due() -> None:
    """Write what was counted, when the last time is some seconds ago; a database that is away gets it later."""
    if time.monotonic() - flushed >= FLUSH_EVERY:
        flush()


def flush() -> None:
    """Write what was counted; it is kept when that fails, and the error is not raised: figures are never the work."""
    global flushed
    flushed = time.monotonic()
    with lock:
        taken = dict(counted)
        counted.clear()
    try:
        write(taken)
    except (DatabaseError, InterfaceError):
        note(taken)


def write(found: dict[Key, float]) -> None:
    """Add to the rows, in the order of their keys: two processes then never wait for each other in a circle."""
    if not found:
        return
    table = Tally._meta.db_table
    rows = [value for key in sorted(found) for value in (*key, found[key])]
    places = ", ".join(["(%s, %s, %s, %s)"] * len(found))
    statement = (
        f"INSERT INTO {table} (name, labels, bound, value) VALUES {places} "  # noqa: S608 - names of our own columns
        f"ON CONFLICT (name, labels, bound) DO UPDATE SET value = {table}.value + excluded.value"
    )
    with connection.cursor() as cursor:
        cursor.execute(statement, rows)
