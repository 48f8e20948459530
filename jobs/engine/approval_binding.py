"""What an approval binds: a canonical form, its digest, and what changed between two of them in words."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hosts.remote.nova_control import HARMLESS, told
from jobs.engine.evidence import Evidence
from jobs.engine.host_facts import Facts, Nova, Source
from jobs.engine.plan import Migration, Plan
from jobs.engine.steps import Task

MAY_BE = ("running", "shut off")
NOVA_MAY_BE = ("ACTIVE", "SHUTOFF")


def digest(bound: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, as 64 hex digits."""
    text = json.dumps(bound, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(shown: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """One line for each value that is not what was shown."""
    before, after = dict(_flat(shown)), dict(_flat(seen))
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: was {before.get(name, 'absent')}, is {after.get(name, 'absent')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def why_void(changes: list[str]) -> str:
    """Why an approval does not count any more, from the lines of `difference`."""
    what = {line.split(":", 1)[0].split(" ", 1)[0] for line in changes}
    if "hostctl" in what:
        return "volmig was upgraded: the migration would be carried out with another version of hostctl than was shown."
    if "commands" in what:
        return "Other commands would be carried out than were shown."
    return "What was approved is no longer true."


def swap(migration: Migration, facts: Facts, plan: Plan, evidence: Evidence, hostctl: str) -> dict[str, Any]:
    """Everything a consent to the swap stands on; all of it holds while the instance still runs."""
    return {
        "job": migration.job,
        "source": {"volume": f"{migration.source_vg}/{migration.source_lv}", **_volume(facts.source)},
        "stage": {key: evidence.one(Task.VERIFY).get(key) for key in ("sha256", "inode", "file_size")},
        "live": _live(facts),
        "instance": _instance(migration, facts),
        "commands": plan.texts("B"),
        "hostctl": hostctl,
    }


def stale(facts: Facts, evidence: Evidence) -> list[str]:
    """What makes the verified copy worthless: it is not the file that was read back, or the source was written to."""
    volume = facts.source.volume if facts.source else None
    stage = facts.destination.stage if facts.destination else None
    parts = (
        ("stage", evidence.one(Task.VERIFY), stage, ("inode", "file_size", "mtime_ns")),
        ("source", evidence.one(Task.FENCE), volume, ("writes", "sectors_written")),
    )
    return [
        line
        for name, then, now, keys in parts
        for line in difference(
            {f"{name} {key}": then[key] for key in keys},
            {f"{name} {key}": getattr(now, key) for key in keys} if now else {},
        )
    ]


def foreign_stage(facts: Facts, evidence: Evidence) -> bool:
    """Whether another file than the one that was made lies where the copy should."""
    stage = facts.destination.stage if facts.destination else None
    return stage is not None and stage.inode != evidence.one(Task.VERIFY)["inode"]


def rollback(migration: Migration, plan: Plan, evidence: Evidence) -> dict[str, Any]:
    """Consent to put the old disk back and so to give up what was written since the swap."""
    return {
        "job": migration.job,
        "gives up": "everything that the instance wrote since the swap",
        "instance": {"id": migration.instance_id, "host": migration.destination},
        "swap": dict(evidence.one(Task.EXCHANGE)),
        "commands": plan.undo_texts("B"),
    }


def purge(migration: Migration, plan: Plan, evidence: Evidence, kept: str) -> dict[str, Any]:
    """Consent to delete the disk that is not used any more; `kept` says in words which disk stays."""
    return {
        "job": migration.job,
        "stays": kept,
        "instance": {"id": migration.instance_id, "host": migration.destination},
        "swap": dict(evidence.one(Task.EXCHANGE)),
        "commands": plan.texts("D"),
    }


def _volume(source: Source | None) -> dict[str, Any]:
    volume = source.volume if source else None
    if volume is None:
        return {"lv_uuid": None}
    return {
        "lv_uuid": volume.uuid,
        "size": volume.size,
        "writes": volume.writes,
        "sectors_written": volume.sectors_written,
    }


def _live(facts: Facts) -> dict[str, Any]:
    disk = facts.destination.disk if facts.destination else None
    if disk is None:
        return {"path": None}
    return {
        "path": disk.path,
        "inode": disk.inode,
        "format": disk.format,
        "virtual_size": disk.virtual_size,
        "backing": list(disk.backing),
    }


def _instance(migration: Migration, facts: Facts) -> dict[str, Any]:
    domain = facts.destination.domain if facts.destination else None
    state = domain.state if domain else "absent"
    return {
        "id": migration.instance_id,
        "host": migration.destination,
        "may be": list(MAY_BE),
        "is": "as allowed" if state in MAY_BE else state,
        **(in_nova(facts.instance, f"volmig:{migration.job}") if facts.instance else {}),
    }


def in_nova(nova: Nova, reason: str) -> dict[str, Any]:
    """What a consent stands on of what Nova says: where it is, that it rests, and what was last done to it."""
    server = nova.server
    if server is None:
        return {"in Nova": "deleted"}
    last = next((row for row in nova.actions if row.action not in HARMLESS), None)
    locked = server.locked and server.locked_reason != reason
    return {
        "in Nova": "as allowed" if server.status in NOVA_MAY_BE else server.status,
        "on": server.host or "no host",
        "task": server.task_state or "none",
        "locked by others": (server.locked_reason or "yes") if locked else "no",
        "flavour": server.flavor,
        "last action": told(dataclasses.asdict(last)) if last else "none on record",
        "request": last.request if last else "",
    }


def not_now(facts: Facts) -> tuple[str, bool]:
    """Why nobody can be asked to consent just now, and whether that passes by itself; an empty sentence: they can."""
    nova = facts.instance
    if nova is None:
        return "", True
    server = nova.server
    if server is None:
        return "Nova does not know the instance any more: it was deleted.", False
    if server.host not in nova.names and server.hypervisor not in nova.names:
        where, wanted = server.host or "no host", " or ".join(nova.names)
        return f"Nova has the instance on {where} now, not on {wanted}: it was moved.", False
    if server.task_state or server.status not in NOVA_MAY_BE:
        busy = f" ({server.task_state})" if server.task_state else ""
        return f"The instance is {server.status}{busy} in Nova; people are asked when it runs or is shut off.", True
    return "", True


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif isinstance(value, list):
        for number, inner in enumerate(value, 1):
            yield from _flat(inner, f"{name} {number}".strip())
    else:
        yield name, value
