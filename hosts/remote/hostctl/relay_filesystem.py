"""The relay's temporary filesystem: make, mount, prove, unmount."""

import contextlib
import errno
import os
import stat
import time
from functools import partial
from typing import Any, Dict, Tuple

from . import lvm, mounts, openers, untrusted
from .act import Act, Args, Failed, Refused, command, reason, syscall
from .commands import Output, Work
from .sandbox import Cage
from .store import sync_directory

SENTINEL = ".volmig"
UNLOCK = "/proc/fs/nfsd/unlock_filesystem"  # write_unlock_fs in Linux, fs/nfsd/nfsctl.c


def create_acts(args: Args, job: str) -> Tuple[Act, ...]:
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
        "Something else is mounted there. Look at it by hand.",
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
            "The volume is not blank. Look at it by hand.",
        )
    lvm.check_closed(_our_volume(work))
    return False


def signature(work: Work, path: str, *options: object, form: str = "export", **how: Any) -> Output:
    """What blkid finds on a device (or a file of root's own), whose bytes are a guest's: parsed in a cage."""
    return work.ask("blkid", "-p", *options, "-o", form, "--", path, become=Cage(own=(path,)), **how)


def export_format(text: str) -> Dict[str, str]:
    """`blkid -o export`: NAME=value lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def make_mountpoint(path: str) -> None:
    """An empty directory that nobody can use by mistake while nothing is mounted on it."""
    check_private(os.path.dirname(path))
    try:
        os.mkdir(path, 0)
    except FileExistsError:
        if os.path.islink(path) or os.listdir(path):
            raise Refused(
                "foreign-directory",
                "use %s as mount point" % path,
                "it is not an empty directory",
                "Look at what lies there; volmig does not cover it.",
            )


def check_private(directory: str) -> None:
    """Have the directory of mount points be root's alone: what is mounted there squashes every user to the owner."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise Refused(
            "foreign-directory",
            "use %s for mount points" % directory,
            "it is %s"
            % ("no directory" if not stat.S_ISDIR(found.st_mode) else "owned by user %d, not by root" % found.st_uid),
            "Move it away, or give it to root; volmig makes it anew (root, mode 0700).",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(directory, 0o700)


def write_sentinel(mountpoint: str, fs_uuid: str) -> None:
    path = os.path.join(mountpoint, SENTINEL)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = untrusted.create(path, None, 0o444)
    try:
        os.fchmod(fd, 0o444)
        if os.write(fd, fs_uuid.encode()) != len(fs_uuid):
            raise OSError(errno.ENOSPC, "only a part of the sentinel was written")
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(mountpoint)


def sentinel(mountpoint: str) -> str:
    """The filesystem UUID written at its root, or an empty text: proof that the right thing is mounted."""
    try:
        with untrusted.opened(os.path.join(mountpoint, SENTINEL)) as fd:
            return os.read(fd, 64).decode("ascii", "replace")
    except (OSError, Refused):
        return ""


def _why_unread(mountpoint: str) -> str:
    try:
        with untrusted.opened(os.path.join(mountpoint, SENTINEL)):
            return ""
    except OSError as error:
        return " (%s)" % reason(error)
    except Refused as stop:
        return " (%s)" % stop.code


def check_target(args: Args, job: str) -> None:
    """Refuse unless the job's filesystem is mounted and answers: else a copy would fill the hypervisor's own disk."""
    mountpoint, found = args["mountpoint"], mounts.at(args["mountpoint"])
    try:
        own = mounts.is_own_filesystem(mountpoint)
    except OSError as error:  # a server that exports it no more
        raise Refused(
            "not-mounted",
            "write under %s" % mountpoint,
            "what should be mounted there does not answer: %s" % reason(error),
            "See on the relay whether it is still exported (exportfs -s), then resume.",
        )
    if len(found) != 1 or not own or sentinel(mountpoint) != args.get("fs_uuid", job):
        raise Refused(
            "not-mounted",
            "write under %s" % mountpoint,
            "the job's filesystem is not (only) mounted there: %d mounts, sentinel %r%s"
            % (len(found), sentinel(mountpoint), _why_unread(mountpoint)),
            "See on the relay whether it is still exported (exportfs -s). Mount it again, then resume.",
        )


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
            "This is not the job's filesystem. Look at it by hand.",
        )
    from . import nfs_server  # which stands on this module

    if any(row.path == mountpoint for row in nfs_server.exports(work)):
        raise Refused("still-exported", "unmount %s" % mountpoint, "it is still exported", "Unexport it first.")


def unmount_patiently(work: Work, unmount: Act, seconds: float = 60, served: bool = False) -> None:
    """umount until the kernel shows no mount; its exit status is 32 for everything and decides nothing.

    `served`: this host exported it, and its NFS server may still hold locks of a client there.
    """
    mountpoint, deadline = work.args["mountpoint"], time.monotonic() + seconds
    output = work.do(unmount, timeout=seconds)
    while mounts.at(mountpoint):
        if time.monotonic() > deadline:
            users = openers.under(mountpoint)
            raise Failed(
                "mount-busy",
                unmount.tried,
                "%s; %s" % (output.said(), "used by %s" % ", ".join(users) if users else "no process here has it open"),
                "End what uses %s; where nothing does, the kernel has it (a mount below, a loop device, the NFS "
                "server: fuser -vm, losetup -a). Then resume." % mountpoint,
            )
        if served and os.path.exists(UNLOCK):
            work.do(syscall("write %s to %s" % (mountpoint, UNLOCK)), partial(_unlock, mountpoint), recovery=True)
        else:
            time.sleep(2)
        served = False
        output = work.do(unmount, recovery=True, timeout=seconds)


def _unlock(mountpoint: str) -> None:
    """Have lockd drop every lock that clients hold on this filesystem, which nobody is served any more."""
    with open(UNLOCK, "w") as file:
        file.write(mountpoint + "\n")  # without it the kernel answers EINVAL
