"""What is mounted where, read from the kernel; never a path on NFS is touched to find out."""

import os
import re
from typing import List, NamedTuple, Optional


class Mount(NamedTuple):
    """One row of mountinfo; `device` is MAJOR:MINOR."""

    device: str
    root: str
    target: str
    fstype: str
    source: str
    options: str


def mounts() -> List[Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_row(line) for line in file]


def _row(line: str) -> Mount:
    left, right = line.rstrip("\n").split(" - ", 1)
    mine, filesystem = left.split(" "), right.split(" ")
    options = "%s,%s" % (mine[5], filesystem[2])
    return Mount(mine[2], _plain(mine[3]), _plain(mine[4]), filesystem[0], _plain(filesystem[1]), options)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), text)


def at(target: str) -> List[Mount]:
    """All mounts on exactly this directory; more than one means that something is covered."""
    return [mount for mount in mounts() if mount.target == target]


def of_source(source: str) -> Optional[Mount]:
    """The NFS mount of a share, or None."""
    found = [mount for mount in mounts() if mount.source == source and mount.fstype in ("nfs", "nfs4")]
    return found[0] if found else None


def holding(device: str) -> List[Mount]:
    return [mount for mount in mounts() if mount.device == device]


def option(mount: Mount, name: str) -> str:
    """Value of an option, its name when it has none, or an empty text."""
    for word in mount.options.split(","):
        key, _, value = word.partition("=")
        if key == name:
            return value or key
    return ""


def is_own_filesystem(path: str) -> bool:
    """True when a directory is not on its parent's filesystem: something is really mounted there."""
    return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
