"""Three hypervisors whose hostctl is the real one: desk, verbs and units in this process, over tests/faketools.py.

Files are real ones under a temporary root, and so are links, renames and inodes. What only a kernel with volumes and
mounts could give is put on by `Kernel`, the `os` that hostctl sees: paths lead through the mounts of the machine that
is at work, devices are files that look like devices, /proc and /sys tell what the machine knows.
"""

import copy
import errno
import io
import json
import os
import re
import shutil
import socket
import stat
import struct
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hosts.remote import hostctl
from hosts.remote.host import Address, Answer, Request, Unreachable
from hosts.remote.hostctl import (
    bases,
    commands,
    direct_io,
    exports,
    facts,
    images,
    job_directory,
    leftovers,
    live_disk,
    lvm,
    mountpoints,
    mounts,
    nfs_mount,
    nfs_server,
    ownership,
    policy,
    privileges,
    qcow2,
    qemu_img,
    question,
    rehearsal,
    relay_filesystem,
    request,
    stage,
    store,
    swap,
    transient_units,
    untrusted,
    virsh,
)
from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount
from tests import faketools, policies
from tests.fakes import INSTANCE, INSTANCES, LIVE, MIB, SHARE, SOURCE_LV

OF_HOSTCTL = (
    *(bases, commands, direct_io, exports, facts, images, job_directory, leftovers, live_disk, lvm, mountpoints),
    *(mounts, nfs_mount, nfs_server, ownership, policy, privileges, qcow2, qemu_img, rehearsal, relay_filesystem),
    *(request, stage, store, swap, transient_units, untrusted, virsh),
)
LVM = {"lvs", "vgs", "lvcreate", "lvremove", "lvchange"}
NOT_OF_A_JOB = {"forgotten", "owner.json", "owner.json.lock"}
EVERYWHERE = {"blkid", "mount", "umount", "systemctl", "systemd-run", "qemu-img"}
SERVICES = {
    **{"rpcbind.socket": "active", "rpcbind": "active", "rpc-statd": "active"},
    **{"nfs-mountd": "inactive", "nfs-server": "inactive"},
}
PORTS = {111: "rpcbind", 2049: "nfs-server", 20048: "nfs-mountd"}


@dataclass
class Volume:
    """A logical volume; its bytes are a file, of which only the beginning is ever written."""

    name: str
    uuid: str
    size: int
    minor: int
    file: Path
    tags: set[str] = field(default_factory=set)
    permission: str = "writeable"
    active: bool = True
    writes: int = 40

    @property
    def content(self) -> str:
        return faketools.data_of(self.file).decode()


@dataclass
class Domain:
    uuid: str
    name: str
    disk: str
    state: str = "running"
    mark: str = ""


@dataclass
class Process:
    """What runs, the volume that it has open, and where it stands."""

    name: str
    unit: str
    device: int | None
    directory: str


@dataclass(frozen=True)
class File:
    content: str


class PowerCut(BaseException):
    """What hostctl's unit dies of when its machine does."""


