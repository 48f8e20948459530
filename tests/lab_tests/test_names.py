"""The common case: Nova's own names, whose dashes the device mapper doubles, from the request to the purge."""

import pytest

from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
DEVICE = f"/dev/vg_nova0/{VOLUME}"


def test_a_volume_of_nova_becomes_a_larger_disk_and_the_purge_leaves_nothing(clean_lab, register, drive, client):
    lab, warning = clean_lab, f"The disk grows to {72 * MIB} bytes; the instance is meant to have {64 * MIB}."
    lab.mount_share(acdirmax=1)
    lab.volume(lab.src, VOLUME, 72 * MIB, data_mb=1)
    source = lab.sha256(lab.src, DEVICE)
    guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    old = lab.sha256(lab.dst, guest.disk)
    assert lab.src.run(f"dmsetup info -c --noheadings -o name {DEVICE}").strip() == (
        f"vg_nova0-{VOLUME.replace('-', '--')}"
    )
    register()

    job = drive.submit(VOLUME, guest)
    drive.reach(job, "awaiting_approval")
    client.force_login(factories.approver())
    shown = client.get(f"/approvals/{job.approvals.get().pk}/").content.decode()
    assert (warning in shown, "Whoever approves has to want this." in shown) == (True, True)

    drive.approve(job)
    drive.reach(job, "on_trial")
    backup = f"/var/lib/nova/instances/.volmig/{job.uuid}/disk.old"
    assert lab.sha256(lab.dst, backup) == old
    job.confirm(factories.operator())
    drive.reach(job, "done")
    assert [line for line in lab.leftovers() if str(job.uuid) not in line] == []
    assert lab.sha256(lab.src, DEVICE) == source

    job.ask("purge", factories.operator())
    drive.approve(job, "purge")
    drive.reach(job, "purged")
    assert lab.leftovers() == []
    assert lab.filer.run("ls -A /vol/nova/.volmig", check=False) == ""
