"""Rows for tests: people with roles, three hypervisors of a site as discovery would leave them, and jobs."""

from typing import Any

from django.contrib.auth.models import Group, User
from django.utils import timezone

from hosts.models import Cloud, Hypervisor, LogicalVolume, Share, VolumeGroup
from jobs.models import Job
from tests.fakes import INSTANCE, INSTANCES, LIVE, MIB, SHARE, SOURCE_LV

PASSWORD = "correct horse battery"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFak"


def person(name: str, *roles: str, **fields: Any) -> User:
    user = User.objects.filter(username=name).first() or User.objects.create_user(name, password=PASSWORD, **fields)
    user.groups.set(Group.objects.filter(name__in=roles))
    return user


def operator() -> User:
    return person("olga", "operator")


def approver() -> User:
    return person("pavel", "approver")


def viewer() -> User:
    return person("vera", "viewer")


def admin() -> User:
    return person("ada", "administrator", is_superuser=True)


def a_hypervisor(name: str, *addresses: str, **fields: Any) -> Hypervisor:
    """Registered and pinned, with its data addresses (each in a /24 of its own)."""
    values = {"address": name, "host_key": KEY, "pinned_at": timezone.now(), **fields}
    hypervisor, _ = Hypervisor.objects.get_or_create(name=name, defaults=values)
    for number, address in enumerate(addresses):
        hypervisor.data_addresses.get_or_create(
            address=address, defaults={"prefix": 24, "interface": f"eth{number}", "seen_at": timezone.now()}
        )
    return hypervisor


def a_volume_group(hypervisor: Hypervisor, name: str = "vg_nova0", free: int = 8 << 30) -> VolumeGroup:
    values = {
        "uuid": f"vg-{hypervisor.name}",
        "size": 20 << 30,
        "free": free,
        "extent_size": 4 * MIB,
        "seen_at": timezone.now(),
    }
    return hypervisor.volume_groups.get_or_create(name=name, defaults=values)[0]


def a_volume(group: VolumeGroup, name: str = SOURCE_LV, size: int = 512 * MIB, **fields: Any) -> LogicalVolume:
    values = {
        "uuid": "aaaaaa-bbbb-bbbb-bbbb-bbbb-bbbb-cccccc",
        "size": size,
        "attributes": "-wi-a-----",
        "is_open": False,
        "seen_at": timezone.now(),
        **fields,
    }
    return group.logical_volumes.get_or_create(name=name, defaults=values)[0]


def mounts(hypervisor: Hypervisor, source: str = SHARE) -> Share:
    share, _ = Share.objects.get_or_create(source=source)
    figures = {"size": 20 << 30, "free": 9 << 30, "seen_at": timezone.now()}
    hypervisor.mounts.get_or_create(path=INSTANCES, defaults={"share": share, **figures})
    return share


def an_instance(hypervisor: Hypervisor, uuid: str = INSTANCE, **fields: Any) -> Any:
    path = LIVE.replace(INSTANCE, uuid)
    values = {
        "name": "db7",
        "state": "running",
        "seen_at": timezone.now(),
        "disks": [{"name": "disk.local", "path": path, "format": "qcow2"}],
        **fields,
    }
    return hypervisor.instances.get_or_create(uuid=uuid, defaults=values)[0]


def in_cloud(fake: Any, *names: str) -> Cloud:
    """A cloud with Nova, entered with the right credential, to which these hypervisors belong."""
    auth = {"auth_url": f"{fake.url}/identity/v3", "application_credential_id": "id"}
    told = {"name": "prod", "control": "openstack", "auth_type": "v3applicationcredential", "auth": auth}
    cloud = Cloud()
    members = [a_hypervisor(name).pk for name in names or ("src", "dst")]
    cloud.reregister(admin(), Hypervisor.objects.filter(pk__in=members), "right", **told)
    return cloud


def asked(uuid: str = INSTANCE, source: str = "") -> dict[str, Any]:
    """What Job.objects.submit takes for the one migration that the fake site of this instance is made for.

    The volume is named after the instance too, or after the one with the id `source`.
    """
    volumes_on = a_hypervisor("src", "10.77.0.11", "10.20.0.1")
    relay = a_hypervisor("jump", "10.77.0.12", "10.20.0.2", "10.30.0.2")
    destination = a_hypervisor("dst", "10.77.0.14", "10.30.0.4")
    a_volume_group(relay)
    mounts(relay)
    mounts(destination)
    return {
        "source_volume": a_volume(a_volume_group(volumes_on), SOURCE_LV.replace(INSTANCE, source or uuid)),
        "destination": an_instance(destination, uuid),
        "disk": "disk.local",
        "relay": relay,
        "relay_vg": "vg_nova0",
        "ticket": "OPS-1",
        "rate": None,
    }


def a_job(status: str = "checking", **fields: Any) -> Job:
    """A job that was asked for by the operator, put into `status` without anything having been done for it."""
    job = Job.objects.submit(operator(), start=False, **asked())
    job.put(status=status, **fields)
    return job