class Machine:
    """One hypervisor, as a way to call its hostctl; steps in `slow` stay under way until `finish`."""

    vg, vg_size, extent = "vg_nova0", 8 << 30, 4 * MIB

    def __init__(self, site: "Site", name: str, addresses: tuple[str, ...], programs: set[str]) -> None:
        self.site, self.name, self.addresses, self.programs = site, name, addresses, programs
        self.root = site.root / name
        self.boot_id = str(uuid.uuid4())
        self.volumes: dict[str, Volume] = {}
        self.mounted: list[Mount] = []
        self.etab: dict[str, tuple[str, str]] = {}  # path: client, options
        self.services = dict(SERVICES) if "exportfs" in programs else {}
        self.units: dict[str, list[str]] = {}  # what is under way, and with which words
        self.processes: dict[int, Process] = {}
        self.domains: dict[str, Domain] = {}
        self.slow: set[str] = set()
        for directory in ("srv", "mnt", "run", "var/lib/volmig", "var/log/libvirt/qemu", INSTANCES[1:]):
            (self.root / directory).mkdir(parents=True)
        self.install_policy(policies.content(name))

    # The Host protocol

    def call(self, request: Request, timeout: float = 20) -> Answer:
        return self.site.carry(self, request)

    def hear(self, request: Request) -> Answer:
        said = self.handle(json.dumps(request.document() | {"hash": hostctl.source_hash()}).encode())
        return Answer(
            **{name: value for name, value in json.loads(json.dumps(said)).items() if name not in ("hash", "protocol")}
        )

    def handle(self, data: bytes) -> dict[str, Any]:
        with self.at_work() as desk:
            return desk.handle(data)

    def watch(self) -> Iterator[dict[str, Any]]:
        raise Unreachable(f"watch {self.name}", "nobody follows this site")

    def close(self) -> None:
        pass

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def at_work(self, version: str = "") -> Iterator["request.Desk"]:
        """A hostctl that was just started here; one at a time, as the kernel of a site is this machine's meanwhile.

        `version` is the hash of another one than this tree's, if the site has others.
        """
        with self.site.turn:
            before, self.site.here = self.site.here, self
            try:
                desk = self.site.desks.get(version, request.Desk)
                yield desk(None, str(self.root / "var/lib/volmig"), str(self.root / "run/volmig"))
            finally:
                self.site.here = before

    # What tests do to it, and ask

    def install_policy(self, content: bytes) -> None:
        """What an administrator does with the file that registration prints."""
        path = self.root / policy.PATH[1:]
        path.parent.mkdir(0o755, parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)

    def finish(self) -> None:
        """Let what is under way come to its end."""
        for name, words in [*self.units.items()]:
            if "run" in words:
                self.work(name, words)

    def reboot(self) -> None:
        """Only what lies on disks is still there; what /etc/fstab mounts is mounted again."""
        self.boot_id = str(uuid.uuid4())
        self.units.clear()
        self.processes.clear()
        self.mounted = [each for each in self.mounted if each.source == SHARE]
        self.services = {name: SERVICES[name] for name in self.services}

    @property
    def free(self) -> int:
        return self.vg_size - sum(each.size for each in self.volumes.values())

    @property
    def mounts(self) -> dict[str, str]:
        return {each.target: each.source for each in self.mounted if each.source != SHARE}

    @property
    def exports(self) -> dict[str, str]:
        return {path: client for path, (client, _) in self.etab.items()}

    @property
    def held(self) -> list[str]:
        return [name for name in self.units if name.endswith("-holder")]

    @property
    def marks(self) -> dict[str, str]:
        return {each.uuid: each.mark for each in self.domains.values() if each.mark}

    @property
    def state(self) -> str:
        return next(iter(self.domains.values())).state

    @state.setter
    def state(self, state: str) -> None:
        self.turn(state == "running")

    def turn(self, on: bool) -> None:
        """What Nova has libvirt do with the instance."""
        domain = next(iter(self.domains.values()))
        domain.state = "running" if on else "shut off"
        self.log(domain, "starting up libvirt version: 9.0.0" if on else "shutting down, reason=shutdown")

    @property
    def kept(self) -> dict[str, list[str]]:
        """What is remembered of jobs but their fences, or lies about of them: memory, progress, empty mount points."""
        names = ("var/lib/volmig", "run/volmig", "srv/volmig", "mnt/volmig", "etc/exports.d")
        places = [self.root / place for place in names]
        found = [
            each for place in places if place.exists() for each in place.iterdir() if each.name not in NOT_OF_A_JOB
        ]
        return {str(each): os.listdir(each) if each.is_dir() else [] for each in found}

    # The kernel and systemd, as far as tools need them

    def real(self, path: str) -> Path:
        """Where a path of this machine really lies."""
        if path.startswith(f"{self.site.root}/"):
            return Path(path)
        if path.startswith("/dev/"):
            volume = self.volume_at(path)
            if volume is None:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            return volume.file
        for each in reversed(self.mounted):
            if f"{path}/".startswith(f"{each.target}/"):
                return self.behind(each) / path[len(each.target) + 1 :]
        return self.root / path[1:]

    def behind(self, mount: Mount) -> Path:
        """The directory that is mounted; an NFS server that has lost it answers so."""
        if mount.source == SHARE:
            return self.site.share
        if mount.fstype == "ext4":
            return self.files_of(
                next(each for each in self.volumes.values() if mount.device.endswith(f":{each.minor}"))
            )
        server, path = self.site.at(mount.source)
        if server is None or not self.site.serves(*mount.source.split(":"), self):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return server.real(path)

    def files_of(self, volume: Volume) -> Path:
        return volume.file.with_suffix(".files")

    def is_directory(self, path: str) -> bool:
        return self.real(path).is_dir()

    def volume_at(self, path: str) -> Volume | None:
        """The active volume that a device node stands for."""
        return next((each for each in self.volumes.values() if each.active and path in self.nodes(each)), None)

    def nodes(self, volume: Volume) -> tuple[str, str]:
        return f"/dev/{self.vg}/{volume.name}", self.mapper(volume)

    def mapper(self, volume: Volume) -> str:
        return "/dev/mapper/{}-{}".format(*(name.replace("-", "--") for name in (self.vg, volume.name)))

    def is_mounted(self, volume: Volume) -> bool:
        return any(each.device == f"{faketools.MAJOR}:{volume.minor}" for each in self.mounted)

    def is_open(self, volume: Volume) -> bool:
        return self.is_mounted(volume) or any(each.device == volume.minor for each in self.processes.values())

    def add_volume(self, name: str, size: int, data: bytes = b"", **more: Any) -> None:
        minor = next(number for number in range(99) if number not in {each.minor for each in self.volumes.values()})
        identity = more.pop("uuid", "") or next(self.site.uuids)
        volume = Volume(name, identity, size, minor, self.root / "volumes" / identity, **more)
        self.files_of(volume).mkdir(parents=True)
        volume.file.touch()
        self.volumes[name] = volume
        self.write(volume, data, counts=0)

    def write(self, volume: Volume, head: bytes, counts: int = 1) -> None:
        """Everything that a volume has is gone but for these bytes at its beginning."""
        shutil.rmtree(self.files_of(volume))
        self.files_of(volume).mkdir()
        volume.file.write_bytes(head)
        os.truncate(volume.file, volume.size)
        volume.writes += counts

    def drop_volume(self, volume: Volume) -> None:
        """Whoever is given its extents next reads what is left on them."""
        if volume.content or os.listdir(self.files_of(volume)):
            self.site.handed_on.append(volume.name)
        del self.volumes[volume.name]
        volume.file.unlink()
        shutil.rmtree(self.files_of(volume))

    def begin(self, unit: str, words: list[str], device: Volume | None, directory: str) -> None:
        """Start a unit: a process that holds a volume open, or hostctl, which works at once unless it is slow."""
        self.units[unit] = words
        if "run" not in words:
            number = max(self.processes, default=700) + 1
            self.processes[number] = Process(Path(words[0]).name, f"{unit}.service", device and device.minor, directory)
        elif words[-1].split("-")[0] not in self.slow:
            self.work(unit, words)

    def work(self, unit: str, words: list[str]) -> None:
        """Whatever hostctl's unit may die of, systemd goes on; it is of the version that started it."""
        version = re.search("hostctl-([0-9a-f]{16})", " ".join(words))
        with self.at_work(version[1] if version else "") as desk, suppress(OSError, PowerCut):
            desk.run_unit(*words[-2:])
        self.end(unit)

    def end(self, unit: str) -> None:
        self.units.pop(unit, None)
        self.processes = {at: each for at, each in self.processes.items() if each.unit != f"{unit}.service"}

    def listens(self, port: int) -> bool:
        return self.services.get(PORTS[port]) == "active"

    def log(self, domain: Domain, said: str) -> None:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        with (self.root / f"var/log/libvirt/qemu/{domain.name}.log").open("a") as log:
            log.write(f"{at}.000+0000: {said}\n")

    def tell(self, path: str) -> str:
        """What a file of /proc or /sys says."""
        for pattern, told in TOLD:
            if found := re.fullmatch(pattern, path):
                return told(self, *found.groups())
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    def of_minor(self, minor: str) -> Volume:
        return next(each for each in self.volumes.values() if each.active and each.minor == int(minor))


