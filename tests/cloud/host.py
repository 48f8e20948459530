"""One pretended hypervisor of the control plane: its guests, its trouble, and its nova-compute's life."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.cloud import processes
from tests.cloud.daemons import Services
from tests.cloud.inside.guests import RUNNING, SHUTDOWN, Files
from tests.lab.guest import Guest

__all__ = ["RUNNING", "SHUTDOWN", "Host"]


class Host:
    """`name` is what Nova calls the host; calls of its driver are named as in nova.virt.driver: power_on, power_off…"""

    def __init__(self, name: str, services: Services) -> None:
        self.name, self.services = name, services
        self.files = Files(services.place.folder / "compute" / name)

    # Trouble

    def fail(self, call: str, message: str) -> None:
        """Have a call of the driver raise an error with that message, until healed."""
        self._knob("fail", {}, lambda fails: fails.update({call: message}))

    def delay(self, call: str, seconds: float) -> None:
        """Have a call of the driver take that much longer, until healed."""
        self._knob("delay", {}, lambda delays: delays.update({call: seconds}))

    @contextlib.contextmanager
    def held(self, call: str) -> Iterator[None]:
        """Have a call of the driver wait until the block ends."""
        self._knob("hold", [], lambda calls: calls.append(call))
        try:
            yield
        finally:
            self._knob("hold", [], lambda calls: calls.remove(call) if call in calls else None)

    def ignore_shutdown(self, uuid: str) -> None:
        """Have a guest ignore that it shall shut down: Nova cuts it off when its shutdown timeout is over."""
        self._knob("deaf", [], lambda deaf: deaf.append(uuid))

    def heal(self) -> None:
        """End all trouble; calls that are held go on."""
        self.files.change("knobs.json", dict.clear)

    # Guests

    def guest_state(self, uuid: str) -> int | None:
        """The power state of a pretended guest; None when the host has no such guest."""
        return self.files.read("guests.json").get(uuid, {}).get("state")

    def set_guest_state(self, uuid: str, state: int) -> None:
        """Change a guest behind Nova's back; Nova notices within 10 s."""
        self.files.change("guests.json", lambda guests: guests[uuid].update(state=state))

    def join(self, guest: Guest) -> None:
        """Have this host's power be that of the libvirt domains on a guest of the storage lab, where there are such."""
        self.files.change("lab.json", lambda lab: lab.update(ssh=guest.way_in(self.services.place.run)))

    def part(self) -> None:
        """End that."""
        self.files.change("lab.json", dict.clear)

    # nova-compute

    @property
    def runs(self) -> bool:
        return bool(processes.living(self.services.place.name, self._service))

    def stop(self) -> None:
        """Kill nova-compute, and have Nova see at once that it is down, as it would after a minute."""
        processes.kill(self.services.place.name, self._service)
        self.services.forget_reports(self.name)

    def start(self) -> None:
        """Start nova-compute again; returns when Nova sees that it is up."""
        self.services.forget_reports(self.name)
        self.services.start_compute(self.name)
        self.services.wait_nova(self.name)

    @property
    def _service(self) -> str:
        return f"nova-compute-{self.name}"

    def _knob(self, name: str, empty: Any, change: Callable[[Any], None]) -> None:
        self.files.change("knobs.json", lambda knobs: change(knobs.setdefault(name, empty)))
