"""Requests: hostile ones are refused, each step runs once, stale owners are kept out."""

import json
import os
import uuid
from pathlib import Path

import pytest

from hosts.remote.hostctl import OLDEST, PROTOCOL, request, source_hash, verbs
from hosts.remote.hostctl.act import Failed, Refused, syscall
from hosts.remote.hostctl.request import check_field

UUID = "aBcdef-0000-1111-2222-3333-4444-zzzzzz"


def send(desk, verb, args=None, **more):
    return desk.handle(json.dumps(dict({"verb": verb, "args": args or {}}, **more)).encode())


@pytest.fixture
def counted(monkeypatch):
    """A mutating verb that counts its runs, and does as the test says."""
    runs = []

    def run(work):
        runs.append(work.args)
        if "rate" in work.args:
            {1: lambda: None, 2: _refuse, 3: _touch_and_refuse, 4: _fail, 5: lambda work: 1 / 0}[work.args["rate"]](
                work
            )
        return {"free": len(runs)}

    monkeypatch.setitem(
        verbs.VERBS,
        "lv_create",
        verbs.VERBS["lv_create"]._replace(needs=(), run=run, acts=lambda args, job: (syscall("touch"),)),
    )
    return runs


def _refuse(work):
    raise Refused("no-space", "try", "full", "free some")


def _touch_and_refuse(work):
    work.do(syscall("touch"))
    raise Refused("volume-open", "try", "open", "close it")


def _fail(work):
    work.do(syscall("touch"))
    raise Failed("act-failed", "try", "broken", "mend it")


HOSTILE = [
    "-rf",
    "--",
    "a\nb",
    "a\0b",
    "..",
    ".",
    "../x",
    "a/../b",
    "/etc/passwd",
    "json:{}",
    "nbd:host:1",
    "a b",
    "a;b",
    "$(x)",
    "«x»",
    "é",
    "",
    "a" * 500,
    "a\n",
    "%s",
    "'",
    '"',
    5,
    None,
    [],
    {},
    True,
]


@pytest.mark.parametrize(
    "field",
    [
        "vg",
        "lv",
        "lv_uuid",
        "instance",
        "fs_uuid",
        "mountpoint",
        "export",
        "instances",
        "share_source",
        "disk",
        "sha256",
        "client",
        "address",
        "start",
        "size",
        "live",
        "stops",
        "step",
        "job",
    ],
)
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_values_are_refused_in_every_field(field, value):
    if (
        (field, value) in (("instances", "/etc/passwd"), ("size", 5))
        or (field == "start" and value == [])
        or (field == "live" and value == {})
    ):
        return
    with pytest.raises(Refused) as refused:
        check_field(field, value)
    assert refused.value.code == "bad-request"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vg", "vg_nova0"),
        ("lv", "3f8df945-7cbd-46e0-8ad1-d51013cf706b_disk.local"),
        ("lv_uuid", UUID),
        ("instances", "/var/lib/nova/instances"),
        ("share_source", "10.77.2.13:/vol/nova"),
        ("share_source", "[fd00::1]:/vol/nova"),
        ("disk", "disk.local"),
        ("disk", "disk.eph0"),
        ("client", "10.0.0.1"),
        ("client", "fd00::1"),
        ("start", ["nfs-server", "rpcbind.socket"]),
        ("size", 0),
    ],
)
def test_ordinary_values_are_accepted(field, value):
    check_field(field, value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"verb": NaN}',
        b"[" * 100000,
        b'{"a":' * 5000,
        b"\xff\xfe",
        b" " * (1 << 20) + b"{}",
        b'{"verb":"hello","extra":1}',
        b'{"verb":"no_such"}',
        b'{"verb":"hello","args":[]}',
        b'{"verb":"hello","fence":true}',
        b'{"verb":"hello","args":{"made":' + b'{"made":' * 30 + b"1" + b"}" * 32,
    ],
)
def test_garbage_is_refused_as_json_and_never_a_traceback(desk, data):
    answer = desk.handle(data)
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("refused", "bad-request", False)


def test_a_mount_point_of_another_job_is_refused(desk, job):
    args = {"mountpoint": "/srv/volmig/" + "0" * 32}
    assert send(desk, "fs_remove", args, job=job, step="relay_fs")["error"]["code"] == "bad-request"


