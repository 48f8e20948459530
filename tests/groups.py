"""The groups that `make test`, `make torture` and `make cloud` run: `python -m tests.groups NAME…` runs some.

Every test belongs to exactly one of them (test_groups.py). Each prints at its end how long it took, and what its
processes and the lab's guests used; `python -m tests.groups times` shows all that ran since `forget`.
"""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lab import machine
from tests.lab.lab import Lab

ROOT = Path(__file__).resolve().parent.parent
TIMES = ROOT / ".cache/times"
NICE = "10"  # of groups that leave the processors to the lab's guests, which are slow while they wait for one
PROCESSES = "tests/lab_tests/test_killed_processes.py"
UNIT = frozenset({"lab", "browser", "cloud", "real", "torture"})  # none of these


@dataclass(frozen=True)
class Group:
    """Tests below `places`, but those below `but`, that have all marks of `has` and none of `lacks`.

    Where a group is of few folders they are named: to look through all for its marks takes eight seconds.
    A `measured` one counts the lines and branches that it covers. `by` is the module that runs it.
    """

    places: tuple[str, ...] = ("tests",)
    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    but: tuple[str, ...] = ()
    measured: bool = False
    options: tuple[str, ...] = ()
    by: str = "pytest"

    @property
    def marks(self) -> str:
        """For pytest's -m."""
        return " and ".join([*sorted(self.has), *(f"not {mark}" for mark in sorted(self.lacks))])

    def holds(self, path: str, marks: Iterable[str]) -> bool:
        """Whether a test of this file, by its path from the root, with these marks is in this group."""
        found = frozenset(marks)
        return below(path, self.places) and not below(path, self.but) and self.has <= found and not self.lacks & found

    def command(self, *more: str) -> list[str]:
        """The argv that runs it; `more` are words for pytest."""
        nice, measured = (("nice", "-n", NICE), ("-m", "coverage", "run")) if self.measured else ((), ())
        ignored = [f"--ignore={each}" for each in self.but]
        words = ("--durations=15", *self.options, "-m", self.marks, *self.places, *ignored, *more)
        return [*nice, sys.executable, *measured, "-m", self.by, *words]


def below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def unit(*places: str, but: tuple[str, ...] = ()) -> Group:
    """Tests that need nothing but this machine, on SQLite; what they cover is measured."""
    return Group(places=places, lacks=UNIT, but=but, measured=True)


