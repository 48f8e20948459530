"""Builds, once per recipe, what every guest boots from: Debian's root image, the User-mode Linux kernel, a shim."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MIRROR = os.environ.get("VOLMIG_LAB_MIRROR", "http://deb.debian.org/debian")
CACHE = Path(os.environ.get("VOLMIG_LAB_CACHE", "/var/cache/volmig-lab"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
STEPS = 7
UNUSED_DAYS = 14
NOVA_UID = 42436  # as Kolla has it; what matters is that it is neither root nor a default

# What the machine that runs the lab needs: package -> a file that proves it is there.
HOST_PACKAGES = {
    "mmdebstrap": "/usr/bin/mmdebstrap",
    "debian-archive-keyring": KEYRING,
    "socat": "/usr/bin/socat",
    "iproute2": "/usr/share/doc/iproute2",
    "openssh-client": "/usr/bin/ssh",
    "e2fsprogs": "/usr/share/doc/e2fsprogs",
    "gcc": "/usr/bin/gcc",
    "libc6-dev": "/usr/include/stdio.h",
}
# One image serves all four guests: libvirt and qemu cost 8 s of the build, a second image costs more.
GUEST_PACKAGES = (
    "systemd-sysv udev dbus openssh-server sudo kmod procps psmisc iproute2 python3 "
    "lvm2 thin-provisioning-tools cryptsetup-bin parted fdisk gdisk util-linux-extra e2fsprogs xfsprogs "
    "nfs-kernel-server nfs-common qemu-utils "
    "libvirt-daemon-system libvirt-clients qemu-system-x86 busybox-static cpio"
)
# Quiet ones: they slow the boot, or (nfs, libvirt) run only where the lab starts them.
DISABLED = (
    "nfs-server nfs-blkmap libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirt-guests "
    "virtlockd.socket virtlockd-admin.socket logrotate.timer"
)
MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap fstrim.timer man-db.timer "
    "dpkg-db-backup.timer getty.target getty-static.service systemd-update-utmp systemd-update-utmp-runlevel "
    "systemd-pstore systemd-timesyncd systemd-networkd-wait-online systemd-rfkill.socket nfs-blkmap "
    "proc-sys-fs-binfmt_misc.automount systemd-binfmt"
)
ROOT_BYTES = 3 << 30  # User-mode Linux reads garbage through a copy-on-write file over 4 GiB or more
NESTED_MODULES = (
    "virtio/virtio virtio/virtio_ring virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci "
    "block/virtio_blk input/evdev acpi/button"
)


@dataclass(frozen=True)
class Image:
    """The finished files of one recipe."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "linux.uml"

    @property
    def shim(self) -> Path:
        return self.folder / "xstate.so"


def ensure() -> Image:
    """Return the image of the present recipe; builds it (about a minute) when the cache has none."""
    require_tools()
    CACHE.mkdir(parents=True, exist_ok=True)
    image = Image(CACHE / recipe())
    with _lock():
        if not image.root.exists():
            _build(image)
        os.utime(image.folder)
        _drop_unused(image)
    return image


