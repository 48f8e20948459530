"""Adopting: what is shown, who confirms it, what stays closed until the end."""

import json
import os
import secrets
import threading
from contextlib import contextmanager, suppress
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from hosts import tasks
from hosts.models import Hypervisor
from hosts.remote.host import Unreachable
from hosts.remote.hostctl import cli
from jobs.models import Adoption, Footprint, Job, Refused
from jobs.worker import adopting
from jobs.worker.journal import Journal
from jobs.worker.scheduling import reserve
from tests.factories import a_job, admin, approver, asked, in_cloud, operator
from tests.fakes import LIVE
from tests.outside import outside_the_database
from tests.ticks import LONG_AGO, tick_now
from tests.trust.test_restore_matrix import Wire, begin_there, live_to
from tests.typed import just_typed
from volmig import incarnation
from volmig.models import QueuedTask
from volmig.record.models import Event


@contextmanager
def known_to_hosts_alone(monkeypatch):
    """Database and data directory are then as before, and volmig as if it had been started anew."""
    point = transaction.savepoint()
    with outside_the_database():
        yield
    transaction.savepoint_rollback(point)
    monkeypatch.setattr(incarnation, "SESSION", secrets.token_hex(16))


def awaiting_approval(real_life):
    """A migration that began under this volmig and whose copy is staged."""
    incarnation.check()
    life = real_life("done")
    life.submit()
    life.live("awaiting_approval")
    return life


@pytest.fixture
def behind(real_life, machines, monkeypatch):
    """A migration on trial, whose database and data directory are those from before its approval."""
    life = awaiting_approval(real_life)
    with known_to_hosts_alone(monkeypatch):
        life.live("on_trial")
    life.job.refresh_from_db()
    life.job.approvals.open().get().approve(approver(), life.job.approvals.open().get().digest, "as agreed")
    Job.objects.filter(pk=life.job.pk).exclude(lease_until=None).update(lease_until=LONG_AGO)
    tick_now(life.job.pk)
    assert incarnation.read_only() is not None
    return life


def compared(job):
    adopting.compare()
    return Adoption.objects.get(job=job)


def test_what_hosts_report_is_kept_beside_what_it_leads_to(behind):
    row = compared(behind.job)
    assert (row.status, row.trouble) == ("on_trial", "")
    assert "runs on its new disk" in row.words
    assert [run["step"] for run in row.seen["destination"]["runs"]][-5:-1] == ["lock", "stop", "swap", "start"]


def test_adopting_enters_what_was_done_and_no_approval_of_before_counts(behind, machines):
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)
    adopting.adopt(Adoption.objects.get(pk=row.pk))
    job = Job.objects.get(pk=behind.job.pk)
    assert job.status == "on_trial"
    assert job.runs.filter(step="swap", result="done").count() == 1
    assert not job.approvals.open().exists()
    assert job.approvals.get().void_reason == adopting.BEFORE
    assert incarnation.read_only() is not None, "only the last confirmation ends it"
    assert Job.objects.claim(job.pk, "worker", 30) is None
    assert machines.destination.state == "running"
    adopting.finish(admin())
    assert incarnation.check() is None
    assert Job.objects.claim(job.pk, "worker", 30) is not None


def test_the_end_is_refused_while_a_migration_is_not_adopted(behind):
    adopting.compare()
    with pytest.raises(Refused, match="Not yet adopted: migration 1"):
        adopting.finish(admin())
    assert incarnation.read_only() is not None


def test_what_some_hypervisors_said_is_kept_although_a_limit_ends_it_while_another_is_waited_for(db, monkeypatch):
    a_job()
    state, others, keep_host = incarnation.enter_read_only("x"), threading.Event(), adopting.keep_host

    def recalled(address, known):
        if address.host == "jump":  # asked second of three
            assert others.wait(20), "nothing is kept before all have been heard"
            raise SystemExit("took too long")
        return {"jobs": {}}

    def kept(*what):
        row = keep_host(*what)
        if Adoption.objects.filter(episode=state.episode, job=None).count() == 2:
            others.set()
        return row

    monkeypatch.setattr(adopting, "recalled", recalled)
    monkeypatch.setattr(adopting, "keep_host", kept)
    with pytest.raises(SystemExit):
        adopting.compare()
    heard = Adoption.objects.filter(episode=state.episode, job=None).values_list("hypervisor__name", flat=True)
    assert sorted(heard) == ["dst", "src"]


