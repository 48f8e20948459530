"""What an upgrade of volmig means for migrations under way, and what shows that this volmig is older than its database.

It reads columns by name, as far as the database has them: a new release looks at the database of the one before.
"""

import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from hosts.models import HostctlVersion, Hypervisor
from hosts.remote import hostctl
from hosts.remote.hostctl.install import START
from jobs.engine import plan, states
from jobs.models import Approval, Job
from jobs.models.job import ROLES
from volmig import schema

UNDER_WAY = (*sorted(states.ACTIVE - {"checking"}), "purging")
PROTOCOL = re.compile(rb"^PROTOCOL = ([0-9]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Version:
    """A version of hostctl: its hash, and the protocol that it speaks."""

    hash: str
    protocol: int


@dataclass(frozen=True)
class Affected:
    """A migration under way; `lacking` says for each hypervisor that lacks its version why it would wait there."""

    number: int
    status: str
    version: str
    lacking: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)


def own() -> Version:
    """The version of this source tree."""
    return Version(hostctl.source_hash(), hostctl.PROTOCOL)


def of_archive(path: Path) -> Version:
    """The version whose file this is; raises ValueError when it is no hostctl."""
    try:
        with zipfile.ZipFile(path) as packed:
            start, version = packed.read("__main__.py"), packed.read("hostctl/version.py")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a hostctl file: {error}") from error
    found, protocol = START.search(start), PROTOCOL.search(version)
    if not found:
        raise ValueError(f"{path} does not name its version of hostctl.")
    return Version(found[1].decode(), int(protocol[1]) if protocol else 1)


# A downgrade


def downgrade() -> str:
    """Why this volmig must not run on its database: a newer one has worked on it. Empty when it may."""
    newer = newer_than_this()
    way = "Start the release that last ran on this database, or restore a backup of the release that you start now."
    return f"This volmig is older than its database. {' '.join(newer)} Nothing was changed. {way}" if newer else ""


def newer_than_this() -> list[str]:
    """What the database has of a later release, as sentences; empty when it fits."""
    if unknown := [" ".join(key) for key in schema.newer(MigrationRecorder(connection).applied_migrations())]:
        return [f"The database has tables of a newer volmig ({', '.join(unknown)})."]
    active = list(rows(Job, "pk", "plan", "hostctl", status__in=UNDER_WAY))
    newer = [each for each in active if (each["plan"] or {}).get("format", 1) > plan.FORMAT]
    said = [
        f"Migration {each['pk']} has a plan of format {each['plan']['format']}, this volmig reads up to {plan.FORMAT}."
        for each in newer
    ]
    protocols = {each["pk"]: each["protocol"] for each in rows(HostctlVersion, "pk", "protocol")}
    return said + [
        f"Migration {each['pk']} began with hostctl {each['hostctl']}, which speaks protocol "
        f"{protocols[each['hostctl']]}; this volmig speaks up to {hostctl.PROTOCOL}."
        for each in active
        if protocols.get(each.get("hostctl"), 0) > hostctl.PROTOCOL
    ]


# An upgrade


def affected(target: Version) -> list[Affected]:
    """Every migration under way, as it stands once volmig has `target`."""
    hosts, kept = hypervisors(), {each["pk"] for each in rows(HostctlVersion, "pk")} | {target.hash}
    columns = ("pk", "status", "plan", "hostctl", *(f"{role}_id" for role in ROLES))
    return [of_job(each, hosts, kept) for each in rows(Job, *columns, status__in=UNDER_WAY)]


def of_job(job: dict[str, Any], hosts: dict[int, dict[str, Any]], kept: set[str]) -> Affected:
    """What the upgrade means for one migration: which version it needs, and where that is missing."""
    mine = [hosts[job[f"{role}_id"]] for role in ROLES]
    approvals = list(rows(Approval, "pk", "bound", job=job["pk"], kind="swap", consumed_at=None, voided_at=None))
    named = [each["bound"].get("hostctl", "") for each in approvals]
    seen = [each["hostctl_hash"] for each in reversed(mine) if each["hostctl_hash"]]
    version = next(filter(None, [job.get("hostctl"), *named, *seen]), "")
    lacking = [said for each in mine if (said := why_lacking(each, version, kept))]
    why_void = [said for each in approvals for said in void(each, job, version)]
    return Affected(job["pk"], job["status"], version, lacking, why_void)


def why_lacking(host: dict[str, Any], version: str, kept: set[str]) -> str:
    """Why a migration that needs this version would wait for a hypervisor; empty when it would not."""
    if host["shipped"]:
        return "" if version in kept else f"volmig has no file of hostctl {version} to upload to {host['name']}"
    there = host.get("hostctl_versions") or [host["hostctl_hash"]]
    if version in there:
        return ""
    return f"{host['name']} has {', '.join(filter(None, there)) or 'no known hostctl'}, not {version}"


def void(approval: dict[str, Any], job: dict[str, Any], version: str) -> list[str]:
    """Why what was approved would not count any more."""
    bound, said = approval["bound"], []
    if bound.get("hostctl") != version:
        said.append(f"approval {approval['pk']} names hostctl {bound.get('hostctl')}, not {version}")
    if bound.get("commands") != plan.Plan.from_json(job["plan"], "").texts("B"):
        said.append(f"approval {approval['pk']} shows other commands than the plan")
    return said


def to_install(target: Version) -> list[str]:
    """Hypervisors on which this version is not installed, by name; those to which it is shipped need nothing."""
    found = hypervisors(retired_at=None).values()
    return [
        each["name"]
        for each in found
        if not each["shipped"] and target.hash not in (each.get("hostctl_versions") or [each["hostctl_hash"]])
    ]


def sentences(found: Iterable[Affected]) -> list[str]:
    """One line for each migration, and what would keep it from going on."""
    lines = []
    for each in found:
        stays = f"continues with hostctl {each.version}" if each.version else "has not begun on any hypervisor"
        lines.append(f"Migration {each.number} ({each.status.replace('_', ' ')}) {stays}.")
        lines += [f"  It would wait: {said}." for said in each.lacking]
        lines += [f"  It would be approved again: {said}." for said in each.void]
    return lines


# The database, as far as it has this


def hypervisors(**which: Any) -> dict[int, dict[str, Any]]:
    """Hypervisors by key, with the columns that every release has."""
    columns = ("pk", "name", "shipped", "hostctl_hash", "hostctl_versions")
    return {each["pk"]: each for each in rows(Hypervisor, *columns, **which)}


def rows(model: Any, *names: str, **which: Any) -> list[dict[str, Any]]:
    """Rows with the columns of these that there are; none of a table that there is not."""
    columns = columns_of(model._meta.db_table)
    there = [name for name in names if (model._meta.pk.column if name == "pk" else name) in columns]
    return list(model.objects.order_by("pk").filter(**which).values(*there)) if there else []


def columns_of(table: str) -> set[str]:
    """The columns that a table has now; none when it does not exist."""
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            return set()
        return {each.name for each in connection.introspection.get_table_description(cursor, table)}
