"""Disks that swaps left over: their clock, longer keeping, and rehearsals, judged by what is there afterwards."""

import datetime as dt
from importlib import import_module

import pytest
from django.apps import apps
from django.utils import timezone

from hosts.remote.host import HostError
from jobs.models import Footprint, Job, Refused
from jobs.models import backup as backups
from tests.factories import approver, operator, viewer
from tests.fakes import LIVE, File, Refusal
from tests.ticks import tick_now
from volmig.models import Notice
from volmig.record.models import Event

DAY = dt.timedelta(days=1)


def kept(job):
    return job.footprints.kept().get()


def run_out(job):
    """The clock of a kept disk has run out."""
    job.footprints.kept().update(keep_until=timezone.now() - DAY)
    job.put(wake_at=timezone.now() - DAY)


def disk(site, job, name="disk.old"):
    return site.files[f"/var/lib/nova/instances/.volmig/{job.uuid}/{name}"]


def rehearsed(drive, job):
    job.rehearse(operator())
    drive.go(job)
    return job.rehearsals.first()


# The clock


def test_an_old_disk_is_kept_for_as_long_as_the_site_says_from_the_confirmation_on(drive, settings):
    settings.BACKUP_DAYS = 3
    job = drive.on_trial()
    assert (kept(job).keep_until, kept(job).bytes) == (None, 20 << 20)
    job.confirm(operator())
    drive.go(job)
    assert abs(kept(job).keep_until - timezone.now() - 3 * DAY) < dt.timedelta(minutes=1)
    assert job.wake_at == kept(job).keep_until


def test_the_disk_that_a_rollback_rejects_has_a_clock_too(drive):
    job = drive.on_trial()
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert kept(job).name.endswith("disk.rejected")
    assert kept(job).keep_until > timezone.now() + 13 * DAY
    assert kept(job).bytes == 30 << 20


