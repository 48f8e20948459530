"""Copying onto the share: sparse, hashed, exclusive, at the rate asked for; unstaging removes only what is ours."""

import hashlib
import json
import os
import pwd
import time
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import facts, stage
from hosts.remote.hostctl.act import Failed, Refused
from hosts.remote.hostctl.commands import Output, Work
from hosts.remote.hostctl.direct_io import read_direct
from hosts.remote.hostctl.store import Store
from hosts.remote.hostctl.untrusted import open_direct
from hosts.remote.hostctl.verbs import VERBS

from .conftest import qcow2

MIB = 1 << 20


def copied(tmp_path, data, rate=0):
    (tmp_path / "from").write_bytes(data)
    seen = []
    with (tmp_path / "from").open("rb") as source, (tmp_path / "to").open("wb") as target:
        digest = stage.copy(source.fileno(), target.fileno(), rate, lambda done, written: seen.append((done, written)))
    return digest, tmp_path / "to", seen


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        bytes(3 * MIB),
        os.urandom(MIB),
        os.urandom(MIB) + bytes(2 * MIB) + b"end",
        bytes(5 * MIB) + b"\1",
        b"\1" + bytes(4 * MIB + 7),
    ],
    ids=["empty", "byte", "zeros", "full", "hole inside", "hole before", "odd tail"],
)
def test_a_copy_has_the_same_bytes_and_the_hash_of_them(tmp_path, data):
    digest, target, _seen = copied(tmp_path, data)
    assert target.read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest()
    fd = open_direct(str(target))
    assert b"".join(read_direct(fd)) == data
    os.close(fd)


def test_zeros_become_holes(tmp_path):
    _digest, target, seen = copied(tmp_path, bytes(32 * MIB) + os.urandom(MIB))
    assert target.stat().st_blocks * 512 < 4 * MIB
    assert seen[-1] == (33 * MIB, MIB)


def test_the_rate_is_kept(tmp_path):
    begun = time.monotonic()
    copied(tmp_path, os.urandom(4 * MIB), rate=16 * MIB)
    assert time.monotonic() - begun >= 0.24


@pytest.fixture
def share(tmp_path, job, monkeypatch):
    instances, mountpoint = tmp_path / "instances", tmp_path / "relay"
    instances.mkdir()
    mountpoint.mkdir()
    (mountpoint / "disk.qcow2").write_bytes(qcow2(MIB) + os.urandom(100000))
    monkeypatch.setattr(stage, "check_share", lambda args: None)
    args = {
        "mountpoint": str(mountpoint),
        "instances": str(instances),
        "share_source": "filer:/vol",
        "rate": 0,
        "size": MIB,
        "virtual_size": MIB,
        "sha256": hashlib.sha256((mountpoint / "disk.qcow2").read_bytes()).hexdigest(),
    }
    return SimpleNamespace(
        args=args, job=job, instances=instances, place=instances / ".volmig" / job, image=mountpoint / "disk.qcow2"
    )


def run(share, verb, **more):
    return VERBS[verb].run(Work(dict(share.args, **more), share.job, VERBS[verb].acts))


def test_the_copy_is_sealed_by_its_hash(share):
    part = share.image.rename(share.image.with_name("disk.part"))
    assert run(share, "seal") == {"sha256": share.args["sha256"], "file_size": part.stat().st_size}


@pytest.mark.parametrize(("at", "bit"), [(-100_000, 7), (-50_000, 3), (-1, 0)])
def test_a_copy_with_one_bit_flipped_since_it_was_sealed_is_not_staged(share, at, bit):
    data = bytearray(share.image.read_bytes())
    data[at] ^= 1 << bit
    share.image.write_bytes(data)
    with pytest.raises(Failed) as failed:
        run(share, "stage")
    assert failed.value.code == "wrong-bytes"
    run(share, "unstage")
    assert list(share.instances.iterdir()) == []


def test_a_stage_is_the_image_with_a_card_beside_it(share):
    evidence = run(share, "stage")
    data = (share.place / "disk.new").read_bytes()
    assert data == share.image.read_bytes()
    assert evidence["sha256"] == hashlib.sha256(data).hexdigest()
    assert sorted(path.name for path in share.place.iterdir()) == ["README", "card.json", "disk.new"]


def test_a_partial_stage_of_an_earlier_attempt_is_replaced(share):
    run(share, "stage")
    (share.place / "disk.new").write_bytes(b"part")
    run(share, "stage")
    assert (share.place / "disk.new").read_bytes() == share.image.read_bytes()


def test_a_stage_with_a_second_name_is_never_replaced_or_removed(share):
    run(share, "stage")
    os.link(share.place / "disk.new", share.instances / "live")
    for verb in ("stage", "unstage"):
        with pytest.raises(Refused) as refused:
            run(share, verb)
        assert refused.value.code == "foreign-file"
    assert (share.place / "disk.new").exists()


@pytest.mark.parametrize("name", ["disk.old", "disk.rejected", "notes"])
def test_unstage_refuses_where_anything_else_lies(share, name):
    run(share, "stage")
    (share.place / name).write_bytes(b"precious")
    with pytest.raises(Refused):
        run(share, "unstage")
    assert (share.place / name).exists()
    assert (share.place / "disk.new").exists()


