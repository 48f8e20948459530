"""The table of steps of the route relay-nfs: what runs where, with what, and what takes it away again.

All that others need to know of a step stands in its row here, and no other module names a step: it asks for the step of
a task, as in `plan.one(Task.EXCHANGE)`, or for what the row says of it. The names themselves stay for ever: journals,
archives and what hypervisors remember have steps by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, Final

SOURCE: Final = "source"
RELAY: Final = "relay"
DESTINATION: Final = "destination"
INSTANCE: Final = "instance"
HYPERVISORS: Final = (SOURCE, RELAY, DESTINATION)
LIMITS: Final = "limits"  # stands for a step that measures what is allowed just now; see Hands.limits of the runner
Range = tuple[float, float, float]
QUICK: Final[Range] = (0.3, 1, 4)


class UnknownRole(LookupError):  # noqa: N818 - the word that callers read
    """A step names a role that no hypervisor of a migration has."""


def hypervisor_role(on: str) -> str:
    """source, relay or destination: where a step with this `on` runs. An instance is handled on its destination."""
    role = DESTINATION if on == INSTANCE else on
    if role not in HYPERVISORS:
        raise UnknownRole(f"No hypervisor of a migration has the role {on!r}.")
    return role


class Task(StrEnum):
    """What a step is for, whatever it is called and however it does it."""

    OPEN = auto()  # make and mount what the copy goes through
    FENCE = auto()  # keep writers out of the source
    COPY = auto()
    HASH = auto()  # of the copy, before it is compared
    COMPARE = auto()  # the copy with the source
    DELIVER = auto()  # put the copy beside the live disk
    VERIFY = auto()  # read back what was delivered, where it will be used
    CLOSE = auto()  # take away what OPEN made
    LOCK = auto()
    STOP = auto()
    EXCHANGE = auto()  # the live disk with the delivered one
    START = auto()
    RELEASE = auto()  # the source
    UNLOCK = auto()
    FORGET = auto()  # remove what a hypervisor remembers of the migration
    PURGE = auto()  # the disk that is not in use any more
    REHEARSE = auto()  # read that disk, to see whether it could be used again


@dataclass(frozen=True)
class Throughput:
    """A pass over the disk: its time depends on the bytes.

    `name` is under which its speed is measured; `size` the planned value that is its bytes; `guess` the bytes a
    second (slow, usual, fast) until earlier migrations have shown better; a bandwidth limit holds for `limited` ones.
    """

    name: str
    size: str
    guess: Range
    limited: bool = False


@dataclass(frozen=True)
class Artifact:
    """What a step leaves behind until it is undone or a later step removes it.

    `kind` is the kind of footprint, `named` the planned value that is its name; `where` says whether it lies on the
    step's hypervisor or on the share. `identity` is the key of the step's evidence that tells it from another of the
    same name, `bytes` the one that is its size; both are empty where nothing is measured. What has no identity but
    where it leads says that in `leads_to`, a format of the step's arguments.
    `undo_arg` is the argument by which the undoing verb gets the recorded identity: `NAME` as a number, or `made.NAME`.
    `reserves` is the planned value that is the bytes which are kept free for it until it is made.
    `removable` when its step's undo may remove it alone, after its migration has ended.
    """

    kind: str
    named: str
    where: str = "hypervisor"
    identity: str = ""
    bytes: str = ""
    leads_to: str = ""
    undo_arg: str = ""
    reserves: str = ""
    removable: bool = True

    @property
    def on_share(self) -> bool:
        return self.where == "share"


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
    `throughput` is set for a pass over the disk; other steps take `seconds` (low, usual, high).
    `torn_by` is the later step that takes away what this one made: after it nothing is left to undo.
    `volatile` things are gone when their hypervisor reboots and have to be made again, and so has what `rests_on` them.
    They are asked for again, too, when what rests on them failed: somebody may have taken them away.
    `settles` steps wait until directory caches of other NFS clients can no longer name the disk before the swap.
    `bars` tells that nothing before it is undone while it cannot be undone itself.
    `box` is the title of the box of the pipeline in which it is drawn.

    A stored plan has of these what jobs.engine.stored_steps says; the rest is always as the table has it for the name.
    """

    name: str
    task: Task
    phase: str
    on: str
    verb: str
    title: str
    args: Mapping[str, Any] = field(default_factory=dict, compare=False)
    undo: str = ""
    torn_by: str = ""
    artifact: Artifact | None = None
    throughput: Throughput | None = None
    seconds: Range = QUICK
    volatile: bool = False
    rests_on: str = ""
    settles: bool = False
    repeatable: bool = True
    bars: bool = False
    box: str = ""

    @property
    def leaves(self) -> str:
        """The kind of footprint that it leaves; empty for none."""
        return self.artifact.kind if self.artifact else ""