def test_what_is_not_as_it_was_shown_is_not_adopted(behind):
    row = compared(behind.job)
    with pytest.raises(Refused, match="now report a different state"):
        adopting.want(row, admin(), "0" * 64)
    Adoption.objects.filter(pk=row.pk).update(digest="0" * 64, by=admin())
    with pytest.raises(Refused, match="now report a different state"):
        adopting.adopt(Adoption.objects.get(pk=row.pk))
    assert Job.objects.get(pk=behind.job.pk).status != "on_trial"


def test_a_comparison_that_a_limit_ended_goes_on_from_there(db, monkeypatch):
    jobs = [a_job("preparing", instance_id=str(uuid4()), lv_uuid=str(number)) for number in range(3)]
    state, done = incarnation.enter_read_only("dst: another session acted there"), []

    def limited(job, episode):
        if done == [jobs[0].pk]:
            done.append("ended")
            raise SystemExit("took too long")
        done.append(job.pk)
        adopting.keep(episode, job, {})

    monkeypatch.setattr(adopting, "compare_one", limited)
    monkeypatch.setattr(adopting, "hear_all", list)
    with pytest.raises(SystemExit):
        adopting.compare()
    adopting.compare()
    first, second, third = (job.pk for job in jobs)
    assert done == [first, "ended", second, third, first]
    Adoption.objects.filter(episode=state.episode, job=first).update(adopted_at=timezone.now())
    done.clear()
    adopting.compare()
    assert done == [second, third]


def test_only_administrators_adopt(behind):
    row = compared(behind.job)
    for act in (
        lambda: adopting.want(row, operator(), row.digest),
        lambda: adopting.want_host(Hypervisor.objects.get(name="src"), operator(), "src"),
        lambda: adopting.want_end(operator()),
        lambda: adopting.finish(operator()),
    ):
        with pytest.raises(Refused):
            act()


def test_a_host_that_says_nothing_has_to_answer_first(behind, machines, monkeypatch):
    carry = machines.carry

    def without_relay(machine, request):
        if machine is machines.relay:
            from hosts.remote.host import Unreachable

            raise Unreachable("reach jump", "connection refused")
        return carry(machine, request)

    monkeypatch.setattr(machines, "carry", without_relay)
    row = compared(behind.job)
    assert "jump has to respond first" in row.trouble
    with pytest.raises(Refused, match="jump has to respond first"):
        adopting.want(row, admin(), row.digest)


def of_another(machine):
    from hosts.remote.hostctl.ownership import Ownership

    with machine.at_work():
        Ownership(str(machine.root / "var/lib/volmig")).take("e" * 32, "d" * 32, 5, afresh=True)


def test_a_host_of_another_volmig_is_taken_over_by_its_name_and_before_its_migrations(behind, machines):
    of_another(machines.relay)
    row = compared(behind.job)
    assert "jump has to be taken over first" in row.trouble
    jump = Hypervisor.objects.get(name="jump")
    with pytest.raises(Refused, match="Type the name"):
        adopting.want_host(jump, admin(), "jum")
    adopting.want_host(jump, admin(), "jump")
    adopting.own_wanted(Adoption.objects.get(hypervisor=jump).pk)
    row = compared(behind.job)
    assert (row.trouble, row.status) == ("", "on_trial")


