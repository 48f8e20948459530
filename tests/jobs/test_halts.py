"""Halted jobs have a way on by a verb or by hand, cancelling is one, and what waits can be tried again at once."""

import datetime as dt

import pytest
from django.utils import timezone

from jobs.engine import halt_help, states
from jobs.models import Refused
from tests.factories import a_job, approver, operator, viewer
from tests.fakes import INSTANCES, LIVE, File, Refusal
from volmig.record.models import Event

HALTING = sorted((states.WORKING - {"checking"}) | {"awaiting_approval", "on_trial"})


@pytest.mark.parametrize("status", HALTING)
def test_a_halted_job_has_a_verb_that_leads_on_and_says_what_it_does(db, status):
    job = a_job(status, halt_reason="Strange.", halt_data={"code": "unknown-state", "step": "swap"})
    told = job.halted()
    offered = {each.verb: each for each in job.actions(operator())}
    assert {each.verb for each in told.ways} <= set(offered)
    assert offered["resume"].allowed
    assert offered["resume"].explains == halt_help.RESUME[status]
    assert "try-again" not in offered, "resume is that"
    assert told.expected == halt_help.EXPECTED["unknown-state"]
    assert told.found == "Strange."
    assert told.by_hand
    assert job.uuid.hex in "".join(told.looks).replace("-", "")


@pytest.mark.parametrize("who", [viewer, approver])
def test_who_may_not_lead_it_on_is_told_why(db, who):
    job = a_job("preparing", halt_reason="Strange.", halt_data={})
    assert not any(each.allowed for each in job.actions(who()) if each.verb in ("resume", "cancel"))
    with pytest.raises(Refused, match="you need the role operator"):
        job.try_again(who())


def test_a_halt_that_knows_nothing_more_still_says_how_to_go_on(db):
    for data in ({}, {"code": ["x"]}, {"code": {"a": 1}, "step": 7, "touched": "perhaps", "found": {"x": [1]}}, []):
        job = a_job("preparing", halt_reason="Strange.", halt_data=data)
        told = job.halted()
        assert told.expected == "The step ends as planned."
        assert told.by_hand == [halt_help.USUAL]
        assert told.touched is None
        job.put(status="undone")


def test_a_job_that_is_not_halted_has_no_such_words(db):
    assert a_job("preparing").halted() is None


# Cancelling a halted job: a person has looked


def foreign_filesystem(drive, site):
    site.relay.faults["fs_create"] = Refusal("foreign-filesystem", "an xfs is on it")
    job = drive.submit()
    assert (job.status, bool(job.halt_reason)) == ("preparing", True)
    return job


def test_a_halted_preparation_is_cancelled_without_more_and_leaves_nothing(drive, site):
    job = foreign_filesystem(drive, site)
    job.cancel(operator())
    drive.go(job)
    assert (job.status, job.outcome, job.halt_reason, site.leftovers()) == ("undone", "cancelled", "", [])
    assert "an xfs is on it" in Event.objects.get(job=job.pk, action="job.cancel").data["halt_reason"]


def test_what_was_asked_to_be_cancelled_and_halted_then_can_be_cancelled_still(drive, site):
    job = foreign_filesystem(drive, site)
    job.put(cancel_requested_at=timezone.now())
    job.cancel(operator())
    assert drive.go(job).status == "undone"


def test_a_foreign_copy_can_be_cancelled_or_moved_away(drive, site):
    job = drive.submit()
    stage = f"{INSTANCES}/.volmig/{job.uuid}/disk.new"
    site.files[stage] = File(9000, "somebody else's")
    drive.approve(job)
    assert (job.status, job.halt_data["code"]) == ("approved", "foreign-stage")
    assert "the copy is made again" in job.halted().by_hand[0]
    del site.files[stage]
    job.resume(operator())
    drive.go(job)
    assert (job.status, job.halt_reason, job.lap) == ("awaiting_approval", "", 2)


