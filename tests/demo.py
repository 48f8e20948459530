"""`make demo`: boots the storage lab and volmig on it, and shows the destination instance's console until Ctrl-C.

With CLOUD=openstack a real Nova has the instance: volmig locks, stops and starts it there.
"""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.cloud.plane import ControlPlane
from tests.lab.image import say
from tests.lab.lab import Instance, Lab
from tests.site import PASSWORD, Site

DATA = Path(__file__).resolve().parent.parent / ".cache/demo"
OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
PORT = 8000

WELCOME = """
volmig runs on {url}

  operator   olga    {password}
  approver   pavel   {password}     (a second browser, or a private window)

1. As olga: New migration. Source src, volume vg_nova0/{old}_disk.local;
   destination db-new, disk.local; relay jump. Check, plan and start.
2. Watch it. When the image is staged and verified, the job waits for consent.
3. As pavel: Approvals. Read what will happen, approve.
4. db-new is shut down{by}, gets the disk, and starts. Its console below then shows the volume's own data:

   VOLMIG-DATA sha256 {digest}

Ctrl-C stops everything.
"""


def main() -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        sys.exit("The demo boots a storage lab: it needs Linux and root.")
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stop(over))
    if os.environ.get("CLOUD", "libvirt") not in ("libvirt", "openstack"):
        sys.exit("CLOUD is libvirt, which is meant when it is not set, or openstack.")
    lab, plane = Lab(), ControlPlane() if os.environ.get("CLOUD") == "openstack" else None
    with ExitStack() as stack:
        stack.enter_context(lab.held())
        if plane:
            stack.enter_context(plane.held())
        _show(lab, plane, Site(lab, DATA, PORT, clouds=plane and plane.clouds_yaml), over)


def _show(lab: Lab, plane: ControlPlane | None, site: Site, over: threading.Event) -> None:
    """Everything up until Ctrl-C, then everything down, however far it had come."""
    try:
        digest, instance = _furnish(lab, plane)
        say("starting volmig")
        site.wipe()
        site.prepare()
        site.start()
        by = f" by Nova (python -m tests.cloud openstack server show {instance.uuid})" if plane else ""
        print(WELCOME.format(url=site.url, password=PASSWORD, old=OLD, digest=digest, by=by), flush=True)
        _follow(lab, instance, over)
    except KeyboardInterrupt:
        pass
    finally:
        say("stopping")
        site.stop()
        lab.down()
        if plane:
            plane.down()
        site.wipe()


def _stop(over: threading.Event) -> None:
    if over.is_set():
        return  # already stopping: a second Ctrl-C must not leave guests behind
    over.set()
    raise KeyboardInterrupt


def _furnish(lab: Lab, plane: ControlPlane | None) -> tuple[str, Instance]:
    """A volume that somebody's instance left behind on src, and a new instance on dst that shall have its data."""
    was_up = lab.is_up()
    lab.up()
    if was_up:
        lab.reset()
    if plane:
        plane.up()
        plane.reset()
    say("making a 512 MiB volume on src and the instance db-new on dst")
    with ThreadPoolExecutor() as pool:
        digest = pool.submit(lab.volume, lab.src, f"{OLD}_disk.local", 512 << 20, data_mb=4, bulk_mb=300)
        instance = _from_nova(lab, plane) if plane else lab.instance(NEW, "db-new", disk_bytes=512 << 20)
        if not plane:
            lab.start(instance)
        return digest.result(), instance


def _from_nova(lab: Lab, plane: ControlPlane) -> Instance:
    """An instance that Nova made, and starts; its domain and its disks are the lab's."""
    server = plane.server("db-new", "dst", flavor="data", start=False)
    instance = lab.instance(server.uuid, server.instance_name, disk_bytes=512 << 20)
    plane.join(lab)
    plane.connection("admin").compute.start_server(server.uuid)
    return instance


def _follow(lab: Lab, instance: Instance, over: threading.Event) -> None:
    """Prints what the instance says on its serial console as it says it."""
    shown = 0
    while not over.wait(1):
        said = lab.console(instance)
        for line in said[shown:].splitlines():
            if line.strip():
                print(f"db-new console | {line}", flush=True)
        shown = len(said)


if __name__ == "__main__":
    main()
