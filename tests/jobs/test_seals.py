"""Seals of approvals: where they are made, who hands them on, and what becomes of a migration without one."""

import io
import zipfile
from dataclasses import replace

import pytest
from django.db import DatabaseError

from hosts.models import Hypervisor
from hosts.remote.hostctl import authority
from jobs.models import Approval, sealing
from jobs.web import sealing as web
from tests.factories import approver, asked, operator
from volmig import data_dir

pytestmark = pytest.mark.django_db


@pytest.fixture
def as_worker(monkeypatch):
    """From here on this process is one of the workers: it has no key to seal with."""
    return lambda: monkeypatch.setenv("VOLMIG_PART", "workers")


@pytest.fixture
def as_web(monkeypatch):
    return lambda: monkeypatch.setenv("VOLMIG_PART", "web")


def swap_of(job) -> Approval:
    return job.approvals.get(kind="swap")


def test_the_last_decision_seals_exactly_what_was_approved(drive):
    job = drive.submit()
    approval = swap_of(job)
    assert approval.seals == {}
    approval.approve(approver(), approval.digest, "as agreed")
    key, seals = data_dir.seal_key("dst", 1), swap_of(job).seals
    assert set(seals) == {"instance_stop", "swap", "swap_back"}
    for verb, seal in seals.items():
        assert (seal["job"], seal["verb"], seal["digest"]) == (str(job.uuid), verb, approval.digest)
        assert authority.sign(key, {name: seal[name] for name in authority.FIELDS}) == seal["mac"]
    assert seals["swap"]["bound"]["stage"] == approval.bound["stage"]
    assert seals["swap"]["expires"] == int((swap_of(job).expires_at + sealing.PHASE).timestamp())
    assert seals["swap_back"]["expires"] > seals["swap"]["expires"], "what was swapped can be taken back"


def test_of_two_approvers_the_first_seals_nothing(drive, settings):
    settings.APPROVERS = 2
    job = drive.submit()
    approval = swap_of(job)
    approval.approve(approver(), approval.digest, "as agreed")
    assert swap_of(job).seals == {}


def test_a_yes_that_is_withdrawn_takes_the_seals_along(drive):
    job = drive.submit()
    approval = swap_of(job)
    approval.approve(approver(), approval.digest, "as agreed")
    approval.withdraw(approver(), "not now")
    assert swap_of(job).seals == {}


def test_a_worker_makes_no_seal_and_a_migration_waits_until_the_web_process_has(drive, settings, as_worker, as_web):
    """A site of one person: the approval is complete when a worker makes it."""
    settings.APPROVERS = 0
    as_worker()
    job = drive.submit()
    assert (job.status, swap_of(job).seals) == ("approved", {})
    assert "has no seal yet" in job.waiting_for
    assert drive.site.destination.state == "running"
    as_web()
    web.seal_what_asks_nobody()
    job.refresh_from_db()
    assert job.wake_at is not None
    as_worker()
    drive.go(job)
    assert job.status == "on_trial"


def test_the_web_process_seals_by_itself_only_where_nobody_is_asked(drive, settings):
    job = drive.submit()
    web.seal_what_asks_nobody()
    assert swap_of(job).seals == {}


class Stop(BaseException):
    """Ends the loop of a test."""


def test_no_fault_ends_the_sealing_before_the_next_restart(drive, settings, monkeypatch, as_worker, as_web, caplog):
    settings.APPROVERS = 0
    as_worker()
    job = drive.submit()
    as_web()
    faults = [OSError(24, "Too many open files"), DatabaseError("the server is away"), KeyError("seal")]
    sealing_once = web.seal_what_asks_nobody

    def sealing_at_last():
        if faults:
            raise faults.pop()
        sealing_once()
        raise Stop

    monkeypatch.setattr(web, "seal_what_asks_nobody", sealing_at_last)
    monkeypatch.setattr(web, "close_old_connections", lambda: None)  # the test's own
    monkeypatch.setattr(web, "EVERY_SECONDS", 0)
    with pytest.raises(Stop):
        web.run()
    assert set(swap_of(job).seals) == {"instance_stop", "swap", "swap_back"}
    assert "Too many open files" in caplog.text


def test_a_worker_cannot_read_the_key_and_a_web_process_not_the_way_to_hypervisors(drive, as_worker, as_web):
    drive.submit()
    as_worker()
    with pytest.raises(data_dir.NotForThisProcess, match="seal_key is not for the process workers"):
        Hypervisor.objects.get(name="dst").seal_key()
    as_web()
    with pytest.raises(data_dir.NotForThisProcess, match="ssh_key is not for the process web"):
        Hypervisor.objects.get(name="dst").remote()