def test_a_hypervisor_that_was_named_in_an_earlier_episode_is_not_taken_over_in_the_next(behind, machines):
    of_another(machines.relay)
    compared(behind.job)
    jump = Hypervisor.objects.get(name="jump")
    adopting.want_host(jump, admin(), "jump")
    incarnation.leave_read_only(admin())
    incarnation.enter_read_only("jump: another volmig acted there", "other-incarnation")
    adopting.own_wanted(Adoption.objects.get(hypervisor=jump).pk)
    assert machines.relay.call(recall()).evidence["owner"]["incarnation"] == "e" * 32


def test_the_other_volmig_is_stopped_by_the_host_that_was_taken_over(behind, machines, monkeypatch):
    mine = incarnation.SESSION
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)
    adopting.adopt(Adoption.objects.get(pk=row.pk))
    owner = machines.destination.call(recall()).evidence["owner"]
    assert (owner["session"], list(owner["claims"])) == (mine, [mine])


def recall():
    from hosts.remote.host import Request

    return Request("recall")


# What is entered


def adopt(job):
    row = compared(job)
    assert row.trouble == ""
    adopting.want(row, admin(), row.digest)
    adopting.adopt(Adoption.objects.get(pk=row.pk))
    job.refresh_from_db()
    return Adoption.objects.get(pk=row.pk)


@pytest.mark.parametrize(("after", "seconds"), [(7, 7.0), (-1000, 0.0)], ids=["later", "by a clock that was set back"])
def test_a_step_that_is_entered_ended_when_its_result_was_stored_and_never_before_it_began(
    swapped, machines, after, seconds
):
    stored = machines.destination.root / f"var/lib/volmig/{swapped.job.uuid}/stop-do-1.result.json"
    begun = json.loads(stored.with_name("stop-do-1.request.json").read_text())["at"]
    os.utime(stored, (begun + after, begun + after))
    adopt(swapped.job)
    run = swapped.job.runs.get(step="stop", direction="do")
    assert round((run.ended_at - run.started_at).total_seconds(), 1) == seconds


@pytest.mark.parametrize("state", ["done", "lost"])
def test_a_step_that_is_entered_after_its_undo_leaves_nothing_in_the_ledger(real_life, machines, monkeypatch, state):
    """The undo had ended when the database was backed up, and how the step before it had ended was not known yet."""
    life = begin_there(real_life, machines, "cancelled amid the copy")
    assert live_to(life, ("status", "undone"), monkeypatch)
    job = life.job
    stage = job.runs.get(step="stage", direction="do")
    stage.result, stage.ended_at = "running", None
    stage.save()
    recalled = {"step": "stage", "direction": "do", "attempt": 1, "state": state, "fence": stage.fence}
    Journal(job, job.planned().steps).learn_of(recalled, job.relay, job.lap)
    stage.refresh_from_db()
    assert (stage.result, job.footprints.get(kind="stage").state) == (state, "gone")


@pytest.fixture
def reserving(real_life, machines, monkeypatch):
    """A migration that has reserved its space, of which no host has heard when volmig becomes read-only."""
    incarnation.check()
    life = real_life("done")
    life.submit()
    assert live_to(life, ("status", "preparing"), monkeypatch)
    Job.objects.update(lease_until=None)
    life.job.refresh_from_db()
    assert reserve(life.job) == ""
    incarnation.enter_read_only("an administrator says so")
    return life.job


def test_what_was_not_begun_gives_its_space_back_and_has_to_reserve_again(reserving):
    adopt(reserving)
    assert (reserving.status, reserving.footprints.count()) == ("planned", 0)
    adopting.finish(admin())
    reserving.start(operator())
    reserving.refresh_from_db()
    tick_now(reserving.pk)
    assert reserving.footprints.filter(kind="space").count() == 2


def test_what_was_not_begun_and_is_cancelled_leaves_nothing_reserved(reserving):
    adopt(reserving)
    adopting.finish(admin())
    reserving.cancel(operator())
    tick_now(reserving.pk)
    reserving.refresh_from_db()
    assert (reserving.status, Footprint.objects.left().count()) == ("undone", 0)


WHY = {"outcome": "failed", "outcome_reason": "The copy differs from its source."}


