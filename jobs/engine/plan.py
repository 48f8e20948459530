"""From what is asked and what was seen to a plan: every step with its arguments, commands, bytes and seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hosts.remote import hostctl, nova_control
from hosts.remote.hostctl.act import Act
from jobs.engine import stored_steps
from jobs.engine.host_facts import Facts
from jobs.engine.steps import (
    INSTANCE,
    LIMITS,
    QUICK,
    REHEARSAL,
    REREAD,
    TABLE,
    Made,
    Range,
    Step,
    Task,
    hypervisor_role,
)
from jobs.engine.stored_steps import SHOWN, NewerPlan

MIB: Final = 1 << 20
CLUSTER: Final = 1 << 16
FORMAT: Final = 2  # of a stored plan; format 1, which names none, holds its steps by name only
AFTER_TIMEOUT: Final = 120  # seconds beyond the image's own shutdown timeout until a stop counts as stuck
DOWNTIME: Final = frozenset({Task.STOP, Task.EXCHANGE, Task.START})  # what the instance is down for


class Unready(LookupError):  # noqa: N818 - the word that callers read
    """A step's argument stands for something that no earlier step has measured."""


@dataclass(frozen=True)
class Migration:
    """What a job asks for, in names and bytes; the engine's view of a job."""

    job: str
    number: int
    source: str
    relay: str
    destination: str
    source_vg: str
    source_lv: str
    lv_uuid: str
    source_size: int
    relay_vg: str
    share_source: str
    instance_id: str
    instance_name: str
    disk: str
    relay_address: str = ""
    rate: int = 0
    deadline: int = 180
    margin: int = 30
    control: str = ""  # how the instance is locked, stopped and started: "openstack", or by its own hypervisor

    @property
    def hex(self) -> str:
        return self.job.replace("-", "")

    @property
    def relay_lv(self) -> str:
        return f"volmig_{self.hex[:12]}"

    def host(self, on: str) -> str:
        """The name of the hypervisor that a step's `on` means."""
        name: str = getattr(self, hypervisor_role(on))
        return name


@dataclass(frozen=True)
class Ref:
    """A value that a later look into the journal gives; `expected` is shown meanwhile where the facts foretell it."""

    step: str
    key: str
    label: str
    expected: Any = None

    def shown(self) -> Any:
        return f"«{self.label}»" if self.expected is None else self.expected

    def found(self, evidence: Mapping[str, Mapping[str, Any]]) -> Any:
        value: Any = evidence.get(self.step)
        for key in self.key.split("."):
            if not isinstance(value, Mapping) or key not in value:
                raise Unready(f"{self.label} is not known: step {self.step} has not measured it.")
            value = value[key]
        return value


@dataclass(frozen=True)
class Planned:
    """One step of a plan: its forecast, the seconds after the swap that it waits, the name of what it leaves.

    `control` is "openstack" where Nova is asked to do it. `written` are the commands as they were shown when the plan
    was stored, by "commands" and "undo_commands": those are approved, whatever a newer volmig would build today.
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
        return dict(_refs(self.args, Ref.shown))

    def with_args(self, args: Mapping[str, Any]) -> Planned:
        """The same step with other arguments, and so with other commands."""
        return replace(self, args=args, written={})

    def commands(self, job: str) -> list[dict[str, str]]:
        if "commands" in self.written:
            return self.written["commands"]
        return [{"kind": act.kind, "text": act.text} for act in self.acts(self.step.verb, self.shown(), job)]

    def undo_commands(self, job: str) -> list[dict[str, str]]:
        if not self.step.undo:
            return []
        if "undo_commands" in self.written:
            return self.written["undo_commands"]
        return [{"kind": act.kind, "text": act.text} for act in self.acts(self.step.undo, self.shown(), job)]

    def acts(self, verb: str, args: dict[str, Any], job: str) -> tuple[Act, ...]:
        """What a verb of this step changes, by the builders of whoever carries it out."""
        builders: Callable[[str, dict[str, Any], str], tuple[Act, ...]] = (
            nova_control.acts if self.control == "openstack" else hostctl.acts
        )
        return builders(verb, args, job)


@dataclass(frozen=True)
class Plan:
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
        return tuple(each for each in self.steps if each.step.phase in names)

    def texts(self, phase: str) -> list[str]:
        return [act["text"] for each in self.phase(phase) for act in each.commands(self.job)]

    def undo_texts(self, phase: str) -> list[str]:
        return [act["text"] for each in reversed(self.phase(phase)) for act in each.undo_commands(self.job)]

    def seconds(self, names: Iterable[str]) -> list[float]:
        """The sum of the forecasts of these steps: low, middle, high."""
        wanted = set(names)
        rows = [each.seconds for each in self.steps if each.step.name in wanted]
        return [round(sum(row[which] for row in rows), 1) for which in range(3)]

    def to_json(self) -> dict[str, Any]:
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


def qcow2_size(virtual: int) -> int:
    """Bytes of a qcow2 file in which every cluster of `virtual` bytes is allocated."""
    data = math.ceil(virtual / CLUSTER)
    tables = math.ceil(data / (CLUSTER // 8))
    directory = math.ceil(tables / (CLUSTER // 8))
    counts = math.ceil((data + tables + directory + 2) / (CLUSTER // 2))
    return (data + tables + directory + counts + 2) * CLUSTER


def relay_size(virtual: int, extent: int) -> int:
    """Bytes of the temporary volume: the largest possible copy, its filesystem and some air, in whole extents."""
    wanted = math.ceil(qcow2_size(virtual) * 1.05) + 256 * MIB
    return math.ceil(wanted / extent) * extent


def make(migration: Migration, facts: Facts, rates: Mapping[str, Range] | None = None) -> Plan:
    """The plan; `rates` are bytes per second (slow, usual, fast) of earlier jobs, by the name of the pass.

    Raise ValueError when facts are missing that a plan cannot do without.
    """
    values = planned_values(migration, facts)
    steps = tuple(_plan_step(step, migration, values, rates or {}) for step in TABLE)
    return Plan(migration.job, steps, dict(_reserved(values)))


def _reserved(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Where space is kept free for what a step makes, the share or a role of hypervisors, and how many bytes."""
    for step in TABLE:
        if step.artifact and step.artifact.reserves:
            yield "share" if step.artifact.on_share else step.on, int(values[step.artifact.reserves])


