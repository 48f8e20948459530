"""A rehearsal over real files: what it says of a kept disk in every state, and that it changes none of them."""

import errno
import hashlib
import json
import os
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import live_disk, rehearsal
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Output, Work
from hosts.remote.hostctl.verbs import VERBS
from tests.fakes import INSTANCES, SHARE

from .conftest import qcow2

INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 1 << 20
SOUND = Output(0, json.dumps({"check-errors": 0, "corruptions": 0, "leaks": 0}))


class Asked(Work):
    """qemu-img answers as the test says; nothing may be done."""

    said = SOUND

    def ask(self, *words, good=(0,), **how):
        self.words, self.how = words, how
        return self.said

    def do(self, act, function=None, recovery=False, **how):
        raise AssertionError(f"a rehearsal does nothing: {act.text}")


@pytest.fixture
def share(tmp_path, job, monkeypatch):
    """instances/ with a live disk and a kept one; `asked` is the next rehearsal."""
    home, place = tmp_path / INSTANCE, tmp_path / ".volmig" / job
    home.mkdir()
    place.mkdir(parents=True)
    live, old = home / "disk.local", place / "disk.old"
    live.write_bytes(qcow2(SIZE))
    old.write_bytes(qcow2(SIZE) + os.urandom(100_000))
    monkeypatch.setattr(rehearsal, "check_share", lambda args: None)
    args = {
        "instances": str(tmp_path),
        "share_source": "filer:/vol",
        "backup_path": str(old),
        "recorded": live_disk.identity(old.stat()),
    }
    asked = Asked(args, job, VERBS["rehearse"].acts)
    return SimpleNamespace(live=live, old=old, place=place, args=args, asked=asked, job=job)


def rehearse(share, **recorded):
    share.asked.args = {**share.args, "recorded": {**share.args["recorded"], **recorded}}
    return rehearsal.rehearse(share.asked)


def world(share):
    """Everything of the share's files that a change would change."""
    return [
        (path.name, path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.read_bytes())
        for path in sorted(share.place.parent.parent.rglob("*"))
        if path.is_file() or path.is_symlink()
    ]


def test_a_kept_disk_as_it_was_recorded_is_in_order_and_nothing_is_changed(share):
    before = world(share)
    found = rehearse(share)
    assert (found["verdict"], found["findings"]) == ("ok", [])
    assert found["sha256"] == hashlib.sha256(share.old.read_bytes()).hexdigest()
    assert found["file_size"] == share.old.stat().st_size
    assert share.asked.words[:4] == ("qemu-img", "check", "-f", "qcow2")
    assert share.asked.words[-2:] == ("--", str(share.old))
    assert world(share) == before


