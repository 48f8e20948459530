"""A backup that is made while volmig works is whole; one that was damaged, altered or made up is refused as a whole."""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import psycopg
import pyrage
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.utils import timezone

from tests import postgresql
from tests.trust.amounts import FULL, amount, figure
from tests.trust.processes import ROOT, Processes
from volmig import incarnation
from volmig.backup import archive, databases, make, restore
from volmig.record import heads
from volmig.record.models import Event

# Somebody who works all the time: events of the signed log, and heads of it in their file.
WORK = """
import sys, time
from volmig.record import heads
from volmig.record.models import Event
from volmig.models import Notice
number = 0
while True:
    for _ in range(5):
        number += 1
        Event.append("test.work", object=f"event {number}", data={"text": "x" * 200, "half": number / 2})
        Notice.objects.create(kind="halted", subject=f"notice {number}", text="y" * 500)
    heads.publish()
    print(number, flush=True)
"""
COUNTS = """
import json
from django.apps import apps
from django.db import connection
from volmig.record.models import Event
rows = {model._meta.db_table: model.objects.count() for model in apps.get_models(include_auto_created=True)}
last = list(Event.objects.order_by("seq").values_list("seq", "hash", "at").last())
try:
    Event.objects.filter(seq=1).delete()
    guarded = False
except Exception:
    guarded = True
print(json.dumps({"rows": rows, "last": [last[0], last[1], last[2].isoformat()], "guarded": guarded}))
"""


@pytest.fixture(scope="module")
def empty(tmp_path_factory, migrated):
    """A data directory with all keys, whose database has all tables and knows nothing but these."""
    one = Processes(shutil.copytree(migrated, tmp_path_factory.mktemp("empty") / "data"))
    one.environment.pop("VOLMIG_DB", None)
    one.run("from volmig import keys\nkeys.ensure(keys.mine())")
    return one.data


@pytest.fixture
def processes(tmp_path, empty):
    one = Processes(shutil.copytree(empty, tmp_path / "data"))
    one.environment.pop("VOLMIG_DB", None)
    yield one
    one.stop()


@pytest.fixture(scope="module")
def server():
    with postgresql.cluster() as address:
        yield address


