"""A job that was killed amid its conversion and forgotten: what it left is found, and removed as it was recorded."""

import pytest
from django.utils import timezone

from hosts import tasks
from hosts.models import Hypervisor
from jobs.drift import rows
from jobs.models import Job, Removal
from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW = "1e57f0e5-0000-4111-8222-933334444555", "2f68a1f6-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
FOREIGN = "99999999-0000-4111-8222-933334444555"


def look():
    """The page's rows after a scan of every hypervisor."""
    for host in Hypervisor.objects.all():
        tasks.scan(host.pk)
    return rows(Hypervisor.objects.all())


def remove_all(drive, job):
    for row in look():
        assert row.why_kept == "", (row.about.name, row.why_kept)
        Removal.objects.ask(factories.operator(), row.found, row.job, row.hypervisor, row.step)
    drive.until(lambda: not job.removals.open().exists(), job)


def test_what_a_killed_job_left_is_found_and_removed(clean_lab, register, drive):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=48)
    before = lab.sha256(lab.src, f"/dev/vg_nova0/{VOLUME}")
    guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    register()
    job = drive.submit(VOLUME, guest, rate=MIB)
    drive.until(lambda: job.runs.filter(step="convert", bytes_read__gt=0).exists(), job)
    assert job.running().step == "convert"
    assert {row.found.verdict for row in look()} == {"needed"}, "of a job at work nothing is left over"

    # As after a database that was put back: for volmig the job has ended, and its conversion goes on by itself.
    Job.objects.filter(pk=job.pk).update(status="undone", outcome="failed", ended_at=timezone.now(), wake_at=None)
    job.refresh_from_db()
    found = look()
    assert {row.found.verdict for row in found} == {"left"}
    assert {row.about.kind for row in found} >= {"lv", "filesystem", "export", "mount", "fence", "unit", "memory"}
    assert {row.job for row in found} == {job}

    remove_all(drive, job)
    remove_all(drive, job)  # what remembers the removals, where something else stood in its way
    assert list(job.removals.filter(result="refused").values_list("kind", "said")) == []
    assert (look(), lab.leftovers()) == ([], [])
    assert lab.sha256(lab.src, f"/dev/vg_nova0/{VOLUME}") == before
    assert lab.src.run(f"lvs --noheadings -o lv_permissions vg_nova0/{VOLUME}").strip() == "writeable"


def test_a_volume_that_this_volmig_does_not_know_is_shown_and_stays(clean_lab, register, drive):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    tags = f"--addtag volmig --addtag volmig.job={FOREIGN}"
    lab.jump.run(f"lvcreate --yes -n volmig_999999990000 -L 8M {tags} vg_nova0")
    register()
    (row,) = look()
    assert (row.found.verdict, row.about.job, row.job) == ("stranger", FOREIGN, None)
    looks, removes = row.hands
    assert "volmig_999999990000" in lab.jump.run(looks[0])
    for line in removes:
        lab.jump.run(line if not line.startswith("lvremove") else f"{line} --yes")
    assert (look(), lab.leftovers()) == ([], [])


def test_a_share_that_hangs_is_left_behind_and_the_rest_is_told(clean_lab, register, drive):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    register()
    lab.link_cut(lab.jump, "storage")
    try:
        tasks.scan(Hypervisor.objects.get(name="jump").pk)
    finally:
        lab.link_heal(lab.jump, "storage")
    scan = Hypervisor.objects.get(name="jump").scan
    assert (scan.error, [share["answered"] for share in scan.shares]) == ("", [False])
