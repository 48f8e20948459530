"""What programs read and do besides migrations: hypervisors, instances, leftovers, the record; and how lists go on."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts.models import Cloud, Hypervisor
from hosts.remote.host import fingerprint
from jobs.models import Job, Removal
from jobs.web.evidence import archive
from tests import factories
from tests.api.conftest import Program, code
from tests.pages import scenes
from volmig.record.models import Event

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoK"


@pytest.fixture
def ada(person):
    return person("ada", "administrator")


@pytest.fixture
def queued():
    """The calls that wait for a worker."""
    from volmig.models import QueuedTask

    return lambda: [(each.name, each.number) for each in QueuedTask.objects.waiting().order_by("pk")]


def test_a_hypervisor_is_registered_and_its_key_pinned_once_it_was_compared(program_of, ada, hosts, queued):
    program = program_of(ada)
    made = program.post("/hypervisors", {"name": "cmp-lvm-09", "address": "192.0.2.9", "bastion": "jump-02"})
    host = Hypervisor.objects.get(name="cmp-lvm-09")
    assert (made.status_code, made.json()["state"], made.json()["id"]) == (201, "registered", host.pk)
    assert (host.bastion.name, host.team.name) == ("jump-02", "everybody")
    assert ("hosts.tasks.offer_key", host.pk) in queued()
    host.put(offered_key=KEY)  # as a worker does
    shown = program.get(f"/hypervisors/{host.pk}").json()["offered_fingerprint"]
    assert shown == fingerprint(KEY)
    after = program.post(f"/hypervisors/{host.pk}/pin", {"fingerprint": shown})
    host.refresh_from_db()
    assert (after.json()["state"], host.host_key, host.pinned_by) == ("usable", KEY, ada)
    assert ("hosts.tasks.refresh", host.pk) in queued()
    assert [each.action for each in Event.objects.filter(object="cmp-lvm-09")] == [
        "hypervisor.pin",
        "hypervisor.register",
    ]


def test_another_fingerprint_pins_nothing(program_of, ada, hosts):
    host = hosts["cmp-lvm-08"]
    host.put(offered_key=KEY)
    sent = {"fingerprint": fingerprint(KEY)[:-1] + "x"}
    assert program_of(ada).post(f"/hypervisors/{host.pk}/pin", sent).status_code == 422
    host.refresh_from_db()
    assert host.quarantined_at


def test_a_registration_is_changed_only_by_whoever_read_it(program_of, ada, hosts, queued):
    program, host = program_of(ada), hosts["jump-02"]
    path = f"/hypervisors/{host.pk}/registration"
    read = program.get(path)
    told = {**read.json(), "address": "192.0.2.200", "limit_mib": 100}
    assert code(program.ask("PUT", path, told)) == "no-if-match"
    tag = read.headers["ETag"]
    assert program.ask("PUT", path, told, If_Match=tag).json() == told
    host.refresh_from_db()
    assert (host.address, host.rate_limit) == ("192.0.2.200", 100 << 20)
    assert ("hosts.tasks.refresh", host.pk) in queued()
    assert code(program.ask("PUT", path, {**told, "address": "192.0.2.201"}, If_Match=tag)) == "changed-meanwhile"
    host.refresh_from_db()
    assert host.address == "192.0.2.200"


@pytest.mark.django_db(transaction=True)
def test_of_many_who_read_the_same_registration_one_changes_it(program_of, ada, hosts):
    program, path = program_of(ada), f"/hypervisors/{hosts['jump-02'].pk}/registration"
    read = program.get(path)

    def change(number):
        told = {**read.json(), "address": f"192.0.2.{number}"}
        try:
            return number, Program(program.letters).ask("PUT", path, told, If_Match=read.headers["ETag"]).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(change, range(100, 108)))
    assert Counter(status for _, status in answers) == {200: 1, 412: 7}
    [winner] = [number for number, status in answers if status == 200]
    assert Hypervisor.objects.get(name="jump-02").address == f"192.0.2.{winner}"
    assert Event.objects.filter(action="hypervisor.change").count() == 1


def test_a_hypervisor_is_retired_by_its_name(program_of, ada, hosts):
    host = hosts["cmp-lvm-08"]
    assert program_of(ada).post(f"/hypervisors/{host.pk}/retire", {"name": "cmp-lvm-08"}).json()["state"] == "retired"
    host.refresh_from_db()
    assert host.retired_at


def test_a_new_look_and_a_new_key_are_asked_of_the_workers(program_of, ada, hosts, queued):
    program, pk = program_of(ada), hosts["jump-02"].pk
    assert program.post(f"/hypervisors/{pk}/refresh").status_code == 202
    assert program.post(f"/hypervisors/{pk}/offer").status_code == 202
    assert queued()[-2:] == [("hosts.tasks.refresh", pk), ("hosts.tasks.offer_key", pk)]


def test_instances_are_told_with_their_disks_once_each(program_of, dana, hosts):
    cloud = scenes.nova(hosts)
    cloud.servers.create(
        uuid=scenes.NEW, name="db-new", host="cmp-nfs-03", words=f"db-new {scenes.NEW}", seen_at=cloud.seen_at
    )
    found = program_of(dana).get("/servers?q=db-new").json()["items"]
    assert [(each["id"], each["cloud"], each["hypervisor"]) for each in found] == [(scenes.NEW, "eu-1", "cmp-nfs-03")]
    assert [disk["name"] for disk in found[0]["disks"]] == ["disk.local"]
    assert [each["name"] for each in program_of(dana).get("/servers?q=queue-1").json()["items"]] == ["queue-1"]


def test_the_secret_of_a_cloud_is_told_to_nobody(program_of, ada, hosts):
    scenes.nova(hosts)
    answer = program_of(ada).get("/clouds")
    assert answer.json()["items"][0]["name"] == "eu-1"
    assert "sealed" not in answer.content.decode()


def test_a_leftover_is_removed_by_what_the_list_told_of_it(program_of, dana, hosts):
    scenes.leftovers(dana)
    Removal.objects.all().delete()
    program = program_of(dana)
    left = next(each for each in program.get("/leftovers").json()["items"] if each["removable"])
    about = {name: left[name] for name in ("kind", "name", "job", "identity")}
    answer = program.post(f"/hypervisors/{left['hypervisor_id']}/leftovers/remove", about)
    assert answer.status_code == 202
    asked = Removal.objects.get()
    assert (asked.kind, asked.asked_by, asked.job_id) == (left["kind"], dana, left["number"])


def test_what_is_in_use_is_told_only_when_asked_for(program_of, dana, hosts):
    scenes.leftovers(dana)
    program = program_of(dana)
    few, all_of_them = (program.get(path).json()["items"] for path in ("/leftovers", "/leftovers?all=true"))
    assert "needed" not in {each["verdict"] for each in few}
    assert "needed" in {each["verdict"] for each in all_of_them}


def test_kept_disks_are_told_with_what_is_known_of_them(program_of, dana, hosts):
    scenes.kept(scenes.job(dana, "done"), days=-1, found="ok")
    scenes.kept(scenes.job(dana, "on_trial"))
    program = program_of(dana)
    due = program.get("/backups?due=true").json()["items"]
    assert [(each["is_due"], each["rehearsal"], each["size"]) for each in due] == [(True, "ok", 480 << 30)]
    assert len(program.get("/backups").json()["items"]) == 2


def test_evidence_is_the_pages_archive_and_taking_it_is_recorded(program_of, dana, hosts):
    job = scenes.job(dana, "done")
    answer = program_of(dana).get(f"/jobs/{job.pk}/evidence")
    assert answer.content == archive(Job.objects.with_names().get(pk=job.pk))
    assert Event.objects.filter(action="evidence.export", actor=dana).count() == 1


def test_a_list_goes_on_where_it_ended_whatever_is_added_meanwhile(program_of, dana, hosts):
    first = [scenes.job(dana, "undone").pk for _ in range(5)]
    program = program_of(dana)
    page, seen = program.get("/jobs?limit=2").json(), []
    while page:
        seen += [each["number"] for each in page["items"]]
        scenes.job(dana, "undone")
        following = page["next"]
        page = program.get(following.removeprefix("/api/v1")).json() if following else None
    assert seen == first[::-1]


def test_migrations_are_found_as_in_the_history(program_of, dana, hosts):
    done = scenes.job(dana, "done", instance_name="orders-db")
    scenes.job(dana, "undone", instance_name="queue")
    program = program_of(dana)
    for asked in ("q=orders", "status=done", "host=cmp-lvm-07&q=orders", "person=dana&status=done"):
        assert [each["number"] for each in program.get(f"/jobs?{asked}").json()["items"]] == [done.pk], asked
    assert code(program.get("/jobs?host=nowhere")) == "invalid-choice"


def test_the_record_is_read_by_those_who_may_audit(program_of, ada, dana, hosts):
    Event.append("job.submit", actor=dana, job=7, object="Migration 7")
    assert [each["job"] for each in program_of(ada).get("/events?who=dana").json()["items"]] == [7]
    assert code(program_of(dana).get("/events")) == "no-role"


# How it is said


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nonsense", 404, "not-found"),
        ("GET", "/jobs/999", 404, "not-found"),
        ("PUT", "/jobs/999", 405, "no-such-method"),
        ("GET", "/jobs/0", 422, "greater-than-equal"),
        ("GET", "/jobs?limit=1000", 422, "less-than-equal"),
    ],
)
def test_what_is_not_there_is_a_problem_too(method, path, status, says, program_of, dana):
    answer = program_of(dana).ask(method, path)
    assert (answer.status_code, code(answer), answer.headers["Cache-Control"]) == (status, says, "no-store")


@pytest.mark.parametrize("body", ["{", json.dumps({"reason": "x" * 300_000})], ids=["no JSON", "too long"])
def test_a_body_that_is_none_is_refused(body, program_of, dana, hosts):
    program = program_of(dana)
    headers = {"Authorization": f"Bearer {program.letters}"}
    answer = program.client.post("/api/v1/jobs", body, content_type="application/json", headers=headers)
    assert (answer.status_code, code(answer)) == (400, "not-understood")


def test_a_misspelt_word_is_refused_and_named(program_of, dana, wish):
    answer = program_of(dana).post("/jobs", {**wish, "tikcet": "OPS-1"})
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [("tikcet", "extra-forbidden")]
    assert not Job.objects.exists()


def test_a_fault_of_volmig_is_told_without_its_inside(program_of, dana, hosts, monkeypatch):
    def fall(*_):
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr("hosts.api.schemas.Hypervisor.of", fall)
    answer = program_of(dana).get("/hypervisors")
    assert (answer.status_code, code(answer), "swordfish" in answer.content.decode()) == (500, "fault", False)


def more_of_everything(dana, number):
    for each in range(4):
        name, instance = f"cmp-more-{number}{each}", f"{number:08}-0000-0000-0000-{each:012}"
        host = factories.a_hypervisor(name, f"10.9{number}.{each}.1", seen_at=timezone.now())
        factories.a_volume(factories.a_volume_group(host), f"{instance}_disk.local", uuid=f"lv-{name}")
        factories.mounts(host, f"filer:/export/{name}")
        Cloud.objects.create(name=name)
        factories.an_instance(host, instance)
        made = scenes.job(dana, "done")
        scenes.kept(made)
        Event.append("job.submit", actor=dana, job=made.pk)


LISTS = ["hypervisors", "volumes", "shares", "clouds", "servers", "jobs", "backups", "events"]


@pytest.mark.parametrize("path", LISTS)
def test_a_list_asks_the_database_the_same_number_of_times_whatever_it_lists(program_of, ada, dana, hosts, path):
    ada.groups.add(*Group.objects.all())
    program, counts, lengths = program_of(ada), [], []
    for number in range(2):
        more_of_everything(dana, number)
        program.get(f"/{path}")
        with CaptureQueriesContext(connection) as asked:
            lengths.append(len(program.get(f"/{path}").json()["items"]))
        counts.append(len(asked))
    assert lengths[0] < lengths[1]
    assert counts[0] == counts[1] < 20