def test_an_undo_of_which_no_host_has_heard_keeps_its_reason(reserving):
    Job.objects.filter(pk=reserving.pk).update(status="undoing", **WHY)
    adopt(reserving)
    assert (reserving.status, reserving.outcome, reserving.outcome_reason) == ("undoing", *WHY.values())


# Seals


@pytest.fixture
def swapped(real_life, machines, monkeypatch):
    """A migration whose disks are exchanged, with its instance shut off; its database knows of no approval."""
    life = awaiting_approval(real_life)
    with known_to_hosts_alone(monkeypatch):
        assert live_to(life, ("after", "swap", "do"), monkeypatch)
    life.job.refresh_from_db()
    incarnation.enter_read_only("an administrator says so")
    return life


def test_an_instance_that_is_down_gets_its_old_disk_back_although_the_approval_is_lost(swapped, machines):
    row = adopt(swapped.job)
    assert (row.status, list(row.seals)) == ("rolling_back", ["swap_back"])
    adopting.finish(admin())
    assert swapped.live() == "rolled_back"
    assert (machines.files[LIVE].content, machines.destination.state) == ("old disk", "running")


def test_a_rollback_that_the_database_knows_of_keeps_its_reason(swapped):
    Job.objects.filter(pk=swapped.job.pk).update(status="rolling_back", **WHY)
    adopt(swapped.job)
    job = swapped.job
    assert (job.status, job.outcome, job.outcome_reason) == ("rolling_back", *WHY.values())