def command(processes, *words, **more):
    """Status and output. A restore touches neither database nor data directory of its own: it needs no process."""
    if words[0] == "restore":
        output = io.StringIO()
        try:
            call_command(*map(str, words), stdout=output, stderr=output)
        except CommandError as error:
            return 1, f"{output.getvalue()}{error}"
        return 0, output.getvalue()
    done = subprocess.run(
        [sys.executable, "manage.py", *map(str, words)],
        cwd=ROOT,
        env={**processes.environment, **more},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def worked(processes, *words, **more):
    status, said = command(processes, *words, **more)
    assert status == 0, said
    return said


@contextlib.contextmanager
def at_work(processes, until=10):
    """Somebody works, and has done so for a while."""
    script = [sys.executable, "-c", f"import django\ndjango.setup()\n{WORK}"]
    environment = {**processes.environment, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(script, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        try:
            while int(writer.stdout.readline()) < until:
                pass
            yield writer
            assert writer.poll() is None
        finally:
            writer.kill()


def on_sqlite(processes, tmp_path, _):
    return [tmp_path / "restored"], {"VOLMIG_DATA": str(tmp_path / "restored")}


def on_postgresql(processes, tmp_path, server):
    with psycopg.connect(server, autocommit=True) as connection:
        for name in ("origin", "copy"):
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name}")
    origin, copy = (server.replace("/volmig?", f"/{name}?") for name in ("origin", "copy"))
    processes.environment["VOLMIG_DB"] = origin
    worked(processes, "migrate", "--verbosity", "0")
    return [tmp_path / "restored", copy], {"VOLMIG_DATA": str(tmp_path / "restored"), "VOLMIG_DB": copy}


def test_heads_are_those_of_the_copied_database_whenever_they_were_published(db, tmp_path, settings):
    settings.AUDIT_HEADS = tmp_path / "heads"
    for number in range(6):
        Event.append("test.work", object=f"event {number}")
        heads.publish()
    lines = settings.AUDIT_HEADS.read_bytes().splitlines(keepends=True)
    known = len(b"".join(lines[:2]))
    make.copy_heads(tmp_path / "copy", known, 4)  # heads 3 and 4 came while the database was read, with its event 4
    assert (tmp_path / "copy").read_bytes() == b"".join(lines[:4])
    settings.AUDIT_HEADS.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # one is just being written
    make.copy_heads(tmp_path / "copy", known, 4)
    assert (tmp_path / "copy").read_bytes() == b"".join(lines[:3])


@pytest.mark.django_db
@pytest.mark.parametrize("prepare", [on_sqlite, on_postgresql])
def test_a_backup_that_is_made_while_somebody_works_comes_back_whole_and_read_only(
    processes, tmp_path, prepare, request
):
    server = request.getfixturevalue("server") if prepare is on_postgresql else None
    targets, of_copy = prepare(processes, tmp_path, server)
    file = tmp_path / "backup.tar.gz"
    with at_work(processes):
        said = worked(processes, "backup", "--output", file)
        while_working = amount(5, 1)
        for number in range(while_working):
            worked(processes, "backup", "--output", tmp_path / f"{number}.tar.gz")
    assert "It is NOT encrypted" in said
    assert file.stat().st_mode & 0o777 == 0o600
    told = worked(processes, "restore", file, "--check")
    assert "It fits this version" in told
    assert not (tmp_path / "restored").exists()
    kept = restore_anew(processes, file, targets, of_copy)
    assert kept["guarded"], "the audit log's own guard against deletion did not come back"
    assert kept["rows"]["volmig_notice"] > 0
    for number in range(while_working):
        with restore.proved(tmp_path / f"{number}.tar.gz", []) as found:
            assert found.about["events"] > kept["last"][0]
    with restore.proved(file, []) as found:
        assert [found.about["events"], found.about["head"]] == kept["last"][:2]
        assert found.about["vendor"] == ("postgresql" if server else "sqlite")
    for key in ("secret_key", "factor_key", "audit_key"):
        assert (tmp_path / "restored" / key).read_bytes() == (processes.data / key).read_bytes()
    assert json.loads((tmp_path / "restored" / "read_only").read_text())["code"] == "restored"
    figure(
        f"backup of {'PostgreSQL' if server else 'SQLite'} while a writer runs: {1 + while_working} made, "
        f"{kept['last'][0]} events restored, audit chain and heads agree"
    )


def restore_anew(processes, file, targets, of_copy):
    """What the restored volmig holds, once its audit log was verified."""
    said = worked(processes, "restore", file, "--into", *targets)
    assert "It starts read-only" in said
    assert {path.stat().st_mode & 0o077 for path in [targets[0], *targets[0].rglob("*")]} == {0}
    copy = Processes(targets[0])
    copy.environment = {**processes.environment, **of_copy}
    assert "is intact" in worked(copy, "verify_audit")
    kept = json.loads(copy.run(COUNTS))
    status, said = command(processes, "restore", file, "--into", *targets)
    assert (status, "is not empty" in said) == (1, True), "a second restore wrote over the first"
    return kept


@pytest.mark.django_db
def test_a_database_that_is_not_empty_is_refused_and_the_directory_not_made(processes, tmp_path, server):
    on_postgresql(processes, tmp_path, server)
    worked(processes, "backup", "--output", tmp_path / "backup.tar.gz")
    used = processes.environment["VOLMIG_DB"]
    status, said = command(processes, "restore", tmp_path / "backup.tar.gz", "--into", tmp_path / "new", used)
    assert (status, "That database is not empty" in said) == (1, True), said
    status, said = command(processes, "restore", tmp_path / "backup.tar.gz", "--into", tmp_path / "new")
    assert (status, "name an empty database as well" in said) == (1, True), said
    status, said = command(
        processes, "restore", tmp_path / "backup.tar.gz", "--into", tmp_path / "new", "postgres:///x"
    )
    assert (status, "cannot be reached" in said) == (1, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar.gz", "data"]


def test_encrypted_backups_hold_nothing_readable_and_need_the_key(processes, tmp_path):
    key, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    for name, identity in (("key", key), ("other", other)):
        (tmp_path / name).write_text(f"# created today\n{identity}\n")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh"], check=True)
    public = (tmp_path / "ssh.pub").read_text()
    file = tmp_path / "backup.age"
    said = worked(processes, "backup", "--output", file, VOLMIG_BACKUP_RECIPIENTS=f"{key.to_public()},{public}")
    assert "NOT encrypted" not in said
    assert file.read_bytes().startswith(b"age-encryption.org/v1\n")
    for name in ("key", "ssh"):
        assert "fits this version" in worked(processes, "restore", file, "--check", "--identity", tmp_path / name)
    for words, told in (([], "It is encrypted"), (["--identity", tmp_path / "other"], "cannot be decrypted")):
        status, said = command(processes, "restore", file, "--into", tmp_path / "new", *words)
        assert (status, told in said) == (1, True), said
    cut = tmp_path / "cut"
    cut.write_bytes(file.read_bytes()[:-20])
    status, said = command(processes, "restore", cut, "--into", tmp_path / "new", "--identity", tmp_path / "key")
    assert (status, "is damaged" in said) == (1, True), said
    assert not (tmp_path / "new").exists()
    status, said = command(processes, "backup", "--output", tmp_path / "b", "--recipient", "age1nonsense")
    assert (status, "is not a recipient" in said, (tmp_path / "b").exists()) == (1, True, False)
    status, said = command(processes, "backup", "--output", tmp_path / "nowhere" / "b")
    assert (status, f"There is no directory {tmp_path / 'nowhere'}" in said) == (1, True)


def test_secrets_of_the_environment_and_other_backups_stay_out_of_it(processes, tmp_path):
    (processes.data / "old.tar.gz").write_text("an older backup")
    (processes.data / "keys").mkdir()
    (processes.data / "keys" / "cmp-01@2").write_text("a key of a later version")
    (processes.data / "link").symlink_to("/etc/passwd")
    file = tmp_path / "backup.tar.gz"
    set_so = {
        "VOLMIG_WEBHOOK_SECRET": "hush1", "VOLMIG_ADMIN_PASSWORD": "hush2",
        "VOLMIG_EMAIL_URL": "smtp://me:hush3@mail",
        "VOLMIG_NOTE_URL": "postgres:///x?password=hush4&sslmode=require", "VOLMIG_PUBLIC_URL": "https://volmig.example.org",
    }  # fmt: skip
    said = worked(processes, "backup", "--output", file, **set_so)
    assert "Not in it: link (no regular file)" in said
    with tarfile.open(file) as tar:
        names = tar.getnames()
        kept = json.loads(tar.extractfile("settings.json").read())
    assert "data/keys/cmp-01@2" in names
    assert not [name for name in names if "sqlite3-" in name or "old" in name or "link" in name or "static" in name]
    assert kept["VOLMIG_PUBLIC_URL"] == "https://volmig.example.org"
    assert kept["VOLMIG_NOTE_URL"] == "postgres:///x?password=(not in the backup)&sslmode=require"
    assert kept["VOLMIG_EMAIL_URL"] == "smtp://me:(not in the backup)@mail"
    assert "hush" not in json.dumps(kept)
    status, said = command(processes, "backup", "--output", file)
    assert (status, "exists already" in said) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar.gz", "data"]
    assert not list(processes.data.glob(".backup-*"))


# Archives that nobody should restore


ABOUT = {
    "made_at": timezone.now().isoformat(), "made_on": "here", "vendor": "sqlite",
    "migrations": {"jobs": ["0001_initial"]},
    "events": 3, "head": "abc", "jobs": {"done": 1}, "left_out": {}, "versions": {},
}  # fmt: skip


def small(directory, about=None):
    """A small archive of a database with one table."""
    stage = directory / "stage"
    (stage / "data").mkdir(parents=True)
    (stage / "data" / "secret_key").write_text("a secret")
    (stage / "audit_heads").write_text("")
    with contextlib.closing(sqlite3.connect(stage / "database.sqlite3")) as database, database:
        database.execute("CREATE TABLE one (two)")
    archive.write(stage, ABOUT | (about or {}), directory / "small.tar.gz", [])
    return directory / "small.tar.gz"


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def refused(file, said):
    assert said.startswith(f"{file} cannot be restored. ")
    assert said.endswith(".")


def restored(file, directory):
    """What a restore makes of it, without what it adds; None when it refuses, and has left nothing behind."""
    before = set(directory.iterdir())
    try:
        restore.into(file, [], directory / "new", None)
    except restore.RestoreError as error:
        assert set(directory.iterdir()) == before
        return refused(file, str(error))
    found = contents(directory / "new")
    del found["read_only"]
    for path in sorted((directory / "new").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (directory / "new").rmdir()
    return found


def test_an_archive_that_is_cut_off_or_altered_anywhere_is_refused_or_comes_back_the_same(tmp_path):
    file = small(tmp_path)
    whole, right = file.read_bytes(), restored(file, tmp_path)
    assert right is not None
    chance = random.Random(5)
    lengths = range(len(whole)) if FULL else sorted(chance.sample(range(len(whole)), 150))
    for length in lengths:
        file.write_bytes(whole[:length])
        assert restored(file, tmp_path) is None, f"cut off after {length} of {len(whole)} bytes"
    same = 0
    altered = amount(5000, 300)
    for _ in range(altered):
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        found = restored(file, tmp_path)
        assert found in (None, right), f"bit {bit} of byte {at} came back as something else"
        same += found is not None
    assert same < altered / 20  # gzip's own notes, such as the time
    figure(
        f"{len(lengths)} backups cut off: {len(lengths)} refused; {altered} with one bit altered: "
        f"{altered - same} refused, {same} restored with every byte right; anything written on refusal: 0"
    )


def repacked(file, change):
    """The archive with its members changed by a function of (list of (TarInfo, bytes))."""
    with tarfile.open(file) as tar:
        entries = [(entry, tar.extractfile(entry).read()) for entry in tar]
    with gzip.open(file, "wb") as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for entry, content in change(entries):
            entry.size = len(content) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(content))


def named(name, content=b"x", **fields):
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, content


def edited(entries, old, new):
    (entry, text), *rest = entries
    assert old in text
    return [(entry, text.replace(old, new)), *rest]


def manifest_with(entries, **row):
    told = json.loads(entries[0][1])
    told["members"].append({"name": "data/more", "size": 1, "sha256": "0" * 64} | row)
    return [(entries[0][0], json.dumps(told).encode()), *entries[1:]]


def renamed(entries, name):
    return [*manifest_with(entries, name=name), named(name)]


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}
MADE_UP = {
    "a file that the manifest does not name": lambda all_: [*all_, named("data/more")],
    "one twice": lambda all_: [*all_, all_[-1]],
    "one less": lambda all_: all_[:-1],
    "no manifest": lambda all_: all_[1:],
    "the manifest last": lambda all_: [*all_[1:], all_[0]],
    "another content": lambda all_: [*all_[:-1], (all_[-1][0], b"another")],
    "another key of the same size": lambda all_: [
        (entry, content[::-1] if entry.name == "data/secret_key" else content) for entry, content in all_
    ],
    "a way up": lambda all_: renamed(all_, "data/../../up"),
    "a way from the root": lambda all_: renamed(all_, "/tmp/volmig-escaped"),
    "a hidden file": lambda all_: renamed(all_, "data/.ssh"),
    "a second database": lambda all_: renamed(all_, "database.pgdump"),
    "a file of another kind": lambda all_: renamed(all_, "up"),
    "a symbolic link": lambda all_: [*manifest_with(all_, size=0), named("data/more", b"", **LINK)],
    "a hard link": lambda all_: [
        *manifest_with(all_, size=0), named("data/more", b"", type=tarfile.LNKTYPE, linkname="data/secret_key")
    ],
    "a device": lambda all_: [*manifest_with(all_, size=0), named("data/more", b"", type=tarfile.CHRTYPE, devmajor=1)],
    "a pipe": lambda all_: [*manifest_with(all_, size=0), named("data/more", b"", type=tarfile.FIFOTYPE)],
    "a folder": lambda all_: [*manifest_with(all_, size=0), named("data/more", b"", type=tarfile.DIRTYPE)],
    "a manifest of something else": lambda all_: [(all_[0][0], b"[1, 2]"), *all_[1:]],
    "a manifest that is no text": lambda all_: [(all_[0][0], b"\xff\xfe"), *all_[1:]],
    "another format": lambda all_: edited(all_, b'"volmig_backup": 1', b'"volmig_backup": 2'),
    "a manifest without a time": lambda all_: edited(all_, b'"made_at"', b'"mode_at"'),
    "migrations that are numbers": lambda all_: edited(all_, b'"0001_initial"', b"1"),
    "a different kind of database": lambda all_: edited(all_, b'"sqlite"', b'"postgresql"'),
}  # fmt: skip


@pytest.mark.parametrize("how", MADE_UP)
def test_an_archive_that_somebody_made_up_is_refused_and_nothing_is_written(tmp_path, how):
    file = small(tmp_path)
    repacked(file, list)
    assert restored(file, tmp_path) is not None  # packing anew is no reason
    repacked(file, MADE_UP[how])
    assert restored(file, tmp_path) is None
    assert not Path("/tmp/volmig-escaped").exists()
    assert not (tmp_path.parent / "up").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", gzip.compress(b"hello"), os.urandom(4096)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert restored(file, tmp_path) is None


def test_what_was_restored_starts_read_only(db, tmp_path, settings):
    restore.into(small(tmp_path), [], tmp_path / "new", None)
    assert incarnation.read_only() is None
    settings.DATA = tmp_path / "new"
    assert incarnation.read_only().code == "restored"


def test_a_damaged_database_in_a_right_archive_is_refused(tmp_path):
    stage = tmp_path / "stage"
    stage.mkdir()
    (stage / "database.sqlite3").write_bytes(b"SQLite format 3\0" + os.urandom(8192))
    archive.write(stage, ABOUT, tmp_path / "file", [])
    assert restored(tmp_path / "file", tmp_path) is None


def test_a_backup_of_a_later_version_is_refused(tmp_path):
    file = small(tmp_path, {"migrations": {"jobs": ["0001_initial", "9999_later"]}})
    with pytest.raises(restore.RestoreError, match="A later version of volmig made this backup"):
        restore.into(file, [], tmp_path / "new", None)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["a file", "a link", "something in it"])
def test_a_directory_that_is_in_use_is_refused(tmp_path, kind):
    file, target = small(tmp_path), tmp_path / "new"
    if kind == "a file":
        target.write_text("mine")
    elif kind == "a link":
        target.symlink_to(tmp_path)
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(restore.RestoreError):
        restore.into(file, [], target, None)
    assert contents(tmp_path) == before


def test_the_data_directory_of_the_command_itself_is_no_target(tmp_path, settings):
    file = small(tmp_path)
    status, said = command(None, "restore", file, "--into", settings.DATA)
    assert (status, "Run it with another VOLMIG_DATA" in said) == (1, True)


def test_keys_that_change_while_the_database_is_read_are_read_again(tmp_path, settings, monkeypatch):
    settings.DATA, settings.AUDIT_HEADS = tmp_path / "data", tmp_path / "heads"
    settings.DATA.mkdir()
    key, stage = settings.DATA / "secret_key", tmp_path / "stage"
    stage.mkdir()
    key.write_text("0")
    changes = iter(["1", None, *"23456"])

    def dump(directory):
        if (new := next(changes)) is not None:
            key.write_text(new)
        return "sqlite", {"events": 0}

    monkeypatch.setattr(databases, "dump", dump)
    make.collect(stage, {})
    assert (stage / "data" / "secret_key").read_text() == "1"
    with pytest.raises(make.UnsteadyError):
        make.collect(stage, {})


def test_a_backup_is_an_event_of_the_audit_log(db, tmp_path):
    if connection.vendor == "postgresql":
        pytest.skip("within the transaction of a test there is no snapshot of its own")
    call_command("backup", output=tmp_path / "one", verbosity=0)
    event = Event.objects.get(action="backup.make")
    assert event.data["sha256"] == archive.digest(tmp_path / "one")
