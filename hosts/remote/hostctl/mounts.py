"""What is mounted where, read from the kernel; never a path on NFS is touched to find out."""

import errno
import json
import os
import re
import selectors
import signal
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

NFS = ("nfs", "nfs4")


class Mount(NamedTuple):
    """One row of mountinfo; `device` is MAJOR:MINOR."""

    device: str
    root: str
    target: str
    fstype: str
    source: str
    options: str


def mounts() -> List[Mount]:
    """All mounts that this process sees, proc_pid_mountinfo(5), the uppermost last."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_row(line) for line in file]


def _row(line: str) -> Mount:
    left, right = line.rstrip("\n").split(" - ", 1)
    mine, filesystem = left.split(" "), right.split(" ")
    options = "%s,%s" % (mine[5], filesystem[2])
    source = _plain(filesystem[1])
    if filesystem[0] in NFS:
        source = share_name(source)
    return Mount(mine[2], _plain(mine[3]), _plain(mine[4]), filesystem[0], source, options)


def share_name(source: str) -> str:
    """A share under one name: an administrator may write filer:/vol/nova/ or FILER:/vol//nova in fstab."""
    host, colon, path = source.rpartition(":/")
    return host.lower() + ":" + (re.sub("/+", "/", "/" + path).rstrip("/") or "/") if colon else source


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal.group(1), 8)), text)


def at(target: str) -> List[Mount]:
    """All mounts on exactly this directory; more than one means that something is covered."""
    return [mount for mount in mounts() if mount.target == target]


def of_source(source: str, *files: str) -> Optional[Mount]:
    """The NFS mount of a share, or None: of several the one that `files` lie under, else one that can be written."""
    found = [mount for mount in mounts() if mount.source == share_name(source) and mount.fstype in NFS]
    return max(found, key=lambda mount: (_holds(mount, files), not option(mount, "ro")), default=None)


def _holds(mount: Mount, files: Tuple[str, ...]) -> bool:
    return any(path.startswith(mount.target.rstrip("/") + "/") for path in files)


def holding(device: str) -> List[Mount]:
    """The mounts of one block device, `device` as major:minor."""
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


def is_stale(path: str) -> bool:
    """True when the server of what is mounted there answers that it knows it no more."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ESTALE
    return False


# Questions that a dead NFS server would never answer

APART_CAP = 1 << 20


def apart(questions: Dict[str, Callable[[], Any]], seconds: float) -> Dict[str, Optional[Any]]:
    """Answers of questions that touch mounts, each asked in a child of its own: a dead server would hold this process
    for ever. None for what failed, said more than 1 MiB or has no answer within so many seconds, all together."""
    said: Dict[str, Optional[bytes]] = {}
    with selectors.DefaultSelector() as waiting:
        children = {name: _child(question, waiting, name) for name, question in questions.items()}
        parts: Dict[str, bytes] = dict.fromkeys(questions, b"")
        deadline = time.monotonic() + seconds
        while waiting.get_map() and time.monotonic() < deadline:
            for ready, _events in waiting.select(deadline - time.monotonic()):
                name, chunk = ready.data, os.read(ready.fd, 65536)
                parts[name] += chunk
                if not chunk or len(parts[name]) > APART_CAP:
                    waiting.unregister(ready.fd)
                    said[name] = parts[name]
    for name, (pid, reading) in children.items():
        os.close(reading)
        _end(pid, name in said)
    return {name: _understood(said.get(name)) for name in questions}


def _child(question: Callable[[], Any], waiting: selectors.BaseSelector, name: str) -> Any:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - what leaves by os._exit is not measured
        try:
            _answer(question, writing)
        finally:
            os._exit(0)
    os.close(writing)
    waiting.register(reading, selectors.EVENT_READ, name)
    return pid, reading


def _answer(question: Callable[[], Any], writing: int) -> None:  # pragma: no cover - in the child
    """In the child, which must not hold open what its parent's caller reads to the end."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    view = memoryview(json.dumps(question()).encode())
    while view:
        view = view[os.write(writing, view) :]


def _end(pid: int, ended: bool) -> None:
    """A child on a dead mount cannot be ended and is not waited for."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0 if ended else os.WNOHANG)


def _understood(said: Optional[bytes]) -> Optional[Any]:
    try:
        return json.loads(said.decode()) if said else None
    except ValueError:
        return None
