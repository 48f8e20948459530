"""A tenant's bytes are never handed on: the next volume in the relay's extents reads as zeros, and an undo is whole."""

import pytest

from jobs.engine.transports.relay_nfs import temporary_volume
from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
DEVICE = f"/dev/vg_nova0/{VOLUME}"
SECRET = "account-4711-of-the-tenant"


@pytest.fixture
def scene(clean_lab, register):
    """A volume that begins with the tenant's secret (ext4 leaves its first KiB alone), and an instance for it."""
    clean_lab.volume(clean_lab.src, VOLUME, 64 * MIB, data_mb=2, bulk_mb=32)
    clean_lab.src.run(f"echo {SECRET} | dd of={DEVICE} conv=notrunc,fsync status=none")
    clean_lab.guest = clean_lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    register()
    return clean_lab


class Relay:
    """What lies where the job's temporary volume is, or was."""

    def __init__(self, lab, job):
        self.run, self.lv = lab.jump.run, temporary_volume(job.migration())
        self.where = self.read = None

    def look_before_the_erase(self):
        self.where = self.extents(self.lv)
        self.read = self.content(self.lv)

    def extents(self, lv):
        return self.run(f"lvs --noheadings -o seg_pe_ranges vg_nova0/{lv}").split()

    def content(self, lv):
        """How often the secret can be read there, and whether anything but zeros can."""
        device = f"/dev/vg_nova0/{lv}"
        secrets = self.run(f"tr -d '\\0' <{device} | grep -c -a -F {SECRET}", check=False)
        return int(secrets), bool(int(self.run(f"tr -d '\\0' <{device} | head -c1 | wc -c")))

    def content_of_the_next_volume(self):
        """Made in the very same extents and not wiped, as Nova makes them."""
        first, last = self.where[0].rsplit(":", 1)[1].split("-")
        size = int(last) - int(first) + 1
        self.run(f"lvcreate -qy -Wn -Zn -n lab_next -l {size} vg_nova0 {' '.join(self.where)}")
        assert self.extents("lab_next") == self.where
        return self.content("lab_next")


def test_after_a_preparation_the_next_volume_in_its_extents_reads_as_zeros(scene, drive):
    job = drive.submit(VOLUME, scene.guest)
    relay = Relay(scene, job)
    drive.moments["lv_remove", "do"] = relay.look_before_the_erase
    drive.reach(job, "awaiting_approval")
    assert relay.read == (1, True)
    assert relay.content_of_the_next_volume() == (0, False)


def test_a_cancel_amid_the_conversion_takes_everything_back(scene, drive):
    lab, found = scene, scene.jump.run("systemctl is-active nfs-server rpcbind nfs-mountd", check=False)
    source, live = lab.sha256(lab.src, DEVICE), lab.sha256(lab.dst, lab.guest.disk)
    attributes = lab.src.run(f"lvs --noheadings -o lv_attr,lv_tags {DEVICE}")
    job = drive.submit(VOLUME, lab.guest, rate=2 * MIB)
    relay = Relay(lab, job)
    drive.moments["lv_remove", "undo"] = relay.look_before_the_erase
    drive.until(lambda: job.runs.filter(step="convert", bytes_written__gt=2 * MIB).exists(), job)
    assert job.running().step == "convert"
    assert lab.jump.run("systemctl is-active nfs-server").strip() == "active"
    job.cancel(factories.operator())
    drive.reach(job, "undone")
    assert job.outcome == "cancelled"
    assert lab.leftovers() == []
    assert (lab.sha256(lab.src, DEVICE), lab.sha256(lab.dst, lab.guest.disk)) == (source, live)
    assert lab.src.run(f"lvs --noheadings -o lv_attr,lv_tags {DEVICE}") == attributes
    assert lab.jump.run("systemctl is-active nfs-server rpcbind nfs-mountd", check=False) == found
    assert relay.read == (1, True)
    assert relay.content_of_the_next_volume() == (0, False)