def counted(machine: Machine, minor: str) -> str:
    writes = machine.of_minor(minor).writes
    return f"0 0 0 0 {writes} 0 {writes * 8} 0 0 0 0\n"


def dm_uuid(machine: Machine, minor: str) -> str:
    return f"LVM-{'g' * 32}{machine.of_minor(minor).uuid.replace('-', '')}\n"


def processes_of(machine: Machine, unit: str) -> str:
    if unit not in machine.units:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", unit)
    return "700\n"


TOLD: tuple[tuple[str, Callable[..., str]], ...] = (
    ("/proc/sys/kernel/random/boot_id", lambda machine: machine.boot_id + "\n"),
    ("/proc/self/mountinfo", lambda machine: "".join(map(mountinfo, machine.mounted))),
    (r"/proc/(\d+)/comm", lambda machine, pid: machine.processes[int(pid)].name + "\n"),
    (r"/proc/(\d+)/cgroup", lambda machine, pid: f"0::/system.slice/{machine.processes[int(pid)].unit}\n"),
    (r"/sys/fs/cgroup/system\.slice/(.+)\.service/cgroup\.procs", processes_of),
    (r"/sys/dev/block/\d+:(\d+)/stat", counted),
    (r"/sys/dev/block/\d+:(\d+)/dm/uuid", dm_uuid),
    (r"/sys/dev/block/\d+:(\d+)/size", lambda machine, minor: f"{machine.of_minor(minor).size // 512}\n"),
    (r"/sys/dev/block/\d+:(\d+)/ro", lambda machine, minor: f"{machine.of_minor(minor).permission != 'writeable':d}\n"),
)


