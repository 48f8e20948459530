"""Whose rights an act on a share has: the owner's, and root's again whatever happens."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hosts.remote.hostctl import mountpoints, mounts, nfs_mount, privileges, untrusted
from hosts.remote.hostctl.act import Failed
from hosts.remote.hostctl.commands import Work
from hosts.remote.hostctl.verbs import VERBS

from .conftest import qcow2

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
    with untrusted.Share(str(share)) as opened, opened.mine():
        assert (me(), os.getgroups()) == ((NOVA, NOVA), [])
        (share / "disk").touch()
    assert (me(), os.getgroups()) == ((0, 0), groups)
    assert ((share / "disk").stat().st_uid, (share / "disk").stat().st_gid) == (NOVA, NOVA)


def test_what_root_may_the_owner_may_not(tmp_path):
    private = tmp_path / "private"
    private.touch(mode=0o600)
    with pytest.raises(PermissionError), privileges.as_user(NOVA, NOVA):
        private.open("w")
    assert me() == (0, 0)


def test_root_stays_root_and_is_root_again_for_its_own_files(tmp_path):
    groups = os.getgroups()
    with privileges.as_user(0, NOVA):
        assert me() == (0, 0)
    with privileges.as_root():
        assert me() == (0, 0)
    with privileges.as_user(NOVA, NOVA):
        with privileges.as_root():
            assert me() == (0, 0)
            (tmp_path / "progress").touch()
        assert (me(), os.getgroups()) == ((NOVA, NOVA), [])
    assert (me(), os.getgroups()) == ((0, 0), groups)
    assert (tmp_path / "progress").stat().st_uid == 0


# Root on a share that squashes it: root that has none of root's ways around owners and modes

SIZE = 1 << 20
INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SQUASHED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-chown,-fowner"]
CARRIED = """
import json, os, sys
from hosts.remote.hostctl import live_disk, stage, swap, untrusted, virsh
from hosts.remote.hostctl.commands import Work
from hosts.remote.hostctl.verbs import VERBS

stage.check_share = swap.check_share = lambda args: None
virsh.state = lambda work, instance: "shut off"
job, args = json.load(sys.stdin)
new = os.path.join(args["instances"], ".volmig", job, "disk.new")
live = os.path.join(args["instances"], args["instance"], "disk.local")

def do(verb, **more):
    return VERBS[verb].run(Work(dict(args, **more), job, VERBS[verb].acts))

def seen(path):
    with untrusted.Share(args["instances"]) as opened, opened.mine():
        return live_disk.identity(os.stat(path))

said = {"root_may": os.access(args["instances"], os.W_OK)}
said["staged"] = do("stage")
said["sha256"] = do("stage_verify", file_size=said["staged"]["file_size"])["sha256"]
swapped = do("swap", live=seen(live), stage=seen(new))
said["back"] = do("swap_back", made=swapped)["live_inode"] == swapped["backup_inode"]
print(json.dumps(said))
"""


@pytest.fixture
def nova_only(tmp_path):
    """A share on which everything is the owner's and closed to all others, with the disk of an instance."""
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    home = tmp_path / "instances" / INSTANCE
    home.mkdir(parents=True)
    (home / "disk.local").write_bytes(b"old" * 1000)
    for path in (home.parent, home, home / "disk.local"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.chown(path, NOVA, NOVA)
    return home.parent


@pytest.mark.parametrize("squashed", [True, False], ids=["root is squashed", "root is not squashed"])
def test_a_disk_is_staged_swapped_and_put_back_whether_or_not_the_filer_squashes_root(nova_only, job, squashed):
    relay = nova_only.parent / "relay"
    relay.mkdir()
    copy = qcow2(SIZE) + os.urandom(100_000)
    (relay / "disk.qcow2").write_bytes(copy)
    digest = hashlib.sha256(copy).hexdigest()
    args = {
        "instances": str(nova_only),
        "instance": INSTANCE,
        "disk": "disk.local",
        "mountpoint": str(relay),
        "share_source": "filer:/vol",
        "rate": 0,
        "size": len(copy),
        "virtual_size": SIZE,
        "sha256": digest,
    }
    program = [*(SQUASHED if squashed else []), sys.executable, "-c", CARRIED]
    done = subprocess.run(
        program,
        input=json.dumps([job, args]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["root_may"], said["sha256"], said["back"]) == (not squashed, digest, True)
    disks = {path.name: path for path in nova_only.rglob("disk.*")}
    assert (disks["disk.local"].read_bytes(), disks["disk.rejected"].read_bytes()) == (b"old" * 1000, copy)
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in disks.values()} == {(NOVA, 0o600)}


def test_an_export_on_which_root_became_nobody_is_found_before_a_disk_is_sent_over_it(nova_only, job, monkeypatch):
    mine = mounts.Mount("0:9", "/", str(nova_only), "nfs", "10.0.0.2:/srv", "rw,vers=3,hard")
    monkeypatch.setattr(mounts, "mounts", lambda: [mine])
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    args = {"mountpoint": str(nova_only), "address": "10.0.0.2", "export": "/srv", "fs_uuid": job}
    with pytest.raises(Failed) as failed, privileges.as_user(65534, 65534):
        nfs_mount.mount(Work(args, job, VERBS["nfs_mount"].acts))
    assert (failed.value.code, "permission denied" in failed.value.found) == ("act-failed", True)
