"""The watcher: a channel to each hypervisor with work under way, one writer of progress, a sweep of what is due."""

import contextlib
import logging
import os
import queue
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from django.db import DatabaseError, InterfaceError, close_old_connections, connection, transaction
from django.utils import timezone

from hosts.models import Hypervisor
from hosts.remote import ssh
from hosts.remote.host import Address, Garbled, Host, HostError
from hosts.tasks import note
from jobs.engine import states
from jobs.engine.runner import MOVING
from jobs.models import Job, Lease, StepRun
from jobs.models.steprun import Progress
from jobs.models.wake import wake
from volmig import data_dir, database, incarnation, keys
from volmig.health import heart, tallies
from volmig.models import QueuedTask
from volmig.queue import call
from volmig.timetable import Timetable

log = logging.getLogger(__name__)
WRITE_EVERY = 0.25
FOLLOW_EVERY = 1.0
SWEEP_EVERY = 5.0
ALARMS_EVERY = 0.5  # between sweeps: Nova's work is looked at every two seconds, with the instance down
LEASE_EVERY, LEASE_SECONDS = 3.0, 10.0
PARTS = 32  # by the rest of a hypervisor's number: watchers share them
PATIENCE = 60.0  # seconds that one turn may take before the watcher counts as hanging
LINGER = 30.0  # steps follow each other closely: a channel outlives the work on it for a while
RATE_OVER = 30.0
STALLED = MOVING.total_seconds() + 5  # seconds; a clock that differs by more is an alarm
LONGEST_PAUSE = 15.0
TICK = "jobs.worker.tick.run"
MOST_LINES = 10_000  # that wait to be written; then followers wait, and whoever sends them more
KEY = ("hypervisor_id", "step", "direction", "attempt")
Key = tuple[int, str, str, str, int]