def test_a_halted_swap_before_the_start_is_cancelled_back_to_the_old_disk(drive, site):
    site.destination.faults["swap"] = Refusal("unknown-state", "strange inodes")
    job = drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "unknown-state")
    assert {each.verb for each in job.halted().ways} == {"resume", "cancel"}
    job.cancel(operator())
    drive.go(job)
    assert (job.status, job.outcome, site.files[LIVE].content) == ("rolled_back", "cancelled", "old disk")


def test_a_swap_whose_start_was_begun_is_not_cancelled_but_led_to_the_trial(drive, site):
    site.destination.faults["instance_start"] = Refusal("not-running", "it crashed", "failed", None)
    job = drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "not-running")
    assert [each.verb for each in job.halted().ways] == ["resume"]
    with pytest.raises(Refused, match="request a rollback"):
        job.cancel(operator())
    assert "start it by hand on dst" in " ".join(job.halted().by_hand)
    site.destination.state = "running"
    job.resume(operator())
    drive.go(job)
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, site.files[LIVE].content) == ("rolled_back", "old disk")


def test_a_purge_of_a_directory_that_somebody_removed_ends(drive, site):
    job = drive.done()
    kept = job.footprints.kept().get().name
    site.files[kept].inode = 9001
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert (job.status, job.halt_data["code"]) == ("purging", "unknown-files")
    assert f"delete the migration's directory {INSTANCES}/.volmig/{job.uuid} on dst" in " ".join(job.halted().by_hand)
    del site.files[kept]
    job.resume(operator())
    assert drive.go(job).status == "purged"


# What waits


def test_what_waits_for_a_hypervisor_is_tried_again_at_once_and_keeps_what_is_proved(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.relay.reachable = False
    site.source.finish()
    site.source.slow = set()
    drive.go(job)
    assert "waits for an answer" in job.waiting_for
    assert "try-again" in {each.verb for each in job.actions(operator())}
    before = site.source.asked("convert")[-1].attempt
    site.relay.reachable = True
    job.put(wake_at=timezone.now() + dt.timedelta(hours=1))
    job.try_again(operator())
    job.refresh_from_db()
    assert job.wake_at <= timezone.now()
    drive.go(job)
    assert job.status == "awaiting_approval"
    assert site.source.asked("convert")[-1].attempt == before, "the copy that was made is not made again"
    assert Event.objects.get(job=job.pk, action="job.try_again").data["waiting_for"]


@pytest.mark.parametrize(
    ("status", "waiting_for"), [("on_trial", "A person has to look."), ("preparing", ""), ("planned", "x")]
)
def test_what_no_trying_can_change_is_not_tried_again(db, status, waiting_for):
    job = a_job(status, waiting_for=waiting_for)
    assert "try-again" not in {each.verb for each in job.actions(operator())}
    with pytest.raises(Refused, match="not waiting"):
        job.try_again(operator())
    assert not Event.objects.filter(action="job.try_again").exists()


def test_work_that_runs_on_a_hypervisor_is_not_tried_again(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    assert "is running on src" in job.waiting_for
    assert "try-again" not in {each.verb for each in job.actions(operator())}


def test_a_rollback_to_a_disk_whose_base_is_gone_halts_before_the_instance_is_stopped(drive, site):
    job = drive.on_trial()
    swapped = job.runs.get(step="swap", direction="do")
    swapped.evidence["bases"] = [{"path": f"{INSTANCES}/_base/0123", "kept": "base.0", "why": ""}]
    swapped.save()
    site.destination.facts = {"way_back": ["its backing file 0123 is gone"]}
    stops = len(site.destination.asked("instance_stop"))
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, job.halt_data["code"], site.destination.state) == ("on_trial", "base-missing", "running")
    assert "0123 is gone" in job.halt_reason
    assert len(site.destination.asked("instance_stop")) == stops
    site.destination.facts = {}
    job.resume(operator())
    drive.go(job)
    assert (job.status, site.files[LIVE].content) == ("rolled_back", "old disk")
