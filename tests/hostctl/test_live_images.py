"""A live disk is more than its bytes: what is seen of it, and what a swap, a rollback and a rehearsal do with it.

The images are made by the real qemu-img, marks are set as QEMU sets them.
"""

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hosts.remote.hostctl import bases, live_disk, rehearsal, swap, virsh
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Work, find
from hosts.remote.hostctl.images import Image
from hosts.remote.hostctl.untrusted import Share
from hosts.remote.hostctl.verbs import VERBS

pytestmark = pytest.mark.skipif(not find("qemu-img") or os.geteuid() != 0, reason="the real qemu-img in its cage")
INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 4 << 20
NOVA = 64055


class Disks:
    """A share with a live disk, a base and a stage, all of the share's owner."""

    def __init__(self, root: Path, job: str) -> None:
        self.root, self.job, self.live = root, job, root / INSTANCE / "disk"
        self.place, self.base = root / ".volmig" / job, root / "_base" / "0123"
        for folder in (self.live.parent, self.place, self.base.parent):
            folder.mkdir(parents=True)
        qemu_img("create", "-f", "qcow2", self.base, SIZE)
        qemu_img("create", "-f", "qcow2", self.live, SIZE)
        qemu_img("create", "-f", "qcow2", self.place / "disk.new", SIZE)
        self.args = {"instances": str(root), "share_source": "filer:/vol", "instance": INSTANCE, "disk": "disk"}

    def give(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            os.chown(path, NOVA, NOVA)

    def described(self) -> dict:
        self.give()
        with Share(str(self.root)) as share:
            fd = share.file(f"{INSTANCE}/disk")
            with Image(share, f"{INSTANCE}/disk", fd, INSTANCE) as image:
                return image.described()

    def run(self, verb: str, **args: object) -> dict:
        self.give()
        return VERBS[verb].run(Work({**self.args, **args}, self.job, VERBS[verb].acts))

    def swapped(self) -> dict:
        self.give()
        recorded = {"live": live_disk.identity(self.live.stat()), "virtual_size": SIZE}
        return self.run("swap", **recorded, stage=live_disk.identity((self.place / "disk.new").stat()))

    def rehearsed(self) -> dict:
        return self.run("rehearse", backup_path=f"{self.place}/disk.old", recorded={})


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def marked(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(79)
        file.write(bytes([bit]))


@pytest.fixture
def disks(job, monkeypatch):
    root = Path(tempfile.mkdtemp(prefix="volmig-images-", dir="/var/tmp"))
    root.chmod(0o755)
    for module in (swap, rehearsal):
        monkeypatch.setattr(module, "check_share", lambda args: None)
    monkeypatch.setattr(virsh, "state", lambda work, instance: "shut off")
    yield Disks(root, job)
    shutil.rmtree(root)


def snapshot(disks):
    qemu_img("snapshot", "-c", "before", disks.live)


def bitmap(disks):
    qemu_img("bitmap", "--add", disks.live, "backup")


def corrupt(disks):
    marked(disks.live, 2)


def dirty(disks):
    marked(disks.live, 1)


def relative_base(disks):
    disks.live.unlink()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "../_base/0123", disks.live.name],
        check=True,
        cwd=disks.live.parent,
    )


def full_base(disks):
    disks.live.unlink()
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", disks.base, disks.live)


PLAIN = {"backing": [], "relative_bases": [], "objections": [], "snapshots": 0, "bitmaps": 0}
PLAIN |= {"dirty": False, "corrupt": False}


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda disks: None, {}),
        (snapshot, {"snapshots": 1}),
        (bitmap, {"bitmaps": 1}),
        (corrupt, {"corrupt": True}),
        (dirty, {"dirty": True}),
        (relative_base, {"backing": ["../_base/0123"], "relative_bases": ["../_base/0123"]}),
    ],
)
def test_what_a_disk_is_besides_its_bytes_is_seen_before_the_approval(disks, make, seen):
    make(disks)
    assert disks.described() == {**PLAIN, **seen}


@pytest.mark.parametrize("make", [snapshot, bitmap, corrupt, dirty, relative_base])
def test_a_swap_and_the_way_back_change_not_a_byte_of_it(disks, make):
    make(disks)
    before = disks.live.read_bytes()
    made = disks.swapped()
    assert disks.live.read_bytes() != before
    assert (disks.place / "disk.old").read_bytes() == before
    disks.run("swap_back", made=made)
    assert disks.live.read_bytes() == before
    assert disks.described()["objections"] == []


@pytest.mark.parametrize("make", [snapshot, bitmap, dirty, relative_base, full_base])
def test_a_rehearsal_finds_it_sound(disks, make):
    make(disks)
    disks.swapped()
    said = disks.rehearsed()
    assert (said["verdict"], said["findings"]) == ("ok", [])


def test_a_rehearsal_says_that_a_disk_marked_corrupt_would_not_start(disks):
    corrupt(disks)
    disks.swapped()
    said = disks.rehearsed()
    assert said["verdict"] == "unreadable"
    assert rehearsal.MARKED_CORRUPT in said["findings"]


# Base files: what a way back stands on


def chained(disks):
    """Two bases, one on the other."""
    second = disks.base.parent / "4567"
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", disks.base, second)
    disks.live.unlink()
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", second, disks.live)


BASED = pytest.mark.parametrize("make", [relative_base, full_base, chained])


def bases_of(disks):
    return sorted(disks.base.parent.iterdir())


def kept(disks):
    return sorted(path.name for path in disks.place.glob("base.*"))


def in_order(disks):
    """QEMU opens the live disk with all that it stands on."""
    words = ["qemu-img", "map", "-f", "qcow2", "--output=json", disks.live]
    return subprocess.run(words, stdout=subprocess.DEVNULL).returncode == 0


