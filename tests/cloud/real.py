"""Nova's own libvirt driver on the storage lab: raw volumes in vg_nova0 on src, qcow2 files on the share on dst.

lab, plane = real.lab(), …
"""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from string import Template
from typing import Any

from tests.cloud import install
from tests.cloud.config import ETC
from tests.cloud.daemons import Services
from tests.cloud.host import Host
from tests.cloud.install import HERE, Installation, say
from tests.cloud.plane import ControlPlane, Server
from tests.cloud.seed import RAW
from tests.lab.guest import Guest
from tests.lab.lab import MEMORY, Lab
from tests.rig import CHECKOUT

GATEWAY = "10.77.0.1"  # the lab's namespace, as its guests reach it
IMAGES = {"src": "lvm", "dst": "qcow2"}
TOOLS = "/opt/openstack"
PRIVSEP = f"""#!/bin/sh
export PYTHONPATH={TOOLS}/site:{TOOLS}/libvirt
exec /usr/bin/python3 -c 'from oslo_privsep.daemon import helper_main; helper_main()' "$@"
"""
SUDOERS = "Defaults:nova !use_pty\nnova ALL=(root) NOPASSWD: /usr/local/bin/privsep-helper\n"
COMMAND_LINE = "console=ttyS0 quiet panic=-1 tsc=unstable nokaslr mitigations=off"


def tools(installation: Installation) -> Path:
    """The file system from which guests run nova-compute: what was installed, and Debian's binding to libvirt."""
    image = installation.folder / "tools.ext4"
    with install.lock():
        if not image.exists():
            _make_tools(installation, image)
    return image


def _make_tools(installation: Installation, image: Path) -> None:
    say("making the file system from which the lab's guests run nova-compute, once")
    part = image.with_suffix(".part")
    with tempfile.TemporaryDirectory(dir=installation.folder) as work:
        tree = Path(work) / "tree"
        tree.mkdir()
        site = next(installation.venv.glob("lib/python3*/site-packages"))
        subprocess.run(["/bin/cp", "-al", site, tree / "site"], check=True)
        subprocess.run(["/usr/bin/apt-get", "-qq", "download", "python3-libvirt"], check=True, cwd=work)
        subprocess.run(["/usr/bin/dpkg", "-x", next(Path(work).glob("*.deb")), Path(work) / "deb"], check=True)
        shutil.copytree(Path(work) / "deb/usr/lib/python3/dist-packages", tree / "libvirt")
        with part.open("wb") as handle:
            handle.truncate(1 << 30)
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, part], check=True)
    part.rename(image)


class RealPlane(ControlPlane):
    """A control plane inside the lab's namespace, with a nova-compute on each of its guests src and dst."""

    prefix, cache, hosts = "vmreal", "real", ()

    def __init__(self, checkout: Path = CHECKOUT) -> None:
        super().__init__(checkout)
        self.lab = Lab(checkout, tools=tools(install.ensure()), memory=MEMORY | {"src": "1200M", "dst": "1600M"})

    # Life

    def up(self) -> None:
        """Boot the lab, start the control plane within, and nova-compute on its guests. Takes one to two minutes."""
        self.lab.up()
        super().up()

    def down(self) -> None:
        super().down()
        self.lab.down()

    def is_up(self) -> bool:
        return self.lab.is_up() and super().is_up()

    def reset(self) -> None:
        """Have Nova delete all servers, then return the lab to pristine."""
        super().reset()
        self.lab.reset()

    def start_compute(self, name: str) -> None:
        """Start nova-compute on a guest, as after its boot; returns when Nova sees it as up."""
        services = Services(self._place())
        services.forget_reports(name)
        self._compute(self.lab.guests[name])
        services.wait_nova(name)

    def host(self, name: str) -> Host:
        raise LookupError(f"{name} is no pretended host here but a guest of the lab: plane.lab.guests[{name!r}]")

    # Contents

    def server(self, name: str, host: str, *, flavor: str = "data", **asked: Any) -> Server:
        """Create a server on src or dst whose guest is the lab's: it says on its console what its data disk holds."""
        return super().server(name, host, flavor=flavor, **asked)

    def console(self, server: Server) -> str:
        """What the guest has said since Nova last started it."""
        # Nova itself tells it of running guests only.
        path = f"/var/lib/nova/instances/{server.uuid}/console.log"
        return self.lab.guests[server.host].run(f"cat {path} 2>/dev/null", check=False)

    def wait_console(self, server: Server, text: str, timeout: float = 180) -> str:
        """Return the console's text once it contains `text`; raises AssertionError with what it said otherwise."""
        deadline = time.monotonic() + timeout
        while text not in (said := self.console(server)):
            assert time.monotonic() < deadline, f"no {text!r} on the console of {server.name}; it said:\n{said[-3000:]}"
            time.sleep(0.5)
        return said

    # Within

    def _network(self) -> tuple[str, ...]:
        return GATEWAY, self.lab.network.name

    def _start(self) -> None:
        super()._start()
        services = Services(self._place())
        for name in IMAGES:
            self._compute(self.lab.guests[name])
        services.wait_nova(*IMAGES)
        services.discover_hosts()

    def _compute(self, guest: Guest) -> None:
        facts = {"host": guest.name, "own": guest.address("mgmt"), "images": IMAGES[guest.name]}
        guest.write("/etc/nova/nova.conf", self._place().etc("nova.conf").read_text())
        guest.write("/etc/nova/real.conf", Template((ETC / "real.conf").read_text()).substitute(facts))
        guest.write("/etc/nova/nova_service.py", (HERE / "inside/nova_service.py").read_text())
        guest.write("/usr/local/bin/privsep-helper", PRIVSEP, "0755")
        guest.write("/etc/sudoers.d/nova", SUDOERS, "0440")
        # qemu on src opens volumes, which belong to root; on dst files of nova's on a share that may squash root.
        guest.script("nova_compute", tools=TOOLS, user="root" if guest.name == "src" else "nova")

    def _image(self, properties: tuple[tuple[str, str], ...]) -> str:
        """The id of an image whose kernel and initramfs are those of the lab's instances, made when there is none."""
        parts = {"kernel_id": self._part("aki", "vmlinuz"), "ramdisk_id": self._part("ari", "initrd")}
        fixed = {"os_command_line": COMMAND_LINE, "os_type": "linux", **parts}
        return super()._image((*properties, *fixed.items()))

    def _part(self, kind: str, name: str) -> str:
        """The id of an image of a kernel or an initramfs, uploaded from the lab when there is none."""
        image = self._maker("admin").image
        if not (found := image.find_image(name)):
            data = self.lab.dst.read(f"/usr/local/lib/lab/{name}")
            found = image.create_image(name=name, data=data, **RAW | {"disk_format": kind, "container_format": kind})
        return str(found.id)
