"""What is costly to compute and the same for many pages: computed once for all of a process, and kept for seconds."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, each at most `seconds` old; one thread at a time computes, and the others wait for it.

    `worth` says of a value whether it was costly enough to be kept: what is not is computed for each page anew, so that
    a small site sees every change at once. Whoever gets a value must not change it.
    """

    def __init__(
        self, compute: Callable[[Key], Value], seconds: float, worth: Callable[[Value], bool] = lambda _: True
    ) -> None:
        self.compute, self.seconds, self.worth = compute, seconds, worth
        self.lock = threading.Lock()
        self.known: dict[Key, tuple[float, Value]] = {}

    def forget(self) -> None:
        """Have everything computed again, in this process; what is being computed just now is not kept either."""
        with self.lock:
            self.known = {}

    def get(self, key: Key) -> Value:
        with self.lock:
            now = time.monotonic()
            # Those of people who have gone do not stay for ever.
            self.known = {each: kept for each, kept in self.known.items() if now - kept[0] <= self.seconds}
            if key in self.known:
                return self.known[key][1]
            value = self.compute(key)
            if self.worth(value):
                self.known[key] = (now, value)
            return value