def main() -> None:
    """Follow and sweep until SIGTERM or Ctrl-C; several watchers share the hypervisors."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database.wait("watcher", stop.wait)
    if not stop.is_set():
        keys.at_start()
        Watcher().run(stop)


def sweep() -> None:
    """Task and the watcher's own: has a tick queued for every job that is due or whose owner went away.

    While volmig is read-only nobody would get the job.
    """
    if incarnation.check():
        return
    Job.objects.follow_the_clock()
    queue_due()


def queue_due() -> None:
    """Queues a tick for every job that is due and has none at hand: alarms that went off, and what went wrong before.

    A tick that a cluster took a while ago and did not begin may be lost with its machine, and does not count.
    """
    due = dict(Job.objects.due().values_list("pk", "status"))
    at_hand = QueuedTask.objects.filter(name=TICK, number__in=due).at_hand().values_list("number", flat=True)
    if lacking := due.keys() - set(at_hand):
        QueuedTask.objects.queue([call(TICK, pk, urgent=due[pk] in states.MAY_BE_DOWN) for pk in lacking])


class Follower(threading.Thread):
    """Streams one hypervisor's lines into the watcher's queue; it never touches the database."""

    def __init__(
        self,
        hypervisor: int,
        address: Address,
        connect: Callable[[Address], Host],
        lines: "queue.Queue[tuple[int, Any]]",
    ) -> None:
        super().__init__(name=f"follow {address}", daemon=True)
        self.hypervisor, self.address, self.connect, self.lines = hypervisor, address, connect, lines
        self.over = threading.Event()
        self.host: Host | None = None

    def run(self) -> None:
        """Follows one hypervisor until it is ended; connects again after a pause."""
        pause = 1.0
        while not self.over.is_set():
            began = time.monotonic()
            try:
                self._stream()
            except HostError as error:
                if not self.over.is_set():  # else the stream ended because it was told to
                    self.lines.put((self.hypervisor, error))
            pause = 1.0 if time.monotonic() - began > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            self.over.wait(pause)

    def _stream(self) -> None:
        with contextlib.closing(self.connect(self.address)) as self.host:
            # What ended while nobody listened is not told again: have every job there look for itself.
            self.lines.put((self.hypervisor, {"joined": True}))
            for line in self.host.watch():
                if self.over.is_set():
                    return
                self.lines.put((self.hypervisor, sound(line, self.address)))

    def end(self) -> None:
        """Ends the stream; the thread ends within a moment."""
        self.over.set()
        if self.host is not None:
            self.host.close()


class Watcher:
    """Reads what followers hear, and writes it for all jobs at once."""

    def __init__(self, connect: Callable[[Address], Host] | None = None) -> None:
        self.connect = connect or ssh.connect
        # Containers may have the same name and the same process ID.
        self.owner = f"{data_dir.here()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
        self.lines: queue.Queue[tuple[int, Any]] = queue.Queue(MOST_LINES)
        self.followers: dict[int, Follower] = {}
        self.needed_at: dict[int, float] = {}
        self.runs: dict[Key, Following] = {}
        self.timetable = Timetable()
        self.parts: frozenset[int] = frozenset()
        heart.gauge("streaming", lambda: len(self.followers))

    def run(self, stop: threading.Event) -> None:
        """Takes leases and follows hypervisors with running work until it is stopped."""
        keeper = threading.Thread(target=self.keep_share, args=(stop,), name="leases of the watcher", daemon=True)
        keeper.start()
        outage, pause = database.Outage("watcher"), WRITE_EVERY
        while not stop.wait(pause):
            heart.turn("watcher", PATIENCE)
            try:
                self.turn()
                outage.over()
                pause = WRITE_EVERY
            except (DatabaseError, InterfaceError) as error:
                pause = outage.failed(error)
                close_old_connections()
        keeper.join(LEASE_SECONDS)
        self.let_go()
        with contextlib.suppress(DatabaseError, InterfaceError):  # else they run out
            Lease.objects.give_back_all(self.owner)

    def keep_share(self, stop: threading.Event) -> None:
        """In a separate thread, so that no slow login delays it: renew what this watcher follows.

        While the database is away nobody can take anything over, and this watcher goes on with what it had.
        """
        while True:
            try:
                self.take_share()
            except (DatabaseError, InterfaceError):  # the watcher's turn says so
                close_old_connections()
            except Exception:  # if this thread ended, the turn would go on for ever with what others have taken over
                log.exception("The watcher's leases were not renewed. Retrying.")
            if stop.wait(LEASE_EVERY):
                break
        connection.close()

    def take_share(self) -> None:
        held = Lease.objects.share("watcher", PARTS, self.owner, LEASE_SECONDS)
        before, self.parts = self.parts, frozenset(held.parts)
        for _ in before - held.renewed:  # what it gave back itself, for a watcher that came, is no loss
            tallies.count("volmig_watcher_leases_lost")

    def turn(self) -> None:
        """One quarter of a second's work on this watcher's share of the hypervisors."""
        self.write()
        if self.timetable.is_due("follow", FOLLOW_EVERY):
            self.follow()
            self._wake_stalled()
        if 0 not in self.parts:
            return  # another watcher sweeps
        if self.timetable.is_due("sweep", SWEEP_EVERY):
            sweep()
        elif self.timetable.is_due("alarms", ALARMS_EVERY) and not incarnation.read_only():
            queue_due()

    def follow(self) -> None:
        """Have a follower on each hypervisor with work under way, and none where there has been none for a while."""
        now = time.monotonic()
        for pk in StepRun.objects.open().filter(job__halt_reason="").values_list("hypervisor", flat=True).distinct():
            if pk % PARTS in self.parts:
                self.needed_at[pk] = now
        for pk in [pk for pk, at in self.needed_at.items() if now - at > LINGER or pk % PARTS not in self.parts]:
            del self.needed_at[pk]
            if follower := self.followers.pop(pk, None):
                follower.end()
        for hypervisor in Hypervisor.objects.filter(pk__in=self.needed_at.keys() - self.followers.keys()):
            self._join(hypervisor)

    def _join(self, hypervisor: Hypervisor) -> None:
        if address := way_to(hypervisor):  # else not to be entered; the job's own tick says so
            self.followers[hypervisor.pk] = Follower(hypervisor.pk, address, self.connect, self.lines)
            self.followers[hypervisor.pk].start()

    def write(self) -> None:
        """Put down everything that was heard since the last time: the newest progress of each run, and what ended."""
        progress: dict[Key, dict[str, Any]] = {}
        ended: set[Key] = set()
        for hypervisor, line in self._heard():
            if isinstance(line, HostError):
                self._lost(hypervisor, line)
            elif "progress" in line:
                progress[key_of(hypervisor, line["progress"])] = line["progress"]
            elif "ended" in line:
                ended.add(key_of(hypervisor, line["ended"]))
            elif "joined" in line:
                self._wake(StepRun.objects.running().filter(hypervisor=hypervisor).values_list("job", flat=True))
        if progress or ended:
            self._write(progress, ended)

    def _write(self, progress: dict[Key, dict[str, Any]], ended: set[Key]) -> None:
        self._find(progress.keys() | ended)
        moved = [self.runs[key].moved(figures) for key, figures in progress.items() if key in self.runs]
        over = ended & self.runs.keys()
        with transaction.atomic():
            StepRun.objects.record_progress(moved)
        # Not in there: whoever works on a migration locks its row first and then its runs.
        self._wake(self.runs[key].job for key in over)
        for key in over:  # not before: an end is reported once, and what is followed on is found to stall
            del self.runs[key]

    def _find(self, keys: Iterable[Key]) -> None:
        """Reads those runs that were not heard of before, and forgets those that were not for a while.

        Most are known: what is read four times a second for each hypervisor is what a large site pays for.
        """
        now = time.monotonic()
        if unknown := {key for key in keys if key not in self.runs}:
            # Nothing that a hypervisor says of its work goes into the query.
            begun = StepRun.objects.open().filter(hypervisor__in={key[0] for key in unknown}).select_related("job")
            found = {run_key(run): run for run in begun.only("job__uuid", *KEY, *Following.COLUMNS)}
            self.runs |= {key: Following(found[key]) for key in unknown & found.keys()}
        for key in keys:
            if key in self.runs:
                self.runs[key].heard_at = now
        self.runs = {key: run for key, run in self.runs.items() if now - run.heard_at < LINGER or run.is_moving}

    def _wake_stalled(self) -> None:
        """Wakes the jobs whose work has just stopped moving: while it moves they sleep for long."""
        for run in sorted(self.runs.values(), key=attrgetter("job")):
            if run.has_stalled():
                wake(run.job)
                run.is_moving = False  # not before: one that could not be woken is tried again

    def _wake(self, jobs: Iterable[int]) -> None:
        for job in sorted(set(jobs)):  # in the order of QueuedTaskQuerySet.queue
            wake(job)

    def _lost(self, pk: int, error: HostError) -> None:
        hypervisor = Hypervisor.objects.get(pk=pk)
        log.info("Progress is not followed: %s", error, extra={"hypervisor": hypervisor.name})
        note(hypervisor, error)
        follower = self.followers.get(pk)
        # Put into quarantine by that, or registered at another address meanwhile: a new one takes the way of now.
        if follower and follower.address != way_to(Hypervisor.objects.get(pk=pk)):
            self.followers.pop(pk).end()

    def _heard(self) -> Iterable[tuple[int, Any]]:
        """What has come until now; who sends without a pause must not keep the watcher from the others."""
        for _ in range(self.lines.qsize()):
            yield self.lines.get_nowait()

    def let_go(self) -> None:
        for follower in self.followers.values():
            follower.end()
        self.followers.clear()
        self.needed_at.clear()


class Following:
    """A run that is under way, and how far it was when it was last heard of."""

    COLUMNS = ("bytes_done", "bytes_read", "bytes_written", "progress_at")

    def __init__(self, run: StepRun) -> None:
        self.pk, self.job, self.speed = run.pk, run.job_id, Speed()
        self.before = run.bytes_done, run.bytes_read, run.bytes_written
        self.progress_at, self.heard_at = run.progress_at, 0.0
        self.moved_at, self.is_moving = time.monotonic(), True

    def moved(self, figures: dict[str, Any]) -> Progress:
        """What is to be written of these figures.

        Work that hangs goes on to report the same ones: those of which nothing moved are not new.
        """
        now = int(figures["done"]), int(figures.get("read", 0)), int(figures.get("written", 0))
        if now != self.before or self.progress_at is None:
            self.before, self.progress_at = now, timezone.now()
            self.moved_at, self.is_moving = time.monotonic(), True
        done, read, written = now
        rate = self.speed.add(float(figures["at"]), done)
        return Progress(self.pk, done, int(figures["total"]), read, written, rate, self.progress_at)

    def has_stalled(self) -> bool:
        """Whether it moved until now and moves no more, for so long that clocks that differ a little agree on it."""
        return self.is_moving and time.monotonic() - self.moved_at > STALLED


class Speed:
    """Bytes per second over the last half minute, by the hypervisor's own clock."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, int]] = deque()

    def add(self, at: float, done: int) -> int:
        self.samples.append((at, done))
        while at - self.samples[0][0] > RATE_OVER:
            self.samples.popleft()
        began, first = self.samples[0]
        return int((done - first) / (at - began)) if at > began and done > first else 0


