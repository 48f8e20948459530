"""Migrations of instances that Nova locks, stops and starts, on the fake site and a cloud spoken to over HTTP."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts import tasks
from jobs.models import Footprint, Job, StepRun
from jobs.worker.gateway import Hands
from jobs.worker.journal import Journal
from tests.factories import admin, approver, asked, operator
from tests.fakenova import SOMEBODY, VOLMIG
from tests.fakes import LIVE, Refusal
from tests.ticks import tick_now
from volmig.models import Notice
from volmig.record.models import Event


def world(cloud, site):
    """What users have in the end: which disk, whether it runs, and whether they may use it."""
    server = cloud.server
    return site.files[LIVE].content, site.destination.state, server.vm_state, server.locked


OLD = ("old disk", "running", "active", False)
NEW = ("new disk", "running", "active", False)


def age(job, step, seconds):
    """Let a step that is under way have been asked for so long ago."""
    run = job.runs.filter(step=step, ended_at=None).latest("pk")
    asked = timezone.now() - dt.timedelta(seconds=seconds)
    known = {**run.evidence, "asked_at": asked.timestamp()} if run.evidence else {}
    StepRun.objects.filter(pk=run.pk).update(started_at=asked, evidence=known)


def before(monkeypatch, host, verb, act):
    """Have something happen just before the hypervisor is asked for this verb, once."""
    real = getattr(host, verb)

    def wrapped(args, job):
        monkeypatch.setattr(host, verb, real)
        act()
        return real(args, job)

    monkeypatch.setattr(host, verb, wrapped)


def after(monkeypatch, host, verb, act):
    real = getattr(host, verb)

    def wrapped(args, job):
        monkeypatch.setattr(host, verb, real)
        found = real(args, job)
        act()
        return found

    monkeypatch.setattr(host, verb, wrapped)


# All is well


def test_a_disk_is_swapped_with_the_instance_locked_stopped_and_started_through_nova(nova_drive, cloud, site):
    job = nova_drive.on_trial()
    assert (job.status, job.halt_reason) == ("on_trial", ""), job.waiting_for
    assert world(cloud, site) == NEW
    job.confirm(operator())
    nova_drive.go(job)
    assert (job.status, job.outcome) == ("done", "done")
    assert [(row.kind, row.identity) for row in Footprint.objects.left()] == [("backup", "4711")]


def test_the_commands_and_requests_that_were_made_are_those_that_were_planned(nova_drive):
    job = nova_drive.on_trial()
    evidence = job.evidence()
    wanted = [
        act.text
        for phase in "ABC"
        for each in job.planned().phase(phase)
        for act in each.acts(each.step.verb, each.filled({**evidence, "limits": {"rate": 0}}), str(job.uuid))
    ]
    assert [line["text"] for line in job.log()] == wanted
    assert f'POST /servers/{job.instance_id}/action {{"os-stop": null}}' in wanted


def test_a_rollback_on_trial_stops_and_starts_through_nova(nova_drive, cloud, site):
    job = nova_drive.on_trial()
    job.ask("rollback", operator())
    nova_drive.approve(job, "rollback")
    assert (job.status, world(cloud, site)) == ("rolled_back", OLD), job.halt_reason or job.waiting_for


def test_an_instance_that_was_off_is_left_off_when_the_swap_is_called_off(nova_drive, cloud, site):
    cloud.user_does("stop", vm_state="stopped")
    site.destination.faults["swap"] = Refusal("attributes-differ", "owner cannot be made equal")
    job = nova_drive.on_trial()
    assert job.status == "rolled_back"
    assert world(cloud, site) == ("old disk", "shut off", "stopped", False)
    assert cloud.asked("os-stop") == cloud.asked("os-start") == 0


def test_a_user_who_shuts_the_instance_down_before_the_swap_is_not_in_the_way(nova_drive, cloud, site):
    job = nova_drive.submit()
    cloud.user_does("stop", vm_state="stopped")
    nova_drive.approve(job)
    assert (job.status, world(cloud, site)) == ("on_trial", NEW)
    assert cloud.asked("os-stop") == 0


# The stop


def test_a_stop_that_nova_refuses_calls_the_swap_off(nova_drive, cloud, site):
    cloud.refuses["os-stop"] = "Instance is not ready"
    job = nova_drive.on_trial()
    assert (job.status, job.outcome, world(cloud, site)) == ("rolled_back", "failed", OLD)
    assert "409 Instance is not ready" in job.outcome_reason


def test_a_stop_that_is_refused_because_it_is_stopped_already_is_fine(nova_drive, cloud, site, monkeypatch):
    post = cloud.act

    def stopped_meanwhile(server, body):
        if "os-stop" in body and server.vm_state == "active":
            cloud.user_does("stop", vm_state="stopped")
        return post(server, body)

    monkeypatch.setattr(cloud, "act", stopped_meanwhile)
    job = nova_drive.on_trial()
    assert (job.status, world(cloud, site)) == ("on_trial", NEW), job.halt_reason


def test_a_slow_stop_holds_no_worker_and_is_looked_at_again_soon(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    assert (job.status, job.running().step, job.lease_owner) == ("swapping", "stop", "")
    assert job.wake_at - timezone.now() < dt.timedelta(seconds=3)
    assert (cloud.server.locked, site.files[LIVE].content) == (True, "old disk")
    cloud.finish()
    nova_drive.go(job)
    assert (job.status, world(cloud, site), cloud.asked("os-stop")) == ("on_trial", NEW, 1)


def test_a_stop_that_is_stuck_is_left_and_the_instance_released(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    age(job, "stop", 181)
    nova_drive.go(job)
    assert (job.status, job.running().step, job.running().direction) == ("rolling_back", "stop", "undo")
    age(job, "stop", 181)
    for _ in range(8):
        nova_drive.go(job)
        job.runs.filter(direction="undo", result="failed").update(ended_at=timezone.now() - dt.timedelta(minutes=1))
        if job.runs.filter(ended_at=None, step="stop"):
            age(job, "stop", 181)
    assert "still under way" in job.halt_reason
    assert (site.files[LIVE].content, cloud.server.locked) == ("old disk", False)
    cloud.finish()  # the compute is back, and carries out what was asked of it
    job.resume(operator())
    nova_drive.go(job)
    assert (job.status, job.outcome, world(cloud, site)) == ("rolled_back", "failed", OLD)


def test_a_stuck_stop_that_is_carried_out_late_ends_with_the_instance_running(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    age(job, "stop", 181)
    nova_drive.go(job)
    cloud.finish()
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("rolled_back", OLD)
    assert "still under way after" in job.outcome_reason


def test_the_images_shutdown_timeout_lengthens_the_deadline(nova_drive, cloud, site):
    cloud.server.properties = {"os_shutdown_timeout": "300"}
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    age(job, "stop", 410)
    nova_drive.go(job)
    assert job.running().step == "stop"
    age(job, "stop", 421)
    nova_drive.go(job)
    assert job.status == "rolling_back"


def test_a_stop_that_fails_on_the_compute_says_what_novas_events_say(nova_drive, cloud, site):
    cloud.fails["os-stop"] = "libvirt is away"
    job = nova_drive.on_trial()
    assert (job.status, job.outcome, world(cloud, site)) == ("rolled_back", "failed", OLD)
    assert "failed on the compute: libvirt is away" in job.outcome_reason


def test_nothing_is_swapped_while_libvirt_says_that_the_instance_runs(nova_drive, cloud, site):
    site.destination.turn = lambda on: None  # Nova believes in a stop that did not happen
    job = nova_drive.on_trial()
    assert (job.status, job.running().step) == ("swapping", "stop")
    age(job, "stop", 181)
    nova_drive.go(job)
    assert "Nova reports stopped, libvirt on the hypervisor reports running" in job.halt_reason
    assert (site.files[LIVE].content, cloud.server.locked) == ("old disk", True)


# The start


def test_a_start_that_fails_before_the_guest_ran_goes_back_to_the_old_disk(nova_drive, cloud, site):
    cloud.fails["os-start"] = "no such disk"
    job = nova_drive.on_trial()
    assert (job.status, job.outcome, world(cloud, site)) == ("rolled_back", "failed", OLD), job.halt_reason
    assert "failed on the compute: no such disk" in job.outcome_reason
    assert site.destination.asked("swap_back")[0].args["untouched"] is True


@pytest.mark.parametrize("trace", ["libvirt ran it", "the disk was written to", "libvirt's log is gone"])
def test_a_start_that_fails_after_the_guest_may_have_run_halts(nova_drive, cloud, site, trace):
    def leave_a_trace(server, name, row, real=cloud.carry_out):
        real(server, name, row)
        if name == "start":
            if trace == "libvirt ran it":
                site.destination.runs.append({"at": timezone.now().timestamp(), "ended": "crashed"})
            elif trace == "the disk was written to":
                site.files[LIVE].mtime_ns = 99
            else:
                site.destination.runs = None

    cloud.carry_out = leave_a_trace
    cloud.fails["os-start"] = "it crashed"
    job = nova_drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "start-failed")
    assert (site.files[LIVE].content, cloud.server.locked) == ("new disk", True)


def test_a_start_that_libvirt_gave_up_counts_as_never_run(nova_drive, cloud, site):
    def give_up(server, name, row, real=cloud.carry_out):
        real(server, name, row)
        if name == "start" and server.vm_state == "stopped":
            site.destination.runs.append({"at": timezone.now().timestamp(), "ended": "failed"})

    cloud.carry_out = give_up
    cloud.fails["os-start"] = "permission denied"
    job = nova_drive.on_trial()
    assert (job.status, world(cloud, site)) == ("rolled_back", OLD)


def test_a_start_that_is_stuck_is_for_a_person(nova_drive, cloud, site):
    cloud.slow = {"os-start"}
    job = nova_drive.on_trial()
    age(job, "start", 181)
    nova_drive.go(job)
    assert "still under way" in job.halt_reason
    cloud.finish()
    job.resume(operator())
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("on_trial", NEW), job.halt_reason


# The API


def test_an_api_that_is_away_in_mid_swap_is_waited_for_and_people_are_told_once(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    cloud.finish()
    cloud.down = True
    nova_drive.go(job)
    assert (job.status, job.halt_reason) == ("swapping", "")
    assert "503" in job.waiting_for
    assert job.lease_owner == ""
    assert not Notice.objects.filter(kind="unanswered").exists()
    for _ in range(2):
        StepRun.objects.filter(ended_at=None).update(silent_since=timezone.now() - dt.timedelta(seconds=120))
        nova_drive.go(job)
    assert "needs attention" in job.waiting_for
    assert Notice.objects.filter(kind="unanswered").count() == 1
    assert (site.files[LIVE].content, site.destination.state, cloud.server.locked) == ("old disk", "shut off", True)
    cloud.down = False
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("on_trial", NEW)


def test_keystone_that_is_away_with_expired_tokens_is_waited_for_too(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    cloud.finish()
    cloud.expire()
    cloud.keystone_down = True
    nova_drive.go(job)
    assert (job.status, job.halt_reason) == ("swapping", "")
    cloud.keystone_down = False
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("on_trial", NEW)


@pytest.mark.parametrize("verb", ["lv_create", "swap"])
def test_a_token_that_expires_in_mid_job_is_fetched_anew(nova_drive, cloud, site, monkeypatch, verb):
    host = site.relay if verb == "lv_create" else site.destination
    after(monkeypatch, host, verb, cloud.expire)
    job = nova_drive.on_trial()
    assert (job.status, world(cloud, site)) == ("on_trial", NEW)
    assert len([each for each in cloud.calls if each[1].endswith("/auth/tokens")]) == 2


@pytest.mark.parametrize("what", ["lock", "os-stop", "os-start", "unlock"])
def test_a_request_whose_answer_is_lost_is_not_made_twice(nova_drive, cloud, site, what):
    cloud.loses = {what}
    job = nova_drive.on_trial()
    assert (job.status, world(cloud, site)) == ("on_trial", NEW), job.halt_reason
    assert cloud.asked(what) == 1


@pytest.mark.parametrize("step", ["lock", "stop", "start", "unlock"])
def test_a_worker_that_dies_after_asking_leaves_nothing_that_the_next_does_not_understand(
    nova_drive, cloud, site, monkeypatch, step
):
    record, died = Journal.record, []

    def die(self, run, answer):
        if run.step == step and answer.commands and not died:
            died.append(run)
            raise SystemExit("killed")
        record(self, run, answer)

    monkeypatch.setattr(Journal, "record", die)
    job = nova_drive.submit()
    approval = job.approvals.open().get()
    approval.approve(approver(), approval.digest, "as agreed")
    with pytest.raises(SystemExit):
        nova_drive.go(job)
    Job.objects.filter(pk=job.pk).update(lease_until="2000-01-01T00:00Z")  # the lease of a dead worker runs out
    nova_drive.go(job)
    assert died
    assert (job.status, world(cloud, site)) == ("on_trial", NEW), job.halt_reason
    job.ask("rollback", operator())
    nova_drive.approve(job, "rollback")
    assert (job.status, world(cloud, site)) == ("rolled_back", OLD), job.halt_reason


def test_a_worker_that_lost_its_lease_changes_nothing_in_the_cloud(nova_drive, cloud, site, monkeypatch):
    job = nova_drive.submit()
    approval = job.approvals.open().get()

    def taken_over(hands, request, found, real=Hands._intend):
        Job.objects.filter(pk=job.pk).update(fence=99)
        real(hands, request, found)

    monkeypatch.setattr(Hands, "_intend", taken_over)
    approval.approve(approver(), approval.digest, "as agreed")
    tick_now(job.pk)
    job.refresh_from_db()
    assert (job.fence, cloud.asked("lock"), cloud.server.locked) == (99, 0, False)


def test_a_credential_that_is_taken_away_in_mid_swap_halts_and_says_so(nova_drive, cloud, site):
    cloud.denies = {"os-stop"}
    job = nova_drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "Denied")
    assert "Policy doesn't allow" in job.halt_reason
    job.cancel(operator())
    nova_drive.go(job)
    assert (job.status, job.outcome, world(cloud, site)) == ("rolled_back", "cancelled", OLD)


# Somebody else


def test_an_instance_that_is_deleted_before_the_swap_stops_the_job(nova_drive, cloud, site):
    job = nova_drive.submit()
    cloud.delete()
    nova_drive.go(job)
    assert "was deleted" in job.halt_reason
    assert not job.approvals.open().exists()
    job.cancel(operator())
    nova_drive.go(job)
    assert (job.status, job.outcome, site.leftovers()) == ("undone", "cancelled", [])


def test_an_instance_that_is_deleted_in_mid_swap_halts_before_the_disk_is_touched(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    cloud.delete()
    nova_drive.go(job)
    assert (job.status, job.halt_data["code"]) == ("swapping", "unknown-instance")
    assert site.files[LIVE].content == "old disk"
    job.cancel(operator())
    nova_drive.go(job)
    assert (job.status, job.outcome) == ("rolled_back", "cancelled"), job.halt_reason


@pytest.mark.parametrize(
    ("what", "during", "done"),
    [
        ("rebuild", {"task_state": "rebuilding"}, {"task_state": None}),
        ("resize", {"task_state": "resize_prep"}, {"task_state": None, "vm_state": "active"}),
        ("live-migration", {"task_state": "migrating"}, {"task_state": None}),
        ("start", {}, {}),
    ],
)
@pytest.mark.parametrize("approved", [True, False], ids=["after the approval", "before it"])
def test_what_others_do_before_the_swap_voids_the_request(nova_drive, cloud, site, what, during, done, approved):
    job = nova_drive.submit()
    first = job.approvals.get()
    cloud.user_does(what, **during)
    if approved:
        nova_drive.approve(job)
    else:
        nova_drive.go(job)
    first.refresh_from_db()
    assert (first.state, job.status) == ("void", "awaiting_approval")
    assert any(f"instance last action: was none on record, is {what} at" in line for line in first.void_changes)
    assert (site.files[LIVE].content, cloud.server.locked, cloud.asked("lock")) == ("old disk", False, 0)
    if during:
        assert not job.approvals.open().exists()
        assert during["task_state"] in job.waiting_for
    for name, value in done.items():
        setattr(cloud.server, name, value)
    nova_drive.go(job)
    assert nova_drive.approve(job).status == "on_trial"


def test_an_instance_that_moved_to_another_host_since_the_approval_is_left_alone(nova_drive, cloud, site):
    job = nova_drive.submit()
    first = job.approvals.get()
    cloud.server.host = "third"
    nova_drive.approve(job)
    first.refresh_from_db()
    assert first.state == "void"
    assert "instance on: was dst, is third" in first.void_changes
    assert "Nova has the instance on third now, not on dst" in job.halt_reason
    assert cloud.asked("lock") == 0


def test_an_instance_started_by_an_administrator_before_the_rename_halts_untouched(
    nova_drive, cloud, site, monkeypatch
):
    before(monkeypatch, site.destination, "swap", lambda: cloud.user_does("start", vm_state="active"))
    job = nova_drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "foreign-action")
    assert "start at " in job.halt_reason
    assert SOMEBODY in job.halt_reason
    assert site.files[LIVE].content == "old disk"
    job.cancel(operator())
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("rolled_back", OLD)


@pytest.mark.parametrize("user", [SOMEBODY, VOLMIG], ids=["as somebody else", "with volmig's own credential"])
def test_an_instance_started_by_an_administrator_after_the_rename_halts_and_can_go_on(
    nova_drive, cloud, site, monkeypatch, user
):
    after(monkeypatch, site.destination, "swap", lambda: cloud.user_does("start", user, vm_state="active"))
    job = nova_drive.on_trial()
    assert (job.status, job.halt_data["code"]) == ("swapping", "foreign-action")
    job.resume(operator())
    nova_drive.go(job)
    assert (job.status, world(cloud, site)) == ("on_trial", NEW), job.halt_reason


def test_what_an_administrator_does_during_the_stop_halts_before_the_rename(nova_drive, cloud, site):
    cloud.slow = {"os-stop"}
    job = nova_drive.on_trial()
    cloud.finish()
    cloud.user_does("reboot")
    nova_drive.go(job)
    assert (job.status, job.halt_data["code"]) == ("swapping", "foreign-action")
    assert site.files[LIVE].content == "old disk"


def test_an_instance_that_somebody_else_has_locked_is_not_planned_for(nova_drive, cloud, site):
    cloud.server.locked, cloud.server.locked_reason = True, "maintenance"
    job = nova_drive.submit()
    assert (job.status, job.outcome) == ("undone", "blocked")
    assert "is locked in Nova: maintenance" in job.outcome_reason


def test_a_lock_of_somebody_else_after_the_approval_voids_it(nova_drive, cloud, site):
    job = nova_drive.submit()
    cloud.server.locked, cloud.server.locked_reason = True, "maintenance"
    nova_drive.approve(job)
    changes = job.approvals.exclude(voided_at=None).get().void_changes
    assert changes == ["instance locked by others: was no, is maintenance"]
    nova_drive.approve(job)
    assert job.halt_data["code"] == "foreign-lock"
    assert (cloud.server.locked_reason, site.files[LIVE].content) == ("maintenance", "old disk")


def test_a_lock_that_somebody_else_put_in_place_of_ours_stays(nova_drive, cloud, site, monkeypatch):
    def relock():
        cloud.server.locked_reason = "maintenance"

    after(monkeypatch, site.destination, "swap", relock)
    job = nova_drive.on_trial()
    assert (job.status, cloud.server.locked, cloud.server.locked_reason) == ("on_trial", True, "maintenance")
    assert job.runs.get(step="unlock").evidence["lock_of_others"] == "maintenance"


@pytest.mark.parametrize("what", ["rebuild", "resize", "evacuate", "delete"])
def test_what_ends_the_way_back_on_trial_stops_the_job(nova_drive, cloud, site, what):
    job = nova_drive.on_trial()
    if what == "delete":
        cloud.delete()
    else:
        cloud.user_does(what)
    nova_drive.go(job)
    assert "The instance was changed while on trial." in job.halt_reason
    assert ("it was deleted" if what == "delete" else f"{what} at ") in job.halt_reason


def test_what_users_do_with_their_instance_on_trial_is_recorded_and_does_not_stop_the_job(nova_drive, cloud, site):
    job = nova_drive.on_trial()
    cloud.user_does("reboot")
    nova_drive.go(job)
    nova_drive.go(job)
    assert (job.status, job.halt_reason) == ("on_trial", "")
    assert [each.data["action"] for each in Event.objects.filter(action="instance.action")] == ["reboot"]


# How much is asked


def test_a_job_asks_nova_at_most_25_times_beside_its_waiting(nova_drive, cloud, settings):
    settings.NOTICE_SECONDS = 60
    job = nova_drive.due(Job.objects.submit(operator(), **asked(), start=True))
    approval = job.approvals.open().get()
    approval.approve(approver(), approval.digest, "as agreed")
    nova_drive.due(job).confirm(operator())
    nova_drive.due(job)
    counted = cloud.counted()
    print(f"\nOne job asks Nova {counted.total()} times: {dict(counted)}")
    assert job.status == "done"
    assert counted.total() <= 25


def test_a_lock_of_volmig_without_a_migration_is_shown_to_administrators(nova_drive, cloud, client):
    job = nova_drive.submit()
    cloud.server.locked, cloud.server.locked_reason = True, f"volmig:{job.uuid}"
    tasks.refresh_cloud(job.destination.cloud_id)
    client.force_login(admin())
    assert "no migration works on it" not in client.get("/").content.decode()
    job.cancel(operator())
    nova_drive.go(job)
    assert "no migration works on it" not in client.get("/").content.decode()  # not read since it ended
    tasks.refresh_cloud(job.destination.cloud_id)
    assert "db7 is locked by volmig, and no migration works on it" in client.get("/").content.decode()
