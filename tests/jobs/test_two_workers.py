"""A model of two workers on one migration: deaths, late owners, second deliveries and people, in any order."""

import threading
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from jobs.engine import failpoints, states
from jobs.models import Job, Refused, StepRun
from tests.factories import approver, operator
from tests.fakes import LIVE, READS, SOURCE_LV
from tests.jobs.lives import Killed, check_the_world, in_the_ledger, in_the_world, kept_disk
from tests.ticks import LONG_AGO, tick_now
from volmig.record.models import Event

pytestmark = pytest.mark.usefixtures("unmeasured")

AT_REST = states.ENDED - {"purging"}


class TwoWorkers(RuleBasedStateMachine):
    """One migration; whoever ticks is a worker. A step is one thing that happens, and after each all has to hold."""

    told: Counter[str] = Counter()

    def __init__(self, a_life) -> None:
        super().__init__()
        self.life = a_life()
        self.site, self.free, self.written = self.life.site, self.life.site.relay.free, 0
        self.past = self.life.rewound()
        self.past.__enter__()
        self.life.submit()
        self.heard = Counter()

    def teardown(self):
        """Whatever has happened, when all is well again it comes to an end by itself, or halts and says why."""
        failpoints.arm(None)
        try:
            for host in self.site.hosts:
                host.reachable = True
            self.life.resumes = len(self.life.said) + 6
            self.life.clock.began = self.life.clock.now
            ended = self.life.live()
            self.told[ended] += 1
            check_the_world(self.site, self.job, self.free, 40 + self.written)
        finally:
            self.past.__exit__(None, None, None)

    @property
    def job(self) -> Job:
        self.life.job.refresh_from_db()
        return self.life.job

    # Workers

    @rule()
    def a_task_is_delivered(self):
        self.tick()

    @rule(nth=st.integers(1, 9), late=st.booleans())
    def a_second_one_is_delivered_while_a_hypervisor_answers(self, nth, late):
        """When the first owner is `late` its lease is over by then, so that the second takes the job from it."""
        with self.amid(nth, lambda: self.tick(late)):
            self.tick()

    @rule(nth=st.integers(1, 9))
    def a_worker_dies(self, nth):
        left = iter(range(nth - 1))

        def die(point):
            if next(left, None) is None:
                failpoints.arm(None)
                raise Killed(point)

        failpoints.arm(die)
        self.tick()
        failpoints.arm(None)

    @precondition(lambda self: self.job.lease_until is not None)
    @rule()
    def the_lease_of_the_dead_runs_out(self):
        self.tick(late=True)

    @rule()
    def time_passes(self):
        for host in self.site.hosts:
            host.finish()
        if at := self.job.wake_at:
            self.life.clock.move(at)

    def tick(self, late=False):
        if late:
            Job.objects.filter(pk=self.job.pk).update(lease_until=LONG_AGO)
        with suppress(Killed):
            tick_now(self.job.pk)

    @contextmanager
    def amid(self, nth, act):
        """Does something while the nth call from now on is under way, before the hypervisor hears of it."""
        plain, left = self.site.carry, iter(range(nth))

        def carry(host, request):
            # What only reads is asked for by several threads at once, each with a connection of its own.
            if threading.current_thread() is threading.main_thread() and next(left, None) == nth - 1:
                act()
            return plain(host, request)

        self.site.carry = carry
        yield
        self.site.carry = plain

    # People

    @rule(verb=st.sampled_from(["cancel", "confirm", "resume", "rollback", "purge"]))
    def somebody_says(self, verb):
        job, olga = self.job, operator()
        with suppress(Refused):
            job.ask(verb, olga) if verb in ("rollback", "purge") else getattr(job, verb)(olga)

    @precondition(lambda self: self.asked() is not None)
    @rule(verb=st.sampled_from(["approve", "approve", "approve", "reject", "withdraw"]))
    def an_approver_says(self, verb):
        asked = self.asked()
        given = (asked.digest, "as agreed") if verb == "approve" else ("no",)
        with suppress(Refused):
            getattr(asked, verb)(approver(), *given)

    @precondition(lambda self: self.asked() is not None)
    @rule()
    def a_stale_or_own_approval_is_refused(self):
        asked = self.asked()
        for who, digest in ((approver(), "0" * 64), (operator(), asked.digest)):
            with pytest.raises(Refused):
                asked.approve(who, digest, "as agreed")

    def asked(self):
        return self.job.approvals.open().first()

    # The world

    @rule()
    def somebody_writes_to_the_source(self):
        self.site.source.volumes[SOURCE_LV].writes += 1
        self.written += 1

    @rule()
    def somebody_starts_the_instance(self):
        self.site.destination.state = "running"

    @rule(which=st.integers(0, 2), verb=st.sampled_from(["lv_create", "convert", "stage", "stage_verify", "swap"]))
    def work_takes_long(self, which, verb):
        self.site.hosts[which].slow ^= {verb}

    @rule(which=st.integers(0, 2))
    def a_hypervisor_goes_away_or_comes_back(self, which):
        self.site.hosts[which].reachable ^= True

    @rule(which=st.integers(0, 1))
    def a_hypervisor_reboots(self, which):
        self.site.hosts[which].reboot()

    # What always holds

    @invariant()
    def no_disk_is_lost(self):
        source, live = self.site.source.volumes[SOURCE_LV], self.site.files[LIVE]
        assert (source.content, source.writes) == ("new disk", 40 + self.written)
        assert live.content in ("old disk", "new disk")
        assert self.site.unlocked == []

    @invariant()
    def nothing_is_swapped_without_a_consent_that_was_used(self):
        used = self.job.approvals.filter(kind="swap").exclude(consumed_at=None).count()
        assert used <= 1
        assert used or self.site.files[LIVE].content == "old disk"

    @invariant()
    def nothing_is_done_that_was_not_written_down_before(self):
        written = set(StepRun.objects.values_list("step", "direction", "attempt"))
        for host in self.site.hosts:
            fresh = host.requests[self.heard[host.name] :]
            self.heard[host.name] = len(host.requests)
            acts = [each for each in fresh if each.verb not in READS | {"fence"}]
            assert {(each.step, each.direction, each.attempt) for each in acts} <= written

    @invariant()
    def it_goes_only_where_the_table_leads(self):
        self.told["steps"] += 1
        at = "checking"
        for row in Event.objects.filter(action="job.status").order_by("seq").values_list("data", flat=True):
            assert (row["from"], states.next(at, row["by"])) == (at, row["to"])
            at = row["to"]
        assert at == self.job.status

    @invariant()
    def at_the_end_nothing_is_left(self):
        job = self.job
        if job.status in AT_REST and not job.halt_reason:
            assert in_the_world(self.site) == in_the_ledger(job) == kept_disk(job)


def model(a_life, examples, steps):
    TwoWorkers.told.clear()
    unhurried = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(lambda: TwoWorkers(a_life), settings=unhurried)
    told = Counter(TwoWorkers.told)
    count = told.pop("steps")
    ends = ", ".join(f"{number} {end}" for end, number in told.most_common())
    print(f"\ntwo workers: {count:,} steps in {told.total()} migrations, 0 violations: {ends}")
    return count


def test_two_workers_whatever_happens_lose_nothing_and_leave_nothing(a_life):
    assert model(a_life, 12, 25)


@pytest.mark.torture
def test_two_workers_lose_nothing_and_leave_nothing_in_ten_thousand_steps(a_life):
    assert model(a_life, 260, 50) >= 10_000
