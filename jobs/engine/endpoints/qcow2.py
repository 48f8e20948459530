"""A qcow2 file of an instance on a share: the destination. The copy lies beside the live disk until they are exchanged,
the former disk after that, in a directory of the migration below `.volmig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jobs.engine.host_facts import Destination, Disk, Facts, Share, Stage
from jobs.engine.migration import Migration
from jobs.engine.part import Args, Commands, Sink, Steps
from jobs.engine.rules import (
    BLOCKS,
    WARNS,
    About,
    Case,
    Finding,
    Rules,
    nothing_is_left,
    share_is_mounted,
)
from jobs.engine.sizes import in_mib, qcow2_size
from jobs.engine.steps import DESTINATION, Artifact, ByHand, Made, Step, Task, Throughput

NOT_MAPPED: Final = (65534, 4294967294)  # the kernel's overflow uid, as 32 and as 16 bits of it (user_namespaces(7))
AIR: Final = 16 << 20  # what the share needs besides the stage: directories, card, the filer's own metadata
REREAD: Final = Throughput("reread", "source_size", (40e6, 90e6, 110e6))
rule: Final = Rules()

_LIVE = {"instance": "instance_id", "disk": "disk", "instances": "instances"}
_AT_STOP = {
    key: Made(Task.STOP, f"live.{key}", f"{words} of the live disk after the stop")
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


# A second name of a base file goes only where the file has another; else the directory stays, for a person to look at.
SECOND_NAMES: Final = " -maxdepth 1 -name 'base.[0-9]*' -links +1 -delete"


def emptied(place: str) -> tuple[str, ...]:
    """Commands that remove a migration's directory on a share once no disk is in it."""
    return (f"rm -f -- {place}/card.json {place}/README", f"find {place}{SECOND_NAMES}", f"rmdir -- {place}")


