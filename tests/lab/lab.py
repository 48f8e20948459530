"""The storage lab: real LVM, NFS, sshd, systemd, libvirt and qemu on four guests, without KVM.

By hand (as root):      python -m tests.lab up | status | ssh jump [command…] | reset | down
In a test:              def test_…(clean_lab): clean_lab.src.run("lvs") (fixtures.py boots, resets and ends the lab)

| guest | networks           | has                                                                                   |
|-------|--------------------|---------------------------------------------------------------------------------------|
| src   | mgmt data          | vg_nova0; cannot reach the filer                                                      |
| jump  | mgmt data storage  | vg_nova0; the share at /var/lib/nova/instances; nfs-server installed, not running     |
| filer | mgmt storage       | /vol/nova on LVM, owned by nova, exported to the storage network                      |
| dst   | mgmt storage       | the share at /var/lib/nova/instances; libvirt and qemu                                |

    lab = Lab(); lab.up()
    digest = lab.volume(lab.src, f"{uuid}_disk.local", 512 << 20, data_mb=8, bulk_mb=200)   # sha256 of /data on it
    instance = lab.instance(uuid, "instance-0000000a", disk_bytes=256 << 20)                # stopped
    lab.start(instance); lab.wait_console(instance, f"VOLMIG-DATA sha256 {digest}")
    lab.power_cut(lab.src); lab.boot(lab.src)
    assert lab.leftovers() == []

`with lab.held():` keeps other sessions of the checkout away (the fixtures do); attach with Lab() to look at a lab that
is up. A lab that was booted from an older recipe of the image is booted anew by up().

Every guest listens on 127.0.0.1:<guest.port> for SSH, as root and as volmig, with the key `lab.key`; its host key is
`guest.host_key`. Names and ports come from the checkout's path, so two checkouts do not collide. All state lies in
.cache/lab of the checkout and in /run/<name>; the image in /var/cache/volmig-lab (VOLMIG_LAB_CACHE). A checkout has a
second lab where VOLMIG_LAB_NAME says another name than lab.
"""

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TypeVar

from tests.lab import machine
from tests.lab.guest import CommandError, Guest
from tests.lab.image import Image, ensure, say
from tests.lab.network import MACHINES, Network, address, shaping
from tests.rig import CHECKOUT, Rig, free

NETS = {
    "src": ("mgmt", "data"),
    "jump": ("mgmt", "data", "storage"),
    "filer": ("mgmt", "storage"),
    "dst": ("mgmt", "storage"),
}
MEMORY = {"src": "512M", "jump": "512M", "filer": "512M", "dst": "1300M"}
DISK = {"src": 8 << 30, "jump": 8 << 30, "filer": 12 << 30, "dst": 1 << 30}  # bytes; sparse files
INSTANCES = "/var/lib/nova/instances"
SHARE = f"{address('filer', 'storage')}:/vol/nova"
DOMAIN = Template((Path(__file__).parent / "domain.xml").read_text())
T = TypeVar("T")


@dataclass(frozen=True)
class Instance:
    """An instance of the destination; `disk` is its data disk's path there, `sha256` that of /data on it."""

    uuid: str
    name: str
    disk: str
    sha256: str


