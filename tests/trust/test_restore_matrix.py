"""The restore matrix: a database of every moment of a migration, its hosts at every later one.

Nothing that changes anything reaches a host before a person adopts the migration; afterwards it comes to a right end.
The hostctl of the hosts is the real one. Moments are every status and the end of every step of the swap.
"""

import itertools
import random
import secrets
import shutil
from collections import Counter

import pytest
from django.db import transaction
from django.utils import timezone

from hosts.models import Hypervisor
from jobs import adopting, tick
from jobs.hands import changes
from jobs.journal import Journal
from jobs.models import Adoption, Job
from jobs.work import Work
from tests.factories import admin, operator
from tests.jobs.conftest import machines, real_life  # noqa: F401 - fixtures
from tests.jobs.lives import LONG_AGO, MOST_TICKS, WAYS, Killed, check_the_world
from tests.outside import keep, put_back
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
    """Counts what is sent to the hosts and would change something."""

    def __init__(self, site):
        self.site, self.sent, self.carry = site, [], site.carry

    def __enter__(self):
        self.site.carry = self.carried
        return self

    def __exit__(self, *_):
        self.site.carry = self.carry

    def carried(self, machine, request):
        if changes(request):
            self.sent.append(f"{request.verb} to {machine.name}")
        return self.carry(machine, request)


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
    """What workers do: several ticks of a job whose lease ran out, and time goes by on its hosts."""
    for _ in range(4):
        Job.objects.filter(pk=job.pk).exclude(lease_until=None).update(lease_until=LONG_AGO)
        tick.run(job.pk)
        for machine in site.hosts:
            machine.finish()
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
            tick.run(job.pk)
            ended = life.live("planned")
    return ended


def try_one(life, machines, pair, how, monkeypatch, tmp_path, settings):  # noqa: F811
    """One case: what was sent before the adoption, how the migration ended, whether it was noticed at all."""
    _, was, now = pair
    free = life.free
    with life.rewound():
        assert live_to(life, was, monkeypatch), was
        kept, point = keep(), transaction.savepoint()
        data = settings.DATA
        try:
            with Wire(machines) as lived:
                assert live_to(life, now, monkeypatch), now
            transaction.savepoint_rollback(point)
            if not lived.sent and how == HOW[0]:
                return None  # nothing was done meanwhile: hosts and database say the same
            life.job.refresh_from_db()
            set_back(monkeypatch, kept, how, tmp_path, settings)
            life.clock.move(timezone.now())
            with Wire(machines) as wire:
                try_to_act(life.job, machines)
            noticed = incarnation.read_only() is not None
            assert wire.sent == [], (was, now, how)
            if not noticed:  # nothing was to be done by itself: the first who wants something changed finds it out
                incarnation.enter_read_only("a person says so")
            adopt_all(admin())
            ended = live_on(life)
            life.job.refresh_from_db()
            check_the_world(machines, life.job, free)
            return noticed, ended
        except AssertionError as error:
            raise AssertionError(f"{was} restored {how} while its hosts were at {now}: {error}") from error
        finally:
            settings.DATA = data
            life.resumes, life.said = 0, []


def sampled():
    """Pairs of one way together: each way is lived once."""
    cases = list(PAIRS)
    random.Random(7).shuffle(cases)
    return sorted(cases[: amount(len(cases), 4)], key=lambda pair: (pair[0], PAIRS.index(pair)))


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
    ends, unnoticed, tried, same = Counter(), 0, 0, 0
    for number, pair in enumerate(cases):
        for how in [HOW[0], HOW[1 + number % 2]] if amount(1, 0) else [HOW[number % 3]]:
            tried_one = try_one(life, machines, pair, how, monkeypatch, tmp_path, settings)
            if tried_one is None:
                same += 1
                continue
            noticed, ended = tried_one
            ends[ended] += 1
            tried, unnoticed = tried + 1, unnoticed + (not noticed)
    figure(
        f"restore matrix, {way}: {tried} cases (and {same} in which nothing had been done meanwhile), "
        f"0 mutating requests before adoption, "
        f"{tried - unnoticed} noticed by ticks alone, ends {dict(ends)}"
    )
    assert set(ends) <= {"done", "purged", "rolled_back", "undone"}


def begin_there(real_life, site, way):  # noqa: F811
    """The migration is asked for; its own way begins at once."""
    wish, amid, _ = WAYS[way]
    life = real_life(wish, amid)
    site.relay.slow = {amid} - {""}
    assert incarnation.check() is None  # as every start of volmig does
    life.submit()
    assert {*Hypervisor.objects.values_list("name", flat=True)} >= {"src", "jump", "dst"}
    return life
