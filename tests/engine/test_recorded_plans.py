"""Plans are what they were when they were recorded, byte for byte: steps, order, arguments, commands, forecast."""

import json

import pytest

from tests.engine import plans


@pytest.fixture(scope="module")
def made():
    return plans.files()


@pytest.mark.parametrize("name", ["plan.json", "others.json", "requests.json", "steps.json"])
def test_plans_are_what_was_recorded(made, name):
    changes = "".join(plans.changes(name, made[name])[:60])
    assert not changes, f"If plans change on purpose, run python -m tests.engine.plans and say why.\n{changes}"


def test_each_case_is_recorded(made):
    assert sorted(made) == sorted(path.name for path in plans.GOLDEN.iterdir())


def test_a_plan_that_differs_in_one_byte_is_found(made):
    raw = json.loads(made["plan.json"])
    raw["steps"][5]["seconds"][1] += 0.1
    assert [line for line in plans.changes("plan.json", plans.document(raw)) if line.startswith("+ ")]
