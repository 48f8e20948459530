"""The heartbeat of this process: a thread that writes one row every ten seconds, as long as the process makes headway.

A loop that hangs must not look alive because a thread beside it lives: loops call `turn`, and without a turn for longer
than their patience nothing is written.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from multiprocessing import util
from typing import Any, cast

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection

from volmig import __version__, data_dir, database
from volmig.health import tallies
from volmig.health.models import Process, running_for

log = logging.getLogger(__name__)
EVERY = 10.0  # seconds
FULL = 16 * 1024 * 1024  # free bytes; with less, neither a key nor a head can be relied on to be written
PATIENCE = 3.0  # seconds that the end of a process waits for a heartbeat that is being written
SUPERVISOR = "VOLMIG_SUPERVISOR"  # the PID of `manage.py up`, in the environment of what it started
TURN_EVERY, LOOP_PATIENCE = 1.0, 30.0  # seconds between turns of a web process's event loop, and for which it may hang
SLOW = 2.0  # seconds that the database takes to answer with its time, after which nothing is known of the skew

hearts: dict[tuple[int, str], "Heart"] = {}
gauges: dict[str, Callable[[], float]] = {}
unstarted: set[str] = set()  # parts whose heart could not be started; why was logged


def turn(part: str, patience: float) -> None:
    """A loop of this part makes headway; starts its heart. `patience` is how many seconds one turn may take.

    Nothing in a process that belongs to no part, such as a command or a test. The loop continues without a heart while
    the data directory, which a heart names, cannot be read; that is logged once.
    """
    if not os.environ.get("VOLMIG_PART"):
        return
    try:
        start(part, patience).turn()
        unstarted.discard(part)
    except OSError as error:
        if part not in unstarted:
            log.warning("No heartbeat from this process (%s) yet: %s", part, error)
        unstarted.add(part)


def start(part: str, patience: float | None = None) -> "Heart":
    """The heart of this part in this process, started when it was not; without patience it beats while it lives."""
    key = os.getpid(), part
    if key not in hearts:
        hearts[key] = Heart(part, patience)
        hearts[key].start()
    return hearts[key]


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    """For the web server: the event loop has a heart, which stops before the process ends by a signal, so that nobody
    misses it."""
    turning = asyncio.create_task(take_turns())
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    turning.cancel()
    for each in list(hearts.values()):
        await asyncio.to_thread(each.stop)
    await send({"type": "lifespan.shutdown.complete"})


async def take_turns() -> None:
    """In an event loop: one that hangs comes to no next turn."""
    while True:
        turn("web", LOOP_PATIENCE)
        await asyncio.sleep(TURN_EVERY)


def gauge(name: str, read: Callable[[], float]) -> None:
    """A figure that only this process knows, for its heartbeats."""
    gauges[name] = read


def pid_space() -> str:
    """Names where a PID is that of one process of this data directory: its place, the host and the PID namespace.

    Hostnames alone may be the same. It is the same for every process and every command there, also within the units,
    which hide all of /proc/sys.
    """
    namespace = 0
    with contextlib.suppress(OSError):
        namespace = os.stat("/proc/self/ns/pid").st_ino
    named = f"{data_dir.place(settings.DATA)} {data_dir.here()} {namespace}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def is_orphan() -> bool:
    """Whether the `manage.py up` that started this process has ended before it."""
    supervisor = os.environ.get(SUPERVISOR, "")
    return bool(supervisor) and running_for(int(supervisor)) is None


def skew() -> float | None:
    """By how many seconds this machine's clock is ahead of the database's; None when the answer took too long."""
    if not database.is_postgresql():
        return 0.0  # in a file: it has the clock of this machine
    began = time.time()
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        theirs = cursor.fetchone()[0].timestamp()
    ended = time.time()
    return round((began + ended) / 2 - theirs, 3) if ended - began < SLOW else None


class Heart(threading.Thread):
    """The thread that writes a process's heartbeat, every few seconds, until the process ends."""

    def __init__(self, part: str, patience: float | None) -> None:
        super().__init__(name=f"heartbeat of {part}", daemon=True)
        self.patience, self.turned, self.longest = patience, time.monotonic(), 0.0
        self.outage, self.server = database.Outage(f"heartbeat of {part}"), cast(Any, None)
        self.failing = False  # for another reason than the database
        self.over, self.writing = threading.Event(), threading.Lock()
        self.process = Process(
            name=uuid.uuid4().hex,
            machine=data_dir.here(),
            pid_space=pid_space(),
            part=part,
            pid=os.getpid(),
            version=__version__,
        )

    def turn(self) -> None:
        """Called by the process for each turn of its loop: a loop that hangs stops the heartbeat."""
        now = time.monotonic()
        self.longest, self.turned = max(self.longest, now - self.turned), now

    def run(self) -> None:
        """Beats until it is stopped; an outage of the database is logged once and does not end it."""
        # Not atexit: a process that was forked by multiprocessing leaves without it.
        util.Finalize(None, self.stop, exitpriority=10)
        while not self.over.is_set():
            try:
                self.beat()
                self.serve()
            except Exception:  # without this thread a process that works would be missed for ever
                log.exception("The heartbeat of %s failed. Retrying.", self.process)
            self.over.wait(EVERY)

    def beat(self) -> None:
        """Write a heartbeat unless the loop hangs; a database that is away is tried again at the next one."""
        if self.patience is not None and time.monotonic() - self.turned > self.patience:
            return
        try:
            with self.writing:
                if self.over.is_set():
                    return
                self.process.beat(skew=skew(), figures=self.figures(), **disk())
            tallies.flush()
            self.outage.over()
            self.failing = False
        except database.AWAY as error:
            self.outage.failed(error)
        except (DatabaseError, OSError) as error:
            if not self.failing:
                log.warning("The heartbeat of %s cannot be written: %s", self.process, error)
            self.failing = True
        finally:
            connection.close()

    def serve(self) -> None:
        """One process of each machine serves its metrics; another one does as soon as that is gone."""
        if settings.METRICS_PORT and self.server is None:
            from volmig.health import port  # it needs all of volmig

            self.server = port.serve(settings.METRICS_ADDRESS, settings.METRICS_PORT)

    def figures(self) -> dict[str, float]:
        """What only this process knows; the longest turn is that since the last heartbeat."""
        found = {name: round(float(read()), 3) for name, read in gauges.items()}
        if self.patience is not None:
            found["turn_seconds"], self.longest = round(self.longest, 3), 0.0
        return found

    def stop(self) -> None:
        """The process ends in an orderly way: nobody has to miss it, unless it ends because its supervisor was killed,
        for then nothing starts it again."""
        self.over.set()
        if is_orphan():
            log.warning("The supervisor of %s was killed.", self.process)
            return
        written = self.writing.acquire(timeout=PATIENCE)  # a heartbeat on its way would bring the row back
        try:
            Process.objects.filter(name=self.process.name).delete()
            tallies.flush()
        except (DatabaseError, InterfaceError) as error:
            log.warning("The end of %s could not be written: %s", self.process, error)
        finally:
            connection.close()
            if written:
                self.writing.release()


def disk_is_full() -> bool:
    """Whether nothing can be relied on to be written there, because it is full or cannot be read."""
    free = disk()["disk_free"]
    return free is None or free < FULL


def disk() -> dict[str, int | None]:
    """The disk of the data directory, in bytes: free for volmig, and in all; None where it cannot be read."""
    try:
        usage = shutil.disk_usage(settings.DATA)
    except OSError:
        return {"disk_free": None, "disk_size": None}
    return {"disk_free": usage.free, "disk_size": usage.total}
