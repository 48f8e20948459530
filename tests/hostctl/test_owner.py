"""Whose rights an act on a share has: the owner's, and root's again whatever happens."""

import os

import pytest

from hosts.remote.hostctl import owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
NOVA = 64055


def me():
    return os.geteuid(), os.getegid()


def test_a_file_is_made_as_the_owner_of_the_directory_and_root_is_root_again(tmp_path):
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    share, groups = tmp_path / "instances", os.getgroups()
    share.mkdir(mode=0o700)
    os.chown(share, NOVA, NOVA)
    with owner.as_owner(str(share)):
        assert (me(), os.getgroups()) == ((NOVA, NOVA), [])
        (share / "disk").touch()
    assert (me(), os.getgroups()) == ((0, 0), groups)
    assert ((share / "disk").stat().st_uid, (share / "disk").stat().st_gid) == (NOVA, NOVA)


def test_what_root_may_the_owner_may_not(tmp_path):
    private = tmp_path / "private"
    private.touch(mode=0o600)
    with pytest.raises(PermissionError), owner.as_user(NOVA, NOVA):
        private.open("w")
    assert me() == (0, 0)


def test_root_stays_root_and_is_root_again_for_its_own_files(tmp_path):
    groups = os.getgroups()
    with owner.as_user(0, NOVA):
        assert me() == (0, 0)
    with owner.as_root():
        assert me() == (0, 0)
    with owner.as_user(NOVA, NOVA):
        with owner.as_root():
            assert me() == (0, 0)
            (tmp_path / "progress").touch()
        assert (me(), os.getgroups()) == ((NOVA, NOVA), [])
    assert (me(), os.getgroups()) == ((0, 0), groups)
    assert (tmp_path / "progress").stat().st_uid == 0