def way_to(hypervisor: Hypervisor) -> Address | None:
    """How to reach it now; None when it must not be entered.

    Any version of hostctl follows the work of all: the one of work that runs there is installed there.
    """
    begun = StepRun.objects.open().filter(hypervisor=hypervisor, unread=False).order_by("-pk").select_related("job")
    run = begun.filter(result="running").first() or begun.first()
    try:
        return hypervisor.remote(run.job.hostctl_now if run else "")
    except HostError:
        return None


def sound(line: dict[str, Any], address: Address) -> dict[str, Any]:
    """The line of a stream, if it is as agreed; raises Garbled. What it says goes into columns of the database."""
    for kind, said in line.items():
        if kind == "beat":
            continue
        figures = [said.get(name, 0) for name in ("done", "total", "read", "written")] if isinstance(said, dict) else []
        if not (
            isinstance(said, dict)
            and all(isinstance(said.get(name), str) for name in ("job", "step", "direction"))
            and all(type(each) is int and 0 <= each < 1 << 63 for each in [*figures, said.get("attempt")])
            and (kind != "progress" or (is_time(said.get("at")) and {"done", "total"} <= said.keys()))
        ):
            next_step = "Check the hypervisor."
            raise Garbled(f"follow the progress on {address}", f"a line about {kind} is malformed", next_step)
    return line


def is_time(said: Any) -> bool:
    return type(said) in (int, float) and 0 <= said < 1 << 40


def key_of(hypervisor: int, line: dict[str, Any]) -> Key:
    """The attempt that a line of this hypervisor is about: of work on another one it has nothing to say."""
    return hypervisor, str(line["job"]), str(line["step"]), str(line["direction"]), int(line["attempt"])


def run_key(run: StepRun) -> Key:
    return run.hypervisor_id or 0, str(run.job.uuid), run.step, run.direction, run.attempt
