"""The keys of several machines: made once, compared by every other machine, replaced only on purpose."""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from types import SimpleNamespace

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from volmig import data_dir, encryption, environment, keys
from volmig.backup import make
from volmig.management.commands import up
from volmig.models import Machine, RegisteredKey
from volmig.record import key_file, signing
from volmig.record.chain import verify
from volmig.record.models import Event

pytestmark = pytest.mark.django_db


class Site:
    """Several data directories of one database, one of which this process has at a time."""

    def __init__(self, root, settings, monkeypatch):
        self.root, self.settings, self.monkeypatch = root, settings, monkeypatch

    def on(self, name, part=""):
        """This process is one that has just been started on this machine."""
        place = self.root / name
        self.monkeypatch.setenv("VOLMIG_DATA", str(place))
        self.monkeypatch.setenv("VOLMIG_PART", part)
        self.monkeypatch.setattr(socket, "gethostname", lambda: name)
        data_dir.provisional.clear()
        keys.confirmed.clear()
        self.settings.DATA = data_dir.directory()
        self.settings.AUDIT_HEADS = place / "audit_heads"
        self.settings.SECRET_KEY = data_dir.secret_or_provisional(
            "worker_key" if data_dir.kind() == "worker" else "secret_key"
        )
        self.settings.AUDIT_KEY = data_dir.secret_or_provisional("audit_key")
        if data_dir.may_read("factor_key"):
            self.settings.FACTOR_KEY = data_dir.secret_or_provisional("factor_key")
        return place

    def start(self, name, part=""):
        place = self.on(name, part)
        keys.ensure(keys.mine())
        return place

    def refused(self, name, part=""):
        """Why this machine does not start; nothing must have been made there."""
        before = files(self.on(name, part))
        with pytest.raises(keys.KeysDiffer) as error:
            keys.ensure(keys.mine())
        assert files(self.root / name) == before
        return str(error.value)


def files(place):
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


@pytest.fixture
def site(tmp_path, settings, monkeypatch):
    yield Site(tmp_path, settings, monkeypatch)
    data_dir.provisional.clear()
    keys.confirmed.clear()


def test_the_first_start_makes_every_key_and_registers_it(site):
    place = site.start("a")
    assert set(files(place)) == set(data_dir.KEYS)
    assert set(RegisteredKey.objects.values_list("name", flat=True)) == set(data_dir.KEYS)
    assert (place / "audit_key").read_text() == site.settings.AUDIT_KEY, "the settings were read before"
    assert keys.mismatches() == []
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in place.iterdir())


def test_reading_the_settings_makes_no_key(site):
    assert files(site.on("a")) == {}


def test_what_is_registered_says_nothing_of_a_key(site):
    place = site.start("a")
    rows = RegisteredKey.objects.all()
    kept = json.dumps([[row.name, row.fingerprint, row.path] for row in rows])
    for name, content in files(place).items():
        assert content.decode().strip() not in kept, name
    assert len({row.fingerprint for row in rows}) == len(data_dir.KEYS)


def test_a_machine_without_keys_is_refused_with_one_sentence_that_says_what_to_copy(site):
    first = site.start("a")
    said = site.refused("b")
    assert said.count(". ") == 0
    assert said.startswith("Machine b has no secret_key")
    for name in data_dir.KEYS:
        assert name in said.split(" (those that machine a registered")[0]
        assert str(first / name) in said
        assert str(site.root / "b" / name) in said


def test_a_key_of_which_a_unit_has_a_copy_is_named_where_it_is_kept(site, monkeypatch):
    """The copy is gone when the unit ends, and nobody can write there."""
    monkeypatch.setenv("VOLMIG_KEYS_KEPT", "/etc/volmig/keys")
    for unit in ("a", "b"):
        copies = site.root / f"credentials-{unit}"
        copies.mkdir()
        monkeypatch.setenv("VOLMIG_KEYS_WORKER", str(copies))
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(copies))
        if unit == "a":
            site.start(unit, "workers")
    said = site.refused("b", "workers")
    assert "copy /etc/volmig/keys/worker_key, /etc/volmig/keys/ssh_key of a to /etc/volmig/keys/worker_key, " in said


