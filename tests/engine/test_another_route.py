"""Another transport and another endpoint are one class each and one line in the registry: here they are thrown away.

The transport needs no relay: the source puts the copy onto the share. The endpoint is a tape.
"""

import json
from dataclasses import dataclass, replace

import pytest

from hosts.remote.hostctl import policy, verbs
from hosts.remote.hostctl.act import Act
from jobs.engine import approval_binding, drift, halt_help, host_facts, host_policy, part, routes
from jobs.engine.checks import look
from jobs.engine.endpoints.qcow2 import QCOW2
from jobs.engine.evidence import Evidence
from jobs.engine.plan import Plan, make
from jobs.engine.rules import BLOCKS, About, Around, Case, Rules
from jobs.engine.steps import (
    DESTINATION,
    OVER_LINK,
    RATE,
    SOURCE,
    Artifact,
    ByHand,
    Made,
    Step,
    Task,
    Throughput,
)
from tests.engine.test_parts import check_whole

from .sound import CONTENTS, FACTS, MIB, MIGRATION, SHARE

# One file: the endpoint


@dataclass(frozen=True)
class Drive(host_facts.Source):
    """What a source with a tape drive says."""

    barcode: str = ""
    position: int = 0
    length: int = 0
    share: host_facts.Share | None = None


rule = Rules()


@rule(About.SOURCE, "tape is the same", BLOCKS, "It is the tape that was chosen.", "source")
def _tape_is_the_same(case, source):
    return None if source.barcode == case.migration.source_lv else (f"It is {source.barcode}.", source.barcode)


class Tape(part.Source):
    kind = "tape"
    needs = "the tape"
    rules = rule
    facts = {SOURCE: ("tape_facts", Drive)}
    unchanged = ("position",)

    def asks(self, ask):
        return {SOURCE: {"barcode": ask.source_lv}}

    def has(self, facts):
        return bool(facts.source and facts.source.barcode)

    def values(self, ask, facts):
        return {"barcode": ask.source_lv}

    def look_commands(self, ask, instances):
        return {SOURCE: [("mt", "-f", "/dev/nst0", "status")]}

    def fence(self):
        left = Artifact(
            "cartridge", "barcode", identity="serial", undo_arg="made.serial", by_hand=ByHand(("mt status",))
        )
        tape = {"barcode": "barcode"}
        return (
            Step(
                *("tape_hold", Task.FENCE, "A", SOURCE, "tape_hold", "Lock the drive", tape),
                undo="tape_let_go", torn_by="tape_let_go", artifact=left, box="Drive",
            ),
        )  # fmt: skip

    def release(self):
        at = {**self.reader(), "made": {**self.fenced()}}
        return (Step("tape_let_go", Task.RELEASE, "C", SOURCE, "tape_let_go", "Unlock the drive", at, box="Release"),)

    def reader(self):
        return {"barcode": "barcode"}

    def fenced(self):
        return {"position": Made("tape_hold", "position", "position of the tape")}

    def now(self, facts):
        return facts.source

    def size(self, facts):
        return facts.source.length

    def binding(self, ask, facts):
        return {"barcode": facts.source.barcode, "position": facts.source.position}

    def owner(self, ask):
        return ""


# Another file: the transport


class Pigeon(part.Transport):
    kind = "pigeon"
    needs = "a loft"
    rules = ()
    facts = {}
    roles = (SOURCE, DESTINATION)
    delivers = SOURCE

    def asks(self, ask):
        return {}

    def cut_off(self, ask):
        return frozenset()

    def has(self, facts):
        return bool(facts.source)

    def values(self, ask, facts, sink):
        return {"legs": 2}

    def look_commands(self, ask, instances):
        return {SOURCE: [("ls", "/loft")]}

    def open(self, source, sink):
        return ()

    def carry(self, source, sink):
        through = Throughput("pigeon", "source_size", OVER_LINK, limited=True)
        args = {**source.reader(), **sink.writer(), "legs": "legs", "rate": RATE}
        copied = {"size": Made("pigeon_fly", "file_size", "size of the copy", like="stage_size")}
        return (
            Step(
                *("pigeon_fly", Task.COPY, "A", SOURCE, "pigeon_fly", "Let it fly", args), box="Flight",
                undo="pigeon_call", torn_by=Task.EXCHANGE, throughput=through, artifact=sink.delivered(),
            ),
            Step("pigeon_weigh", Task.HASH, "A", DESTINATION, "pigeon_weigh", "Weigh what came", copied, box="Flight"),
            Step(
                *("pigeon_compare", Task.COMPARE, "A", SOURCE, "pigeon_compare", "Compare"),
                {**source.reader(), **source.fenced()}, box="Flight", throughput=replace(through, limited=False),
            ),
        )  # fmt: skip

    def copied(self):
        return {
            "sha256": Made("pigeon_weigh", "sha256", "SHA-256 of what came"),
            "file_size": Made("pigeon_fly", "file_size", "size of the copy"),
        }

    def close(self):
        return ()


# And that is all that there is to it

