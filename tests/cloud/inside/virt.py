"""The tests' compute driver: Nova's FakeDriver with guests that outlive it, trouble on command, and real guests.

Nova's own forgets its guests when nova-compute ends, and then refuses to start again because its node has another
uuid. Here both are kept in the host's folder (state_path), where tests change them behind Nova's back.

knobs.json, read at each call: {"delay": {CALL: seconds}, "fail": {CALL: message}, "hold": [CALL…], "deaf": [UUID…]}.
A held call waits until it is taken out of the list; a deaf guest ignores a shutdown, so that it is cut off at its end.

lab.json, when it is there: {"ssh": [argv…]} leads to the storage lab's guest of this host's name. Where a libvirt
domain with a server's uuid is defined there, power is that domain's, handled as Nova's libvirt driver does.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, MutableMapping
from functools import wraps
from pathlib import Path
from typing import Any

import nova.conf
import nova.virt.node
from guests import CRASHED, PAUSED, RUNNING, SHUTDOWN, SUSPENDED, Files
from nova import exception
from nova.virt import driver, fake, hardware

CONF = nova.conf.CONF
SSH_FAILED = 255
INSTANCES = "/var/lib/nova/instances"
STATES = {
    "running": RUNNING, "idle": RUNNING, "in shutdown": RUNNING, "paused": PAUSED, "shut off": SHUTDOWN,
    "crashed": CRASHED, "pmsuspended": SUSPENDED,
}  # fmt: skip


class Guest:
    """A pretended guest, as FakeDriver handles it: setting its state writes it down."""

    def __init__(self, files: Files, uuid: str, name: str) -> None:
        self.files, self.uuid, self.name = files, uuid, name

    @property
    def state(self) -> int:
        return self.files.read("guests.json")[self.uuid]["state"]

    @state.setter
    def state(self, state: int) -> None:
        self.files.change("guests.json", lambda guests: guests[self.uuid].update(state=state))


class Guests(MutableMapping):
    """FakeDriver's dictionary of guests by uuid, in a file."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __getitem__(self, uuid: str) -> Guest:
        return Guest(self.files, uuid, self.files.read("guests.json")[uuid]["name"])

    def __setitem__(self, uuid: str, guest: Any) -> None:
        facts = {"name": guest.name, "state": guest.state}
        self.files.change("guests.json", lambda guests: guests.update({uuid: facts}))

    def __delitem__(self, uuid: str) -> None:
        self.files.change("guests.json", lambda guests: guests.pop(uuid))

    def __iter__(self) -> Iterator[str]:
        return iter(self.files.read("guests.json"))

    def __len__(self) -> int:
        return len(self.files.read("guests.json"))


class Domain:
    """A server's libvirt domain on the storage lab's host; there may be none."""

    def __init__(self, ssh: list[str], uuid: str) -> None:
        self.ssh, self.uuid = ssh, uuid

    def state(self) -> int | None:
        """Nova's power state; None where libvirt knows no such domain."""
        done = self._run("virsh", "-q", "domstate", self.uuid)
        if done.returncode == 0:
            return STATES[done.stdout.strip()]
        if "failed to get domain" in done.stderr:
            return None
        raise exception.NovaException(f"libvirt did not say how {self.uuid} is: {done.stderr.strip()}")

    def virsh(self, verb: str) -> None:
        done = self._run("virsh", "-q", verb, self.uuid)
        if done.returncode:
            raise exception.NovaException(f"virsh {verb}: {done.stderr.strip()}")

    def shut_down(self, timeout: int, retry_interval: int) -> None:
        """Press its button, every `retry_interval` seconds for `timeout` seconds; then cut its power."""
        for second in range(timeout):
            if self.state() in (SHUTDOWN, CRASHED):
                return
            if second % (retry_interval or timeout) == 0:
                self.virsh("shutdown")
            time.sleep(1)
        if self.state() not in (SHUTDOWN, CRASHED):
            self.virsh("destroy")

    def remove(self, disks: bool) -> None:
        """Cut its power and forget it, with its folder of disks when those go too."""
        if self.state() != SHUTDOWN:
            self.virsh("destroy")
        self.virsh("undefine")
        if disks:
            self._run("rm", "-rf", "--", f"{INSTANCES}/{self.uuid}")

    def _run(self, *argv: str) -> subprocess.CompletedProcess:
        done = subprocess.run([*self.ssh, *argv], capture_output=True, text=True, timeout=120)
        if done.returncode == SSH_FAILED:
            raise exception.NovaException(f"the hypervisor does not answer: {done.stderr.strip()}")
        return done