LAB = ("tests/lab_tests", "tests/hosts")
UNDONE = tuple(f"tests/lab_tests/test_{name}.py" for name in ("erase", "leftovers", "names", "rollbacks"))
JOBS, TRUST, FLOOR = ("tests/jobs",), ("tests/trust", "tests/fleet"), ("tests/volmig", "tests/api", "tests/hosts")
TEST = {
    "lab": Group(LAB, frozenset({"lab"}), frozenset({"cloud", "browser", "torture"}), but=UNDONE),
    # These run on a second lab, Nova first, so that the cloud's group, which comes to it late, does not wait for it.
    "nova": Group(("tests/lab_tests",), frozenset({"lab", "cloud"}), frozenset({"real", "torture"})),
    "lab-browser": Group(("tests/lab_tests",), frozenset({"lab", "browser"}), frozenset({"cloud", "torture"})),
    "lab-undone": Group(UNDONE, frozenset({"lab"}), frozenset({"cloud", "browser", "torture"})),
    "jobs": unit(*JOBS),
    "trust": unit(*TRUST),
    "floor": unit(*FLOOR),
    "rest": unit("tests", but=(*JOBS, *TRUST, *FLOOR)),
    "browser": Group(("tests/browser", "tests/trust"), frozenset({"browser"}), frozenset({"lab", "real", "torture"})),
    "cloud": Group(("tests/cloud_tests",), frozenset({"cloud"}), frozenset({"lab", "real", "torture"})),
}
# What takes long, and runs by itself.
LONG = {
    "real": Group(has=frozenset({"real"})),
    "torture-fakes": Group(has=frozenset({"torture"}), lacks=frozenset({"lab", "real"}), options=("-s",)),
    "torture-processes": Group((PROCESSES,), frozenset({"torture", "lab"}), options=("-s",)),
    "torture-hosts": Group(
        has=frozenset({"torture", "lab"}), lacks=frozenset({"real"}), but=(PROCESSES,), options=("-s",)
    ),
}
GROUPS = TEST | LONG
# What differs by database, and what only PostgreSQL has: tests of other groups, which run there, too.
BY_DATABASE = (
    *("tests/fleet/test_health.py", "tests/fleet/test_incidents.py", "tests/fleet/test_metrics.py"),
    *("tests/jobs/test_archives.py", "tests/jobs/test_ticks.py", "tests/jobs/test_watch.py"),
    *("tests/pages/test_changes.py", "tests/volmig/test_checks.py", "tests/volmig/test_online.py"),
    "tests/volmig/test_overload.py",
)
# For daily work, in less than three minutes: what is decided, what pages show, and whole migrations.
QUICK_JOBS = tuple(
    f"tests/jobs/test_{name}.py" for name in ("halts", "leftovers", "policies", "seals", "verbs", "watch", "whole_jobs")
)
QUICK_FLOOR = tuple(f"tests/volmig/test_{name}.py" for name in ("checks", "record", "roles", "same_origin", "teams"))
AGAIN = {
    "postgresql": Group(BY_DATABASE, by="tests.postgresql"),
    "quick-moves": Group(("tests/engine", "tests/hostctl", *QUICK_JOBS), lacks=UNIT),
    "quick-pages": Group(("tests/pages", "tests/hosts/test_models.py", *QUICK_FLOOR), lacks=UNIT),
}


@dataclass(frozen=True)
class Time:
    """How long a group took, and what processors did for its processes and for the lab's guests, in seconds."""

    group: str
    passed: float
    used: float
    guests: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.passed), 60)
        guests = f", and {self.guests:.0f} s for guests of the lab" if self.guests else ""
        return f"{self.group:18}{minutes:3} min {seconds:02} s, {self.used:5.0f} s of processor time{guests}"


def run(name: str, *more: str) -> int:
    """Runs a group; its status is pytest's."""
    group = (GROUPS | AGAIN)[name]
    began, used, guests = time.monotonic(), children_seconds(), guests_seconds()
    status = subprocess.run(group.command(*more), cwd=ROOT).returncode
    passed, used = time.monotonic() - began, children_seconds() - used
    # Guests whose power was cut meanwhile took their figure with them.
    took = Time(name, passed, used, max(0.0, guests_seconds() - guests))
    TIMES.mkdir(parents=True, exist_ok=True)
    (TIMES / name).write_text(json.dumps(vars(took)))
    print(took, flush=True)
    return status


def children_seconds() -> float:
    """What the processors have done for our processes that have ended, and for those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def guests_seconds() -> float:
    """What the processors have done for the guests of this checkout's lab that run."""
    return machine.seconds(Lab().name)


def times() -> list[Time]:
    """Of the groups that ran since `forget`, the longest first."""
    found = [Time(**json.loads(path.read_text())) for path in TIMES.iterdir()] if TIMES.is_dir() else []
    return sorted(found, key=lambda each: -each.passed)


def main(words: list[str]) -> int:
    if words == ["times"]:
        print(*times(), sep="\n")
        return 0
    if words == ["forget"]:
        shutil.rmtree(TIMES, ignore_errors=True)
        return 0
    if unknown := set(words) - set(GROUPS | AGAIN):
        print(
            f"There is no group {', '.join(sorted(unknown))}. There are: {', '.join(GROUPS | AGAIN)}.", file=sys.stderr
        )
        return 2
    # What comes later runs although something before it failed: whoever mends it wants to know all at once.
    ends = [run(name) for name in words]
    return int(any(ends))  # one that was killed ends with a negative number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
