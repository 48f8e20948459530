"""Ticks: one owner at a time, nothing lost between them, and limits that several jobs share."""

import datetime as dt
import threading
from dataclasses import replace

import pytest
from django.db import connection
from django.utils import timezone

from jobs.engine import checks
from jobs.models import Footprint, Job, Lease, Moved
from jobs.models.job import LONGEST_SLEEP
from jobs.models.wake import wake
from jobs.worker import tick
from jobs.worker.executor import Work
from jobs.worker.watcher import sweep
from tests.factories import a_job, a_volume, a_volume_group, an_instance, asked, operator
from tests.ticks import LONG_AGO, claim_now, tick_now
from volmig.models import QueuedTask


def test_a_claimed_job_is_left_alone(site):
    job = a_job()
    assert Job.objects.claim(job.pk, "somebody", 30)
    tick_now(job.pk)
    job.refresh_from_db()
    assert (job.status, job.lease_owner, job.fence) == ("checking", "somebody", 1)


def test_an_owner_that_went_away_is_replaced_and_can_write_nothing_more(site):
    job = a_job()
    late = Job.objects.claim(job.pk, "late", -1)
    tick_now(job.pk)
    with pytest.raises(Moved):
        late.go("passed")
    job.refresh_from_db()
    assert (job.status, job.fence, job.lease_until) == ("planned", 2, None)


