"""From what is asked and what was seen to a plan: every step with its arguments, commands, bytes and seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hosts.remote.hostctl.act import Act
from jobs.engine import routes, stored_steps
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.routes import Route
from jobs.engine.steps import INSTANCE, LIMITS, QUICK, Made, Range, Step, Task
from jobs.engine.stored_steps import SHOWN, NewerPlan

FORMAT: Final = 2  # of a stored plan; format 1, which names none, holds its steps by name only
DOWNTIME: Final = frozenset({Task.STOP, Task.EXCHANGE, Task.START})  # what the instance is down for


class Unready(LookupError):  # noqa: N818 - the word that callers read
    """A step's argument stands for something that no earlier step has measured."""


@dataclass(frozen=True)
class Ref:
    """A value that a later look into the journal gives; `expected` is shown meanwhile where the facts foretell it."""

    step: str
    key: str
    label: str
    expected: Any = None

    def shown(self) -> Any:
        """What stands for it in a command that is shown before it is known."""
        return f"«{self.label}»" if self.expected is None else self.expected

    def found(self, evidence: Mapping[str, Mapping[str, Any]]) -> Any:
        """The value among what was measured; raise Unready when it is not there."""
        value: Any = evidence.get(self.step)
        for key in self.key.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise Unready(f"{self.label} is not known: step {self.step} has not measured it.")
            value = value[key]
        return value


