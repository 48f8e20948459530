"""Every test belongs to exactly one group of tests/groups.py, so that none is lost and none runs twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import groups
from tests.groups import AGAIN, GROUPS, ROOT, TEST, Group, Time

COLLECTS = """
import json, sys, pytest

class Seen:
    def pytest_collection_finish(self, session):
        found = [(each.nodeid, sorted({mark.name for mark in each.iter_markers()})) for each in session.items]
        open(sys.argv[1], "w").write(json.dumps(found))

sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:randomly", "-p", "no:cacheprovider"], plugins=[Seen()]))
"""


def homes(test, marks):
    return [name for name, group in GROUPS.items() if group.holds(test.partition("::")[0], marks)]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """All tests that there are, each with its marks."""
    file = tmp_path_factory.mktemp("collected") / "tests.json"
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    command = [sys.executable, "-c", COLLECTS, str(file)]
    done = subprocess.run(command, cwd=ROOT, env=unmeasured, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return json.loads(file.read_text())


def test_every_test_is_in_exactly_one_group(collected):
    assert len(collected) > 5000
    wrong = {test: found for test, marks in collected if len(found := homes(test, marks)) != 1}
    assert wrong == {}


def test_every_group_has_tests(collected):
    assert {name for test, marks in collected for name in homes(test, marks)} == set(GROUPS)


def test_pytest_selects_what_the_group_holds(collected):
    """What pytest makes of the group's words is what the test above takes them for."""
    group = TEST["lab-browser"]
    words = [*group.command("--collect-only", "-qq", "-p", "no:randomly", "-p", "no:cacheprovider"), "-rN"]
    said = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    here = [test for test, marks in collected if group.holds(test.partition("::")[0], marks)]
    counted = {
        path: sum(test.startswith(f"{path}::") for test in here) for path in {test.partition("::")[0] for test in here}
    }
    assert {
        line.partition(": ")[0]: int(line.partition(": ")[2]) for line in said.splitlines() if ": " in line
    } == counted


@pytest.mark.parametrize(
    ("path", "marks", "held"),
    [
        ("tests/jobs/test_ticks.py", {"lab"}, True),
        ("tests/jobs/test_ticks.py", {"lab", "parametrize"}, True),
        ("tests/jobs/test_ticks.py", set(), False),
        ("tests/jobs/test_ticks.py", {"lab", "torture"}, False),
        ("tests/jobs/slow/test_ticks.py", {"lab"}, False),
        ("tests/jobs_more/test_ticks.py", {"lab"}, False),
    ],
)
def test_a_group_holds_what_lies_in_its_places_and_has_its_marks(path, marks, held):
    group = Group(("tests/jobs",), frozenset({"lab"}), frozenset({"torture"}), ("tests/jobs/slow",))
    assert group.holds(path, marks) == held


def test_the_makefile_runs_every_group_once():
    recipes = (ROOT / "Makefile").read_text()
    runs = [word for line in recipes.splitlines() if "-m tests.groups " in line for word in named(line)]
    assert sorted(runs) == sorted(GROUPS | AGAIN)


def test_an_unknown_group_is_refused_before_any_runs(monkeypatch, capsys):
    monkeypatch.setattr(groups, "run", lambda name: pytest.fail("one ran"))
    assert groups.main(["rest", "rests"]) == 2
    assert "There is no group rests. There are: lab, " in capsys.readouterr().err


def named(line):
    return [word for word in line.partition("-m tests.groups ")[2].split() if word in GROUPS | AGAIN]


def test_what_a_group_took_is_shown_the_longest_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(groups, "TIMES", tmp_path / "times")
    monkeypatch.setattr(groups, "guests_seconds", iter([0.0, 0.0, 7.0, 90.0]).__next__)
    monkeypatch.setattr(Group, "command", lambda self, *more: ["false" if more else "true"])
    assert groups.run("rest") == 0
    assert groups.run("lab", "more") == 1
    (tmp_path / "times/rest").write_text(json.dumps(vars(Time("rest", 61.4, 30, 0))))
    capsys.readouterr()
    assert groups.main(["times"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "rest                1 min 01 s,    30 s of processor time"
    assert second.startswith("lab                 0 min 00 s,")
    assert second.endswith(", and 83 s for guests of the lab")
    assert groups.main(["forget"]) == 0
    assert groups.times() == []
    assert not Path(tmp_path / "times").exists()
