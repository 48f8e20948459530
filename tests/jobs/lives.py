"""Lives of migrations on the fake site: each goes by itself to its end, while time passes and people do their part."""

import datetime as dt
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import transaction
from django.utils import timezone

from jobs.engine import states
from jobs.models import Footprint, Job
from jobs.worker import tick
from tests.factories import approver, asked, operator
from tests.fakes import INSTANCES, LIVE, SOURCE_LV
from tests.outside import outside_the_database
from tests.ticks import LONG_AGO, tick_now

LONGEST = dt.timedelta(hours=12)  # a life that takes longer never ends
MOST_TICKS = 120
STATIONS = ("awaiting_approval", "on_trial", "done")
# How a migration may go: what people wish for, the step amid which they cancel, and where its own way begins.
WAYS = {
    "done": ("done", "", ""),
    "purged": ("purged", "", "done"),
    "rolled back": ("rolled_back", "", "on_trial"),
    "cancelled amid the copy": ("undone", "stage", ""),
}


class Killed(BaseException):
    """What a worker dies of: nothing of volmig's may catch it."""


class Clock:
    """The time of the migrations; it stands still but for being moved on."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.began = timezone.now()
        monkeypatch.setattr("django.utils.timezone.now", lambda: self.now)

    def move(self, until: dt.datetime) -> None:
        self.now = max(self.now, until)


class Life:
    """One migration; `wish` is how people want it to end: done, purged, rolled back, or cancelled amid a step."""

    def __init__(self, site, clock, monkeypatch, wish: str = "done", amid: str = "") -> None:
        self.site, self.clock, self.wish, self.amid = site, clock, wish, amid
        self.job: Job | None = None
        self.resumes = 0  # how often a person says to go on when it is halted
        self.said = []  # for each halt, why
        release = tick.release
        monkeypatch.setattr(tick, "release", lambda job: None if dying() else release(job))

    def submit(self) -> Job:
        self.job = Job.objects.submit(operator(), **{**asked(), "start": True})
        return self.job

    def live(self, until: str = "") -> str:
        """Go on until the end, a halt that nobody ends, or the status `until`; how it ended."""
        for _ in range(MOST_TICKS):
            self.job.refresh_from_db()
            if self.job.halt_reason:
                if not self._resume():
                    return "halted"
            elif self.job.status == until or self._is_over():
                return self.job.status
            else:
                self._step()
            assert self.clock.now < self.clock.began + LONGEST, f"it never ends: {self._where()}"
        raise AssertionError(f"it never rests: {self._where()}")

    def stations(self) -> Iterator[str]:
        """Where it comes by, each before it goes there; the last is the end. What has no next one is not lived."""
        for station in (*STATIONS, ""):
            if self.live_on(station):
                yield station
                self.live(station)

    def live_on(self, station: str) -> bool:
        """Whether that still lies ahead of it."""
        with self.rewound():
            before = self.job.status
            return not self._is_over() and self.live(station) == (station or self.wish) != before

    def _step(self) -> None:
        job = self.job
        if job.lease_until is not None:  # of a worker that died
            Job.objects.filter(pk=job.pk).update(lease_until=LONG_AGO)
            self._tick()
        elif job.wake_at and job.wake_at <= self.clock.now:
            self._tick()
        elif not self._act():
            assert job.wake_at, f"it waits for nothing: {self._where()}"
            for host in self.site.hosts:
                host.finish()
            self.clock.move(job.wake_at)

    def _tick(self) -> None:
        with suppress(Killed):
            tick_now(self.job.pk)

    def _act(self) -> bool:
        """What people do by themselves; false when there is nothing for them to do."""
        job = self.job
        if self.amid and job.status == "preparing" and not job.cancel_requested_at and self._amid():
            job.cancel(operator())
            return True
        approval = job.approvals.open().first()
        if approval and approval.state == "open":
            approval.approve(approver(), approval.digest, "as agreed")
            return True
        return approval is None and self._ask()

    def _amid(self) -> bool:
        running = self.job.running()
        return running is not None and running.step == self.amid

    def _ask(self) -> bool:
        job = self.job
        if job.status == "on_trial" and not job.confirmed_at:
            job.ask("rollback", operator()) if self.wish == "rolled_back" else job.confirm(operator())
        elif job.status == "done" and self.wish == "purged":
            job.ask("purge", operator())
        else:
            return False
        return True

    def _resume(self) -> bool:
        """Whether a person, who has looked, says to go on."""
        self.said.append(self.job.halt_reason)
        if len(self.said) > self.resumes:
            return False
        self.clock.move(self.clock.now + dt.timedelta(seconds=1))  # what was before is told from what comes after
        self.job.resume(operator())
        return True

    def _is_over(self) -> bool:
        ended = self.job.status in states.ENDED - {"purging"}
        return ended and not (self.job.status == "done" and self.wish == "purged")

    def _where(self) -> str:
        job = self.job
        return f"{job.status}, {job.waiting_for or job.halt_reason!r}, {job.runs.last()}"

    @contextmanager
    def rewound(self) -> Iterator["Life"]:
        """What happens within never happened: the database, the site, the clock and this life are as before."""
        kept, was = transaction.savepoint(), (self.clock.now, self.job, list(self.said))
        with self.site.rewound(), outside_the_database():
            try:
                yield self
            finally:
                transaction.savepoint_rollback(kept)
                self.clock.now, self.job, self.said = was
                if self.job:
                    self.job.refresh_from_db()


def begin(a_life, site, way: str) -> Life:
    """A migration that was asked for and has come to where its own way begins."""
    wish, amid, first = WAYS[way]
    life = a_life(wish, amid)
    site.relay.slow = {amid} - {""}
    life.submit()
    if first:
        life.live(first)
    return life


def dying() -> bool:
    return isinstance(sys.exc_info()[1], Killed)


# Lives in which the n-th of something goes wrong


def every_nth(life: Life, fault: Callable[[int], Any], stride: int, check: Callable[[Life], None]) -> Counter[str]:
    """How lives end in each of which another one goes wrong: the first of a stride, at random, and every further one.

    `fault(n)` lets the n-th go wrong when it is laid on a site, none for 0; it counts, and knows what it hit.
    """
    ends: Counter[str] = Counter()
    for station in life.stations():
        most = how_many(life, fault, station)
        for nth in range(1 + random.randrange(min(stride, most) or 1), most + 1, stride):
            ends[_gone_wrong(life, fault, nth, check)] += 1
    return ends


def how_many(life: Life, fault: Callable[[int], Any], until: str) -> int:
    """How often it could go wrong on the way there."""
    with life.rewound():
        none = fault(0)
        none.lay(life.site)
        life.live(until)
        return int(none.count)


def _gone_wrong(life: Life, fault: Callable[[int], Any], nth: int, check: Callable[[Life], None]) -> str:
    """What becomes of a migration in which the n-th goes wrong; a halted one is resumed when all is well again."""
    with life.rewound():
        wrong = fault(nth)
        wrong.lay(life.site)
        try:
            ended = life.live()
            assert wrong.hit
            check(life)
            if ended == "halted":
                fault(0).lay(life.site)
                life.resumes = 4
                ended = f"halted, then {life.live()}"
                check(life)
        except Exception as error:
            raise AssertionError(f"the {nth}th, {wrong.hit}, {life.said}: {error}") from error
        finally:
            life.resumes = 0
    return ended


# What is there when a life has ended


def in_the_world(site) -> set[tuple[str, str]]:
    """Everything of ours that stands there, named as the ledger names it."""
    relay, source, destination = site.relay, site.source, site.destination
    fenced = [
        name for name, each in source.volumes.items() if each.tags or each.permission != "writeable" or source.held
    ]
    return {
        *(("lv", f"vg_nova0/{name}") for name, volume in relay.volumes.items() if volume.tags),
        *(("filesystem", at) for at in relay.mounts),
        *(("export", at) for at in relay.exports),
        *(("mount", at) for at in source.mounts),
        *(("fence", f"vg_nova0/{name}") for name in fenced),
        *(("lock", instance) for instance in destination.marks),
        *(("stage" if path.endswith("disk.new") else "backup", path) for path in site.files if "/.volmig/" in path),
    }


def in_the_ledger(job) -> set[tuple[str, str]]:
    return {(row.kind, row.name) for row in Footprint.objects.left() if row.kind != "space"}


def in_places(things: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Disks on the share by their directory: of one that a halted purge has taken it may be all that is left."""
    return {("disk", name.rpartition("/")[0]) if kind in ("stage", "backup") else (kind, name) for kind, name in things}