SEEN = replace(
    FACTS, source=Drive(None, CONTENTS, barcode="VOL001", position=9, length=512 * MIB, share=SHARE), relay=None
)
ASK = replace(MIGRATION, route="pigeon", relay="", relay_vg="", relay_address="", source_vg="", source_lv="VOL001")
VERBS = ["tape_facts", "tape_hold", "tape_let_go", "pigeon_fly", "pigeon_call", "pigeon_weigh", "pigeon_compare"]


@pytest.fixture
def other(monkeypatch):
    """The route, with verbs of a hostctl that has them."""
    monkeypatch.setitem(routes.ROUTES, "pigeon", (Tape(), Pigeon(), QCOW2))
    for name in VERBS:
        does = verbs.Verb(
            (), verbs.handled, lambda args, job, verb=name: (Act("call", (verb,), verb),), True, verbs.unconfined
        )
        monkeypatch.setitem(verbs.VERBS, name, does)
        monkeypatch.setitem(policy.RULES, name, policy.SOURCE)
    return routes.route_of("pigeon")


def test_its_plan_is_whole(other):
    check_whole(other)
    plan = make(ASK, SEEN)
    copy = ["tape_hold", "pigeon_fly", "pigeon_weigh", "pigeon_compare", "stage_verify"]
    assert [each.step.name for each in plan.phase("A")] == copy
    assert [each.step.name for each in plan.phase("B", "C")] == [
        *("lock", "stop", "swap", "start"),
        *("tape_let_go", "unlock", "forget_source", "forget_destination"),
    ]
    assert {each.hypervisor for each in plan.steps} == {"src", "dst"}
    assert plan.texts("A")[:2] == ["tape_hold", "pigeon_fly"]
    assert dict(plan.footprint) == {"share": plan.to_json()["footprint"]["share"]}
    assert plan.one(Task.COPY).step.torn_by == "swap"
    assert plan.one(Task.VERIFY).args["sha256"].step == "pigeon_weigh"


def test_its_plan_comes_back_from_the_database(other):
    plan = make(ASK, SEEN)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json())), plan.job) == plan


def test_its_steps_are_known_by_their_tasks(other):
    assert routes.task_of("pigeon_fly") is Task.COPY
    assert Evidence({"tape_hold": {"position": 9}}).one(Task.FENCE) == {"position": 9}
    assert routes.begins_copy("tape_hold")
    assert routes.ends_copy("stage_verify")
    assert routes.ends_copy("relay_erase")


def test_its_checks_and_those_of_the_share_are_made(other):
    found = {check.name: check for check in look(Case(ASK, SEEN))}
    assert [check.sentence for check in found.values() if not check.ok] == []
    assert {"tape is the same", "not smaller", "share has space", "share can be written", "disk is qcow2"} <= set(found)
    assert not {"relay answers", "three hypervisors", "relay has space", "volume is there"} & set(found)
    full = replace(SEEN, source=replace(SEEN.source, share=replace(SHARE, free=0), barcode="VOL002"))
    refused = [check.name for check in look(Case(ASK, full, Around())) if not check.ok]
    assert refused == ["tape is the same", "share has space"]


def test_its_facts_are_asked_for_and_read_again(other):
    asked = other.fact_requests(ASK)
    assert asked[SOURCE] == ("tape_facts", {"barcode": "VOL001", "share_source": ASK.share_source})
    assert set(asked) == {SOURCE, DESTINATION}
    again = host_facts.Facts.from_json(json.loads(json.dumps(SEEN.to_json())), other.answers)
    assert again == SEEN


def test_what_it_asks_is_compared_with_the_policies(other):
    asked = [(role, verb) for role, verb, _ in host_policy.calls(ASK, SEEN)]
    assert (SOURCE, "pigeon_fly") in asked
    assert (SOURCE, "pigeon_call") in asked
    assert "relay" not in {role for role, _ in asked}


def test_an_approval_binds_what_it_says_and_a_tape_that_moved_makes_the_copy_stale(other):
    evidence = Evidence({"tape_hold": {"position": 9}, "stage_verify": dict.fromkeys(QCOW2.unchanged, 1)})
    bound = approval_binding.swap(ASK, SEEN, make(ASK, SEEN), evidence, "0123456789abcdef")
    assert bound["source"] == {"barcode": "VOL001", "position": 9}
    moved = replace(SEEN, source=replace(SEEN.source, position=10))
    assert "source position: was 9, is 10" in approval_binding.stale(other, moved, evidence)


def test_a_person_is_shown_how_to_look_at_it_and_how_what_it_leaves_is_removed(other):
    assert halt_help.looks(ASK, SOURCE, "/i") == ["mt -f /dev/nst0 status", "ls /loft"]
    assert drift.step_for("cartridge", "VOL001", SOURCE) == "tape_hold"
    assert drift.bound("cartridge", "S1") == {"made": {"serial": "S1"}}
    assert drift.by_hand(drift.Thing("cartridge", "src", "VOL001", ASK.job, "S1"))[0] == ["mt status"]


def test_the_route_of_today_is_not_changed_by_it(other):
    assert [step.name for step in routes.route_of("relay-nfs").steps if "pigeon" in step.name] == []
    assert make(MIGRATION, FACTS).to_json()["steps"][0]["name"] == "relay_lv"
