"""Every way in which a consent does not count: nothing is swapped. And what it does outlast: the disk's own writing."""

import datetime as dt
import threading

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.utils import timezone

from hosts.remote.hostctl import source_hash
from jobs.models import Approval, Decision, Job, Policy, Refused
from tests.factories import admin, approver, asked, operator, person
from tests.fakes import LIVE, SOURCE_LV
from volmig.accounts.models import Team
from volmig.record.models import Event


@pytest.fixture
def waiting(drive):
    """A verified copy whose swap waits for consent."""
    job = drive.submit()
    assert job.status == "awaiting_approval"
    return job


def consent(job, by=None):
    approval = job.approvals.open().get(kind="swap")
    approval.approve(by or approver(), approval.digest, "as agreed")
    return approval


def refused(call, says):
    with pytest.raises(Refused) as said:
        call()
    assert any(says in sentence for sentence in said.value.sentences), said.value.sentences


def untouched(site):
    return (site.files[LIVE].content, site.destination.asked("instance_stop"), site.destination.asked("swap")) == (
        "old disk",
        [],
        [],
    )


# Refused when it is said


@pytest.mark.parametrize(
    ("who", "says"),
    [
        (lambda: operator(), "You requested this"),
        (lambda: person("olga", "operator", "approver", is_superuser=True), "You requested this"),
        (lambda: person("eddie", "approver"), "You changed this migration last"),
        (lambda: person("vera", "viewer", "operator", "auditor", "administrator"), "you need the role approver"),
        (lambda: person("dora", "approver", is_active=False), "you need the role approver"),
    ],
    ids=["self", "superuser self", "last editor", "wrong role", "account disabled"],
)
def test_a_yes_of_these_people_is_refused(drive, site, who, says):
    editor = person("eddie", "approver", "operator")
    job = drive.submit(start=False)
    job.set_rate(editor, 50 << 20)
    job.start(operator())
    drive.go(job)
    approval = job.open_approval()
    someone = who()
    User.objects.filter(pk=someone.pk).update(is_superuser=someone.is_superuser)
    refused(lambda: approval.approve(someone, approval.digest, "fine"), says)
    drive.go(job)
    assert (job.status, untouched(site)) == ("awaiting_approval", True)


def test_a_superuser_who_asked_is_refused_although_superusers_may_everything(drive, site):
    root = admin()
    job = drive.go(Job.objects.submit(root, start=True, **asked()))
    approval = job.open_approval()
    refused(lambda: approval.approve(root, approval.digest, "mine"), "You requested this")
    assert untouched(site)


def test_a_yes_to_an_expired_request_is_refused(waiting):
    approval = waiting.open_approval()
    Approval.objects.filter(pk=approval.pk).update(expires_at=timezone.now())
    refused(lambda: approval.approve(approver(), approval.digest, "fine"), "is expired")


def test_a_yes_to_the_digest_of_another_version_is_refused(waiting, site, drive):
    old = waiting.open_approval()
    site.source.volumes[SOURCE_LV].writes += 1
    Approval.objects.filter(pk=old.pk).update(expires_at=timezone.now())
    drive.go(waiting)
    new = waiting.open_approval()
    assert new.digest != old.digest
    refused(lambda: new.approve(approver(), old.digest, "fine"), "review it again")
    refused(lambda: old.approve(approver(), old.digest, "fine"), "is void")


def test_a_yes_to_another_jobs_digest_is_refused(waiting):
    other = waiting.make_approval("rollback", {"job": "another"}, operator())
    mine = waiting.approvals.open().get(kind="swap")
    refused(lambda: mine.approve(approver(), other.digest, "fine"), "review it again")


def test_a_yes_that_was_used_cannot_be_said_or_used_again(waiting, drive, site):
    approval = consent(waiting)
    drive.go(waiting)
    swaps = len(site.destination.asked("swap"))
    refused(lambda: approval.approve(person("paula", "approver"), approval.digest, "again"), "is consumed")
    assert not Approval.objects.get(pk=approval.pk).use()
    drive.go(waiting)
    assert len(site.destination.asked("swap")) == swaps


def forge_a_decision(approval):
    """With write access to the database alone."""
    Decision.objects.create(
        approval=approval, person=approver(), verdict="approve", reason="forged",
        requester_id=approval.requester_id, last_editor_id=approval.last_editor_id,
    )  # fmt: skip


def test_a_decision_without_its_signed_event_is_worth_nothing(waiting):
    approval = waiting.approvals.get()
    forge_a_decision(approval)
    assert approval.state == "approved", "so it looks"
    assert not approval.use()
    approval.refresh_from_db()
    assert approval.state == "void"
    assert approval.void_changes == [f"No signed event confirms the decision of {approver()}."]


