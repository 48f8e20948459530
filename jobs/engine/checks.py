"""The pre-checks: what must hold before a disk is moved, each with a sentence for people and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from jobs.engine import host_policy
from jobs.engine.approval_binding import NOVA_MAY_BE
from jobs.engine.host_facts import (
    Contents,
    Destination,
    Disk,
    Facts,
    Group,
    Move,
    Nova,
    Relay,
    Server,
    Service,
    Share,
    Source,
    Volume,
)
from jobs.engine.plan import Migration, qcow2_size, relay_size
from jobs.engine.steps import HYPERVISORS

BLOCKS: Final = "blocks"
WARNS: Final = "warns"
INFORMS: Final = "informs"
SKEW: Final = 2.0
NOT_MAPPED: Final = (65534, 4294967294)  # the kernel's overflow uid, as 32 and as 16 bits of it (user_namespaces(7))
SERVES_VERSION_3: Final = ("rpcbind", "rpc-statd", "nfs-mountd", "nfs-server")  # rpc.nfsd(8), rpc.statd(8): needs all
AIR: Final = 16 << 20  # what the share needs besides the stage: directories, card, the filer's own metadata


@dataclass(frozen=True)
class Check:
    name: str
    severity: str
    ok: bool
    sentence: str
    found: Any = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Trouble:
    """Why a hypervisor gave no facts: in the words of the error that its transport raised."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Around:
    """What the database knows around a job: bytes that other jobs have reserved, other jobs, clocks, silent hosts,
    and the policies of the hypervisors.
    """

    reserved_on_relay: int = 0
    reserved_on_share: int = 0
    job_with_volume: int | None = None
    job_with_instance: int | None = None
    skew: Mapping[str, float] = field(default_factory=dict)
    trouble: Mapping[str, Trouble] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what each role's hypervisor reports
    seal_keys: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the keys under which volmig seals


@dataclass(frozen=True)
class Case:
    """All that the checks look at; the properties are there because a check is only asked when they are."""

    migration: Migration
    facts: Facts
    around: Around = Around()

    @property
    def volume(self) -> Volume | None:
        return self.facts.source.volume if self.facts.source else None

    @property
    def disk(self) -> Disk | None:
        return self.facts.destination.disk if self.facts.destination else None

    @property
    def group(self) -> Group | None:
        return self.facts.relay.vg if self.facts.relay else None

    @property
    def share(self) -> Share | None:
        return self.facts.relay.share if self.facts.relay else None

    @property
    def source(self) -> Source | None:
        return self.facts.source

    @property
    def relay(self) -> Relay | None:
        return self.facts.relay

    @property
    def destination(self) -> Destination | None:
        return self.facts.destination

    @property
    def nova(self) -> Nova | None:
        return self.facts.instance

    @property
    def server(self) -> Server | None:
        return self.nova.server if self.nova else None

    @property
    def policies(self) -> Mapping[str, Mapping[str, Any]] | None:
        """None where no hypervisor could report one."""
        return self.around.policies or None

    @property
    def source_path(self) -> str:
        return f"{self.migration.source_vg}/{self.migration.source_lv}"


Finding = tuple[str, Any] | None
Judge = Callable[..., Finding]


@dataclass(frozen=True)
class Rule:
    """A named check: `judge` gets the case and the facts named in `needs`; it is not asked when one is missing."""

    name: str
    severity: str
    holds: str
    judge: Judge
    needs: tuple[str, ...]

    def look(self, case: Case) -> Check | None:
        facts = [getattr(case, need) for need in self.needs]
        if any(fact is None for fact in facts):
            return None
        finding = self.judge(case, *facts)
        if finding is None:
            return Check(self.name, self.severity, True, self.holds)
        return Check(self.name, self.severity, False, *finding)


RULES: list[Rule] = []


def rule(name: str, severity: str, holds: str, *needs: str) -> Callable[[Judge], Judge]:
    def register(judge: Judge) -> Judge:
        RULES.append(Rule(name, severity, holds, judge, needs))
        return judge

    return register


def look(case: Case) -> list[Check]:
    """Every check that the facts allow, hosts first."""
    return [*_hosts(case), *(check for each in RULES if (check := each.look(case)))]


def blocking(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.severity == BLOCKS and not check.ok]


def _hosts(case: Case) -> Iterator[Check]:
    for role in HYPERVISORS:
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