def planned_values(migration: Migration, facts: Facts) -> dict[str, Any]:
    """Everything that the table of steps refers to by name."""
    source, relay, destination = facts.source, facts.relay, facts.destination
    if not (source and source.volume and relay and relay.vg and relay.share and destination and destination.share):
        raise ValueError("A plan needs the source volume, the relay's volume group, and the share on both sides.")
    owner = destination.share
    settle = destination.acdirmax + migration.margin
    stage = f"{destination.instances}/.volmig/{migration.job}"
    return {
        **{
            name: getattr(migration, name)
            for name in (
                "source_vg",
                "source_lv",
                "lv_uuid",
                "source_size",
                "relay_vg",
                "relay_lv",
                "share_source",
                "instance_id",
                "disk",
                "relay_address",
                "rate",
            )
        },
        "deadline": stop_deadline(migration, facts),
        "relay_size": relay_size(migration.source_size, relay.vg.extent_size),
        "stage_size": qcow2_size(migration.source_size),
        "fs_uuid": migration.job,
        "relay_mount": f"/srv/volmig/{migration.hex}",
        "source_mount": f"/mnt/volmig/{migration.hex}",
        "relay_lv_path": f"{migration.relay_vg}/{migration.relay_lv}",
        "source_path": f"{migration.source_vg}/{migration.source_lv}",
        "source_address": source.source_address,
        "uid": owner.owner_uid,
        "gid": owner.owner_gid,
        "units_to_start": [unit for unit, state in relay.nfs_server.items() if state == "inactive"],
        "relay_instances": relay.share.target,
        "instances": destination.instances,
        "stage_path": f"{stage}/disk.new",
        "backup_path": f"{stage}/disk.old",
        "reason": f"volmig:{migration.job}",
        "permission": source.volume.permission,
        "holder_unit": f"volmig-{migration.hex}-holder",
        "settle": settle,
    }


def stop_deadline(migration: Migration, facts: Facts) -> int:
    """Seconds that the instance gets to shut down; Nova cuts its power off after what the image says."""
    said = facts.instance.properties.get("os_shutdown_timeout", "") if facts.instance else ""
    return max(migration.deadline, int(said) + AFTER_TIMEOUT) if said.isdecimal() else migration.deadline


def at_rate(plan: Plan, rate: int) -> Plan:
    """The same plan with another bandwidth limit in the passes that have one."""

    def changed(ref: Ref) -> Ref:
        return replace(ref, expected=rate) if ref.step == LIMITS else ref

    steps = tuple(each.with_args(_refs(each.args, changed)) for each in plan.steps)
    return replace(plan, steps=steps)


def purge_of_rejected(plan: Plan) -> Plan:
    """The same plan after a rollback: then it is the new disk that is not used any more."""
    exchange, purge = plan.one(Task.EXCHANGE).step.name, plan.one(Task.PURGE)
    other = purge.with_args(
        {
            **purge.args,
            "backup_inode": Ref(exchange, "live_inode", "inode of the rejected disk"),
            "live_inode": Ref(exchange, "backup_inode", "inode of the disk in use"),
        }
    )
    return replace(plan, steps=tuple(other if each is purge else each for each in plan.steps))


def rehearsal(migration: Migration, path: str, recorded: Mapping[str, Any], size: int) -> tuple[Planned, ...]:
    """The steps that read the disk kept at `path` (its size in bytes) and compare it with what is recorded of it."""
    instances = path.rpartition("/.volmig/")[0]
    args = {"instances": instances, "share_source": migration.share_source, "backup_path": path, "recorded": recorded}
    rehearse, forget = REHEARSAL
    seconds = _forecast(size, REREAD.guess, 0)
    return Planned(rehearse, migration.destination, args, size, seconds), Planned(forget, migration.destination, {})


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
    """The table's arguments with names replaced by planned values, and values still to be measured by Refs."""
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
