"""The file of published heads, damaged: verification names the damage and goes on, and archives can be downloaded."""

import base64
import errno
import json
import os
import random

import pytest
from django.core.management import CommandError, call_command

from jobs.web.evidence import archive
from tests.pages import scenes
from tests.trust.amounts import amount, figure
from volmig import data_dir, verify_evidence
from volmig.accounts.models import Token
from volmig.record import heads, signing
from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.chain import damage, verify
from volmig.record.heads import covering, newest, publish, read_heads
from volmig.record.models import ChainHead, Event

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unmeasured")]


@pytest.fixture(autouse=True)
def _own_key(monkeypatch, tmp_path):
    monkeypatch.setenv("VOLMIG_DATA", str(tmp_path / "data"))


@pytest.fixture
def file(settings, tmp_path):
    settings.AUDIT_HEADS = tmp_path / "heads"
    return settings.AUDIT_HEADS


@pytest.fixture
def eight(file):
    """A file of two heads as earlier versions wrote them, and six that are signed."""
    for number in (1, 2):
        event = Event.append("host.seen", data={"n": number})
        before = {"seq": event.seq, "hash": event.hash, "at": f"2026-11-0{number}T00:00:00+00:00"}
        with file.open("a") as there:
            there.write(json.dumps(before) + "\n")
    for number in range(6):
        Event.append("host.seen", data={"n": number})
        Event.append("host.seen", object="cmp-lvm-07")
        publish()
    assert verify(read_heads(file)) == []
    assert len(file.read_bytes().splitlines()) == 8
    return file.read_bytes()


def line_at(content, offset):
    return content[:offset].count(b"\n") + 1


def test_the_heads_of_before_verify_together_with_signed_ones(eight, file):
    read = read_heads(file)
    assert [bool(head.root) for head in read.heads] == [False] * 2 + [True] * 6
    assert [(head.first, head.seq) for head in read.heads[2:]] == [(1, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14)]


def test_truncated_at_every_byte_the_damage_is_named_and_everything_before_it_is_used(eight, file):
    chance = random.Random(5)
    places = range(len(eight) - 1) if amount(1, 0) else sorted(chance.sample(range(len(eight) - 1), 250))
    named = 0
    for cut in places:
        file.write_bytes(eight[:cut])
        read = read_heads(file)
        whole = eight[: cut + 1].count(b"\n") if eight[cut : cut + 1] == b"\n" else eight[:cut].count(b"\n")
        kept = min(whole, 8)
        torn = cut and eight[cut - 1 : cut] != b"\n"
        if torn and len(read.heads) != kept:  # a head of before without its line feed may have been cut anywhere
            assert kept <= 2
            kept -= 1
        assert len(read.heads) == kept, cut
        faults = verify(read)
        if torn and kept == len(read.heads) and read.faults:
            begin = eight.rfind(b"\n", 0, cut) + 1
            assert faults[0].startswith(
                f"Line {line_at(eight, cut - 1)} of the heads file (byte {begin}) is cut off"
            ), cut
        assert "a head for event 14 was published: lines at its end are missing." in faults[-1], cut
        named += 1
    figure(f"heads file truncated at {named} of {len(eight)} bytes: the damage named each time, verification went on")


def test_whatever_was_cut_off_the_next_head_stands_on_a_line_of_its_own_and_covers_what_is_missing(eight, file):
    chance = random.Random(6)
    places = range(len(eight)) if amount(1, 0) else sorted({0, *chance.sample(range(len(eight)), 60)})
    for cut in places:
        file.write_bytes(eight[:cut])
        publish()
        read = read_heads(file)
        assert verify(read) == [], cut
        assert read.heads[-1].seq == 14
        assert {seq for head in read.heads if head.root for seq in range(head.first, head.seq + 1)} == set(range(1, 15))
        torn = cut and eight[cut - 1 : cut] != b"\n"
        assert len(read.notes) == (1 if torn and eight[cut : cut + 1] != b"\n" else len(read.notes)), cut
        assert all("A later head was signed after this and covers its events." in note for note in read.notes)
    figure(f"heads file truncated at {len(places)} bytes and published to again: whole each time")