def test_who_adopts_without_the_keys_leaves_the_seal_to_the_person_who_resumes(swapped, machines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("volmig.data_dir.may_read", lambda name: name != "seal_key")
        assert adopt(swapped.job).seals == {}
        adopting.finish(admin())
        assert swapped.live() == "halted"
    assert machines.destination.state == "shut off"
    swapped.resumes = 2
    assert swapped.live() == "rolled_back"
    assert (machines.files[LIVE].content, machines.destination.state) == ("old disk", "running")


def test_an_adoption_that_stops_no_instance_and_exchanges_no_disk_gives_no_seal(behind):
    row = adopt(behind.job)
    assert (row.status, row.seals) == ("on_trial", {})


# What was done through Nova


@pytest.fixture
def in_nova(real_life, machines, nova_of_machines, monkeypatch):
    """Lives a migration of an instance in Nova to one moment, and sets its database back to an earlier one."""

    def live(now, was=("status", "awaiting_approval")):
        incarnation.check()
        in_cloud(nova_of_machines)
        life = real_life("done")
        life.submit()
        assert live_to(life, was, monkeypatch)
        with known_to_hosts_alone(monkeypatch):
            assert live_to(life, now, monkeypatch)
        life.job.refresh_from_db()
        incarnation.enter_read_only("an administrator says so")
        return life.job

    return live


AFTER_START = ("after", "start", "do")


def test_what_nova_shows_stands_beside_what_hosts_report(in_nova, client):
    row = compared(in_nova(AFTER_START))
    assert (row.status, row.trouble) == ("on_trial", "")
    client.force_login(admin())
    page = client.get(reverse("adopt")).content.decode()
    assert "Active on dst, locked by this migration. 3 steps that the database lacks" in page


def test_while_nova_is_at_work_on_the_instance_nothing_is_decided(in_nova, nova_of_machines):
    job = in_nova(AFTER_START)
    nova_of_machines.server.task_state = "powering-off"
    row = compared(job)
    assert "Nova is working on the instance (powering-off)" in row.trouble
    with pytest.raises(Refused, match="working on the instance"):
        adopting.want(row, admin(), row.digest)
    nova_of_machines.server.task_state = None
    assert compared(job).trouble == ""


def test_what_nova_did_after_the_comparison_has_to_be_seen_first(in_nova, nova_of_machines):
    row = compared(in_nova(AFTER_START))
    nova_of_machines.user_does("stop", vm_state="stopped")
    adopting.want(row, admin(), row.digest)
    with pytest.raises(Refused, match="now report a different state"):
        adopting.adopt(Adoption.objects.get(pk=row.pk))


def test_a_nova_that_does_not_answer_has_to_answer_first(in_nova, nova_of_machines):
    job = in_nova(AFTER_START)
    nova_of_machines.down = True
    assert "Nova has to respond first" in compared(job).trouble


def test_a_guest_that_its_user_shut_down_on_the_new_disk_does_not_lose_what_it_wrote(in_nova, nova_of_machines):
    job = in_nova(AFTER_START)
    nova_of_machines.user_does("stop", vm_state="stopped")
    row = compared(job)
    assert (row.status, [run["step"] for run in row.seen["instance"]["runs"]]) == (
        "on_trial",
        ["lock", "stop", "start"],
    )


def test_a_shutdown_by_its_user_is_not_taken_for_a_rollback(in_nova, nova_of_machines):
    job = in_nova(("status", "done"), was=("status", "on_trial"))
    nova_of_machines.user_does("stop", vm_state="stopped")
    row = compared(job)
    assert (row.status, row.seen["instance"]["runs"]) == ("on_trial", [])
    adopt(job)
    assert not job.approvals.open().exists(), "no rollback is asked for"


def test_an_instance_that_was_only_locked_is_unlocked_and_not_started(in_nova, nova_of_machines, machines):
    job = in_nova(("after", "lock", "do"))
    row = compared(job)
    assert [run["step"] for run in row.seen["instance"]["runs"]] == ["lock"]
    adopt(job)
    adopting.finish(admin())
    for _ in range(4):
        tick_now(job.pk)
    job.refresh_from_db()
    assert (job.status, nova_of_machines.server.locked, nova_of_machines.asked("os-start")) == ("rolled_back", False, 0)


# Migrations that the database lacks


@pytest.fixture
def lacking(real_life, machines, monkeypatch):
    """Lives a migration to a moment, then sets the database back to before it was submitted; returns its UUID."""

    def live(moment):
        incarnation.check()
        life = real_life("done")
        asked()  # the hypervisors and what is on them were known before
        with known_to_hosts_alone(monkeypatch):
            uuid = str(life.submit().uuid)
            assert live_to(life, moment, monkeypatch)
        for pk in Hypervisor.objects.values_list("pk", flat=True):
            tasks.refresh(pk)
        assert incarnation.read_only() is not None
        return uuid

    return live


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (("after", "source_fence", "do"), "No disk was exchanged"),
        (("after", "stop", "do"), "start it on dst"),
        (("after", "swap", "do"), "may be down. The exchange of its disks was begun"),
        (("after", "start", "do"), "Leave it running unless its data is wrong"),
        (("status", "done"), "Leave it running unless its data is wrong"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_migration_that_the_database_lacks_is_listed_with_what_to_do_and_nothing_is_done(
    lacking, machines, moment, words, capsys
):
    uuid = lacking(moment)
    with Wire(machines) as wire:
        call_command("adopt")
        (found,) = adopting.unknown(incarnation.read_only().episode)
        adopting.finish(admin())
    printed = capsys.readouterr().out
    assert (found.uuid, Job.objects.count()) == (uuid, 0)
    assert words in found.advice
    assert uuid in printed
    assert found.advice in printed
    assert {request.split()[0] for request in wire.sent} == {"own"}, "the hosts get a new owner and nothing else"


def test_a_volume_of_the_relay_is_not_taken_for_what_moves():
    fence = {"step": "source_fence", "args": {"vg": "vg_nova0", "lv": "disk"}}
    erase = {"step": "relay_erase", "args": {"vg": "vg_relay", "lv": "volmig_0f8fad5bd9cb"}}
    assert adopting.what_moves([fence, erase]) == "volume vg_nova0/disk"


def test_a_destination_that_said_nothing_does_not_count_as_one_that_exchanged_no_disk(lacking, machines, monkeypatch):
    lacking(("after", "swap", "do"))
    carry = machines.carry

    def without_destination(machine, request):
        if machine is machines.destination:
            raise Unreachable("reach dst", "connection refused")
        return carry(machine, request)

    monkeypatch.setattr(machines, "carry", without_destination)
    adopting.compare()
    (found,) = adopting.unknown(incarnation.read_only().episode)
    assert "No disk was exchanged" not in found.advice
    assert found.advice.startswith("Not known yet: dst has not said what it did")
    assert not found.is_over


@pytest.mark.parametrize("moment", [("after", "swap", "do"), ("status", "done")], ids=["swap", "done"])
def test_a_destination_that_the_database_lacks_may_have_exchanged_the_disk(lacking, moment):
    lacking(moment)
    Hypervisor.objects.filter(name="dst").update(retired_at=timezone.now())
    adopting.compare()
    (found,) = adopting.unknown(incarnation.read_only().episode)
    assert found.advice.startswith("Not known: the copy was finished")
    assert not found.is_over


def test_a_destination_whose_record_cannot_be_read_is_no_reason_to_call_the_disk_unexchanged(lacking, machines):
    uuid = lacking(("after", "swap", "do"))
    adopting.compare()
    row = Adoption.objects.get(hypervisor__name="dst")
    for reported in (
        {"silent": "it is not a JSON object", "runs": []},
        None,
    ):  # damaged there; beyond the most that are read
        row.seen["unknown"] = {uuid: reported} if reported else {}
        row.save()
        (found,) = adopting.unknown(incarnation.read_only().episode)
        assert found.advice.startswith("Not known yet: dst has not said what it did")


def test_the_page_lists_what_the_database_lacks_and_offers_no_button_for_it(lacking, client):
    uuid = lacking(("after", "swap", "do"))
    adopting.compare()
    client.force_login(admin())
    page = client.get(reverse("adopt")).content.decode()
    assert f"volmig-hostctl rollback {uuid} on dst" in page
    assert "No migration to adopt" in page
    assert "Adopt migration" not in page


def test_an_end_that_is_refused_leaves_the_list_of_what_the_database_lacks(lacking, machines, monkeypatch):
    lacking(("after", "swap", "do"))
    adopting.compare()
    before = adopting.unknown(incarnation.read_only().episode)
    carry = machines.carry

    def without_relay(machine, request):
        if machine is machines.relay:
            raise Unreachable("reach jump", "connection refused")
        return carry(machine, request)

    monkeypatch.setattr(machines, "carry", without_relay)
    with pytest.raises(Refused, match="jump has to respond"):
        adopting.finish(admin())
    (now,) = adopting.unknown(incarnation.read_only().episode)
    assert now.advice == before[0].advice
    assert "dst" in now.hosts


def test_an_instance_that_is_down_is_brought_back_by_hand_as_the_page_says(lacking, machines):
    uuid = lacking(("after", "swap", "do"))
    adopting.compare()
    assert f"volmig-hostctl rollback {uuid} on dst" in adopting.unknown(incarnation.read_only().episode)[0].advice
    with machines.destination.at_work():
        said = cli.rollback(uuid)
    assert said["state"] == "done", said
    assert machines.files[LIVE].content == "old disk"


# Page and command


def test_the_page_shows_it_and_takes_the_confirmations(behind, client, drain):
    client.force_login(admin())
    just_typed(client)
    client.post(reverse("adopt_verb", args=["compare"]))
    drain()
    page = client.get(reverse("adopt")).content.decode()
    assert "runs on its new disk" in page
    row = Adoption.objects.get(job=behind.job)
    client.post(reverse("adopt_verb", args=["migration"]), {"adoption": row.pk, "digest": row.digest})
    drain()
    assert Job.objects.get(pk=behind.job.pk).status == "on_trial"
    client.post(reverse("adopt_verb", args=["finish"]))
    drain()
    assert incarnation.read_only() is None
    assert Event.objects.filter(action="job.adopt", actor=admin()).count() == 1
    assert "Nothing to adopt" in client.get(reverse("adopt")).content.decode()


def test_the_page_says_why_read_only_mode_could_not_be_ended(behind, client, drain, machines):
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)
    drain()
    client.force_login(admin())
    just_typed(client)
    of_another(machines.relay)

    def page():
        return client.get(reverse("adopt")).content.decode()

    assert 'id="attempt"' not in page()
    client.post(reverse("adopt_verb", args=["finish"]))
    assert "The end was requested at" in page()
    drain()
    assert "Read-only mode could not be ended" in page()
    assert "Take jump over by its name first. It belongs to another volmig (eeeeeeee)." in page()
    incarnation.leave_read_only(admin())
    incarnation.enter_read_only("dst: another session acted there")
    assert 'id="attempt"' not in page(), "that was another episode"


@pytest.mark.parametrize("error", [RuntimeError("no such table"), SystemExit("took too long")], ids=repr)
def test_the_page_says_that_ending_it_failed_by_an_internal_error(behind, client, monkeypatch, error):
    def fails(by):
        raise error

    monkeypatch.setattr(adopting, "finish", fails)
    with pytest.raises(type(error)):
        want_end_and_run()
    client.force_login(admin())
    assert f"Internal error ({type(error).__name__}: {error})" in client.get(reverse("adopt")).content.decode()


def want_end_and_run():
    state = incarnation.read_only()
    Event.append("adoption.finish", actor=admin(), data={"episode": state.episode})
    adopting.finish_wanted(admin().pk)


def test_an_end_that_was_requested_before_does_not_end_another_episode(behind):
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)
    adopting.adopt_wanted(row.pk)
    Job.objects.filter(pk=behind.job.pk).update(status="undone")  # nothing is left to be adopted
    adopting.want_end(admin())
    adopting.finish_wanted(admin().pk)
    assert incarnation.read_only() is None
    incarnation.enter_read_only("dst: another session acted there")
    adopting.finish_wanted(admin().pk)  # the same task once more, as after its worker was killed
    assert incarnation.read_only() is not None


