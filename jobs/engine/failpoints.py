"""Failpoints: boundaries of steps at which a worker can be made to die or to wait; inert unless they are armed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final

from jobs.engine.steps import Step

BEFORE_DO: Final = "before-do"  # the intent is written, nobody was asked yet
AFTER_DO: Final = "after-do"  # it was answered, and that is not written down yet
AFTER_RECORD: Final = "after-record"
MOMENTS: Final = (BEFORE_DO, AFTER_DO, AFTER_RECORD)
DIES, WAITS = "die", "wait"
Strike = Callable[[str], None]


def _live_on(point: str) -> None:
    """Nothing is armed."""


_strike: Strike = _live_on


def point(step: str, direction: str, moment: str) -> str:
    """The name of a boundary, as in `convert.do.after-do`."""
    return f"{step}.{direction}.{moment}"


def every(steps: Iterable[Step]) -> list[str]:
    """All boundaries of these steps, each with those of its undo when it has one."""
    ways = [(step.name, way) for step in steps for way in (("do", "undo") if step.undo else ("do",))]
    return [point(name, way, moment) for name, way in ways for moment in MOMENTS]


def chosen(wanted: str, steps: Iterable[Step]) -> dict[str, str]:
    """The boundaries that `wanted` means, and whether a worker dies or waits there.

    They are names or patterns with commas between them; a worker waits where `=wait` follows: `*.undo.*=wait`.
    Raise ValueError when one of them means none: a point that is never reached would look like one that was survived.
    """
    names, found = every(steps), dict[str, str]()
    for pattern in filter(None, (each.strip() for each in wanted.split(","))):
        boundary, _, action = pattern.partition("=")
        meant = {name for name in names if fnmatchcase(name, boundary)}
        if not meant:
            raise ValueError(f"No step has a boundary {boundary}; one is called {names[0]}, for example.")
        if action not in ("", DIES, WAITS):
            raise ValueError(f"Nothing is called {action}; a worker can {DIES} or {WAITS}.")
        found |= dict.fromkeys(meant, action or DIES)
    return found


def arm(strike: Strike | None) -> None:
    """From now on have `strike` called with the name of each boundary that is reached; None disarms."""
    global _strike
    _strike = strike or _live_on


def reach(step: str, direction: str, moment: str) -> None:
    """A boundary is reached; does nothing unless something is armed."""
    _strike(point(step, direction, moment))
