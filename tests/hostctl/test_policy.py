"""The policy of a hypervisor: what it must say, who may have written it, and what it refuses before anything runs."""

import json
import os

import pytest

from hosts.remote.hostctl import policy, request, store, verbs
from tests import policies
from tests.fakes import INSTANCES, SHARE

ALL = tuple(policy.ROLES)
INSTANCE = "0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa"


def reading(**changes):
    return policies.reading("dst", *ALL, **changes)


def refused(verb, args, rules=None):
    found = policy.objections(rules or reading(), verb, args, not verbs.VERBS[verb].mutates)
    return [each.code for each in found]


# What the tables have to cover


def test_every_verb_has_a_rule_and_no_rule_is_for_none():
    assert set(policy.RULES) == set(verbs.VERBS)
    assert all(set(rule.roles) <= set(policy.ROLES) for rule in policy.RULES.values())


def test_every_field_of_a_request_is_limited_or_said_to_be_free():
    """A new field that names a place, or a peer, cannot be forgotten here."""
    known = {*request.PATTERNS, *request.ADDRESSES, *request.UNITS, *request.NESTED, "targets", "untouched", "seal"}
    assert known == {*policy.LIMITED, *policy.FREE}
    assert not set(policy.LIMITED) & policy.FREE


def test_names_in_a_policy_are_what_requests_may_name():
    assert policy._PATTERNS["volume_groups"] == request.LVM_NAME
    assert policy._PATTERNS["directories"] == request.PATH == policy.ABSOLUTE
    assert policy._PATTERNS["shares"] == request.PATTERNS["share_source"]


def test_what_a_seal_binds_is_what_the_verb_needs():
    for verb, rule in policy.RULES.items():
        assert rule.sealed == bool(rule.bound)
        assert set(rule.bound) <= set(verbs.VERBS[verb].needs), verb


# What it refuses


@pytest.mark.parametrize("place", ["", "made", "live", "stage", "recorded"])
@pytest.mark.parametrize(
    ("name", "inside", "outside", "code"),
    [
        ("vg", policies.GROUP, "vg_prod", "policy-volume-group"),
        ("share_source", SHARE, "203.0.113.9:/vol/nova", "policy-share"),
        ("instances", INSTANCES, "/var/lib/glance", "policy-directory"),
        ("instances", INSTANCES + "/sub", INSTANCES + "-other", "policy-directory"),
        ("backup_path", INSTANCES + "/.volmig/x/disk.old", "/etc/shadow", "policy-directory"),
        ("address", "10.20.0.2", "203.0.113.9", "policy-peer"),
        ("client", "10.20.0.2", "10.21.0.2", "policy-peer"),
        ("relay_address", "10.20.0.2", "fd00::1", "policy-peer"),
        ("address", "::ffff:10.20.0.2", "::ffff:203.0.113.9", "policy-peer"),
    ],
)
def test_places_and_peers_are_compared_however_deep_they_lie(place, name, inside, outside, code):
    def deep(value):
        return {place: {name: value}} if place else {name: value}

    assert refused("forget", deep(inside)) == []
    assert refused("forget", deep(outside)) == [code]


def test_each_address_of_a_list_is_compared():
    targets = [{"address": "10.20.0.2", "port": 2049}, {"address": "169.254.169.254", "port": 80}]
    assert refused("reach", {"targets": targets}) == ["policy-peer"]


@pytest.mark.parametrize("verb", [verb for verb, rule in policy.RULES.items() if rule.roles])
def test_a_role_that_the_host_does_not_have_is_refused(verb):
    others = [role for role in policy.ROLES if role not in policy.RULES[verb].roles]
    assert "policy-role" in refused(verb, {}, reading(roles=others))
    assert "policy-role" not in refused(verb, {}, reading(roles=list(policy.RULES[verb].roles)))


@pytest.mark.parametrize("reads", [True, False], ids=["reads", "changes"])
def test_a_verb_without_a_rule_is_refused_with_and_without_a_policy(reads):
    for rules in (reading(), policy.Reading(None, policy.missing())):
        [found] = policy.objections(rules, "hello-again", {}, reads)
        assert (found.code, "hello-again" in found.found, bool(found.next_step)) == ("bad-request", True, True)


def test_guests_that_may_not_be_stopped_are_not():
    assert refused("instance_stop", {}, reading(stop_guests=False)) == ["policy-stop"]
    assert refused("instance_start", {}, reading(stop_guests=False)) == []


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_without_a_policy_questions_are_answered_and_nothing_else(verb):
    none = policy.Reading(None, policy.missing())
    assert refused(verb, {"vg": "anything"}, none) == (["no-policy"] if verbs.VERBS[verb].mutates else [])


def test_an_objection_says_what_is_allowed_and_what_to_do():
    [found] = policy.objections(reading(), "lv_create", {"vg": "vg_prod"}, False)
    assert found.found == "volume group vg_prod is not allowed here (allowed: vg_nova0)"
    assert policy.PATH in found.next_step
    assert "resume" in found.next_step


# At the door, and in the unit


def make(desk, job, **more):
    args = {"vg": policies.GROUP, "lv": "volmig_x", "size": 4 << 20}
    asked = {"verb": "lv_create", "job": job, "step": "relay_lv", "fence": 1, "args": args | more}
    return desk.handle(json.dumps(asked).encode())


