"""Whose hosts they are: what a host knows and the database does not makes volmig read-only, before anything is sent."""

import secrets

import pytest
from django.db import transaction

from hosts.remote.host import Answer, Request
from jobs.models import Job, Moved
from jobs.worker.gateway import Hands, changes
from tests.factories import approver, operator
from tests.ticks import LONG_AGO, claim_now, tick_now
from volmig import incarnation
from volmig.models import Session

OTHER = "f" * 32


@pytest.fixture
def sent(site):
    """What was sent to the hosts and would change something."""
    seen, carry = [], site.carry

    def carried(host, request):
        if changes(request):
            seen.append((host.name, request.verb))
        return carry(host, request)

    site.carry = carried
    return seen


def another_start(monkeypatch):
    monkeypatch.setattr(incarnation, "SESSION", secrets.token_hex(16))


def owned_by(host, session, claim, **more):
    host.owner = {"incarnation": incarnation.name(), "session": session, "claims": {session: claim}, **more}


@pytest.fixture
def prepared(drive, site):
    """A migration whose copy has been verified, and a new start of the workers."""
    site.destination.slow = {"stage_verify"}
    return drive.submit()


@pytest.mark.parametrize("role", ["source", "relay", "destination"])
def test_a_session_that_the_database_does_not_know_makes_volmig_read_only(prepared, site, sent, monkeypatch, role):
    another_start(monkeypatch)
    owned_by(getattr(site, role), OTHER, 1)
    sent.clear()
    site.destination.finish()
    tick_now(prepared.pk)
    assert incarnation.read_only().code == "other-owner"
    assert getattr(site, role).name in incarnation.read_only().reason
    assert sent == []
    assert Job.objects.claim(prepared.pk, "worker", 30) is None


def test_a_claim_that_the_database_does_not_know_makes_volmig_read_only(prepared, site, sent, monkeypatch):
    known = site.source.owner["session"]
    another_start(monkeypatch)
    owned_by(site.source, known, Session.objects.get(name=known).claims + 1)
    sent.clear()
    tick_now(prepared.pk)
    assert (incarnation.read_only().code, sent) == ("other-owner", [])


def test_a_host_of_another_volmig_makes_volmig_read_only(prepared, site, sent, monkeypatch):
    another_start(monkeypatch)
    owned_by(site.relay, OTHER, 1, incarnation="e" * 32)
    sent.clear()
    tick_now(prepared.pk)
    assert (incarnation.read_only().code, sent) == ("other-incarnation", [])


def test_another_volmig_that_acts_meanwhile_is_met_at_the_next_request_which_changes_nothing(prepared, site, sent):
    owned_by(site.destination, OTHER, 1)
    site.destination.finish()
    before = len(site.destination.kept[str(prepared.uuid)])
    tick_now(prepared.pk)
    assert incarnation.read_only().code == "other-owner"
    assert len(site.destination.kept[str(prepared.uuid)]) == before


def test_an_earlier_start_of_the_same_volmig_is_followed_without_a_person(drive, site, prepared, monkeypatch):
    another_start(monkeypatch)
    site.destination.finish()
    drive.go(prepared)
    assert (prepared.status, incarnation.read_only()) == ("awaiting_approval", None)
    assert site.destination.owner["session"] == incarnation.SESSION


def test_a_host_that_says_nothing_is_waited_for_and_nothing_is_sent_to_the_others(prepared, site, sent, monkeypatch):
    another_start(monkeypatch)
    site.relay.reachable = False
    site.destination.finish()
    sent.clear()
    tick_now(prepared.pk)
    prepared.refresh_from_db()
    assert (sent, prepared.halt_reason) == ([], "")
    assert "connection refused" in prepared.waiting_for


def test_with_the_instance_down_a_silent_relay_is_not_waited_for(drive, site, monkeypatch):
    site.destination.slow = {"instance_stop"}
    job = drive.on_trial()
    assert job.status == "swapping"
    another_start(monkeypatch)
    site.relay.reachable = False
    site.destination.finish()
    site.destination.slow = set()
    drive.go(job)
    assert job.status == "on_trial"


