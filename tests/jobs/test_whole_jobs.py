"""Whole migrations on the fake site, from the request to their end, judged by what is left there."""

import datetime as dt

from django.utils import timezone

from hosts.models import Hypervisor
from jobs.models import Footprint, StepRun
from tests.factories import admin, operator
from tests.fakes import LIVE, SOURCE_LV, Refusal
from volmig.record.chain import verify
from volmig.record.models import Event


def test_a_volume_becomes_the_disk_of_an_instance(drive, site):
    job = drive.submit()
    assert job.status == "awaiting_approval"
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")
    assert (site.relay.volumes, site.relay.exports, site.source.mounts) == ({}, {}, {})
    drive.approve(job)
    assert (job.status, site.files[LIVE].content, site.destination.state) == ("on_trial", "new disk", "running")
    job.confirm(operator())
    drive.go(job)
    assert (job.status, job.outcome) == ("done", "done")
    assert site.leftovers() == [f"/var/lib/nova/instances/.volmig/{job.uuid}/disk.old"]
    assert [(row.kind, row.identity) for row in Footprint.objects.left()] == [("backup", "4711")]
    source = site.source.volumes[SOURCE_LV]
    assert (source.content, source.permission, source.writes) == ("new disk", "writeable", 40)
    assert verify() == []


def test_the_commands_that_ran_are_the_commands_that_were_planned(drive):
    job = drive.on_trial()
    evidence = job.evidence()
    ran = [line["text"] for line in job.log()]
    wanted = [
        text for phase in "ABC" for each in job.planned().phase(phase) for text in texts(each, evidence, str(job.uuid))
    ]
    assert ran == wanted


def texts(planned, evidence, job):
    from hosts.remote.hostctl import acts

    args = planned.filled({**evidence, "limits": {"rate": 0}})
    return [act.text for act in acts(planned.step.verb, args, job)]


def test_the_backup_of_one_migration_does_not_hinder_the_next(drive, site):
    first = drive.done()
    second = drive.on_trial()
    backups = [f"/var/lib/nova/instances/.volmig/{job.uuid}/disk.old" for job in (first, second)]
    assert sorted(site.leftovers()) == sorted(backups)


def test_a_purge_leaves_nothing(drive, site):
    job = drive.done()
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert job.status == "purged"
    assert (site.leftovers(), site.files[LIVE].content) == ([], "new disk")
    assert not Footprint.objects.left().exists()


def test_a_rollback_after_the_swap_keeps_both_disks(drive, site):
    job = drive.on_trial()
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, job.outcome) == ("rolled_back", "rolled back")
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")
    assert [file.content for path, file in site.files.items() if path.endswith("disk.rejected")] == ["new disk"]
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert (job.status, site.leftovers(), site.files[LIVE].content) == ("purged", [], "old disk")


def test_a_cancelled_preparation_takes_everything_back(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    assert job.running().step == "convert"
    job.cancel(operator())
    drive.go(job)
    assert (job.status, job.outcome) == ("undone", "cancelled")
    assert site.leftovers() == []
    assert not Footprint.objects.left().exists()
    assert site.source.volumes[SOURCE_LV].permission == "writeable"
    assert site.source.asked("discard_copy")[0].stops.endswith("-convert-do-1")


def test_a_failing_step_is_tried_three_times_and_then_everything_is_undone(drive, site):
    site.source.volumes[SOURCE_LV].writes = 41
    site.source.slow = {"compare"}
    job = drive.submit()
    site.source.volumes[SOURCE_LV].writes = 42
    site.source.slow = set()
    site.source.finish()
    drive.go(job)
    assert (job.status, job.outcome) == ("undone", "failed")
    assert "written to" in job.outcome_reason
    assert job.runs.filter(step="compare", direction="do", result="failed").count() == 3
    assert site.leftovers() == []


def test_a_blocked_job_creates_nothing(drive, site):
    site.source.volumes[SOURCE_LV].holders = ["qemu (pid 12)"]
    job = drive.submit()
    assert (job.status, job.outcome) == ("undone", "blocked")
    assert "in use by qemu (pid 12)" in job.outcome_reason
    assert not [each for each in site.relay.requests if each.verb == "lv_create"]


def test_foreign_things_halt_the_job_and_are_not_touched(drive, site):
    site.relay.faults["fs_create"] = Refusal("foreign-filesystem", "an xfs is on it")
    job = drive.submit()
    assert (job.status, job.halt_data["code"]) == ("preparing", "foreign-filesystem")
    assert "an xfs is on it" in job.halt_reason
    count = len(site.relay.requests)
    drive.go(job)
    assert len(site.relay.requests) == count
    job.resume(operator())
    assert drive.go(job).status == "awaiting_approval"


def test_a_start_that_surely_never_ran_goes_back_by_itself(drive, site):
    site.destination.faults["instance_start"] = Refusal("not-running", "no such device", "failed", None, ever_ran=False)
    job = drive.on_trial()
    assert (job.status, job.outcome) == ("rolled_back", "failed")
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")
    assert site.destination.asked("swap_back")[0].args["untouched"] is True
    assert (site.destination.marks, site.relay.kept, site.destination.kept) == ({}, {}, {})


def test_a_start_of_which_nobody_knows_halts(drive, site):
    site.destination.faults["instance_start"] = Refusal("not-running", "it crashed", "failed", None, ever_ran=True)
    job = drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "not-running")
    assert site.files[LIVE].content == "new disk"