def test_a_directory_that_everybody_may_enter_is_no_groups_and_its_keys_are_for_their_owner_alone(site):
    """One that was made with mkdir: its group may be the one of all people of this machine."""
    (site.root / "a").mkdir(mode=0o755)
    (site.root / "a").chmod(0o755)
    place = site.start("a")
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}


def test_keys_of_a_database_that_was_not_prepared_are_a_sentence(site, monkeypatch):
    site.on("a")
    monkeypatch.setattr(keys, "are_kept", lambda: False)
    with pytest.raises(CommandError, match=r"manage\.py prepare"):
        call_command("keys")


def test_what_the_database_says_of_other_machines_moves_no_cursor(site, capsys):
    site.start("a")
    RegisteredKey.objects.update(host="a\x1b[2J", path="/x\r\n$(reboot)")
    said = site.refused("b")
    assert said.isprintable()
    Machine.objects.create(place="other", host="c\x1b[2J", settings={"APPROVERS": "another"})
    assert all(line.isprintable() for line in keys.differing_settings())
    with pytest.raises(CommandError):
        call_command("keys")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("name", data_dir.KEYS)
def test_a_machine_that_lacks_or_differs_in_one_key_is_refused_and_names_it_alone(site, name):
    first = site.start("a")
    second = shutil.copytree(first, site.root / "b")
    (second / name).unlink()
    said = site.refused("b")
    assert said.startswith(f"Machine b has no {name} (the one that machine a registered on ")
    assert f"copy {first / name} of a to {second / name} of b" in said
    assert not any(other in said.split(" (")[0].split() for other in data_dir.KEYS if other != name)
    site.on("b")
    data_dir.make(name, key_file.first() if name == "evidence_key" else b"")
    assert site.refused("b").startswith(f"Machine b has another {name} ")
    shutil.copy(first / name, second / name)
    site.start("b")


def test_web_and_workers_each_make_the_keys_of_their_kind_and_share_the_others(site):
    web = site.start("web1", "web")
    assert set(files(web)) == {"secret_key", "factor_key", "seal_key", "audit_key", "evidence_key", "sealing_keys"}
    said = site.refused("wrk1", "workers")
    assert said.startswith("Machine wrk1 has no audit_key, evidence_key, sealing_keys (those that machine web1 ")
    assert "secret_key" not in said
    for name in ("audit_key", "evidence_key", "sealing_keys"):
        shutil.copy(web / name, site.root / "wrk1" / name)
    workers = site.start("wrk1", "workers")
    assert {"ssh_key", "worker_key"} < set(files(workers))
    assert not {"secret_key", "factor_key", "seal_key"} & set(files(workers))
    said = site.refused("wrk2", "watcher")
    assert "machine web1 registered" in said
    assert "machine wrk1 registered" in said
    assert str(workers / "ssh_key") in said


def test_a_command_on_a_machine_of_one_kind_does_not_ask_for_the_keys_of_the_other(site):
    site.start("web1", "web")
    for name in ("audit_key", "evidence_key", "sealing_keys"):
        (site.root / "wrk1").mkdir(exist_ok=True)
        shutil.copy(site.root / "web1" / name, site.root / "wrk1" / name)
    site.start("wrk1", "workers")
    for name in ("web1", "wrk1"):
        site.on(name)
        assert keys.mismatches() == [], name
    site.on("web1")
    assert any("ssh_key" in each for each in keys.mismatches(keys.mine())), "but up all does"


def test_a_command_says_which_parts_cannot_run_for_want_of_their_keys(site, capsys):
    """A directory of keys that was forgotten on a new machine looks like one of a machine of the other kind."""
    first = site.start("a")
    second = site.on("b")
    for name in ("audit_key", "evidence_key", "sealing_keys"):
        shutil.copy(first / name, second / name)
    site.on("b")
    with pytest.raises(CommandError, match="No part of volmig can run on this machine"):
        call_command("keys")
    shutil.copy(first / "worker_key", second / "worker_key")
    with pytest.raises(CommandError, match="has no ssh_key"):
        call_command("keys")
    shutil.copy(first / "ssh_key", second / "ssh_key")
    capsys.readouterr()
    call_command("keys")
    said = capsys.readouterr().out
    assert "Not here, or not readable: secret_key, factor_key, seal_key. Web processes cannot run here." in said
    assert "Workers and the watcher cannot run" not in said
    site.on("a")
    call_command("keys")
    assert "cannot run" not in capsys.readouterr().out