def test_an_adoption_that_failed_by_an_internal_error_can_be_tried_again(behind, monkeypatch, client):
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)

    def fails(*given):
        raise RuntimeError("database is locked")

    with monkeypatch.context() as broken:
        broken.setattr(adopting, "claim_above", fails)
        with pytest.raises(RuntimeError):
            adopting.adopt_wanted(row.pk)
    client.force_login(admin())
    page = client.get(reverse("adopt")).content.decode()
    assert "Internal error (RuntimeError: database is locked)" in page
    assert "Being adopted" not in page
    row = compared(behind.job)
    adopting.want(row, admin(), row.digest)
    adopting.adopt_wanted(row.pk)
    assert Adoption.objects.get(pk=row.pk).adopted_at is not None


def test_the_page_adopts_when_the_password_was_typed_long_ago(behind, client, drain):
    """Adopting then asks for the password first, which has to be possible while everything else is refused."""
    who = admin()
    who.set_password("correct horse battery")
    who.save()
    client.force_login(who)  # the session has no time of a password
    address = reverse("adopt_verb", args=["compare"])
    assert client.post(address).url.startswith(reverse("confirm"))
    told = {"password": "correct horse battery", "next": reverse("adopt")}
    assert client.post(reverse("confirm"), told).url == reverse("adopt")
    assert client.post(address).url == reverse("adopt")
    assert "jobs.worker.adopting.compare" in drain()