def test_an_instance_that_does_not_stop_gets_its_lock_taken_off(drive, site):
    site.destination.faults["instance_stop"] = Refusal("stop-deadline", "still running after 180 s", "failed", True)
    job = drive.on_trial()
    assert (job.status, job.outcome) == ("rolled_back", "failed")
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")
    assert site.leftovers() == []


def test_an_instance_that_was_off_stays_off_when_the_swap_is_refused(drive, site):
    site.destination.state = "shut off"
    site.destination.faults["swap"] = Refusal("attributes-differ", "owner cannot be made equal")
    job = drive.on_trial()
    assert (job.status, site.destination.state) == ("rolled_back", "shut off")
    assert site.leftovers() == []


def test_a_source_that_reboots_is_mounted_and_fenced_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.source.reboot()
    site.source.slow = set()
    drive.go(job)
    assert job.status == "awaiting_approval", job.outcome_reason
    assert len(site.source.asked("nfs_mount")) == 2
    assert job.runs.filter(step="convert", result="lost").count() == 1


def test_a_host_that_is_away_is_waited_for(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.source.reachable = False
    drive.go(job)
    assert (job.status, job.halt_reason) == ("preparing", "")
    assert "(src) waits for an answer" in job.waiting_for
    site.source.reachable, site.source.slow = True, set()
    site.source.finish()
    assert drive.go(job).status == "awaiting_approval"


def test_a_hypervisor_in_quarantine_is_not_asked_and_the_job_goes_on_when_its_key_is_pinned_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    job.source.quarantine("it offers another key")
    asked = len(site.source.requests)
    drive.go(job)
    StepRun.objects.filter(ended_at=None).update(silent_since=timezone.now() - dt.timedelta(seconds=91))
    drive.go(job)
    assert (job.status, job.halt_reason, len(site.source.requests)) == ("preparing", "", asked)
    assert "for 91 s; needs attention" in job.waiting_for
    assert "it is in quarantine: it offers another key" in job.waiting_for
    assert job.wake_at > timezone.now()
    job.source.pin(admin(), job.source.host_key)
    site.source.slow = set()
    site.source.finish()
    assert drive.go(job).status == "awaiting_approval"


def test_another_host_key_touches_nothing_more(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    asked = len(site.source.requests)
    site.source.another_key = True
    drive.go(job)
    assert (job.status, len(site.source.requests)) == ("preparing", asked)
    assert "another key" in job.waiting_for


def test_facts_that_changed_after_the_approval_void_it(drive, site):
    job = drive.submit()
    first = job.approvals.get()
    site.source.volumes[SOURCE_LV].writes += 1
    drive.approve(job)
    first.refresh_from_db()
    assert (job.status, first.state) == ("awaiting_approval", "void")
    assert "source writes: was 40, is 41" in first.void_changes
    assert job.approvals.open().get().pk != first.pk
    assert site.files[LIVE].content == "old disk"
    assert drive.approve(job).status == "on_trial"


def test_a_plan_can_be_made_without_being_carried_out(drive, site):
    job = drive.submit(start=False)
    assert (job.status, site.relay.volumes) == ("planned", {})
    assert job.plan["steps"]
    job.start(operator())
    assert drive.go(job).status == "awaiting_approval"


def test_the_record_tells_the_whole_story(drive):
    job = drive.done()
    actions = list(Event.objects.filter(job=job.pk).order_by("seq").values_list("action", flat=True))
    assert actions[0] == "job.submit"
    assert "approval.approve" in actions
    assert [each for each in actions if each == "step.done"]
    assert Hypervisor.objects.count() == 3
