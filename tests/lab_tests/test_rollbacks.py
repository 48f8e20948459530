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


def test_a_rehearsal_tells_a_good_backup_from_one_with_a_flipped_byte_and_changes_neither_disk(scene, drive):
    lab = scene
    job = drive.submit(VOLUME, lab.guest)
    drive.reach(job, "awaiting_approval")
    drive.approve(job)
    drive.reach(job, "on_trial")
    boot(lab, lab.new)
    job.confirm(factories.operator())
    drive.reach(job, "done")
    lab.dst.run("virsh -q destroy db-new")  # a live disk that nobody writes to can be compared
    old = job.footprints.kept().get().name
    live, before = lab.sha256(lab.dst, lab.guest.disk), lab.sha256(lab.dst, old)
    good = rehearsed(drive, job)
    assert (good.result, good.findings) == ("ok", [])
    assert good.figures["sha256"] == before
    flip(lab, job)
    bad = rehearsed(drive, job)
    assert bad.result == "differs"
    assert any("SHA-256" in line for line in bad.findings), bad.findings
    assert any("mtime" in line for line in bad.findings), bad.findings
    flip(lab, job)
    assert lab.sha256(lab.dst, old) == before, "nothing but the test changed it"
    assert lab.sha256(lab.dst, lab.guest.disk) == live
    assert [each for each in lab.leftovers() if not each.startswith("filer: share")] == []
