"""Failpoints: boundaries of steps at which a worker can be made to die, once each; inert unless they are armed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Final

from jobs.engine.steps import Step

BEFORE_DO: Final = "before-do"  # the intent is written, nobody was asked yet
AFTER_DO: Final = "after-do"  # it was answered, and that is not written down yet
AFTER_RECORD: Final = "after-record"
MOMENTS: Final = (BEFORE_DO, AFTER_DO, AFTER_RECORD)
Die = Callable[[str], None]


def _live_on(point: str) -> None:
    """Nothing is armed."""


_die: Die = _live_on


def point(step: str, direction: str, moment: str) -> str:
    """The name of a boundary, as in `convert.do.after-do`."""
    return f"{step}.{direction}.{moment}"


def every(steps: Iterable[Step]) -> list[str]:
    """All boundaries of these steps, each with those of its undo when it has one."""
    ways = [(step.name, way) for step in steps for way in (("do", "undo") if step.undo else ("do",))]
    return [point(name, way, moment) for name, way in ways for moment in MOMENTS]


def chosen(wanted: str, steps: Iterable[Step]) -> set[str]:
    """The boundaries that `wanted` means: names or patterns such as `*.undo.*`, with commas between them.

    Raise ValueError when one of them means none: a point that is never reached would look like one that was survived.
    """
    names, found = every(steps), set()
    for pattern in filter(None, (each.strip() for each in wanted.split(","))):
        meant = {name for name in names if fnmatchcase(name, pattern)}
        if not meant:
            raise ValueError(f"No step has a boundary {pattern}; one is called {names[0]}, for example.")
        found |= meant
    return found


def arm(die: Die | None) -> None:
    """From now on have `die` called with the name of each boundary that is reached; None disarms."""
    global _die
    _die = die or _live_on


def reach(step: str, direction: str, moment: str) -> None:
    """A boundary is reached; does nothing unless something is armed."""
    _die(point(step, direction, moment))
