"""Nova's own names, whose dashes the device mapper doubles, from the request through a rehearsal to the purge."""

import pytest

from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
DEVICE = f"/dev/vg_nova0/{VOLUME}"


def rehearsed(drive, job):
    job.rehearse(factories.operator())
    number = job.rehearsals.count()
    drive.until(lambda: not job.rehearsals.filter(ended_at=None).exists(), job)
    return job.rehearsals.get(number=number)


def flip(lab, job, at=40_000):
    """Change one byte, on the filer itself, where the header of a qcow2 image has none of its own."""
    script = (
        "import os, sys; f = os.open(sys.argv[1], os.O_RDWR); b = os.pread(f, 1, int(sys.argv[2]));"
        " os.pwrite(f, bytes([b[0] ^ 1]), int(sys.argv[2])); os.fsync(f)"
    )
    lab.filer.run(["python3", "-c", script, f"/vol/nova/.volmig/{job.uuid}/disk.old", str(at)])


def test_a_volume_becomes_a_larger_disk_whose_backup_is_rehearsed_and_purged(clean_lab, register, drive, client):
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

    lab.dst.run("virsh -q destroy db-new")  # a live disk that nobody writes to can be compared
    live = lab.sha256(lab.dst, guest.disk)
    good = rehearsed(drive, job)
    assert (good.result, good.findings) == ("ok", [])
    assert good.figures["sha256"] == old
    flip(lab, job)
    bad = rehearsed(drive, job)
    assert bad.result == "differs"
    assert any("SHA-256" in line for line in bad.findings), bad.findings
    assert any("mtime" in line for line in bad.findings), bad.findings
    flip(lab, job)
    assert lab.sha256(lab.dst, backup) == old, "nothing but the test changed it"
    assert lab.sha256(lab.dst, guest.disk) == live

    job.ask("purge", factories.operator())
    drive.approve(job, "purge")
    drive.reach(job, "purged")
    assert lab.leftovers() == []
    assert lab.filer.run("ls -A /vol/nova/.volmig", check=False) == ""
