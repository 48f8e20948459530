"""Migrations by programs: asked for once however often it is sent, shown, decided and followed."""

import threading

import pytest
from django.db import connection
from django.utils import timezone

from jobs.models import Job
from tests.api.conftest import WISH, Program, code, letters_of
from tests.pages import scenes
from volmig.record.models import Event


def consent(job, asked, **changed):
    return {"digest": asked.digest, "instance": job.instance_id[-6:], "reason": "Agreed with the tenant.", **changed}


def test_hypervisors_are_listed_as_they_were_seen(program_of, dana, hosts):
    items = program_of(dana).get("/hypervisors").json()["items"]
    assert {each["name"]: each["state"] for each in items}["cmp-lvm-08"] == "quarantined"
    jump = next(each for each in items if each["name"] == "jump-02")
    assert jump["volume_groups"] == [{"name": "vg_nova0", "size": 20_000 << 30, "free": 5000 << 30, "held": 0}]


def test_a_migration_is_asked_for_by_names(program_of, dana, wish):
    response = program_of(dana).post("/jobs", {**wish, "rate_mib": 40})
    job = Job.objects.get()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/v1/jobs/{job.pk}"
    assert (job.requester, job.ticket, job.rate, job.start_when_checked) == (dana, "OPS-1", 40 << 20, True)
    assert (job.source.name, job.relay.name, job.destination.name) == ("cmp-lvm-07", "jump-02", "cmp-nfs-03")


def test_one_key_makes_one_migration_however_often_it_is_sent(program_of, dana, wish):
    program = program_of(dana)
    first, *others = [program.post("/jobs", wish, Idempotency_Key="night-7") for _ in range(4)]
    assert [each.status_code for each in (first, *others)] == [201, 200, 200, 200]
    assert {each.json()["number"] for each in (first, *others)} == {Job.objects.get().pk}
    assert Event.objects.filter(action="job.submit").count() == 1


def test_the_same_key_with_another_wish_is_refused(program_of, dana, wish):
    program = program_of(dana)
    program.post("/jobs", wish, Idempotency_Key="night-7")
    response = program.post("/jobs", {**wish, "ticket": "OPS-2"}, Idempotency_Key="night-7")
    assert (response.status_code, code(response)) == (409, "key-used")
    assert Job.objects.count() == 1


def test_a_refused_wish_uses_no_key_up(program_of, dana, wish, hosts):
    program = program_of(dana)
    hosts["jump-02"].quarantine("its key changed")
    assert code(program.post("/jobs", wish, Idempotency_Key="night-7")) == "hypervisor-unusable"
    hosts["jump-02"].pin(dana, "ssh-ed25519 AAAA")
    assert program.post("/jobs", wish, Idempotency_Key="night-7").status_code == 201


def test_two_people_may_have_the_same_key(program_of, dana, person, wish):
    program_of(dana).post("/jobs", wish, Idempotency_Key="1")
    response = program_of(person("olga", "operator")).post("/jobs", wish, Idempotency_Key="1")
    assert code(response) == "volume-in-migration"


def test_a_preflight_is_planned_and_never_started_by_itself(program_of, dana, wish):
    assert program_of(dana).post("/preflight", wish).status_code == 201
    assert not Job.objects.get().start_when_checked


def test_another_person_approves_exactly_what_is_asked(program_of, dana, kim, hosts):
    job = scenes.job(dana, "awaiting_approval")
    asked = scenes.approval(job)
    program = program_of(kim)
    shown = program.get(f"/jobs/{job.pk}").json()
    assert shown["approval"]["digest"] == asked.digest
    after = program.post(f"/jobs/{job.pk}/approve", consent(job, asked))
    assert (after.status_code, after.json()["status"]) == (200, "approved")
    assert list(asked.decisions.values_list("person__username", "verdict")) == [("kim", "approve")]


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"digest": "0" * 64}, "other-digest"), ({"instance": "abcdef"}, "other-instance"), ({"reason": " "}, "required")],
)
def test_a_yes_to_anything_else_is_none(program_of, dana, kim, hosts, changed, says):
    job = scenes.job(dana, "awaiting_approval")
    asked = scenes.approval(job)
    assert code(program_of(kim).post(f"/jobs/{job.pk}/approve", consent(job, asked, **changed))) == says
    assert not asked.decisions.exists()