def test_without_hypervisors_there_is_nothing_to_compare_and_it_can_be_ended(client, drain, capsys):
    """Otherwise the page says "Not compared yet" for ever, and has no button that ends read-only mode."""
    incarnation.check()
    incarnation.enter_read_only("It was restored from a backup")
    call_command("adopt")
    assert "manage.py adopt --finish --as NAME" in capsys.readouterr().out
    client.force_login(admin())
    just_typed(client)
    page = client.get(reverse("adopt")).content.decode()
    assert "Not compared yet" not in page
    assert "End read-only mode</button>" in page
    client.post(reverse("adopt_verb", args=["finish"]))
    assert "jobs.worker.adopting.finish_wanted" in drain()
    assert incarnation.read_only() is None


def test_the_page_is_for_administrators(behind, client):
    client.force_login(operator())
    assert client.get(reverse("adopt")).status_code == 403
    assert client.post(reverse("adopt_verb", args=["finish"])).status_code == 403


def test_the_command_shows_adopts_and_ends_it(behind, monkeypatch, capsys):
    admin()
    call_command("adopt")
    said = capsys.readouterr().out
    assert "after adoption on_trial" in said
    assert f"1 left to adopt, one at a time: manage.py adopt --migration {behind.job.pk} --as NAME" in said
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(CommandError, match="Not confirmed"):
        call_command("adopt", "--migration", "1", "--as", "ada")
    monkeypatch.setattr("builtins.input", lambda question: str(behind.job.pk))
    call_command("adopt", "--migration", str(behind.job.pk), "--as", "ada")
    assert not QueuedTask.objects.filter(name="jobs.worker.adopting.adopt_wanted").exists(), (
        "a worker would do it beside it"
    )
    call_command("adopt", "--finish", "--as", "ada")
    assert incarnation.read_only() is None


