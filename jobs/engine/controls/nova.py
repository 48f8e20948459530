"""Through Nova: the cloud locks, stops and starts the instance, and says what it does with it besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from hosts.remote import nova_control
from hosts.remote.hostctl.act import Act
from hosts.remote.nova_control import HARMLESS, told
from jobs.engine.controls.libvirt import Libvirt
from jobs.engine.host_facts import Destination, Facts, Move, Nova, Server, Service
from jobs.engine.migration import Migration
from jobs.engine.rules import BLOCKS, INFORMS, WARNS, About, Case, Finding, Rules
from jobs.engine.steps import INSTANCE

MAY_BE: Final = ("ACTIVE", "SHUTOFF")
rule: Final = Rules(Libvirt.rules)


class ByNova(Libvirt):
    """The same steps, carried out by the API of Nova; libvirt is asked besides."""

    kind = "openstack"
    by_host = False
    rules = rule
    facts = {INSTANCE: ("nova_facts", Nova)}

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """Its UUID."""
        return {INSTANCE: {"instance": ask.instance_id}}

    def acts(self, verb: str, args: dict[str, Any], job: str) -> tuple[Act, ...]:
        """Those of the API of Nova."""
        return nova_control.acts(verb, args, job)

    def binding(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Its place, state, flavour and lock in Nova, and what was last done to it there."""
        return in_nova(facts.instance, f"volmig:{ask.job}") if facts.instance else {}

    def not_now(self, facts: Facts) -> tuple[str, bool]:
        """It was deleted, moved, or is at work."""
        return not_now(facts)


