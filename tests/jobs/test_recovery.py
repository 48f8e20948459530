"""What goes wrong amid a migration, and what is left in the world when the job has come through it."""

import datetime as dt
import threading
from dataclasses import replace

import pytest
from django.db import connection
from django.utils import timezone

from hosts.remote.host import Request, Unreachable
from jobs.models import Footprint, Job, Moved, StepRun
from jobs.worker import tick
from jobs.worker.watcher import sweep
from tests.factories import operator
from tests.fakes import LIVE, SOURCE_LV, Refusal
from tests.jobs.lives import begin
from tests.ticks import claim_now, tick_now
from volmig.models import QueuedTask
from volmig.record.models import Event


def stage_of(site):
    return next(path for path in site.files if path.endswith("disk.new"))


def failures(job):
    return job.runs.filter(result__in=["failed", "refused"]).count()


# A relay that reboots takes filesystem, export and all that hangs on them away


def verified(job, site):
    """The copy is proved, beside the live disk, and of the rest nothing is left."""
    copy = site.files[stage_of(site)]
    left = (site.relay.volumes, site.relay.mounts, site.relay.exports, site.source.mounts)
    return (job.status, copy.content, left) == ("awaiting_approval", "new disk", ({}, {}, {}, {}))


def test_a_copy_that_hangs_on_a_rebooted_relay_goes_on_when_it_is_exported_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reboot()
    drive.go(job)
    assert list(site.relay.exports) == list(site.relay.mounts) != []
    assert job.running().step == "convert"
    site.source.slow = set()
    site.source.finish()
    drive.go(job)
    assert verified(job, site), job.waiting_for
    assert (failures(job), len(site.source.asked("nfs_mount"))) == (0, 2)


@pytest.mark.parametrize("verb", ["convert", "compare"])
def test_a_pass_that_failed_with_the_relay_is_repeated_after_everything_is_made_again(drive, site, verb):
    site.source.slow = {verb}
    job = drive.submit()
    site.relay.reboot()
    site.source.slow = set()
    site.source.finish()
    drive.go(job)
    assert verified(job, site), job.outcome_reason
    assert [run.result for run in job.runs.filter(step=verb)] == ["failed", "done"]


def test_a_relay_that_reboots_while_it_stages_mounts_and_stages_again(drive, site):
    site.relay.slow = {"stage"}
    job = drive.submit()
    site.relay.reboot()
    site.relay.slow = set()
    drive.go(job)
    assert verified(job, site), job.outcome_reason
    assert [run.result for run in job.runs.filter(step="stage")] == ["lost", "done"]


def test_failures_are_not_counted_against_a_step_that_stood_on_nothing(drive, site):
    for _ in range(5):
        if not site.source.running:
            site.source.slow = {"convert"}
            job = Job.objects.first() or drive.submit()
            drive.go(job)
        site.relay.reboot()
        site.source.finish()
    site.source.slow = set()
    drive.go(job)
    assert verified(job, site), job.outcome_reason
    assert failures(job) == 5


