"""App configuration of jobs, and the failpoints that a lab may arm: where workers die or wait for a test."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from jobs.engine import failpoints, routes

LONGEST_WAIT = 100.0  # seconds; a task may take no longer than 120


class JobsConfig(AppConfig):
    """The app of migrations; failpoints are armed here, on labs only."""

    name = "jobs"

    def ready(self) -> None:
        """Registers the system check, and arms VOLMIG_FAILPOINT."""
        register(failpoints_are_for_labs)
        if settings.FAILPOINT and not failpoint_faults():
            wanted = failpoints.chosen(settings.FAILPOINT, routes.steps())
            failpoints.arm(lambda point: ACTIONS[wanted[point]](point) if point in wanted else None)


def failpoints_are_for_labs(**_: Any) -> list[CheckMessage]:
    """volmig.F…: an error for failpoints outside of a lab, or unknown ones."""
    return [Error(f"VOLMIG_FAILPOINT: {why}", id=f"volmig.F{index}") for index, why in enumerate(failpoint_faults(), 1)]


def failpoint_faults() -> list[str]:
    """Why what is set may not be armed; where it may not, nothing is."""
    if not settings.FAILPOINT:
        return []
    allowed = settings.LAB or settings.DEBUG
    faults = [] if allowed else ["it kills workers amid a migration; unset it, or set VOLMIG_LAB=yes on a lab"]
    try:
        failpoints.chosen(settings.FAILPOINT, routes.steps())
    except ValueError as error:
        faults.append(str(error))
    return faults


def file_of(point: str) -> Path:
    """The file by which a failpoint is known to have been reached."""
    directory = Path(settings.DATA) / "failpoints"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / point


def die_once(point: str) -> None:
    """Kill this process, unless one has died here already: a file in the data directory says so."""
    try:
        os.close(os.open(file_of(point), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def wait_there(point: str) -> None:
    """Until somebody removes the file that says so, but no longer than a task may take."""
    told, until = file_of(point), time.monotonic() + LONGEST_WAIT
    told.touch(mode=0o600)
    while told.exists() and time.monotonic() < until:
        time.sleep(0.02)


ACTIONS = {failpoints.DIES: die_once, failpoints.WAITS: wait_there}