@pytest.mark.parametrize("name", ["disk.old", "disk.rejected"])
def test_a_stage_that_was_swapped_in_is_not_there_to_be_removed(share, name):
    run(share, "stage")
    (share.place / "disk.new").rename(share.place / name)
    kept = sorted(each.name for each in share.place.iterdir())
    assert run(share, "unstage") == {"already": True}
    assert sorted(each.name for each in share.place.iterdir()) == kept


def test_stage_refuses_once_a_swap_has_begun(share):
    run(share, "stage")
    (share.place / "disk.old").write_bytes(b"precious")
    (share.place / "disk.new").unlink()
    with pytest.raises(Refused):
        run(share, "stage")


def test_a_link_in_the_way_is_not_followed(share, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (share.instances / ".volmig").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((Refused, Failed)):
        run(share, "stage")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_image_that_is_not_plain_is_not_staged(share):
    share.image.write_bytes(qcow2(MIB, backing=512))
    with pytest.raises(Refused):
        run(share, "stage")
    assert not share.place.exists()


def test_unstage_leaves_nothing_and_repeats(share):
    run(share, "stage")
    run(share, "unstage")
    assert list(share.instances.iterdir()) == []
    assert run(share, "unstage") == {"already": True}


def test_the_facts_tell_which_file_is_staged(tmp_path, job):
    args = {"instances": str(tmp_path)}
    assert facts.staged(args, job) is None
    place = tmp_path / ".volmig" / job
    place.mkdir(parents=True)
    assert facts.staged(args, job) is None
    (place / "disk.new").write_bytes(qcow2(MIB))
    found = (place / "disk.new").stat()
    told = facts.staged(args, job)
    assert (told["inode"], told["file_size"], told["mtime_ns"]) == (found.st_ino, found.st_size, found.st_mtime_ns)


def refused_with(code, act, error=Refused):
    with pytest.raises(error) as refused:
        act()
    assert refused.value.code == code


def test_a_stage_that_was_made_is_known_again_and_not_made_twice(share, tmp_path):
    kept = Store(share.job, str(tmp_path / "memory"), str(tmp_path / "progress"))
    kept.open()
    verb = VERBS["stage"]
    first = verb.run(Work(share.args, share.job, verb.acts, kept))
    before = (share.place / "disk.new").stat()
    assert verb.run(Work(share.args, share.job, verb.acts, kept)) == {**first, "already": True}
    assert (share.place / "disk.new").stat() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_not_staged_into(share):
    share.place.mkdir(parents=True)
    os.chown(share.place, 65534, 65534)
    refused_with("foreign-directory", lambda: run(share, "stage"))
    assert list(share.place.iterdir()) == []


# The destination reads it back


@pytest.fixture
def read_back(share, monkeypatch):
    """Has the staged copy verified; qemu-img tells of it what the test says."""
    run(share, "stage")
    told = {"format": "qcow2", "virtual-size": MIB}
    monkeypatch.setattr(stage.time, "sleep", lambda seconds: None)

    def verify(**changed):
        args = dict(share.args, file_size=share.image.stat().st_size, **changed)
        work = Work(args, share.job, VERBS["stage_verify"].acts)
        real = work._run
        said = Output(0, json.dumps(told))
        work._run = lambda act, probe, how: said if act.argv[:1] == ("qemu-img",) else real(act, probe, how)
        return VERBS["stage_verify"].run(work)

    verify.told = told
    return verify


def test_what_was_staged_is_read_back_and_written_on_the_card(share, read_back):
    found = read_back()
    new = (share.place / "disk.new").stat()
    assert (found["inode"], found["sha256"]) == (new.st_ino, share.args["sha256"])
    card = json.loads((share.place / "card.json").read_text())
    assert (card["stage"]["inode"], card["sha256"]) == (new.st_ino, share.args["sha256"])


@pytest.mark.parametrize("at", [-1, -50_000])
def test_a_bit_that_changed_on_the_share_is_found_when_it_is_read_back(share, read_back, at):
    data = bytearray((share.place / "disk.new").read_bytes())
    data[at] ^= 1
    (share.place / "disk.new").write_bytes(data)
    refused_with("wrong-bytes", read_back, Failed)


def test_a_copy_that_the_destination_describes_otherwise_is_not_good(read_back):
    read_back.told["virtual-size"] = 2 * MIB
    refused_with("bad-image", read_back, Failed)


def test_a_copy_with_a_second_name_is_not_good(share, read_back):
    os.link(share.place / "disk.new", share.instances / "live")
    refused_with("foreign-file", read_back)


@pytest.mark.parametrize("gone", ["the copy", "the directory"])
def test_a_copy_that_does_not_become_visible_is_waited_for_and_then_told(share, read_back, monkeypatch, gone):
    looks = []
    monkeypatch.setattr(stage, "time", SimpleNamespace(sleep=looks.append, monotonic=lambda: 50.0 * len(looks)))
    run(share, "unstage")
    if gone == "the copy":
        share.place.mkdir(parents=True)
    refused_with("no-stage", read_back)
    assert len(looks) == 2


def test_who_may_read_a_copy_that_belongs_to_root_is_nobody_and_else_its_owner():
    owned = [SimpleNamespace(owner=SimpleNamespace(st_uid=uid, st_gid=uid)) for uid in (0, 64055)]
    assert [uid for uid, _ in map(stage._unprivileged, owned)] == [pwd.getpwnam("nobody").pw_uid, 64055]
