"""Runs with the Python that Nova is installed for: a resize on shared storage and its end, by Nova's libvirt driver.

Arguments: the directory of instances, an instance's UUID, `resize` or `confirm`. What needs a libvirt (power, network,
the definition) is left out; what is done to the instance's directory and its disks is Nova's own code.
"""

import os
import sys
from types import SimpleNamespace

from nova import conf
from nova.virt.libvirt import driver, imagebackend

INSTANCES, UUID, ACT = sys.argv[1:]
CONF = conf.CONF
CONF([], project="nova", default_config_files=[])
CONF.set_override("instances_path", INSTANCES)
CONF.set_override("host", "dst")
CONF.set_override("images_type", "qcow2", "libvirt")


class Driver(driver.LibvirtDriver):
    """Without a connection to libvirt."""

    def __init__(self):
        self.job_tracker = SimpleNamespace(add_job=lambda *words: None, remove_job=lambda *words: None)
        self.image_backend = imagebackend.Backend(False)

    power_off = unplug_vifs = _cleanup_resize_vtpm = lambda self, *words, **how: None

    def _is_path_shared_with(self, dest, path):
        return True

    def _get_vpmems(self, instance, prefix=None):
        return []

    def _get_instance_disk_info(self, instance, block_device_info):
        folder = os.path.join(INSTANCES, UUID)
        disks = sorted(name for name in os.listdir(folder) if name.startswith("disk") and name != "disk.info")
        return [{"path": os.path.join(folder, name), "type": "qcow2"} for name in disks]


flavor = SimpleNamespace(root_gb=1, ephemeral_gb=1)
instance = SimpleNamespace(uuid=UUID, name="instance-00000001", host="dst", flavor=flavor)
nova = Driver()
if ACT == "resize":
    nova.migrate_disk_and_power_off(None, instance, "dst", flavor, None, {})
else:
    nova.confirm_migration(None, SimpleNamespace(), instance, None)