def mountinfo(row: Mount) -> str:
    return f"40 1 {row.device} {row.root} {row.target} {row.options} - {row.fstype} {row.source} {row.options}\n"


class Site:
    """Source, relay and destination, and the share that the last two mount; to be used where tests.fakes.Site is.

    `fault` lies around every tool and every system call that changes something; `carry` around every call of hostctl.
    """

    def __init__(self, root: Path, size: int = 512 * MIB) -> None:
        self.root, self.share, self.uuids = root, root / "share", faketools.new_uuids()
        self.turn, self.pins = threading.RLock(), Counter[int]()
        self.here: Machine | None = None
        self.carry: Callable[[Machine, Request], Answer] = lambda host, request: host.hear(request)
        self.fault: Any = NoFault()
        self.desks: dict[str, Any] = {}  # of other versions of hostctl, by their hash
        self.unlocked: list[str] = []  # what was done to the instance's disk while anybody could start it
        self.locked_in_nova: Callable[[], bool] = lambda: False
        self.handed_on: list[str] = []  # volumes that were removed with bytes on them
        self.source = Machine(self, "src", ("10.77.0.11", "10.20.0.1"), LVM | EVERYWHERE)
        self.relay = Machine(
            self, "jump", ("10.77.0.12", "10.20.0.2", "10.30.0.2"), LVM | EVERYWHERE | {"mkfs.ext4", "exportfs"}
        )
        self.destination = Machine(self, "dst", ("10.77.0.14", "10.30.0.4"), EVERYWHERE | {"virsh"})
        self.destination.vg = ""
        self.source.add_volume(SOURCE_LV, size, b"new disk", uuid="aaaaaa-bbbb-bbbb-bbbb-bbbb-bbbb-cccccc")
        self.destination.domains[INSTANCE] = Domain(INSTANCE, "db7", LIVE)
        (self.share / INSTANCE).mkdir(parents=True)
        (self.share / INSTANCE / "disk.local").write_bytes(faketools.image(size, b"old disk"))
        (self.share / INSTANCE / "disk.info").write_text(json.dumps({LIVE: "qcow2"}))
        for machine in (self.relay, self.destination):
            machine.mounted.append(Mount("0:44", "/", INSTANCES, "nfs", SHARE, "rw,vers=3,hard,acdirmax=0"))

    @property
    def hosts(self) -> tuple[Machine, Machine, Machine]:
        return self.source, self.relay, self.destination

    def connect(self, address: Address) -> Machine:
        return next(host for host in self.hosts if host.name == address.host)

    def at(self, export: str) -> tuple[Machine | None, str]:
        """The machine and the path there of ADDRESS:PATH."""
        address, _, path = export.partition(":")
        return next((host for host in self.hosts if address in host.addresses), None), path

    def serves(self, address: str, path: str, client: Machine) -> bool:
        """Whether that is exported to this client, something is mounted there, and somebody serves it."""
        server, _ = self.at(f"{address}:{path}")
        if server is None or not server.listens(2049) or path not in server.mounts:
            return False
        return server.exports.get(path) in client.addresses

    @property
    def files(self) -> dict[str, File]:
        """The disks on the share, by the paths that hypervisors know; a job's directory without one counts as one."""
        found = {path: File(content_of(path)) for path in self.share.rglob("disk.*") if path.suffix != ".info"}
        empty = [each for each in self.share.glob(".volmig/*") if not any(path.parent == each for path in found)]
        named = {**found, **{each / "disk.new": File("") for each in empty}}
        return {f"{INSTANCES}/{path.relative_to(self.share)}": file for path, file in named.items()}

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """What happens within leaves no trace: files, with their inodes, and machines are as before."""
        picture, before = Picture(self.root, self.pins), [remembered(self, *KEPT_OF_SITE)]
        before += [remembered(host, *KEPT_OF_MACHINE) for host in self.hosts]
        carry, fault = self.carry, self.fault
        try:
            yield
        finally:
            for thing, was in zip((self, *self.hosts), before, strict=True):
                vars(thing).update(was)
            self.carry, self.fault = carry, fault
            picture.restore()


