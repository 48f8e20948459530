"""The table of steps of the route relay-nfs: what runs where, with what, and what takes it away again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

SOURCE: Final = "source"
RELAY: Final = "relay"
DESTINATION: Final = "destination"
INSTANCE: Final = "instance"
HYPERVISORS: Final = (SOURCE, RELAY, DESTINATION)


class UnknownRole(LookupError):  # noqa: N818 - the word that callers read
    """A step names a role that no hypervisor of a migration has."""


def hypervisor_role(on: str) -> str:
    """source, relay or destination: where a step with this `on` runs. An instance is handled on its destination."""
    role = DESTINATION if on == INSTANCE else on
    if role not in HYPERVISORS:
        raise UnknownRole(f"No hypervisor of a migration has the role {on!r}.")
    return role


@dataclass(frozen=True)
class Made:
    """A value that an earlier step will have measured; `like` names what the facts say it will probably be."""

    step: str
    key: str
    label: str
    like: str = ""


@dataclass(frozen=True)
class Step:
    """One row of the table.

    `args` maps the verb's arguments to names of planned values, to `Made` ones, or to mappings of either. Only planning
    needs them: a step that is read from a stored plan has none, its `Planned` has the values.
    `work` names the pass over the disk that the forecast counts; `size` the planned value that is its bytes.
    `torn_by` is the later step that takes away what this one made: after it nothing is left to undo.
    `volatile` things are gone when their hypervisor reboots and have to be made again, and so has what `rests_on` them.
    They are asked for again, too, when what rests on them failed: somebody may have taken them away.
    `settles` steps wait until directory caches of other NFS clients can no longer name the disk before the swap.
    `bars` tells that nothing before it is undone while it cannot be undone itself.
    `leaves` is the kind of footprint, `named` the planned value that is its name; `where` says whether it lies on the
    step's hypervisor or on the share.
    """

    name: str
    phase: str
    on: str
    verb: str
    title: str
    args: Mapping[str, Any] = field(default_factory=dict, compare=False)
    undo: str = ""
    torn_by: str = ""
    work: str = ""
    size: str = "source_size"
    volatile: bool = False
    rests_on: str = ""
    settles: bool = False
    repeatable: bool = True
    bars: bool = False
    leaves: str = ""
    where: str = "hypervisor"
    named: str = ""


_RELAY_LV_UUID = Made("relay_lv", "lv_uuid", "lv_uuid of the relay LV")
_SEAL = Made("seal", "sha256", "SHA-256 of the copy before it was compared")
_SHA256 = Made("stage", "sha256", "SHA-256 of the staged copy")
_STAGE_SIZE = Made("stage", "file_size", "size of the staged copy")
_WRITES = Made("source_fence", "writes", "writes to the source LV when it was fenced")
_SECTORS = Made("source_fence", "sectors_written", "sectors written to the source LV when it was fenced")
_RATE = Made("limits", "rate", "bandwidth limit when this pass starts", like="rate")

_SOURCE_LV = {"vg": "source_vg", "lv": "source_lv", "lv_uuid": "lv_uuid", "size": "source_size"}
_COPY = {"mountpoint": "source_mount", "fs_uuid": "fs_uuid"}
_LIVE = {"instance": "instance_id", "disk": "disk", "instances": "instances"}
_AT_STOP = {
    key: Made("stop", f"live.{key}", f"{words} of the live disk after the stop")
    for key, words in {
        "inode": "inode",
        "file_size": "size",
        "mtime_ns": "modification time",
        "uid": "owner",
        "gid": "group",
        "mode": "mode",
    }.items()
}
_STAGED = {
    key: Made("stage_verify", key, f"{words} of the staged copy")
    for key, words in {
        "inode": "inode",
        "file_size": "size",
        "mtime_ns": "modification time",
        "sha256": "SHA-256",
    }.items()
}

TABLE: Final[tuple[Step, ...]] = (
    Step(
        "relay_lv",
        "A",
        RELAY,
        "lv_create",
        "Make a temporary volume on the relay",
        {"vg": "relay_vg", "lv": "relay_lv", "size": "relay_size"},
        undo="lv_remove",
        torn_by="relay_erase",
        leaves="lv",
        named="relay_lv_path",
    ),
    Step(
        "relay_fs",
        "A",
        RELAY,
        "fs_create",
        "Put a filesystem on it and mount it",
        {
            "vg": "relay_vg",
            "lv": "relay_lv",
            "lv_uuid": _RELAY_LV_UUID,
            "size": "relay_size",
            "fs_uuid": "fs_uuid",
            "mountpoint": "relay_mount",
        },
        undo="fs_remove",
        torn_by="relay_unmount",
        volatile=True,
        leaves="filesystem",
        named="relay_mount",
    ),
    Step(
        "relay_export",
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
        leaves="export",
        named="relay_mount",
    ),
    Step(
        "source_mount",
        "A",
        SOURCE,
        "nfs_mount",
        "Mount it on the source and prove that it carries data",
        {"address": "relay_address", "export": "relay_mount", **_COPY},
        undo="nfs_unmount",
        torn_by="source_unmount",
        volatile=True,
        rests_on="relay_export",
        leaves="mount",
        named="source_mount",
    ),
    Step(
        "source_fence",
        "A",
        SOURCE,
        "lv_fence",
        "Fence writers out of the source volume",
        _SOURCE_LV,
        undo="lv_unfence",
        torn_by="source_release",
        volatile=True,
        leaves="fence",
        named="source_path",
    ),
    Step(
        "convert",
        "A",
        SOURCE,
        "convert",
        "Convert the volume to qcow2",
        {**_SOURCE_LV, **_COPY, "rate": _RATE},
        undo="discard_copy",
        torn_by="relay_erase",
        work="convert",
        rests_on="source_mount",
    ),
    Step(
        "seal",
        "A",
        RELAY,
        "seal",
        "Take the SHA-256 of the copy before it is compared",
        {"mountpoint": "relay_mount"},
        work="seal",
    ),
    Step(
        "compare",
        "A",
        SOURCE,
        "compare",
        "Compare the copy with the volume, byte for byte",
        {**_SOURCE_LV, **_COPY, "writes": _WRITES, "sectors_written": _SECTORS},
        undo="discard_copy",
        torn_by="relay_erase",
        work="compare",
        rests_on="source_mount",
    ),
    Step(
        "stage",
        "A",
        RELAY,
        "stage",
        "Copy it onto the share, beside the live disk",
        {
            "mountpoint": "relay_mount",
            "instances": "relay_instances",
            "share_source": "share_source",
            "rate": _RATE,
            "size": Made("compare", "file_size", "size of the copy", like="stage_size"),
            "sha256": _SEAL,
        },
        undo="unstage",
        torn_by="swap",
        work="stage",
        leaves="stage",
        where="share",
        named="stage_path",
    ),
    Step(
        "stage_verify",
        "A",
        DESTINATION,
        "stage_verify",
        "Read the staged copy back where it will be used",
        {
            "instances": "instances",
            "share_source": "share_source",
            "sha256": _SHA256,
            "file_size": _STAGE_SIZE,
            "virtual_size": "source_size",
        },
        work="reread",
    ),
    Step(
        "source_unmount",
        "A",
        SOURCE,
        "nfs_unmount",
        "Unmount on the source",
        {"mountpoint": "source_mount", "made": {}},
    ),
    Step(
        "relay_unexport",
        "A",
        RELAY,
        "unexport",
        "Take the export back",
        {
            "mountpoint": "relay_mount",
            "client": "source_address",
            "made": {"started": Made("relay_export", "started", "units that volmig started", like="units_to_start")},
        },
    ),
    Step(
        "relay_unmount",
        "A",
        RELAY,
        "fs_remove",
        "Unmount on the relay",
        {"mountpoint": "relay_mount", "made": {"fs_uuid": "fs_uuid"}},
    ),
    Step(
        "relay_erase",
        "A",
        RELAY,
        "lv_remove",
        "Erase the temporary volume and remove it",
        {"vg": "relay_vg", "lv": "relay_lv", "size": "relay_size", "made": {"lv_uuid": _RELAY_LV_UUID}},
        work="erase",
        size="relay_size",
    ),
    Step(
        "lock",
        "B",
        INSTANCE,
        "instance_lock",
        "Lock the instance",
        {"instance": "instance_id", "reason": "reason"},
        undo="instance_unlock",
        torn_by="unlock",
        settles=True,
        leaves="lock",
        named="instance_id",
    ),
    Step(
        "stop",
        "B",
        INSTANCE,
        "instance_stop",
        "Shut the instance down",
        {**_LIVE, "deadline": "deadline"},
        undo="instance_start",
        repeatable=False,
    ),
    Step(
        "swap",
        "B",
        DESTINATION,
        "swap",
        "Link the live disk aside and rename the stage over it",
        {**_LIVE, "share_source": "share_source", "live": _AT_STOP, "stage": _STAGED, "virtual_size": "source_size"},
        undo="swap_back",
        repeatable=False,
        bars=True,
        leaves="backup",
        where="share",
        named="backup_path",
    ),
    Step(
        "start",
        "B",
        INSTANCE,
        "instance_start",
        "Start the instance on the new disk",
        {**_LIVE, "expect_inode": Made("swap", "live_inode", "inode of the new disk"), "deadline": "deadline"},
        undo="instance_stop",
        repeatable=False,
        bars=True,
    ),
    Step(
        "source_release",
        "C",
        SOURCE,
        "lv_unfence",
        "Release the source volume, unchanged",
        {
            "vg": "source_vg",
            "lv": "source_lv",
            "made": {
                "was": Made("source_fence", "was", "permission before the fence", like="permission"),
                "writes": _WRITES,
                "sectors_written": _SECTORS,
                "holder_unit": Made("source_fence", "holder_unit", "unit that holds the volume", like="holder_unit"),
            },
        },
    ),
    Step(
        "unlock",
        "C",
        INSTANCE,
        "instance_unlock",
        "Unlock the instance",
        {"instance": "instance_id", "reason": "reason"},
        settles=True,
    ),
    Step("forget_source", "C", SOURCE, "forget", "Leave nothing behind on the source", undo="forget"),
    Step("forget_relay", "C", RELAY, "forget", "Leave nothing behind on the relay", undo="forget"),
    Step("forget_destination", "C", DESTINATION, "forget", "Leave nothing behind on the destination", undo="forget"),
    Step(
        "purge",
        "D",
        DESTINATION,
        "purge",
        "Delete the disk that is not used any more",
        {
            **_LIVE,
            "backup_inode": Made("swap", "backup_inode", "inode of the old disk"),
            "live_inode": Made("swap", "live_inode", "inode of the new disk"),
        },
        repeatable=False,
    ),
    Step("forget_purge", "D", DESTINATION, "forget", "Leave nothing behind of the purge"),
)
# Not part of a plan: as often as somebody asks for it, while a disk is kept after the end.
REHEARSAL: Final[tuple[Step, ...]] = (
    Step("rehearse", "", DESTINATION, "rehearse", "Read the kept disk and compare it with what was recorded of it"),
    Step("forget_rehearsal", "", DESTINATION, "forget", "Leave nothing behind of the rehearsal"),
)
NAMED: Final[Mapping[str, Step]] = {step.name: step for step in (*TABLE, *REHEARSAL)}
