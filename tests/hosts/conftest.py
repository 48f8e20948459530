"""Hypervisors with an inventory, without machines."""

import copy

import pytest

from hosts.models import Hypervisor

GIB = 1024**3
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
INSTANCE = "0b1f6c2e-6a0e-4a8f-9d55-2f1d6d3f9c01"
INVENTORY = {
    **{"hostname": "src", "python": "3.11.2", "user": "root", "boot_id": "b", "time": 1, "features": {}},
    "tools": {"qemu_img": "7.2.0", "lvm": "2.03.16", "libvirt": ""},
    "volume_groups": [{"name": "vg_nova0", "uuid": "vg-1", "size": 8 * GIB, "free": 6 * GIB, "extent_size": 4 << 20}],
    "logical_volumes": [
        {
            **{"vg": "vg_nova0", "name": f"{INSTANCE}_disk.local", "uuid": "lv-1", "size": 2 * GIB},
            **{"attributes": "-wi-a-----", "open": False, "tags": [], "major": 253, "minor": 0},
        }
    ],
    "mounts": [
        {
            **{"source": "filer:/nova", "target": "/var/lib/nova/instances", "fstype": "nfs4", "options": "rw"},
            **{"size": 100 * GIB, "free": 60 * GIB},
        }
    ],
    "addresses": [{"interface": "eth1", "address": "10.77.1.11", "prefix": 24}],
    "nfs_server": {"nfs-server": "missing"},
    "domains": [
        {
            **{"uuid": INSTANCE, "name": "instance-00000001", "state": "running"},
            "disks": [
                {"target": "vda", "source": f"/var/lib/nova/instances/{INSTANCE}/disk.local", "format": "qcow2"},
                {"target": "vdb", "source": "/var/lib/nova/instances-other/disk", "format": "raw"},
                {"target": "sda", "source": None, "format": "raw"},
            ],
        }
    ],
}


@pytest.fixture
def inventory():
    return copy.deepcopy(INVENTORY)


@pytest.fixture
def hypervisor(db):
    """Makes hypervisors whose key is pinned: hypervisor("src", port=2211)."""

    def make(name="src", **fields):
        values = {"address": "127.0.0.1", "port": 2200 + Hypervisor.objects.count(), "host_key": KEY} | fields
        return Hypervisor.objects.create(name=name, **values)

    return make
