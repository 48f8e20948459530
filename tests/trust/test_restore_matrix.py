"""The restore matrix: a database of every moment of a migration, its hosts at every later one.

Nothing that changes anything reaches a host before a person adopts the migration; afterwards it comes to a right end.
The hostctl of the hosts is the real one. Moments are every status and the end of every step of the swap.
"""

import copy
import itertools
import random
import secrets
import shutil
from collections import Counter
from contextlib import contextmanager

import pytest
from django.db import transaction
from django.utils import timezone

from hosts import tasks
from hosts.models import Hypervisor
from jobs.models import Adoption, Job
from jobs.worker import adopting
from jobs.worker.executor import Work
from jobs.worker.gateway import changes
from jobs.worker.journal import Journal
from tests.factories import admin, in_cloud, operator
from tests.jobs.conftest import machines, nova_of_machines, real_life  # noqa: F401 - fixtures
from tests.jobs.lives import MOST_TICKS, WAYS, Killed, check_the_world
from tests.outside import keep, put_back
from tests.ticks import LONG_AGO, tick_now
from tests.trust.amounts import amount, figure
from volmig import incarnation

SWAP = [("after", step, "do") for step in ("lock", "stop", "swap", "start")]
COPY = [("after", step, "do") for step in ("relay_lv", "source_fence", "convert", "stage", "relay_erase")]
MOMENTS = {
    "done": [
        *(("status", name) for name in ("checking", "planned", "preparing")),
        *COPY,
        *(("status", name) for name in ("awaiting_approval", "approved", "swapping")),
        *SWAP,
        ("status", "on_trial"),
        ("after", "source_release", "do"),
        ("status", "done"),
    ],
    "purged": [("status", name) for name in ("on_trial", "done", "purging")]
    + [("after", "purge", "do"), ("status", "purged")],
    "rolled back": [
        *(("status", name) for name in ("approved", "on_trial", "rolling_back")),
        *(("after", step, "undo") for step in ("start", "swap", "stop", "lock")),
        ("status", "rolled_back"),
    ],
    "cancelled amid the copy": [
        *(("status", name) for name in ("planned", "preparing", "undoing")),
        *(("after", step, "undo") for step in ("stage", "source_fence", "relay_lv")),
        ("status", "undone"),
    ],
}
PAIRS = [(way, one, two) for way, all_of in MOMENTS.items() for one, two in itertools.combinations(all_of, 2)]
# In which way the database went back: with its data directory (a machine's snapshot), alone, or as a copy elsewhere.
# With its directory only the hosts know better, so every pair is tried in this way.
HOW = ("with its directory", "alone", "copied elsewhere")


class Reached:
    """Kills the worker at the moment when it comes about."""

    def __init__(self, moment, patch):
        self.moment, self.over = moment, moment == ("status", "checking")
        record, reached = Journal.record, self

        class Handlers(dict):
            """Asked for before anything is done in a status, when what led there is committed."""

            def get(self, status, default=None):
                reached.meet(("status", status))
                return super().get(status, default)

        patch.setattr(Work, "handlers", Handlers(Work.handlers))
        patch.setattr(Journal, "record", lambda journal, run, answer: (record(journal, run, answer), self.step(run))[0])

    def step(self, run):
        if run.result == "done":
            self.meet(("after", run.step, run.direction))

    def meet(self, moment):
        if moment == self.moment and not self.over:
            self.over = True
            raise Killed


def live_to(life, moment, monkeypatch):
    """Whether it comes to this moment."""
    with monkeypatch.context() as patch:
        reached = Reached(moment, patch)
        for _ in range(MOST_TICKS):
            life.job.refresh_from_db()
            if reached.over:
                return True
            if life._is_over() and life.job.status == life.wish:
                return False
            life._step()
    raise AssertionError(f"{moment} is never reached: {life._where()}")


class Wire:
    """Counts what is sent to the hosts, and to Nova if there is one, and would change something."""

    def __init__(self, site, cloud=None):
        self.site, self.sent, self.carry = site, [], site.carry
        self.cloud, self.act = cloud, cloud and cloud.act

    def __enter__(self):
        self.site.carry = self.carried
        if self.cloud:
            self.cloud.act = self.acted
        return self

    def __exit__(self, *_):
        self.site.carry = self.carry
        if self.cloud:
            self.cloud.act = self.act

    def carried(self, machine, request):
        if changes(request):
            self.sent.append(f"{request.verb} to {machine.name}")
        return self.carry(machine, request)

    def acted(self, server, body):
        self.sent.append(f"{next(iter(body))} to Nova")
        return self.act(server, body)


def set_back(monkeypatch, kept, how, tmp_path, settings):
    """What lies outside of the database, and a new start of the workers."""
    if how != "alone":
        put_back(kept)
    if how == "copied elsewhere":
        there = tmp_path / secrets.token_hex(4)
        shutil.copytree(settings.DATA, there, ignore=shutil.ignore_patterns("*.sqlite3*", "static"))
        settings.DATA = there
    monkeypatch.setattr(incarnation, "SESSION", secrets.token_hex(16))


def try_to_act(job, site):
    """What workers do: several ticks of a job whose lease ran out, a refresh, and time goes by on its hosts."""
    for _ in range(4):
        Job.objects.filter(pk=job.pk).exclude(lease_until=None).update(lease_until=LONG_AGO)
        tick_now(job.pk)
        for machine in site.hosts:
            machine.finish()
    for pk in Hypervisor.objects.values_list("pk", flat=True):
        tasks.refresh(pk)
    job.refresh_from_db()


