"""Compares what a migration would ask of its hypervisors with the policy that each of them reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hosts.remote.hostctl import policy, verbs
from hosts.remote.hostctl.policy import Objection
from jobs.engine import routes
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.plan import make
from jobs.engine.steps import INSTANCE, hypervisor_role

Call = tuple[str, str, dict[str, Any]]


def objections(
    migration: Migration, facts: Facts, reports: Mapping[str, Mapping[str, Any]], keys: Mapping[str, str]
) -> dict[str, list[Objection]]:
    """What the policies refuse, by role, in the words in which hostctl would refuse it; roles without a report are left
    out.

    `reports` are the answers to the verb `policy`, `keys` the fingerprints of the keys under which volmig seals.
    """
    found: dict[str, dict[Objection, None]] = {}
    for role, verb, args in calls(migration, facts):
        if role in reports:
            said = policy.objections(policy.reported(reports[role]), verb, args, not verbs.VERBS[verb].mutates)
            found.setdefault(role, {}).update(dict.fromkeys(said or _unsealed(verb, reports[role], keys.get(role, ""))))
    return {role: list(each) for role, each in found.items() if each}


def calls(migration: Migration, facts: Facts) -> Iterator[Call]:
    """Role, verb and arguments of everything that hostctl would be asked, as far as it is known beforehand."""
    for role, (verb, args) in routes.of(migration).fact_requests(migration).items():
        if role != INSTANCE:
            yield role, verb, args
    try:
        steps = make(migration, facts).steps
    except ValueError:  # facts are missing, of which other checks say why
        return
    for each in steps:
        if routes.control_of(each.control).by_host:
            role = hypervisor_role(each.step.on)
            for verb in filter(None, (each.step.verb, each.step.undo)):
                yield role, verb, each.shown()


def _unsealed(verb: str, report: Mapping[str, Any], key: str) -> list[Objection]:
    """Whether the seals that volmig makes would be believed there; nothing is said where its own key is not known."""
    if not policy.RULES[verb].sealed or not key or key in report.get("seal_keys", ()):
        return []
    return [
        Objection(
            "seal-foreign",
            f"no seal key in {policy.PATH} is the one under which volmig seals (fingerprint {key})",
            "Put the key that the hypervisor's page prints into seal_keys there, as root, then check again.",
        )
    ]