@rule("policies allow it", BLOCKS, "The policy of each hypervisor allows what the plan needs there.", "policies")
def _policies_allow_it(case: Case, policies: Mapping[str, Mapping[str, Any]]) -> Finding:
    found = host_policy.objections(case.migration, case.facts, policies, case.around.seal_keys)
    sentences = [
        f"{case.migration.host(role)}: {each.found}. {each.next_step}" for role, said in found.items() for each in said
    ]
    codes = {case.migration.host(role): [each.code for each in said] for role, said in found.items()}
    return (" ".join(sentences), codes) if sentences else None


@rule("three hypervisors", BLOCKS, "The relay is neither the source nor the destination.")
def _three(case: Case) -> Finding:
    asked = case.migration
    if asked.source == asked.destination:
        return f"Source and destination are both {asked.source}; there is nothing to carry.", asked.source
    if asked.relay in (asked.source, asked.destination):
        return f"The relay {asked.relay} is also the source or the destination; choose another relay.", asked.relay
    return None


@rule("one job per volume", BLOCKS, "No other job moves this volume.")
def _volume_is_not_in_a_job(case: Case) -> Finding:
    other = case.around.job_with_volume
    return (f"Migration {other} already moves {case.source_path}.", other) if other else None


@rule("one job per instance", BLOCKS, "No other job works on this instance.")
def _instance_is_not_in_a_job(case: Case) -> Finding:
    other = case.around.job_with_instance
    return (f"Migration {other} already works on {case.migration.instance_name}.", other) if other else None


@rule("volume is there", BLOCKS, "The source volume is there.", "source")
def _volume_is_there(case: Case, source: Source) -> Finding:
    if source.volume is None:
        return f"{case.source_path} is not on {case.migration.source} any more.", None
    return None


@rule("volume is the same", BLOCKS, "It is the volume that was chosen.", "volume")
def _volume_is_the_same(case: Case, volume: Volume) -> Finding:
    if volume.uuid != case.migration.lv_uuid:
        return f"{case.source_path} is another volume now: it was {case.migration.lv_uuid}, it is {volume.uuid}.", (
            volume.uuid
        )
    if volume.size != case.migration.source_size:
        return f"{case.source_path} has another size now: {case.migration.source_size} bytes became {volume.size}.", (
            volume.size
        )
    return None


@rule("volume is free", BLOCKS, "Nothing has the source volume open.", "volume")
def _volume_is_free(case: Case, volume: Volume) -> Finding:
    if volume.holders:
        return f"{case.source_path} is in use by {', '.join(volume.holders)}.", list(volume.holders)
    if volume.open:
        return f"{case.source_path} is open; LVM does not say who has it.", "open"
    return None


@rule("source instance is off", BLOCKS, "No instance runs on the source volume.", "source")
def _source_instance_is_off(case: Case, source: Source) -> Finding:
    guest = source.instance_running
    if guest and guest.state != "shut off":
        return f"Instance {guest.name} on {case.migration.source} uses {case.source_path} and is {guest.state}.", (
            guest.uuid
        )
    return None


@rule("volume is readable", BLOCKS, "The source volume is active, whole and of a plain kind.", "volume")
def _volume_is_readable(case: Case, volume: Volume) -> Finding:
    problem = _attribute_problem(volume.attributes) or ("" if volume.active else "is not active")
    if not problem:
        return None
    remedy = f" Activate it: lvchange -ay {case.source_path}." if problem == "is not active" else ""
    return f"{case.source_path} {problem}.{remedy}", volume.attributes


@rule("source volume group is whole", BLOCKS, "The volume group of the source can be written to by LVM.", "source")
def _source_group_is_whole(case: Case, source: Source) -> Finding:
    return _whole(case.migration.source, source.vg)


def _whole(host: str, group: Group | None) -> Finding:
    # Tags and permissions are metadata: LVM refuses to write them to a group of which a part is missing.
    if group is not None and group.problem:
        return f"The volume group {group.name} on {host} {group.problem}.", group.problem
    return None


@rule("source's instances are known", WARNS, "libvirt on the source says which instances use the volume.", "source")
def _instances_of_source_are_known(case: Case, source: Source) -> Finding:
    if source.virsh:
        return None
    return (
        f"virsh is not installed on {case.migration.source} (libvirt in a container?): only LVM and the kernel say "
        "whether the volume is in use. Make sure that no instance is defined on it."
    ), None