def test_a_step_is_not_tried_again_while_the_relay_is_away(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reboot()
    site.relay.reachable, site.source.slow = False, set()
    site.source.finish()
    for _ in range(5):
        drive.go(job)
    assert (job.status, job.runs.filter(step="convert").count()) == ("preparing", 1)
    assert "reach jump: connection refused" in job.waiting_for
    site.relay.reachable = True
    drive.go(job)
    assert verified(job, site), job.outcome_reason


def test_a_job_whose_relay_stays_away_can_be_called_off_and_is_undone_when_it_is_back(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reboot()
    site.relay.reachable = False
    job.cancel(operator())
    drive.go(job)
    assert (job.status, site.source.mounts) == ("undoing", {})
    site.relay.reachable = True
    drive.go(job)
    assert (job.status, job.outcome, site.leftovers()) == ("undone", "cancelled", [])


def test_a_relay_that_is_away_for_long_while_a_copy_hangs_on_it_is_told_on_the_page(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reachable = False
    drive.go(job)
    StepRun.objects.filter(ended_at=None).update(silent_since=timezone.now() - dt.timedelta(seconds=95))
    drive.go(job)
    assert "for 95 s; needs attention" in job.waiting_for
    site.relay.reachable, site.source.slow = True, set()
    drive.go(job)
    assert job.waiting_for == "Convert the volume to qcow2 is running on src."
    site.source.finish()
    drive.go(job)
    assert verified(job, site)


def test_work_whose_answer_was_lost_is_stopped_by_its_undo(drive, site, monkeypatch):
    site.source.slow, call = {"convert"}, site.source.call

    def cut_off(request, timeout=20):
        call(request)
        raise Unreachable("call convert on src", "the connection was cut")

    monkeypatch.setattr(
        site.source, "call", lambda request, *_: (cut_off if request.verb == "convert" else call)(request)
    )
    job = drive.submit()
    assert (job.running().result, len(site.source.running)) == ("", 1)
    job.cancel(operator())
    drive.go(job)
    assert (job.status, site.source.running, site.leftovers()) == ("undone", {}, [])


def test_a_hypervisor_that_is_silent_while_it_is_looked_at_is_asked_again(drive, site):
    site.relay.reachable = False
    job = drive.submit()
    assert (job.status, job.waiting_for) == ("checking", "Tried to reach jump: connection refused.")
    site.relay.reachable = True
    drive.go(job)
    assert verified(job, site)


def fail(args):
    raise Refusal("failed", "lvs does not answer", "failed")


@pytest.mark.parametrize(
    ("answer", "said"),
    [(fail, "lvs does not answer"), (lambda args: {"volume": "the usual one", "time": 1}, "malformed")],
)
def test_a_hypervisor_that_answers_three_times_without_the_facts_is_for_a_person(
    drive, site, monkeypatch, answer, said
):
    job = drive.submit()
    with monkeypatch.context() as broken:
        broken.setattr(site.source, "source_facts", answer)
        drive.approve(job)
        drive.go(job)
        assert (job.status, job.halt_reason) == ("approved", "")
        assert said in job.waiting_for
        drive.go(job)
        assert (job.status, job.halt_data["code"]) == ("approved", "no-facts")
        assert said in job.halt_reason
    job.resume(operator())
    assert drive.go(job).status == "on_trial"


def test_a_hypervisor_that_is_silent_for_long_is_asked_until_it_answers(drive, site):
    job = drive.submit()
    site.source.reachable = False
    drive.approve(job)
    for _ in range(5):
        drive.go(job)
    assert (job.status, job.halt_reason) == ("approved", "")
    site.source.reachable = True
    assert drive.go(job).status == "on_trial"


# Somebody else takes the export away, as `exportfs -r` does with what is in no file


@pytest.mark.parametrize("verb", ["convert", "compare"])
def test_a_pass_whose_export_was_withdrawn_is_repeated_once_it_is_exported_again(drive, site, verb):
    site.source.slow = {verb}
    job = drive.submit()
    site.relay.exports.clear()
    site.source.slow = set()
    site.source.finish()
    drive.go(job)
    assert verified(job, site), job.outcome_reason
    assert [run.result for run in job.runs.filter(step=verb)] == ["failed", "done"]
    assert failures(job) == 1


def test_a_filesystem_that_somebody_unmounted_on_the_relay_is_mounted_and_exported_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.exports.clear()
    site.relay.mounts.clear()
    site.source.slow = set()
    site.source.finish()
    drive.go(job)
    assert verified(job, site), job.outcome_reason


def test_an_export_that_is_taken_away_each_time_undoes_the_migration_in_the_end(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    for _ in range(3):
        assert job.running().step == "convert"
        site.relay.exports.clear()
        site.source.finish()
        drive.go(job)
    assert (job.status, site.leftovers(), failures(job)) == ("undone", [], 3)
    assert "Stale file handle" in job.outcome_reason


# An owner that went away without letting go


def abandoned(job):
    """The job as a worker leaves it that is killed."""
    late = claim_now(job.pk, "killed", -1)
    assert late
    return late


def test_whoever_takes_over_shuts_the_earlier_owner_out_everywhere_first(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    late = abandoned(job)
    drive.go(job)
    assert not job.taken_over
    for host in (site.source, site.relay):
        again = replace(host.asked("fence")[-1], fence=late.fence)
        assert host.fences[str(job.uuid)] > late.fence
        assert host.call(again).error["code"] == "stale-fence"


def test_nothing_is_done_while_something_runs_that_the_journal_does_not_know(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.slow = {"lv_remove"}
    job.cancel(operator())
    args = {"vg": "vg_nova0", "lv": "x", "size": 1}
    unknown = Request("lv_remove", args, str(job.uuid), step="x", attempt=7, fence=job.fence)
    who = {name: site.relay.owner[name] for name in ("incarnation", "session")}
    assert site.relay.call(replace(unknown, **who)).state == "running"
    abandoned(job)
    drive.go(job)
    assert (job.status, job.taken_over, len(site.source.mounts)) == ("preparing", True, 1)
    assert "jump is still busy with x-do-7 of a worker that has ended" in job.waiting_for
    site.relay.finish()
    site.relay.slow = set()
    drive.go(job)
    assert (job.status, job.taken_over, site.leftovers()) == ("undone", False, [])


def test_nothing_is_done_before_every_hypervisor_has_heard_of_the_new_owner(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    job.cancel(operator())
    abandoned(job)
    site.relay.reachable = False
    drive.go(job)
    drive.go(job)
    assert (job.status, job.taken_over, len(site.source.mounts)) == ("preparing", True, 1)
    assert "Before continuing after a worker ended" in job.waiting_for
    site.relay.reachable = True
    drive.go(job)
    assert (job.status, site.leftovers()) == ("undone", [])


def test_a_unit_that_began_too_late_for_its_owner_is_begun_again(drive, site):
    site.source.faults["convert"] = Refusal("started-late", "fence 3 was already seen for this job")
    job = drive.submit()
    assert verified(job, site), job.outcome_reason


@pytest.mark.django_db(transaction=True)
def test_a_tick_that_waits_longer_than_its_lease_keeps_its_job(drive, site, settings, monkeypatch):
    settings.LEASE_SECONDS = 0.4
    site.source.slow = {"convert"}
    job = drive.submit()
    reached, go_on = threading.Event(), threading.Event()

    def patient(request, timeout=20):
        reached.set()
        assert go_on.wait(10)
        return call(request)

    call = site.source.call
    monkeypatch.setattr(site.source, "call", patient)

    def worker():
        tick_now(job.pk)
        connection.close()

    thread = threading.Thread(target=worker)
    thread.start()
    assert reached.wait(10)
    fence = Job.objects.get(pk=job.pk).fence
    late = threading.Event()
    for _ in range(4):
        late.wait(0.2)  # the lease would be over twice
        tick_now(job.pk)
    go_on.set()
    thread.join()
    job.refresh_from_db()
    assert (job.fence, job.taken_over, job.lease_until) == (fence, False, None)


@pytest.mark.django_db(transaction=True)
def test_a_killed_worker_is_replaced_by_the_sweep_when_its_lease_is_over(drive, site, settings):
    settings.LEASE_SECONDS = 0.2
    site.source.slow = {"convert"}
    job = drive.submit()
    claim_now(job.pk, "killed", settings.LEASE_SECONDS)
    QueuedTask.objects.all().delete()
    sweep()
    assert not QueuedTask.objects.exists()
    threading.Event().wait(0.25)  # there is nobody who could tell that a dead owner's time is over
    sweep()
    assert [row.number for row in QueuedTask.objects.all()] == [job.pk]
    site.source.slow = set()
    site.source.finish()
    assert verified(drive.go(job), site)


def test_a_worker_that_lost_the_job_writes_nothing_on_its_row(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    late = claim_now(job.pk, "late", -1)
    Job.objects.claim(job.pk, "new", 30)
    for act in (lambda: tick.go_on(late, None), lambda: late.halt("It says so.", {})):
        with pytest.raises(Moved):
            act()
    job.refresh_from_db()
    assert (job.halt_reason, job.lease_owner) == ("", "new")


# A copy that is not what was verified


def changed_stage(site, **changed):
    path = stage_of(site)
    site.files[path] = replace(site.files[path], **changed)


@pytest.mark.parametrize("change", ["gone", "size", "time", "source"])
def test_a_copy_that_went_stale_is_made_again_before_the_consent_is_used(drive, site, change):
    job = drive.submit()
    first = job.approvals.get()
    if change == "gone":
        del site.files[stage_of(site)]
    elif change == "source":
        site.source.volumes[SOURCE_LV].writes += 1
        site.source.volumes[SOURCE_LV].content = "newer disk"
    else:
        changed_stage(site, **{"size": {"size": 7}, "time": {"mtime_ns": 5}}[change])
    drive.approve(job)
    first.refresh_from_db()
    assert (job.status, job.lap, first.state) == ("awaiting_approval", 2, "void")
    assert first.void_changes[0].startswith("source" if change == "source" else "stage")
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")
    wanted = "newer disk" if change == "source" else "new disk"
    assert (site.files[stage_of(site)].content, site.relay.volumes, site.source.mounts) == (wanted, {}, {})
    assert all(row.state == "done" for row in job.timeline() if row.phase == "A")
    assert "stage_stale" in [event.data.get("by") for event in Event.objects.filter(action="job.status")]
    drive.approve(job)
    job.confirm(operator())
    drive.go(job)
    assert (job.status, site.files[LIVE].content) == ("done", wanted)
    assert [row.kind for row in Footprint.objects.left()] == ["backup"]


def test_while_the_copy_is_made_again_the_page_says_why(drive, site):
    job = drive.submit()
    del site.files[stage_of(site)]
    site.source.slow = {"convert"}
    drive.approve(job)
    assert (job.status, job.running().step) == ("preparing", "convert")
    assert "The copy is repeated: stage inode: was 4712, is absent" in job.sentence()
    assert Footprint.objects.get(kind="fence").state == "present"
    job.cancel(operator())
    drive.go(job)
    assert (job.status, job.outcome, site.leftovers()) == ("undone", "cancelled", [])


def test_another_file_in_the_place_of_the_copy_halts_and_is_not_touched(drive, site):
    job = drive.submit()
    changed_stage(site, inode=99, content="whose?")
    drive.approve(job)
    assert (job.status, job.halt_data["code"]) == ("approved", "foreign-stage")
    assert site.files[stage_of(site)].content == "whose?"
    assert site.files[LIVE].content == "old disk"
    del site.files[stage_of(site)]
    job.resume(operator())
    assert (drive.go(job).status, job.lap) == ("awaiting_approval", 2)


def test_a_swap_that_failed_before_anything_was_exchanged_leaves_no_copy_behind(drive, site):
    site.destination.faults["swap"] = Refusal("no-libvirt", "libvirt does not answer", "failed")
    job = drive.on_trial()
    assert (job.status, site.files[LIVE].content, site.destination.state) == ("rolled_back", "old disk", "running")
    assert site.leftovers() == []
    assert not Footprint.objects.left().exists()


# The trial


def watched(site, monkeypatch, verb):
    """Whether the instance was locked when this was done to it."""
    locked, act = [], getattr(site.destination, verb)

    def seen(args, job):
        locked.append(bool(site.destination.marks))
        return act(args, job)

    monkeypatch.setattr(site.destination, verb, seen)
    return locked


def test_a_rollback_from_the_trial_locks_the_instance_first_and_unlocks_it_at_the_end(drive, site, monkeypatch):
    job = drive.on_trial()
    assert site.destination.marks == {}
    stopped, swapped = (watched(site, monkeypatch, verb) for verb in ("instance_stop", "swap_back"))
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, site.files[LIVE].content, site.destination.state) == ("rolled_back", "old disk", "running")
    assert (stopped, swapped, site.destination.marks) == ([True], [True], {})
    assert len(site.destination.asked("instance_lock")) == 2
    assert not Footprint.objects.left().exclude(kind="backup").exists()


def test_an_instance_whose_old_disk_cannot_be_put_back_stays_down_and_locked_until_it_can(a_life, site):
    life = begin(a_life, site, "rolled back")
    carry, refused = site.carry, Refusal("failed", "no space is left", "failed", False).answer
    site.carry = lambda host, request: refused if request.verb == "swap_back" else carry(host, request)
    assert (life.live(), "no space is left" in life.job.halt_reason) == ("halted", True)
    assert (site.files[LIVE].content, site.destination.state, len(site.destination.marks)) == (
        "new disk",
        "shut off",
        1,
    )
    site.carry, life.resumes = carry, 2
    assert (life.live(), site.files[LIVE].content) == ("rolled_back", "old disk")
    assert (site.destination.state, site.destination.marks) == ("running", {})


def test_a_rollback_while_it_is_still_locked_locks_it_only_once(drive, site, settings, monkeypatch):
    settings.LOCK_MARGIN = 60
    job = drive.on_trial()
    swapped = watched(site, monkeypatch, "swap_back")
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, swapped, len(site.destination.asked("instance_lock"))) == ("rolling_back", [True], 1)
    assert "until no other hypervisor can still open the old file" in job.waiting_for


def test_what_is_confirmed_early_is_done_when_everything_is_released(drive, site, settings):
    settings.LOCK_MARGIN = 60
    job = drive.on_trial()
    job.confirm(operator())
    drive.go(job)
    assert (job.status, len(site.destination.marks)) == ("on_trial", 1)
    swapped = job.runs.filter(step="swap")
    swapped.update(ended_at=timezone.now() - dt.timedelta(seconds=61))
    drive.go(job)
    assert (job.status, site.destination.marks, site.source.held) == ("done", {}, set())
    assert site.source.volumes[SOURCE_LV].permission == "writeable"
    assert (site.source.kept, site.relay.kept, site.destination.kept) == ({}, {}, {})


def test_a_rollback_that_is_asked_for_keeps_what_was_confirmed_from_being_done(drive, site, settings):
    settings.LOCK_MARGIN = 60
    job = drive.on_trial()
    job.confirm(operator())
    request = job.ask("rollback", operator())
    job.runs.filter(step="swap").update(ended_at=timezone.now() - dt.timedelta(seconds=61))
    assert drive.go(job).status == "on_trial"
    request.expires_at = timezone.now()
    request.save()
    assert drive.go(job).status == "done"


@pytest.mark.parametrize("end", ["confirmed", "cancelled"])
def test_what_is_left_on_a_hypervisor_halts_the_end_until_somebody_removed_it(drive, site, end):
    if end == "confirmed":
        job = drive.submit()
        site.relay.mounts["/left"] = "something"
        drive.approve(job)
    else:
        site.source.slow = {"convert"}
        job = drive.submit()
        site.relay.mounts["/left"] = "something"
        job.cancel(operator())
        drive.go(job)
    assert "Still there: /left" in job.halt_reason
    job.resume(operator())
    drive.go(job)
    assert "Still there: /left" in job.halt_reason
    site.relay.mounts.clear()
    job.resume(operator())
    drive.go(job)
    assert (job.halt_reason, job.status) == ("", {"confirmed": "on_trial", "cancelled": "undone"}[end])


# Undoing


def test_an_undo_that_fails_waits_before_it_is_tried_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.source.faults["nfs_unmount"] = Refusal("mount-busy", "somebody is in it", "failed", True)
    job.cancel(operator())
    for _ in range(4):
        drive.go(job)
    assert (job.status, len(site.source.asked("nfs_unmount"))) == ("undoing", 1)
    assert "somebody is in it" in job.waiting_for
    assert job.wake_at > timezone.now()
    job.runs.filter(direction="undo", result="failed").update(ended_at=timezone.now() - dt.timedelta(seconds=6))
    drive.go(job)
    assert (job.status, site.leftovers()) == ("undone", [])


def test_a_job_that_waits_for_its_relay_holds_no_worker_and_looks_again_within_a_minute(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reachable = False
    drive.go(job)
    assert (job.lease_until, job.lease_owner) == (None, "")
    assert job.wake_at - timezone.now() < dt.timedelta(seconds=61)
