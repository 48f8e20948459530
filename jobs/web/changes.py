"""Which migrations changed, as far as a page would: heard from PostgreSQL, or read from the file that SQLite writes.

PostgreSQL notifies of every commit that changes what a page shows (triggers of migration notify_changes), with the
number of the migration. Nothing depends on that: whoever misses a notification sees the change at the next full poll.
"""

import asyncio
import contextlib
import logging
import sqlite3
from dataclasses import dataclass, field
from typing import Any, NoReturn

import psycopg
from django.db import OperationalError, connection

from volmig import database, sqlite

log = logging.getLogger(__name__)
CHANNEL = "volmig_jobs"
ALL_EVERY = 5.0  # seconds between two polls of everything while notifications come
POLL_EVERY = 0.25  # seconds between two polls where there are none
BLIND_EVERY = 1.0  # the same while nothing says whether something changed: everything is compared
CHECK_EVERY = 20.0  # seconds without a notification after which the connection is tried
CHECK_SECONDS = 5.0
AGAIN = 5.0  # seconds after a fault of volmig's own until the next try


@dataclass
class Batch:
    """Numbers of migrations: `turned` where a page changes, `moved` where only a bar does.

    `everything` where something may have been missed, so that all migrations have to be compared.
    """

    turned: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    everything: bool = False

    def add(self, other: "Batch") -> None:
        """Adds what another batch has."""
        self.turned |= other.turned
        self.moved |= other.moved
        self.everything |= other.everything


class Changes:
    """What has changed since it was taken last. One for each event loop."""

    def __init__(self) -> None:
        self.batch = Batch(everything=True)
        self.wake = asyncio.Event()
        self.polled_at = 0.0

    def take(self) -> Batch:
        """What changed since the last time; from now on it counts as seen."""
        taken, self.batch = self.batch, Batch()
        self.wake.clear()
        return taken

    def note(self, payload: str) -> None:
        """A notification: "turned 17" or "moved 17"."""
        kind, _, number = payload.partition(" ")
        if kind in ("turned", "moved") and number.isdecimal():
            (self.batch.turned if kind == "turned" else self.batch.moved).add(int(number))
            self.wake.set()
        else:
            self.compare_all()  # of another release of volmig

    def compare_all(self) -> None:
        """Something may have been missed."""
        self.batch.everything = True
        self.wake.set()

    async def wait(self, seconds: float) -> None:
        """Until something changed, or may have, and `seconds` at most.

        Polls when that is due, also where changes never cease: what was missed is found all the same.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            if loop.time() >= self.polled_at + self.poll_every():
                self.polled_at = loop.time()
                self.poll()
            if self.wake.is_set() or loop.time() >= end:
                return
            left = min(end, self.polled_at + self.poll_every()) - loop.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), max(0.0, left))

    def poll_every(self) -> float:
        """Seconds between polls; by database."""
        raise NotImplementedError

    def poll(self) -> None:
        """Reads what changed; by database."""
        raise NotImplementedError

    async def follow(self) -> None:
        """Runs as long as anybody wants to know."""
        raise NotImplementedError


class Notified(Changes):
    """PostgreSQL's, over one connection that is kept outside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.listening = False

    def poll_every(self) -> float:
        """Rarely while notifications arrive, often while they do not."""
        return ALL_EVERY if self.listening else BLIND_EVERY

    def poll(self) -> None:
        """Compares everything, in case a notification was lost."""
        self.compare_all()

    async def follow(self) -> None:
        """Listens on PostgreSQL's channel (LISTEN) for ever; an outage is logged once."""
        outage = database.Outage("notifications for live pages")
        while True:
            try:
                async with await connect() as heard:
                    await heard.execute(f"LISTEN {CHANNEL}")
                    outage.over()
                    self.listening = True
                    self.compare_all()  # what came before it listened
                    await self.hear(heard)
            except (psycopg.Error, OSError, TimeoutError) as error:
                pause = outage.failed(OperationalError(str(error) or type(error).__name__))
            except Exception:  # nobody awaits this task: ended, it would be missed by nobody
                log.exception("No notifications for live pages arrive. Retrying.")
                pause = AGAIN
            finally:
                self.listening = False
            await asyncio.sleep(pause)

    async def hear(self, heard: psycopg.AsyncConnection[Any]) -> NoReturn:
        """Note what comes, for ever; raises when nobody answers at the other end any more."""
        while True:
            async for notice in heard.notifies(timeout=CHECK_EVERY):
                self.note(notice.payload)
            await asyncio.wait_for(heard.execute("SELECT 1"), CHECK_SECONDS)


async def connect() -> psycopg.AsyncConnection[Any]:
    """A separate connection, for a pool gives its connections to whoever comes next."""
    parameters = connection.get_connection_params()
    for name in ("cursor_factory", "context", "prepare_threshold"):  # of Django's cursors, which are not asynchronous
        parameters.pop(name, None)
    return await psycopg.AsyncConnection.connect(**parameters, autocommit=True)


class Polled(Changes):
    """SQLite's: a number that changes with each commit of another connection (PRAGMA data_version)."""

    def __init__(self) -> None:
        super().__init__()
        self.version: int | None = None
        self.file: sqlite3.Connection | None = None

    def poll_every(self) -> float:
        """Seconds between two reads of SQLite's data_version."""
        return BLIND_EVERY if self.version is None else POLL_EVERY

    def poll(self) -> None:
        """Compares everything when another connection has committed (PRAGMA data_version)."""
        before, self.version = self.version, self.data_version()
        if self.version is None or self.version != before:
            self.compare_all()

    def data_version(self) -> int | None:
        """None while the file cannot be read."""
        try:
            if self.file is None:
                self.file = sqlite.read_only(connection.settings_dict["NAME"])
            return int(self.file.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    async def follow(self) -> None:
        """Nothing arrives with SQLite; closes its connection at the end."""
        try:
            await asyncio.Event().wait()
        finally:
            if self.file is not None:
                self.file.close()
                self.file = None


def of_this_database() -> Changes:
    """Notifications with PostgreSQL, polling with SQLite."""
    return Notified() if connection.vendor == "postgresql" else Polled()
