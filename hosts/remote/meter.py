"""Observers of each SSH connection that is tried: code in this package knows neither database nor metrics."""

import contextlib
import time
from collections.abc import Callable, Iterator

from hosts.remote.host import HostError, HostKeyChanged, HostKeyUnknown, Unreachable

OUTCOMES = ("ok", "unreachable", "refused", "host-key", "failed")
Observer = Callable[[str, float], None]  # an outcome of OUTCOMES, and seconds
observers: list[Observer] = []


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """Around one login: reports how it ended and how long it took; exceptions pass through."""
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
