"""A question in a process of its own, which is given up when it does not answer in time.

A process that waits for a dead NFS server or a dead disk cannot be ended, not even by SIGKILL, and no timer reaches it.
The caller gets its answer all the same, and how many such processes there are is known: their number is limited.
"""

import contextlib
import json
import os
import select
import signal
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import commands, untrusted
from .act import Args, Refused
from .direct_io import write_all
from .store import read_progress, write_json

WITHIN = 15.0  # seconds; whoever asks through SSH waits for 20
LONGER = {"inventory": 45.0, "leftovers": 45.0}  # asked for with more patience
STUCK_OF_A_KIND, STUCK = 3, 12  # processes that do not end, after which no more are started
ANSWER_CAP = 32 << 20
KIND = ("share_source", "instances", "vg")  # what a question touches that may be dead, while others live

Asked = Callable[[commands.Work], Dict[str, Any]]


class Stuck(NamedTuple):
    """A process that was given up and still is there."""

    pid: int
    kind: str
    doing: str
    since: float


def within(verb: str) -> float:
    """Seconds that a question may take on this host."""
    return LONGER.get(verb, WITHIN)


def answered(run: Asked, work: commands.Work, verb: str, directory: str, seconds: float) -> Dict[str, Any]:
    """What `run` answers. Refuses with `timed-out`, naming what hung, or `too-many-stuck` where others hang already."""
    kind = " ".join([verb] + [str(work.args[name]) for name in KIND if name in work.args])
    _demand_few(stuck(directory), verb, kind)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - what leaves by os._exit is not measured
        _ask(run, work, writing, directory, kind, seconds)
    os.close(writing)
    try:
        doing, said, in_time = _heard(reading, seconds + 1)  # tools are ended by their own limit before
    finally:
        os.close(reading)
    if not _ended(pid, killed=said is None):
        remember(directory, pid, kind, doing)
    if said is None:
        raise _death(verb, doing) if in_time else _silence(verb, doing, seconds)
    return said


def _death(verb: str, doing: str) -> Refused:
    return Refused(
        "no-answer",
        "run %s" % verb,
        "its process ended without a response at: %s" % (doing or "its beginning"),
        "Check the kernel's log on this host (journalctl -k): it may have run out of memory. volmig retries.",
    )


def _silence(verb: str, doing: str, seconds: float) -> Refused:
    return Refused(
        "timed-out",
        "run %s" % verb,
        "%s did not end within %d s" % (doing or "it", seconds),
        "Find out what is not responding on this host: a share, a disk or a service. volmig retries.",
    )


def _demand_few(there: List[Stuck], verb: str, kind: str) -> None:
    alike = [each for each in there if each.kind == kind]
    if len(alike) < STUCK_OF_A_KIND and len(there) < STUCK:
        return
    shown = alike if len(alike) >= STUCK_OF_A_KIND else there
    raise Refused(
        "too-many-stuck",
        "run %s" % verb,
        "%d earlier questions hang on this host: %s"
        % (len(shown), "; ".join("process %d at: %s" % (each.pid, each.doing) for each in shown[:STUCK_OF_A_KIND])),
        "Repair what is not responding (a dead NFS server blocks a process for ever), or restart the host.",
        stuck=[each._asdict() for each in shown],
    )


# In the child


def _ask(  # pragma: no cover
    run: Asked, work: commands.Work, writing: int, directory: str, kind: str, seconds: float
) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):  # its parent's caller reads them to the end
            os.dup2(nowhere, fd)

        def note(text: str) -> None:
            write_all(writing, b"N%s\n" % text[:500].encode("utf-8", "replace").replace(b"\n", b" "))

        untrusted.note = note
        work.until = time.monotonic() + seconds - 1
        given = json.dumps(run(work)).encode()
        for pid, doing in commands.ABANDONED:
            remember(directory, pid, kind, doing)
        write_all(writing, b"A%s\n" % given)
    finally:
        os._exit(0)


# In the parent


def _heard(fd: int, seconds: float) -> Tuple[str, Optional[Dict[str, Any]], bool]:
    """What the child was last at, its answer or None, and whether it said all that it had to say in time."""
    doing, buffer, deadline = "", b"", time.monotonic() + seconds
    while len(buffer) < ANSWER_CAP:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return doing, None, False
        chunk = os.read(fd, 1 << 16)
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if line[:1] == b"A":
                return doing, json.loads(line[1:].decode()), True
            doing = line[1:].decode("utf-8", "replace")
        if not chunk:
            return doing, None, True
    return doing, None, True


def _ended(pid: int, killed: bool) -> bool:
    """Whether the child is gone; one that waits for a dead server stays, and is left behind."""
    if killed:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    return False


# What was given up


def remember(directory: str, pid: int, kind: str, doing: str) -> None:
    """Note a process that does not end, so that it is counted until it does."""
    place = os.path.join(directory, "stuck")
    os.makedirs(place, 0o700, exist_ok=True)
    facts: Args = {"began": _began(pid), "kind": kind, "doing": doing, "since": time.time()}
    write_json(os.path.join(place, "%d.json" % pid), facts, sync=False)


def stuck(directory: str) -> List[Stuck]:
    """What was given up and still is there; what has ended since is forgotten."""
    place = os.path.join(directory, "stuck")
    try:
        names = [name for name in os.listdir(place) if name.endswith(".json")]
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        pid, facts = int(name[: -len(".json")]), read_progress(os.path.join(place, name)) or {}
        if facts.get("began") and _began(pid) == facts["began"]:
            found.append(Stuck(pid, str(facts["kind"]), str(facts["doing"]), float(facts["since"])))
        else:
            with contextlib.suppress(FileNotFoundError):  # another call was quicker
                os.unlink(os.path.join(place, name))
    return sorted(found)


def _began(pid: int) -> str:
    """When a process began, in ticks since the boot; numbers of processes are used again. Empty where it is gone."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            after = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after[0] in "ZX" else after[19]