class Qcow2File(Sink):
    """A file that is exchanged by two names: the live disk gets a second one, then the copy takes over its own."""

    kind = "qcow2"
    needs = "the share on both sides"
    rules = rule
    facts = {DESTINATION: ("destination_facts", Destination)}
    identity = ("sha256", "inode", "file_size")
    unchanged = ("inode", "file_size", "mtime_ns")

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """The instance, its disk, and the share."""
        return {DESTINATION: {"instance": ask.instance_id, "disk": ask.disk, **self.place(ask)}}

    def has(self, facts: Facts) -> bool:
        """The destination mounts the share."""
        return bool(facts.destination and facts.destination.share)

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Paths, the owner of the share, and for how many seconds caches of NFS may name the former disk: `acdirmax` of
        the destination and a margin.
        """
        destination = facts.destination
        share = destination.share if destination else None
        assert destination and share  # noqa: S101, PT018 - see `has`
        directory = self.directory(ask, destination.instances)
        return {
            "disk": ask.disk,
            "share_source": ask.share_source,
            "instances": destination.instances,
            "stage_size": self.bytes_needed(ask.source_size),
            "stage_path": f"{directory}/disk.new",
            "backup_path": f"{directory}/disk.old",
            "uid": share.owner_uid,
            "gid": share.owner_gid,
            "settle": destination.acdirmax + ask.margin,
        }

    def look_commands(self, ask: Migration, instances: str) -> Commands:
        """ls, of the live disk and of the directory of the migration."""
        live = f"{instances}/{ask.instance_id}/{ask.disk}"
        return {DESTINATION: [("ls", "-lai", live, self.directory(ask, instances))]}

    def place(self, ask: Migration) -> Mapping[str, Any]:
        """The share."""
        return {"share_source": ask.share_source}

    def bytes_needed(self, size: int) -> int:
        """Those of a qcow2 file with every cluster in use."""
        return qcow2_size(size)

    def writer(self) -> Args:
        """The share; where it is mounted knows whoever writes."""
        return {"share_source": "share_source"}

    def delivered(self) -> Artifact:
        """`disk.new`, which its inode identifies."""
        return Artifact(
            "stage",
            "stage_path",
            "share",
            identity="inode",
            undo_arg="expect_inode",
            reserves="stage_size",
            word="staged copy",
            by_hand=ByHand(
                ("ls -lin -- {folder}", "cat -- {folder}/card.json"),
                ("rm -- {path}", *emptied("{folder}")),
                directories=".volmig/",
                empties=emptied("{path}"),
            ),
        )

    def live(self) -> Args:
        """The instance, its disk, and the directory of instances."""
        return _LIVE

    def exchanged(self) -> Args:
        """The inode that the live disk has to have."""
        return {"expect_inode": Made("swap", "live_inode", "inode of the new disk")}

    def verify(self, copied: Args) -> Steps:
        """Read it back on the destination: SHA-256, inode, size and time of modification are measured."""
        return (
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
                    "sha256": copied["sha256"],
                    "file_size": copied["file_size"],
                    "virtual_size": "source_size",
                },
                throughput=REREAD,
                box="Verify stage",
            ),
        )

    def exchange(self) -> Steps:
        """Two names for the live disk, then rename the copy over one of them. It is proved by inodes."""
        return (
            Step(
                "swap",
                Task.EXCHANGE,
                "B",
                DESTINATION,
                "swap",
                "Link the live disk aside and rename the stage over it",
                {
                    **_LIVE,
                    "share_source": "share_source",
                    "live": _AT_STOP,
                    "stage": _STAGED,
                    "virtual_size": "source_size",
                },
                undo="swap_back",
                repeatable=False,
                bars=True,
                artifact=Artifact(
                    "backup",
                    "backup_path",
                    "share",
                    identity="backup_inode",
                    bytes="backup_bytes",
                    removable=False,
                    by_hand=ByHand(
                        ("ls -lin -- {folder}", "cat -- {folder}/card.json", "lsof -- {path}"),
                        ("rm -- {path}", *emptied("{folder}")),
                    ),
                ),
                box="Swap",
            ),
        )

    def rejected(self, kept: str) -> tuple[str, Artifact]:
        """`disk.rejected`, which its inode identifies."""
        left = Artifact("backup", "", "share", identity="rejected_inode", bytes="rejected_bytes", removable=False)
        return kept.replace("disk.old", "disk.rejected"), left

    def purge(self) -> Steps:
        """Delete the file whose inode was recorded, and forget that."""
        return (
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
            Step(
                "forget_purge",
                Task.FORGET,
                "D",
                DESTINATION,
                "forget",
                "Leave nothing behind of the purge",
                box="Purge",
            ),
        )

    def purge_after_rollback(self) -> Args:
        """The inodes, the other way round."""
        return {
            "backup_inode": Made("swap", "live_inode", "inode of the rejected disk"),
            "live_inode": Made("swap", "backup_inode", "inode of the disk in use"),
        }

    def rehearsal(self) -> Steps:
        """Read it whole and compare it with what was recorded of it."""
        return (
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

    def rehearsed(self, ask: Migration, path: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Its path, and what was recorded."""
        instances = path.rpartition("/.volmig/")[0]
        return {
            "instances": instances,
            "share_source": ask.share_source,
            "backup_path": path,
            "recorded": recorded,
        }

    def copy(self, facts: Facts) -> Stage | None:
        """The file `disk.new`."""
        return facts.destination.stage if facts.destination else None

    def is_foreign(self, facts: Facts, verified: Mapping[str, Any]) -> bool:
        """Another inode."""
        stage = self.copy(facts)
        return stage is not None and stage.inode != verified["inode"]

    def binding(self, facts: Facts) -> dict[str, Any]:
        """Its path, inode, format, size in bytes and chain of base files."""
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

    def disks(self, stopped: Mapping[str, Any], verified: Mapping[str, Any], exchanged: Mapping[str, Any]) -> list[str]:
        """By their inodes."""
        live = stopped.get("live")
        old = live.get("inode") if isinstance(live, Mapping) else exchanged.get("backup_inode")
        new = verified.get("inode")
        return [f"{words}: inode {inode}" for words, inode in (("old disk", old), ("new disk", new)) if inode]

    def directory(self, ask: Migration, instances: str) -> str:
        """`.volmig/JOB` in the directory of instances."""
        return f"{instances}/.volmig/{ask.job}"


