"""The processes of a control plane: starting them, finding every one by the plane's name, killing."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Children inherit these, so even what a service started itself is found, whoever started the service.
PLANE, SERVICE = "VOLMIG_CLOUD_PLANE", "VOLMIG_CLOUD_SERVICE"
_started: list[subprocess.Popen[bytes]] = []  # ours to reap: unasked, a killed one stays a zombie


def start(plane: str, service: str, argv: Sequence[str | Path], folder: Path, **environment: str) -> None:
    """Start a service apart from this terminal; what it says goes to `folder`/log/<service>.log."""
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(folder)}
    marks = {PLANE: plane, SERVICE: service}
    with (folder / "log" / f"{service}.log").open("ab") as log:
        _started.append(
            subprocess.Popen(
                [str(word) for word in argv],
                env={**clean, **environment, **marks},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )


def living(plane: str, service: str | None = None) -> dict[int, str]:
    """All living processes of a plane, or of one of its services: the service's name by process id."""
    found = {}
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        marks = _environment(pid)
        if marks.get(PLANE) == plane and service in (None, marks.get(SERVICE)) and _alive(pid):
            found[pid] = marks[SERVICE]
    return found


def kill(plane: str, service: str | None = None, seconds: float = 30) -> None:
    """Kill a plane, or one service of it; every process of it is gone when this returns."""
    _end(plane, service, signal.SIGKILL, seconds)


def terminate(plane: str, service: str, seconds: float = 30) -> None:
    """Ask a service to end as its administrator would, and wait for it."""
    _end(plane, service, signal.SIGTERM, seconds)


def _end(plane: str, service: str | None, number: signal.Signals, seconds: float) -> None:
    deadline, sent = time.monotonic() + seconds, set[int]()
    while left := living(plane, service):
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {left} of {plane} do not end")
        for pid in set(left) - sent:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        sent |= set(left)
        time.sleep(0.05)
        _reap()


def _reap() -> None:
    _started[:] = [process for process in _started if process.poll() is None]


def _environment(pid: int) -> Mapping[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
