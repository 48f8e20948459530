"""What was seen on the three hypervisors of a job, as frozen values that travel to and from JSON."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Volume:
    """A logical volume; sizes in bytes, `writes` and `sectors_written` are the kernel's counters of its device."""

    vg: str
    lv: str
    uuid: str
    size: int
    attributes: str = ""
    active: bool = True
    open: bool = False
    holders: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    major: int = 0
    minor: int = 0
    permission: str = "writeable"
    writes: int = 0
    sectors_written: int = 0
    crypt: bool = False


@dataclass(frozen=True)
class Filesystem:
    """A filesystem on a disk: `where` is the partition, or "whole disk"."""

    where: str
    type: str
    label: str = ""
    uuid: str = ""


@dataclass(frozen=True)
class Partition:
    """A partition of a disk; its size in bytes."""

    number: int
    size: int
    type: str = ""


@dataclass(frozen=True)
class Contents:
    """What a disk holds, as far as its first blocks tell without mounting anything."""

    table: str = ""
    partitions: tuple[Partition, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    summary: str = ""
    unread: tuple[int, ...] = ()  # numbers of partitions whose contents were not read


@dataclass(frozen=True)
class Probe:
    """How a port answered: `state` is open, refused, filtered, unreachable or untried, `ms` how
    long the answer took in milliseconds."""

    address: str
    port: int
    state: str
    ms: float | None = None


@dataclass(frozen=True)
class Guest:
    """An instance as libvirt of its hypervisor has it; `state` in the words of virsh."""

    uuid: str
    name: str
    state: str


@dataclass(frozen=True)
class Group:
    """A volume group; sizes in bytes. `problem`: why LVM cannot or must not write to its metadata, or empty."""

    name: str
    size: int
    free: int
    extent_size: int
    problem: str = ""


@dataclass(frozen=True)
class Source:
    """`virsh` is False where libvirt cannot be asked for the instances that use the volume."""

    volume: Volume | None = None
    contents: Contents | None = None
    source_address: str = ""
    reach: tuple[Probe, ...] = ()
    instance_running: Guest | None = None
    time: float = 0
    vg: Group | None = None
    virsh: bool = True


@dataclass(frozen=True)
class Share:
    """A mounted share; `squashes_root` is None where it could not be told."""

    source: str
    target: str
    options: str = ""
    size: int = 0
    free: int = 0
    owner_uid: int = 0
    owner_gid: int = 0
    squashes_root: bool | None = None


@dataclass(frozen=True)
class Relay:
    """`skipped`: what LVM printed of groups that it left out; `no_version_3`: why NFSv3 is not served, or empty."""

    vg: Group | None = None
    leftovers: tuple[str, ...] = ()
    share: Share | None = None
    nfs_server: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ports: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    time: float = 0
    skipped: str = ""
    no_version_3: str = ""


@dataclass(frozen=True)
class Disk:
    """The instance's present disk file; `allocated` is what it takes, `backing` its chain of base files.

    `objections` are reasons why no tool was let open it. `relative_bases` are those of `backing` that are named from
    the directory of the image; `snapshots` and `bitmaps` are how many of them lie inside it.
    """

    path: str
    inode: int
    format: str
    virtual_size: int
    device: int = 0
    file_size: int = 0
    allocated: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0
    label: str | None = None
    nlink: int = 1
    backing: tuple[str, ...] = ()
    relative_bases: tuple[str, ...] = ()
    objections: tuple[str, ...] = ()
    snapshots: int = 0
    bitmaps: int = 0
    dirty: bool = False
    corrupt: bool = False


@dataclass(frozen=True)
class Domain:
    """The instance as libvirt of the destination has it. `driver` and `source` are those of the disk that is to be
    replaced, `max_bytes` is what it may have at most; None where that is not known.
    """

    uuid: str
    name: str
    state: str
    driver: str = ""
    source: str = ""
    max_bytes: int | None = None


@dataclass(frozen=True)
class Stage:
    """The copy that lies beside the live disk."""

    inode: int
    file_size: int
    mtime_ns: int


@dataclass(frozen=True)
class Destination:
    """What the destination says: the share, the instance and its disk. `acdirmax` is for how many seconds NFS clients
    may keep a directory's names.
    """

    share: Share | None = None
    instances: str = ""
    disk: Disk | None = None
    disk_info: Mapping[str, str] | None = None
    domain: Domain | None = None
    contents: Contents | None = None
    leftovers: tuple[str, ...] = ()
    acdirmax: int = 60
    time: float = 0
    stage: Stage | None = None
    readers: tuple[str, ...] = ()  # processes of the destination, other than the guest, that have the disk open
    way_back: tuple[str, ...] = ()  # why the disk that this job keeps could not be used again
    domain_problem: str = ""  # why libvirt could not be asked for the instance, or empty


@dataclass(frozen=True)
class Server:
    """An instance as Nova says it is; sizes in GiB, "" for what is not set."""

    uuid: str
    name: str = ""
    host: str = ""
    hypervisor: str = ""
    status: str = ""
    vm_state: str = ""
    task_state: str = ""
    locked: bool = False
    locked_reason: str = ""
    flavor: str = ""
    ephemeral_gb: int = 0
    root_gb: int = 0
    image: str = ""
    host_status: str = ""
    updated: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Service:
    """A nova-compute as Nova sees it."""

    host: str
    state: str = ""
    status: str = ""
    forced_down: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Move:
    """A migration or evacuation of an instance between computes."""

    kind: str
    status: str
    source: str = ""
    destination: str = ""
    at: str = ""


@dataclass(frozen=True)
class Action:
    """Something that somebody asked Nova to do with an instance."""

    action: str
    at: str = ""
    request: str = ""
    user: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Nova:
    """What Nova says about the instance and around it; `server` is None when it was deleted.

    `names` are what Nova may call the destination, `source_names` the source. `actions` come newest first.
    `services`, `moves` and all of the source are read for checks only.
    """

    names: tuple[str, ...] = ()
    version: str = ""
    server: Server | None = None
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    actions: tuple[Action, ...] = ()
    source_names: tuple[str, ...] = ()
    source_server: Server | None = None
    services: tuple[Service, ...] = ()
    moves: tuple[Move, ...] = ()
    source_moves: tuple[Move, ...] = ()
    time: float = 0


@dataclass(frozen=True)
class Facts:
    """All answers; None stands for a hypervisor that gave none, and where no Nova controls the instance."""

    source: Source | None = None
    relay: Relay | None = None
    destination: Destination | None = None
    instance: Nova | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], answers: Mapping[str, type[Any]] | None = None) -> Facts:
        """The facts as they were stored; `answers` are the types of a route that reads more than is usual, by role.

        Raise TypeError or ValueError when something needed is missing or of the wrong kind.
        """
        found = {role: read(kind, raw[role]) for role, kind in (answers or {}).items() if raw.get(role) is not None}
        return replace(read(cls, raw), **found)

    def to_json(self) -> dict[str, Any]:
        """As the database has them."""
        return dataclasses.asdict(self)


def read(kind: type[T], raw: Mapping[str, Any]) -> T:
    """Build `kind` from a mapping; names that it does not know are left out, so a newer hostctl may say more."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: _value(hints[name], raw[name]) for name in names if name in raw})


def _value(hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return None if value is None else _value(typing.get_args(hint)[0], value)
    if typing.get_origin(hint) is tuple:
        return tuple(_value(typing.get_args(hint)[0], item) for item in value or ())
    if dataclasses.is_dataclass(hint):
        return read(typing.cast(type[Any], hint), value)
    if hint is int:
        return int(value)
    return value