def test_an_installation_of_an_earlier_version_registers_its_keys_unasked(site):
    place = site.start("a")
    Event.append("x")
    RegisteredKey.objects.all().delete()
    before = files(place)
    site.start("a")
    assert files(place) == before
    assert RegisteredKey.objects.count() == len(data_dir.KEYS)


def test_a_key_that_a_later_version_brings_is_made_at_its_first_start(site):
    place = site.start("a")
    Event.append("x")
    RegisteredKey.objects.all().delete()
    (place / "evidence_key").unlink()
    site.start("a")
    assert (place / "evidence_key").exists()


def test_a_foreign_directory_makes_no_keys_for_a_database_with_an_audit_log(site):
    site.start("a")
    Event.append("x")
    RegisteredKey.objects.all().delete()
    assert "has no audit_key" in site.refused("b")
    (site.root / "b" / "audit_key").write_text("x" * 64)
    assert "has another audit_key" in site.refused("b")
    assert not RegisteredKey.objects.exists()
    site.start("a")


def test_no_event_is_signed_with_another_key(site):
    site.start("a")
    Event.append("x")
    site.on("b")
    with pytest.raises(keys.KeysDiffer, match="Machine b has no audit_key"):
        Event.append("y")
    (site.root / "b" / "audit_key").write_text("y" * 64)
    site.on("b")
    with pytest.raises(keys.KeysDiffer, match="Machine b has another audit_key"):
        Event.append("y")
    site.on("a")
    assert verify() == []


def test_a_command_before_the_first_start_keeps_the_key_with_which_it_signs(site):
    place = site.on("a")
    Event.append("x")
    assert (place / "audit_key").read_text() == site.settings.AUDIT_KEY
    site.start("a")
    assert verify() == []


def test_a_lost_key_of_the_only_machine_is_not_replaced_by_a_new_one(site):
    place = site.start("a")
    (place / "secret_key").unlink()
    said = site.refused("a")
    assert f"put {place / 'secret_key'} back from a backup" in said


def test_a_machine_that_registers_at_the_same_moment_wins_and_the_other_keeps_no_key(site, monkeypatch):
    site.start("a", "web")
    row = RegisteredKey.objects.get(name="seal_key")
    row.delete()
    place = shutil.copytree(site.root / "a", site.root / "b")
    (place / "seal_key").unlink()
    site.on("b", "web")
    make = data_dir.make

    def slower(name, content=b""):
        row.pk = None
        row.save()
        return make(name, content)

    monkeypatch.setattr(data_dir, "make", slower)
    with pytest.raises(keys.KeysDiffer, match="has no seal_key"):
        keys.ensure(keys.mine())
    assert not (place / "seal_key").exists()


# Rotation


def test_a_rotated_evidence_key_is_registered_and_machines_with_the_one_before_sign_nothing(site):
    first = site.start("a")
    second = shutil.copytree(first, site.root / "b")
    call_command("rotate_evidence_key")
    site.on("b")
    assert keys.mismatches()[0].startswith("Machine b has another evidence_key")
    with pytest.raises(ValueError, match=r"copy .*evidence_key of a"):
        signing.current()
    shutil.copy(first / "evidence_key", second / "evidence_key")
    assert signing.current().id == signing.published()["keys"][-1]["id"]
    assert keys.mismatches() == []


def test_an_older_database_takes_the_rotated_keys_as_its_own(site):
    site.start("a")
    before = {row.name: row.fingerprint for row in RegisteredKey.objects.all()}
    call_command("rotate_evidence_key")
    call_command("rotate_secrets")
    for name in ("evidence_key", "sealing_keys"):
        RegisteredKey.objects.filter(name=name).update(fingerprint=before[name])
    assert keys.mismatches() == [], "their files have the keys of before, too"
    site.start("a")
    after = {row.name: row.fingerprint for row in RegisteredKey.objects.all()}
    assert {name for name in before if before[name] != after[name]} == {"evidence_key", "sealing_keys"}