def in_nova(nova: Nova, reason: str) -> dict[str, Any]:
    """What a consent stands on of what Nova says: where it is, that it rests, and what was last done to it."""
    server = nova.server
    if server is None:
        return {"in Nova": "deleted"}
    last = next((row for row in nova.actions if row.action not in HARMLESS), None)
    locked = server.locked and server.locked_reason != reason
    return {
        "in Nova": "as allowed" if server.status in MAY_BE else server.status,
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
    if server.task_state or server.status not in MAY_BE:
        busy = f" ({server.task_state})" if server.task_state else ""
        return f"The instance is {server.status}{busy} in Nova; people are asked when it runs or is shut off.", True
    return "", True


# Its checks


@rule(About.CLOUD, "Nova knows the instance", BLOCKS, "Nova knows the instance.", "nova")
def _nova_knows(case: Case, nova: Nova) -> Finding:
    if nova.server is None:
        return f"Nova does not know {case.migration.instance_id}: it was deleted, or belongs to another cloud.", None
    return None


@rule(
    About.CLOUD, "Nova agrees on the hypervisor", BLOCKS, "Nova has the instance on this hypervisor.", "nova", "server"
)
def _nova_agrees(case: Case, nova: Nova, server: Server) -> Finding:
    if {server.host, server.hypervisor} & set(nova.names):
        return None
    where = server.host or "no host that this credential may see"
    return (
        f"Nova has {server.name} on {where}; {case.migration.destination} is {' or '.join(nova.names)} there. "
        "If that is the same machine, enter its name in Nova on the hypervisor's page."
    ), {"host": server.host, "hypervisor": server.hypervisor, "names": list(nova.names)}


@rule(About.CLOUD, "nothing is under way in Nova", BLOCKS, "Nova is not at work on the instance.", "server")
def _nova_rests(case: Case, server: Server) -> Finding:
    if server.task_state:
        return f"Nova is at work on {server.name}: {server.task_state}. Wait until it is done.", server.task_state
    return None


@rule(About.CLOUD, "state in Nova", BLOCKS, "In Nova the instance runs or is shut off.", "server")
def _nova_state(case: Case, server: Server) -> Finding:
    if server.status not in MAY_BE:
        more = f" ({server.fault})" if server.fault else ""
        return f"{server.name} is {server.status} in Nova{more}; it has to be ACTIVE or SHUTOFF.", server.status
    return None


@rule(
    About.CLOUD,
    "Nova and libvirt agree",
    BLOCKS,
    "Nova and libvirt say the same about the instance.",
    "server",
    "destination",
)
def _nova_and_libvirt(case: Case, server: Server, destination: Destination) -> Finding:
    said = {"ACTIVE": "running", "SHUTOFF": "shut off"}.get(server.status)
    domain = destination.domain
    if said and domain and not server.task_state and domain.state != said:
        return f"Nova says {server.status}, libvirt says {domain.state}. One of them is wrong; find out which.", {
            "Nova": server.status,
            "libvirt": domain.state,
        }
    return None


@rule(About.CLOUD, "not locked by somebody else", BLOCKS, "No one else has locked the instance.", "server")
def _nova_unlocked(case: Case, server: Server) -> Finding:
    if server.locked and server.locked_reason != f"volmig:{case.migration.job}":
        return (
            f"{server.name} is locked in Nova: {server.locked_reason or 'no reason was given'}. Ask whoever did it."
        ), server.locked_reason
    return None


@rule(About.CLOUD, "fits the flavour", WARNS, "The flavour allows a disk of this size.", "server", "size")
def _fits_flavour(case: Case, server: Server, size: int) -> Finding:
    allowed = server.root_gb if case.migration.disk == "disk" else server.ephemeral_gb
    if size <= allowed << 30:
        return None
    kind = "root" if case.migration.disk == "disk" else "ephemeral"
    return (
        f"The flavour {server.flavor} gives {allowed} GiB of {kind} disk, the volume has {size} bytes. "
        "Nova does not know of the difference: a rebuild or a resize makes a disk by the flavour."
    ), {"flavour": server.flavor, "allowed_gib": allowed, "volume": size}


PENDING: Final = frozenset(
    {"accepted", "queued", "preparing", "pre-migrating", "migrating", "running", "post-migrating"}
)
UNDECIDED: Final = PENDING | {"finished"}  # a resize that waits for its confirmation


@rule(About.CLOUD, "no migration is pending", BLOCKS, "No migration of the instance is pending in Nova.", "nova")
def _nothing_pending(case: Case, nova: Nova) -> Finding:
    pending = [each for each in nova.moves if each.status in UNDECIDED and each.kind != "evacuation"]
    pending += [each for each in nova.moves if each.status in PENDING and each.kind == "evacuation"]
    if pending:
        return f"Nova moves the instance: {_moved(pending)}. Wait until that has ended.", _moved(pending)
    return None


@rule(
    About.CLOUD,
    "no evacuation threatens the source",
    BLOCKS,
    "No evacuation makes Nova delete the source volume.",
    "nova",
)
def _source_is_safe(case: Case, nova: Nova) -> Finding:
    # nova-compute deletes, when it starts, what was evacuated from it, with every volume whose name begins with the id.
    moves = nova.source_moves or (nova.moves if case.migration.instance_id in case.migration.source_lv else ())
    risky = [each for each in moves if each.kind == "evacuation" and each.status in PENDING | {"done"}]
    risky = [each for each in risky if not nova.source_names or each.source in nova.source_names]
    if not risky:
        return None
    return (
        f"The instance of {case.source_path} was evacuated: {_moved(risky)}. When nova-compute starts on "
        f"{case.migration.source}, it wipes and removes this volume. Copy the volume to another name first."
    ), _moved(risky)


@rule(
    About.CLOUD,
    "source instance rests in Nova",
    BLOCKS,
    "Nova does nothing with the instance that the volume was of.",
    "nova",
)
def _source_rests(case: Case, nova: Nova) -> Finding:
    owner = nova.source_server
    if owner is None or not ({owner.host, owner.hypervisor} & set(nova.source_names)):
        return None
    if owner.task_state or owner.status in ("ACTIVE", "SOFT_DELETED", "PAUSED", "REBUILD", "RESIZE"):
        busy = f" ({owner.task_state})" if owner.task_state else ""
        return (
            f"{case.source_path} belongs to {owner.name}, which is {owner.status}{busy} in Nova on "
            f"{case.migration.source}. Stop it first; a deleted one takes its volume along."
        ), {"status": owner.status, "task": owner.task_state}
    return None


@rule(
    About.CLOUD,
    "source instance may be started",
    INFORMS,
    "Nova cannot start an instance on the source volume.",
    "nova",
)
def _source_may_start(case: Case, nova: Nova) -> Finding:
    owner = nova.source_server
    if owner and {owner.host, owner.hypervisor} & set(nova.source_names) and owner.status == "SHUTOFF":
        return (
            f"{case.source_path} still belongs to {owner.name} in Nova. While it is copied, a start of that instance "
            "fails; afterwards it would run on a disk that lives on elsewhere."
        ), owner.uuid
    return None


@rule(About.CLOUD, "compute of the destination works", BLOCKS, "nova-compute of the destination is up.", "nova")
def _destination_compute(case: Case, nova: Nova) -> Finding:
    service = _service(nova, nova.names)
    if service and (service.forced_down or service.state not in ("", "up")):
        how = "forced down" if service.forced_down else service.state
        return (
            f"nova-compute on {case.migration.destination} is {how}: a stop would be accepted and not carried out."
        ), how
    return None


@rule(About.CLOUD, "computes are enabled", WARNS, "nova-compute of source and destination is enabled.", "nova")
def _computes_enabled(case: Case, nova: Nova) -> Finding:
    sides = {case.migration.source: nova.source_names, case.migration.destination: nova.names}
    seen = {name: _service(nova, names) for name, names in sides.items()}
    off = [
        f"{name} ({each.reason or 'no reason given'})"
        for name, each in seen.items()
        if each and each.status == "disabled"
    ]
    if off:
        return f"nova-compute is disabled on {' and '.join(off)}: it may be being drained or repaired.", off
    return None


@rule(About.CLOUD, "compute of the source works", WARNS, "nova-compute of the source is up, or there is none.", "nova")
def _source_compute(case: Case, nova: Nova) -> Finding:
    service = _service(nova, nova.source_names)
    if service and (service.forced_down or service.state not in ("", "up")):
        how = "forced down" if service.forced_down else service.state
        return (
            f"nova-compute on {case.migration.source} is {how}. When it comes back it deletes what was evacuated "
            "from it until then; volmig holds the volume open until the swap, but not after it."
        ), how
    return None


@rule(About.CLOUD, "bus of the disk", INFORMS, "The image sets no disk bus.", "nova")
def _bus(case: Case, nova: Nova) -> Finding:
    bus = nova.properties.get("hw_disk_bus", "virtio")
    if bus != "virtio":
        return f"The image asks for the disk bus {bus}: the guest names its disks after it, as it did before.", bus
    return None


@rule(About.CLOUD, "time to shut down", INFORMS, "The image sets no shutdown timeout.", "nova")
def _shutdown(case: Case, nova: Nova) -> Finding:
    asked = nova.properties.get("os_shutdown_timeout", "")
    if asked:
        return f"The image gives the guest {asked} s to shut down; the stop is given that and two minutes more.", asked
    return None


def _moved(moves: list[Move]) -> str:
    return "; ".join(f"{each.kind} from {each.source} to {each.destination}, {each.status}" for each in moves)


def _service(nova: Nova, names: tuple[str, ...]) -> Service | None:
    return next((each for each in nova.services if each.host in names), None)


NOVA: Final = ByNova()
