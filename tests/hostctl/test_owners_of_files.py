"""Files owned as on real hosts, the real qemu-img in its real cage: who may walk to a file, and who may read it.

A copy lies below a directory of root's alone, and belongs to the share's owner, for whom the relay's export takes
everybody. On the share all belongs to that owner, and root is nobody special. An identity that may not walk to a file,
or not read it, fails here; elsewhere only a migration on the storage lab would find that.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import lvm, mountpoints, qemu_img, sandbox, stage
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Work, find
from hosts.remote.hostctl.untrusted import opened
from hosts.remote.hostctl.verbs import VERBS

pytestmark = pytest.mark.skipif(not find("qemu-img") or os.geteuid() != 0, reason="the real qemu-img in its cage")
MIB = 1 << 20
SIZE = 8 * MIB
NOVA = 64055


class Hosts:
    """Source, relay and share in one directory that everybody may enter; the mount points are root's alone."""

    def __init__(self, root: Path, job: str) -> None:
        self.job, self.source, self.mounts, self.instances = job, root / "source", root / "mnt", root / "instances"
        self.mountpoint = self.mounts / job.replace("-", "")
        self.instances.mkdir(mode=0o755)
        self.mounts.mkdir(mode=0o700)
        self.mountpoint.mkdir(mode=0o700)
        for path in (self.instances, self.mountpoint):
            os.chown(path, NOVA, NOVA)
        self.source.write_bytes(os.urandom(MIB) + bytes(SIZE - MIB))
        self.part = self.mountpoint / "disk.part"
        self.args = {"vg": "vg", "lv": "lv", "lv_uuid": "u", "size": SIZE, "virtual_size": SIZE, "rate": 0}
        self.args |= {"mountpoint": str(self.mountpoint), "instances": str(self.instances)}
        self.args |= {"share_source": "filer:/vol", "writes": 1, "sectors_written": 8}

    def do(self, verb: str) -> dict:
        found = VERBS[verb].run(Work(self.args, self.job, VERBS[verb].acts))
        self.args |= {name: found[name] for name in ("sha256", "file_size") if name in found}
        return found

    def converted(self) -> None:
        """A copy as the relay's server has it: not root's, although root wrote it."""
        self.do("convert")
        os.chown(self.part, NOVA, NOVA)
        self.part.chmod(0o600)


@pytest.fixture
def hosts(job, monkeypatch):
    root = Path(tempfile.mkdtemp(prefix="volmig-owners-", dir="/var/tmp"))
    root.chmod(0o755)
    made = Hosts(root, job)
    fenced = SimpleNamespace(check=lambda: None, check_counters=lambda: {"writes": 1, "sectors_written": 8})
    monkeypatch.setattr(lvm, "device", lambda args: str(made.source))
    monkeypatch.setattr(lvm, "Source", lambda args, job: fenced)
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    monkeypatch.setattr(stage, "check_share", lambda args: None)
    yield made
    shutil.rmtree(root)


def test_a_copy_is_converted_hashed_compared_staged_and_verified_whoever_owns_the_files(hosts):
    hosts.converted()
    assert hosts.do("seal")["file_size"] == hosts.part.stat().st_size
    assert hosts.do("compare")["compare"] == "identical"
    hosts.do("stage")
    hosts.do("stage_verify")
    assert (hosts.instances / ".volmig" / hosts.job / "disk.new").stat().st_uid == NOVA


@pytest.mark.parametrize("who", ["may not walk there", "may not read it"])
def test_a_copy_that_the_identity_of_a_tool_cannot_open_is_refused_with_the_reason(hosts, who, monkeypatch):
    """What these tests are for: each of the two identities of a cage, wrong, is found out by them."""
    hosts.converted()
    real = sandbox.Cage

    def wrong(shown, user, **limits):
        if who == "may not walk there":
            return real(shown=tuple(each._replace(user=(NOVA, NOVA)) for each in shown), user=user, **limits)
        return real(shown=shown, user=(NOVA + 1, NOVA + 1), **limits)

    monkeypatch.setattr(qemu_img, "Cage", wrong)
    with pytest.raises(Refused, match="Permission denied") as refused:
        hosts.do("compare")
    assert refused.value.code == "probe-failed"
    assert hosts.part.exists()


def test_a_copy_that_was_replaced_after_it_was_checked_is_not_shown_to_a_tool(hosts):
    hosts.converted()
    with opened(str(hosts.part)) as fd:
        built = qemu_img._cage(str(hosts.part), fd)
    hosts.part.rename(hosts.part.with_name("aside"))
    hosts.part.write_bytes(b"another")
    work = Work(hosts.args, hosts.job, lambda args, job: ())
    with pytest.raises(Refused, match="was replaced after it was checked"):
        qemu_img.inspect(work, str(hosts.part), built)
