"""`python3 -I hostctl install`, as root: this version beside the others, and a small program that picks one of them.

The program, launcher.py, is the forced command and what the sudo rule names; it is the same for all versions.
"""

import json
import os
import pkgutil
import re
import shutil
import sys
import tempfile
import zipfile
from typing import List, Set

from .bootstrap import only_roots
from .store import STATE
from .version import source_hash, versions_in

PROGRAM = "/usr/local/libexec/volmig-hostctl"
DIRECTORY = PROGRAM + ".d"
NAME = "hostctl-"
START = re.compile(rb"^sys\.exit\(start\('([0-9a-f]{16})'\)\)$", re.MULTILINE)


def main(archive: str, program: str = PROGRAM, state: str = STATE) -> int:
    """Install `archive`, this very program; 0 when it is what runs from now on where no other version is asked for."""
    if os.geteuid() != 0 or not zipfile.is_zipfile(archive):
        sys.stderr.write("hostctl: to install it, run the file itself, as root: python3 -I hostctl install\n")
        return 2
    directory = program + ".d"
    os.makedirs(os.path.dirname(program), 0o755, exist_ok=True)
    os.makedirs(directory, 0o755, exist_ok=True)
    os.chmod(directory, 0o755)  # noqa: S103  others may read it, as any program
    if not only_roots(directory):
        sys.stderr.write("hostctl: %s is not root's alone\n" % directory)
        return 2
    _keep_former(program, directory)
    _copy(archive, os.path.join(directory, NAME + source_hash()))
    before = _current(directory)
    _link(NAME + source_hash(), os.path.join(directory, "current"))
    _write(_launcher(), program)
    needed = needed_versions(state)
    removed = _remove_others(directory, {source_hash(), before} | needed)
    sys.stdout.write("hostctl %s is installed as the current version.\n" % source_hash())
    for digest in sorted(set(versions_in(directory)) - {source_hash()}):
        why = "a migration on this host began with it" if digest in needed else "it was the current version before"
        sys.stdout.write("hostctl %s stays: %s.\n" % (digest, why))
    for digest in removed:
        sys.stdout.write("hostctl %s was removed: no migration on this host needs it.\n" % digest)
    return 0


def needed_versions(state: str = STATE) -> Set[str]:
    """The hashes of all versions that a job which this host remembers was begun with."""
    found = set()
    for job in os.listdir(state) if os.path.isdir(state) else ():
        directory = os.path.join(state, job)
        for name in os.listdir(directory) if len(job) == 36 and os.path.isdir(directory) else ():
            if name.endswith(".request.json"):
                with open(os.path.join(directory, name), "rb") as file:
                    found.add(_hash_in(file.read()))
    return found - {""}


def _hash_in(text: bytes) -> str:
    try:
        return str(json.loads(text.decode("utf-8")).get("hash") or "")
    except (ValueError, AttributeError):
        return ""


def _keep_former(program: str, directory: str) -> None:
    """Until now the program was a version itself: migrations may need it."""
    if not zipfile.is_zipfile(program):
        return
    with zipfile.ZipFile(program) as packed:
        found = START.search(packed.read("__main__.py"))
    if found:
        digest = found.group(1).decode()
        _copy(program, os.path.join(directory, NAME + digest))
        _link(NAME + digest, os.path.join(directory, "current"))


def _current(directory: str) -> str:
    try:
        return os.readlink(os.path.join(directory, "current"))[len(NAME) :]
    except OSError:
        return ""


def _copy(path: str, to: str) -> None:
    with open(path, "rb") as file:
        _write(file.read(), to)


def _write(text: bytes, path: str) -> None:
    """Whole or not at all: calls come meanwhile."""
    fd, part = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".part-")
    with os.fdopen(fd, "wb") as file:
        file.write(text)
        file.flush()
        os.fchmod(fd, 0o755)
        os.fsync(fd)
    os.rename(part, path)


def _link(target: str, path: str) -> None:
    part = path + ".part"
    if os.path.lexists(part):
        os.unlink(part)
    os.symlink(target, part)
    os.rename(part, path)


def _launcher() -> bytes:
    text = pkgutil.get_data(__package__, "launcher.py")
    if text is None:
        raise FileNotFoundError("launcher.py is missing from hostctl")
    return text


def _remove_others(directory: str, kept: Set[str]) -> List[str]:
    removed = [digest for digest in versions_in(directory) if digest not in kept]
    for digest in removed:
        os.unlink(os.path.join(directory, NAME + digest))
        shutil.rmtree(os.path.join(directory, ".hostctl-" + digest), ignore_errors=True)
    return removed
