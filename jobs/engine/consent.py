"""What an approval binds: a canonical form, its digest, and what changed between two of them in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.engine.facts import Facts, Source
from jobs.engine.plan import Migration, Plan

MAY_BE = ("running", "shut off")


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


def swap(
    migration: Migration, facts: Facts, plan: Plan, evidence: Mapping[str, Mapping[str, Any]], hostctl: str
) -> dict[str, Any]:
    """Everything a consent to the swap stands on; all of it holds while the instance still runs."""
    return {
        "job": migration.job,
        "source": {"volume": f"{migration.source_vg}/{migration.source_lv}", **_volume(facts.source)},
        "stage": {key: evidence["stage_verify"].get(key) for key in ("sha256", "inode", "file_size")},
        "live": _live(facts),
        "instance": _instance(migration, facts),
        "commands": plan.texts("B"),
        "hostctl": hostctl,
    }


def stale(facts: Facts, evidence: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the verified copy worthless: it is not the file that was read back, or the source was written to."""
    volume = facts.source.volume if facts.source else None
    stage = facts.destination.stage if facts.destination else None
    parts = (
        ("stage", evidence["stage_verify"], stage, ("inode", "file_size", "mtime_ns")),
        ("source", evidence["source_fence"], volume, ("writes", "sectors_written")),
    )
    return [
        line
        for name, then, now, keys in parts
        for line in difference(
            {f"{name} {key}": then[key] for key in keys},
            {f"{name} {key}": getattr(now, key) for key in keys} if now else {},
        )
    ]


def foreign_stage(facts: Facts, evidence: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether another file than the one that was made lies where the copy should."""
    stage = facts.destination.stage if facts.destination else None
    return stage is not None and stage.inode != evidence["stage_verify"]["inode"]


def rollback(migration: Migration, plan: Plan, evidence: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Consent to put the old disk back and so to give up what was written since the swap."""
    return {
        "job": migration.job,
        "gives up": "everything that the instance wrote since the swap",
        "instance": {"id": migration.instance_id, "host": migration.destination},
        "swap": dict(evidence["swap"]),
        "commands": plan.undo_texts("B"),
    }


def purge(migration: Migration, plan: Plan, evidence: Mapping[str, Mapping[str, Any]], kept: str) -> dict[str, Any]:
    """Consent to delete the disk that is not used any more; `kept` says in words which disk stays."""
    return {
        "job": migration.job,
        "stays": kept,
        "instance": {"id": migration.instance_id, "host": migration.destination},
        "swap": dict(evidence["swap"]),
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
    }


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name} {key}".strip())
    elif isinstance(value, list):
        for number, inner in enumerate(value, 1):
            yield from _flat(inner, f"{name} {number}".strip())
    else:
        yield name, value