def test_each_machine_publishes_to_a_file_of_its_own_and_only_what_was_cut_off_is_missing(settings, tmp_path):
    files = [tmp_path / name for name in ("one", "other")]
    for number, file in enumerate((*files, files[0], files[1], files[0])):
        Event.append("host.seen", data={"n": number})
        settings.AUDIT_HEADS = file
        publish()
    assert [verify(read_heads(file)) for file in files] == [[], []]
    for file, ends, was in zip(files, (3, 2), (5, 4), strict=True):
        file.write_bytes(b"".join(file.read_bytes().splitlines(True)[:-1]))
        assert verify(read_heads(file)) == [
            f"The heads file ends at event {ends}, but a head for event {was} was published: lines at its end are "
            "missing."
        ]
    files[1].write_bytes(b"")
    (fault,) = verify(read_heads(files[1]))
    assert fault.startswith("The heads file has no readable head, but a head for event 5 was published")


def test_a_flipped_bit_of_a_signed_head_is_named_and_the_other_heads_are_used(eight, file):
    signed = eight.index(b'{"at"')
    chance = random.Random(7)
    places = range(signed, len(eight)) if amount(1, 0) else sorted(chance.sample(range(signed, len(eight)), 250))
    for at in places:
        file.write_bytes(eight[:at] + bytes([eight[at] ^ (1 << chance.randrange(8))]) + eight[at + 1 :])
        read = read_heads(file)
        # With its line feed a head runs into the next; a line feed in it makes two pieces of it.
        assert len(read.heads) >= (6 if eight[at : at + 1] == b"\n" else 7)
        assert any(fault.startswith(f"Line {line_at(eight, at)} of the heads file (byte ") for fault in verify(read)), (
            at
        )
    figure(f"{len(places)} bit flips in signed heads: named with line and byte each time")


def test_damage_of_the_heads_does_not_hide_what_was_changed_in_the_audit_log(eight, file):
    drop_triggers()
    Event.objects.filter(seq=12).update(object="nothing happened")
    make_triggers()
    file.write_bytes(eight[: eight.index(b'"seq":6') + 3] + eight[eight.index(b'"seq":8') :])
    with pytest.raises(CommandError) as error:
        call_command("verify_audit")
    assert "Event 12 was changed after it was written." in str(error.value)
    assert "Line 4 of the heads file" in str(error.value)
    assert "The audit log is intact" not in str(error.value)


def test_damage_of_the_heads_alone_does_not_say_that_the_audit_log_was_changed(eight, file):
    file.write_bytes(eight[:-100])
    with pytest.raises(CommandError) as error:
        call_command("verify_audit")
    assert "Line 8 of the heads file" in str(error.value)
    assert "The audit log is intact: 14 events" in str(error.value)


def test_the_first_fault_of_the_old_format_no_longer_ends_everything(eight, file):
    """A short write left half a line, and the next head was appended to it."""
    first, rest = eight.split(b"\n", 1)
    file.write_bytes(first[:30] + rest)
    read = read_heads(file)
    assert len(read.heads) == 6
    assert read.faults[0] == "Line 1 of the heads file (byte 0) is cut off or damaged: it is not JSON."


def test_lines_that_were_taken_out_added_or_changed_places_are_found(eight, file):
    lines = eight.splitlines(True)
    for changed in (
        lines[:4] + lines[5:],
        [*lines[:4], lines[5], lines[4], *lines[6:]],
        [*lines[:4], lines[3], *lines[4:]],
        lines[2:],
    ):
        file.write_bytes(b"".join(changed))
        assert any("does not follow the line before it" in fault for fault in damage(read_heads(file)))


def test_a_head_that_somebody_else_signed_is_found(eight, file):
    head = read_heads(file).heads[-1]
    stranger = signing.Ed25519PrivateKey.generate()
    value = {"seq": 14, "first": 13, "hash": "0" * 64, "root": "0" * 64, "prev": head.prev, "at": head.at}
    lines = eight.splitlines(True)
    for key in (head.key, verify_evidence.key_id(stranger.public_key().public_bytes_raw())):
        line = verify_evidence.head_line(value, key, stranger.sign)
        file.write_bytes(b"".join([*lines[:-1], line, b"\n"]))
        (fault, _) = damage(read_heads(file))
        assert f"signature of key {key}" in fault or f"signed with key {key}, which is not one of" in fault