def test_another_hash_is_refused(desk):
    assert send(desk, "status", job="", hash="0" * 16)["error"]["code"] == "hostctl-differs"
    assert send(desk, "hello", hash=source_hash())["state"] == "done"


def test_a_step_runs_once_and_its_result_is_repeated(desk, job, counted):
    answers = [send(desk, "lv_create", job=job, step="relay_lv", fence=1) for _ in range(3)]
    assert [answer["state"] for answer in answers] == ["done"] * 3
    assert answers[0] == answers[1] == answers[2]
    assert len(counted) == 1


def test_the_next_attempt_runs_again(desk, job, counted):
    send(desk, "lv_create", job=job, step="relay_lv")
    assert send(desk, "lv_create", job=job, step="relay_lv", attempt=2)["evidence"] == {"free": 2}


def test_the_same_attempt_with_other_arguments_is_refused(desk, job, counted):
    send(desk, "lv_create", job=job, step="relay_lv")
    assert send(desk, "lv_create", {"size": 5}, job=job, step="relay_lv")["error"]["code"] == "unknown-request"
    assert len(counted) == 1


def test_a_lower_fence_is_refused_and_an_equal_or_higher_one_is_not(desk, job, counted):
    send(desk, "lv_create", job=job, step="a", fence=7)
    assert send(desk, "lv_create", job=job, step="b", fence=6)["error"]["code"] == "stale-fence"
    assert send(desk, "lv_create", job=job, step="b", fence=7)["state"] == "done"
    assert send(desk, "lv_create", job=job, step="c", fence=8)["state"] == "done"
    assert send(desk, "status", job=job)["evidence"]["fence"] == 8
    assert len(counted) == 3


def test_a_fence_raised_before_the_unit_begins_stops_it(desk, job, counted):
    desk.units.run_now = False
    send(desk, "lv_create", job=job, step="a", fence=1)
    desk.store(job).raise_fence(2)
    desk.run_unit(job, "a-do-1")
    assert send(desk, "lv_create", job=job, step="a", fence=2)["error"]["code"] == "started-late"
    assert counted == []


def test_a_new_owner_shuts_out_the_earlier_one(desk, job, counted):
    send(desk, "lv_create", job=job, step="a", fence=7)
    assert send(desk, "fence", job=job, fence=8)["state"] == "done"
    assert send(desk, "lv_create", job=job, step="b", fence=7)["error"]["code"] == "stale-fence"
    assert send(desk, "fence", job=job, fence=7)["error"]["code"] == "stale-fence"
    assert len(counted) == 1


def test_a_host_that_has_never_heard_of_the_job_remembers_its_new_owner(desk, job, counted):
    assert send(desk, "fence", job=job, fence=8)["evidence"] == {"fence": 8, "running": []}
    assert send(desk, "lv_create", job=job, step="a", fence=7)["error"]["code"] == "stale-fence"
    assert counted == []


