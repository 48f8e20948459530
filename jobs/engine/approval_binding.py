"""What an approval binds: a canonical form, its digest, and what changed between two of them in words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.engine import routes
from jobs.engine.evidence import Evidence
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.plan import Plan
from jobs.engine.routes import Route
from jobs.engine.steps import Task

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
    route = routes.of(migration)
    return {
        "job": migration.job,
        "source": route.source.binding(migration, facts),
        "stage": {key: evidence.one(Task.VERIFY).get(key) for key in route.sink.identity},
        "live": route.sink.binding(facts),
        "instance": _instance(migration, facts),
        "commands": plan.texts("B"),
        "hostctl": hostctl,
    }


def stale(route: Route, facts: Facts, evidence: Evidence) -> list[str]:
    """What makes the verified copy worthless: it is not the file that was read back, or the source was written to."""
    parts = (
        ("stage", evidence.one(Task.VERIFY), route.sink.copy(facts), route.sink.unchanged),
        ("source", evidence.one(Task.FENCE), route.source.now(facts), route.source.unchanged),
    )
    return [
        line
        for name, then, now, keys in parts
        for line in difference(
            {f"{name} {key}": then[key] for key in keys},
            {f"{name} {key}": getattr(now, key) for key in keys} if now else {},
        )
    ]


def foreign_stage(route: Route, facts: Facts, evidence: Evidence) -> bool:
    """Whether something else than what was made lies where the copy should."""
    return route.sink.is_foreign(facts, evidence.one(Task.VERIFY))


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


def _instance(migration: Migration, facts: Facts) -> dict[str, Any]:
    domain = facts.destination.domain if facts.destination else None
    state = domain.state if domain else "absent"
    return {
        "id": migration.instance_id,
        "host": migration.destination,
        "may be": list(MAY_BE),
        "is": "as allowed" if state in MAY_BE else state,
        **routes.of(migration).control.binding(migration, facts),
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