def adopt_all(by):
    state = incarnation.read_only()
    assert state is not None
    adopting.compare()
    for row in Adoption.objects.filter(episode=state.episode).exclude(job=None):
        assert not row.trouble, row.trouble
        adopting.want(row, by, row.digest)
        row.refresh_from_db()
        adopting.adopt(row)
    adopting.finish(by)
    assert incarnation.check() is None


def live_on(life):
    """To the end, with people who start it again, and who say to go on when it is halted."""
    life.resumes, job = 3, life.job
    ended = life.live("planned")
    for _ in range(2):
        if ended == "planned":
            job.start(operator())
            tick_now(job.pk)
            ended = life.live("planned")
    return ended


def try_one(life, machines, pair, how, monkeypatch, tmp_path, settings, cloud=None):  # noqa: F811
    """One case; how the migration ended, or None when hosts and database said the same."""
    _, was, now = pair
    free = life.free
    with life.rewound(), rewound(cloud):
        assert live_to(life, was, monkeypatch), was
        kept, point = keep(), transaction.savepoint()
        data = settings.DATA
        try:
            with Wire(machines, cloud) as lived:
                assert live_to(life, now, monkeypatch), now
            transaction.savepoint_rollback(point)
            if not lived.sent and how == HOW[0]:
                return None  # nothing was done meanwhile: hosts and database say the same
            life.job.refresh_from_db()
            set_back(monkeypatch, kept, how, tmp_path, settings)
            life.clock.move(timezone.now())
            with Wire(machines, cloud) as wire:
                try_to_act(life.job, machines)
            assert wire.sent == [], (was, now, how)
            assert incarnation.read_only() is not None, "nobody noticed"
            adopt_all(admin())
            ended = live_on(life)
            life.job.refresh_from_db()
            assert not life.job.halt_reason, life.job.halt_reason
            check_the_world(machines, life.job, free)
            check_in_nova(cloud)
            return ended
        except AssertionError as error:
            raise AssertionError(f"{was} restored {how} while its hosts were at {now}: {error}") from error
        finally:
            settings.DATA = data
            life.resumes, life.said = 0, []


@contextmanager
def rewound(cloud):
    """What Nova did within never happened."""
    kept = copy.deepcopy(cloud.servers) if cloud else {}
    try:
        yield
    finally:
        if cloud:
            cloud.servers = kept


def check_in_nova(cloud):
    if cloud:
        server = cloud.server
        assert (server.vm_state, server.task_state, server.locked) == ("active", None, False)


def sampled(few=4, ways=tuple(MOMENTS)):
    """Pairs of one way together: each way is lived once."""
    cases = [pair for pair in PAIRS if pair[0] in ways]
    random.Random(7).shuffle(cases)
    return sorted(cases[: amount(len(cases), few)], key=lambda pair: (pair[0], PAIRS.index(pair)))


@pytest.mark.parametrize("way", MOMENTS)
def test_a_database_that_was_set_back_changes_nothing_until_it_is_adopted_and_then_all_ends_well(
    way, real_life, machines, monkeypatch, tmp_path, settings, unmeasured  # noqa: F811
):  # fmt: skip
    cases = [pair for pair in sampled() if pair[0] == way]
    if not cases:
        pytest.skip("none of this way is in the sample")
    free = machines.relay.free
    life = begin_there(real_life, machines, way)
    life.free = free
    ends, same = Counter(), 0
    for number, pair in enumerate(cases):
        for how in [HOW[0], HOW[1 + number % 2]] if amount(1, 0) else [HOW[number % 3]]:
            if (ended := try_one(life, machines, pair, how, monkeypatch, tmp_path, settings)) is None:
                same += 1
            else:
                ends[ended] += 1
    figure(
        f"restore matrix, {way}: {ends.total()} cases (and {same} in which nothing had been done meanwhile), "
        f"0 mutating requests before adoption, all noticed by ticks and refreshes, ends {dict(ends)}"
    )
    assert set(ends) <= {"done", "purged", "rolled_back", "undone"}


@pytest.mark.parametrize("way", ["done", "rolled back"])
def test_what_was_done_through_nova_is_adopted_although_only_nova_and_libvirt_know_of_it(
    way, real_life, machines, nova_of_machines, monkeypatch, tmp_path, settings, unmeasured  # noqa: F811
):  # fmt: skip
    cases = [pair for pair in sampled(6, ("done", "rolled back")) if pair[0] == way]
    if not cases:
        pytest.skip("none of this way is in the sample")
    free = machines.relay.free
    cloud = nova_of_machines
    life = begin_there(real_life, machines, way, cloud)
    life.free = free
    ends, same = Counter(), 0
    for pair in cases:
        if (ended := try_one(life, machines, pair, HOW[0], monkeypatch, tmp_path, settings, cloud)) is None:
            same += 1
        else:
            ends[ended] += 1
    figure(
        f"restore matrix through Nova, {way}: {ends.total()} cases (and {same} in which nothing had been done "
        f"meanwhile), 0 changes on hosts or through Nova before adoption, ends {dict(ends)}"
    )
    assert set(ends) <= {"done", "rolled_back"}


def begin_there(real_life, site, way, cloud=None):  # noqa: F811
    """The migration is asked for; its own way begins at once."""
    wish, amid, _ = WAYS[way]
    if cloud:
        in_cloud(cloud)
    life = real_life(wish, amid)
    site.relay.slow = {amid} - {""}
    assert incarnation.check() is None  # as every start of volmig does
    life.submit()
    assert {*Hypervisor.objects.values_list("name", flat=True)} >= {"src", "jump", "dst"}
    return life