def test_a_worker_that_lost_the_job_lets_go_and_volmig_is_not_taken_for_stale(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    late = claim_now(job.pk, "late", -1)
    Job.objects.filter(pk=job.pk).update(lease_until="2000-01-01T00:00Z")
    tick_now(job.pk)
    hands = Hands(late, site.connect, None)
    with pytest.raises(Moved):
        hands.host("source").call(Request("lv_unfence", {}, str(job.uuid), job.pk, "x", fence=late.fence))
    assert incarnation.read_only() is None


def test_a_fence_that_nobody_here_gave_makes_volmig_read_only_and_is_never_caught_up_with(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.source.fences[str(job.uuid)] = 1000
    job.cancel(operator())
    drive.go(job)
    assert incarnation.read_only().code == "stale-fence"
    assert site.source.fences[str(job.uuid)] == 1000
    assert site.source.held, "nothing was undone under a fence that was caught up with"


def test_a_session_asks_the_hosts_once_for_each_job(prepared, site):
    """The relay and the source are asked for their boots with the same verb, the destination is not."""
    assert len(site.destination.asked("status")) == 1
    site.destination.finish()
    tick_now(prepared.pk)
    assert len(site.destination.asked("status")) == 1


def test_of_two_machines_each_asks_the_hosts_once_though_a_job_goes_from_one_to_the_other(prepared, site, monkeypatch):
    ours = incarnation.SESSION
    asked = []
    for session in ("b" * 32, ours, "b" * 32, ours):
        monkeypatch.setattr(incarnation, "SESSION", session)
        Hands(Job.objects.get(pk=prepared.pk), site.connect, None).judge_all()
        asked.append(len(site.destination.asked("status")))
    assert asked == [2, 2, 2, 2]
    assert Job.objects.get(pk=prepared.pk).judges.split() == ["b" * 32, ours]


def test_nothing_leaves_by_the_door_while_volmig_is_read_only(prepared, site, sent):
    job = claim_now(prepared.pk, "worker", 30)
    incarnation.enter_read_only("somebody says so")
    sent.clear()
    with pytest.raises(incarnation.ReadOnly):
        Hands(job, site.connect, None).host("source").call(
            Request("lv_unfence", {}, str(job.uuid), job.pk, "x", fence=job.fence)
        )
    assert sent == []


def test_before_nova_is_asked_to_change_anything_the_destination_has_been_asked(nova_drive, site, sent, monkeypatch):
    job = nova_drive.submit()
    assert job.status == "awaiting_approval"
    another_start(monkeypatch)
    owned_by(site.destination, OTHER, 1)
    sent.clear()
    nova_drive.approve(job)
    assert (incarnation.read_only().code, sent) == ("other-owner", [])
    assert job.status in ("awaiting_approval", "approved", "swapping")
    assert site.destination.state == "running"


def test_each_act_of_nova_is_fenced_at_the_destination_first(nova_drive, site):
    job = nova_drive.submit()
    nova_drive.approve(job)
    assert job.status == "on_trial"
    assert len(site.destination.asked("fence")) >= 3, "lock, stop and start"


def test_nova_is_not_asked_for_anything_while_the_destination_admits_nothing(nova_drive, site, cloud):
    job, carry = nova_drive.submit(), site.carry
    runs = site.destination.state

    def busy(host, request):
        return (
            Answer("busy", boot_id="b")
            if request.verb == "fence" and host is site.destination
            else carry(host, request)
        )

    site.carry = busy
    nova_drive.approve(job)
    assert (site.destination.state, runs) == ("running", "running")
    assert not job.runs.filter(step__in=["lock", "stop"], result="done").exists()
    assert "another request is being handled there" in job.waiting_for
    site.carry = carry
    nova_drive.go(job)
    assert job.status == "on_trial"


def test_a_watcher_queues_nothing_while_volmig_is_read_only(prepared):
    from jobs.worker.watcher import sweep
    from volmig.models import QueuedTask

    Job.objects.filter(pk=prepared.pk).update(wake_at="2000-01-01T00:00Z")
    incarnation.enter_read_only("somebody says so")
    before = QueuedTask.objects.count()
    sweep()
    assert QueuedTask.objects.count() == before


# A failover while the workers live on: the same session, and a database that lost what came after the last claim


@pytest.fixture
def set_back_to_its_last_claim(drive, site, sent, monkeypatch):
    """A migration that was swapped by one tick; the database knows of nothing after that tick's claim."""
    job = drive.submit()
    approval = job.approvals.open().get()
    approval.approve(approver(), approval.digest, "as agreed")
    points, claim = [], type(Job.objects.all()).claim

    def claimed(self, *asked):
        got = claim(self, *asked)
        points.append(transaction.savepoint())
        return got

    monkeypatch.setattr(type(Job.objects.all()), "claim", claimed)
    tick_now(job.pk)
    job.refresh_from_db()
    assert job.status == "on_trial"
    monkeypatch.setattr(type(Job.objects.all()), "claim", claim)
    transaction.savepoint_rollback(points[0])
    Job.objects.filter(pk=job.pk).update(lease_until=LONG_AGO)
    job.refresh_from_db()
    assert job.status == "approved"
    sent.clear()
    return job


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_database_that_lost_what_came_after_the_last_claim_never_acts(set_back_to_its_last_claim, sent, cancelled):
    job = set_back_to_its_last_claim
    if cancelled:
        job.cancel(operator())
    for _ in range(3):
        tick_now(job.pk)
    assert (incarnation.read_only().code, sent) == ("database-older", [])


def test_a_database_that_is_set_back_within_a_tick_sends_nothing_more(drive, site, sent, monkeypatch):
    site.source.slow = {"convert"}
    job = drive.submit()
    site.source.finish()
    count = incarnation.count

    def set_back():
        Session.objects.filter(name=incarnation.SESSION).update(claims=3)
        monkeypatch.setattr(incarnation, "count", count)
        sent.clear()
        return count()

    claim = type(Job.objects.all()).claim

    def claimed(self, *asked):
        got = claim(self, *asked)
        monkeypatch.setattr(incarnation, "count", set_back)
        return got

    monkeypatch.setattr(type(Job.objects.all()), "claim", claimed)
    tick_now(job.pk)
    monkeypatch.setattr(type(Job.objects.all()), "claim", claim)
    Session.objects.filter(name=incarnation.SESSION).update(claims=3)  # the transaction took it along
    tick_now(job.pk)
    assert (incarnation.read_only().code, sent) == ("database-older", [])
