"""The procedure that operators follow by hand, with a watch: what volmig is measured against."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.lab.lab import INSTANCES, Instance, Lab

RELAY_LV = "/dev/vg_nova0/by-hand"
FOLDER = "/by-hand"

Phases = dict[str, float]


def run(lab: Lab, device: str, instance: Instance, relay_bytes: int) -> Phases:
    """Carries `device` of src to the instance's disk by hand; returns the seconds of each phase, in order."""
    phases: Phases = {}
    live = f"{INSTANCES}/{instance.uuid}/disk.local"
    with _timed(phases, "relay volume, filesystem, export"):
        _offer(lab, relay_bytes)
    with _timed(phases, "mount on the source"):
        address = lab.jump.address("data")
        lab.src.run(f"mkdir -p {FOLDER} && mount -t nfs -o vers=3,rw {address}:{FOLDER} {FOLDER}")
    with _timed(phases, "convert"):
        lab.src.run(f"qemu-img convert -f raw -O qcow2 {device} {FOLDER}/new-instance", timeout=3600)
    with _timed(phases, "shut the instance down"):
        lab.dst.run(["virsh", "-q", "shutdown", instance.name])
        lab.dst.wait(f"virsh domstate {instance.name} | grep -q 'shut off'")
    with _timed(phases, "copy the old disk aside"):
        lab.jump.run(f"cp {live} {live}-bkp && sync {live}-bkp", timeout=3600)
    with _timed(phases, "copy the new image over it"):
        lab.jump.run(f"cp {FOLDER}/new-instance {live} && sync {live}", timeout=3600)
    with _timed(phases, "start the instance"):
        lab.start(instance)
    with _timed(phases, "clean up"):
        _clean_up(lab)
    return phases


DOWN = ("copy the old disk aside", "copy the new image over it")


def _offer(lab: Lab, size: int) -> None:
    lab.jump.run(f"lvcreate -qy -Wy -L {size}b -n by-hand vg_nova0 && mkfs -q -t ext3 {RELAY_LV}", timeout=300)
    lab.jump.run(f"mkdir -p {FOLDER} && mount {RELAY_LV} {FOLDER} && systemctl start nfs-server")
    lab.jump.run(f"exportfs -o rw,sync,no_root_squash,no_subtree_check {lab.src.address('data')}:{FOLDER}")


def _clean_up(lab: Lab) -> None:
    lab.src.run(f"umount {FOLDER} && rmdir {FOLDER}")
    lab.jump.run(f"exportfs -u {lab.src.address('data')}:{FOLDER} && umount {FOLDER} && rmdir {FOLDER}")
    lab.jump.run("lvremove -qy vg_nova0/by-hand && systemctl stop nfs-server")


@contextmanager
def _timed(phases: Phases, name: str, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    began = clock()
    yield
    phases[name] = clock() - began
