"""One machine publishes the heads of the audit log, another takes over when it is gone, and both verify cleanly."""

import datetime as dt
import os
import shutil
import socket
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db.models import F
from django.urls import reverse
from django.utils import timezone

from volmig import data_dir, incarnation
from volmig.record import heads
from volmig.record.models import Event, Publisher
from volmig.record.publisher import EVERY_SECONDS, REST_SECONDS, Publishing

pytestmark = pytest.mark.django_db


class Machines:
    """Machines with workers, each with a data directory and a process that would publish."""

    def __init__(self, settings, root, monkeypatch):
        self.settings, self.root, self.monkeypatch = settings, root, monkeypatch
        self.processes = {}
        settings.AUDIT_HEADS_SECONDS = 0

    def on(self, name):
        place = self.root / name
        place.mkdir(exist_ok=True)
        self.settings.DATA, self.settings.AUDIT_HEADS = place, place / "audit_heads"
        self.monkeypatch.setattr(socket, "gethostname", lambda: name)
        return place / "audit_heads"

    def turn(self, name):
        """The machine's turn, after something happened; how long it pauses then."""
        self.on(name)
        Event.append("x")
        return self.processes.setdefault(name, Publishing()).turn()

    def restart(self, name):
        self.processes[name] = Publishing()

    def later(self, seconds):
        Publisher.objects.update(until=F("until") - dt.timedelta(seconds=seconds))

    def published(self, name):
        file = self.on(name)
        return heads.newest(file).seq if file.exists() else 0

    def verified(self, name, capsys):
        self.on(name)
        capsys.readouterr()
        call_command("verify_audit")
        return capsys.readouterr().out


@pytest.fixture
def machines(settings, tmp_path, monkeypatch):
    return Machines(settings, tmp_path, monkeypatch)


def test_one_machine_publishes_and_the_others_write_nothing(machines):
    for _ in range(3):
        for name in ("a", "b"):
            assert machines.turn(name) == EVERY_SECONDS
    assert machines.published("a") == Event.objects.count() - 1
    assert machines.published("b") == 0


def test_which_machine_publishes_and_where_is_recorded_and_shown(machines, client, person):
    machines.turn("a")
    event = Event.objects.get(action="evidence.publisher")
    assert (event.object, event.data) == ("a", {"path": str(machines.root / "a" / "audit_heads")})
    client.force_login(person("ann", is_superuser=True))
    shown = client.get(reverse("evidence")).content.decode()
    assert f'Heads are published by a to <span class="mono">{machines.root / "a" / "audit_heads"}</span>' in shown
    machines.on("b")
    shown = client.get(reverse("evidence")).content.decode()
    assert "this machine has no copy of them" in shown
    assert client.get(reverse("evidence_heads")).status_code == 404, "no empty file for an auditor"


def test_a_machine_that_restarts_goes_on_and_the_other_waits_longer(machines):
    machines.turn("a")
    ended = machines.published("a")
    machines.restart("a")
    machines.turn("a")
    assert machines.published("a") == ended, "its lease has not run out: another process of it may still publish"
    machines.later(50)
    machines.turn("b")
    assert machines.published("b") == 0
    machines.turn("a")
    assert machines.published("a") == Event.objects.count()


def test_another_machine_takes_over_and_covers_every_event_and_the_first_stays_behind_when_it_is_back(machines, capsys):
    machines.turn("a")
    ended = machines.published("a")
    machines.later(100)
    machines.turn("b")
    assert machines.published("b") == Event.objects.count()
    assert signed(machines.on("b"))[0].first == 1
    machines.restart("a")
    for _ in range(3):
        machines.turn("a")
        machines.turn("b")
    assert machines.published("a") == ended, "no second stream"
    assert machines.published("b") == Event.objects.count()
    handed = Event.objects.filter(action="evidence.publisher").first()
    assert handed.data["before"] == {"host": "a", "path": str(machines.root / "a" / "audit_heads"), "seq": ended}
    assert "intact" in machines.verified("b", capsys)
    said = machines.verified("a", capsys)
    assert "intact" in said
    assert f"Heads are published by b to {machines.root / 'b' / 'audit_heads'}" in said


