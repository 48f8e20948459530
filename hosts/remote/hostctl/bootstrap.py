"""What the archive begins with: it runs hostctl from a folder in which Python keeps it compiled.

Python compiles what it reads from an archive anew at every call. That takes most of a call, and some calls lie between
the instance's stop and its start. The folder is beside the archive, and only root can have written it.
"""

import importlib
import os
import stat
import sys
import time

OLD = 86400  # seconds after which what another version unpacked is removed, unless something may still need it
STATE = "/var/lib/volmig"


def start(digest: str) -> int:
    """Run hostctl, whose sources have this hash; returns its exit status."""
    installs = sys.argv[1:] == ["install"]  # from wherever the file was carried to
    folder = "" if installs else unpacked(os.path.dirname(os.path.abspath(__file__)), digest)
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
    """True for a directory that only root can write; OSError when it does not exist."""
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
    """What other versions unpacked long ago, and nothing needs any more."""
    beside = os.path.dirname(folder)
    found = [name for name in os.listdir(beside) if name.startswith(".hostctl-")]
    paths = {name[len(".hostctl-") :]: os.path.join(beside, name) for name in found}
    old = {digest: path for digest, path in paths.items() if time.time() - os.lstat(path).st_mtime > OLD}
    return [path for digest, path in old.items() if not is_needed(beside, digest)]


def is_needed(beside: str, digest: str) -> bool:
    """Whether the archive of this version is still there, or a job that began with it is remembered on this host."""
    if os.path.exists(os.path.join(beside, "hostctl-" + digest)):
        return True
    named = ('"hash": "%s"' % digest).encode()
    return any(named in read(os.path.join(STATE, job, name)) for job in listed(STATE) for name in requests_of(job))


def requests_of(job: str) -> "list[str]":
    """File names of the requests that this host has stored for a migration."""
    return [name for name in listed(os.path.join(STATE, job)) if name.endswith(".request.json")]


def listed(path: str) -> "list[str]":
    """Names in a directory; none when it does not exist."""
    return os.listdir(path) if os.path.isdir(path) else []


def read(path: str) -> bytes:
    """The whole file."""
    with open(path, "rb") as file:
        return file.read()
