"""Scripts that tests hand to another Python are strings, in which no tool follows a name that has moved."""

import ast
import importlib
import re

import pytest

from tests.words import ROOT

IMPORT = re.compile(r"from ((?:volmig|hosts|jobs|tests)(?:\.\w+)*) import (\w+)")


def scripts():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from ((path.relative_to(ROOT), *found) for found in IMPORT.findall(node.value))


def is_there(module, name):
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


def test_what_scripts_import_is_there():
    assert [each for each in scripts() if not is_there(*each[1:])] == []


@pytest.mark.parametrize(("module", "name"), [("volmig", "people"), ("volmig.accounts", "nonesuch")])
def test_what_has_moved_would_be_found(module, name):
    assert not is_there(module, name)