def test_a_host_that_does_not_believe_the_seals_has_its_guest_running_at_the_end(drive):
    """Its key was changed after the checks: nothing is stopped, and the migration ends cleanly with the reason."""
    job = drive.submit()
    drive.site.destination.changes = {"seal_keys": ["ab" * 32]}
    drive.approve(job)
    assert (job.status, drive.site.destination.state) == ("rolled_back", "running")
    assert "no key of this hypervisor matches this seal" in job.outcome_reason
    assert drive.site.leftovers() == []


def test_a_policy_without_the_key_blocks_before_anything_is_made(drive):
    asked()  # registers the three
    Hypervisor.objects.get(name="dst").seal_key()
    drive.site.destination.changes = {"seal_keys": ["ab" * 32]}
    job = drive.submit()
    assert (job.outcome, job.runs.count()) == ("blocked", 0)
    assert "is the one under which volmig seals" in job.outcome_reason


def expire(job) -> None:
    """As if all seals of this job had been made long ago."""
    for approval in job.approvals.exclude(seals={}):
        for verb, seal in approval.seals.items():
            body = {name: seal[name] for name in authority.FIELDS} | {"expires": 1_000_000_000}
            approval.seals[verb] = dict(body, mac=authority.sign(data_dir.seal_key("dst", 1), body))
        approval.save()


def test_a_guest_that_is_down_is_started_without_a_seal(drive):
    """The seal of the swap expires between stop and swap: it is refused, and the guest starts on its old disk."""
    job = drive.submit()

    def too_late(host, request):
        if request.verb == "swap":
            assert host.state == "shut off"
            expire(job)
            request = replace(request, seal=sealing.seal_for(job, "swap"))
        return host.hear(request)

    drive.site.carry = too_late
    drive.approve(job)
    assert (job.status, drive.site.destination.state) == ("rolled_back", "running")
    assert "the seal expired" in job.outcome_reason
    assert drive.site.destination.asked("instance_start")[-1].seal == {}


def test_a_swap_that_may_have_happened_halts_until_a_person_renews_its_seals(drive):
    job = drive.submit()
    drive.site.destination.slow.add("swap")
    drive.approve(job)
    drive.site.destination.slow.clear()
    drive.site.destination.kill()
    expire(job)
    drive.go(job)
    assert (drive.site.destination.state, "the seal expired" in job.halt_reason) == ("shut off", True)
    job.resume(operator())
    drive.go(job)
    assert (job.status, drive.site.destination.state) == ("rolled_back", "running")


def test_a_rollback_that_was_allowed_in_advance_is_sealed_when_it_is_used(drive):
    job = drive.on_trial(rollback_minutes=60)
    expire(job)
    job.roll_back(operator())
    rollback = job.approvals.get(kind="rollback")
    assert set(rollback.seals) == {"instance_stop", "swap_back"}
    drive.go(job)
    assert job.status == "rolled_back"


def test_who_resumes_a_migration_has_its_seals_made_anew(drive):
    """Rolling back does not become impossible because it took long: it halts, says so, and a person resumes it."""
    job = drive.on_trial(rollback_minutes=60)
    job.roll_back(operator())
    expire(job)
    drive.go(job)
    assert job.halt_reason
    assert job.halt_data["errors"][0]["code"] == "seal-expired"
    job.resume(operator())
    drive.go(job)
    assert (job.status, drive.site.destination.state) == ("rolled_back", "running")


def test_a_purge_is_sealed_for_the_very_disk(drive):
    job = drive.done()
    job.ask("purge", operator())
    approval = job.approvals.get(kind="purge")
    approval.approve(approver(), approval.digest, "gone")
    swapped = job.evidence()["swap"]
    bound = job.approvals.get(kind="purge").seals["purge"]["bound"]
    assert (bound["backup_inode"], bound["live_inode"]) == (swapped["backup_inode"], swapped["live_inode"])
    drive.go(job)
    assert job.status == "purged"


def test_no_archive_and_no_answer_of_the_api_has_a_seal(drive, client):
    job = drive.on_trial()
    approval = swap_of(job)
    macs = [seal["mac"] for seal in approval.seals.values()]
    client.force_login(approver())
    archive = client.get(f"/migrations/{job.pk}/evidence.zip")
    shown = [client.get(f"/migrations/{job.pk}/"), client.get(f"/approvals/{approval.pk}/")]
    assert [each.status_code for each in (archive, *shown)] == [200] * 3
    with zipfile.ZipFile(io.BytesIO(b"".join(archive))) as packed:
        texts = [packed.read(name) for name in packed.namelist()]
    for mac in macs:
        assert not any(mac.encode() in text for text in [*texts, *(each.content for each in shown)])