def _attribute_problem(attributes: str) -> str:
    """What lvs' attribute characters tell against copying: kind, state and health."""
    padded = attributes.ljust(9, "-")
    kind, state, health = padded[0], padded[4], padded[8]
    kinds = {
        "s": "is a snapshot",
        "S": "is a merging snapshot",
        "O": "is an origin that merges a snapshot",
        "t": "is a thin pool",
        "e": "is a pool's metadata",
        "v": "is being converted by LVM",
        "p": "is being moved by pvmove",
        "V": "is a thin volume; only plain volumes have been proved to copy",
    }
    states = {
        "s": "is suspended",
        "S": "is suspended",
        "I": "has an invalid snapshot",
        "-": "is not active",
        "i": "has a mapping without tables",
        "X": "is in an unknown state",
    }
    healths = {
        "p": "has lost a physical volume",
        "X": "is in unknown health",
        "D": "lies in a thin pool without space",
        "F": "lies in a failed thin pool",
        "M": "lies in a pool that needs repair",
    }
    return kinds.get(kind) or states.get(state) or healths.get(health) or ""


@rule("volume is plain", BLOCKS, "The source volume is not encrypted by its host.", "volume")
def _volume_is_plain(case: Case, volume: Volume) -> Finding:
    if volume.crypt:
        return f"{case.source_path} lies under dm-crypt; its bytes are of no use without the key.", "crypt"
    return None


@rule("address of the relay", BLOCKS, "Source and relay share a data network.")
def _relay_has_an_address(case: Case) -> Finding:
    if not case.migration.relay_address:
        return (
            f"{case.migration.source} and {case.migration.relay} have no data network in common; "
            "NFS never uses the management network."
        ), None
    return None


@rule("source reaches the relay", BLOCKS, "Nothing between source and relay filters NFS.", "source")
def _source_reaches_the_relay(case: Case, source: Source) -> Finding:
    # "refused" is a live machine whose service is not up yet; only silence tells of a firewall or a missing route.
    shut = [f"{probe.port} ({probe.state})" for probe in source.reach if probe.state not in ("open", "refused")]
    if shut:
        return f"{case.migration.source} cannot reach {case.migration.relay_address}, ports {', '.join(shut)}.", shut
    return None


@rule("relay can serve NFS", BLOCKS, "The relay has an NFS server.", "relay")
def _relay_can_serve(case: Case, relay: Relay) -> Finding:
    name, units = case.migration.relay, dict(relay.nfs_server)
    if units.get("nfs-server", "missing") == "missing":
        return f"The relay {name} has no NFS server; install it.", units
    absent = [f"{unit} is {units[unit]}" for unit in SERVES_VERSION_3 if units.get(unit) in ("missing", "masked")]
    if absent:
        return (
            f"The relay {name} cannot serve NFS version 3: {', '.join(absent)}. Install or unmask what is named, "
            "or choose another relay."
        ), units
    if relay.no_version_3:
        return (
            f"The relay {name} serves no NFS version 3 ({relay.no_version_3}). Allow it in /etc/nfs.conf, "
            "or choose another relay."
        ), relay.no_version_3
    return None


@rule("relay has the volume group", BLOCKS, "The relay's volume group is there.", "relay")
def _group_is_there(case: Case, relay: Relay) -> Finding:
    if relay.vg is None:
        why = f" LVM left something out: {relay.skipped}." if relay.skipped else ""
        return f"{case.migration.relay} has no volume group {case.migration.relay_vg}.{why}", relay.skipped or None
    return None


@rule("relay's volume group is whole", BLOCKS, "The relay's volume group can be written to by LVM.", "group")
def _relay_group_is_whole(case: Case, group: Group) -> Finding:
    return _whole(case.migration.relay, group)


@rule("relay has space", BLOCKS, "The relay has space for the temporary volume.", "group")
def _relay_has_space(case: Case, group: Group) -> Finding:
    need = relay_size(case.migration.source_size, group.extent_size)
    left = group.free - case.around.reserved_on_relay
    if need <= left:
        return None
    sentence = (
        f"{group.name} on {case.migration.relay} has {mib(left)} left ({mib(group.free)} free, "
        f"{mib(case.around.reserved_on_relay)} reserved by other jobs); "
        f"the temporary volume needs {mib(need)}."
    )
    return sentence, {"need": need, "free": group.free, "reserved": case.around.reserved_on_relay}


@rule("nothing of ours is left on the relay", BLOCKS, "The relay has nothing of the name that will be used.", "relay")
def _relay_is_clean(case: Case, relay: Relay) -> Finding:
    return _leftovers(case.migration.relay, relay.leftovers)


