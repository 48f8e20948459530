"""Which processes of this host have a file open, by the names that the kernel keeps: the share is not touched."""

import os
from typing import List

from .lvm import first_line


def of_file(path: str, guest: str = "") -> List[str]:
    """Processes that have `path` open, or a name that its NFS client put it aside under, in words.

    The QEMU of the instance `guest` (its UUID is on its command line, `-uuid`) and this process itself are left out.
    """
    folder = os.path.dirname(path) + "/"
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid() and _has_open(pid, path, folder) and not _runs(pid, guest):
            found.append("%s (process %s)" % (first_line("/proc/%s/comm" % pid) or "a process", pid))
    return found


def under(place: str) -> List[str]:
    """Processes that have something at or under a directory open, or that are in it, in words."""
    found = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid() and _is_in(pid, place)]
    return ["%s (process %s)" % (first_line("/proc/%s/comm" % pid) or "a process", pid) for pid in found]


def _is_in(pid: str, place: str) -> bool:
    found = [*_opened(pid), *_read("/proc/%s/cwd" % pid), *_read("/proc/%s/root" % pid)]
    return any((name + "/").startswith(place + "/") for name in found)


def _has_open(pid: str, path: str, folder: str) -> bool:
    return any(name == path or name.startswith(folder + ".nfs") for name in _opened(pid))


def _opened(pid: str) -> List[str]:
    """What the descriptors of a process lead to; one that it closes meanwhile must not hide the others."""
    directory = "/proc/%s/fd" % pid
    try:
        descriptors = os.listdir(directory)
    except OSError:  # it ended meanwhile
        return []
    return [name for fd in descriptors for name in _read("%s/%s" % (directory, fd))]


def _read(link: str) -> List[str]:
    try:
        return [os.readlink(link)]
    except OSError:
        return []


def _runs(pid: str, guest: str) -> bool:
    try:
        with open("/proc/%s/cmdline" % pid, "rb") as file:
            return bool(guest) and guest.encode() in file.read(1 << 20).split(b"\0")
    except OSError:
        return False
