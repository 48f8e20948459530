"""A resize that Nova confirms removes the instance's former directory; the disk that a swap kept is not in it."""

import subprocess
import uuid
from pathlib import Path

import pytest

from hosts.remote.hostctl.act import Refused
from tests.cloud import install
from tests.hostctl.test_live_images import INSTANCE, disks, full_base  # noqa: F401 - a fixture

pytestmark = pytest.mark.cloud


@pytest.fixture
def job():
    return str(uuid.uuid4())


@pytest.fixture
def nova(disks):  # noqa: F811
    """Has Nova's libvirt driver do this to the instance's directory."""
    words = [install.ensure().bin / "python", Path(__file__).parent / "resize.py", disks.root, INSTANCE]
    return lambda act: subprocess.run([*words, act], check=True, capture_output=True)


def test_the_kept_disk_outlives_a_resize_that_nova_confirms_and_its_purge_says_why_it_is_refused(disks, nova):  # noqa: F811
    full_base(disks)
    before = disks.live.read_bytes()
    made = disks.swapped()
    nova("resize")
    former = disks.root / f"{INSTANCE}_resize"
    assert former.is_dir()
    nova("confirm")
    assert not former.exists()
    assert disks.live.stat().st_ino != made["live_inode"], "Nova copied the disk: it is another file now"
    assert (disks.place / "disk.old").read_bytes() == before
    assert (disks.place / "base.0").stat().st_ino == disks.base.stat().st_ino
    assert disks.rehearsed()["verdict"] == "ok"
    with pytest.raises(Refused) as refused:
        disks.run("purge", backup_inode=made["backup_inode"], live_inode=made["live_inode"])
    assert refused.value.code == "unknown-inode"
    assert "as after a resize" in refused.value.next_step
    with pytest.raises(Refused):
        disks.run("swap_back", made=made)
    assert (disks.place / "disk.old").read_bytes() == before