QCOW2: Final = Qcow2File()


# Its checks


@rule(
    About.LEFTOVERS,
    "nothing of ours is left on the share",
    BLOCKS,
    "The share has nothing left of this job.",
    "destination",
)
def _share_is_clean(case: Case, destination: Destination) -> Finding:
    # The folders of other jobs hold the backups of their instances; they are as it should be.
    ours = tuple(name for name in destination.leftovers if name.rsplit("/", 1)[-1] == case.migration.job)
    return nothing_is_left(case.migration.destination, ours)


@rule(About.PLACE, "destination mounts the share", BLOCKS, "The instance's hypervisor mounts the share.", "destination")
def _destination_mounts_the_share(case: Case, destination: Destination) -> Finding:
    return share_is_mounted(case.migration.destination, case.migration.share_source, destination.share)


@rule(
    About.PLACE,
    "locks reach the server",
    WARNS,
    "The destination takes its locks on the share's server.",
    "destination",
)
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


@rule(About.PLACE, "share is mounted hard", WARNS, "Relay and destination mount the share hard.")
def _share_is_mounted_hard(case: Case) -> Finding:
    # nfs(5): with soft, or softerr, a call without an answer fails, although the server may carry it out later.
    there = case.destination.share if case.destination else None
    sides = ((case.delivers, case.share), (DESTINATION, there))
    words = {role: set(share.options.split(",")) & {"soft", "softerr"} for role, share in sides if share}
    soft = sorted({case.migration.host(role) for role, found in words.items() if found})
    if not soft:
        return None
    return (
        f"{' and '.join(soft)} mount{'s' if len(soft) == 1 else ''} {case.migration.share_source} soft: a write or "
        "rename that gets no answer in time fails, although the filer may carry it out later. Mount the share hard."
    ), soft


@rule(
    About.PLACE, "share has space", BLOCKS, "The share has space for the staged copy beside the present disk.", "share"
)
def _share_has_space(case: Case, share: Share) -> Finding:
    need = qcow2_size(case.migration.source_size) + AIR
    left = share.free - case.around.reserved_on_share
    if need <= left:
        return None
    sentence = (
        f"{share.source} has {in_mib(left)} left ({in_mib(share.free)} free, "
        f"{in_mib(case.around.reserved_on_share)} reserved by other jobs); the staged copy may need {in_mib(need)}."
    )
    return sentence, {"need": need, "free": share.free, "reserved": case.around.reserved_on_share}


@rule(
    About.PLACE, "share can be written", BLOCKS, "The owner of the instances directory can write to the share.", "share"
)
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


@rule(About.DISK, "disk is there", BLOCKS, "The present disk is there.", "destination")
def _disk_is_there(case: Case, destination: Destination) -> Finding:
    if destination.disk is None:
        where = f"{destination.instances}/{case.migration.instance_id}/{case.migration.disk}"
        return f"{where} is not there, or not exactly one disk of the instance matches it.", None
    return None


@rule(
    About.DISK,
    "disk is the instance's",
    BLOCKS,
    "The file is the one that the instance uses, under one name.",
    "destination",
    "disk",
)
def _disk_is_one(case: Case, destination: Destination, disk: Disk) -> Finding:
    if disk.nlink != 1:
        return f"{disk.path} has {disk.nlink} names; volmig cannot determine which of them is used.", disk.nlink
    if destination.domain and destination.domain.source != disk.path:
        return f"The instance uses {destination.domain.source or 'no such disk'}, not {disk.path}.", (
            destination.domain.source
        )
    return None


@rule(
    About.DISK,
    "nothing else reads the disk",
    WARNS,
    "On its hypervisor only the instance has the disk open.",
    "destination",
)
def _nothing_else_reads(case: Case, destination: Destination) -> Finding:
    if not destination.readers:
        return None
    return (
        f"{', '.join(destination.readers)} on {case.migration.destination} has the current disk open. The swap waits a "
        "few seconds for it and is called off if it goes on: the instance then starts on its old disk. End it first."
    ), list(destination.readers)


