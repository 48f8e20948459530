"""SSH connections that are kept for the next call, and a bound on how fast new ones are made.

A tick is mostly handshakes, and the next one often goes to a hypervisor that this process has just left.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import paramiko

from hosts.remote.host import Address

IDLE_SECONDS = 60.0
OLDEST_SECONDS = 600.0  # for so long at most a key that was removed from authorized_keys still works
MOST_OF_A_HOST, MOST = 2, 64  # that are kept idle, by each process
HANDSHAKES_AT_ONCE, HANDSHAKES_PER_SECOND = 10, 20  # of each process
HANDSHAKE_SECONDS = 3.0  # for which a handshake counts among these; one that computes takes a tenth of a second
WITH_STUCK = 4  # times as many as may count, of all that are under way


class Closable(Protocol):
    """What can be closed: a client, a tunnel, a connection."""

    def close(self) -> None:
        """Ends it; never raises."""


@dataclass
class Connection:
    """A login on one hypervisor; `bastion` is the connection that it goes through, if it needs one."""

    client: paramiko.SSHClient
    bastion: Closable | None = None
    began: float = field(default_factory=time.monotonic)
    idle_since: float = 0.0

    def close(self) -> None:
        """Ends the connection and the one to its bastion."""
        self.client.close()
        if self.bastion:
            self.bastion.close()

    def is_usable(self, now: float) -> bool:
        """False when it is closed, too old or too long idle; `now` by the monotonic clock."""
        transport = self.client.get_transport()
        is_young = now - self.began < OLDEST_SECONDS and now - self.idle_since < IDLE_SECONDS
        return is_young and transport is not None and transport.is_active()


class Connections:
    """Idle connections by the whole address, so that one made under an old host key is not used under a new one.

    They are closed without the lock: closing one releases its bastion's connection, which is then kept here.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: dict[Address, list[Connection]] = {}
        self.reaper: threading.Thread | None = None

    def take(self, address: Address) -> Connection | None:
        """One that seems to live; None when a new one has to be made."""
        while True:
            with self.lock:
                waiting = self.idle.get(address)
                connection = waiting.pop() if waiting else None
            if connection is None or connection.is_usable(time.monotonic()):
                return connection
            connection.close()

    def keep(self, address: Address, connection: Connection) -> None:
        """Keeps it, and closes the one that has been idle for longest where there are too many of its host, or of all.

        The next call is most likely for the host that was left last.
        """
        connection.idle_since = now = time.monotonic()
        surplus: Connection | None = connection
        if connection.is_usable(now):
            with self.lock:
                surplus = self._add(address, connection)
        if surplus:
            surplus.close()

    def _add(self, address: Address, connection: Connection) -> Connection | None:
        waiting = self.idle.setdefault(address, [])
        waiting.append(connection)  # so each list begins with the one that has been idle for longest
        self._reap()
        if len(waiting) > MOST_OF_A_HOST:
            return waiting.pop(0)
        if sum(map(len, self.idle.values())) > MOST:
            return min(filter(None, self.idle.values()), key=lambda each: each[0].idle_since).pop(0)
        return None

    def expire(self) -> int:
        """Closes those that were idle for too long; returns how many are left."""
        now, left = time.monotonic(), 0
        with self.lock:
            over = [each for waiting in self.idle.values() for each in waiting if not each.is_usable(now)]
            for address, waiting in list(self.idle.items()):
                self.idle[address] = [each for each in waiting if each not in over]
                left += len(self.idle[address])
                if not self.idle[address]:
                    del self.idle[address]
        for connection in over:
            connection.close()
        return left

    def forget(self) -> None:
        """Closes all of them."""
        while self.idle:
            with self.lock:
                idle, self.idle = self.idle, {}
            for connection in (each for waiting in idle.values() for each in waiting):
                connection.close()

    def _reap(self) -> None:
        if self.reaper is None or not self.reaper.is_alive():
            self.reaper = threading.Thread(target=self._reap_all, name="idle connections", daemon=True)
            self.reaper.start()

    def _reap_all(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS / 4)
            self.expire()


class Pace:
    """Limits logins to so many at once and so many a second: 500 hypervisors must not use up this machine.

    One that takes longer than `longest` seconds waits for a host that is stuck and uses nothing of this machine: it
    counts no more, so that such hosts keep no others waiting. On a machine without processor time all take longer:
    there are never more than WITH_STUCK times `at_once` under way, or it would get even slower.
    """

    def __init__(
        self,
        at_once: int,
        per_second: float,
        sleep: Callable[[float], None] = time.sleep,
        longest: float = HANDSHAKE_SECONDS,
    ) -> None:
        self.at_once, self.longest = at_once, longest
        self.turns = threading.Condition()
        self.under_way: dict[object, float] = {}  # when each began, on the monotonic clock
        self.gap, self.sleep, self.next_at = 1 / per_second, sleep, 0.0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Waits for a turn to log in; at most a fixed number are in progress, and each begins a moment after the
        last."""
        mine = object()
        with self.turns:
            while (seconds := self._full_for(time.monotonic())) > 0:
                self.turns.wait(seconds)
            now = time.monotonic()
            wait, self.next_at = max(0.0, self.next_at - now), max(now, self.next_at) + self.gap
            self.under_way[mine] = now + wait
        try:
            if wait:
                self.sleep(wait)
            yield
        finally:
            with self.turns:
                del self.under_way[mine]
                self.turns.notify()

    def _full_for(self, now: float) -> float:
        """Seconds until one of those that take up all slots has lasted too long to count, or until to look again where
        only an end makes room; 0 when a slot is free."""
        if len(self.under_way) >= WITH_STUCK * self.at_once:
            return self.longest
        counting = sorted(at + self.longest - now for at in self.under_way.values() if at + self.longest > now)
        return counting[-self.at_once] if len(counting) >= self.at_once else 0.0


KEPT = Connections()
HANDSHAKES = Pace(HANDSHAKES_AT_ONCE, HANDSHAKES_PER_SECOND)