class Lab(Rig):
    """A lab of one checkout. Making the object starts nothing and attaches to what runs.

    `tools` is a file system that all guests get as a read-only disk, /dev/ubdc; `memory` that of guests by name.
    """

    def __init__(
        self, checkout: Path = CHECKOUT, *, tools: Path | None = None, memory: dict[str, str] = MEMORY
    ) -> None:
        self.tools, self.memory = tools, memory
        super().__init__(checkout, "vmlab", os.environ.get("VOLMIG_LAB_NAME", "lab"), "storage lab")
        self.sockets = Path("/run") / self.name
        self.network = Network(self.name)
        self.key = self.folder / "key"
        self.guests = {name: self._guest(name) for name in MACHINES}

    src = property(lambda self: self.guests["src"])
    jump = property(lambda self: self.guests["jump"])
    filer = property(lambda self: self.guests["filer"])
    dst = property(lambda self: self.guests["dst"])

    # Life

    def up(self) -> None:
        """Boot the lab unless it is up; what a killed lab left behind is cleared first. Takes about half a minute."""
        image = ensure()
        with self._lock():
            if self.is_up() and self._made_of(image):
                return
            self._clear()
            self._prepare(image)
            began = time.monotonic()
            say("booting src, jump, filer and dst")
            for guest in self.guests.values():
                self._power_on(guest)
            self._furnish()
            self._remember(ready=True)
            say(f"up after {time.monotonic() - began:.0f} s")

    def down(self) -> None:
        """End the lab: no process, namespace, memory or disk of it is left when this returns."""
        with self._lock():
            self._clear()

    def is_up(self) -> bool:
        """Whether the lab was booted completely and all four guests run."""
        return bool(self._state().get("ready")) and all(self.running(guest) for guest in self.guests.values())

    def running(self, guest: Guest) -> bool:
        return machine.running(self.name, guest.name)

    def reset(self) -> None:
        """Return all guests to pristine in a few seconds; boots those that are off. An installed hostctl stays."""
        self._heal()
        for guest in self.guests.values():
            if not self.running(guest):
                self.boot(guest)
        self._each(self._reset, (self.src, self.jump, self.dst))
        self.filer.script("reset", role="filer")
        self.squash(False)
        self.mount_share()

    # Contents

    def volume(self, guest: Guest, name: str, size: int, data_mb: int, bulk_mb: int = 0) -> str:
        """Make a logical volume of `size` bytes in vg_nova0 whose ext4 holds /data, random bytes; returns its SHA-256.

        `bulk_mb` adds random bytes that nobody hashes: the nested guest hashes /data slowly.
        """
        sizes = {"size": str(size), "data": str(data_mb), "bulk": str(bulk_mb)}
        return guest.script("volume", name=name, **sizes).strip()

    def instance(self, uuid: str, name: str, *, disk_bytes: int, data: bytes | None = None) -> Instance:
        """Define an instance on dst, switched off; its qcow2 data disk of `disk_bytes` holds `data` as /data."""
        content = os.urandom(1 << 20) if data is None else data
        self.filer.write("/var/tmp/lab-data", content)
        self.filer.script("instance", uuid=uuid, size=str(disk_bytes), instances=INSTANCES)
        domain = DOMAIN.substitute(name=name, uuid=uuid, folder=f"{INSTANCES}/{uuid}", console=_console(name))
        self.dst.run("virsh -q define /dev/stdin", stdin=domain)
        return Instance(uuid, name, f"{INSTANCES}/{uuid}/disk.local", hashlib.sha256(content).hexdigest())

    def start(self, instance: Instance) -> None:
        self.dst.run(["virsh", "-q", "start", instance.name])

    def console(self, instance: Instance) -> str:
        """All that the instance has said on its serial console, over all its boots."""
        return self.dst.run(f"cat {_console(instance.name)} 2>/dev/null", check=False)

    def wait_console(self, instance: Instance, text: str, timeout: float = 90) -> str:
        """Return the console's text once it contains `text`; raises AssertionError with what it said otherwise."""
        wanted = f"grep -qsF -- '{text}' {_console(instance.name)}"
        self.dst.run(f'timeout {timeout} sh -c "until {wanted}; do sleep 0.2; done"', check=False, timeout=timeout + 30)
        said = self.console(instance)
        assert text in said, f"no {text!r} on the console of {instance.name} in {timeout} s; it said:\n{said[-3000:]}"
        return said

    def sha256(self, guest: Guest, path: str) -> str:
        return guest.sha256(path)

    def leftovers(self) -> list[str]:
        """Everything of volmig's on any guest, `guest: kind name`; files on the share are listed under the filer."""
        found = self._each(lambda guest: [f"{guest.name}: {line}" for line in guest.script("leftovers").splitlines()])
        return [line for lines in found for line in lines]

    # Share

    def squash(self, on: bool) -> None:
        """Export the share with root_squash (on) or no_root_squash (off, as after a reset)."""
        self.filer.script("export", squash="root_squash" if on else "no_root_squash")

    def mount_share(self, acdirmax: int | None = None) -> None:
        """Mount the share anew on jump and dst; acdirmax in seconds, None for the kernel's default (60)."""
        options = "vers=3,hard" + (f",acdirmax={acdirmax},acdirmin={min(acdirmax, 30)}" if acdirmax is not None else "")
        self._each(lambda guest: guest.script("mount_share", source=SHARE, options=options), (self.jump, self.dst))

    # Faults

    def power_cut(self, guest: Guest) -> None:
        """Cut a guest's power; its disks keep what had reached them."""
        machine.kill_guest(self.name, guest.name)
        guest.disconnect()

    def boot(self, guest: Guest) -> None:
        """Boot a guest again on its disks; returns when that is finished, with the share mounted again."""
        self._power_on(guest)
        self._settle(guest)

    def link_cut(self, guest: Guest, net: str) -> None:
        """Pull a guest's cable on mgmt, data or storage."""
        self.network.link(guest.name, net, "down")

    def link_heal(self, guest: Guest, net: str) -> None:
        self.network.link(guest.name, net, "up")

    def bandwidth(self, guest: Guest, net: str, mbit: float | None) -> None:
        """Limit a guest's link in both directions, each to `mbit` Mbit/s; None lifts it.

        Only what a device sends can be shaped. So what comes to the guest is held at its tap, which sends it, and
        what leaves the guest at its own network card; the latter limit ends with a power cut.
        """
        self.network.limit(guest.name, net, mbit)
        card = f"eth{guest.nets.index(net)}"
        guest.run(shaping(card, mbit), check=mbit is not None)

    def fill(self, guest: Guest, path: str, leave_bytes: int) -> None:
        """Fill the file system at `path` until `leave_bytes` are free; the share is the filer's /vol/nova."""
        free = int(guest.run(["df", "--output=avail", "-B1", path]).split()[1])
        guest.run(["fallocate", "-l", str(free - leave_bytes), f"{path}/.lab-fill"])

    def unfill(self, guest: Guest, path: str) -> None:
        guest.run(["rm", "-f", f"{path}/.lab-fill"])

    # Within

    def _guest(self, name: str) -> Guest:
        return Guest(name, NETS[name], self.memory[name], self._base_port() + MACHINES[name], self.key, self.sockets)

    def _base_port(self) -> int:
        """The port that guests' ports are counted from: as recorded, else the first free block from the path's own."""
        recorded = self._state().get("base_port")
        if recorded:
            return int(str(recorded))
        first = 20000 + self.number * 20
        return next(base for base in range(first, 32000, 20) if free(base + number for number in MACHINES.values()))

    def _clear(self) -> None:
        machine.kill_all(self.name)
        self.network.delete()
        shutil.rmtree(self.sockets, ignore_errors=True)
        self._clear_folder()

    def _prepare(self, image: Image) -> None:
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self.guests = {name: self._guest(name) for name in MACHINES}
        self._remember(
            name=self.name, base_port=self._base_port(), image=str(image.folder), tools=str(self.tools or "")
        )
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.key)], check=True)
        self.network.create()
        for guest in self.guests.values():
            self._wire(guest)

    def _wire(self, guest: Guest) -> None:
        for net in guest.nets:
            self.network.plug(guest.name, net)
        machine.start(self.network.forwarder(guest.name, guest.port))
        with (self.folder / f"{guest.name}.disk").open("wb") as disk:
            disk.truncate(DISK[guest.name])

    def _made_of(self, image: Image) -> bool:
        """Whether this lab was booted from that image, and with the tools that are wanted."""
        state = self._state()
        return state["image"] == str(image.folder) and state.get("tools", "") == str(self.tools or "")

    def _power_on(self, guest: Guest) -> None:
        # The image that this lab was made with: a guest's own disk is a difference to exactly that one.
        image = Image(Path(str(self._state()["image"])))
        key = self.key.with_suffix(".pub").read_text()
        machine.boot(self.network, image, self.folder, guest.name, guest.memory, guest.nets, key, self.tools)

    def _settle(self, guest: Guest) -> None:
        guest.wait_ssh()
        guest.run("systemctl is-system-running --wait", check=False)

    def _furnish(self) -> None:
        with ThreadPoolExecutor() as pool:
            others = [pool.submit(self._furnish_local, guest) for guest in (self.src, self.jump, self.dst)]
            self._settle(self.filer)
            self.filer.script("furnish_filer")
            self.squash(False)
            for other in others:
                other.result()
        self.mount_share()

    def _furnish_local(self, guest: Guest) -> None:
        self._settle(guest)
        guest.script("hypervisor" if guest is self.dst else "volume_group")

    def _reset(self, guest: Guest) -> None:
        role = "hypervisor" if guest is self.dst else ""
        try:
            guest.script("reset", role=role, timeout=90)
        except (CommandError, subprocess.TimeoutExpired) as error:
            say(f"{guest.name} does not let go of what it holds, so its power is cut: {error}")
            self.power_cut(guest)
            self.boot(guest)
            guest.script("reset", role=role, timeout=90)

    def _heal(self) -> None:
        for guest in self.guests.values():
            for net in guest.nets:
                self.network.link(guest.name, net, "up")
                self.network.limit(guest.name, net, None)

    def _each(self, act: Callable[[Guest], T], guests: Iterable[Guest] | None = None) -> list[T]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(act, guests or self.guests.values()))


def _console(name: str) -> str:
    return f"/var/log/lab/{name}.console"