@BASED
def test_a_swap_keeps_the_bases_of_the_former_disk_and_names_them(disks, make):
    make(disks)
    before = {path: path.stat().st_ino for path in bases_of(disks)}
    made = disks.swapped()
    assert sorted(path.stat().st_ino for path in disks.place.glob("base.*")) == sorted(before.values())
    named = {(disks.live.parent / each["path"]).resolve(): each["kept"] for each in made["bases"]}
    assert set(named) == set(before)
    assert {path: (disks.place / name).stat().st_ino for path, name in named.items()} == before


def test_a_disk_that_stands_alone_has_no_bases_kept(disks):
    assert disks.swapped()["bases"] == []
    assert kept(disks) == []


@BASED
def test_a_base_that_nova_removed_is_put_back_by_the_rollback(disks, make):
    make(disks)
    made = disks.swapped()
    for base in bases_of(disks):
        base.unlink()
    disks.run("swap_back", made=made)
    assert in_order(disks)


@BASED
def test_a_rollback_refuses_without_the_base_and_names_it(disks, make):
    make(disks)
    made = disks.swapped()
    new = disks.live.stat().st_ino
    for path in (disks.base, *disks.place.glob("base.*")):
        path.unlink()
    with pytest.raises(Refused, match="0123 is gone") as refused:
        disks.run("swap_back", made=made)
    assert (refused.value.code, disks.live.stat().st_ino) == ("base-missing", new)


def test_that_a_base_is_gone_is_among_the_facts_before_a_guest_is_stopped_for_a_rollback(disks):
    full_base(disks)
    assert bases.troubles(disks.args, disks.job) == []
    disks.swapped()
    disks.base.unlink()
    assert bases.troubles(disks.args, disks.job) == [], "it would be put back"
    (disks.place / "base.0").unlink()
    assert "0123 is gone" in bases.troubles(disks.args, disks.job)[0]


def test_a_rollback_refuses_where_another_file_is_in_the_place_of_the_base(disks):
    full_base(disks)
    made = disks.swapped()
    disks.base.unlink()
    qemu_img("create", "-f", "qcow2", disks.base, SIZE)  # as Nova makes an ephemeral base anew, with another UUID in it
    with pytest.raises(Refused, match=r"0123, which is kept as base\.0"):
        disks.run("swap_back", made=made)
    assert disks.rehearsed()["verdict"] == "unreadable"


def test_a_base_that_cannot_be_linked_is_named_with_the_reason_and_the_swap_goes_on(disks, monkeypatch):
    full_base(disks)
    link = os.link

    def edge(source, target, **how):
        if target.startswith("base."):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **how)

    monkeypatch.setattr(os, "link", edge)
    (only,) = disks.swapped()["bases"]
    assert (only["kept"], only["why"]) == ("", "invalid cross-device link")
    assert kept(disks) == []


def test_a_swap_that_was_called_off_leaves_no_second_name(disks, monkeypatch):
    full_base(disks)
    disks.give()
    recorded = {"live": live_disk.identity(disks.live.stat()), "virtual_size": SIZE}
    stage = live_disk.identity((disks.place / "disk.new").stat())
    monkeypatch.setattr(swap, "_dress", failing)
    with pytest.raises(ValueError, match="amid"):
        disks.run("swap", **recorded, stage=stage)
    assert kept(disks) == ["base.0"]
    disks.run("swap_back", **recorded, stage=stage)
    assert (kept(disks), disks.base.stat().st_nlink) == ([], 1)
    disks.run("unstage")
    assert not disks.place.exists()


def failing(field):
    raise ValueError("amid the swap")


@BASED
def test_a_purge_removes_the_second_names_and_no_base_that_has_its_own(disks, make):
    make(disks)
    made = disks.swapped()
    bases = bases_of(disks)
    said = disks.run("purge", backup_inode=made["backup_inode"], live_inode=made["live_inode"])
    assert said["purged"] == ["disk.old", *(f"base.{number}" for number in range(len(bases)))]
    assert (bases_of(disks), disks.place.exists()) == (bases, False)


@BASED
def test_a_purge_after_a_rollback_leaves_the_disk_in_use_all_that_it_stands_on(disks, make):
    make(disks)
    made = disks.swapped()
    disks.run("swap_back", made=made)
    for base in bases_of(disks):
        base.unlink()
    disks.run("purge", backup_inode=made["live_inode"], live_inode=made["backup_inode"])
    assert in_order(disks)
    assert not disks.place.exists()


@BASED
def test_a_rehearsal_says_that_a_base_is_gone_and_where_it_is_kept(disks, make):
    make(disks)
    disks.swapped()
    disks.base.unlink()
    said = disks.rehearsed()
    assert said["verdict"] == "differs"
    assert "0123 is gone from its place; it is kept as" in said["findings"][0]
    for path in disks.place.glob("base.*"):
        path.unlink()
    said = disks.rehearsed()
    assert said["verdict"] == "unreadable"
    assert "0123: no such file" in said["findings"][0]


def test_a_disk_that_names_another_file_since_the_checks_is_not_swapped(disks):
    disks.give()
    recorded, mtime = live_disk.identity(disks.live.stat()), disks.live.stat().st_mtime_ns
    marked(disks.live, 4)
    os.utime(disks.live, ns=(mtime, mtime))
    new = live_disk.identity((disks.place / "disk.new").stat())
    with pytest.raises(Refused, match="data file"):
        disks.run("swap", live=recorded, stage=new, virtual_size=SIZE)
    assert disks.live.stat().st_nlink == 1
