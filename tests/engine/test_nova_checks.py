"""Checks from Nova's side: a sound instance passes, each check refuses what it is for, and every check is explained."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.engine import approval_binding, routes
from jobs.engine.checks import blocking, look, rules_of
from jobs.engine.controls.nova import in_nova
from jobs.engine.host_facts import Action, Facts, Move, Nova, Server, Service
from jobs.engine.plan import make
from jobs.engine.rules import Around, Case, Trouble

from .sound import FACTS, INSTANCE, MIGRATION

MINE = replace(MIGRATION, control="openstack")
SERVER = Server(INSTANCE, "db7", "dst", "", "ACTIVE", "active", flavor="m1.data", ephemeral_gb=1)
OTHER = "99999999-9b1a-4f57-8a36-5d1e7c20b9aa"
OWNER = Server(OTHER, "db-old", "src", "src.example.org", "SHUTOFF", "stopped")
DELETED = replace(OWNER, status="SOFT_DELETED")
SERVICES = (Service("src", "up", "enabled"), Service("dst", "up", "enabled"))
CREATED = Action("create", "2026-11-01T10:00:00", "req-1", "u")
NOVA = Nova(("dst",), "2.96", SERVER, {}, (CREATED,), ("src",), None, SERVICES)
LOCKED = {"locked": True, "locked_reason": "maintenance"}


def service(*said, **more):
    return {"services": (Service(*said, **more),)}


RULES = list(dict.fromkeys(rule for route in routes.every() for rule in rules_of(route)))


def moved(kind, status):
    return {"moves": (Move(kind, status, "dst", "x"),)}


def case(**changed):
    server = changed.pop("server", {})
    seen = replace(NOVA.server, **server) if server is not None else None
    return Case(MINE, replace(FACTS, instance=replace(NOVA, server=seen, **changed)), Around())


def evacuated(status, source="src"):
    return (Move("evacuation", status, source, "dst", "2026-11-20T08:00:00"),)


def test_an_instance_that_rests_where_it_should_passes_every_check():
    assert [check.sentence for check in look(case()) if not check.ok] == []


def test_without_nova_no_check_asks_for_it():
    asked = {check.name for check in look(Case(MIGRATION, FACTS))}
    assert not [rule.name for rule in RULES if {"nova", "server"} & set(rule.needs) and rule.name in asked]


@pytest.mark.parametrize(
    ("name", "severity", "says", "changed"),
    [
        ("Nova knows the instance", "blocks", "was deleted", {"server": None}),
        (
            "Nova agrees on the hypervisor",
            "blocks",
            "has db7 on cmp-9",
            {"server": {"host": "cmp-9"}},
        ),
        ("Nova agrees on the hypervisor", "blocks", "may see", {"server": {"host": "", "hypervisor": ""}}),
        ("nothing is under way in Nova", "blocks", "rebuilding", {"server": {"task_state": "rebuilding"}}),
        ("state in Nova", "blocks", "is VERIFY_RESIZE", {"server": {"status": "VERIFY_RESIZE"}}),
        ("state in Nova", "blocks", "no valid host", {"server": {"status": "ERROR", "fault": "no valid host"}}),
        ("Nova and libvirt agree", "blocks", "libvirt says running", {"server": {"status": "SHUTOFF"}}),
        (
            "not locked by somebody else",
            "blocks",
            "maintenance",
            {"server": LOCKED},
        ),
        ("fits the flavour", "warns", "gives 0 GiB of ephemeral", {"server": {"ephemeral_gb": 0}}),
        (
            "no migration is pending",
            "blocks",
            "live-migration",
            moved("live-migration", "running"),
        ),
        ("no migration is pending", "blocks", "resize", moved("resize", "finished")),
        ("no evacuation threatens the source", "blocks", "wipes and removes", {"source_moves": evacuated("done")}),
        ("no evacuation threatens the source", "blocks", "accepted", {"source_moves": evacuated("accepted")}),
        ("no evacuation threatens the source", "blocks", "done", {"moves": evacuated("done")}),
        ("source instance rests in Nova", "blocks", "is ACTIVE", {"source_server": replace(OWNER, status="ACTIVE")}),
        (
            "source instance rests in Nova",
            "blocks",
            "SOFT_DELETED",
            {"source_server": DELETED},
        ),
        ("source instance may be started", "informs", "still belongs to db-old", {"source_server": OWNER}),
        ("compute of the destination works", "blocks", "is down", service("dst", "down", "enabled")),
        (
            "compute of the destination works",
            "blocks",
            "forced down",
            service("dst", "up", "enabled", True),
        ),
        (
            "computes are enabled",
            "warns",
            "dst (to be emptied)",
            service("dst", "up", "disabled", reason="to be emptied"),
        ),
        (
            "compute of the source works",
            "warns",
            "deletes what was evacuated",
            service("src", "down", "enabled"),
        ),
        ("bus of the disk", "informs", "scsi", {"properties": {"hw_disk_bus": "scsi"}}),
        ("time to shut down", "informs", "300 s", {"properties": {"os_shutdown_timeout": "300"}}),
    ],
)
def test_a_check_refuses_what_it_is_for(name, severity, says, changed):
    checks = look(case(**changed))
    check = next(check for check in checks if check.name == name)
    assert (check.ok, check.severity) == (False, severity)
    assert says in check.sentence
    assert (check in blocking(checks)) == (severity == "blocks")


@pytest.mark.parametrize("moves", [evacuated("completed"), evacuated("error"), evacuated("done", "elsewhere")])
def test_an_evacuation_that_threatens_nothing_does_not_block(moves):
    assert blocking(look(case(source_moves=moves))) == []


def test_our_own_lock_of_a_job_that_is_looked_at_again_is_no_hindrance():
    assert blocking(look(case(server={"locked": True, "locked_reason": f"volmig:{MIGRATION.job}"}))) == []


def test_a_nova_that_does_not_answer_blocks_in_its_own_words():
    around = Around(trouble={"instance": Trouble("Denied", "Tried to log in: 401.")})
    assert "Nova: Tried to log in: 401." in [each.sentence for each in blocking(look(Case(MINE, FACTS, around)))]


def test_the_plan_shows_the_requests_to_nova_and_waits_as_long_as_the_image_says():
    facts = case(properties={"os_shutdown_timeout": "300"}).facts
    plan = make(MINE, facts)
    assert f'POST /servers/{INSTANCE}/action {{"os-stop": null}}' in plan.texts("B")
    assert f'POST /servers/{INSTANCE}/action {{"lock": {{"locked_reason": "volmig:{MIGRATION.job}"}}}}' in plan.texts(
        "B"
    )
    assert not [text for text in plan.texts("B") if "virsh" in text]
    stop = next(each for each in plan.steps if each.step.name == "stop")
    assert stop.args["deadline"] == 420
    again = type(plan).from_json(plan.to_json(), MIGRATION.job)
    assert again.texts("B") == plan.texts("B")


def test_facts_of_nova_come_back_from_json():
    facts = case(source_server=OWNER, moves=evacuated("done")).facts
    assert Facts.from_json(facts.to_json()) == facts


def bound(**changed):
    return {"instance": in_nova(case(**changed).facts.instance, f"volmig:{MIGRATION.job}")}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("instance on: was dst, is third", {"server": {"host": "third"}}),
        ("instance in Nova: was as allowed, is VERIFY_RESIZE", {"server": {"status": "VERIFY_RESIZE"}}),
        ("instance task: was none, is migrating", {"server": {"task_state": "migrating"}}),
        ("instance locked by others: was no, is yes", {"server": {"locked": True}}),
        ("instance flavour: was m1.data, is m1.big", {"server": {"flavor": "m1.big"}}),
        (
            "instance last action: was create at 2026-11-01 10:00:00 UTC by user u, "
            "is rebuild at 2026-11-25 08:00:00 UTC by user v",
            {"actions": (Action("rebuild", "2026-11-25T08:00:00", "req-2", "v"), *NOVA.actions)},
        ),
    ],
)
def test_a_consent_stands_on_what_nova_says(line, changed):
    assert line in approval_binding.difference(bound(), bound(**changed))


def test_a_stop_by_its_user_and_locks_do_not_disturb_a_consent():
    later = (Action("unlock", "c", "r4", "v"), Action("stop", "b", "r3", "v"), Action("lock", "a", "r2", "v"))
    assert (
        approval_binding.difference(bound(), bound(server={"status": "SHUTOFF"}, actions=(*later, *NOVA.actions))) == []
    )


def test_every_check_is_explained_and_nothing_else_is():
    text = (Path(__file__).parents[2] / "docs/checks.md").read_text()
    explained = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    named = {f"{role} answers" for role in ("source", "relay", "destination", "Nova")} | {rule.name for rule in RULES}
    assert sorted(explained) == sorted(named)
    in_order = [rule.name for rule in rules_of(routes.route_of("relay-nfs", "openstack"))]
    assert explained[4:] == in_order, "in the order of the pages, after those that say whether anybody answers"
