"""A step says all that others know of a step, and a stored plan gives it back."""

import json
from dataclasses import replace

import pytest

from jobs.engine import drift, stored_steps
from jobs.engine.evidence import Evidence
from jobs.engine.plan import NewerPlan, Plan, make, purge_of_rejected
from jobs.engine.routes import begins_copy, ends_copy, named, names_of, route_of, steps, task_of
from jobs.engine.steps import Task
from tests.engine.plans import by_names

from .sound import FACTS, MIGRATION

ROUTE = route_of("relay-nfs")


@pytest.fixture
def plan():
    return make(MIGRATION, FACTS)


def stored(plan, change=lambda raw: raw):
    return change(json.loads(json.dumps(plan.to_json())))


@pytest.mark.parametrize("change", [dict, by_names])
def test_all_that_is_known_of_a_step_comes_back_from_a_stored_plan(plan, change):
    again = Plan.from_json(stored(plan, change), plan.job)
    assert [each.step for each in again.steps] == list(ROUTE.steps)


def test_a_stored_plan_says_itself_what_it_leaves_where_and_which_bytes_a_pass_counts(plan):
    raw = stored(plan)
    row = next(row for row in raw["steps"] if row["name"] == "stage")
    row["step"] |= {"leaves": "lv", "where": "hypervisor", "named": "relay_lv_path", "work": "other", "size": "rate"}
    read = stored_steps.read(row)
    assert read.artifact == replace(named()["stage"].artifact, kind="lv", where="hypervisor", named="relay_lv_path")
    assert read.throughput == replace(named()["stage"].throughput, name="other", size="rate")
    row["step"] |= {"leaves": "", "work": ""}
    assert (stored_steps.read(row).artifact, stored_steps.read(row).throughput) == (None, None)


def test_what_is_stored_of_a_step_is_what_is_kept(plan):
    for row in plan.to_json()["steps"]:
        assert set(row["step"]) == set(stored_steps.KEPT)
        assert stored_steps.kept(stored_steps.read(row)) == row["step"]


def test_a_plan_with_a_step_that_only_a_newer_volmig_knows_is_not_read(plan):
    raw = stored(plan)
    raw["steps"][3]["name"] = raw["steps"][3]["step"]["name"] = "serve_volume"
    with pytest.raises(NewerPlan, match="this volmig knows no step serve_volume"):
        Plan.from_json(raw, plan.job)
    assert stored_steps.box(raw["steps"][3]) == ""
    assert not stored_steps.is_limited(raw["steps"][3])


def test_a_plan_has_one_step_of_what_is_done_once(plan):
    once = [task for task in Task if task not in (Task.OPEN, Task.CLOSE, Task.FORGET, Task.REHEARSE)]
    assert [plan.one(task).step.task for task in once] == once
    with pytest.raises(LookupError, match="4 steps to open"):
        plan.one(Task.OPEN)
    with pytest.raises(LookupError, match="0 steps to rehearse"):
        plan.one(Task.REHEARSE)


def test_a_copy_begins_with_the_first_and_ends_with_the_last_step_before_the_gate(plan):
    copy = [each.step.name for each in plan.phase("A")]
    assert [name for name in named() if begins_copy(name)] == copy[:1]
    assert [name for name in named() if ends_copy(name)] == copy[-1:]
    assert plan.steps[0].step.name == copy[0]


def test_names_of_tasks_are_names_of_all_steps():
    assert sorted(name for task in Task for name in names_of(task)) == sorted(named())
    assert [task_of(each.name) for each in (*ROUTE.steps, *ROUTE.rehearsal)] == [each.task for each in named().values()]
    assert task_of("nothing") is None


def test_evidence_is_found_by_the_task_of_its_step():
    evidence = Evidence({"swap": {"backup_inode": 5}, "nothing": {"inode": 1}})
    assert evidence.of(Task.EXCHANGE) == evidence.one(Task.EXCHANGE) == {"backup_inode": 5}
    assert evidence.of(Task.VERIFY) == {}
    with pytest.raises(KeyError, match="verify"):
        evidence.one(Task.VERIFY)


def test_what_a_step_leaves_can_be_told_from_another_of_the_same_name():
    left = [step.artifact for step in steps() if step.artifact]
    nameless = [each.kind for each in left if not (each.identity or each.leads_to)]
    assert nameless == ["lock"], "which Nova itself keeps, with the name of its migration"
    assert len({each.kind for each in left}) == len(left)


def test_what_its_own_undo_removes_after_the_end_has_an_undo():
    removable = [step for step in steps() if step.artifact and step.artifact.removable]
    assert [step.name for step in removable if not step.undo or not step.torn_by] == []
    assert {drift.step_for(step.leaves, "", "source") for step in removable} == {step.name for step in removable}


def test_every_step_of_a_plan_is_drawn_in_a_box():
    assert [step.name for step in steps() if not step.box] == []


def test_after_a_rollback_the_purge_takes_the_rejected_disk(plan):
    measured = {"swap": {"live_inode": 2, "backup_inode": 1}}
    before, after = (each.one(Task.PURGE).filled(measured) for each in (plan, purge_of_rejected(plan, ROUTE)))
    assert (before["backup_inode"], before["live_inode"]) == (after["live_inode"], after["backup_inode"]) == (1, 2)
    assert purge_of_rejected(plan, ROUTE).phase("A", "B", "C") == plan.phase("A", "B", "C")