@pytest.mark.django_db(transaction=True)
def test_of_workers_that_race_one_gets_the_job():
    job = a_job()
    claimed, ready = [], threading.Barrier(4)

    def claim(owner):
        ready.wait()
        claimed.append(Job.objects.claim(job.pk, owner, 30))
        connection.close()

    workers = [threading.Thread(target=claim, args=(f"worker {number}",)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    winners = [each for each in claimed if each]
    job.refresh_from_db()
    assert [each.lease_owner for each in winners] == [job.lease_owner]
    assert job.fence == 1


def test_waking_sets_the_earlier_alarm_and_queues_what_is_due(site):
    job = a_job()
    QueuedTask.objects.all().delete()
    soon, later = (timezone.now() + dt.timedelta(seconds=seconds) for seconds in (60, 120))
    Job.objects.filter(pk=job.pk).update(wake_at=None)
    wake(job.pk, later)
    wake(job.pk, soon)
    wake(job.pk, later)
    job.refresh_from_db()
    assert (job.wake_at, QueuedTask.objects.count()) == (soon, 0)
    wake(job.pk)
    assert QueuedTask.objects.count() == 1


def test_what_wakes_a_job_while_it_is_worked_on_is_not_lost(site):
    job = a_job()
    owned = Job.objects.claim(job.pk, "worker", 30)
    wake(job.pk)
    QueuedTask.objects.all().delete()
    tick.release(owned)
    assert QueuedTask.objects.count() == 1


def test_the_sweep_finds_what_is_due_and_what_lost_its_owner(site):
    job = a_job()
    QueuedTask.objects.all().delete()
    Job.objects.filter(pk=job.pk).update(wake_at=None)
    sweep()
    assert QueuedTask.objects.count() == 0
    claim_now(job.pk, "worker", -1)
    sweep()
    assert QueuedTask.objects.count() == 1


def test_a_fault_of_volmig_itself_is_said_and_tried_again(site, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr("jobs.engine.checks.look", broken)
    job = a_job()
    tick_now(job.pk)
    job.refresh_from_db()
    assert "Internal error: ZeroDivisionError" in job.waiting_for
    assert job.wake_at > timezone.now()
    assert job.lease_until is None


def test_a_tick_that_its_worker_ends_at_the_limit_of_a_task_is_taken_over_when_its_lease_is_over(site, monkeypatch):
    """By SystemExit: as if the worker had died. Let go of without an alarm, nobody would ever go on."""
    look = checks.look

    def hangs(*_):
        raise SystemExit("Task exceeded maximum timeout value (120 seconds)")

    monkeypatch.setattr("jobs.engine.checks.look", hangs)
    job = a_job()
    with pytest.raises(SystemExit):
        tick_now(job.pk)
    job.refresh_from_db()
    assert "Internal error: SystemExit: Task exceeded" in job.waiting_for
    assert job.lease_until > timezone.now()
    monkeypatch.setattr("jobs.engine.checks.look", look)
    Job.objects.filter(pk=job.pk).update(lease_until=LONG_AGO)
    QueuedTask.objects.all().delete()
    sweep()
    assert QueuedTask.objects.get().number == job.pk
    tick_now(job.pk)
    job.refresh_from_db()
    assert (job.status, job.waiting_for) == ("planned", "")


HOURS = dt.timedelta(hours=5)


def is_now(moment):
    return abs(moment - timezone.now()) < dt.timedelta(minutes=1)


def changed(job, **values):
    """The migration with these columns, and nothing queued."""
    QueuedTask.objects.all().delete()
    Job.objects.filter(pk=job.pk).update(**values)
    return job


def swept(job):
    """The migration after a sweep, and whether that queued its tick."""
    sweep()
    job.refresh_from_db()
    return job, QueuedTask.objects.filter(number=job.pk).exists()


@pytest.mark.parametrize("status", ["checking", "preparing", "swapping", "rolling_back", "undoing", "purging"])
@pytest.mark.parametrize("waited", [HOURS, -HOURS], ids=["before its wait began", "while it waited"])
def test_a_migration_does_not_sleep_until_a_clock_that_was_set_back_comes_there_again(site, status, waited):
    """Set back by five hours: what was noted as now lies that far ahead."""
    ahead = timezone.now() + HOURS
    waits = {"waiting_for": "dst did not answer.", "wait_kind": "host", "waiting_since": timezone.now() + waited}
    job, is_due = swept(changed(a_job(), status=status, wake_at=ahead + dt.timedelta(seconds=10), **waits))
    assert is_due
    assert is_now(job.wake_at)
    assert is_now(job.waiting_since) is (waited > dt.timedelta()), "what stalls is found out from now on"


@pytest.mark.parametrize(
    ("status", "kind"), [("awaiting_approval", ""), ("approved", "window"), ("on_trial", "person"), ("done", "")]
)
def test_an_alarm_that_lies_far_ahead_for_a_reason_stays(site, status, kind):
    ahead = timezone.now() + HOURS
    job, is_due = swept(changed(a_job(), status=status, wait_kind=kind, wake_at=ahead))
    assert (job.wake_at, is_due) == (ahead, False)


def test_what_has_to_settle_and_attempts_since_a_resume_count_from_when_the_clock_was_set_back(site):
    job = a_job()
    ahead = timezone.now() + HOURS
    run = job.runs.create(step="swap", started_at=ahead, ended_at=ahead, progress_at=ahead, result="done")
    earlier = job.runs.create(step="stop", started_at=LONG_AGO, ended_at=LONG_AGO, result="done")
    job, _ = swept(changed(job, status="swapping", resumed_at=ahead))
    run.refresh_from_db()
    earlier.refresh_from_db()
    assert all(is_now(each) for each in (run.started_at, run.ended_at, run.progress_at))
    assert run.ended_at < job.resumed_at < timezone.now() + dt.timedelta(seconds=5)
    assert earlier.ended_at.year == 2000


def test_a_lease_that_reaches_further_than_any_is_that_of_an_owner_who_went_away(site, settings):
    job = a_job()
    assert claim_now(job.pk, "worker", settings.LEASE_SECONDS)
    assert swept(changed(job))[1] is False
    assert Job.objects.claim(job.pk, "another", 30) is None
    Job.objects.filter(pk=job.pk).update(lease_until=timezone.now() + HOURS)
    assert swept(changed(job))[1] is True
    assert Job.objects.claim(job.pk, "another", 30).lease_owner == "another"


def test_a_watcher_takes_over_a_lease_from_before_the_clock_was_set_back(db):
    assert Lease.objects.take("watcher", "first", HOURS.total_seconds())
    assert Lease.objects.take("watcher", "second", 10)
    assert not Lease.objects.take("watcher", "first", 10)


@pytest.mark.parametrize(("kind", "most"), [("retry", LONGEST_SLEEP), ("window", HOURS)])
def test_what_is_at_work_looks_again_after_ten_minutes_whatever_it_waits_for(site, kind, most):
    job = changed(a_job(), wake_at=None)
    Work(claim_now(job.pk, "worker", 30), None)._wait("It waits.", timezone.now() + HOURS, kind)
    job.refresh_from_db()
    assert is_now(job.wake_at - most)


def second(**changed):
    """What a second migration between the same machines is asked for with."""
    values = asked()
    volume = a_volume(a_volume_group(values["source_volume"].volume_group.hypervisor), "second", uuid="dddddd")
    instance = an_instance(values["destination"].hypervisor, "99999999-9b1a-4f57-8a36-5d1e7c20b9aa", name="web1")
    return {**values, "source_volume": volume, "destination": instance, **changed}


def test_a_source_reads_for_one_migration_at_a_time(drive, site):
    site.source.slow = {"convert"}
    first = drive.submit()
    other = Job.objects.submit(operator(), **second())
    other.put(status="preparing", plan=first.plan, facts=first.facts)
    drive.go(other)
    assert other.waiting_for == f"It waits for migration {first.pk}, which reads from src."
    assert not other.runs.exists()


def test_a_relay_serves_two_migrations_at_a_time(drive, site, settings):
    settings.CONVERSIONS_PER_SOURCE, settings.CONVERSIONS_PER_RELAY = 9, 1
    site.source.slow = {"convert"}
    first = drive.submit()
    other = Job.objects.submit(operator(), **second())
    other.put(status="preparing", plan=first.plan, facts=first.facts)
    drive.go(other)
    assert "waits for a slot on the relay jump" in other.waiting_for


def test_space_that_another_job_has_reserved_is_waited_for(drive, site, settings):
    settings.CONVERSIONS_PER_SOURCE = 9
    site.source.slow = {"convert"}
    first = drive.submit()
    Footprint.objects.filter(job=first, kind="space").update(state="reserved", bytes=8 << 30)
    other = Job.objects.submit(operator(), **second())
    other.put(status="preparing", plan=first.plan, facts=first.facts)
    drive.go(other)
    assert "MiB in vg_nova0 on jump" in other.waiting_for


def test_the_relays_limit_is_shared_by_those_that_run(drive, site):
    site.source.slow = {"convert"}
    first = drive.submit(rate=80)
    first.relay.put(rate_limit=100)
    assert first.rate_allowed() == 80
    other = Job.objects.submit(operator(), **second())
    other.put(status="preparing")
    assert first.rate_allowed() == 50


def test_asking_again_for_an_open_attempt_asks_for_the_same(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    job.set_rate(operator(), 4096)
    drive.go(job)
    asked_for = site.source.asked("convert")
    assert len(asked_for) > 1
    assert {(each.attempt, each.args["rate"]) for each in asked_for} == {(1, 0)}


def test_a_worker_that_lost_its_lease_cannot_start_anything(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    stale = replace(site.source.asked("convert")[-1], attempt=2, fence=job.fence - 1)
    assert site.source.call(stale).error["code"] == "stale-fence"


def test_a_cancel_between_two_steps_begins_no_further_step(drive, site, monkeypatch):
    fence = site.source.lv_fence

    def cancelled_meanwhile(args, job):
        Job.objects.get().cancel(operator())
        return fence(args, job)

    monkeypatch.setattr(site.source, "lv_fence", cancelled_meanwhile)
    job = drive.submit()
    assert (job.status, job.outcome, site.leftovers()) == ("undone", "cancelled", [])
    assert not site.source.asked("convert")


def test_after_the_end_its_hypervisors_are_looked_at_again(drive, site):
    site.source.volumes.clear()
    drive.submit()
    queued = [(row.name, row.number) for row in QueuedTask.objects.all()]
    assert [each[0] for each in queued].count("hosts.tasks.refresh") == 3
