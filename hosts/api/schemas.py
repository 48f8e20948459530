"""The documents of hypervisors, shares, clouds and instances; in which units, the API's description says."""

import datetime as dt
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from ninja import Field, Schema

from hosts.models import Cloud as CloudRow
from hosts.models import Hypervisor as HypervisorRow
from hosts.models import Instance, LogicalVolume
from hosts.models import Server as ServerRow
from hosts.remote.host import fingerprint
from volmig.api.schemas import Name, Page, Told, same


class Group(Schema):
    """`held` is what migrations keep free for what is not there yet."""

    name: str
    size: int
    free: int
    held: int


class MountedShare(Schema):
    """A share and the path where the hypervisor mounts it."""

    share: str
    path: str


class Hypervisor(Schema):
    """`state` is registered (no key pinned), usable, quarantined or retired.

    `offered_fingerprint` is that of the key which it showed when it was asked; compare it on the machine, then pin it.
    """

    id: int
    name: str
    state: Literal["registered", "usable", "quarantined", "retired"]
    quarantine_reason: str
    address: str
    port: int
    user: str
    team: str
    cloud: str | None
    fits_as: list[str]
    fingerprint: str
    offered_fingerprint: str
    seen_at: dt.datetime | None
    last_error: str
    hostctl_hash: str
    volume_groups: list[Group]
    mounts: list[MountedShare]
    data_addresses: list[str]

    @classmethod
    def of(cls, row: HypervisorRow) -> Self:
        """The document of a row that `operations.full` has read."""
        names = ("name", "quarantine_reason", "address", "port", "user", "seen_at", "last_error", "hostctl_hash")
        return cls(
            id=row.pk,
            state=state_of(row),
            team=row.team.name,
            cloud=row.cloud.name if row.cloud else None,
            fits_as=row.role_hints,
            fingerprint=fingerprint(row.host_key) if row.host_key else "",
            offered_fingerprint=fingerprint(row.offered_key) if row.offered_key else "",
            volume_groups=[Group(**same(each, "name", "size", "free", "held")) for each in row.groups_seen],
            mounts=[MountedShare(share=each.share.source, path=each.path) for each in row.mounts_seen],
            data_addresses=[str(each) for each in row.data_addresses.all()],
            **same(row, *names),
        )


def state_of(row: HypervisorRow) -> Literal["registered", "usable", "quarantined", "retired"]:
    """Retired before quarantined before usable: the first that is true."""
    if row.retired_at:
        return "retired"
    if row.quarantined_at:
        return "quarantined"
    return "usable" if row.host_key else "registered"


class Registration(Told):
    """What people tell volmig about a hypervisor beside its name; other hypervisors, clouds and teams by their names.

    `limit_mib` is the bandwidth limit as relay in MiB/s, null for none.
    """

    address: Name
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: Name = "volmig"
    shipped: bool = False
    bastion: Name | None = None
    cloud: Name | None = None
    nova_host: Name = ""
    team: Name | None = None
    limit_mib: Annotated[int, Field(ge=1, le=2**40)] | None = None

    @classmethod
    def of(cls, row: HypervisorRow) -> "Registration":
        """The document of a hypervisor's registration; the limit in MiB/s."""
        return Registration(
            bastion=row.bastion.name if row.bastion else None,
            cloud=row.cloud.name if row.cloud else None,
            team=row.team.name,
            limit_mib=row.rate_limit // 2**20 if row.rate_limit else None,
            **same(row, "address", "port", "user", "shipped", "nova_host"),
        )


class NewHypervisor(Registration):
    """A registration with the name, which never changes."""

    name: Name


class Pin(Told):
    """The whole fingerprint, SHA256:…, as it was read on the machine itself."""

    fingerprint: Name


class Retire(Told):
    """The name once more, so that nobody retires the neighbour."""

    name: Name


class Volume(Schema):
    """`instance` and `disk` are those that it was made as, null for other volumes."""

    id: int
    hypervisor: str
    path: str
    lv_uuid: str
    size: int
    is_open: bool
    tags: list[str]
    instance: str | None
    disk: str | None
    seen_at: dt.datetime

    @classmethod
    def of(cls, row: LogicalVolume) -> Self:
        """The document of a volume; `size` in bytes."""
        return cls(
            id=row.pk,
            hypervisor=row.volume_group.hypervisor.name,
            lv_uuid=row.uuid,
            instance=row.instance or None,
            disk=row.disk or None,
            **same(row, "path", "size", "is_open", "tags", "seen_at"),
        )


class ShareAt(Schema):
    """What one hypervisor reports of a share that it mounts."""

    hypervisor: str
    path: str
    size: int
    free: int
    seen_at: dt.datetime


class Share(Schema):
    """`size`, `free` and `seen_at` are what your hypervisors report, the least where they differ; `mounts` has each.
    `held` is reserved by migrations for what is not there yet, `kept` taken by disks that wait for their purge: of
    migrations to your hypervisors."""

    source: str
    size: int
    free: int
    held: int
    kept: int
    seen_at: dt.datetime
    mounts: list[ShareAt]

    @classmethod
    def of(cls, row: Any) -> Self:
        """The document of a share with its mounts; sizes in bytes."""
        mounts = [
            ShareAt(hypervisor=each.hypervisor.name, **same(each, "path", "size", "free", "seen_at"))
            for each in row.mounts.all()
        ]
        return cls(mounts=mounts, **same(row, "source", "size", "free", "held", "kept", "seen_at"))


class Cloud(Schema):
    """`control` is how its instances are stopped and started; the credential is never told."""

    id: int
    name: str
    control: str
    hypervisors: list[str]
    seen_at: dt.datetime | None
    last_error: str

    @classmethod
    def of(cls, row: CloudRow) -> Self:
        """The document of a cloud; retired hypervisors are left out."""
        names = sorted(each.name for each in row.hypervisors.all() if not each.retired_at)
        return cls(id=row.pk, hypervisors=names, **same(row, "name", "control", "seen_at", "last_error"))


class Disk(Schema):
    """A disk of an instance on a share."""

    name: str
    path: str
    format: str


class Server(Schema):
    """An instance: as Nova told where a cloud has it, as libvirt did on each hypervisor that has it."""

    id: str
    name: str
    project: str
    status: str
    cloud: str | None
    hypervisor: str | None
    disks: list[Disk]
    seen_at: dt.datetime

    @classmethod
    def in_nova(cls, row: ServerRow, here: Iterable[Instance], hypervisor: str | None) -> Self:
        """An instance as Nova has it, with the disks that hypervisors report."""
        disks = [Disk(**each) for mine in here for each in mine.disks]
        names = {"id": row.uuid, "name": row.name, "project": row.project_name or row.project, "status": row.status}
        return cls(**names, cloud=row.cloud.name, hypervisor=hypervisor, disks=disks, seen_at=row.seen_at)

    @classmethod
    def in_libvirt(cls, row: Instance) -> Self:
        """An instance that only libvirt on a hypervisor has."""
        names = {"id": row.uuid, "name": row.name, "project": "", "status": row.state}
        disks = [Disk(**each) for each in row.disks]
        return cls(**names, cloud=None, hypervisor=row.hypervisor.name, disks=disks, seen_at=row.seen_at)


class Hypervisors(Page):
    """One page of hypervisors."""

    items: list[Hypervisor]


class Volumes(Page):
    """One page of volumes."""

    items: list[Volume]


class Shares(Page):
    """One page of shares."""

    items: list[Share]


class Clouds(Page):
    """One page of clouds."""

    items: list[Cloud]


class Servers(Page):
    """One page of instances."""

    items: list[Server]