# Bytes per second (slow, usual, fast); 1 Gbit/s is about 110 MB/s.
_OVER_LINK: Final[Range] = (30e6, 80e6, 110e6)
_ON_DISK: Final[Range] = (60e6, 200e6, 1000e6)
REREAD: Final = Throughput("reread", "source_size", (40e6, 90e6, 110e6))

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
        Task.OPEN,
        "A",
        RELAY,
        "lv_create",
        "Make a temporary volume on the relay",
        {"vg": "relay_vg", "lv": "relay_lv", "size": "relay_size"},
        undo="lv_remove",
        torn_by="relay_erase",
        artifact=Artifact("lv", "relay_lv_path", identity="lv_uuid", undo_arg="made.lv_uuid", reserves="relay_size"),
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
        artifact=Artifact("filesystem", "relay_mount", identity="fs_uuid", undo_arg="made.fs_uuid"),
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
        artifact=Artifact("export", "relay_mount", leads_to="{client}"),
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
        artifact=Artifact("mount", "source_mount", leads_to="{address}:{export}"),
        box="Export, mount",
    ),
    Step(
        "source_fence",
        Task.FENCE,
        "A",
        SOURCE,
        "lv_fence",
        "Fence writers out of the source volume",
        _SOURCE_LV,
        undo="lv_unfence",
        torn_by="source_release",
        volatile=True,
        artifact=Artifact("fence", "source_path", identity="holder_unit", undo_arg="made.lv_uuid"),
        box="Fence source",
    ),
    Step(
        "convert",
        Task.COPY,
        "A",
        SOURCE,
        "convert",
        "Convert the volume to qcow2",
        {**_SOURCE_LV, **_COPY, "rate": _RATE},
        undo="discard_copy",
        torn_by="relay_erase",
        throughput=Throughput("convert", "source_size", _OVER_LINK, limited=True),
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
        throughput=Throughput("seal", "source_size", _ON_DISK),
        box="Compare",
    ),
    Step(
        "compare",
        Task.COMPARE,
        "A",
        SOURCE,
        "compare",
        "Compare the copy with the volume, byte for byte",
        {**_SOURCE_LV, **_COPY, "writes": _WRITES, "sectors_written": _SECTORS},
        undo="discard_copy",
        torn_by="relay_erase",
        throughput=Throughput("compare", "source_size", _OVER_LINK),
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
            "share_source": "share_source",
            "rate": _RATE,
            "size": Made("compare", "file_size", "size of the copy", like="stage_size"),
            "sha256": _SEAL,
        },
        undo="unstage",
        torn_by="swap",
        throughput=Throughput("stage", "source_size", _OVER_LINK, limited=True),
        artifact=Artifact(
            "stage", "stage_path", "share", identity="inode", undo_arg="expect_inode", reserves="stage_size"
        ),
        box="Stage",
    ),
    Step(
        "stage_verify",
        Task.VERIFY,
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
        throughput=REREAD,
        box="Verify stage",
    ),
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
            "made": {"started": Made("relay_export", "started", "units that volmig started", like="units_to_start")},
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
        {"vg": "relay_vg", "lv": "relay_lv", "size": "relay_size", "made": {"lv_uuid": _RELAY_LV_UUID}},
        throughput=Throughput("erase", "relay_size", _ON_DISK),
        box="Clear relay",
    ),
    Step(
        "lock",
        Task.LOCK,
        "B",
        INSTANCE,
        "instance_lock",
        "Lock the instance",
        {"instance": "instance_id", "reason": "reason"},
        undo="instance_unlock",
        torn_by="unlock",
        settles=True,
        artifact=Artifact("lock", "instance_id", removable=False),
        box="Lock",
    ),
    Step(
        "stop",
        Task.STOP,
        "B",
        INSTANCE,
        "instance_stop",
        "Shut the instance down",
        {**_LIVE, "deadline": "deadline"},
        undo="instance_start",
        seconds=(2, 15, 90),
        repeatable=False,
        box="Stop",
    ),
    Step(
        "swap",
        Task.EXCHANGE,
        "B",
        DESTINATION,
        "swap",
        "Link the live disk aside and rename the stage over it",
        {**_LIVE, "share_source": "share_source", "live": _AT_STOP, "stage": _STAGED, "virtual_size": "source_size"},
        undo="swap_back",
        repeatable=False,
        bars=True,
        artifact=Artifact(
            "backup", "backup_path", "share", identity="backup_inode", bytes="backup_bytes", removable=False
        ),
        box="Swap",
    ),
    Step(
        "start",
        Task.START,
        "B",
        INSTANCE,
        "instance_start",
        "Start the instance on the new disk",
        {**_LIVE, "expect_inode": Made("swap", "live_inode", "inode of the new disk"), "deadline": "deadline"},
        undo="instance_stop",
        seconds=(1, 3, 10),
        repeatable=False,
        bars=True,
        box="Start",
    ),
    Step(
        "source_release",
        Task.RELEASE,
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
        box="Release",
    ),
    Step(
        "unlock",
        Task.UNLOCK,
        "C",
        INSTANCE,
        "instance_unlock",
        "Unlock the instance",
        {"instance": "instance_id", "reason": "reason"},
        settles=True,
        box="Release",
    ),
    Step(
        "forget_source",
        Task.FORGET,
        "C",
        SOURCE,
        "forget",
        "Leave nothing behind on the source",
        undo="forget",
        box="Clean up",
    ),
    Step(
        "forget_relay",
        Task.FORGET,
        "C",
        RELAY,
        "forget",
        "Leave nothing behind on the relay",
        undo="forget",
        box="Clean up",
    ),
    Step(
        "forget_destination",
        Task.FORGET,
        "C",
        DESTINATION,
        "forget",
        "Leave nothing behind on the destination",
        undo="forget",
        box="Clean up",
    ),
    Step(
        "purge",
        Task.PURGE,
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
        box="Purge",
    ),
    Step("forget_purge", Task.FORGET, "D", DESTINATION, "forget", "Leave nothing behind of the purge", box="Purge"),
)
# Not part of a plan: as often as somebody asks for it, while a disk is kept after the end.
REHEARSAL: Final[tuple[Step, ...]] = (
    Step(
        "rehearse",
        Task.REHEARSE,
        "",
        DESTINATION,
        "rehearse",
        "Read the kept disk and compare it with what was recorded of it",
    ),
    Step("forget_rehearsal", Task.FORGET, "", DESTINATION, "forget", "Leave nothing behind of the rehearsal"),
)
NAMED: Final[Mapping[str, Step]] = {step.name: step for step in (*TABLE, *REHEARSAL)}

_BEFORE_GATE: Final = tuple(step.name for step in TABLE if step.phase == "A")


def task_of(name: str) -> Task | None:
    """What the step with this name is for; None for a name that this volmig does not know."""
    return NAMED[name].task if name in NAMED else None


def names_of(*tasks: Task) -> tuple[str, ...]:
    """The names of all steps that are for one of these tasks, as journals have them."""
    return tuple(step.name for step in NAMED.values() if step.task in tasks)


def begins_copy(name: str) -> bool:
    """Whether this is the first step of a copy: when it is done again, another copy begins."""
    return name == _BEFORE_GATE[0]


def ends_copy(name: str) -> bool:
    """Whether this is the last step of a copy: when it is done, the copy is verified and its way is closed."""
    return name == _BEFORE_GATE[-1]