@rule("nothing of ours is left on the share", BLOCKS, "The share has nothing left of this job.", "destination")
def _share_is_clean(case: Case, destination: Destination) -> Finding:
    # The folders of other jobs hold the backups of their instances; they are as it should be.
    ours = tuple(name for name in destination.leftovers if name.rsplit("/", 1)[-1] == case.migration.job)
    return _leftovers(case.migration.destination, ours)


def _leftovers(host: str, names: tuple[str, ...]) -> Finding:
    if names:
        return f"{host} already has {', '.join(names)}, which this job did not make; look at it first.", list(names)
    return None


@rule("relay mounts the share", BLOCKS, "The relay mounts the share.", "relay")
def _relay_mounts_the_share(case: Case, relay: Relay) -> Finding:
    return _mounted(case.migration.relay, case.migration.share_source, relay.share)


@rule("destination mounts the share", BLOCKS, "The instance's hypervisor mounts the share.", "destination")
def _destination_mounts_the_share(case: Case, destination: Destination) -> Finding:
    return _mounted(case.migration.destination, case.migration.share_source, destination.share)


def _mounted(host: str, source: str, share: Share | None) -> Finding:
    if share is None:
        return f"{host} does not mount {source}.", None
    if "ro" in share.options.split(","):
        return f"{host} mounts {source} read-only.", share.options
    return None


@rule("locks reach the server", WARNS, "The destination takes its locks on the share's server.", "destination")
def _locks_reach_the_server(case: Case, destination: Destination) -> Finding:
    # qemu locks with fcntl; local_lock=flock keeps only the other kind of locks to the machine itself.
    words = set(destination.share.options.split(",")) if destination.share else set()
    local = sorted(words & {"nolock", "local_lock=all", "local_lock=posix"})
    if not local:
        return None
    return (
        f"{case.migration.destination} mounts {case.migration.share_source} with {', '.join(local)}: before the swap "
        f"only what runs on {case.migration.destination} itself is seen to have the disk open. "
        "Make sure that the instance runs on no other hypervisor."
    ), local


@rule("share is mounted hard", WARNS, "Relay and destination mount the share hard.")
def _share_is_mounted_hard(case: Case) -> Finding:
    # nfs(5): with soft, or softerr, a call without an answer fails, although the server may carry it out later.
    sides = ((case.migration.relay, case.relay), (case.migration.destination, case.destination))
    words = {
        name: set(side.share.options.split(",")) & {"soft", "softerr"} for name, side in sides if side and side.share
    }
    soft = sorted(name for name, found in words.items() if found)
    if not soft:
        return None
    return (
        f"{' and '.join(soft)} mount{'s' if len(soft) == 1 else ''} {case.migration.share_source} soft: a write or "
        "rename that gets no answer in time fails, although the filer may carry it out later. Mount the share hard."
    ), soft


@rule("share has space", BLOCKS, "The share has space for the staged copy beside the present disk.", "share")
def _share_has_space(case: Case, share: Share) -> Finding:
    need = qcow2_size(case.migration.source_size) + AIR
    left = share.free - case.around.reserved_on_share
    if need <= left:
        return None
    sentence = (
        f"{share.source} has {mib(left)} left ({mib(share.free)} free, "
        f"{mib(case.around.reserved_on_share)} reserved by other jobs); the staged copy may need {mib(need)}."
    )
    return sentence, {"need": need, "free": share.free, "reserved": case.around.reserved_on_share}


@rule("share can be written", BLOCKS, "The owner of the instances directory can write to the share.", "share")
def _share_can_be_written(case: Case, share: Share) -> Finding:
    if share.owner_uid in NOT_MAPPED:
        return (
            f"The owner of {share.source} is not mapped: its top directory appears to belong to {share.owner_uid} "
            "(nobody). With NFSv4 check that client and filer have the same id mapping domain (/etc/idmapd.conf)."
        ), {"owner": share.owner_uid}
    if share.squashes_root and share.owner_uid == 0:
        return (
            f"{share.source} squashes root, and its top directory belongs to root: nobody could write there. "
            "Give it to the user that instances run as."
        ), {"owner": 0, "squashes_root": True}
    return None