# Short writes


class Disk:
    """Takes so many bytes and is full from then on, or takes a few at a time."""

    def __init__(self, room, at_once=1 << 20):
        self.room, self.at_once, self.real = room, at_once, os.write

    def write(self, descriptor, content):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(descriptor, bytes(content)[: min(self.room, self.at_once)])
        self.room -= written
        return written


def test_a_head_is_written_whole_or_taken_back_wherever_the_disk_is_full(eight, file, monkeypatch):
    Event.append("host.seen")
    for room in range(0, 400, amount(1, 23)):
        with monkeypatch.context() as full:
            full.setattr(os, "write", Disk(room).write)
            with pytest.raises(OSError, match="No space left"):
                publish()
        assert file.read_bytes() == eight, room
    publish()
    assert verify(read_heads(file)) == []


def test_where_nothing_can_be_taken_back_the_next_head_begins_with_a_line_feed(eight, file, monkeypatch):
    """An append-only file (chattr +a) cannot be truncated."""
    Event.append("host.seen")
    monkeypatch.setattr(os, "ftruncate", refuse)
    for room in (0, 1, 10, 200, 399):
        with monkeypatch.context() as full:
            full.setattr(os, "write", Disk(room).write)
            with pytest.raises(OSError, match="No space left"):
                publish()
    assert file.read_bytes().startswith(eight)
    publish()
    read = read_heads(file)
    assert verify(read) == []
    assert len(read.heads) == 9
    assert len(read.notes) == 4, "what was written in part is named"


