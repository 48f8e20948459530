"""App configuration of health."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

SHORTEST = 24  # characters of VOLMIG_METRICS_TOKEN: wrong ones are not counted, so it has to be too long to guess


class HealthConfig(AppConfig):
    """Heartbeats, health checks and metrics."""

    name = "volmig.health"

    def ready(self) -> None:
        """Registers the system check of the metrics' settings."""
        register(metrics_are_guarded)


def metrics_are_guarded(**_: Any) -> list[CheckMessage]:
    """volmig.M…: the token is long enough, and the port is one."""
    token, port = settings.METRICS_TOKEN, settings.METRICS_PORT
    faults = {
        "M1": token and len(token) < SHORTEST and f"VOLMIG_METRICS_TOKEN must have {SHORTEST} characters or more",
        "M2": not 0 <= port <= 65535 and "VOLMIG_METRICS_PORT must be a port number",
    }
    return [Error(str(why), id=f"volmig.{code}") for code, why in faults.items() if why]
