"""Acting on a share as the owner of its instances directory, because a filer often turns root into nobody."""

import contextlib
import os
from typing import Iterator


@contextlib.contextmanager
def as_user(uid: int, gid: int) -> Iterator[None]:
    """Be this user for file access inside the block; root again afterwards. Root stays root, others stay themselves."""
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """Be root again inside the block, whoever this process is for the moment (its own files are root's)."""
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    if uid == 0 or os.getuid() != 0:
        yield
        return
    os.seteuid(0)
    os.setegid(0)
    try:
        yield
    finally:
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
