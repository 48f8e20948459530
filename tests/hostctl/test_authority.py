"""Seals: the right one admits its own verb of its own job, and no other does anything."""

import json
import time

import pytest

from hosts.remote.hostctl import authority, policy, request
from hosts.remote.hostctl.verbs import VERBS
from tests import policies
from tests.fakes import INSTANCE, INSTANCES

KEY, OTHER = "ab" * 32, "cd" * 32
JOB, ANOTHER = "3f1c9a52-7d40-4be1-9c55-2f6a0b8d1e77", "3f1c9a52-7d40-4be1-9c55-2f6a0b8d1e78"
STAGE = {"sha256": "5e" * 32, "inode": 4712, "file_size": 1 << 20}
ARGS = {
    "instance": INSTANCE,
    "disk": "disk.local",
    "instances": INSTANCES,
    "share_source": "filer:/vol/nova",
    "stage": {**STAGE, "mtime_ns": 5},
    "live": {"inode": 4711},
    "backup_inode": 4711,
    "live_inode": 4712,
}
SEALED = [verb for verb, rule in policy.RULES.items() if rule.sealed]
NOW = 1_800_000_000


def sealed(verb, key=KEY, job=JOB, expires=NOW + 60, **changed):
    return authority.make(key, job, verb, {**ARGS, "stage": STAGE, **changed}, "0" * 64, expires)


def code(seal, verb, keys=(KEY,), job=JOB, now=NOW, **changed):
    found = authority.objection(keys, seal, job, verb, {**ARGS, **changed}, now)
    return found.code if found else ""


def test_what_cannot_be_taken_back_needs_a_seal():
    assert set(SEALED) == {"instance_stop", "swap", "swap_back", "purge"}
    assert not policy.RULES["instance_start"].sealed, "a guest that is down must not wait for a key"


@pytest.mark.parametrize("verb", SEALED)
def test_the_right_seal_admits_under_each_key_of_the_policy(verb):
    assert code(sealed(verb), verb) == ""
    assert code(sealed(verb), verb, keys=(OTHER, KEY)) == ""
    assert code(sealed(verb), verb, now=NOW + 60 + authority.SKEW) == "", "clocks may differ by that much"


@pytest.mark.parametrize("verb", SEALED)
def test_every_other_seal_is_refused_with_a_code_of_its_own(verb):
    another = next(each for each in SEALED if each != verb)
    assert code({}, verb) == "no-seal"
    assert code(sealed(verb), verb, keys=()) == "no-seal-key"
    assert code(sealed(verb, OTHER), verb) == "seal-foreign"
    assert code(sealed(verb, job=ANOTHER), verb) == "seal-other-job"
    assert code(sealed(another), verb) == "seal-other-verb"
    assert code(sealed(verb), verb, now=NOW + 61 + authority.SKEW) == "seal-expired"


@pytest.mark.parametrize("verb", SEALED)
def test_every_bound_argument_is_compared(verb):
    for name in policy.RULES[verb].bound:
        other = {**STAGE, "sha256": "00" * 32} if name == "stage" else 5 if "inode" in name else "other"
        assert code(sealed(verb), verb, **{name: other}) == "seal-other-arguments", name
        assert code(sealed(verb, **{name: other}), verb) == "seal-other-arguments", name


@pytest.mark.parametrize("field", authority.FIELDS)
def test_nothing_of_a_seal_can_be_changed(field):
    changes = {
        "job": ANOTHER,
        "verb": "purge",
        "bound": {"instance": ANOTHER, "disk": "disk"},
        "digest": "1" * 64,
        "expires": NOW * 2,
    }
    assert code({**sealed("instance_stop"), field: changes[field]}, "instance_stop") == "seal-foreign"


def test_a_seal_that_binds_less_than_the_verb_demands_is_refused():
    """Made with the right key: by a volmig with an older table."""
    body = {"job": JOB, "verb": "swap", "bound": {"instance": INSTANCE}, "digest": "", "expires": NOW + 60}
    assert code(dict(body, mac=authority.sign(KEY, body)), "swap") == "seal-other-arguments"


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        [],
        {"mac": "00"},
        {**sealed("purge"), "more": 1},
        {**sealed("purge"), "mac": "AB" * 32},
        {**sealed("purge"), "mac": "ab" * 31},
        {**sealed("purge"), "expires": True},
        {**sealed("purge"), "expires": 1.5},
        {**sealed("purge"), "bound": []},
        {**sealed("purge"), "job": "x" * 500},
    ],
)
def test_what_is_no_seal_is_a_bad_request(wrong, desk):
    answer = desk.handle(json.dumps({"verb": "hello", "seal": wrong}).encode())
    assert answer["error"]["code"] == "bad-request"


# At the door, and in the unit


def stop(desk, job, seal, attempt=1):
    args = {"instance": INSTANCE, "disk": "disk.local", "instances": INSTANCES}
    asked = {"verb": "instance_stop", "job": job, "step": "stop", "fence": 1, "attempt": attempt}
    return desk.handle(json.dumps({**asked, "args": args, "seal": seal}).encode())


@pytest.fixture
def stopped(monkeypatch):
    """The jobs whose guest was shut down."""
    jobs = []
    verb = VERBS["instance_stop"]._replace(run=lambda work: jobs.append(work.job) or {"was": "running"})
    monkeypatch.setitem(VERBS, "instance_stop", verb)
    return jobs


def test_the_door_lets_a_seal_in_and_nothing_without_one(desk, job, stopped):
    refused = stop(desk, job, {})
    assert (refused["error"]["code"], refused["error"]["touched"], stopped) == ("no-seal", False, [])
    args = {"instance": INSTANCE, "disk": "disk.local"}
    assert stop(desk, job, policies.seal("dst", job, "instance_stop", args))["state"] == "done"
    assert stopped == [job]


def test_a_seal_that_expires_before_the_unit_starts_no_longer_admits(desk, job, stopped, monkeypatch):
    desk.units.run_now = False
    args = {"instance": INSTANCE, "disk": "disk.local"}
    assert stop(desk, job, policies.seal("dst", job, "instance_stop", args))["state"] == "running"
    late = time.time() + 7200
    monkeypatch.setattr(request.time, "time", lambda: late)
    desk.run_unit(job, "stop-do-1")
    assert desk.store(job).result("stop-do-1")["error"]["code"] == "seal-expired"
    assert stopped == []


def test_what_became_of_a_stop_is_answered_after_its_seal_expired(desk, job, stopped):
    args = {"instance": INSTANCE, "disk": "disk.local"}
    done = stop(desk, job, policies.seal("dst", job, "instance_stop", args))
    expired = policies.seal("dst", job, "instance_stop", args, -3600)
    assert stop(desk, job, expired) == done
    assert stop(desk, job, expired, 2)["error"]["code"] == "seal-expired"
    assert stopped == [job]