KEPT_OF_SITE = ("unlocked", "handed_on")
KEPT_OF_MACHINE = (*("boot_id", "volumes", "mounted", "etab", "services", "units", "processes", "domains", "slow"),)


def remembered(thing: Any, *names: str) -> dict[str, Any]:
    return {name: copy.deepcopy(vars(thing)[name]) for name in names}


def content_of(path: Path) -> str:
    """What an image begins with, as text; whatever is no whole image is torn."""
    whole = path.read_bytes()
    return whole[faketools.HEAD :].decode() if qcow2.Header(whole[: faketools.HEAD]).is_qcow2 else "torn"


class NoFault:
    """All goes well."""

    def tool(self, machine: Machine, argv: Any, how: dict[str, Any], run: Callable[[], Output]) -> Output:
        return run()

    def system_call(self, machine: Machine, text: str, run: Callable[[], Any]) -> Any:
        return run()


# What hostctl sees of the world


class Kernel:
    """`os` on the machine that is at work; on none it is the real one."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.path = Paths(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def real(self, path: Any) -> Any:
        """Names relative to an open directory, and descriptors, are as they are."""
        here = self.site.here
        return str(here.real(path)) if here and isinstance(path, str) and path.startswith("/") else path

    def tells(self, path: Any) -> bool:
        return self.site.here is not None and f"{path}/".startswith(("/proc/", "/sys/"))

    def open_text(self, path: Any, mode: str = "r", *args: Any, **how: Any) -> Any:
        if self.tells(path):
            return io.StringIO(self.site.here.tell(path))
        return open(self.real(path), mode, *args, **how)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return os.open(self.real(path), flags & ~os.O_DIRECT, mode, dir_fd=dir_fd)

    def stat(self, path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Any:
        if self.tells(path):
            return self.opened(path)
        seen = os.stat(self.real(path), dir_fd=dir_fd, follow_symlinks=follow_symlinks)
        return self.shown(seen, path)

    def lstat(self, path: Any) -> Any:
        return self.stat(path, follow_symlinks=False)

    def fstat(self, fd: int) -> Any:
        return self.shown(os.fstat(fd))

    def opened(self, path: str) -> Any:
        """What /proc/PID/fd/N leads to."""
        process = self.site.here.processes[int(path.split("/")[2])]
        is_device = process.device is not None
        return SimpleNamespace(
            st_mode=stat.S_IFBLK if is_device else stat.S_IFCHR,
            st_rdev=os.makedev(faketools.MAJOR, process.device) if is_device else 0,
        )

    def shown(self, seen: os.stat_result, path: Any = None) -> Any:
        """As it would be seen there: devices are devices, mounts are filesystems, second names of pictures are none."""
        here = self.site.here
        if here is None:
            return seen
        told = {name: getattr(seen, name) for name in dir(seen) if name.startswith("st_")}
        told["st_nlink"] -= self.site.pins[seen.st_ino]
        if stat.S_ISREG(seen.st_mode):
            for volume in here.volumes.values():
                if os.stat(volume.file).st_ino == seen.st_ino:
                    told["st_mode"], told["st_rdev"] = stat.S_IFBLK, os.makedev(faketools.MAJOR, volume.minor)
        elif isinstance(path, str):
            told["st_dev"] += sum(f"{path}/".startswith(f"{each.target}/") for each in here.mounted)
        return SimpleNamespace(**told)

    def listdir(self, path: Any) -> list[str]:
        if not self.tells(path):
            return os.listdir(self.real(path))
        if path == "/proc":
            return [str(pid) for pid in self.site.here.processes]
        return ["0"] if path.endswith("/fd") else []

    def change(self, name: str, path: Any, run: Callable[[], Any]) -> Any:
        """A system call that changes something, as far as the fault lets it."""
        here = self.site.here
        return self.site.fault.system_call(here, f"{name} {path}", run) if here else run()

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self.change("mkdir", path, lambda: os.mkdir(self.real(path), mode | 0o700, dir_fd=dir_fd))

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        self.change("mkdir", path, lambda: os.makedirs(self.real(path), mode, exist_ok))

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self.change("rmdir", path, lambda: os.rmdir(self.real(path), dir_fd=dir_fd))

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self.change("unlink", path, lambda: os.unlink(self.real(path), dir_fd=dir_fd))

    def link(self, old: Any, new: Any, **how: Any) -> None:
        self.change("link", new, lambda: os.link(self.real(old), self.real(new), **how))

    def rename(self, old: Any, new: Any, **how: Any) -> None:
        before = live_inode(self.site)
        try:
            self.change("rename", new, lambda: os.rename(self.real(old), self.real(new), **how))
        finally:
            instance = self.site.destination.domains[INSTANCE]
            locked = instance.mark or self.site.locked_in_nova()
            if live_inode(self.site) != before and (not locked or instance.state == "running"):
                self.site.unlocked.append(f"rename {new}")

    def chmod(self, path: Any, mode: int, **how: Any) -> None:
        self.change("chmod", path, lambda: os.chmod(self.real(path), mode, **how))

    def chown(self, path: Any, uid: int, gid: int) -> None:
        self.change("chown", path, lambda: os.chown(self.real(path), uid, gid))

    def truncate(self, path: Any, size: int) -> None:
        self.change("truncate", path, lambda: os.truncate(self.real(path), size))

    def ftruncate(self, fd: int, size: int) -> None:
        self.change("truncate", "what is written", lambda: os.ftruncate(fd, size))

    def fsync(self, fd: int) -> None:
        """Nothing here outlasts this process; but this is where a server says that it could not write."""
        self.change("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), lambda: None)

    def access(self, path: Any, mode: int) -> bool:
        return os.access(self.real(path), mode)

    def statvfs(self, path: str) -> Any:
        self.stat(path)
        return SimpleNamespace(f_blocks=20 << 18, f_bavail=9 << 18, f_frsize=4096)


class Paths:
    """`os.path` of a kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getattr__(self, name: str) -> Any:
        asked = getattr(os.path, name)
        return (
            (lambda path: asked(self.kernel.real(path))) if name in ("exists", "isdir", "islink", "lexists") else asked
        )


