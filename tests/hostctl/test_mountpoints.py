"""The directories of mount points are root's alone: what is mounted there squashes every user to the share's owner."""

import os
import stat

import pytest

from hosts.remote.hostctl import mountpoints
from hosts.remote.hostctl.act import Refused


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def parent(tmp_path):
    return tmp_path / "volmig"


def test_it_is_made_private(parent):
    before = os.umask(0)
    try:
        mountpoints.make_mountpoint(str(parent / "job"))
    finally:
        os.umask(before)
    assert (mode(parent), mode(parent / "job")) == (0o700, 0)


@pytest.mark.parametrize("before", [0o755, 0o711, 0o777])
def test_one_that_others_may_enter_is_made_private(parent, before):
    parent.mkdir()
    parent.chmod(before)
    mountpoints.make_mountpoint(str(parent / "job"))
    assert mode(parent) == 0o700


def test_a_link_in_its_place_is_refused(parent, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="no directory"):
        mountpoints.make_mountpoint(str(parent / "job"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_one_of_another_user_is_refused(parent):
    parent.mkdir()
    os.chown(parent, 64055, 64055)
    with pytest.raises(Refused, match="owned by user 64055"):
        mountpoints.make_mountpoint(str(parent / "job"))