@rule("instance is there", BLOCKS, "The instance is on its hypervisor.", "destination")
def _instance_is_there(case: Case, destination: Destination) -> Finding:
    name = case.migration.destination
    if destination.domain_problem:
        return (
            f"libvirt on {name} did not report the instance: {destination.domain_problem}. "
            "Where libvirt runs in a container, virsh has to be installed on the host too."
        ), destination.domain_problem
    if destination.domain is None:
        return f"{name} has no instance {case.migration.instance_id}.", None
    return None


@rule("instance can be swapped", BLOCKS, "The instance runs or is shut off.", "destination")
def _instance_is_settled(case: Case, destination: Destination) -> Finding:
    domain = destination.domain
    if domain and domain.state not in ("running", "shut off"):
        return f"{domain.name} is {domain.state}; it has to run or be shut off.", domain.state
    return None


@rule("disk is there", BLOCKS, "The present disk is there.", "destination")
def _disk_is_there(case: Case, destination: Destination) -> Finding:
    if destination.disk is None:
        where = f"{destination.instances}/{case.migration.instance_id}/{case.migration.disk}"
        return f"{where} is not there, or not exactly one disk of the instance matches it.", None
    return None


@rule(
    "disk is the instance's",
    BLOCKS,
    "The file is the one that the instance uses, under one name.",
    "destination",
    "disk",
)
def _disk_is_one(case: Case, destination: Destination, disk: Disk) -> Finding:
    if disk.nlink != 1:
        return f"{disk.path} has {disk.nlink} names; it cannot be told which of them is used.", disk.nlink
    if destination.domain and destination.domain.source != disk.path:
        return f"The instance uses {destination.domain.source or 'no such disk'}, not {disk.path}.", (
            destination.domain.source
        )
    return None


FIRST_EPHEMERAL: Final = {"disk.local", "disk.eph0"}  # nova/virt/libvirt/blockinfo.py, get_disk_mapping


@rule("nothing else reads the disk", WARNS, "On its hypervisor only the instance has the disk open.", "destination")
def _nothing_else_reads(case: Case, destination: Destination) -> Finding:
    if not destination.readers:
        return None
    return (
        f"{', '.join(destination.readers)} on {case.migration.destination} has the current disk open. The swap waits a "
        "few seconds for it and is called off if it goes on: the instance then starts on its old disk. End it first."
    ), list(destination.readers)


def other_part(source_lv: str, disk: str) -> str:
    """The disk that a volume of this name was in its instance, when that is another than `disk`; else empty."""
    # A data disk on top of a root disk has every size and format right, and a guest that never boots again.
    part = re.fullmatch(r"[0-9a-f-]{36}_(disk(?:\.\w+)?)", source_lv)
    return part[1] if part and part[1] != disk else ""


@rule("same name", BLOCKS, "Volume and disk have the same part in their instances.")
def _same_name(case: Case) -> Finding:
    if part := other_part(case.migration.source_lv, case.migration.disk):
        advice = "Choose the disk of the same name."
        if {part, case.migration.disk} == FIRST_EPHEMERAL:
            new = re.sub(r"_disk\.\w+$", f"_{case.migration.disk}", case.migration.source_lv)
            advice = (
                "Both names can mean the first ephemeral disk: Nova calls it disk.local when it comes from the flavour "
                "alone and disk.eph0 when it was asked for at boot. If it is the same disk, rename the volume and "
                f"submit again: lvrename {case.migration.source_vg} {case.migration.source_lv} {new}"
            )
        return (
            f"The volume was {part} of its instance, and {case.migration.disk} of {case.migration.instance_name} "
            f"would be replaced. {advice}"
        ), part
    return None


@rule("disk is qcow2", BLOCKS, "File, disk.info and the instance's definition all say qcow2.", "destination", "disk")
def _disk_is_qcow2(case: Case, destination: Destination, disk: Disk) -> Finding:
    driver = destination.domain.driver if destination.domain else "qcow2"
    info = (destination.disk_info or {}).get(disk.path, "qcow2")
    said = {"the file": disk.format, "the instance's definition": driver, "disk.info": info}
    wrong = [f"{who} says {what or 'nothing'}" for who, what in said.items() if what != "qcow2"]
    return (f"{disk.path} is not qcow2 everywhere: {', '.join(wrong)}.", said) if wrong else None


@rule("image is safe to open", BLOCKS, "The disk's header leads to no other file that a tool would open.", "disk")
def _image_is_safe(case: Case, disk: Disk) -> Finding:
    if not disk.objections:
        return None
    why = "; ".join(disk.objections)
    return f"No tool was allowed to open {disk.path}: {why}. A rollback could not return to it.", list(disk.objections)


