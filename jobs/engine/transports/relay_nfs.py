"""Through a relay: its temporary volume is exported to the source over NFS, which puts the copy there as a qcow2 file;
when it has been compared the relay copies it onto the share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from jobs.engine import part
from jobs.engine.host_facts import Facts, Group, Relay, Source
from jobs.engine.migration import Migration
from jobs.engine.part import Commands, Steps
from jobs.engine.rules import (
    BLOCKS,
    About,
    Case,
    Finding,
    Rules,
    group_is_whole,
    nothing_is_left,
    share_is_mounted,
)
from jobs.engine.sizes import MIB, in_mib, qcow2_size
from jobs.engine.steps import (
    DESTINATION,
    ON_DISK,
    OVER_LINK,
    RATE,
    RELAY,
    SOURCE,
    Artifact,
    ByHand,
    Made,
    Step,
    Task,
    Throughput,
)

SERVES_VERSION_3: Final = ("rpcbind", "rpc-statd", "nfs-mountd", "nfs-server")  # rpc.nfsd(8), rpc.statd(8): needs all
rule: Final = Rules()


def relay_size(virtual: int, extent: int) -> int:
    """Bytes of the temporary volume: the largest possible copy, its filesystem and some air, in whole extents."""
    wanted = math.ceil(qcow2_size(virtual) * 1.05) + 256 * MIB
    return math.ceil(wanted / extent) * extent


def temporary_volume(ask: Migration) -> str:
    """The name of the temporary volume in its group."""
    return f"volmig_{ask.hex[:12]}"


_VOLUME = {"vg": "relay_vg", "lv": "relay_lv"}
_VOLUME_UUID = Made("relay_lv", "lv_uuid", "lv_uuid of the relay LV")
_COPY = {"mountpoint": "source_mount", "fs_uuid": "fs_uuid"}


class RelayNfs(part.Transport):
    """The route over NFS, with the relay between source and destination."""

    kind = "relay-nfs"
    needs = "the relay's volume group"
    roles = (SOURCE, RELAY, DESTINATION)
    delivers = RELAY
    rules = rule
    facts = {RELAY: ("relay_facts", Relay)}

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """What the source sees of the relay, and the group and the volume there."""
        to_relay = {"relay_address": ask.relay_address} if ask.relay_address else {}
        return {SOURCE: to_relay, RELAY: {"vg": ask.relay_vg, "relay_lv": temporary_volume(ask)}}

    def cut_off(self, ask: Migration) -> frozenset[str]:
        """The source, where it has no data network in common with the relay."""
        return frozenset() if ask.relay_address else frozenset({SOURCE})

    def has(self, facts: Facts) -> bool:
        """Source and relay answered, the relay has its volume group and mounts the share."""
        return bool(facts.source and facts.relay and facts.relay.vg and facts.relay.share)

    def values(self, ask: Migration, facts: Facts, sink: part.Sink) -> dict[str, Any]:
        """Names, mount points and addresses of what is made on the relay, and its size in bytes."""
        source, relay = facts.source, facts.relay
        assert source and relay and relay.vg and relay.share  # noqa: S101, PT018 - see `has`
        lv = temporary_volume(ask)
        return {
            "relay_vg": ask.relay_vg,
            "relay_lv": lv,
            "relay_lv_path": f"{ask.relay_vg}/{lv}",
            "relay_size": relay_size(ask.source_size, relay.vg.extent_size),
            "relay_address": ask.relay_address,
            "relay_mount": f"/srv/volmig/{ask.hex}",
            "relay_instances": relay.share.target,
            "source_mount": f"/mnt/volmig/{ask.hex}",
            "source_address": source.source_address,
            "fs_uuid": ask.job,
            "units_to_start": [unit for unit, state in relay.nfs_server.items() if state == "inactive"],
        }

    def look_commands(self, ask: Migration, instances: str) -> Commands:
        """findmnt on both sides; lvs and exportfs on the relay."""
        return {
            SOURCE: [("findmnt", f"/mnt/volmig/{ask.hex}")],
            RELAY: [
                ("lvs", "-o", "lv_name,lv_uuid,lv_attr,lv_tags", ask.relay_vg),
                ("findmnt", f"/srv/volmig/{ask.hex}"),
                ("exportfs", "-s"),
            ],
        }

    def open(self, source: part.Source, sink: part.Sink) -> Steps:
        """A temporary volume on the relay with a filesystem, exported to the source alone, and mounted there."""
        return (
            Step(
                "relay_lv",
                Task.OPEN,
                "A",
                RELAY,
                "lv_create",
                "Make a temporary volume on the relay",
                {**_VOLUME, "size": "relay_size"},
                undo="lv_remove",
                torn_by="relay_erase",
                artifact=Artifact(
                    "lv",
                    "relay_lv_path",
                    identity="lv_uuid",
                    undo_arg="made.lv_uuid",
                    reserves="relay_size",
                    word="logical volume",
                    by_hand=ByHand(
                        ("lvs -o +lv_uuid,lv_tags,lv_device_open,lv_time -- {path}", "lsblk -- {device}"),
                        ("lvchange -ay -- {path}", "blkdiscard --zeroout -- {device}", "lvremove -S {select}"),
                    ),
                ),
                box="Relay volume",
            ),
            Step(
                "relay_fs",
                Task.OPEN,
                "A",
                RELAY,
                "fs_create",
                "Put a filesystem on it and mount it",
                {
                    **_VOLUME,
                    "lv_uuid": _VOLUME_UUID,
                    "size": "relay_size",
                    "fs_uuid": "fs_uuid",
                    "mountpoint": "relay_mount",
                },
                undo="fs_remove",
                torn_by="relay_unmount",
                volatile=True,
                artifact=Artifact(
                    "filesystem",
                    "relay_mount",
                    identity="fs_uuid",
                    undo_arg="made.fs_uuid",
                    by_hand=ByHand(
                        ("findmnt -- {path}", "exportfs -s", "fuser -vm -- {path}"),
                        ("umount -- {path}", "rmdir -- {path}"),
                        directories="/srv/",
                    ),
                ),
                box="Export, mount",
            ),
            Step(
                "relay_export",
                Task.OPEN,
                "A",
                RELAY,
                "export",
                "Export it to the source alone",
                {
                    "mountpoint": "relay_mount",
                    "fs_uuid": "fs_uuid",
                    "client": "source_address",
                    "uid": "uid",
                    "gid": "gid",
                    "start": "units_to_start",
                },
                undo="unexport",
                torn_by="relay_unexport",
                volatile=True,
                rests_on="relay_fs",
                artifact=Artifact(
                    "export",
                    "relay_mount",
                    leads_to="{client}",
                    by_hand=ByHand(
                        ("exportfs -s", "cat -- {exports}"),
                        ("rm -f -- {exports}", "exportfs -u {export}", "exportfs -f"),
                    ),
                ),
                box="Export, mount",
            ),
            Step(
                "source_mount",
                Task.OPEN,
                "A",
                SOURCE,
                "nfs_mount",
                "Mount it on the source and prove that it carries data",
                {"address": "relay_address", "export": "relay_mount", **_COPY},
                undo="nfs_unmount",
                torn_by="source_unmount",
                volatile=True,
                rests_on="relay_export",
                artifact=Artifact(
                    "mount",
                    "source_mount",
                    leads_to="{address}:{export}",
                    by_hand=ByHand(
                        ("findmnt -- {path}",), ("umount -- {path}", "rmdir -- {path}"), directories="/mnt/"
                    ),
                ),
                box="Export, mount",
            ),
        )

    def carry(self, source: part.Source, sink: part.Sink) -> Steps:
        """The source converts into the mounted file and compares; the relay hashes it, then puts it on the share."""
        return (
            Step(
                "convert",
                Task.COPY,
                "A",
                SOURCE,
                "convert",
                "Convert the volume to qcow2",
                {**source.reader(), **_COPY, "rate": RATE},
                undo="discard_copy",
                torn_by="relay_erase",
                throughput=Throughput("convert", "source_size", OVER_LINK, limited=True),
                rests_on="source_mount",
                box="Convert",
            ),
            Step(
                "seal",
                Task.HASH,
                "A",
                RELAY,
                "seal",
                "Take the SHA-256 of the copy before it is compared",
                {"mountpoint": "relay_mount"},
                throughput=Throughput("seal", "source_size", ON_DISK),
                box="Compare",
            ),
            Step(
                "compare",
                Task.COMPARE,
                "A",
                SOURCE,
                "compare",
                "Compare the copy with the volume, byte for byte",
                {**source.reader(), **_COPY, **source.fenced()},
                undo="discard_copy",
                torn_by="relay_erase",
                throughput=Throughput("compare", "source_size", OVER_LINK),
                rests_on="source_mount",
                box="Compare",
            ),
            Step(
                "stage",
                Task.DELIVER,
                "A",
                RELAY,
                "stage",
                "Copy it onto the share, beside the live disk",
                {
                    "mountpoint": "relay_mount",
                    "instances": "relay_instances",
                    **sink.writer(),
                    "rate": RATE,
                    "size": Made("compare", "file_size", "size of the copy", like="stage_size"),
                    "sha256": Made("seal", "sha256", "SHA-256 of the copy before it was compared"),
                },
                undo="unstage",
                torn_by=Task.EXCHANGE,
                throughput=Throughput("stage", "source_size", OVER_LINK, limited=True),
                artifact=sink.delivered(),
                box="Stage",
            ),
        )

    def copied(self) -> Mapping[str, Made]:
        """As the relay measured it on the share."""
        return {
            "sha256": Made("stage", "sha256", "SHA-256 of the staged copy"),
            "file_size": Made("stage", "file_size", "size of the staged copy"),
        }

    def close(self) -> Steps:
        """Unmount, take the export back, and erase the temporary volume."""
        return (
            Step(
                "source_unmount",
                Task.CLOSE,
                "A",
                SOURCE,
                "nfs_unmount",
                "Unmount on the source",
                {"mountpoint": "source_mount", "made": {}},
                box="Clear relay",
            ),
            Step(
                "relay_unexport",
                Task.CLOSE,
                "A",
                RELAY,
                "unexport",
                "Take the export back",
                {
                    "mountpoint": "relay_mount",
                    "client": "source_address",
                    "made": {
                        "started": Made("relay_export", "started", "units that volmig started", like="units_to_start")
                    },
                },
                box="Clear relay",
            ),
            Step(
                "relay_unmount",
                Task.CLOSE,
                "A",
                RELAY,
                "fs_remove",
                "Unmount on the relay",
                {"mountpoint": "relay_mount", "made": {"fs_uuid": "fs_uuid"}},
                box="Clear relay",
            ),
            Step(
                "relay_erase",
                Task.CLOSE,
                "A",
                RELAY,
                "lv_remove",
                "Erase the temporary volume and remove it",
                {**_VOLUME, "size": "relay_size", "made": {"lv_uuid": _VOLUME_UUID}},
                throughput=Throughput("erase", "relay_size", ON_DISK),
                box="Clear relay",
            ),
        )


RELAY_NFS: Final = RelayNfs()


# Its checks


@rule(About.MACHINES, "three hypervisors", BLOCKS, "The relay is neither the source nor the destination.")
def _three(case: Case) -> Finding:
    asked = case.migration
    if asked.source == asked.destination:
        return f"Source and destination are both {asked.source}; there is nothing to carry.", asked.source
    if asked.relay in (asked.source, asked.destination):
        return f"The relay {asked.relay} is also the source or the destination; choose another relay.", asked.relay
    return None


@rule(About.WAY, "address of the relay", BLOCKS, "Source and relay share a data network.")
def _relay_has_an_address(case: Case) -> Finding:
    if not case.migration.relay_address:
        return (
            f"{case.migration.source} and {case.migration.relay} have no data network in common; "
            "NFS never uses the management network."
        ), None
    return None


@rule(About.WAY, "source reaches the relay", BLOCKS, "Nothing between source and relay filters NFS.", "source")
def _source_reaches_the_relay(case: Case, source: Source) -> Finding:
    # "refused" is a live machine whose service is not up yet; only silence tells of a firewall or a missing route.
    shut = [f"{probe.port} ({probe.state})" for probe in source.reach if probe.state not in ("open", "refused")]
    if shut:
        return f"{case.migration.source} cannot reach {case.migration.relay_address}, ports {', '.join(shut)}.", shut
    return None


@rule(About.WAY, "relay can serve NFS", BLOCKS, "The relay has an NFS server.", "relay")
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


@rule(About.WAY, "relay has the volume group", BLOCKS, "The relay's volume group is there.", "relay")
def _group_is_there(case: Case, relay: Relay) -> Finding:
    if relay.vg is None:
        why = f" LVM left something out: {relay.skipped}." if relay.skipped else ""
        return f"{case.migration.relay} has no volume group {case.migration.relay_vg}.{why}", relay.skipped or None
    return None


@rule(About.WAY, "relay's volume group is whole", BLOCKS, "The relay's volume group can be written to by LVM.", "group")
def _relay_group_is_whole(case: Case, group: Group) -> Finding:
    return group_is_whole(case.migration.relay, group)


@rule(About.WAY, "relay has space", BLOCKS, "The relay has space for the temporary volume.", "group")
def _relay_has_space(case: Case, group: Group) -> Finding:
    need = relay_size(case.migration.source_size, group.extent_size)
    left = group.free - case.around.reserved_on_relay
    if need <= left:
        return None
    sentence = (
        f"{group.name} on {case.migration.relay} has {in_mib(left)} left ({in_mib(group.free)} free, "
        f"{in_mib(case.around.reserved_on_relay)} reserved by other jobs); "
        f"the temporary volume needs {in_mib(need)}."
    )
    return sentence, {"need": need, "free": group.free, "reserved": case.around.reserved_on_relay}


@rule(
    About.LEFTOVERS,
    "nothing of ours is left on the relay",
    BLOCKS,
    "The relay has nothing of the name that will be used.",
    "relay",
)
def _relay_is_clean(case: Case, relay: Relay) -> Finding:
    return nothing_is_left(case.migration.relay, relay.leftovers)


@rule(About.PLACE, "relay mounts the share", BLOCKS, "The relay mounts the share.", "relay")
def _relay_mounts_the_share(case: Case, relay: Relay) -> Finding:
    return share_is_mounted(case.migration.relay, case.migration.share_source, relay.share)
