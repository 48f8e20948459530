"""Facts travel as JSON, statuses move only along the table, and consent binds what was shown."""

import json
from dataclasses import replace

import pytest

from jobs.engine import approval_binding, states
from jobs.engine.evidence import Evidence
from jobs.engine.host_facts import Facts, Stage
from jobs.engine.plan import make
from jobs.engine.routes import route_of

from .sound import FACTS, MIGRATION, facts

ROUTE = route_of("relay-nfs")
EVIDENCE = Evidence({"stage_verify": {"sha256": "ab" * 32, "inode": 4712, "file_size": 1000, "mtime_ns": 1}})


def bound(seen=FACTS):
    return approval_binding.swap(MIGRATION, seen, make(MIGRATION, FACTS), EVIDENCE, "0123456789abcdef")


def test_facts_survive_the_database():
    assert Facts.from_json(json.loads(json.dumps(FACTS.to_json()))) == FACTS


def test_a_newer_hostctl_may_say_more():
    raw = FACTS.to_json()
    raw["source"]["volume"]["colour"] = "blue"
    assert Facts.from_json(raw) == FACTS


def test_every_way_leads_to_a_status_of_the_table():
    assert {target for ways in states.TABLE.values() for target in ways.values()} <= set(states.STATUSES)
    assert states.next("checking", "passed") == "planned"
    with pytest.raises(states.NotForeseen):
        states.next("done", "started")


def test_the_digest_does_not_depend_on_order():
    assert approval_binding.digest({"a": 1, "b": 2}) == approval_binding.digest({"b": 2, "a": 1})
    assert approval_binding.digest({"a": 1}) != approval_binding.digest({"a": 2})


@pytest.mark.parametrize(
    ("says", "changed"),
    [
        ("source lv_uuid", {"volume__uuid": "zzzzzz"}),
        ("source size", {"volume__size": 1}),
        ("source writes", {"volume__writes": 41}),
        ("source sectors_written", {"volume__sectors_written": 321}),
        ("live path", {"disk__path": "/elsewhere"}),
        ("live inode", {"disk__inode": 4713}),
        ("live format", {"disk__format": "raw"}),
        ("live virtual_size", {"disk__virtual_size": 1}),
        ("live backing 1", {"disk__backing": ("/base",)}),
        ("instance is", {"domain__state": "paused"}),
        ("source lv_uuid", {"source__volume": None}),
        ("live path", {"destination__disk": None}),
        ("instance is", {"destination__domain": None}),
    ],
)
def test_a_fact_that_changed_is_named(says, changed):
    shown, seen = bound(), bound(facts(**changed))
    assert approval_binding.digest(shown) != approval_binding.digest(seen)
    assert any(line.startswith(says) for line in approval_binding.difference(shown, seen))


@pytest.mark.parametrize("changed", [{"disk__mtime_ns": 99}, {"disk__file_size": 99}, {"domain__state": "shut off"}])
def test_what_a_running_instance_changes_is_not_bound(changed):
    assert approval_binding.difference(bound(), bound(facts(**changed))) == []


@pytest.mark.parametrize(
    ("says", "changed"),
    [
        ([], {}),
        (["stage inode: was 4712, is absent"], {"destination__stage": None}),
        (["stage inode: was 4712, is 5"], {"destination__stage": Stage(5, 1000, 1)}),
        (["stage file_size: was 1000, is 999"], {"destination__stage": Stage(4712, 999, 1)}),
        (["stage mtime_ns: was 1, is 2"], {"destination__stage": Stage(4712, 1000, 2)}),
        (["source writes: was 40, is 41"], {"volume__writes": 41}),
        (["source sectors_written: was 320, is 0"], {"volume__sectors_written": 0}),
    ],
)
def test_a_copy_that_is_not_as_it_was_verified_is_stale(says, changed):
    evidence = Evidence({**EVIDENCE, "source_fence": {"writes": 40, "sectors_written": 320}})
    seen = facts(**{"destination__stage": Stage(4712, 1000, 1), **changed})
    assert approval_binding.stale(ROUTE, seen, evidence)[:1] == says
    assert approval_binding.foreign_stage(ROUTE, seen, evidence) == ("is 5" in str(says))


def test_commands_are_bound():
    other = replace(MIGRATION, disk="disk.eph0")
    shown, seen = bound(), approval_binding.swap(other, FACTS, make(other, FACTS), EVIDENCE, "0123456789abcdef")
    assert approval_binding.digest(shown) != approval_binding.digest(seen)