def test_rotated_sealing_keys_are_registered_and_a_machine_with_older_ones_says_what_to_copy(site):
    first = site.start("a")
    second = shutil.copytree(first, site.root / "b")
    call_command("rotate_secrets")
    secret = encryption.seal("x")
    site.on("b")
    assert keys.mismatches()[0].startswith("Machine b has another sealing_keys")
    with pytest.raises(encryption.Unopened, match=r"copy .*sealing_keys of a"):
        encryption.unseal(secret)
    shutil.copy(first / "sealing_keys", second / "sealing_keys")
    assert encryption.unseal(secret) == "x"
    assert keys.mismatches() == []


@pytest.fixture
def typed(monkeypatch):
    lines = []
    monkeypatch.setattr("builtins.input", lambda question: lines.pop(0) if lines else "")
    return lines.append


def test_a_key_that_was_replaced_on_purpose_is_registered_by_a_command_and_recorded(site, typed):
    place = site.start("a")
    (place / "secret_key").write_text("z" * 64)
    site.on("a")
    with pytest.raises(CommandError, match="has another secret_key"):
        call_command("keys")
    with pytest.raises(CommandError, match="Not confirmed"):
        call_command("keys", register="secret_key")
    typed("secret_key")
    call_command("keys", register="secret_key")
    call_command("keys")
    assert Event.objects.filter(action="keys.register", object="secret_key").exists()


@pytest.mark.parametrize("name", data_dir.KEYS)
def test_a_lost_key_can_be_replaced_by_a_new_one_knowing_what_is_lost(site, typed, name):
    place = site.start("a")
    (place / name).unlink()
    site.on("a")
    typed(name)
    call_command("keys", renew=name)
    site.start("a")
    assert (place / name).exists()


def rotate_evidence(typed):
    call_command("rotate_evidence_key")


def renew_secret(typed):
    typed("secret_key")
    call_command("keys", renew="secret_key")


REPLACED = [
    pytest.param("evidence_key", rotate_evidence, "evidence.key-rotated", id="rotated"),
    pytest.param("secret_key", renew_secret, "keys.register", id="renewed"),
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("name", "command", "action"), REPLACED)
def test_a_transaction_that_cannot_be_committed_leaves_the_key_as_it_was(
    site, typed, monkeypatch, name, command, action
):
    place = site.start("a")
    signing.record_key()
    before, append = files(place), Event.append

    def bad_append(*args, **more):
        append(*args, **more)
        get_user_model().groups.through.objects.create(user_id=10**9, group_id=10**9)  # checked at the commit

    monkeypatch.setattr(Event, "append", bad_append)
    with pytest.raises(CommandError, match=r"(Nothing was|The key was not) changed: "):
        command(typed)
    assert files(place) == before
    assert not Event.objects.filter(action=action).exists()
    site.start("a")
    assert keys.mismatches() == []


@pytest.mark.parametrize(("name", "command", "action"), REPLACED)
def test_a_replacement_that_is_cut_off_after_the_commit_is_said_and_completed(
    site, typed, monkeypatch, capsys, name, command, action
):
    place = site.start("a")
    before = (place / name).read_bytes()
    with monkeypatch.context() as killed:
        killed.setattr(data_dir, "put_in_place", no_space)
        with pytest.raises(CommandError, match=r"is registered, but could not take its place.*manage\.py keys"):
            command(typed)
    assert (place / name).read_bytes() == before, "the old key is not lost before the new one is in its place"
    site.on("a")
    assert f"the replacement of {name} was interrupted. Run manage.py keys" in keys.mismatches()[0]
    call_command("keys")
    assert f"The replacement of {name} was interrupted and is now complete" in capsys.readouterr().out
    assert not [path for path in place.iterdir() if path.suffix == ".volmig-replacement"]
    assert (place / name).read_bytes() != before
    site.start("a")
    assert signing.current()


@pytest.mark.parametrize(("name", "command", "action"), REPLACED)
@pytest.mark.parametrize("commits", [False, True])
def test_where_the_database_does_not_say_what_became_of_a_replacement_both_keys_are_kept(
    site, typed, monkeypatch, name, command, action, commits
):
    place = site.start("a")
    before, register = (place / name).read_bytes(), keys.register

    def lost(*args):
        if commits:
            register(*args)
            raise SystemExit("killed")
        raise OperationalError("the server closed the connection unexpectedly")

    with monkeypatch.context() as away:
        away.setattr(keys, "fault", lambda: OperationalError("the server is away"))
        away.setattr(keys, "register", lost)
        if commits:  # as an answer that was lost on its way
            away.setattr(keys, "transaction", SimpleNamespace(atomic=contextlib.nullcontext))
        with pytest.raises(CommandError, match=r"It is not known whether.*manage\.py keys"):
            command(typed)
    assert (place / name).read_bytes() == before
    waits = data_dir.next_to(place / name)
    assert waits.exists()
    site.on("a")
    call_command("keys")
    assert ((place / name).read_bytes() != before, waits.exists()) == (commits, False)
    assert keys.mismatches() == []


