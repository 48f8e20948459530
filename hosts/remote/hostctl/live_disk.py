"""The identity and attributes of an instance's disk, as the filer has them."""

import errno
import os
import stat
from typing import Any, Dict

from .untrusted import Share


def live(instances: str, path: str) -> Dict[str, Any]:
    """Identity and attributes of the live disk, asked of the server by opening it (attributes may be cached)."""
    with Share(instances) as share:
        found = share.look(path[len(instances) + 1 :])
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return identity(found)


def identity(found: os.stat_result) -> Dict[str, int]:
    """What tells one file from another: inode, size, times, owner and mode."""
    return {
        "inode": found.st_ino,
        "file_size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "mode": stat.S_IMODE(found.st_mode),
    }
