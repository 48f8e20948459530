"""The pre-checks: what must hold before a disk is moved, each with a sentence for people and what was found.

What is about one part of the route stands in the file of that part; here is what all routes have in common.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from jobs.engine import host_policy, routes
from jobs.engine.host_facts import Contents, Destination, Disk, Source
from jobs.engine.routes import Route
from jobs.engine.rules import BLOCKS, INFORMS, WARNS, About, Case, Check, Finding, Rule, Rules

SKEW: Final = 2.0  # seconds
rule: Final = Rules()


def look(case: Case) -> list[Check]:
    """Every check of the migration's route that the facts allow, hosts first."""
    route = routes.of(case.migration)
    case = replace(case, delivers=route.transport.delivers, size=route.source.size(case.facts))
    return [*_hosts(case, route), *(check for each in rules_of(route) if (check := each.look(case)))]


def rules_of(route: Route) -> list[Rule]:
    """The checks of a route, in the order in which pages show them."""
    every = [each for rules in (rule, *(part.rules for part in route.parts)) for each in rules]
    return sorted(every, key=lambda each: each.about)


def blocking(checks: list[Check]) -> list[Check]:
    """Those that keep the migration from being planned."""
    return [check for check in checks if check.severity == BLOCKS and not check.ok]


def _hosts(case: Case, route: Route) -> Iterator[Check]:
    for role in route.roles:
        name = case.migration.host(role)
        trouble = case.around.trouble.get(role)
        if trouble:
            yield Check(f"{role} answers", BLOCKS, False, f"The {role} {name}: {trouble.sentence}", trouble.kind)
        else:
            yield Check(f"{role} answers", BLOCKS, True, f"The {role} {name} answers.")
    silent = case.around.trouble.get("instance")
    if silent:
        yield Check("Nova answers", BLOCKS, False, f"Nova: {silent.sentence}", silent.kind)
    elif case.nova:
        yield Check("Nova answers", BLOCKS, True, f"Nova answers, as API {case.nova.version}.")


@rule(
    About.POLICY,
    "policies allow it",
    BLOCKS,
    "The policy of each hypervisor allows what the plan needs there.",
    "policies",
)
def _policies_allow_it(case: Case, policies: Mapping[str, Mapping[str, Any]]) -> Finding:
    found = host_policy.objections(case.migration, case.facts, policies, case.around.seal_keys)
    sentences = [
        f"{case.migration.host(role)}: {each.found}. {each.next_step}" for role, said in found.items() for each in said
    ]
    codes = {case.migration.host(role): [each.code for each in said] for role, said in found.items()}
    return (" ".join(sentences), codes) if sentences else None


@rule(About.OTHER_JOBS, "one job per volume", BLOCKS, "No other job moves this volume.")
def _volume_is_not_in_a_job(case: Case) -> Finding:
    other = case.around.job_with_volume
    return (f"Migration {other} already moves {case.source_path}.", other) if other else None


@rule(About.OTHER_JOBS, "one job per instance", BLOCKS, "No other job works on this instance.")
def _instance_is_not_in_a_job(case: Case) -> Finding:
    other = case.around.job_with_instance
    return (f"Migration {other} already works on {case.migration.instance_name}.", other) if other else None


@rule(About.SIZE, "not smaller", BLOCKS, "The source volume is not smaller than the present disk.", "size", "disk")
def _not_smaller(case: Case, size: int, disk: Disk) -> Finding:
    if size < disk.virtual_size:
        return f"{case.source_path} has {size} bytes, the present disk {disk.virtual_size}: it would shrink.", {
            "volume": size,
            "disk": disk.virtual_size,
        }
    return None


@rule(
    About.SIZE,
    "not larger than allowed",
    WARNS,
    "The disk will not be larger than the instance may have.",
    "size",
    "disk",
    "destination",
)
def _not_larger(case: Case, size: int, disk: Disk, destination: Destination) -> Finding:
    extent = case.group.extent_size if case.group else 4 << 20
    allowed = destination.domain.max_bytes if destination.domain else None
    allowed = disk.virtual_size if allowed is None else allowed
    if size <= allowed + extent:
        return None
    return (
        f"The disk grows to {size} bytes; the instance is meant to have {allowed}. Whoever approves has to want this."
    ), {"volume": size, "allowed": allowed}


@rule(About.SIZE, "same size", INFORMS, "The disk keeps its size.", "size", "disk")
def _same_size(case: Case, size: int, disk: Disk) -> Finding:
    if size > disk.virtual_size:
        return f"The disk grows from {disk.virtual_size} to {size} bytes.", size - disk.virtual_size
    return None


@rule(
    About.CONTENTS,
    "filesystems keep their names",
    WARNS,
    "The guest's fstab cannot name a filesystem that goes away.",
    "source",
    "destination",
)
def _names_stay(case: Case, source: Source, destination: Destination) -> Finding:
    gone = _names(destination.contents) - _names(source.contents)
    unread = destination.contents.unread if destination.contents else ()
    if not gone and unread:
        listed_unread = ", ".join(str(number) for number in unread)
        return (
            f"The names of the filesystems on partition {listed_unread} of the current disk are not known: only its "
            "first 4 MiB were read. Compare the guest's fstab with the source volume."
        ), list(unread)
    if not gone:
        return None
    listed = sorted(gone)
    return f"The guest's fstab may name what the new disk lacks: {', '.join(listed)}. It might then not boot.", listed


@rule(
    About.CONTENTS, "instance has left the source", INFORMS, "The source does not know the instance any more.", "source"
)
def _instance_has_left(case: Case, source: Source) -> Finding:
    guest = source.instance_running
    if guest and guest.uuid == case.migration.instance_id:
        return f"Instance {guest.name} itself is still defined on the source {case.migration.source}.", guest.uuid
    return None


@rule(About.CLOCKS, "clocks agree", WARNS, "The hypervisors' clocks agree with volmig's.")
def _clocks_agree(case: Case) -> Finding:
    off = {case.migration.host(role): round(by, 1) for role, by in case.around.skew.items() if abs(by) > SKEW}
    if off:
        return "Clocks differ: " + ", ".join(f"{name} by {by} s" for name, by in off.items()) + ".", off
    return None


def _names(contents: Contents | None) -> set[str]:
    found = contents.filesystems if contents else ()
    named = [("UUID", each.uuid) for each in found] + [("LABEL", each.label) for each in found]
    return {f"{kind}={name}" for kind, name in named if name}