def troubled(call: Callable) -> Callable:
    """Have a call of the driver meet the trouble that knobs.json holds for it."""

    @wraps(call)
    def meet(self, *args, **kwargs):
        self.meet_trouble(call.__name__)
        return call(self, *args, **kwargs)

    return meet


class Driver(fake.FakeDriver):
    """See the file's own words."""

    vcpus, memory_mb, local_gb = 64, 262144, 8000

    def __init__(self, virtapi, read_only=False):
        super().__init__(virtapi, read_only)
        self.files = Files(Path(CONF.state_path))
        self.instances = Guests(self.files)

    def meet_trouble(self, call: str) -> None:
        knobs = self.files.read("knobs.json")
        time.sleep(knobs.get("delay", {}).get(call, 0))
        while call in self.files.read("knobs.json").get("hold", []):
            time.sleep(0.05)
        if call in knobs.get("fail", {}):
            raise exception.NovaException(knobs["fail"][call])

    def domain(self, instance) -> Domain | None:
        """The real guest of a server, if it has one."""
        ssh = self.files.read("lab.json").get("ssh")
        found = Domain(ssh, instance.uuid) if ssh else None
        return found if found and found.state() is not None else None

    # Its node keeps its uuid

    def get_nodenames_by_uuid(self, refresh=False):
        return driver.ComputeDriver.get_nodenames_by_uuid(self, refresh)

    def get_available_resource(self, nodename):
        resources = super().get_available_resource(nodename)
        return resources and {**resources, "uuid": nova.virt.node.get_local_node_uuid()}

    def get_host_ip_addr(self):
        return CONF.my_ip

    # Guests

    def get_info(self, instance, use_cache=True):
        self.meet_trouble("get_info")
        domain = self.domain(instance)
        return hardware.InstanceInfo(state=domain.state()) if domain else super().get_info(instance, use_cache)

    @troubled
    def spawn(self, *args, **kwargs):
        super().spawn(*args, **kwargs)

    @troubled
    def destroy(self, context, instance, network_info, block_device_info=None, destroy_disks=True, **kwargs):
        if domain := self.domain(instance):
            domain.remove(destroy_disks)
        super().destroy(context, instance, network_info, block_device_info, destroy_disks, **kwargs)

    @troubled
    def power_on(self, context, instance, network_info, *args, **kwargs):
        super().power_on(context, instance, network_info, *args, **kwargs)
        domain = self.domain(instance)
        if domain and domain.state() != RUNNING:
            domain.virsh("start")

    @troubled
    def power_off(self, instance, timeout=0, retry_interval=0):
        if domain := self.domain(instance):
            domain.shut_down(timeout, retry_interval)
        elif instance.uuid in self.files.read("knobs.json").get("deaf", []):
            self.out_wait(instance, timeout)
        super().power_off(instance, timeout, retry_interval)

    def out_wait(self, instance, timeout: int) -> None:
        """Pass the time in which a guest would shut down, unless it hears again or is off meanwhile."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.instances[instance.uuid].state == RUNNING:
            if instance.uuid not in self.files.read("knobs.json").get("deaf", []):
                return
            time.sleep(0.1)

    @troubled
    def reboot(self, context, instance, network_info, reboot_type, *args, **kwargs):
        if domain := self.domain(instance):
            domain.shut_down(CONF.libvirt.wait_soft_reboot_seconds if reboot_type == "SOFT" else 0, 0)
        super().reboot(context, instance, network_info, reboot_type, *args, **kwargs)

    @troubled
    def pause(self, instance):
        self.instances[instance.uuid].state = PAUSED

    @troubled
    def unpause(self, instance):
        self.instances[instance.uuid].state = RUNNING

    @troubled
    def suspend(self, context, instance):
        self.instances[instance.uuid].state = SUSPENDED

    @troubled
    def resume(self, context, instance, *args, **kwargs):
        self.instances[instance.uuid].state = RUNNING