def recipe() -> str:
    """Hash of everything that decides what the image holds."""
    digest = hashlib.sha256(MIRROR.encode())
    parts = [HERE / "image.py", HERE / "xstate.c", *(HERE / "rootfs").rglob("*"), *(HERE / "nested").rglob("*")]
    for path in sorted(part for part in parts if part.is_file()):
        digest.update(str(path.relative_to(HERE)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def require_tools() -> None:
    """Install the Debian packages that the lab itself needs on this machine, saying so."""
    if os.geteuid() != 0:
        raise SystemExit("The storage lab needs root: it makes a network namespace and boots guests in it.")
    if not Path("/dev/net/tun").exists():
        raise SystemExit("The storage lab needs /dev/net/tun (modprobe tun, or give the container that device).")
    missing = [package for package, proof in HOST_PACKAGES.items() if not Path(proof).exists()]
    if missing:
        say(f"installing on this machine: {' '.join(missing)}")
        _apt(["update", "-qq"])
        _apt(["install", "-y", "-qq", "--no-install-recommends", *missing])


def say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)


def _apt(arguments: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


@contextmanager
def _lock() -> Iterator[None]:
    with (CACHE / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build(image: Image) -> None:
    """Build beside the final place and rename at the end, so that a killed build leaves nothing that looks whole."""
    began = time.monotonic()
    for stale in CACHE.glob("*.part"):
        shutil.rmtree(stale)
    part = image.folder.with_suffix(".part")
    tree = part / "tree"
    tree.mkdir(parents=True)
    say(f"1/{STEPS} building the guests' image, once: about a minute with a quick mirror ({MIRROR})")
    _bootstrap(tree)
    _kernel(tree, part)
    _nested_guest(tree)
    _settings(tree)
    _filesystem(tree, part)
    _shim(part)
    shutil.rmtree(tree)
    part.rename(image.folder)
    say(f"image ready after {time.monotonic() - began:.0f} s in {image.folder}")


def _bootstrap(tree: Path) -> None:
    # mmdebstrap instead of debootstrap: one run of apt resolves and unpacks everything, in a quarter of the time.
    say(f"2/{STEPS} downloading and unpacking Debian bookworm")
    options = ["--mode=root", "--variant=minbase", f"--keyring={KEYRING}", "--skip=cleanup/apt"]
    options += [f"--include={','.join(GUEST_PACKAGES.split())}"]
    options += ['--aptopt=APT::Install-Recommends "false"', '--aptopt=APT::Sandbox::User "root"']
    with (CACHE / "bootstrap.log").open("wb") as log:
        done = subprocess.run(["mmdebstrap", *options, "bookworm", str(tree), MIRROR], stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"mmdebstrap failed; its log is {CACHE / 'bootstrap.log'}")


def _kernel(tree: Path, part: Path) -> None:
    say(f"3/{STEPS} User-mode Linux")
    _inside(tree, "mkdir /var/tmp/uml && cd /var/tmp/uml && apt-get -qq download user-mode-linux && dpkg -x *.deb .")
    unpacked = tree / "var/tmp/uml/usr"
    shutil.copy2(unpacked / "bin/linux.uml", part / "linux.uml")
    shutil.copytree(unpacked / "lib/uml/modules", tree / "lib/modules", dirs_exist_ok=True)
    shutil.rmtree(tree / "var/tmp/uml")


def _nested_guest(tree: Path) -> None:
    """Leave /usr/local/lib/lab/{vmlinuz,initrd}: the kernel and the whole system of the instances on dst."""
    say(f"4/{STEPS} the instance's kernel and initramfs")
    _inside(
        tree,
        "mkdir -p /var/tmp/k /usr/local/lib/lab && cd /var/tmp/k &&"
        " apt-get -qq download $(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: //p') &&"
        " dpkg -x *.deb . && cp boot/vmlinuz-* /usr/local/lib/lab/vmlinuz",
    )
    work = tree / "var/tmp/k"
    drivers = next(work.glob("lib/modules/*/kernel/drivers"))
    system = work / "initramfs"
    (system / "modules").mkdir(parents=True)
    (system / "bin").mkdir()
    names = [f"{Path(module).name}.ko" for module in NESTED_MODULES.split()]
    for module, name in zip(NESTED_MODULES.split(), names, strict=True):
        shutil.copy(drivers / f"{module}.ko", system / "modules" / name)
    (system / "modules/order").write_text("\n".join(names))
    shutil.copy2(HERE / "nested/init", system / "init")
    shutil.copy2(tree / "bin/busybox", system / "bin/busybox")
    _inside(tree, "cd /var/tmp/k/initramfs && find . | cpio -o -H newc --quiet >/usr/local/lib/lab/initrd")
    shutil.rmtree(work)


def _settings(tree: Path) -> None:
    say(f"5/{STEPS} users and services")
    shutil.copytree(HERE / "rootfs", tree, dirs_exist_ok=True)
    _inside(
        tree,
        f"useradd -m -s /bin/bash -p '*' volmig && useradd -m -u {NOVA_UID} -s /usr/sbin/nologin nova &&"
        " chown root:root /etc/ssh/sshd_config.d/lab.conf &&"
        " rm -f /etc/ssh/ssh_host_* && truncate -s 0 /etc/machine-id && rm -rf /var/lib/apt/lists/* &&"
        " mkdir -p /var/lib/nova/instances /vol/nova &&"
        f" systemctl -q enable lab-setup ssh && systemctl -q disable {DISABLED} && systemctl -q mask {MASKED}",
    )
    (tree / "etc/fstab").write_text("")
    for folder in ("etc", "var"):
        (tree / folder / ".updated").touch()  # spares the first boot what systemd does after an update of /usr


def _filesystem(tree: Path, part: Path) -> None:
    say(f"6/{STEPS} the image's file system")
    raw = part / "root.raw"
    with raw.open("wb") as handle:
        handle.truncate(ROOT_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(tree), str(raw)], check=True)


def _shim(part: Path) -> None:
    say(f"7/{STEPS} the shim that lets User-mode Linux run on processors with AMX")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(part / "xstate.so"), str(HERE / "xstate.c")], check=True
    )


def _inside(tree: Path, script: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(["chroot", str(tree), "sh", "-c", script], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"building the image failed at: {script}\n{done.stderr}")


def _drop_unused(image: Image) -> None:
    """Remove images of older recipes that no lab has booted from for a while."""
    for folder in CACHE.iterdir():
        age = time.time() - folder.stat().st_mtime
        if folder.is_dir() and folder != image.folder and age > UNUSED_DAYS * 86400:
            shutil.rmtree(folder)