def kept_disk(job) -> set[tuple[str, str]]:
    """The disk that is not in use, which only a purge takes away."""
    swapped = job.runs.filter(step="swap", direction="do", result="done").exists()
    name = {"done": "disk.old", "rolled_back": "disk.rejected"}.get(job.status)
    return {("backup", f"{INSTANCES}/.volmig/{job.uuid}/{name}")} if swapped and name else set()


def check_the_world(site, job, free: int, writes: int = 40, state: str = "running") -> None:
    """Nothing is lost and nothing is left: raise AssertionError where that is not so.

    `writes` the source has seen; `state` is how the instance has to be in the end.
    """
    source, live = site.source.volumes[SOURCE_LV], site.files[LIVE]
    assert (source.content, source.writes) == ("new disk", writes)
    assert live.content in ("old disk", "new disk")
    assert site.unlocked == [], "a disk was exchanged while anybody could start its instance"
    if job.halt_reason:
        unknown = in_places(in_the_world(site)) - in_places(in_the_ledger(job))
        assert not unknown, f"something is left that the ledger does not know: {unknown}"
        assert job.halt_reason.strip(), "it halted without saying why"
        return
    wanted = "new disk" if job.status in ("done", "purged") else "old disk"
    assert (live.content, site.destination.state) == (wanted, state)
    assert in_the_world(site) == in_the_ledger(job) == kept_disk(job)
    assert not Footprint.objects.left().filter(kind="space").exists()
    assert [host.kept for host in site.hosts] == [{}, {}, {}]
    assert (source.permission, source.tags, site.relay.free) == ("writeable", set(), free)