def test_what_left_no_disk_has_no_clock(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    job.cancel(operator())
    drive.go(job)
    assert (job.status, job.wake_at, Footprint.objects.kept().count()) == ("undone", None, 0)


def test_a_due_backup_is_told_once_and_stays_where_it_is(drive, site):
    job = drive.done()
    run_out(job)
    drive.go(job)
    assert kept(job).is_due
    assert disk(site, job).content == "old disk"
    assert Footprint.objects.due().get().job == job
    for _ in range(3):
        tick_now(job.pk)
    told = Notice.objects.get(kind="backup_due")
    assert "olga" in told.text
    assert "Nothing is deleted automatically" in told.text
    assert Event.objects.filter(job=job.pk, action="backup.due").count() == 1


def test_a_due_backup_is_still_purged_by_its_own_approval_alone(drive, site):
    job = drive.done()
    run_out(job)
    drive.go(job)
    job.ask("purge", operator())
    drive.go(job)
    assert disk(site, job).content == "old disk"
    drive.approve(job, "purge")
    assert (job.status, site.leftovers(), Footprint.objects.kept().count()) == ("purged", [], 0)


# Keeping it longer


def test_it_is_kept_longer_for_a_reason_and_told_again_when_that_time_is_over(drive):
    job = drive.done()
    run_out(job)
    drive.go(job)
    was, until = kept(job).keep_until, timezone.now() + 30 * DAY
    job.extend(operator(), until, " the tenant is away ")
    drive.go(job)
    assert (kept(job).keep_until, kept(job).is_due, job.wake_at) == (until, False, until)
    event = Event.objects.get(job=job.pk, action="job.extend")
    assert event.data["reason"] == "the tenant is away"
    assert event.data["was"][:19] == was.isoformat()[:19]
    job.footprints.kept().update(keep_until=timezone.now())
    drive.go(job)
    assert Event.objects.filter(job=job.pk, action="backup.due").count() == 2


@pytest.mark.parametrize(
    ("until", "reason", "says"),
    [
        (20 * DAY, "  ", "Give a reason"),
        (-DAY, "why", "in the future"),
        (DAY, "why", "later than the current one"),
        (400 * DAY, "why", "At most a year"),
    ],
)
def test_a_date_or_reason_that_is_none_is_refused_and_changes_nothing(drive, until, reason, says):
    job = drive.done()
    before = kept(job).keep_until
    with pytest.raises(Refused, match=says):
        job.extend(operator(), timezone.now() + until, reason)
    assert kept(job).keep_until == before
    assert not Event.objects.filter(action="job.extend").exists()


def test_who_keeps_it_longer_takes_back_that_it_is_to_be_purged(drive, site):
    job = drive.done()
    asked = job.ask("purge", operator())
    asked.approve(approver(), asked.digest, "as agreed")
    job.extend(operator(), timezone.now() + 20 * DAY, "not yet")
    drive.go(job)
    asked.refresh_from_db()
    assert (asked.state, asked.void_reason) == ("void", "The disk is kept longer.")
    assert (job.status, disk(site, job).content) == ("done", "old disk")


@pytest.mark.parametrize("who", [viewer, approver])
def test_only_operators_keep_longer_or_rehearse(drive, who):
    job = drive.done()
    for verb in (lambda: job.extend(who(), timezone.now() + 20 * DAY, "why"), lambda: job.rehearse(who())):
        with pytest.raises(Refused, match="you need the role operator"):
            verb()


def test_while_on_trial_nothing_is_extended_or_rehearsed_for_the_way_back_must_not_wait(drive):
    job = drive.on_trial()
    with pytest.raises(Refused, match="on trial now"):
        job.rehearse(operator())
    with pytest.raises(Refused, match="on trial now"):
        job.extend(operator(), timezone.now() + 20 * DAY, "why")


# Rehearsals


def test_a_backup_as_it_was_recorded_is_found_in_order_and_nothing_is_changed(drive, site):
    job = drive.done()
    before = dict(site.files)
    found = rehearsed(drive, job)
    assert (found.result, found.findings, found.by) == ("ok", [], operator())
    assert (site.files, site.files[LIVE].content) == (before, "new disk")
    assert site.destination.kept == {}, "the hypervisor remembers nothing of it"
    asked = site.destination.asked("rehearse")[0].args["recorded"]
    assert asked["inode"] == 4711
    assert "mtime_ns" in asked
    assert job.status == "done"
    assert Event.objects.get(job=job.pk, action="backup.rehearsed").data["result"] == "ok"


def test_a_backup_that_was_written_to_differs_and_people_are_told(drive, site):
    job = drive.done()
    disk(site, job).mtime_ns = 5
    found = rehearsed(drive, job)
    assert found.result == "differs"
    assert "its mtime_ns is 5" in found.findings[0]
    assert "differs" in Notice.objects.get(kind="backup_bad").text


def test_bytes_that_change_while_all_else_stays_are_found_from_the_second_rehearsal_on(drive, site):
    job = drive.done()
    assert rehearsed(drive, job).result == "ok"
    disk(site, job).content = "old dusk"
    found = rehearsed(drive, job)
    assert (found.number, found.result) == (2, "differs")
    assert "sha256" in found.findings[0]
    assert rehearsed(drive, job).result == "differs", "what is wrong does not become the measure"


def test_a_backup_that_is_gone_cannot_be_read(drive, site):
    job = drive.done()
    del site.files[kept(job).name]
    assert rehearsed(drive, job).result == "unreadable"


def test_the_disk_that_a_failed_start_rejected_is_compared_with_the_staged_copy(drive, site):
    site.destination.faults["instance_start"] = Refusal("start-failed", "no", "failed", ever_ran=False)
    job = drive.on_trial()
    assert job.status == "rolled_back"
    found = rehearsed(drive, job)
    asked = site.destination.asked("rehearse")[0].args
    assert asked["backup_path"].endswith("disk.rejected")
    assert asked["recorded"]["inode"] == disk(site, job, "disk.rejected").inode
    assert found.result in ("ok", "differs")


def test_one_at_a_time_and_a_purge_waits_for_it(drive, site):
    job = drive.done()
    site.destination.slow = {"rehearse"}
    job.rehearse(operator())
    drive.go(job)
    assert (job.running().step, job.running().bytes_total) == ("rehearse", 20 << 20)
    with pytest.raises(Refused, match="is running"):
        job.rehearse(operator())
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert (job.status, disk(site, job).content) == ("done", "old disk")
    site.destination.slow = set()
    site.destination.finish()
    drive.go(job)
    assert (job.rehearsals.get().result, job.status, site.leftovers()) == ("ok", "purged", [])


def test_a_rehearsal_that_dies_with_its_hypervisor_is_begun_again(drive, site):
    job = drive.done()
    site.destination.slow = {"rehearse"}
    job.rehearse(operator())
    drive.go(job)
    site.destination.reboot()
    site.destination.slow = set()
    drive.go(job)
    assert job.rehearsals.get().result == "ok"
    assert [run.result for run in job.runs.filter(step="rehearse")] == ["lost", "done"]


def test_a_hypervisor_that_is_away_is_waited_for(drive, site):
    job = drive.done()
    site.destination.reachable = False
    job.rehearse(operator())
    drive.go(job)
    assert "waits for an answer" in job.waiting_for
    site.destination.reachable = True
    drive.go(job)
    assert (job.rehearsals.get().result, job.waiting_for) == ("ok", "")


def test_a_hypervisor_that_may_not_be_entered_ends_the_rehearsal_and_not_the_migration(drive, site):
    def refuse(request, timeout=20):
        raise HostError("log in to dst", "the login was refused", "Check the user.")

    job = drive.done()
    site.destination.call = refuse
    found = rehearsed(drive, job)
    assert (found.result, job.status, job.halt_reason) == ("unreadable", "done", "")
    assert "the login was refused" in " ".join(found.findings)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {},
        {"verdict": "splendid"},
        {"verdict": ["ok"], "findings": "x"},
        {"findings": ["x" * 9999] * 99},
        {"verdict": "odd", "file_size": "12", "sha256": "<b>", "seconds": True, "leaks": -1, "inode": 1 << 70},
    ],
)
def test_an_answer_that_is_no_verdict_is_no_good_news(drive, told):
    job = drive.done()
    job.rehearse(operator())
    found = job.rehearsals.get()
    found.end(told)
    assert (found.result, found.figures) == ("unreadable", {})
    assert len(str(found.findings)) < 6000


def test_what_is_recorded_of_a_disk_is_what_the_stop_measured(drive, site):
    job = drive.done()
    wanted = File(4711, "").identity()
    assert backups.recorded(job, kept(job)) == wanted


def test_each_migration_has_its_own_clock(drive):
    first, second = drive.done(), drive.done()
    run_out(first)
    assert list(Footprint.objects.due().values_list("job", flat=True)) == [first.pk]
    assert Job.objects.get(pk=second.pk).has_backup()


def test_what_was_kept_before_there_were_clocks_gets_one(drive):
    job = drive.done()
    job.footprints.kept().update(keep_until=None, bytes=0)
    job.put(wake_at=None)
    import_module("jobs.migrations.0006_backups").start_clocks(apps, None)
    job.refresh_from_db()
    assert kept(job).keep_until == job.ended_at + 14 * DAY == job.wake_at
    assert kept(job).bytes == job.facts["destination"]["disk"]["allocated"]
    trial = drive.on_trial()
    import_module("jobs.migrations.0006_backups").start_clocks(apps, None)
    assert kept(trial).keep_until is None
