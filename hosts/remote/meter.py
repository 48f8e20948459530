"""Who wants to know of each SSH connection that was tried: the remote side knows of no database and no metrics."""

import contextlib
import time
from collections.abc import Callable, Iterator

from hosts.remote.host import HostError, HostKeyChanged, HostKeyUnknown, Unreachable

OUTCOMES = ("ok", "unreachable", "refused", "host-key", "failed")
Observer = Callable[[str, float], None]  # an outcome of OUTCOMES, and seconds
observers: list[Observer] = []


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """Around one login: says how it ended and how long it took; what is raised within goes on."""
    began, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "ok"
    except HostError as error:
        outcome = outcome_of(error)
        raise
    finally:
        for observe in observers:
            observe(outcome, time.monotonic() - began)


def outcome_of(error: HostError) -> str:
    if isinstance(error, HostKeyChanged | HostKeyUnknown):
        return "host-key"
    return "unreachable" if isinstance(error, Unreachable) else "refused"
