"""The relay's temporary filesystem: make, mount, prove, unmount."""

import os
from typing import Any, Dict, Tuple

from . import exports, lvm, mounts
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Output, Work, export_format
from .mountpoints import SENTINEL, make_mountpoint, sentinel, unmount_patiently, write_sentinel
from .sandbox import Cage


def create_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that make a filesystem on the temporary volume and mount it."""
    mountpoint = args["mountpoint"]
    return (
        command(
            "mkfs.ext4",
            "-q",
            "-m",
            "0",
            "-T",
            "largefile4",
            "-U",
            args["fs_uuid"],
            "-L",
            "vm_%s" % job.replace("-", "")[:8],
            "--",
            lvm.device(args),
        ),
        syscall("mkdir %s (mode 000)" % mountpoint),
        command("mount", "-t", "ext4", "-o", "nosuid,nodev,noexec", "--", lvm.device(args), mountpoint),
        syscall("write the sentinel %s/%s" % (mountpoint, SENTINEL)),
    )


def remove_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that unmount the temporary filesystem."""
    return (command("umount", "--", args["mountpoint"]), syscall("rmdir %s" % args["mountpoint"]))


def create(work: Work) -> Dict[str, Any]:
    """Make, mount and mark the relay's filesystem; what is there already must be ours in every respect."""
    args, mountpoint = work.args, work.args["mountpoint"]
    mkfs, mkdir, mount, mark = create_acts(args, work.job)
    volume = _our_volume(work)
    if _is_mounted(work, volume):
        already = sentinel(mountpoint) == args["fs_uuid"]
    else:
        already = False
        if not _has_filesystem(work):
            work.must(mkfs, timeout=1800)
        work.must(mkdir, lambda: make_mountpoint(mountpoint))
        work.do(mount, timeout=60)
    if not already:
        if not _is_mounted(work, volume):
            raise Failed(
                "not-mounted",
                mount.tried,
                "the filesystem is not mounted",
                "Read mount's message in the log, then resume.",
            )
        work.must(mark, lambda: write_sentinel(mountpoint, args["fs_uuid"]))
    space = os.statvfs(mountpoint)
    work.memory.remember("fs", fs_uuid=args["fs_uuid"])
    return {"fs_uuid": args["fs_uuid"], "free": space.f_bavail * space.f_frsize, "already": already}


def _our_volume(work: Work) -> lvm.Volume:
    args = work.args
    found = lvm.volume(work, args["vg"], args["lv"])
    if found is None or not found.active:
        raise Refused(
            "no-volume",
            "make a filesystem on %s" % lvm.name(args),
            "there is no such active volume",
            "Run the step relay_lv again.",
        )
    lvm.check_ours(work, found, args["size"], "volmig.job=%s" % work.job, args["lv_uuid"])
    return found


def _is_mounted(work: Work, volume: lvm.Volume) -> bool:
    """True: our volume, once, on our mount point. Refuses any other mount there or elsewhere."""
    here, elsewhere = mounts.at(work.args["mountpoint"]), mounts.holding(volume.device)
    if not here and not elsewhere:
        return False
    if len(here) == 1 and here[0].device == volume.device and len(elsewhere) == 1:
        return True
    seen = ", ".join("%s on %s" % (mount.source, mount.target) for mount in here + elsewhere)
    raise Refused(
        "foreign-mount",
        "mount %s on %s" % (lvm.name(work.args), work.args["mountpoint"]),
        "mounted: %s" % seen,
        "Something else is mounted there. Inspect it manually.",
    )


def _has_filesystem(work: Work) -> bool:
    """False only when blkid proves the volume blank and closed; True when the filesystem is ours already."""
    probe = signature(work, lvm.device(work.args), good=(0, 2))
    if probe.exit == 0:
        facts = export_format(probe.out)
        if facts.get("TYPE") == "ext4" and facts.get("UUID") == work.args["fs_uuid"]:
            return True
        raise Refused(
            "foreign-signature",
            "make a filesystem on %s" % lvm.name(work.args),
            "it holds %s" % (facts.get("TYPE") or facts.get("PTTYPE") or "something"),
            "The volume is not blank. Inspect it manually.",
        )
    lvm.check_closed(_our_volume(work))
    return False


def signature(work: Work, path: str, *options: object, form: str = "export", **how: Any) -> Output:
    """What blkid finds on a device (or a file of root's own), whose bytes are a guest's: parsed in a cage."""
    return work.ask("blkid", "-p", *options, "-o", form, "--", path, become=Cage(own=(path,)), **how)


def remove(work: Work) -> Dict[str, Any]:
    """Unmount the relay's filesystem, which nobody exports any more, and remove the empty mount point."""
    mountpoint = work.args["mountpoint"]
    unmount, rmdir = remove_acts(work.args, work.job)
    already = not mounts.at(mountpoint) and not os.path.lexists(mountpoint)
    if mounts.at(mountpoint):
        _check_ours_to_unmount(work)
        unmount_patiently(work, unmount, served=True)
    if os.path.lexists(mountpoint):
        work.must(rmdir, lambda: os.rmdir(mountpoint))
    return {"already": already}


def _check_ours_to_unmount(work: Work) -> None:
    mountpoint, found = work.args["mountpoint"], mounts.at(work.args["mountpoint"])
    uuid = work.memory.recall("fs").get("fs_uuid") or work.made.get("fs_uuid") or work.args.get("fs_uuid", "")
    known = export_format(signature(work, found[0].source, good=(0, 2)).out)
    if (
        len(found) != 1
        or found[0].fstype != "ext4"
        or (uuid and known.get("UUID") != uuid)
        or not (uuid or sentinel(mountpoint))
    ):
        raise Refused(
            "foreign-mount",
            "unmount %s" % mountpoint,
            "%s with UUID %s is mounted there" % (found[0].source, known.get("UUID")),
            "This is not the job's filesystem. Inspect it manually.",
        )
    if any(row.path == mountpoint for row in exports.exports(work)):
        raise Refused("still-exported", "unmount %s" % mountpoint, "it is still exported", "Unexport it first.")