def refuse(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_the_whole_head(eight, file, monkeypatch):
    Event.append("host.seen")
    monkeypatch.setattr(os, "write", Disk(1 << 20, at_once=7).write)
    publish()
    assert verify(read_heads(file)) == []


def test_files_that_are_replaced_are_whole_or_as_before_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "key"
    data_dir.replace(path, b"a" * 100)
    for room in range(0, 100, 9):
        with monkeypatch.context() as full:
            full.setattr(os, "write", Disk(room).write)
            with pytest.raises(OSError, match="No space left"):
                data_dir.replace(path, b"b" * 100)
            with pytest.raises(OSError, match="No space left"):
                data_dir.write_once(tmp_path / "other", b"c" * 100)
        assert path.read_bytes() == b"a" * 100
        assert sorted(each.name for each in tmp_path.iterdir() if each.is_file()) == ["key"]


def test_a_file_that_is_replaced_stays_readable_for_its_group(tmp_path):
    path = tmp_path / "key"
    data_dir.replace(path, b"first")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    os.chown(path, -1, 12)
    data_dir.replace(path, b"second")
    assert (path.stat().st_mode & 0o777, path.stat().st_gid, path.read_bytes()) == (0o640, 12, b"second")


# Archives


@pytest.fixture
def download(person, client, eight):
    """Downloads a migration's archive from its page and by the API; both are the same and well formed."""
    by = person("vera", "viewer")
    job = scenes.job(person("dana", "operator"), "done")
    for number in range(3):
        Event.append("step.done", job=job.pk, data={"n": number})
    publish()
    client.force_login(by)
    letters = Token.objects.make(by, "all", [], 1)[1]

    def get():
        page = client.get(f"/migrations/{job.pk}/evidence.zip")
        program = client.get(f"/api/v1/jobs/{job.pk}/evidence", headers={"Authorization": f"Bearer {letters}"})
        assert (page.status_code, program.status_code) == (200, 200)
        assert page.content == program.content
        members, fault = verify_evidence.unpack(page.content)
        assert not fault
        return {name.partition("/")[2]: content for name, content in members}, page.content

    return get


def checked(content):
    found = verify_evidence.Checked(signing.known_keys())
    files, number = found.archive(content)
    found.events(files, number)
    return found


def test_archives_can_be_downloaded_wherever_the_heads_file_is_cut_off(download, file):
    whole = file.read_bytes()
    chance = random.Random(8)
    places = chance.sample(range(len(whole)), amount(300, 12))
    for cut in places:
        file.write_bytes(whole[:cut])
        files, content = download()
        found = checked(content)
        assert found.faults == [], cut
        assert json.loads(files["chain.json"])["heads_error"] == ""
    figure(f"archives downloaded from page and API with the heads file cut off at {len(places)} places: all of them")


def test_archives_can_be_downloaded_when_the_heads_file_cannot_be_read_and_say_so(download, file):
    file.unlink()
    file.mkdir()
    files, content = download()
    error = json.loads(files["chain.json"])["heads_error"]
    assert error.startswith("heads could not be read: ")
    assert error in " ".join(checked(content).faults)
    with pytest.raises(CommandError, match="The heads file cannot be read"):
        call_command("verify_audit")


def test_archives_can_be_downloaded_when_the_key_cannot_be_read_and_say_that_they_are_not_signed(download):
    (data_dir.directory() / data_dir.EVIDENCE_KEY).write_text("{")
    files, _ = download()
    assert files["manifest.sig"].startswith(b"This archive could not be signed: the file evidence_key")
    with pytest.raises(CommandError, match="The signatures of the heads were not checked: the file evidence_key"):
        call_command("verify_audit")


# Finding heads without reading all of them


def test_the_head_of_an_event_is_found_in_a_long_file_by_reading_a_little_of_it(file, monkeypatch):
    """As many heads as a busy year has are made of one key quickly; only their places matter here."""
    last = Event.append("host.seen")
    key, previous, count = signing.current(), "", amount(100_000, 4_000)
    with file.open("wb") as there:
        for number in range(1, count + 1):
            value = {"seq": number, "first": number, "hash": last.hash, "root": "0" * 64, "prev": previous}
            line = verify_evidence.head_line({**value, "at": "2026-11-30T00:00:00+00:00"}, key.id, lambda _: bytes(64))
            there.write(line + b"\n")
    monkeypatch.setattr(heads, "known", lambda head: True)
    read = []
    real = verify_evidence.parse_head
    monkeypatch.setattr(heads, "parse_head", lambda line: read.append(1) or real(line))
    for number in (1, 2, count // 3, count - 1, count):
        read.clear()
        assert covering(file, number).seq == number
        assert len(read) < 500
    read.clear()
    assert covering(file, count + 1) is None
    assert newest(file).seq == count
    assert len(read) < 5
    figure(f"a head among {count}: found by reading fewer than 500 lines")


def test_after_an_older_database_was_restored_heads_go_on_and_the_break_is_named(eight, file, caplog):
    drop_triggers()
    Event.objects.filter(seq__gt=8).delete()
    ChainHead.objects.update(seq=8, hash=Event.objects.get(seq=8).hash)
    make_triggers()
    Event.append("other", job=7)
    publish()
    assert "The audit log ends at event 9, but event 14 was published before." in caplog.text
    faults = verify(read_heads(file))
    assert any("the audit log was cut off, or an older database was restored" in fault for fault in faults)
    assert covering(file, 9).first == 9
    assert covering(file, 9).hash == Event.objects.get(seq=9).hash
    count = len(file.read_bytes().splitlines())
    publish()
    assert len(file.read_bytes().splitlines()) == count


def test_heads_are_published_at_most_as_often_as_configured(file, settings):
    settings.AUDIT_HEADS_SECONDS = 3600
    for _ in range(3):
        Event.append("host.seen")
        heads.publish_due()
    assert len(file.read_bytes().splitlines()) == 1
    settings.AUDIT_HEADS_SECONDS = 0
    heads.publish_due()
    heads.publish_due()
    assert len(file.read_bytes().splitlines()) == 2


def test_two_publishers_at_once_publish_each_event_once(file):
    Event.append("host.seen")
    with heads.appending(file) as first:
        with pytest.raises(BlockingIOError):
            heads.fcntl.flock(os.open(file, os.O_RDWR), heads.fcntl.LOCK_EX | heads.fcntl.LOCK_NB)
        assert first.last() is None


def test_the_archive_of_a_migration_with_many_events_uses_few_heads(file, person):
    job = scenes.job(person("dana", "operator"), "done")
    for number in range(60):
        Event.append("step.done", job=job.pk, data={"n": number})
    publish()
    members, _ = verify_evidence.unpack(archive(job))
    contents = {name.partition("/")[2]: content for name, content in members}
    assert len(contents["heads.jsonl"].splitlines()) == 1
    assert len(base64.b64encode(contents["heads.jsonl"])) < 1000
