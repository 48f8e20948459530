"""The heartbeat of a cluster of workers: a file whose time its processes set and its supervisor reads.

It uses the kernel's monotonic clock (clock_gettime(2), CLOCK_MONOTONIC), which cannot be set and is the same for all
processes of a machine; and not the database, whose absence is no reason to restart anything.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "VOLMIG_BEAT"  # names the file, in the environment of the processes that a supervisor started


def beat() -> None:
    """Called by workers, and by the process that feeds them, whenever they make progress."""
    if path := os.environ.get(VARIABLE):
        now = time.monotonic_ns()
        with suppress(OSError):  # the supervisor or the disk is gone: work continues
            os.utime(path, ns=(now, now))


def prepare(path: Path) -> None:
    """For a cluster that is about to start: no beat yet."""
    path.touch(mode=0o600)
    os.utime(path, ns=(0, 0))


def silent_for(path: Path) -> float | None:
    """Seconds since the last beat; None before the first, and where the file is gone."""
    try:
        beaten = path.stat().st_mtime_ns
    except OSError:
        return None
    return max(0.0, (time.monotonic_ns() - beaten) / 1e9) if beaten else None