@rule("no internal snapshots", WARNS, "The present disk holds no internal snapshots.", "disk")
def _no_internal_snapshots(case: Case, disk: Disk) -> Finding:
    if not disk.snapshots:
        return None
    return (
        f"The present disk holds {disk.snapshots} internal snapshot(s). They stay in the old disk and are lost when it "
        "is purged; until then libvirt may list them, and reverting to one fails."
    ), disk.snapshots


@rule("no persistent bitmaps", WARNS, "No incremental backup rests on bitmaps in the present disk.", "disk")
def _no_bitmaps(case: Case, disk: Disk) -> Finding:
    if not disk.bitmaps:
        return None
    return (
        f"The present disk holds {disk.bitmaps} persistent bitmap(s). They stay in the old disk: an incremental backup "
        "that rests on them breaks at the swap. Plan a full backup after it."
    ), disk.bitmaps


@rule("not marked corrupt", WARNS, "The present disk is not marked corrupt.", "disk")
def _not_marked_corrupt(case: Case, disk: Disk) -> Finding:
    if not disk.corrupt:
        return None
    return (
        "The present disk is marked corrupt, and a rollback would return to it: QEMU does not start a guest on it "
        "until qemu-img check -r all has repaired it."
    ), True


@rule("not marked dirty", WARNS, "The present disk is not marked dirty.", "destination", "disk")
def _not_marked_dirty(case: Case, destination: Destination, disk: Disk) -> Finding:
    if not disk.dirty:
        return None
    runs = destination.domain is not None and destination.domain.state == "running"
    why = "lazy reference counts are on while the guest runs" if runs else "its last QEMU did not close it"
    return (
        f"The present disk is marked dirty: {why}. After a rollback QEMU repairs it before the guest starts, "
        "which takes longer than an ordinary start."
    ), True


@rule("bases have full paths", WARNS, "No base of the present disk is named relative to its directory.", "disk")
def _bases_have_full_paths(case: Case, disk: Disk) -> Finding:
    if not disk.relative_bases:
        return None
    return (
        f"The present disk names {', '.join(disk.relative_bases)} relative to its directory. While it is kept under "
        ".volmig its base is not found from there: rehearsals check the image alone, other tools cannot open it. "
        "A rollback puts it back where its base is found."
    ), list(disk.relative_bases)


@rule("not smaller", BLOCKS, "The source volume is not smaller than the present disk.", "volume", "disk")
def _not_smaller(case: Case, volume: Volume, disk: Disk) -> Finding:
    if volume.size < disk.virtual_size:
        return f"{case.source_path} has {volume.size} bytes, the present disk {disk.virtual_size}: it would shrink.", {
            "volume": volume.size,
            "disk": disk.virtual_size,
        }
    return None


@rule(
    "not larger than allowed",
    WARNS,
    "The disk will not be larger than the instance may have.",
    "volume",
    "disk",
    "destination",
)
def _not_larger(case: Case, volume: Volume, disk: Disk, destination: Destination) -> Finding:
    extent = case.group.extent_size if case.group else 4 << 20
    allowed = destination.domain.max_bytes if destination.domain else None
    allowed = disk.virtual_size if allowed is None else allowed
    if volume.size <= allowed + extent:
        return None
    return (
        f"The disk grows to {volume.size} bytes; the instance is meant to have {allowed}. "
        "Whoever approves has to want this."
    ), {"volume": volume.size, "allowed": allowed}


@rule("same size", INFORMS, "The disk keeps its size.", "volume", "disk")
def _same_size(case: Case, volume: Volume, disk: Disk) -> Finding:
    if volume.size > disk.virtual_size:
        return f"The disk grows from {disk.virtual_size} to {volume.size} bytes.", volume.size - disk.virtual_size
    return None


@rule("no backing chain", WARNS, "The present disk stands alone.", "disk")
def _no_backing(case: Case, disk: Disk) -> Finding:
    if disk.backing:
        return (
            f"The present disk stands on {', '.join(disk.backing)}, and Nova removes what no disk in use stands on. "
            "The swap keeps each under a second name beside the old disk. A rollback puts back what is gone, and is "
            "refused where that is not possible."
        ), list(disk.backing)
    return None