def live_inode(site: Site) -> int:
    try:
        return os.stat(site.share / INSTANCE / "disk.local").st_ino
    except FileNotFoundError:
        return 0


class Control:
    """`fcntl` for block devices."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def ioctl(self, fd: int, request: int, argument: bytes) -> bytes:
        machine = self.kernel.site.here
        volume = machine.of_minor(str(os.minor(self.kernel.fstat(fd).st_rdev)))
        if request == lvm.BLKGETSIZE64:
            return struct.pack("Q", volume.size)
        if volume.permission != "writeable":
            raise OSError(errno.EPERM, "Operation not permitted")
        if struct.unpack("QQ", argument)[0] == 0:
            self.kernel.change("zero", volume.name, lambda: machine.write(volume, b""))
        return argument


class Network:
    """`socket` on the machine that is at work."""

    AF_INET, AF_INET6, SOCK_STREAM, SOCK_DGRAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
    timeout = socket.timeout

    def __init__(self, site: Site) -> None:
        self.site = site

    def gethostname(self) -> str:
        return self.site.here.name

    def socket(self, family: int, kind: int) -> "Wire":
        return Wire(self.site, kind)


class Wire:
    """One socket; what becomes of a connection is known at once, as between machines without a filter."""

    def __init__(self, site: Site, kind: int) -> None:
        self.site, self.kind = site, kind

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        pass

    def setblocking(self, flag: bool) -> None:
        pass

    def close(self) -> None:
        pass

    def getsockname(self) -> tuple[str, int]:
        return self.site.here.addresses[-1], 0

    def connect(self, to: tuple[str, int]) -> None:
        if code := self.connect_ex(to):
            raise OSError(code, os.strerror(code))  # of the class that belongs to the number

    def connect_ex(self, to: tuple[str, int]) -> int:
        address, port = to
        there = self.site.here if address == "127.0.0.1" else self.site.at(address)[0]
        if self.kind == socket.SOCK_DGRAM:
            return 0
        if there is None:
            return errno.EHOSTUNREACH
        return 0 if there.listens(port) else errno.ECONNREFUSED


class Hurry:
    """`time` that passes at once where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def install(site: Site, monkeypatch: Any) -> Site:
    """Have hostctl, in this process, run on the machines of this site."""
    site.kernel = Kernel(site)
    monkeypatch.setattr(question, "answered", lambda run, work, *how: run(work))
    fit(site, monkeypatch, {module.__name__.rpartition(".")[2]: module for module in OF_HOSTCTL})
    scratch = tempfile.TemporaryDirectory
    monkeypatch.setattr(
        tempfile, "TemporaryDirectory", lambda **how: scratch(dir=site.kernel.real(how.pop("dir", None)), **how)
    )
    return site


