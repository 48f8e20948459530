"""Mount points of migrations: made, marked with a sentinel, checked before a copy, unmounted with patience."""

import contextlib
import errno
import os
import stat
import time
from functools import partial

from . import mounts, openers, untrusted
from .act import Act, Args, Failed, Refused, reason, syscall
from .commands import Work
from .store import sync_directory

SENTINEL = ".volmig"
UNLOCK = "/proc/fs/nfsd/unlock_filesystem"  # write_unlock_fs in Linux, fs/nfsd/nfsctl.c


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
                "Inspect what is there; volmig does not mount over it.",
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
            "Move it away, or give it to root; volmig creates it again (root, mode 0700).",
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(directory, 0o700)


def write_sentinel(mountpoint: str, fs_uuid: str) -> None:
    """Writes the file by which a job's own filesystem is recognised; its content is the UUID."""
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
            "the filesystem mounted there is not responding: %s" % reason(error),
            "Check on the relay whether it is still exported (exportfs -s), then resume.",
        )
    if len(found) != 1 or not own or sentinel(mountpoint) != args.get("fs_uuid", job):
        raise Refused(
            "not-mounted",
            "write under %s" % mountpoint,
            "the job's filesystem is not (only) mounted there: %d mounts, sentinel %r%s"
            % (len(found), sentinel(mountpoint), _why_unread(mountpoint)),
            "Check on the relay whether it is still exported (exportfs -s). Mount it again, then resume.",
        )


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
                "End what uses %s; if no process does, the kernel does (a mount below, a loop device, the NFS "
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
