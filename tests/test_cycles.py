"""make check refuses a cycle between files, however it is hidden."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import cycles

ROOT = Path(__file__).resolve().parent.parent


def checked(folder: Path, files: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The check over a package `rooms` of these files."""
    for name, text in {"__init__.py": "", **files}.items():
        path = folder / "rooms" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    program = [sys.executable, str(ROOT / "tests/cycles.py"), "rooms"]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"a.py": "from rooms import b", "b.py": "from rooms import a"}, id="two files"),
        pytest.param({"a.py": "import rooms.b", "b.py": "from .a import f"}, id="in other forms"),
        pytest.param(
            {"a.py": "from rooms.b import f", "b.py": "def f():\n    from rooms import a"}, id="inside a function"
        ),
        pytest.param(
            {"a.py": "from rooms import b", "b.py": "from rooms.in_it import c", "in_it/c.py": "from rooms.a import f"}
            | {"in_it/__init__.py": ""},
            id="through a third file of another package",
        ),
    ],
)
def test_files_that_import_each_other_are_refused_and_named(files, tmp_path):
    said = checked(tmp_path, files)
    assert said.returncode == 1
    assert "rooms.a" in said.stdout
    assert "rooms.b" in said.stdout


def test_what_is_imported_for_types_alone_makes_no_cycle(tmp_path):
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rooms import b\n"
    said = checked(tmp_path, {"a.py": types, "b.py": "from rooms import a"})
    assert (said.returncode, said.stderr) == (0, "")


def test_volmig_has_no_cycle():
    assert cycles.cycle(*cycles.PACKAGES) == []


def test_make_check_runs_it():
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    assert "-m tests.cycles" in recipe
    assert "lint-imports" in recipe