def test_an_event_of_another_request_or_with_another_signature_does_not_help(waiting):
    approval = waiting.approvals.get()
    forge_a_decision(approval)
    data = {"approval": approval.pk, "digest": "0" * 64, "reason": "forged"}
    Event.append("approval.approve", actor=approver(), job=waiting.pk, object=str(approval), data=data)
    assert approval.unsigned()
    forged = Event(
        seq=10**9, at=timezone.now(), action="approval.approve", actor=approver(), job=waiting.pk,
        data=data | {"digest": approval.digest}, hash="0" * 64, prev_hash="",
    )  # fmt: skip
    forged.save(force_insert=True)
    assert approval.unsigned()


def test_a_yes_that_was_withdrawn_is_none_even_when_the_row_says_otherwise(waiting):
    approval = waiting.approvals.get()
    approval.approve(approver(), approval.digest, "fine")
    assert approval.unsigned() == []
    approval.withdraw(approver(), "no")
    Decision.objects.update(withdrawn_at=None)
    assert approval.unsigned()


# Refused when it would be used


@pytest.mark.parametrize(
    "lose",
    [
        lambda pavel: pavel.groups.remove(Group.objects.get(name="approver")),
        lambda pavel: User.objects.filter(pk=pavel.pk).update(is_active=False),
        lambda pavel: Team.objects.update(everybody=False),
    ],
    ids=["role lost", "account disabled", "left the team"],
)
def test_a_consent_does_not_outlast_its_giver(waiting, drive, site, lose):
    approval = consent(waiting)
    lose(approver())
    if Team.objects.filter(everybody=False).exists():
        Team.objects.get().members.add(operator())
    drive.go(waiting)
    approval.refresh_from_db()
    assert (waiting.status, approval.state, untouched(site)) == ("awaiting_approval", "void", True)


def test_a_consent_that_expired_meanwhile_is_not_used(waiting, drive, site):
    approval = consent(waiting)
    Approval.objects.filter(pk=approval.pk).update(expires_at=timezone.now())
    drive.go(waiting)
    assert (waiting.status, untouched(site)) == ("awaiting_approval", True)


def test_a_consent_that_expired_since_it_was_read_is_not_used(waiting):
    approval = consent(waiting)
    Approval.objects.filter(pk=approval.pk).update(expires_at=timezone.now())
    assert not approval.use()


def test_a_consent_that_was_withdrawn_is_not_used(waiting, drive, site):
    consent(waiting).withdraw(approver(), "the tenant called")
    drive.go(waiting)
    assert (waiting.status, untouched(site)) == ("awaiting_approval", True)


def test_a_consent_is_not_used_outside_of_its_window(waiting, drive, site):
    tomorrow = timezone.now() + dt.timedelta(days=2)
    window = f"{tomorrow:%a} 02:00-04:00"
    Policy(team=Team.objects.get()).change(admin(), windows=[window])
    consent(waiting)
    drive.go(waiting)
    assert (waiting.status, untouched(site)) == ("approved", True)
    assert "waits for the window on" in waiting.waiting_for


def test_a_consent_that_is_made_of_another_jobs_row_is_not_used(waiting, drive, site):
    """Whoever can write the database and moves a decision to another request has not given that one a digest."""
    approval = consent(waiting)
    Approval.objects.filter(pk=approval.pk).update(digest="0" * 64)
    drive.go(waiting)
    assert (waiting.status, untouched(site)) == ("awaiting_approval", True)


def change_volume(site, **values):
    for name, value in values.items():
        setattr(site.source.volumes[SOURCE_LV], name, value)


def change_live(site, **values):
    site.destination.facts["disk"] = {**site.destination.destination_facts(ASKED)["disk"], **values}


def change_domain(site, **values):
    site.destination.facts["domain"] = {**site.destination.destination_facts(ASKED)["domain"], **values}


ASKED = {"job": "", "instance": "0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa", "disk": "disk.local", "share_source": ""}
BOUND = {
    "source lv_uuid": lambda site: change_volume(site, uuid="zzzzzz"),
    "source size": lambda site: change_volume(site, size=1 << 30),
    "live path": lambda site: change_live(site, path="/elsewhere/disk.local"),
    "live inode": lambda site: change_live(site, inode=4799),
    "live format": lambda site: change_live(site, format="raw"),
    "live virtual_size": lambda site: change_live(site, virtual_size=1 << 30),
    "live backing 1": lambda site: change_live(site, backing=["/var/lib/nova/instances/_base/x"]),
    "instance is": lambda site: change_domain(site, state="paused"),
}