@rule(
    About.FORMAT,
    "disk is qcow2",
    BLOCKS,
    "File, disk.info and the instance's definition all say qcow2.",
    "destination",
    "disk",
)
def _disk_is_qcow2(case: Case, destination: Destination, disk: Disk) -> Finding:
    driver = destination.domain.driver if destination.domain else "qcow2"
    info = (destination.disk_info or {}).get(disk.path, "qcow2")
    said = {"the file": disk.format, "the instance's definition": driver, "disk.info": info}
    wrong = [f"{who} says {what or 'nothing'}" for who, what in said.items() if what != "qcow2"]
    return (f"{disk.path} is not qcow2 everywhere: {', '.join(wrong)}.", said) if wrong else None


@rule(
    About.FORMAT,
    "image is safe to open",
    BLOCKS,
    "The disk's header leads to no other file that a tool would open.",
    "disk",
)
def _image_is_safe(case: Case, disk: Disk) -> Finding:
    if not disk.objections:
        return None
    why = "; ".join(disk.objections)
    return f"No tool was allowed to open {disk.path}: {why}. A rollback could not return to it.", list(disk.objections)


@rule(About.FORMAT, "no internal snapshots", WARNS, "The present disk holds no internal snapshots.", "disk")
def _no_internal_snapshots(case: Case, disk: Disk) -> Finding:
    if not disk.snapshots:
        return None
    return (
        f"The present disk holds {disk.snapshots} internal snapshot(s). They stay in the old disk and are lost when it "
        "is purged; until then libvirt may list them, and reverting to one fails."
    ), disk.snapshots


@rule(
    About.FORMAT, "no persistent bitmaps", WARNS, "No incremental backup rests on bitmaps in the present disk.", "disk"
)
def _no_bitmaps(case: Case, disk: Disk) -> Finding:
    if not disk.bitmaps:
        return None
    return (
        f"The present disk holds {disk.bitmaps} persistent bitmap(s). They stay in the old disk: an incremental backup "
        "that rests on them breaks at the swap. Plan a full backup after it."
    ), disk.bitmaps


@rule(About.FORMAT, "not marked corrupt", WARNS, "The present disk is not marked corrupt.", "disk")
def _not_marked_corrupt(case: Case, disk: Disk) -> Finding:
    if not disk.corrupt:
        return None
    return (
        "The present disk is marked corrupt, and a rollback would return to it: QEMU does not start a guest on it "
        "until qemu-img check -r all has repaired it."
    ), True


@rule(About.FORMAT, "not marked dirty", WARNS, "The present disk is not marked dirty.", "destination", "disk")
def _not_marked_dirty(case: Case, destination: Destination, disk: Disk) -> Finding:
    if not disk.dirty:
        return None
    runs = destination.domain is not None and destination.domain.state == "running"
    why = "lazy reference counts are on while the guest runs" if runs else "its last QEMU did not close it"
    return (
        f"The present disk is marked dirty: {why}. After a rollback QEMU repairs it before the guest starts, "
        "which takes longer than an ordinary start."
    ), True


@rule(
    About.FORMAT,
    "bases have full paths",
    WARNS,
    "No base of the present disk is named relative to its directory.",
    "disk",
)
def _bases_have_full_paths(case: Case, disk: Disk) -> Finding:
    if not disk.relative_bases:
        return None
    return (
        f"The present disk names {', '.join(disk.relative_bases)} relative to its directory. While it is kept under "
        ".volmig its base is not found from there: rehearsals check the image alone, other tools cannot open it. "
        "A rollback puts it back where its base is found."
    ), list(disk.relative_bases)


@rule(About.BASES, "no backing chain", WARNS, "The present disk stands alone.", "disk")
def _no_backing(case: Case, disk: Disk) -> Finding:
    if disk.backing:
        return (
            f"The present disk stands on {', '.join(disk.backing)}, and Nova removes what no disk in use stands on. "
            "The swap keeps each under a second name beside the old disk. A rollback puts back what is gone, and is "
            "refused where that is not possible."
        ), list(disk.backing)
    return None