def test_a_verb_with_if_match_acts_on_what_was_read_and_on_nothing_else(program_of, dana, hosts):
    job = scenes.job(dana, "planned")
    program = program_of(dana)
    tag = program.get(f"/jobs/{job.pk}").headers["ETag"]
    Job.objects.filter(pk=job.pk).update(status="preparing")
    assert code(program.post(f"/jobs/{job.pk}/cancel", If_Match=tag)) == "changed-meanwhile"
    job.refresh_from_db()
    assert job.cancel_requested_at is None
    tag = program.get(f"/jobs/{job.pk}").headers["ETag"]
    assert program.post(f"/jobs/{job.pk}/cancel", If_Match=tag).status_code == 200


def test_progress_is_told_once_and_then_that_nothing_has_changed(program_of, dana, hosts):
    job = scenes.job(dana, "preparing")
    program = program_of(dana)
    first = program.get(f"/jobs/{job.pk}/progress")
    assert first.json()["running"]["name"] == "convert"
    assert first.json()["running"]["bytes_done"] == int(scenes.SIZE * 0.624)
    tag = first.headers["ETag"]
    assert program.get(f"/jobs/{job.pk}/progress", If_None_Match=tag).status_code == 304
    job.runs.filter(result="running").update(bytes_done=scenes.SIZE)
    assert program.get(f"/jobs/{job.pk}/progress", If_None_Match=tag).status_code == 200


@pytest.mark.django_db(transaction=True)
def test_of_ten_that_send_the_same_key_at_once_one_makes_the_migration_and_all_are_told_of_it(transactional_db, person):
    scenes.hypervisors()
    letters, told = letters_of(person("dana", "operator"), "submit"), []
    ready = threading.Barrier(10, timeout=60)

    def send():
        ready.wait()
        try:
            told.append(Program(letters).post("/jobs", WISH, Idempotency_Key="night-7"))
        finally:
            connection.close()

    threads = [threading.Thread(target=send) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.status_code for each in told) == [200] * 9 + [201]
    assert {each.json()["number"] for each in told} == {Job.objects.get().pk}


NOW = timezone.now()
DONE = {
    "planned": ("start", {"start_requested_at": NOW}),
    "awaiting_approval": ("approve", {"cancel_requested_at": NOW}),
    "on_trial": ("confirm", {"confirmed_at": NOW}),
}


@pytest.mark.parametrize("status", DONE)
def test_it_wants_nothing_of_people_any_more_once_they_have_done_their_part(status, program_of, dana, hosts):
    job, program = scenes.job(dana, status), program_of(dana)
    if status == "awaiting_approval":
        scenes.approval(job)
    wanted, part = DONE[status]
    assert program.get(f"/jobs/{job.pk}/progress").json()["wants"] == wanted
    Job.objects.filter(pk=job.pk).update(**part)
    told = program.get(f"/jobs/{job.pk}/progress").json()
    assert (told["status"], told["wants"]) == (status, "")


@pytest.mark.parametrize(("status", "kind"), [("awaiting_approval", "swap"), ("on_trial", "rollback")])
def test_it_wants_an_approval_until_enough_people_gave_it(status, kind, program_of, dana, kim, hosts):
    job, program = scenes.job(dana, status), program_of(dana)
    asked = scenes.approval(job, kind)
    assert program.get(f"/jobs/{job.pk}/progress").json()["wants"] == "approve"
    scenes.decision(asked, kim)
    assert program.get(f"/jobs/{job.pk}/progress").json()["wants"] == ""


def test_a_halted_migration_wants_none_of_the_usual(program_of, dana, hosts):
    job = scenes.job(dana, "planned", halt_reason="A foreign volume is there.")
    assert program_of(dana).get(f"/jobs/{job.pk}/progress").json()["wants"] == ""


@pytest.mark.parametrize("verb", ["approve", "reject", "withdraw"])
def test_nobody_decides_about_a_migration_that_is_not_as_they_read_it(verb, program_of, dana, kim, hosts):
    job, program = scenes.job(dana, "awaiting_approval"), program_of(kim)
    asked = scenes.approval(job)
    if verb == "withdraw":
        scenes.decision(asked, kim)
    tag = program.get(f"/jobs/{job.pk}").headers["ETag"]
    Job.objects.filter(pk=job.pk).update(cancel_requested_at=NOW)
    sent = consent(job, asked) if verb == "approve" else {"reason": "Agreed."}
    before = Event.objects.count()
    assert code(program.post(f"/jobs/{job.pk}/{verb}", sent, If_Match=tag)) == "changed-meanwhile"
    assert Event.objects.count() == before
    tag = program.get(f"/jobs/{job.pk}").headers["ETag"]
    assert program.post(f"/jobs/{job.pk}/{verb}", sent, If_Match=tag).status_code == 200
