"""Who may do what to a migration, and every way in which a verb says no and changes nothing."""

import datetime as dt

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from django.utils import timezone

from hosts.models import Cloud
from jobs.models import Approval, Decision, Job, Refused
from tests.factories import (
    a_hypervisor,
    a_job,
    a_volume,
    a_volume_group,
    admin,
    approver,
    asked,
    operator,
    person,
    viewer,
)
from volmig.record.models import Event


def refused(call, says):
    events = Event.objects.count()
    with pytest.raises(Refused) as said:
        call()
    assert any(says in sentence for sentence in said.value.sentences), said.value.sentences
    assert Event.objects.count() == events


def submit(by=None, **changed):
    return Job.objects.submit(by or operator(), **{**asked(), **changed})


@pytest.fixture
def waiting(drive):
    """A migration whose swap waits for consent."""
    return drive.submit()


# Asking for a migration


def test_an_instance_is_called_as_nova_calls_it_where_a_cloud_has_it(db):
    values = asked()
    instance, cloud = values["destination"], Cloud.objects.create(name="prod")
    cloud.servers.create(uuid=instance.uuid, name="db-master", seen_at=timezone.now())
    assert Job.objects.submit(operator(), **values).instance_name == "db-master"


def test_a_viewer_cannot_ask_for_a_migration(db):
    refused(lambda: submit(viewer()), "you need the role operator")
    assert not Job.objects.exists()


def test_the_relay_is_a_third_machine(db):
    values = asked()
    source = values["source_volume"].volume_group.hypervisor
    refused(lambda: submit(relay=source), "choose another relay")
    refused(lambda: submit(relay=values["destination"].hypervisor), "choose another relay")


def test_a_relay_without_the_share_is_refused(db):
    other = a_hypervisor("other")
    a_volume_group(other)
    refused(lambda: submit(relay=other), "other does not mount filer:/vol/nova")
    refused(lambda: submit(relay_vg="vg_none"), "has no volume group vg_none")


def test_an_open_volume_is_refused(db):
    volume = asked()["source_volume"]
    volume.is_open = True
    refused(lambda: submit(source_volume=volume), "is in use on src")


def test_a_disk_has_to_be_exactly_one_qcow2_on_a_share(db):
    instance = asked()["destination"]
    refused(lambda: submit(disk="disk.eph0"), "0 disks named disk.eph0")
    instance.disks = [*instance.disks, *instance.disks]
    refused(lambda: submit(destination=instance), "2 disks named disk.local")
    instance.disks = [{"name": "disk.local", "path": "/elsewhere/disk.local", "format": "raw"}]
    refused(lambda: submit(destination=instance), "is raw, not qcow2")
    refused(lambda: submit(destination=instance), "is not on a share")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"quarantined_at": timezone.now(), "quarantine_reason": "another key"}, "in quarantine (another key)"),
        ({"host_key": ""}, "not pinned"),
        ({"retired_at": timezone.now()}, "is retired"),
    ],
)
def test_a_hypervisor_that_may_not_be_entered_is_refused(db, fields, says):
    relay = asked()["relay"]
    for name, value in fields.items():
        setattr(relay, name, value)
    refused(lambda: submit(relay=relay), says)


def test_a_limit_of_nothing_is_refused(db):
    refused(lambda: submit(rate=0), "greater than zero")


def test_volume_and_instance_are_in_one_migration_at_a_time(db):
    first = submit()
    refused(submit, f"Migration {first.pk} already moves this volume")
    other = a_volume(asked()["source_volume"].volume_group, "other", uuid="zzzzzz")
    refused(lambda: submit(source_volume=other), f"Migration {first.pk} already uses this instance")
    first.put(status="undone")
    assert submit().pk != first.pk


def test_the_database_itself_refuses_a_second_migration_of_a_volume(db):
    first = submit()
    first.pk, first.uuid, first.instance_id = None, None, "another"
    first.uuid = "11111111-2222-3333-4444-555555555555"
    with pytest.raises(IntegrityError), transaction.atomic():
        first.save(force_insert=True)


# Controlling it


@pytest.mark.parametrize(
    ("verb", "status", "says"),
    [
        (lambda job, by: job.start(by), "preparing", "is preparing now"),
        (lambda job, by: job.cancel(by), "on_trial", "cannot be cancelled"),
        (lambda job, by: job.confirm(by), "planned", "is planned now"),
        (lambda job, by: job.resume(by), "planned", "not halted"),
        (lambda job, by: job.ask("rollback", by), "planned", "is planned now"),
        (lambda job, by: job.ask("purge", by), "on_trial", "is on trial now"),
        (lambda job, by: job.set_rate(by, 0), "planned", "greater than zero"),
        (lambda job, by: job.set_rate(by, 5), "swapping", "is swapping now"),
    ],
)
def test_a_verb_at_the_wrong_time_is_refused(db, verb, status, says):
    job = a_job(status)
    refused(lambda: verb(job, operator()), says)


@pytest.mark.parametrize(
    "verb",
    [
        lambda job, by: job.start(by),
        lambda job, by: job.cancel(by),
        lambda job, by: job.confirm(by),
        lambda job, by: job.resume(by),
        lambda job, by: job.set_rate(by, 5),
        lambda job, by: job.ask("purge", by),
    ],
)
def test_an_approver_alone_controls_nothing(db, verb):
    job = a_job("planned")
    refused(lambda: verb(job, approver()), "you need the role operator")