@pytest.mark.parametrize("name", ["ssh_key", "secret_key"])
def test_a_file_that_an_operator_made_beside_a_key_is_never_removed(site, typed, name):
    """As ssh_key.new: its public half may be on every hypervisor already."""
    place = site.start("a")
    made = {place / f"{name}{ending}": f"{ending} by an operator" for ending in (".new", ".next", ".old", ".pub.new")}
    for path, content in made.items():
        path.write_text(content)
    call_command("keys")
    typed(name)
    call_command("keys", renew=name)
    assert {path: path.read_text() for path in made} == made


def no_space(path):
    raise OSError(errno.ENOSPC, "No space left on device")


class Other:
    """Another connection to the database, in a transaction that has registered a key and is not committed yet."""

    def __init__(self, statement, *values):
        self.connection = connection.copy()
        self.connection.set_autocommit(False)
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values)

    def commit(self):
        self.connection.commit()
        self.connection.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="a file has one writer, and a commit to it waits for nobody")
@pytest.mark.parametrize("known", [True, False])
def test_a_key_whose_registration_is_still_being_committed_is_not_removed(site, monkeypatch, known):
    """As while a standby is away that the commit waits for, and the connection that began it is lost."""
    place, name = site.start("a"), "secret_key"
    content = b"n" * 64
    waits = data_dir.next_to(place / name)
    data_dir.write_next_to(place / name, content)
    [mark] = keys.fingerprints(name, content)
    if known:
        other = Other("UPDATE volmig_registeredkey SET fingerprint = %s WHERE name = %s", mark, name)
    else:
        RegisteredKey.objects.filter(name=name).delete()
        values = "(name, fingerprint, host, path, registered_at) VALUES (%s, %s, 'a', 'p', now())"
        other = Other(f"INSERT INTO volmig_registeredkey {values}", name, mark)
    monkeypatch.setattr(keys, "COMMIT_PATIENCE", "100ms")
    try:
        with pytest.raises(CommandError, match="still registering a key"):
            call_command("keys")
        assert waits.read_bytes() == content
    finally:
        other.commit()
    call_command("keys")
    assert ((place / name).read_bytes(), waits.exists()) == (content, False)
    site.on("a")
    assert keys.mismatches() == []


@pytest.fixture
def behind_another(monkeypatch):
    """A command waits for the lock while another one, which has it, does all that it does."""
    alone, others = keys.alone, []

    @contextlib.contextmanager
    def after_the_other(directory):
        if others:
            others.pop()()
        with alone(directory):
            yield

    monkeypatch.setattr(keys, "alone", after_the_other)
    return others


def test_of_two_rotations_at_once_the_second_keeps_the_key_of_the_first(site, behind_another):
    """What that has signed meanwhile is verified by it."""
    site.start("a")
    first = []
    behind_another.append(lambda: first.append(signing.rotate()))
    second = signing.rotate()
    published = [each["id"] for each in signing.published()["keys"]]
    assert published[1:] == [first[0]["id"], second["id"]]
    assert second["signed_by"] == first[0]["id"]
    assert signing.known_keys()


def test_of_two_rotations_of_sealing_keys_at_once_the_second_keeps_the_key_of_the_first(site, behind_another):
    place, first = site.start("a"), []

    def rotated():
        call_command("rotate_secrets")
        first.extend((place / "sealing_keys").read_bytes().split())

    behind_another.append(rotated)
    call_command("rotate_secrets")
    assert (place / "sealing_keys").read_bytes().split()[1] == first[0]


def test_a_rotation_that_cannot_open_the_directory_of_its_key_says_so(site, monkeypatch):
    place = site.start("a")
    before = files(place)
    monkeypatch.setenv("VOLMIG_SEALING_KEYS_FILE", str(site.root / "away" / "sealing"))
    with pytest.raises(CommandError, match=r"The rotation did not finish: .*/away'\. Run rotate_secrets again\."):
        call_command("rotate_secrets")
    assert files(place) == before


