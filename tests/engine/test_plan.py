"""A plan shows what will run, knows what it cannot know yet, and survives being stored."""

import json

import pytest

from jobs.engine.halt_help import looks
from jobs.engine.plan import FORMAT, NewerPlan, Plan, Ref, Unready, at_rate, make
from jobs.engine.routes import named, steps
from jobs.engine.sizes import qcow2_size
from jobs.engine.steps import UnknownRole
from jobs.engine.transports.relay_nfs import relay_size

from .sound import FACTS, MIB, MIGRATION


@pytest.fixture
def plan():
    return make(MIGRATION, FACTS)


def test_every_step_of_its_route_is_planned_on_its_hypervisor(plan):
    assert [(each.step.name, each.hypervisor) for each in plan.steps][:5] == [
        ("relay_lv", "jump"),
        ("relay_fs", "jump"),
        ("relay_export", "jump"),
        ("source_mount", "src"),
        ("source_fence", "src"),
    ]
    assert len(plan.steps) == len(steps())


def test_what_takes_something_away_is_itself_a_step():
    for step in steps():
        assert not step.torn_by or named()[step.torn_by]


def test_unknown_values_are_shown_by_name_and_known_ones_as_they_are(plan):
    texts = plan.texts("A")
    assert any("«lv_uuid of the relay LV»" in text for text in texts)
    assert any(f"anonuid={FACTS.destination.share.owner_uid}" in text for text in texts)
    assert any("systemctl start -- nfs-server" in text for text in texts)
    assert any("systemctl stop -- nfs-server" in text for text in texts)
    assert not any("Ref(" in text for text in texts)


def test_a_stored_plan_is_the_same_plan(plan):
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())), plan.job)
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_a_stored_plan_keeps_its_steps_whatever_the_table_of_a_newer_volmig_says(plan):
    raw = json.loads(json.dumps(plan.to_json()))
    raw["steps"][5]["step"] |= {"verb": "convert_twice", "torn_by": "", "repeatable": False}
    raw["steps"][5]["commands"] = [{"kind": "command", "text": "as it was approved"}]
    again = Plan.from_json(raw, plan.job)
    step = again.steps[5].step
    assert (step.name, step.verb, step.torn_by, step.repeatable) == ("convert", "convert_twice", "", False)
    assert "as it was approved" in again.texts("A")
    assert Plan.from_json(json.loads(json.dumps(again.to_json())), plan.job) == again


def test_a_plan_that_a_former_volmig_stored_by_names_is_read_as_it_was_meant(plan):
    raw = json.loads(json.dumps(plan.to_json()))
    del raw["format"]
    for row in raw["steps"]:
        del row["step"], row["undo_commands"]
    again = Plan.from_json(raw, plan.job)
    assert again == plan
    assert again.undo_texts("B") == plan.undo_texts("B")


def test_a_plan_of_a_newer_volmig_is_not_read(plan):
    with pytest.raises(NewerPlan, match=f"its format is {FORMAT + 1}, this volmig reads up to {FORMAT}"):
        Plan.from_json(plan.to_json() | {"format": FORMAT + 1}, plan.job)


def test_other_arguments_have_other_commands_than_were_shown(plan):
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())), plan.job)
    assert at_rate(again, 5 * MIB).texts("A") == at_rate(plan, 5 * MIB).texts("A") != plan.texts("A")


@pytest.mark.parametrize("on", ["target", "", "volmig"])
def test_a_step_of_an_unknown_role_runs_nowhere(on):
    with pytest.raises(UnknownRole, match="No hypervisor of a migration has the role"):
        MIGRATION.host(on)
    with pytest.raises(UnknownRole):
        looks(MIGRATION, on, "/i")


def test_arguments_are_filled_in_from_what_was_measured(plan):
    mkfs = next(each for each in plan.steps if each.step.name == "relay_fs")
    assert mkfs.filled({"relay_lv": {"lv_uuid": "xyz"}})["lv_uuid"] == "xyz"
    with pytest.raises(Unready, match="lv_uuid of the relay LV"):
        mkfs.filled({})


def test_nested_values_are_found_by_their_path():
    assert Ref("stop", "live.inode", "").found({"stop": {"live": {"inode": 9}}}) == 9


def test_the_copy_fits_its_temporary_volume_in_whole_extents():
    for virtual in (1, 64 * 1024, 512 * MIB, 10 << 40):
        size = relay_size(virtual, 4 * MIB)
        assert size % (4 * MIB) == 0
        assert size >= 1.05 * qcow2_size(virtual) + 256 * MIB
        assert qcow2_size(virtual) > virtual


def test_earlier_jobs_make_the_forecast(plan):
    measured = make(MIGRATION, FACTS, {"convert": (1e6, 2e6, 4e6)})
    low, middle, high = next(each.seconds for each in measured.steps if each.step.name == "convert")
    assert low < middle < high
    assert middle == pytest.approx(512 * MIB / 2e6 + 1, abs=0.1)


def test_downtime_does_not_depend_on_the_size_of_the_disk(plan):
    stored = plan.to_json()
    assert stored["downtime"][1] < 30 < stored["total"][1] + 30


def test_a_limit_that_changes_is_shown_in_the_passes_that_have_one(plan):
    slower = at_rate(plan, 5 * MIB)
    convert = next(each for each in slower.steps if each.step.name == "convert")
    assert convert.shown()["rate"] == 5 * MIB
    assert convert.filled({"source_fence": {}, "limits": {"rate": 3}})["rate"] == 3


def test_no_plan_without_a_share():
    with pytest.raises(ValueError, match="share"):
        make(MIGRATION, type(FACTS)(FACTS.source, None, FACTS.destination))
