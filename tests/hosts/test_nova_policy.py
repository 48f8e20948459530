"""docs/nova-policy.yaml: what it grants is what volmig does, and everything else of an administrator is cancelled."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "nova_policy.py"))
RULES = dict(re.findall(r'^"([^"]+)": "([^"]*)"$', (DOCS / "nova-policy.yaml").read_text(), re.MULTILINE))


def test_the_role_is_named_only_where_it_is_needed():
    named = {name for name, rule in RULES.items() if "role:volmig" in rule}
    assert named == MADE["ALLOWED"] | {"context_is_admin"}


def test_no_other_rule_lets_administrators_in_by_the_rule_that_the_role_meets():
    for name, rule in RULES.items():
        assert name in MADE["ALLOWED"] or "context_is_admin" not in rule, name
        assert "is_admin:" not in rule, name


@pytest.mark.parametrize("name", ["servers:delete", "servers:create", "servers:resize", "os-evacuate"])
def test_what_the_role_must_not_do_is_not_granted(name):
    assert f"os_compute_api:{name}" not in MADE["ALLOWED"]


def test_a_rule_of_another_release_is_taken_back_too():
    rules = [(name, "rule:context_is_admin") for name in sorted(MADE["ALLOWED"])] + [("new", "rule:context_is_admin")]
    assert MADE["overrides"](rules)["new"] == "role:admin"


def test_a_release_without_the_rules_that_are_needed_is_refused():
    with pytest.raises(SystemExit, match="volmig does not know this release"):
        MADE["overrides"]([("new", "rule:context_is_admin")])
