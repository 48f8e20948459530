"""The processes of a lab: starting a User-mode Linux machine, finding every process by the lab's name, killing."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from tests.lab import network
from tests.lab.image import Image

# A filer that has just booted gives no new locks until clients have reclaimed theirs, 50 s unless told otherwise, and
# an instance whose disk is on the share waits for them. Only a lab's filer has no clients from before.
GRACE = ("lockd.nlm_grace_period=3", "lockd.nlm_timeout=3")  # seconds
OURS = {"linux.uml", "socat", "ssh", "ip"}  # what a lab starts outside its namespace
_started: list[subprocess.Popen[bytes]] = []  # ours to reap: unasked, a killed machine stays a zombie


def boot(
    net: network.Network,
    image: Image,
    folder: Path,
    guest: str,
    memory: str,
    nets: Iterable[str],
    key: str,
    tools: Path | None = None,
) -> None:
    """Start a guest's kernel; its disks, log and control directory lie in `folder`.

    `tools` is a file system that guests share, read-only, as /dev/ubdc.
    """
    pairs = [(f"eth{index}", vlan) for index, vlan in enumerate(nets)]
    # The classic tuntap transport: vecN's tap transport stalls for ever under NFS load.
    cables = [f"{card}=tuntap,{network.tap(guest, vlan)},{network.mac(guest, vlan)}" for card, vlan in pairs]
    addresses = ",".join(f"{card}:{network.address(guest, vlan)}" for card, vlan in pairs)
    arguments = [
        str(image.kernel), f"mem={memory}", f"umid={net.name}-{guest}", f"uml_dir={folder}",
        f"ubd0={folder / guest}.cow,{image.root}", f"ubd1={folder / guest}.disk", "root=/dev/ubda", "rw",
        "con0=null,fd:2", "con=null", "ssl=null", "quiet", "ip=none", *GRACE, *cables,
        *([f"ubd2rc={tools}"] if tools else []),
        f"systemd.hostname={guest}", f"lab.net={addresses}", f"lab.key={','.join(key.split()[:2])}",
    ]  # fmt: skip
    # Guests' memory is a deleted file in TMPDIR, so it goes when they do.
    environment = {**os.environ, "TMPDIR": "/dev/shm", "LD_PRELOAD": str(image.shim), "HOME": str(folder)}
    with (folder / f"{guest}.log").open("ab") as log:
        start(net.command("taskset", "--cpu-list", str(_processor(guest)), *arguments), environment, log)


def _processor(guest: str) -> int:
    """The one processor that a guest runs on, of those that we may use.

    A guest's kernel traces its processes: every system call of theirs is a switch from one to the other and back.
    Where the two sit on different processors of a virtual machine, each switch wakes a sleeping one: starting an
    instance took 44 s, and takes 5 s where they share one.
    """
    usable = sorted(os.sched_getaffinity(0))
    return usable[network.MACHINES[guest] % len(usable)]


def start(
    argv: list[str], environment: dict[str, str] | None = None, log: IO[bytes] | int = subprocess.DEVNULL
) -> None:
    """Start a process of the lab in a process group of its own, apart from this terminal."""
    _started.append(
        subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    )


def kill_guest(lab: str, guest: str) -> None:
    """Cut a guest's power: its whole process group dies at once, and is gone when this returns."""
    mains = [pid for pid in processes(lab) if f"umid={lab}-{guest}" in _arguments(pid) and _group(pid) == pid]
    for main in mains:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(main, signal.SIGKILL)
    _wait_gone(lambda: [pid for pid in _all() if _group(pid) in mains])


def kill_all(lab: str) -> None:
    """Kill every process of a lab, whoever started it, and wait until they are gone."""

    def kill() -> list[int]:
        found = processes(lab)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    _wait_gone(kill)


def processes(lab: str) -> list[int]:
    """All living processes of a lab: those in its namespace, and those outside that carry its name."""
    listed = subprocess.run(["ip", "netns", "pids", lab], check=False, capture_output=True, text=True).stdout
    inside = {int(pid) for pid in listed.split()}
    outside = {pid for pid in _all() if _command(pid) in OURS and any(lab in word for word in _arguments(pid))}
    return [pid for pid in sorted(inside | outside) if _alive(pid)]


def seconds(lab: str) -> float:
    """What the processors have done for the living processes of a lab and for children of theirs that have ended."""
    ticks = sum(int(word) for pid in processes(lab) for word in _stat(pid)[11:15])  # utime to cstime of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def running(lab: str, guest: str) -> bool:
    return any(f"umid={lab}-{guest}" in _arguments(pid) for pid in processes(lab))


def _wait_gone(remaining: Callable[[], list[int]], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in remaining() if _alive(pid)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} of the lab do not die")
        _reap()
        time.sleep(0.05)


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def _all() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _arguments(pid: int) -> list[str]:
    return _read(pid, "cmdline").split("\0")


def _command(pid: int) -> str:
    return _read(pid, "comm").strip()


def _stat(pid: int) -> list[str]:
    return _read(pid, "stat").rpartition(")")[2].split()


def _alive(pid: int) -> bool:
    stat = _stat(pid)
    return bool(stat) and stat[0] not in "ZX"


def _group(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[2]) if stat else 0
