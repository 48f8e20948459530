"""The ledger against reality: what should be there, what hypervisors tell is there, and what each difference means."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from jobs.engine import routes
from jobs.engine.routes import task_of
from jobs.engine.steps import Artifact, ByHand, Step, Task

Verdict = Literal["needed", "left", "gone", "stranger", "other"]
DRIFT: Final[frozenset[str]] = frozenset({"left", "gone", "stranger", "other"})
STANDING: Final = frozenset({"present", "reserved"})
# What a job leaves beside the rows of its ledger, and which its journal proves: absence means nothing.
TRACES: Final = frozenset({"unit", "memory", "directory"})


@dataclass(frozen=True)
class Thing:
    """What a scan found at a place (a hypervisor's name or a share's source); `job` is the UUID in its marker."""

    kind: str
    place: str
    name: str
    job: str
    identity: str
    bytes: int = 0
    since: datetime | None = None
    path: str = ""
    seen_by: str = ""


@dataclass(frozen=True)
class Entry:
    """What the ledger says of one thing; `identity` is empty where none was ever measured.

    `state` is reserved, present or gone, or for what its journal proves trace, or running for a unit that goes on.
    `needed` says why it has to stay, empty when nothing needs it any more. `at_work` tells that its job still makes and
    removes things by itself.
    """

    kind: str
    place: str
    name: str
    job: str
    identity: str
    state: str
    since: datetime
    needed: str = ""
    at_work: bool = False
    key: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Told:
    """Since when a place's scan knows nothing new, and the kinds that it told all of."""

    place: str
    at: datetime
    kinds: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """One comparison; a stranger has no entry, what is gone no thing."""

    verdict: Verdict
    entry: Entry | None
    thing: Thing | None
    at: datetime

    @property
    def about(self) -> Entry | Thing:
        """What the ledger says of it, else what was seen."""
        found = self.entry or self.thing
        assert found is not None  # noqa: S101 - one of both there always is
        return found

    @property
    def drifts(self) -> bool:
        """Whether somebody has to look; what a job at work has lost, it finds out and says itself."""
        at_work = self.entry is not None and self.entry.at_work
        return self.verdict in DRIFT and not (self.verdict == "gone" and at_work)


def compare(entries: Sequence[Entry], things: Sequence[Thing], told: Iterable[Told]) -> list[Finding]:
    """Every thing and every entry once; nothing of what cannot be told: a place that was not asked since it changed."""
    heard = {each.place: each for each in told}
    ledger = {_key(entry): entry for entry in entries}
    names = {(entry.kind, entry.place, entry.name): entry for entry in entries if entry.state in STANDING}
    findings, met = [], set()
    for thing in things:
        entry = ledger.get(_key(thing)) or names.get((thing.kind, thing.place, thing.name))
        if entry is not None and entry.since >= heard[thing.place].at:
            met.add(_key(entry))  # the ledger is newer than the scan
            continue
        findings.append(_of_thing(thing, entry, heard[thing.place].at))
        if entry is not None:
            met.add(_key(entry))
    missing = [entry for entry in entries if _key(entry) not in met]
    return findings + [found for entry in missing if (found := _of_missing(entry, heard.get(entry.place)))]


def _key(each: Entry | Thing) -> tuple[str, str, str, str]:
    return each.kind, each.place, each.name, each.job


def _of_thing(thing: Thing, entry: Entry | None, at: datetime) -> Finding:
    if entry is None:
        return Finding("stranger", None, thing, at)
    if thing.job != entry.job or (entry.identity and thing.identity != entry.identity):
        return Finding("other", entry, thing, at)
    return Finding("needed" if entry.needed else "left", entry, thing, at)


def _of_missing(entry: Entry, told: Told | None) -> Finding | None:
    """An entry that nobody saw: gone, when its place was asked since and told all of the kind."""
    if entry.state not in STANDING or told is None:
        return None
    if entry.kind not in told.kinds or entry.since >= told.at or (entry.state == "reserved" and entry.at_work):
        return None
    return Finding("gone", entry, None, told.at)


def why_not_removed(found: Finding) -> str:
    """Why volmig does not take this away, as a sentence; empty when it may be asked to."""
    if found.verdict == "gone":
        return "It is already gone."
    if found.entry is None or found.thing is None:
        return "It is not in the inventory of this volmig, which therefore never changes it. Inspect it manually."
    if found.verdict == "other":
        return (
            f"Another object has this name: the inventory has {found.entry.identity or 'nothing'}, found was "
            f"{found.thing.identity or 'nothing'}. volmig does not change it. Inspect it manually."
        )
    if found.entry.needed:
        return found.entry.needed
    if found.entry.kind == "backup":
        return "It is an instance's disk: only a purge deletes it. Request that on its migration's page."
    if not found.entry.identity or found.entry.identity != found.thing.identity:
        return "Its identity was never recorded, so volmig cannot prove that it is the same. Inspect it manually."
    return ""


def why_not_struck(found: Finding) -> str:
    """Why this cannot be marked as gone, as a sentence; empty when it can."""
    if found.verdict != "gone" or found.entry is None:
        return "Its hypervisor reports that it is there."
    if found.entry.at_work:
        return "Its migration is running and will detect this."
    return ""


