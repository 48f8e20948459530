"""App configuration of jobs, and the failpoints that a lab may arm: where workers die for a test, once each."""

import os
import signal
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from jobs.engine import failpoints
from jobs.engine.steps import TABLE


class JobsConfig(AppConfig):
    name = "jobs"

    def ready(self) -> None:
        register(failpoints_are_for_labs)
        if settings.FAILPOINT and not failpoint_faults():
            wanted = failpoints.chosen(settings.FAILPOINT, TABLE)
            failpoints.arm(lambda point: die_once(point) if point in wanted else None)


def failpoints_are_for_labs(**_: Any) -> list[CheckMessage]:
    return [Error(f"VOLMIG_FAILPOINT: {why}", id=f"volmig.F{index}") for index, why in enumerate(failpoint_faults(), 1)]


def failpoint_faults() -> list[str]:
    """Why what is set may not be armed; where it may not, nothing is."""
    if not settings.FAILPOINT:
        return []
    allowed = settings.LAB or settings.DEBUG
    faults = [] if allowed else ["it kills workers amid a migration; unset it, or set VOLMIG_LAB=yes on a lab"]
    try:
        failpoints.chosen(settings.FAILPOINT, TABLE)
    except ValueError as error:
        faults.append(str(error))
    return faults


def die_once(point: str) -> None:
    """Kill this process, unless one has died here already: a file in the data directory says so."""
    gone = Path(settings.DATA) / "failpoints"
    gone.mkdir(mode=0o700, exist_ok=True)
    try:
        os.close(os.open(gone / point, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