def test_the_sha256_of_an_earlier_rehearsal_is_compared(share):
    digest = rehearse(share)["sha256"]
    assert rehearse(share, sha256=digest)["verdict"] == "ok"
    seen = share.old.stat()
    data = bytearray(share.old.read_bytes())
    data[-1] ^= 1
    share.old.write_bytes(data)
    os.utime(share.old, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert rehearse(share)["verdict"] == "ok", "without the hash a flipped byte under the old time is not seen"
    found = rehearse(share, sha256=digest)
    assert found["verdict"] == "differs"
    assert digest in found["findings"][0]


def spoil(share, how):
    {
        "written": lambda: share.old.write_bytes(share.old.read_bytes()),
        "longer": lambda: os.truncate(share.old, share.old.stat().st_size + 1),
        "replaced": lambda: (share.live.rename(share.place / "x"), (share.place / "x").rename(share.old)),
        "mode": lambda: share.old.chmod(0o600 if share.old.stat().st_mode & 0o077 else 0o644),
        "another name": lambda: os.link(share.old, share.place / "again"),
    }[how]()


@pytest.mark.parametrize("how", ["written", "longer", "replaced", "mode", "another name"])
def test_whatever_is_not_as_recorded_is_said_and_left_as_it_is(share, how):
    spoil(share, how)
    before = world(share)
    found = rehearse(share)
    assert found["verdict"] == "differs"
    assert found["findings"]
    assert world(share) == before


def test_what_has_a_second_name_is_not_read_for_it_may_be_the_live_disk(share, monkeypatch):
    share.old.unlink()
    os.link(share.live, share.old)
    monkeypatch.setattr(rehearsal, "_bytes", lambda *args: pytest.fail("it was read"))
    found = rehearse(share)
    assert found["verdict"] == "differs"
    assert "2 names" in found["findings"][0]
    assert "sha256" not in found


@pytest.mark.parametrize(
    ("said", "verdict", "leaks"),
    [
        (SOUND, "ok", 0),
        (Output(3, json.dumps({"check-errors": 0, "leaks": 7})), "ok", 7),
        (Output(2, json.dumps({"check-errors": 0, "corruptions": 4})), "unreadable", 0),
        (Output(1, "", "qemu-img: Could not open"), "unreadable", 0),
        (Output(63, "", "not supported"), "unreadable", 0),
        (Output(124, "", "no response within 3600 s"), "unreadable", 0),
        (Output(127, "", "qemu-img is not installed"), "unreadable", 0),
        (Output(137, "{", ""), "unreadable", 0),
        (Output(2, "[]", ""), "unreadable", 0),
        (Output(2, '{"corruptions": "many"}', ""), "unreadable", 0),
    ],
)
def test_what_qemu_img_says_of_the_structure_decides(share, said, verdict, leaks):
    share.asked.said = said
    found = rehearse(share)
    assert (found["verdict"], found["leaks"]) == (verdict, leaks)


def test_a_link_in_the_place_of_the_disk_is_not_followed(share):
    share.old.unlink()
    share.old.symlink_to(share.live)
    found = rehearse(share)
    assert found["verdict"] != "ok"
    assert "sha256" not in found


def test_what_is_no_qcow2_or_stands_on_another_file_is_not_given_to_qemu(share):
    for data in (b"\0" * 70_000, qcow2(SIZE, extensions=b"DATA" + (8).to_bytes(4, "big") + b"/etc/xyz")):
        share.old.write_bytes(data)
        share.asked.words = None
        assert rehearse(share)["verdict"] == "unreadable"
        assert share.asked.words is None


@pytest.mark.parametrize("gone", ["disk", "directory"])
def test_a_disk_that_is_gone_cannot_be_read(share, gone):
    share.old.unlink()
    if gone == "directory":
        share.place.rmdir()
    found = rehearse(share)
    assert found["verdict"] == "unreadable"
    assert found["findings"]


def test_a_read_error_says_where(share, monkeypatch):
    def broken(fd):
        yield b"x" * 4096
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(rehearsal, "read_direct", broken)
    found = rehearse(share)
    assert found["verdict"] == "unreadable"
    assert "at byte 4096: Input/output error" in found["findings"][0]


def test_a_disk_that_changes_while_it_is_read_differs(share, monkeypatch):
    real = rehearsal.read_direct

    def meanwhile(fd):
        yield from real(fd)
        os.utime(share.old, ns=(1, 1))

    monkeypatch.setattr(rehearsal, "read_direct", meanwhile)
    assert "it changed while it was read" in rehearse(share)["findings"]


@pytest.mark.parametrize(
    "path", ["{live}", "{place}/disk.new", "{place}/card.json", "/etc/passwd", "{place}/../disk.old"]
)
def test_nothing_but_the_kept_disk_of_this_job_is_looked_at(share, path):
    share.args["backup_path"] = path.format(live=share.live, place=share.place)
    with pytest.raises(Refused) as refused:
        rehearse(share)
    assert refused.value.code == "bad-request"


def test_another_share_than_planned_is_refused(share, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(Refused) as refused:
        rehearse(share)
    assert refused.value.code == "unknown-share"


def test_its_unit_can_write_nowhere_but_where_its_result_is_kept(share):
    properties = VERBS["rehearse"].sandbox(share.args, share.job)
    assert "ProtectSystem=strict" in properties
    assert [each for each in properties if each.startswith("ReadWritePaths")] == [
        f"ReadWritePaths=/var/lib/volmig/{share.job} /run/volmig/{share.job}"
    ]


def test_it_says_how_far_it_is(share):
    figures = []
    share.asked._report = figures.append
    rehearse(share)
    size = share.old.stat().st_size
    assert figures[-1] == {"done": size, "total": size, "read": size, "written": 0}


def test_a_request_of_it_is_held_to_the_lists(desk, job):
    args = {"instances": INSTANCES, "share_source": SHARE, "backup_path": f"{INSTANCES}/.volmig/{job}/disk.old"}
    request = {"verb": "rehearse", "job": job, "step": "rehearse", "args": {**args, "recorded": {"sha256": "zz"}}}
    answer = desk.handle(json.dumps(request).encode())
    assert (answer["state"], answer["error"]["code"]) == ("refused", "bad-request")
    assert not desk.units.started
    request["args"]["recorded"] = {"inode": 4711, "sha256": "5e" * 32}
    assert desk.handle(json.dumps(request).encode())["state"] == "refused", "no such share is mounted here"
    assert desk.units.started[0][1] == VERBS["rehearse"].sandbox(args, job), "it ran as a unit, confined"