def step_for(kind: str, name: str, role: str, running: bool = False) -> str:
    """The step whose undo removes a thing, as hostctl guards it; empty where none does.

    `role` is what its hypervisor is in its job, for what every one has. A conversion or comparison that still runs is
    stopped by its own undo; other units are waited for. A backup goes by its purge alone.
    """
    if artifact := _made_with(kind, name):
        return _leaving(artifact.kind)
    if kind == "unit" and running and (step := _copying(name)):
        return step
    if kind in ("unit", "memory"):
        return next(each.name for each in routes.steps() if each.task is Task.FORGET and each.undo and each.on == role)
    return _leaving(kind)


def _made_with(kind: str, name: str) -> Artifact | None:
    """What a unit or a directory of this name is made with; None for other ones."""
    for _, artifact in _artifacts():
        units, directories = artifact.by_hand.units, artifact.by_hand.directories
        if kind == "unit" and units and name.endswith(units):
            return artifact
        if kind == "directory" and directories and name.startswith(directories):
            return artifact
    return None


def _leaving(kind: str) -> str:
    """The step that leaves things of this kind which its undo may remove alone; empty when none does."""
    return next((step.name for step, artifact in _artifacts() if artifact.kind == kind and artifact.removable), "")


def _copying(unit: str) -> str:
    """The step that reads the source in this unit of systemd; empty for other units and for an undo."""
    step, direction = [*unit.split("-")[2:4], "", ""][:2]
    return step if direction == "do" and task_of(step) in (Task.COPY, Task.COMPARE) else ""


def bound(kind: str, identity: str) -> dict[str, Any]:
    """Arguments of the undoing verb besides what the job measured: the identity that the ledger recorded."""
    argument = next((artifact.undo_arg for _, artifact in _artifacts() if artifact.kind == kind), "")
    if not argument:
        return {}
    where, _, name = argument.rpartition(".")
    return {where: {name: identity}} if where else {name: int(identity)}


def leads_to(kind: str, step: str, args: Mapping[str, Any]) -> str:
    """Where a thing of this kind leads that a step with these planned arguments leaves; empty when it leaves none."""
    found = (each.leads_to for of, each in _artifacts() if (of.name, each.kind) == (step, kind))
    return next(found, "").format(**args)


def leading() -> frozenset[str]:
    """The kinds of things that have no identity but where they lead, which their plan says."""
    return frozenset(artifact.kind for _, artifact in _artifacts() if artifact.leads_to)


def _artifacts() -> Iterator[tuple[Step, Artifact]]:
    return ((step, step.artifact) for step in routes.steps() if step.artifact)


def word(kind: str) -> str:
    """What people call things of a kind."""
    found = (artifact.word for _, artifact in _artifacts() if artifact.kind == kind and artifact.word)
    return next(found, OF_HOSTCTL_WORDS.get(kind, kind))


# By hand


def by_hand(thing: Thing) -> tuple[list[str], list[str]]:
    """Commands for a shell of root on the hypervisor that saw it: to look at a thing, and to remove it."""
    looks, removes = _recipe(thing)
    folder = thing.path.rsplit("/", 1)[0]
    digits = thing.job.replace("-", "")
    values = {
        "path": shlex.quote(thing.path),
        "device": shlex.quote(f"/dev/{thing.path}"),
        "folder": shlex.quote(folder),
        "export": shlex.quote(f"{thing.identity}:{thing.path}"),
        "exports": f"/etc/exports.d/volmig-{digits}.exports",
        "select": shlex.quote(f'lv_uuid="{thing.identity}"'),
        "tag": shlex.quote(f"volmig.src={thing.job}"),
        "holder": f"volmig-{digits}-holder",
        "run": shlex.quote(f"/run/volmig/{thing.job}"),
        "unit": shlex.quote(f"{thing.path}.service"),
    }
    return [line.format(**values) for line in looks], [line.format(**values) for line in removes]


def _recipe(thing: Thing) -> tuple[Sequence[str], Sequence[str]]:
    """What looks at a thing of this kind and what removes it; nothing for kinds of which nobody knows."""
    if thing.kind == "directory":
        artifact = _made_with(thing.kind, thing.name)
        return ["ls -la -- {path}"], (artifact.by_hand if artifact else ByHand()).empties
    if thing.kind in OF_HOSTCTL:
        return OF_HOSTCTL[thing.kind]
    found = (artifact.by_hand for _, artifact in _artifacts() if artifact.kind == thing.kind)
    recipe = next(found, ByHand())
    return recipe.looks, recipe.removes


# What hostctl itself leaves wherever it was at work.
OF_HOSTCTL: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "unit": (["systemctl status -- {unit}"], ["systemctl stop -- {unit}", "systemctl reset-failed -- {unit}"]),
    "memory": (["ls -l -- {path}"], ["rm -r -- {path} {run}"]),
}
OF_HOSTCTL_WORDS: Final[Mapping[str, str]] = {"memory": "memory of hostctl"}