def test_it_is_cancelled_and_confirmed_once(db):
    job = a_job("preparing")
    job.cancel(operator())
    refused(lambda: job.cancel(operator()), "already being cancelled")
    job.put(status="on_trial")
    job.confirm(operator())
    refused(lambda: job.confirm(operator()), "already confirmed")


def test_a_changed_limit_makes_a_new_version_of_the_plan(drive):
    job = drive.submit(start=False)
    version, digest = job.version, job.digest
    job.set_rate(operator(), 5 << 20)
    assert (job.version, job.last_editor) == (version + 1, operator())
    assert job.digest != digest
    assert any("5242880" in command["text"] for step in job.plan["steps"] for command in step["commands"])


# Consent


def test_the_requester_cannot_approve_whoever_they_are(drive):
    everything = person("root", "operator", "approver", is_superuser=True)
    job = drive.go(Job.objects.submit(everything, start=True, **asked()))
    approval = job.open_approval()
    refused(lambda: approval.approve(everything, approval.digest, "mine"), "You requested this")
    refused(lambda: approval.reject(everything, "mine"), "You requested this")


def test_the_last_editor_cannot_approve(waiting):
    editor = person("eddie", "operator", "approver")
    waiting.put(last_editor=editor)
    approval = waiting.make_approval("rollback", {"x": 1}, operator())
    refused(lambda: approval.approve(editor, approval.digest, "fine"), "You changed this migration last")


def test_the_database_itself_refuses_a_decision_of_the_requester(waiting):
    approval = waiting.open_approval()
    with pytest.raises(IntegrityError), transaction.atomic():
        Decision.objects.create(
            approval=approval,
            person=approval.requester,
            requester=approval.requester,
            last_editor=approval.last_editor,
            verdict="approve",
            reason="mine",
        )


@pytest.mark.parametrize("who", [viewer, operator])
def test_without_the_role_nobody_approves(waiting, who):
    approval = waiting.open_approval()
    refused(lambda: approval.approve(who(), approval.digest, "fine"), "you need the role approver")


def test_what_was_shown_has_to_be_what_is_asked(waiting):
    approval = waiting.open_approval()
    refused(lambda: approval.approve(approver(), "0" * 64, "fine"), "review it again")


def test_a_reason_is_needed(waiting):
    approval = waiting.open_approval()
    refused(lambda: approval.approve(approver(), approval.digest, "  "), "Give a reason")


def test_nobody_decides_twice(waiting):
    approval = waiting.open_approval()
    approval.approve(approver(), approval.digest, "fine")
    refused(lambda: approval.approve(approver(), approval.digest, "fine"), "already decided")


def test_an_expired_request_is_not_decided_and_is_asked_anew(waiting, drive):
    approval = waiting.open_approval()
    Approval.objects.filter(pk=approval.pk).update(expires_at=timezone.now() - dt.timedelta(seconds=1))
    refused(lambda: approval.approve(approver(), approval.digest, "fine"), "is expired")
    drive.go(waiting)
    assert waiting.open_approval().pk != approval.pk


def test_a_void_request_is_not_decided(waiting):
    approval = waiting.open_approval()
    approval.void("It changed.")
    refused(lambda: approval.approve(approver(), approval.digest, "fine"), "is void")


def test_consent_is_used_once(waiting, drive):
    approval = waiting.open_approval()
    drive.approve(waiting)
    approval.refresh_from_db()
    assert approval.state == "consumed"
    assert not Approval.objects.consume(approval)
    refused(lambda: approval.approve(person("paul", "approver"), approval.digest, "again"), "is consumed")


def test_consent_of_somebody_who_lost_the_role_is_no_consent(waiting, drive, site):
    approval = waiting.open_approval()
    approval.approve(approver(), approval.digest, "fine")
    approver_now = approver()
    approver_now.groups.remove(Group.objects.get(name="approver"))
    drive.go(waiting)
    assert waiting.status == "awaiting_approval"
    assert not site.destination.asked("swap")


def test_a_rejected_swap_is_undone(waiting, drive, site):
    waiting.open_approval().reject(approver(), "not tonight")
    drive.go(waiting)
    assert (waiting.status, waiting.outcome, site.leftovers()) == ("undone", "rejected", [])


def test_a_rejected_rollback_changes_nothing(drive, site):
    job = drive.on_trial()
    job.ask("rollback", operator()).reject(approver(), "the data is fine")
    assert drive.go(job).status == "on_trial"
    job.ask("rollback", operator())
    refused(lambda: job.ask("rollback", operator()), "already requested")
    refused(lambda: job.confirm(operator()), "has to be decided first")


def test_what_is_offered_says_why_not(waiting):
    by_verb = {action.verb: action for action in waiting.actions(operator())}
    assert not by_verb["review"].allowed
    assert by_verb["cancel"].allowed
    assert {action.verb: action for action in waiting.actions(approver())}["review"].allowed
    assert not {action.verb: action for action in waiting.actions(viewer())}["cancel"].allowed
    assert admin().is_superuser
