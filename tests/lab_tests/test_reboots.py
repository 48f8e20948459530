"""A relay that loses its power amid a conversion: everything on it is made again, and nothing of it is left."""

import pytest

from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.torture]

OLD, NEW = "5a1ce0de-0000-4111-8222-933334444555", "7b2df1ef-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"


def test_a_relay_that_loses_its_power_amid_the_conversion_is_set_up_again(clean_lab, register, drive):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=48)
    guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    register()
    job = drive.submit(VOLUME, guest, rate=4 * MIB)
    drive.until(lambda: (run := job.running()) is not None and run.step == "convert" and run.bytes_done > 0, job)
    lab.power_cut(lab.jump)
    lab.boot(lab.jump)
    drive.reach(job, "awaiting_approval", seconds=400)
    assert job.runs.filter(step="relay_export", direction="do", result="done").count() == 2
    assert job.runs.filter(step="convert", result="failed").count() <= 1
    job.cancel(factories.operator())
    drive.reach(job, "undone")
    assert lab.leftovers() == []
