"""Processes and those below them, and how a test ends all that it started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def family(pid: int) -> Iterator[int]:
    """All processes that descend from this one, parents before their children."""
    for child in children(pid):
        yield child
        yield from family(child)


def children(pid: int) -> list[int]:
    try:
        return sorted(int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:  # it has ended
        return []


def end_all(processes: "Iterable[subprocess.Popen[Any]]", seconds: float, number: int = signal.SIGTERM) -> None:
    """Asks all of them to stop; kills those that do not within so many seconds, with all that descends from them.

    It does not raise: whatever a test does afterwards, such as removing what they used, has to be done as well.
    """
    asked = list(processes)
    for process in asked:
        process.send_signal(number)  # to one that has ended it does nothing
    for process in asked:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in [process.pid, *family(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