def test_a_running_process_notices_that_a_key_was_replaced(site, typed):
    first = site.start("a", "web")
    second = shutil.copytree(first, site.root / "b")
    (first / "secret_key").write_text("z" * 64)
    keys.register("secret_key")
    site.on("b", "web")
    assert keys.mismatches()[0].startswith("Machine b has another secret_key")
    shutil.copy(first / "secret_key", second / "secret_key")
    assert keys.mismatches() == ["Machine b: this process still uses the old secret_key. Restart it."]
    site.on("b", "web")
    assert keys.mismatches() == []


@pytest.fixture
def _connection(monkeypatch):
    """That of the test is not the supervisor's to close."""
    monkeypatch.setattr(up, "connection", SimpleNamespace(close=lambda: None))


@pytest.mark.usefixtures("_connection")
def test_up_ends_when_a_key_in_memory_was_replaced_and_goes_on_with_those_that_are_read_each_time(site, capsys):
    first = site.start("a", "web")
    shutil.copytree(first, site.root / "b")
    said = set()
    call_command("rotate_evidence_key")
    site.on("b", "web")
    up.compare_keys(said)
    up.compare_keys(said)
    assert capsys.readouterr().err.count("Machine b has another evidence_key") == 1
    site.on("a", "web")
    (first / "secret_key").write_text("z" * 64)
    keys.register("secret_key")
    site.on("b", "web")
    with pytest.raises(CommandError, match=r"Stopped\. Machine b has another secret_key"):
        up.compare_keys(said)


@pytest.mark.usefixtures("_connection")
def test_up_goes_on_while_keys_cannot_be_compared(site, monkeypatch):
    site.start("a", "web")
    monkeypatch.setattr(keys, "mismatches", no_database)
    up.compare_keys(set())


def no_database(names=None):
    raise OperationalError("the server is away")


# Keys in files that others keep


def test_every_key_can_be_a_file_that_volmig_only_reads(site, tmp_path, monkeypatch):
    first = site.start("a")
    run = tmp_path / "run"
    run.mkdir()
    for name in data_dir.KEYS:
        shutil.copy(first / name, run / f"volmig-{name}")
        monkeypatch.setenv(f"VOLMIG_{name.upper()}_FILE", str(run / f"volmig-{name}"))
        (run / f"volmig-{name}").chmod(0o400)
    run.chmod(0o500)
    before = files(run)
    place = site.start("b")
    assert files(place) == {}
    assert data_dir.ssh_key() == run / "volmig-ssh_key"
    assert encryption.unseal(encryption.seal("x")) == "x"
    with pytest.raises(CommandError, match=r"VOLMIG_EVIDENCE_KEY_FILE.*--output"):
        call_command("rotate_evidence_key")
    call_command("rotate_evidence_key", output=tmp_path / "new")
    assert files(run) == before
    with pytest.raises(ValueError, match="another evidence_key"):
        signing.current()
    monkeypatch.setenv("VOLMIG_EVIDENCE_KEY_FILE", str(tmp_path / "new"))
    assert signing.current()


def test_a_backup_has_keys_from_outside_the_data_directory_also_through_links(site, tmp_path, monkeypatch):
    """As Kubernetes mounts them."""
    site.start("a")
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "audit").write_text("k" * 64)
    (tmp_path / "audit").symlink_to(tmp_path / "..data" / "audit")
    monkeypatch.setenv("VOLMIG_AUDIT_KEY_FILE", str(tmp_path / "audit"))
    make.copy_data(tmp_path / "backup")
    assert (tmp_path / "backup" / "audit_key").read_text() == "k" * 64
    assert make.unchanged(tmp_path / "backup")
    assert set(files(tmp_path / "backup")) >= set(data_dir.KEYS)


def test_a_file_of_sealing_keys_is_rotated_by_whoever_keeps_it(site, tmp_path, monkeypatch):
    place = site.start("a")
    given = tmp_path / "sealing"
    given.write_bytes(Fernet.generate_key() + b"\n" + (place / "sealing_keys").read_bytes())
    monkeypatch.setenv("VOLMIG_SEALING_KEYS_FILE", str(given))
    before, secret = given.read_bytes(), encryption.seal("x")
    call_command("rotate_secrets")
    assert given.read_bytes() == before
    assert encryption.unseal(secret) == "x"
    assert keys.mismatches() == []