@dataclass(frozen=True)
class Planned:
    """One step of a plan: its forecast, the seconds after the swap that it waits, the name of what it leaves.

    `control` names who is asked to do it; empty for hostctl. `written` are the commands as they were shown when the
    plan was stored, by "commands" and "undo_commands": those are approved, whatever a newer volmig would build today.
    """

    step: Step
    hypervisor: str
    args: Mapping[str, Any]
    bytes: int = 0
    seconds: Range = QUICK
    not_before: int = 0
    leaves: str = ""
    control: str = ""
    written: Mapping[str, list[dict[str, str]]] = field(default_factory=dict, compare=False)

    def filled(self, evidence: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments with every Ref resolved; raise Unready when one cannot be."""
        return dict(_refs(self.args, lambda ref: ref.found(evidence)))

    def shown(self) -> dict[str, Any]:
        """The arguments with a placeholder for each Ref of which the facts foretell nothing."""
        return dict(_refs(self.args, Ref.shown))

    def with_args(self, args: Mapping[str, Any]) -> Planned:
        """The same step with other arguments, and so with other commands."""
        return replace(self, args=args, written={})

    def commands(self, job: str) -> list[dict[str, str]]:
        """What it changes, as kind and text: as it was stored, else by the builders of today."""
        if "commands" in self.written:
            return self.written["commands"]
        return [{"kind": act.kind, "text": act.text} for act in self.acts(self.step.verb, self.shown(), job)]

    def undo_commands(self, job: str) -> list[dict[str, str]]:
        """The same of its undo; none when it has no undo."""
        if not self.step.undo:
            return []
        if "undo_commands" in self.written:
            return self.written["undo_commands"]
        return [{"kind": act.kind, "text": act.text} for act in self.acts(self.step.undo, self.shown(), job)]

    def acts(self, verb: str, args: dict[str, Any], job: str) -> tuple[Act, ...]:
        """What a verb of this step changes, by the builders of whoever carries it out."""
        return routes.control_of(self.control).acts(verb, args, job)


@dataclass(frozen=True)
class Plan:
    """The steps of one migration, in order; `footprint` are the bytes that are kept free for it, by place."""

    job: str
    steps: tuple[Planned, ...]
    footprint: Mapping[str, int] = field(default_factory=dict)

    def one(self, task: Task) -> Planned:
        """The step of a task of which each plan has one; raise LookupError when it has none, or several."""
        found = [each for each in self.steps if each.step.task is task]
        if len(found) != 1:
            raise LookupError(f"The plan has {len(found)} steps to {task}.")
        return found[0]

    def phase(self, *names: str) -> tuple[Planned, ...]:
        """Its steps in these phases (A to D), in order."""
        return tuple(each for each in self.steps if each.step.phase in names)

    def texts(self, phase: str) -> list[str]:
        """The commands of a phase, in order."""
        return [act["text"] for each in self.phase(phase) for act in each.commands(self.job)]

    def undo_texts(self, phase: str) -> list[str]:
        """The commands by which a phase is undone, the last step first."""
        return [act["text"] for each in reversed(self.phase(phase)) for act in each.undo_commands(self.job)]

    def seconds(self, names: Iterable[str]) -> list[float]:
        """The sum of the forecasts of these steps: low, middle, high."""
        wanted = set(names)
        rows = [each.seconds for each in self.steps if each.step.name in wanted]
        return [round(sum(row[which] for row in rows), 1) for which in range(3)]

    def to_json(self) -> dict[str, Any]:
        """As the database and the API have it, with forecasts in seconds (low, usual, high)."""
        return {
            "format": FORMAT,
            "steps": [self._row(each) for each in self.steps],
            "downtime": self.seconds(each.step.name for each in self.steps if each.step.task in DOWNTIME),
            "total": self.seconds(each.step.name for each in self.phase("A", "B")),
            "footprint": dict(self.footprint),
        }

    def _row(self, each: Planned) -> dict[str, Any]:
        step = each.step
        return {
            **{name: getattr(step, name) for name in SHOWN},
            "step": stored_steps.kept(step),
            "hypervisor": each.hypervisor,
            "args": _refs(each.args, _packed),
            "commands": each.commands(self.job),
            "undo_commands": each.undo_commands(self.job),
            "bytes": each.bytes,
            "seconds": list(each.seconds),
            "not_before": each.not_before,
            "leaves": each.leaves,
            "control": each.control,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], job: str) -> Plan:
        """The plan as it was shown: its steps, arguments and commands, not those of today's table.

        Raise NewerPlan when it was stored by a newer volmig.
        """
        if (found := raw.get("format", 1)) > FORMAT:
            raise NewerPlan(f"A newer volmig made this plan: its format is {found}, this volmig reads up to {FORMAT}.")
        return cls(job, tuple(_planned(row) for row in raw["steps"]), raw.get("footprint", {}))


def make(migration: Migration, facts: Facts, rates: Mapping[str, Range] | None = None) -> Plan:
    """The plan; `rates` are bytes per second (slow, usual, fast) of earlier jobs, by the name of the pass.

    Raise ValueError when facts are missing that a plan cannot do without.
    """
    route = routes.of(migration)
    values = route.values(migration, facts)
    steps = tuple(_plan_step(step, migration, values, rates or {}) for step in route.steps)
    return Plan(migration.job, steps, _reserved(route, values))


def _reserved(route: Route, values: Mapping[str, Any]) -> dict[str, int]:
    """Where space is kept free for what steps make, the share or a role of hypervisors, and how many bytes."""
    found: Counter[str] = Counter()
    for step in route.steps:
        if step.artifact and step.artifact.reserves:
            found["share" if step.artifact.on_share else step.on] += int(values[step.artifact.reserves])
    return dict(found)


def at_rate(plan: Plan, rate: int) -> Plan:
    """The same plan with another bandwidth limit in the passes that have one."""

    def changed(ref: Ref) -> Ref:
        return replace(ref, expected=rate) if ref.step == LIMITS else ref

    steps = tuple(each.with_args(_refs(each.args, changed)) for each in plan.steps)
    return replace(plan, steps=steps)


def purge_of_rejected(plan: Plan, route: Route) -> Plan:
    """The same plan after a rollback: then it is the new disk that is not used any more."""
    purge = plan.one(Task.PURGE)
    other = purge.with_args({**purge.args, **_given(route.sink.purge_after_rollback(), {})})
    return replace(plan, steps=tuple(other if each is purge else each for each in plan.steps))


def rehearsal(migration: Migration, path: str, recorded: Mapping[str, Any], size: int) -> tuple[Planned, ...]:
    """The steps that read the disk kept at `path` (its size in bytes) and compare it with what is recorded of it."""
    route = routes.of(migration)
    return tuple(_of_rehearsal(step, route, migration, path, recorded, size) for step in route.rehearsal)


def _of_rehearsal(
    step: Step, route: Route, migration: Migration, path: str, recorded: Mapping[str, Any], size: int
) -> Planned:
    """A kept disk is read as fast as a copy is read back."""
    if step.task is not Task.REHEARSE:
        return Planned(step, migration.host(step.on), {})
    through = route.one(Task.VERIFY).throughput
    seconds = _forecast(size, through.guess, 0) if through else step.seconds
    return Planned(step, migration.host(step.on), route.sink.rehearsed(migration, path, recorded), size, seconds)


def _plan_step(step: Step, migration: Migration, values: Mapping[str, Any], rates: Mapping[str, Range]) -> Planned:
    size, seconds = 0, step.seconds
    if through := step.throughput:
        size = int(values[through.size])
        seconds = _forecast(size, rates.get(through.name, through.guess), migration.rate if through.limited else 0)
    args = _given(step.args, values)
    settle, name = values["settle"] if step.settles else 0, values[step.artifact.named] if step.artifact else ""
    control = migration.control if step.on == INSTANCE else ""
    return Planned(step, migration.host(step.on), args, size, seconds, settle, name, control)


def _forecast(size: int, speed: Range, limit: int) -> Range:
    slow, usual, fast = (min(each, limit) if limit else each for each in speed)
    low, middle, high = (round(size / each + 1, 1) for each in (fast, usual, slow))
    return low, middle, high


def _given(args: Any, values: Mapping[str, Any]) -> Any:
    """A step's arguments with names replaced by planned values, and values still to be measured by Refs."""
    if isinstance(args, Mapping):
        return {key: _given(value, values) for key, value in args.items()}
    if isinstance(args, Made):
        return Ref(args.step, args.key, args.label, values[args.like] if args.like else None)
    return values[args]


def _refs(args: Any, change: Callable[[Ref], Any]) -> Any:
    """The same arguments with every Ref replaced, however deep."""
    if isinstance(args, Mapping):
        return {key: _refs(value, change) for key, value in args.items()}
    return change(args) if isinstance(args, Ref) else args


def _packed(ref: Ref) -> dict[str, Any]:
    return {"ref": [ref.step, ref.key, ref.label, ref.expected]}


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"ref"}:
        return Ref(*value["ref"])
    if isinstance(value, Mapping):
        return {key: _unpacked(inner) for key, inner in value.items()}
    return value


def _planned(row: Mapping[str, Any]) -> Planned:
    low, middle, high = row["seconds"]
    return Planned(
        stored_steps.read(row),
        row["hypervisor"],
        _unpacked(row["args"]),
        row["bytes"],
        (low, middle, high),
        row["not_before"],
        row["leaves"],
        row.get("control", ""),
        {name: row[name] for name in ("commands", "undo_commands") if name in row},
    )