def test_what_is_refused_leaves_no_trace_and_runs_no_tool(desk, job, monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.commands._execute", lambda *_, **__: pytest.fail("a tool ran"))
    answer = make(desk, job, vg="vg_prod")
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == (
        "refused",
        "policy-volume-group",
        False,
    )
    assert not store.Store(job, desk.state, desk.run).exists()
    assert desk.units.started == []


def test_a_policy_that_changed_between_the_door_and_the_unit_still_refuses(desk, job):
    desk.units.run_now = False
    assert make(desk, job)["state"] == "running"
    desk.rules = lambda: reading(volume_groups=[])
    desk.run_unit(job, "relay_lv-do-1")
    result = store.Store(job, desk.state, desk.run).result("relay_lv-do-1")
    assert (result["state"], result["error"]["code"], result["error"]["touched"]) == (
        "refused",
        "policy-volume-group",
        False,
    )


def test_what_was_begun_is_answered_whatever_the_policy_says_by_now(desk, job, monkeypatch):
    """It may have been carried out and its answer lost: to call it untouched would be a lie."""
    monkeypatch.setitem(verbs.VERBS, "lv_create", verbs.VERBS["lv_create"]._replace(run=lambda work: {"lv_uuid": "x"}))
    first = make(desk, job)
    assert first["state"] == "done"
    desk.rules = lambda: policy.Reading(None, policy.missing())
    assert make(desk, job) == first
    assert make(desk, job, size=8 << 20)["error"]["code"] == "no-policy", "other arguments are another request"


def test_a_host_says_what_its_policy_is_but_not_the_keys(desk):
    answer = desk.handle(b'{"verb": "policy"}')
    told = json.dumps(answer["evidence"])
    key = policies.document("dst")["seal_keys"][0]
    assert key not in told
    assert answer["evidence"]["seal_keys"] == [policy.fingerprint(key)]
    assert policy.reported(answer["evidence"]).policy == desk.rules().policy._replace(seal_keys=())


# The file


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where a policy lies, as if everything above the test's directory were root's alone."""
    path = tmp_path / "etc" / "volmig" / "hostctl.json"
    path.parent.mkdir(parents=True, mode=0o755)
    path.parent.parent.chmod(0o755)
    path.write_bytes(policies.content("dst"))
    path.chmod(0o600)
    lstat = os.lstat
    monkeypatch.setattr(
        policy.os, "lstat", lambda path: lstat(path) if str(path).startswith(str(tmp_path) + "/") else lstat("/")
    )
    return path


def fault(path):
    found = policy.read(str(path))
    assert found.policy is None
    return found.fault.code


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that are root's")


@needs_root
def test_a_file_that_only_root_can_have_written_is_in_force(file):
    assert policy.read(str(file)).policy.roles == ("destination",)


@needs_root
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606, 0o620, 0o602, 0o604])
def test_a_file_that_others_can_read_or_write_is_not(file, mode):
    file.chmod(mode)
    assert fault(file) == "policy-unsafe"


@needs_root
def test_a_file_of_somebody_else_is_not(file):
    os.chown(file, 1000, 0)
    assert fault(file) == "policy-unsafe"


@needs_root
@pytest.mark.parametrize("up", [0, 1])
def test_a_directory_above_that_others_can_change_is_not(file, up):
    file.parents[up].chmod(0o775)
    assert fault(file) == "policy-unsafe"
    file.parents[up].chmod(0o755)
    os.chown(file.parents[up], 1000, 0)
    assert fault(file) == "policy-unsafe"


@needs_root
def test_links_and_pipes_are_not_followed_and_do_not_hang(file):
    other = file.with_name("other")
    file.rename(other)
    file.symlink_to(other)
    assert fault(file) == "policy-unsafe"
    file.unlink()
    os.link(other, file)
    assert fault(file) == "policy-unsafe", "a second name"
    file.unlink()
    os.mkfifo(file, 0o600)
    assert fault(file) == "policy-unsafe"
    file.unlink()
    assert fault(file) == "no-policy"


WRONG = {
    "no JSON": b"{",
    "a list": b"[]",
    "nothing": b"{}",
    "too large": policies.content("dst") + b" " * policy.SIZE_CAP,
    "too deep": b"[" * 5000,
    "not UTF-8": b"\xff",
    "a field twice": policies.content("dst")[:-1] + b', "roles": []}',
    "an unknown field": policies.content("dst", more=1),
    "a field of another kind": policies.content("dst", stop_guests="yes"),
    "no list": policies.content("dst", shares=SHARE),
    "another role": policies.content("dst", roles=["king"]),
    "a path upwards": policies.content("dst", directories=["/var/lib/../../etc"]),
    "the whole disk": policies.content("dst", directories=["/"]),
    "a short key": policies.content("dst", seal_keys=["ab" * 31]),
    "three keys": policies.content("dst", seal_keys=["ab" * 32] * 3),
    "host bits": policies.content("dst", networks=["10.20.0.1/24"]),
    "no network": policies.content("dst", networks=["10.20.0.0/240"]),
    "a number": policies.content("dst", volume_groups=[5]),
    "an option": policies.content("dst", volume_groups=["-rf"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_exactly_a_policy_is_none(wrong):
    found = policy.understood(WRONG[wrong])
    assert (found.policy, found.fault.code) == (None, "policy-invalid")


def test_a_key_that_is_wrong_is_never_quoted():
    assert "abab" not in policy.understood(policies.content("dst", seal_keys=["ab" * 31])).fault.found