@pytest.fixture
def nothing_left(monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.transient_units.left", lambda work: [])


def test_a_late_owner_of_a_forgotten_job_is_refused_and_nothing_of_it_comes_up_again(desk, job, counted, nothing_left):
    send(desk, "lv_create", job=job, step="a", fence=7)
    assert send(desk, "forget", job=job, fence=8)["state"] == "done"
    assert send(desk, "lv_create", job=job, step="b", fence=7)["error"]["code"] == "stale-fence"
    assert send(desk, "fence", job=job, fence=7)["error"]["code"] == "stale-fence"
    assert (desk.store(job).exists(), len(counted)) == (False, 1)
    assert send(desk, "lv_create", job=job, step="c", fence=9)["state"] == "done"


def test_only_the_jobs_that_were_forgotten_last_are_remembered(desk, nothing_left, monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.store.TOMBSTONES", 2)
    jobs = [str(uuid.UUID(int=number)) for number in range(3)]
    for age, job in enumerate(reversed(jobs)):
        desk.store(job).open()
        assert send(desk, "forget", job=job, fence=4)["state"] == "done"
        os.utime(Path(desk.state) / "forgotten" / f"{job}.json", (1000 + age, 1000 + age))
    assert [desk.store(job).fence() for job in jobs] == [4, 4, 0]


def test_a_new_owner_hears_what_still_runs(desk, job, counted):
    desk.units.run_now = False
    send(desk, "lv_create", job=job, step="a", fence=7)
    said = send(desk, "fence", job=job, fence=8)
    assert (said["state"], said["evidence"]["running"]) == ("busy", ["a-do-1"])


def test_a_request_that_is_being_handled_makes_the_new_owner_wait(desk, job, counted, monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.request.LOCK_WITHIN", 0)
    kept = desk.store(job)
    kept.open()
    with kept.locked("door", 1):
        assert send(desk, "fence", job=job, fence=8)["state"] == "busy"
    assert kept.fence() == 0


def test_a_second_step_of_the_job_is_busy_while_one_runs(desk, job, counted):
    desk.units.run_now = False
    assert send(desk, "lv_create", job=job, step="a")["state"] == "running"
    assert send(desk, "lv_create", job=job, step="b")["state"] == "busy"
    assert len(desk.units.started) == 1


def test_a_unit_that_ended_without_result_is_lost_for_good(desk, job, counted):
    desk.units.run_now = False
    send(desk, "lv_create", job=job, step="a")
    desk.units.live.clear()
    assert send(desk, "lv_create", job=job, step="a")["state"] == "lost"
    desk.run_unit(job, "a-do-1")
    assert counted == []
    assert send(desk, "lv_create", job=job, step="a")["state"] == "lost"


def test_undo_stops_the_running_unit_first(desk, job, counted):
    desk.units.run_now = False
    unit = send(desk, "lv_create", job=job, step="a")["unit"]
    desk.units.run_now = True
    assert send(desk, "lv_create", job=job, step="a", direction="undo", stops=unit)["state"] == "done"
    assert send(desk, "lv_create", job=job, step="a")["state"] == "lost"


def test_a_unit_of_another_job_is_never_stopped(desk, job, counted):
    other = "volmig-%s-a-do-1" % ("0" * 32)
    desk.units.live.add(other)
    assert send(desk, "lv_create", job=job, step="a", stops=other)["error"]["code"] == "bad-request"
    assert other in desk.units.live


def test_a_unit_that_systemd_does_not_start_is_refused_untouched(desk, job, counted):
    desk.units.trouble = "Failed to start"
    answer = send(desk, "lv_create", job=job, step="a")
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("refused", "cannot-start", False)


def test_a_unit_that_ran_counts_although_systemd_says_that_it_did_not_start(desk, job, counted, monkeypatch):
    start = desk.units.start
    monkeypatch.setattr(desk.units, "start", lambda *words: start(*words) or "Failed to start")
    assert send(desk, "lv_create", job=job, step="a")["state"] == "done"
    assert len(counted) == 1


def test_a_unit_that_is_at_work_although_systemd_says_that_it_did_not_start_is_under_way(
    desk, job, counted, monkeypatch
):
    desk.units.run_now, start, kept = False, desk.units.start, desk.store(job)
    monkeypatch.setattr(desk.units, "start", lambda *words: start(*words) or "Failed to start")
    kept.open()
    with kept.locked("lock", 0):
        assert send(desk, "lv_create", job=job, step="a")["state"] == "running"
    desk.run_unit(job, "a-do-1")
    assert send(desk, "lv_create", job=job, step="a")["state"] == "done"


def test_a_job_with_work_under_way_is_not_forgotten(desk, job, counted):
    desk.units.run_now = False
    assert send(desk, "lv_create", job=job, step="a")["state"] == "running"
    answer = send(desk, "forget", job=job)
    assert (answer["state"], answer["error"]["code"]) == ("refused", "still-running")
    assert desk.store(job).exists()


def test_a_unit_that_was_called_off_never_acts(desk, job, counted):
    desk.units.trouble = "no response within 30 s"
    assert send(desk, "lv_create", job=job, step="a")["error"]["code"] == "cannot-start"
    desk.run_unit(job, "a-do-1")  # systemd comes to it after all
    assert counted == []


@pytest.mark.parametrize(
    ("how", "state", "touched"), [(2, "refused", False), (3, "failed", True), (4, "failed", True), (5, "failed", None)]
)
def test_refusals_and_failures_say_whether_anything_was_touched(desk, job, counted, how, state, touched):
    answer = send(desk, "lv_create", {"rate": how}, job=job, step="a")
    assert (answer["state"], answer["error"]["touched"]) == (state, touched)
    assert all(answer["error"][part] for part in ("code", "tried", "found", "next"))


def test_a_held_lock_keeps_a_unit_from_acting(desk, job, counted, monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.request.LOCK_WITHIN", 0.1)
    kept = desk.store(job)
    kept.open()
    with kept.locked("lock", 0):
        answer = send(desk, "lv_create", job=job, step="a")
    assert answer["error"]["code"] == "locked"
    assert counted == []


def test_a_verb_that_changes_something_needs_job_and_step(desk, counted):
    assert send(desk, "lv_create")["error"]["code"] == "bad-request"
    assert counted == []


def test_what_a_verb_cannot_do_without_has_to_come_with_it(desk, job, counted):
    answer = send(desk, "nfs_mount", {"address": "10.0.0.2"}, job=job, step="source_mount")
    assert (answer["state"], answer["error"]["code"]) == ("refused", "bad-request")
    assert "needs" in answer["error"]["found"]


@pytest.mark.parametrize("verb", ["fence", "status"])
def test_what_is_asked_of_a_job_names_it(desk, verb):
    assert send(desk, verb)["error"]["code"] == "bad-request"


def test_a_fault_of_hostctl_itself_is_an_answer_too(desk, job, monkeypatch):
    monkeypatch.setattr(desk, "status", lambda job: 1 / 0)
    answer = send(desk, "status", job=job)
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("failed", "bug", None)
    assert "division by zero" in answer["error"]["found"]


def test_nobody_gets_past_the_door_that_another_call_holds(desk, job, counted, monkeypatch):
    monkeypatch.setattr(request, "LOCK_WITHIN", 0.1)
    kept = desk.store(job)
    kept.open()
    with kept.locked("door", 1):
        assert send(desk, "lv_create", job=job, step="relay_lv")["state"] == "busy"
        assert send(desk, "forget", job=job)["state"] == "busy"
    assert counted == []
    assert kept.exists()


def test_a_unit_that_was_never_asked_for_is_not_run(desk, job):
    desk.store(job).open()
    with pytest.raises(Refused) as refused:
        desk.run_unit(job, "relay_lv-do-1")
    assert refused.value.code == "unknown-request"


def test_to_stop_what_never_began_is_no_harm(desk, job, counted):
    unit = f"volmig-{job.replace('-', '')}-convert-do-1"
    answer = send(desk, "lv_create", job=job, step="relay_lv", direction="undo", stops=unit)
    assert (answer["state"], len(counted)) == ("done", 1)


def test_what_is_not_a_request_field_has_no_allow_list():
    assert not request.is_field("colour", "red")
    assert not request.is_field("untouched", 1)


# Versions


def test_every_answer_says_which_protocol_it_speaks_and_hello_which_it_serves(desk):
    hello = send(desk, "hello")
    assert hello["protocol"] == hello["evidence"]["protocol"] == PROTOCOL
    assert (hello["evidence"]["oldest_protocol"], hello["evidence"]["versions"]) == (OLDEST, [source_hash()])
    assert send(desk, "no_such_verb")["protocol"] == PROTOCOL


def test_who_asks_for_another_version_is_told_which_are_here(desk, tmp_path, monkeypatch):
    for name in ("hostctl-0123456789abcdef", "hostctl-0123", "hostctl-0123456789abcdef.new", "other"):
        (tmp_path / name).touch()
    monkeypatch.setattr("sys.argv", [str(tmp_path / "hostctl")])
    refused = send(desk, "hello", hash="f" * 16)
    assert (refused["state"], refused["error"]["code"]) == ("refused", "hostctl-differs")
    assert refused["evidence"]["versions"] == sorted(["0123456789abcdef", source_hash()])


def test_what_an_earlier_version_stored_is_answered_in_the_name_of_the_one_that_answers(desk, job):
    kept = desk.store(job)
    kept.open()
    asked = {
        "job": job,
        "step": "convert",
        "direction": "undo",
        "args": {"mountpoint": "/mnt/volmig/" + job.replace("-", "")},
    }
    first = send(desk, "discard_copy", **asked)
    key = "convert-undo-1"
    kept.write(key + ".result", dict(first, hash="f" * 16, protocol=1))
    again = send(desk, "discard_copy", **asked)
    assert (again["state"], again["hash"], again["protocol"]) == (first["state"], source_hash(), PROTOCOL)