@pytest.mark.parametrize(("content", "why"), [(None, "does not exist"), ("short", "has 5 characters")])
def test_a_file_that_is_named_and_holds_no_key_is_refused(tmp_path, monkeypatch, content, why):
    if content:
        (tmp_path / "key").write_text(content)
    monkeypatch.setenv("VOLMIG_AUDIT_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(ImproperlyConfigured, match=why):
        data_dir.secret_or_provisional("audit_key")


@pytest.mark.parametrize("content", [None, b"\xe9" * 48], ids=["a directory", "no text"])
def test_a_key_that_cannot_be_read_is_a_sentence_that_names_its_file(tmp_path, monkeypatch, content):
    monkeypatch.setenv("VOLMIG_AUDIT_KEY_FILE", str(tmp_path / "key"))
    (tmp_path / "key").mkdir() if content is None else (tmp_path / "key").write_bytes(content)
    with pytest.raises(ImproperlyConfigured, match=r"The key audit_key in .*/key cannot be read: "):
        data_dir.secret_or_provisional("audit_key")


def test_a_key_of_the_other_kind_is_not_read_from_its_file_either(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLMIG_SSH_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("VOLMIG_PART", "web")
    with pytest.raises(data_dir.NotForThisProcess):
        data_dir.key("ssh_key")
    assert "VOLMIG_SSH_KEY_FILE" in data_dir.variables_of("worker")
    assert "VOLMIG_SECRET_KEY_FILE" in data_dir.variables_of("web")


# Settings that should be equal


def test_settings_that_differ_between_machines_are_named_and_never_kept(site, monkeypatch):
    first = site.start("a")
    monkeypatch.setitem(environment.values, "EMAIL_URL", "smtp://u:hunter2@mail")
    keys.note_settings()
    shutil.copytree(first, site.root / "b")
    site.on("b")
    assert keys.differing_settings() == []
    monkeypatch.setitem(environment.values, "EMAIL_URL", "smtp://u:other@mail")
    (said,) = keys.differing_settings()
    assert said.startswith("Machines b and a differ in VOLMIG_EMAIL_URL: set them alike")
    assert "hunter2" not in json.dumps(list(Machine.objects.values_list("settings", flat=True)))
    monkeypatch.setenv("VOLMIG_PART", "web")
    Machine.objects.update(kind="worker")
    assert keys.differing_settings() == [], "pages send no mail"


def test_another_clouds_yaml_is_named(site, tmp_path):
    first = site.start("a", "workers")
    (tmp_path / "clouds.yaml").write_text("clouds: {a: {}}")
    site.settings.CLOUDS_YAML = str(tmp_path / "clouds.yaml")
    keys.note_settings()
    shutil.copytree(first, site.root / "b")
    site.on("b", "workers")
    (tmp_path / "clouds.yaml").write_text("clouds: {b: {}}")
    assert "VOLMIG_CLOUDS_YAML" in keys.differing_settings()[0]


def test_the_documentation_lists_every_setting_that_may_differ():
    page = (settings.BASE_DIR / "docs/configuration.md").read_text()
    listed = page.split("Variables should be equal on all machines, except for")[1].split(".")[0]
    of_the_first_start = {"DEBUG", "ADMIN_USER", "ADMIN_PASSWORD"}
    assert set(re.findall(r"`VOLMIG_(\w+)`", listed)) == environment.PER_MACHINE - of_the_first_start | {"DATA"}


def test_what_a_machine_of_its_own_may_have_is_not_compared():
    assert environment.values.keys() >= environment.PER_MACHINE - {"ADMIN_USER", "ADMIN_PASSWORD"}
    assert {"METRICS_ADDRESS", "METRICS_PORT", "STATIC"} < environment.PER_MACHINE, (
        "where it listens, and where it lies"
    )
    assert not {"APPROVERS", "EMAIL_URL", "WEBHOOK_SECRET", "PUBLIC_URL"} & environment.PER_MACHINE
    assert os.environ["VOLMIG_DATA"]