def test_the_command_needs_an_administrator(behind):
    adopting.compare()
    with pytest.raises(CommandError, match="Name the administrator"):
        call_command("adopt", "--finish")
    operator()
    with pytest.raises(CommandError):
        call_command("adopt", "--finish", "--as", "olga")
    assert incarnation.read_only() is not None


# Two that adopt the same migration, and one that is late


def before_its_first(monkeypatch, name, happens):
    """Have something else happen once, just before the adoption under way calls that function."""
    real, left = getattr(adopting, name), [happens]

    def late(*given):
        if left:
            left.pop()()
        return real(*given)

    monkeypatch.setattr(adopting, name, late)


def test_an_adoption_that_is_late_changes_nothing_after_read_only_mode_has_ended(behind, monkeypatch):
    row = compared(behind.job)

    def others():
        adopting.adopt(Adoption.objects.get(pk=row.pk))
        adopting.finish(admin())
        Job.objects.get(pk=behind.job.pk).confirm(operator())
        for _ in range(6):
            tick_now(behind.job.pk)

    before_its_first(monkeypatch, "claim_above", others)
    adopting.want(row, admin(), row.digest)
    adopting.adopt_wanted(row.pk)
    job = Job.objects.get(pk=behind.job.pk)
    assert (job.status, job.halt_reason) == ("done", "")
    assert Event.objects.filter(action="job.adopt").count() == 1
    assert incarnation.read_only() is None
    assert Adoption.objects.get(pk=row.pk).adopted_at is not None
    assert Adoption.objects.get(pk=row.pk).trouble == ""


@pytest.mark.parametrize("at", ["claim_above", "taken_over", "facts_first"])
def test_of_two_that_adopt_the_same_migration_one_does(behind, monkeypatch, at):
    row = compared(behind.job)
    before_its_first(monkeypatch, at, lambda: adopting.adopt_wanted(row.pk))
    monkeypatch.setattr("builtins.input", lambda question: str(behind.job.pk))
    with suppress(CommandError):  # of the one that came too late
        call_command("adopt", migration=behind.job.pk, person=admin().username)
    assert Adoption.objects.get(pk=row.pk).adopted_at is not None
    assert Event.objects.filter(action="job.adopt").count() == 1
    assert Job.objects.get(pk=behind.job.pk).status == "on_trial"


def test_an_adoption_of_an_earlier_episode_changes_nothing(behind, monkeypatch):
    row = compared(behind.job)
    fence = Job.objects.get(pk=behind.job.pk).fence

    def another_episode():
        incarnation.leave_read_only(admin())
        incarnation.enter_read_only("dst: another session acted there")

    before_its_first(monkeypatch, "claim_above", another_episode)
    with pytest.raises(Refused, match="has already ended"):
        adopting.adopt(Adoption.objects.get(pk=row.pk))
    assert Job.objects.get(pk=behind.job.pk).fence == fence
