"""Steps as plans store them, and back.

A stored plan has of each step what is in KEPT, under those names, and its plan is carried out by that, whatever a newer
table says. What else `Step` knows is no part of a stored plan, since for each name it is the same for ever: its task,
its box, and of its artifact and its throughput all but the kind, the place, the name and the size. That is taken from
today's steps by the step's name, here and nowhere else. A test pins it: whoever gives a step another meaning gives it
another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from jobs.engine import routes
from jobs.engine.first_steps import FIRST_STEPS
from jobs.engine.steps import Artifact, Step, Throughput

SHOWN: Final = ("name", "phase", "title", "on", "verb", "undo")
PLAIN: Final = (*SHOWN, "torn_by", "volatile", "rests_on", "settles", "repeatable", "bars")
# Where a step leaves nothing, or is no pass over the disk; and what format 1 leaves out.
USUAL: Final[Mapping[str, Any]] = {
    "torn_by": "",
    "work": "",
    "size": "source_size",
    "volatile": False,
    "rests_on": "",
    "settles": False,
    "repeatable": True,
    "bars": False,
    "leaves": "",
    "where": "hypervisor",
    "named": "",
}
# In this order, in which the database and the API have them.
KEPT: Final = (
    *("name", "phase", "on", "verb", "title", "undo", "torn_by", "work", "size"),
    *("volatile", "rests_on", "settles", "repeatable", "bars", "leaves", "where", "named"),
)


class NewerPlan(ValueError):  # noqa: N818 - the word that callers read
    """A stored plan is of a format, or has a step, that only a newer volmig can read."""


def kept(step: Step) -> dict[str, Any]:
    """What a plan stores of a step beside what it shows of it."""
    found = {**USUAL, **{name: getattr(step, name) for name in PLAIN}}
    if step.artifact:
        found |= {"leaves": step.artifact.kind, "where": step.artifact.where, "named": step.artifact.named}
    if step.throughput:
        found |= {"work": step.throughput.name, "size": step.throughput.size}
    return {name: found[name] for name in KEPT}


def read(row: Mapping[str, Any]) -> Step:
    """The step as it was planned; where it was stored by name only, as it was when plans were stored so.

    Raise NewerPlan when this volmig knows no step of that name.
    """
    today = _today(row["name"])
    said = row["step"] if "step" in row else {**row, **USUAL, **FIRST_STEPS[row["name"]]}
    return replace(
        today,
        args={},
        **{name: said[name] for name in PLAIN},
        artifact=_artifact(today, said),
        throughput=_throughput(today, said),
    )


def box(row: Mapping[str, Any]) -> str:
    """The title of the box in which a stored step is drawn; empty for one that this volmig does not know."""
    today = routes.named().get(row["name"])
    return today.box if today else ""


def is_limited(row: Mapping[str, Any]) -> bool:
    """Whether a bandwidth limit holds for a stored step."""
    today = routes.named().get(row["name"])
    return today is not None and today.throughput is not None and today.throughput.limited


def _today(name: str) -> Step:
    today = routes.named().get(name)
    if today is None:
        raise NewerPlan(f"A newer volmig made this plan: this volmig knows no step {name}.")
    return today


def _artifact(today: Step, said: Mapping[str, Any]) -> Artifact | None:
    if not said["leaves"]:
        return None
    usual = today.artifact or Artifact("", "")
    return replace(usual, kind=said["leaves"], where=said["where"], named=said["named"])


def _throughput(today: Step, said: Mapping[str, Any]) -> Throughput | None:
    if not said["work"]:
        return None
    usual = today.throughput or Throughput("", "", today.seconds)
    return replace(usual, name=said["work"], size=said["size"])