@pytest.mark.parametrize("fact", BOUND)
def test_a_bound_fact_that_changed_makes_the_consent_void_and_the_change_is_shown(waiting, drive, site, fact):
    approval = consent(waiting)
    BOUND[fact](site)
    drive.go(waiting)
    approval.refresh_from_db()
    assert (waiting.status, approval.state, untouched(site)) == ("awaiting_approval", "void", True)
    assert any(change.startswith(f"{fact}: was ") for change in approval.void_changes), approval.void_changes


@pytest.mark.parametrize("key", ["writes", "sectors_written"])
def test_a_source_that_was_written_to_makes_the_consent_void_and_the_copy_is_made_again(waiting, drive, site, key):
    approval = consent(waiting)
    site.source.volumes[SOURCE_LV].writes += 1  # the fake counts sectors by it
    drive.go(waiting)
    approval.refresh_from_db()
    assert (approval.state, untouched(site), waiting.lap) == ("void", True, 2)
    assert any(change.startswith(f"source {key}: was ") for change in approval.void_changes)


@pytest.mark.parametrize("key", ["inode", "file_size"])
def test_a_stage_that_is_another_file_is_not_swapped_in(waiting, drive, site, key):
    consent(waiting)
    stage = next(file for path, file in site.files.items() if path.endswith("disk.new"))
    setattr(stage, "inode" if key == "inode" else "size", 12345)
    drive.go(waiting)
    assert waiting.status != "on_trial"
    assert untouched(site)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("commands", lambda monkeypatch: monkeypatch.setattr("jobs.engine.plan.Plan.texts", lambda *_: ["rm -rf /"])),
        ("hostctl", lambda monkeypatch: Job.objects.update(hostctl="0123456789abcdef")),
    ],
)
def test_other_commands_or_another_hostctl_than_were_shown_make_it_void(
    waiting, drive, site, monkeypatch, what, change
):
    approval = consent(waiting)
    assert approval.bound["hostctl"] == source_hash()
    change(monkeypatch)
    drive.go(waiting)
    approval.refresh_from_db()
    assert (waiting.status, approval.state, untouched(site)) == ("awaiting_approval", "void", True)
    assert any(change.startswith(what) for change in approval.void_changes)


def test_what_was_approved_stands_when_volmig_is_upgraded(waiting, drive, site, monkeypatch):
    approval = consent(waiting)
    monkeypatch.setattr("jobs.models.job.source_hash", lambda: "another")
    monkeypatch.setattr("jobs.engine.controls.libvirt.hostctl.acts", lambda *_: ())
    drive.go(waiting)
    approval.refresh_from_db()
    assert (waiting.status, approval.state) == ("on_trial", "consumed")


def test_every_bound_fact_has_a_test_here(waiting):
    """What is bound and not named above would go unnoticed when it stopped to be compared."""
    tested = {*BOUND, "source writes", "source sectors_written", "stage inode", "stage file_size", "hostctl"}
    named = {
        f"{part} {key}"
        for part, inner in waiting.open_approval().bound.items()
        if isinstance(inner, dict)
        for key in inner
    }
    never_change = {"job", "source volume", "stage sha256", "instance id", "instance host", "instance may be"}
    assert named - {"live backing"} | {"live backing 1", "hostctl"} <= tested | never_change


# Not refused


def test_a_consent_given_while_the_instance_runs_and_writes_is_used_after_our_own_stop(waiting, drive, site):
    consent(waiting)
    live = site.files[LIVE]
    live.size, live.mtime_ns = live.size + (8 << 20), 77  # the guest writes to its disk all the while
    drive.go(waiting)
    assert (waiting.status, site.files[LIVE].content) == ("on_trial", "new disk")
    assert site.destination.asked("instance_stop")


def test_a_consent_is_used_although_the_instance_was_shut_down_by_its_owner_meanwhile(waiting, drive, site):
    consent(waiting)
    site.destination.state = "shut off"
    assert drive.go(waiting).status == "on_trial"


# Once


@pytest.mark.django_db(transaction=True)
def test_of_a_hundred_uses_at_once_exactly_one_is_made(transactional_db):
    job = Job.objects.submit(operator(), **asked())
    staged = {"sha256": "0" * 64, "inode": 1, "file_size": 1}
    approval = job.make_approval("swap", {"job": str(job.uuid), "stage": staged}, operator())
    approval.approve(approver(), approval.digest, "as agreed")
    ready, used = threading.Barrier(100, timeout=60), []

    def use():
        mine = Approval.objects.get(pk=approval.pk)
        ready.wait()
        try:
            from django.db import transaction

            with transaction.atomic():
                used.append(mine.use())
        finally:
            connection.close()

    threads = [threading.Thread(target=use) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(used) == [False] * 99 + [True]
