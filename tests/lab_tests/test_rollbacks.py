"""The old disk comes back: by itself when the start fails, and by a second consent while the new one is on trial."""

import pytest

from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
DEVICE = f"/dev/vg_nova0/{VOLUME}"
KERNEL = "/usr/local/lib/lab/vmlinuz"


@pytest.fixture
def scene(clean_lab, register):
    """A volume, and an instance for it that is switched off."""
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    lab.new = lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=1)
    lab.guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    register()
    return lab


def boot(lab, digest):
    lab.wait_console(lab.guest, f"VOLMIG-DATA sha256 {digest}")
    lab.wait_console(lab.guest, "VOLMIG-READY")


def state(lab):
    return lab.dst.run("virsh domstate db-new").strip()


def test_a_start_that_fails_gives_the_instance_its_old_disk_back(scene, drive):
    lab, live = scene, []

    def note():
        live.append((lab.dst.run(["stat", "-c", "%i", lab.guest.disk]), lab.sha256(lab.dst, lab.guest.disk)))

    def repair():
        note()
        lab.dst.run(f"mv {KERNEL}.away {KERNEL}")

    lab.start(lab.guest)
    boot(lab, lab.guest.sha256)
    job = drive.submit(VOLUME, lab.guest)
    drive.reach(job, "awaiting_approval")
    # The disk of a running guest moves until it is off: what counts is how it was when the swap began.
    drive.moments["swap", "do"] = note
    drive.moments["instance_start", "do"] = lambda: lab.dst.run(f"mv {KERNEL} {KERNEL}.away")
    drive.moments["instance_start", "undo"] = repair
    drive.approve(job)
    drive.reach(job, "rolled_back")
    assert job.outcome == "failed"
    assert KERNEL in str(job.runs.get(step="start", direction="do").error)
    assert len(live) == 2
    assert live[0] == live[1]
    assert state(lab) == "running"
    assert lab.dst.run(["stat", "-c", "%i", lab.guest.disk]) == live[0][0]
    kept = [f"filer: share {job.uuid}/{name}" for name in ("README", "card.json", "disk.rejected")]
    assert sorted(lab.leftovers()) == kept


def test_a_rollback_from_the_trial_needs_consent_and_keeps_the_new_disk_until_its_purge(scene, drive):
    lab = scene
    old = lab.sha256(lab.dst, lab.guest.disk)
    job = drive.submit(VOLUME, lab.guest)
    drive.reach(job, "awaiting_approval")
    drive.approve(job)
    drive.reach(job, "on_trial")
    boot(lab, lab.new)
    job.ask("rollback", factories.operator())
    drive.step()
    job.refresh_from_db()
    assert (job.status, state(lab)) == ("on_trial", "running")
    drive.approve(job, "rollback")
    drive.reach(job, "rolled_back")
    assert (state(lab), lab.sha256(lab.dst, lab.guest.disk)) == ("shut off", old)
    rejected = f"/var/lib/nova/instances/.volmig/{job.uuid}/disk.rejected"
    assert f"filer: share {job.uuid}/disk.rejected" in lab.leftovers()
    assert int(lab.dst.run(["stat", "-c", "%h", rejected])) == 1
    job.ask("purge", factories.operator())
    drive.approve(job, "purge")
    drive.reach(job, "purged")
    assert (lab.leftovers(), lab.sha256(lab.dst, lab.guest.disk)) == ([], old)