def fit(site: Site, monkeypatch: Any, hostctl: dict[str, Any]) -> None:
    """Give the modules of a hostctl, by their names, the kernel, the network and the tools of this site."""
    kernel, clock = site.kernel, Hurry()
    for module in hostctl.values():
        for name, ours in (("os", kernel), ("open", kernel.open_text), ("time", clock)):
            if hasattr(module, name) or name == "open":
                monkeypatch.setattr(module, name, ours, raising=False)
    monkeypatch.setattr(hostctl["lvm"], "fcntl", Control(kernel))
    for module in (hostctl[name] for name in ("facts", "nfs_server", "nfs_mount") if name in hostctl):
        monkeypatch.setattr(module, "socket", Network(site), raising=False)
    apart = lambda questions, seconds: {name: ask() for name, ask in questions.items()}  # noqa: E731
    monkeypatch.setattr(hostctl["mounts"], "apart", apart)
    monkeypatch.setattr(hostctl["commands"], "_secure", lambda path: os.path.basename(path) in site.here.programs)
    monkeypatch.setattr(hostctl["commands"], "_execute", executing(site))


def executing(site: Site) -> Callable[..., Output]:
    def execute(argv: tuple[str, ...], **how: Any) -> Output:
        machine = site.here
        return site.fault.tool(machine, argv, how, lambda: faketools.run(machine, argv))

    return execute


# Rewinding


class Picture:
    """The names, bytes and times of everything under a root; files keep their inodes by second names elsewhere."""

    def __init__(self, root: Path, pins: Counter[int]) -> None:
        self.root, self.pins = root, pins
        self.folder = Path(tempfile.mkdtemp(dir=root.parent, prefix="picture-"))
        self.directories: list[str] = []
        self.files: list[tuple[str, Path]] = []
        self.seen: dict[int, tuple[os.stat_result, bytes, Path]] = {}
        for directory, _, names in os.walk(root):
            self.directories.append(directory)
            for name in names:
                self.keep(os.path.join(directory, name))

    def keep(self, path: str) -> None:
        found = os.stat(path)
        if found.st_ino not in self.seen:
            pin = self.folder / str(found.st_ino)
            os.link(path, pin)
            self.pins[found.st_ino] += 1
            self.seen[found.st_ino] = found, head_of(pin), pin
        self.files.append((path, self.seen[found.st_ino][2]))

    def restore(self) -> None:
        for child in self.root.iterdir():
            shutil.rmtree(child)
        for directory in self.directories[1:]:
            os.mkdir(directory)
        for path, pin in self.files:
            os.link(pin, path)
        for inode, (was, head, pin) in self.seen.items():
            self.put_right(pin, was, head)
            pin.unlink()
            self.pins[inode] -= 1
        self.folder.rmdir()

    def put_right(self, pin: Path, was: os.stat_result, head: bytes) -> None:
        now = os.stat(pin)
        if (now.st_size, now.st_mtime_ns) != (was.st_size, was.st_mtime_ns):
            pin.write_bytes(head)
            os.truncate(pin, was.st_size)
        if now.st_mode != was.st_mode:
            os.chmod(pin, stat.S_IMODE(was.st_mode))
        os.utime(pin, ns=(was.st_atime_ns, was.st_mtime_ns))


def head_of(path: Path) -> bytes:
    """All bytes of a small file; of a volume those that can be other than zero."""
    with path.open("rb") as file:
        return file.read(1 << 20 if os.fstat(file.fileno()).st_size <= 1 << 20 else faketools.HEAD)
