"""Which migrations changed, as far as a page would: heard from PostgreSQL, or read from the file that SQLite writes.

PostgreSQL notifies of every commit that changes what a page shows (triggers of migration notify_changes), with the
number of the migration. Nothing depends on that: whoever misses a notification sees the change at the next full poll.
"""

import asyncio
import contextlib
import sqlite3
from typing import Any

import psycopg
from django.db import OperationalError, connection

from volmig import database

CHANNEL = "volmig_jobs"
ALL_EVERY = 5.0  # seconds between two polls of everything while notifications come
POLL_EVERY = 0.25  # seconds between two polls where there are none
BLIND_EVERY = 1.0  # the same on PostgreSQL, while its notifications cannot be heard
CHECK_EVERY = 20.0  # seconds without a notification after which the connection is tried
CHECK_SECONDS = 5.0


class Changes:
    """Numbers of migrations since they were taken last: `turned` where a page changes, `moved` where only a bar does.

    `all` where something may have been missed, so that everything has to be compared. One for each event loop.
    """

    def __init__(self) -> None:
        self.turned: set[int] = set()
        self.moved: set[int] = set()
        self.all = True
        self.wake = asyncio.Event()
        self.polled = 0.0

    def take(self) -> tuple[set[int], set[int], bool]:
        """What changed since the last time; from now on it counts as seen."""
        taken = self.turned, self.moved, self.all
        self.turned, self.moved, self.all = set(), set(), False
        self.wake.clear()
        return taken

    def put_back(self, turned: set[int], moved: set[int], everything: bool) -> None:
        """It could not be read: it is still to be read."""
        self.turned |= turned
        self.moved |= moved
        self.all |= everything

    def note(self, payload: str) -> None:
        """A notification: "turned 17" or "moved 17"."""
        kind, _, number = payload.partition(" ")
        if kind in ("turned", "moved") and number.isdecimal():
            (self.turned if kind == "turned" else self.moved).add(int(number))
        else:
            self.all = True  # of another release of volmig
        self.wake.set()

    async def wait(self, seconds: float) -> None:
        """Until something changed, or may have, and `seconds` at most."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while not self.wake.is_set():
            left = min(end, self.polled + self.poll_every()) - loop.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), max(0.0, left))
            if loop.time() >= self.polled + self.poll_every():
                self.polled = loop.time()
                self.poll()
            if loop.time() >= end:
                return

    def poll_every(self) -> float:
        raise NotImplementedError

    def poll(self) -> None:
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
        return ALL_EVERY if self.listening else BLIND_EVERY

    def poll(self) -> None:
        self.all = True
        self.wake.set()

    async def follow(self) -> None:
        outage, pause = database.Outage("notifications for live pages"), 0.0
        while True:
            try:
                async with await connect() as heard:
                    await heard.execute(f"LISTEN {CHANNEL}")
                    outage.over()
                    self.listening = True
                    self.poll()  # what came before it listened
                    await self.hear(heard)
            except (psycopg.Error, OSError, TimeoutError) as error:
                pause = outage.failed(OperationalError(str(error) or type(error).__name__))
            finally:
                self.listening = False
            await asyncio.sleep(pause)

    async def hear(self, heard: psycopg.AsyncConnection[Any]) -> None:
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
        return POLL_EVERY

    def poll(self) -> None:
        now = self.data_version()
        if now != self.version:
            self.version, self.all = now, True
            self.wake.set()

    def data_version(self) -> int:
        """-1 while the file cannot be read, so that it counts as changed as soon as it can."""
        try:
            if self.file is None:
                self.file = sqlite3.connect(f"file:{connection.settings_dict['NAME']}?mode=ro", uri=True)
            return int(self.file.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return -1

    async def follow(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if self.file is not None:
                self.file.close()
                self.file = None


def of_this_database() -> Changes:
    return Notified() if connection.vendor == "postgresql" else Polled()