def signed(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(heads.signed_from(descriptor, 0))
    finally:
        os.close(descriptor)


def test_a_file_that_all_machines_write_to_goes_on_as_one_stream(machines, settings, capsys):
    shared = machines.root / "mount"
    shared.mkdir()
    for name in ("a", "b", "a"):
        machines.on(name)
        settings.AUDIT_HEADS = shared / "heads"
        Event.append("x")
        machines.processes.setdefault(name, Publishing()).turn()
        call_command("verify_audit")
        machines.later(100)
    lines = signed(shared / "heads")
    assert [head.first for head in lines] == [1, *(head.seq + 1 for head in lines[:-1])]
    assert "intact" in capsys.readouterr().out


def test_a_machine_that_cannot_write_leaves_it_to_another_at_once(machines, caplog):
    machines.turn("a")
    (machines.root / "a" / "audit_heads").unlink()
    (machines.root / "a" / "audit_heads").mkdir()
    assert machines.turn("a") == REST_SECONDS
    assert "The head of the audit log could not be published to" in caplog.text
    machines.turn("b")
    assert machines.published("b") == Event.objects.count()


def test_verify_audit_is_clean_on_a_machine_without_heads_and_says_where_they_are(machines, capsys):
    machines.turn("a")
    said = machines.verified("web", capsys)
    assert f"Heads are published by a to {machines.root / 'a' / 'audit_heads'} (the last for event " in said
    assert "No published head was compared." in said


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_machine_that_has_published_misses_its_file(machines, name):
    machines.turn("a")
    machines.later(100)
    machines.turn("b")
    machines.on(name).unlink()
    with pytest.raises(CommandError, match="The heads file cannot be read"):
        call_command("verify_audit")


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_cut_end_is_found_on_the_machine_that_publishes_and_on_the_one_that_did_before(machines, name):
    for _ in range(3):
        machines.turn("a")
    machines.later(100)
    for _ in range(3):
        machines.turn("b")
    file = machines.on(name)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(CommandError, match="lines at its end are missing"):
        call_command("verify_audit")


def test_a_copy_of_the_file_may_end_earlier_and_the_machine_that_has_it_can_take_over(machines, capsys):
    machines.turn("a")
    machines.on("b")
    shutil.copy(machines.root / "a" / "audit_heads", machines.root / "b" / "audit_heads")
    machines.turn("a")
    assert "intact" in machines.verified("b", capsys)
    machines.later(100)
    machines.turn("b")
    for name in ("a", "b"):
        assert "intact" in machines.verified(name, capsys), name


def test_two_processes_with_equal_names_and_directories_do_not_both_publish(machines):
    one, other = Publishing(), Publishing()
    machines.on("a")
    assert one.owner != other.owner
    place, path = heads.this_file()
    assert Publisher.take(one.owner, place, "a", path)
    assert not Publisher.take(other.owner, place, "a", path)
    assert Publisher.take(one.owner, place, "a", path)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_machine_whose_clock_is_wrong_writes_the_databases_time(machines, monkeypatch, hours):
    right = timezone.now
    monkeypatch.setattr("django.utils.timezone.now", lambda: right() + dt.timedelta(hours=hours))
    machines.turn("a")
    first = Publisher.current()
    machines.later(100)
    machines.turn("b")
    second = Publisher.current()
    assert (first.host, second.host) == ("a", "b")
    for row in (first, second):
        for at in (row.since, row.at, row.until):
            assert abs(at - right()) < dt.timedelta(minutes=5)


def test_a_lease_of_before_the_clock_was_set_back_runs_out(machines):
    machines.turn("a")
    Publisher.objects.update(until=F("until") + dt.timedelta(days=1))
    machines.turn("b")
    assert machines.published("b") == Event.objects.count()


def test_a_directory_that_did_not_join_yet_publishes_nothing(machines):
    machines.turn("a")
    machines.later(100)
    machines.on("b")
    (machines.root / "b" / "read_only").write_text('{"code": "directory-missing", "reason": "added lately"}')
    machines.turn("b")
    assert machines.published("b") == 0
    (machines.root / "b" / "read_only").unlink()
    machines.turn("b")
    assert machines.published("b") == Event.objects.count()


def test_no_task_publishes_for_tasks_run_on_any_machine(settings):
    assert not [name for name in {*settings.TASKS, *settings.EVERY_MINUTE} if "publish" in name]


def test_leaving_read_only_mode_begins_no_second_stream(machines):
    machines.turn("a")
    machines.on("b")
    data_dir.replace(Path(machines.settings.DATA) / "read_only", b"{}")
    incarnation.leave_read_only()
    assert not (machines.root / "b" / "audit_heads").exists()
