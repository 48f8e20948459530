"""What the archive begins with: it runs hostctl from a folder in which Python keeps it compiled.

Python compiles what it reads from an archive anew at every call. That takes most of a call, and some calls lie between
the instance's stop and its start. The folder is beside the archive, and only root can have written it.
"""

import importlib
import os
import stat
import sys
import time

OLD = 86400  # seconds after which what another version unpacked is removed


def start(digest: str) -> int:
    """Run hostctl, whose sources have this hash; returns its exit status."""
    folder = unpacked(os.path.dirname(os.path.abspath(__file__)), digest)
    if folder:
        sys.path.insert(0, folder)
    importlib.import_module("hostctl.version").told(digest)
    return int(importlib.import_module("hostctl.__main__").main())


def unpacked(archive: str, digest: str) -> str:
    """The folder, made when there is none; empty when somebody else than root could have changed it."""
    beside = os.path.dirname(archive)
    folder = os.path.join(beside, ".hostctl-" + digest)
    try:
        if os.geteuid() != 0 or not only_roots(beside):
            return ""
        if not os.path.isdir(folder):
            unpack(archive, folder)
        return folder if only_roots(folder) else ""
    except OSError:
        return ""  # a file system that is full or read-only is no reason not to answer


def only_roots(path: str) -> bool:
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


def unpack(archive: str, folder: str) -> None:
    """Whole or not at all: others may be calling at the same time."""
    import shutil
    import tempfile
    import zipfile

    for old in others(folder):
        shutil.rmtree(old, ignore_errors=True)
    part = tempfile.mkdtemp(dir=os.path.dirname(folder), prefix=".hostctl-part-")
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(part, [name for name in packed.namelist() if name.startswith("hostctl/")])
        os.rename(part, folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        if not os.path.isdir(folder):  # else another call was quicker
            raise


def others(folder: str) -> "list[str]":
    beside = os.path.dirname(folder)
    found = [os.path.join(beside, name) for name in os.listdir(beside) if name.startswith(".hostctl-")]
    return [path for path in found if time.time() - os.lstat(path).st_mtime > OLD]
