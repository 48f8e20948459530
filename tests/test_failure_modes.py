"""The table of failure modes has every number once, and names tests that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/failure-modes.md"
# The numbers that the catalogue has; it leaves gaps between its parts.
PARTS = ((1, 15), (20, 32), (40, 48), (50, 62), (70, 86), (90, 103), (110, 117))
NUMBERS = [number for part in PARTS for number in range(*part)]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NO_TEST = "Cannot apply: "


def rows():
    """Number and last cell of each row, in order."""
    found = re.findall(r"^\| F(\d+) \| [^|]+ \| ([^|]+) \|$", DOCUMENT.read_text(), re.M)
    return [(int(number), cell) for number, cell in found]


def test_nothing_is_put_off():
    assert not re.search("left for later|to be done|not yet tested", DOCUMENT.read_text(), re.I)


def test_every_number_of_the_catalogue_is_there_once():
    assert [number for number, _ in rows()] == NUMBERS
    assert len(re.findall(r"^\| F", DOCUMENT.read_text(), re.M)) == len(NUMBERS)


@pytest.mark.parametrize(("number", "cell"), rows(), ids=lambda value: f"F{value:02}" if isinstance(value, int) else "")
def test_a_row_names_tests_that_there_are_or_says_why_it_has_none(number, cell):
    named = NAMED.findall(cell)
    assert named or cell.startswith(NO_TEST)
    assert cell.count("::") == len(named), "a test is named in a way that is not checked"
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert name in [each.name for each in tree.body if isinstance(each, ast.FunctionDef)], f"{path}::{name}"