@rule(
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


def _names(contents: Contents | None) -> set[str]:
    found = contents.filesystems if contents else ()
    named = [("UUID", each.uuid) for each in found] + [("LABEL", each.label) for each in found]
    return {f"{kind}={name}" for kind, name in named if name}


@rule("instance has left the source", INFORMS, "The source does not know the instance any more.", "source")
def _instance_has_left(case: Case, source: Source) -> Finding:
    guest = source.instance_running
    if guest and guest.uuid == case.migration.instance_id:
        return f"Instance {guest.name} itself is still defined on the source {case.migration.source}.", guest.uuid
    return None


# What Nova says, where it controls the instance


@rule("Nova knows the instance", BLOCKS, "Nova knows the instance.", "nova")
def _nova_knows(case: Case, nova: Nova) -> Finding:
    if nova.server is None:
        return f"Nova does not know {case.migration.instance_id}: it was deleted, or belongs to another cloud.", None
    return None


@rule("Nova agrees on the hypervisor", BLOCKS, "Nova has the instance on this hypervisor.", "nova", "server")
def _nova_agrees(case: Case, nova: Nova, server: Server) -> Finding:
    if {server.host, server.hypervisor} & set(nova.names):
        return None
    where = server.host or "no host that this credential may see"
    return (
        f"Nova has {server.name} on {where}; {case.migration.destination} is {' or '.join(nova.names)} there. "
        "If that is the same machine, enter its name in Nova on the hypervisor's page."
    ), {"host": server.host, "hypervisor": server.hypervisor, "names": list(nova.names)}


@rule("nothing is under way in Nova", BLOCKS, "Nova is not at work on the instance.", "server")
def _nova_rests(case: Case, server: Server) -> Finding:
    if server.task_state:
        return f"Nova is at work on {server.name}: {server.task_state}. Wait until it is done.", server.task_state
    return None


@rule("state in Nova", BLOCKS, "In Nova the instance runs or is shut off.", "server")
def _nova_state(case: Case, server: Server) -> Finding:
    if server.status not in NOVA_MAY_BE:
        more = f" ({server.fault})" if server.fault else ""
        return f"{server.name} is {server.status} in Nova{more}; it has to be ACTIVE or SHUTOFF.", server.status
    return None


@rule("Nova and libvirt agree", BLOCKS, "Nova and libvirt say the same about the instance.", "server", "destination")
def _nova_and_libvirt(case: Case, server: Server, destination: Destination) -> Finding:
    said = {"ACTIVE": "running", "SHUTOFF": "shut off"}.get(server.status)
    domain = destination.domain
    if said and domain and not server.task_state and domain.state != said:
        return f"Nova says {server.status}, libvirt says {domain.state}. One of them is wrong; find out which.", {
            "Nova": server.status,
            "libvirt": domain.state,
        }
    return None


@rule("not locked by somebody else", BLOCKS, "Nobody else has locked the instance.", "server")
def _nova_unlocked(case: Case, server: Server) -> Finding:
    if server.locked and server.locked_reason != f"volmig:{case.migration.job}":
        return (
            f"{server.name} is locked in Nova: {server.locked_reason or 'no reason was given'}. Ask whoever did it."
        ), server.locked_reason
    return None


@rule("fits the flavour", WARNS, "The flavour allows a disk of this size.", "server", "volume")
def _fits_flavour(case: Case, server: Server, volume: Volume) -> Finding:
    allowed = server.root_gb if case.migration.disk == "disk" else server.ephemeral_gb
    if volume.size <= allowed << 30:
        return None
    kind = "root" if case.migration.disk == "disk" else "ephemeral"
    return (
        f"The flavour {server.flavor} gives {allowed} GiB of {kind} disk, the volume has {volume.size} bytes. "
        "Nova does not know of the difference: a rebuild or a resize makes a disk by the flavour."
    ), {"flavour": server.flavor, "allowed_gib": allowed, "volume": volume.size}


PENDING: Final = frozenset(
    {"accepted", "queued", "preparing", "pre-migrating", "migrating", "running", "post-migrating"}
)
UNDECIDED: Final = PENDING | {"finished"}  # a resize that waits for its confirmation


@rule("no migration is pending", BLOCKS, "No migration of the instance is pending in Nova.", "nova")
def _nothing_pending(case: Case, nova: Nova) -> Finding:
    pending = [each for each in nova.moves if each.status in UNDECIDED and each.kind != "evacuation"]
    pending += [each for each in nova.moves if each.status in PENDING and each.kind == "evacuation"]
    if pending:
        return f"Nova moves the instance: {_moved(pending)}. Wait until that has ended.", _moved(pending)
    return None


@rule("no evacuation threatens the source", BLOCKS, "No evacuation makes Nova delete the source volume.", "nova")
def _source_is_safe(case: Case, nova: Nova) -> Finding:
    # nova-compute deletes, when it starts, what was evacuated from it, with every volume whose name begins with the id.
    moves = nova.source_moves or (nova.moves if case.migration.instance_id in case.migration.source_lv else ())
    risky = [each for each in moves if each.kind == "evacuation" and each.status in PENDING | {"done"}]
    risky = [each for each in risky if not nova.source_names or each.source in nova.source_names]
    if not risky:
        return None
    return (
        f"The instance of {case.source_path} was evacuated: {_moved(risky)}. When nova-compute starts on "
        f"{case.migration.source}, it wipes and removes this volume. Copy the volume to a name of its own first."
    ), _moved(risky)


def _moved(moves: list[Move]) -> str:
    return "; ".join(f"{each.kind} from {each.source} to {each.destination}, {each.status}" for each in moves)


@rule("source instance rests in Nova", BLOCKS, "Nova does nothing with the instance that the volume was of.", "nova")
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


@rule("source instance may be started", INFORMS, "Nova cannot start an instance on the source volume.", "nova")
def _source_may_start(case: Case, nova: Nova) -> Finding:
    owner = nova.source_server
    if owner and {owner.host, owner.hypervisor} & set(nova.source_names) and owner.status == "SHUTOFF":
        return (
            f"{case.source_path} still belongs to {owner.name} in Nova. While it is copied, a start of that instance "
            "fails; afterwards it would run on a disk that lives on elsewhere."
        ), owner.uuid
    return None


@rule("compute of the destination works", BLOCKS, "nova-compute of the destination is up.", "nova")
def _destination_compute(case: Case, nova: Nova) -> Finding:
    service = _service(nova, nova.names)
    if service and (service.forced_down or service.state not in ("", "up")):
        how = "forced down" if service.forced_down else service.state
        return (
            f"nova-compute on {case.migration.destination} is {how}: a stop would be accepted and not carried out."
        ), how
    return None


@rule("computes are enabled", WARNS, "nova-compute of source and destination is enabled.", "nova")
def _computes_enabled(case: Case, nova: Nova) -> Finding:
    sides = {case.migration.source: nova.source_names, case.migration.destination: nova.names}
    seen = {name: _service(nova, names) for name, names in sides.items()}
    off = [
        f"{name} ({each.reason or 'no reason given'})"
        for name, each in seen.items()
        if each and each.status == "disabled"
    ]
    if off:
        return f"nova-compute is disabled on {' and '.join(off)}: somebody may be about to empty or mend it.", off
    return None


@rule("compute of the source works", WARNS, "nova-compute of the source is up, or there is none.", "nova")
def _source_compute(case: Case, nova: Nova) -> Finding:
    service = _service(nova, nova.source_names)
    if service and (service.forced_down or service.state not in ("", "up")):
        how = "forced down" if service.forced_down else service.state
        return (
            f"nova-compute on {case.migration.source} is {how}. When it comes back it deletes what was evacuated "
            "from it meanwhile; the volume is held open until the swap, and no longer."
        ), how
    return None


def _service(nova: Nova, names: tuple[str, ...]) -> Service | None:
    return next((each for each in nova.services if each.host in names), None)


@rule("bus of the disk", INFORMS, "The image asks for no bus of its own.", "nova")
def _bus(case: Case, nova: Nova) -> Finding:
    bus = nova.properties.get("hw_disk_bus", "virtio")
    if bus != "virtio":
        return f"The image asks for the disk bus {bus}: the guest names its disks after it, as it did before.", bus
    return None


@rule("time to shut down", INFORMS, "The image asks for no shutdown timeout of its own.", "nova")
def _shutdown(case: Case, nova: Nova) -> Finding:
    asked = nova.properties.get("os_shutdown_timeout", "")
    if asked:
        return f"The image gives the guest {asked} s to shut down; the stop is given that and two minutes more.", asked
    return None


@rule("clocks agree", WARNS, "The hypervisors' clocks agree with volmig's.")
def _clocks_agree(case: Case) -> Finding:
    off = {case.migration.host(role): round(by, 1) for role, by in case.around.skew.items() if abs(by) > SKEW}
    if off:
        return "Clocks differ: " + ", ".join(f"{name} by {by} s" for name, by in off.items()) + ".", off
    return None


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
