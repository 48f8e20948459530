"""manage.py up: everything starts with one command and nothing is left when it stops."""

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import time
import urllib.request
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management.base import CommandError

from tests.rig import free_port
from volmig import beats, broker
from volmig.broker import TableBroker
from volmig.management.commands.up import Child
from volmig.models import QueuedTask
from volmig.queue import later

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"

pytestmark = pytest.mark.skipif("VOLMIG_DB" in os.environ, reason="what starts here has a file for its database")


def family(pid):
    """All living processes that descend from this one, whatever their session."""
    listing = subprocess.run(["ps", "-eo", "pid,ppid,stat"], capture_output=True, text=True, check=True).stdout
    found, parents = set(), {pid}
    for line in sorted(listing.splitlines()[1:], key=lambda line: int(line.split()[0])):
        child, parent, state = line.split()[:3]
        if int(parent) in parents and not state.startswith("Z"):
            parents.add(int(child))
            found.add(int(child))
    return found


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise TimeoutError


def at_a_terminal():
    """What a login shell gives its children; a test run in the background would hand down an ignored Ctrl-C."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Up:
    def __init__(self, data, *parts, port=0, terminal=None):
        self.port, self.data = port or free_port(), data
        self.log = data / "up.log"
        hidden = {"VOLMIG_ADMIN_USER", "VOLMIG_ADMIN_PASSWORD"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        output = terminal if terminal is not None else self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up", *parts, "--bind", f"127.0.0.1:{self.port}"],
            cwd=ROOT,
            env=environment | {"VOLMIG_DATA": str(data)},
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=output,
            stderr=output,
            start_new_session=terminal is not None,
            preexec_fn=None if terminal is None else at_a_terminal,
        )

    def health(self):
        if self.process.poll() is not None:
            raise AssertionError(self.log.read_text())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def stop(self, number):
        before = family(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(40)
        return before


class Terminal:
    """What a person at a terminal does: reads until something is asked, and types."""

    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        self.shown = self.read = ""

    def expect(self, text, urge=b""):
        """Read until that text came; `urge` is typed, and again whenever nothing came of it for a while."""
        deadline = time.monotonic() + 120  # a busy machine is slow
        while text not in self.read:
            os.write(self.ours, urge)
            while text not in self.read and select.select([self.ours], [], [], 3)[0]:
                got = os.read(self.ours, 4096).decode()
                self.shown, self.read = self.shown + got, self.read + got
            assert time.monotonic() < deadline, self.shown
        self.read = self.read.partition(text)[2]

    def answer(self, question, *lines):
        for line in lines:
            self.expect(question)
            os.write(self.ours, f"{line}\n".encode())
            question = "Again: "

    def close(self):
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal():
    one = Terminal()
    yield one
    one.close()


@pytest.fixture
def up(tmp_path, migrated):
    data = shutil.copytree(migrated, tmp_path / "data")
    started = []

    def start(*parts, **options):
        started.append(Up(data, *parts, **options))
        return started[-1]

    yield start
    for one in started:
        for pid in {*family(one.process.pid), one.process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.wait()


def gone(pids):
    return not any(
        Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids
    )


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended since it was listed
        return b""


def web_of(running):
    return {pid for pid in family(running.process.pid) if b"uvicorn" in command_of(pid)}


def test_everything_starts_what_dies_starts_again_and_nothing_is_left(up):
    running = up()
    until(lambda: running.health().get("watcher", {}).get("state") == "ok")
    until(lambda: len(family(running.process.pid)) >= 10)  # uvicorn, watcher, two qclusters with their own children
    until(lambda: {running.health()[queue]["state"] for queue in ("workers", "background")} == {"ok"})
    [web] = web_of(running)
    os.kill(web, signal.SIGKILL)
    until(lambda: web_of(running) - {web})
    until(running.health)
    left = running.stop(signal.SIGTERM)
    assert gone(left)
    assert running.process.returncode == 0, running.log.read_text()


def test_the_first_start_on_a_terminal_asks_for_an_administrator_and_ctrl_c_stops_it(up, terminal):
    running = up("web", terminal=terminal.theirs)
    terminal.answer("Name: ", "two words")
    terminal.expect("Enter a valid username")
    terminal.answer("Name: ", "ann")
    terminal.answer("Password for ann: ", PASSWORD, "something else")
    terminal.expect("The passwords do not match.")
    terminal.answer("Password for ann: ", "12345", "12345")
    terminal.expect("too short")
    terminal.answer("Password for ann: ", PASSWORD, PASSWORD)
    terminal.expect("volmig is on")
    assert PASSWORD not in terminal.shown
    with sqlite3.connect(running.data / "db.sqlite3") as database:
        assert database.execute("SELECT username, is_superuser FROM auth_user").fetchall() == [("ann", 1)]
    left = family(running.process.pid)
    os.write(terminal.ours, b"\x03")
    assert running.process.wait(20) == 0
    assert gone(left)


def test_ctrl_c_at_the_question_starts_nothing_and_makes_nobody(up, terminal):
    running = up("web", terminal=terminal.theirs)
    terminal.expect("Name: ")
    # Again: one that comes between the question and the reading of its answer is lost in C's input and output.
    terminal.expect("volmig needs an administrator", urge=b"\x03")
    assert running.process.wait(20) == 1
    assert "Traceback" not in terminal.shown


def test_children_stop_when_the_supervisor_is_killed(up):
    running = up("watcher")
    until(lambda: family(running.process.pid))
    left = running.stop(signal.SIGKILL)
    until(lambda: gone(left), 15)


def test_a_second_one_on_the_same_data_is_refused(up):
    first = up("watcher")
    until(lambda: family(first.process.pid))
    second = up("watcher")
    assert second.process.wait(30) == 1
    assert "volmig's watcher is already running" in second.log.read_text()


def test_parts_that_start_for_the_first_time_at_once_make_everything_once(up, tmp_path):
    path = tmp_path / "data" / "db.sqlite3"
    path.unlink()
    parts = [up(part) for part in ("web", "workers", "watcher")]
    until(lambda: all(family(part.process.pid) for part in parts))
    with contextlib.closing(sqlite3.connect(path)) as database:
        until(
            lambda: (
                set(settings.EVERY_MINUTE)
                == {name for (name,) in database.execute("SELECT name FROM volmig_queuedtask")}
            )
        )


def test_a_part_that_cannot_start_ends_all_with_its_reason(up):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen, so that nobody waits for its answer
        running = up("web", port=taken.getsockname()[1])
        assert running.process.wait(120) == 1
    log = running.log.read_text()
    assert "ended at once" in log
    assert "No account exists yet: run manage.py admin NAME" in log  # without a terminal it cannot prompt


@pytest.fixture
def child(monkeypatch):
    """Makes a part that runs and whose processes do nothing; keeps the clusters whose tasks were given back."""
    made, given_back = [], []
    monkeypatch.setattr("volmig.management.commands.up.give_back", given_back.append)

    def make(name):
        made.append(Child(name, ["sleep", "60"]))
        made[-1].given_back = given_back
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.kill()


def test_a_part_that_has_run_is_started_again_however_soon_it_ends(child):
    web, new = child("web"), child("web")
    web.started -= 70
    web.ended(1)
    assert web.pause == 1
    for pause in (2, 4):
        web.start()
        web.ended(1)
        assert web.pause == pause
    with pytest.raises(CommandError, match="web ended at once with status 1: see its message above"):
        new.ended(1)


def beaten(child, seconds_ago):
    at = time.monotonic_ns() - int(seconds_ago * 1e9)
    os.utime(child.beat_file, ns=(at, at))


def is_killed(child):
    """Whether tending it ended it; then what it had need not wait until it counts as lost."""
    process, cluster, why = child.process, child.cluster, child.why_stuck()
    child.tend()
    if not why:
        assert process.poll() is None
        return False
    assert process.wait(10) == -signal.SIGKILL, why
    child.tend()
    assert (child.process, child.given_back) == (None, [cluster])
    return True


@pytest.mark.parametrize(
    ("name", "silent", "killed"),
    [
        pytest.param("workers", 31, True, id="workers in which nothing moves"),
        pytest.param("workers", 29, False, id="workers in the middle of a tick"),
        pytest.param("background", 151, True, id="background workers in which nothing moves"),
        pytest.param("background", 149, False, id="background workers with a task that lasts as long as one may"),
    ],
)
def test_workers_that_show_no_sign_of_life_are_restarted(child, name, silent, killed):
    workers = child(name)
    beaten(workers, silent)
    assert is_killed(workers) is killed


def test_workers_that_start_slowly_are_left_alone_and_given_longer_each_time(child):
    workers = child("workers")
    for patience in (120, 240, 480):
        workers.started = time.monotonic() - patience + 5
        assert not is_killed(workers)
        workers.started = time.monotonic() - patience - 5
        assert is_killed(workers)
        workers.given_back.clear()
        workers.start()
    beaten(workers, 0)
    workers.tend()
    assert workers.patience == 120, "they lived: the next start is a new matter"


def test_other_parts_have_no_heartbeat_and_are_left_alone(child):
    web = child("web")
    web.started -= 3600
    web.tend()
    assert not web.beat_file.exists(), "two of them may share a data directory"
    assert web.process.poll() is None


def test_workers_beat_while_they_wait_and_at_both_ends_of_a_task(db, child, monkeypatch):
    workers, seen = child("workers"), []
    monkeypatch.setenv("VOLMIG_BEAT", str(workers.beat_file))
    monkeypatch.setattr("volmig.broker.close_old_connections", lambda: None)  # the test's own
    assert beats.silent_for(workers.beat_file) is None, "not before the first"
    idle = TableBroker("migrations")
    idle.minute_at = time.monotonic() + 60
    idle.dequeue()
    assert beats.silent_for(workers.beat_file) < 10

    def slow(_):
        seen.append(beats.silent_for(workers.beat_file))
        beaten(workers, 1000)

    monkeypatch.setattr("hosts.tasks.refresh", slow)
    later("hosts.tasks.refresh", 1)
    task = QueuedTask.objects.take("background")
    beaten(workers, 1000)
    broker.run("hosts.tasks.refresh", 1, task.run.hex)
    assert seen[0] < 10
    assert beats.silent_for(workers.beat_file) < 10


def test_a_beat_without_its_file_does_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("VOLMIG_BEAT", str(tmp_path / "gone"))
    beats.beat()
    assert beats.silent_for(tmp_path / "gone") is None


def tables(data):
    with contextlib.closing(sqlite3.connect(data / "db.sqlite3")) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_part_that_does_not_prepare_the_database_refuses_one_that_lacks_tables_and_makes_none(up, tmp_path):
    (tmp_path / "data" / "db.sqlite3").unlink()
    running = up("web", "--no-prepare")
    assert running.process.wait(60) == 1
    said = running.log.read_text()
    assert "The database lacks" in said
    assert "Run manage.py prepare once" in said
    assert "Traceback" not in said
    assert tables(running.data) == set()


def test_preparing_is_a_separate_step_after_which_a_part_starts(up, tmp_path):
    data = tmp_path / "data"
    (data / "db.sqlite3").unlink()
    command, environment = [sys.executable, "manage.py", "prepare"], os.environ | {"VOLMIG_DATA": str(data)}
    nobody = subprocess.DEVNULL
    done = subprocess.run(command, cwd=ROOT, env=environment, stdin=nobody, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The database is prepared" in done.stdout
    assert "manage.py admin NAME" in done.stdout
    running = up("web", "--no-prepare")
    until(running.health)


def test_two_web_processes_share_a_data_directory_with_a_port_each(up):
    first, second = up("web", "--no-prepare"), up("web", "--no-prepare")
    until(first.health)
    until(second.health)


def test_systemd_is_notified_when_pages_answer_then_each_second_and_at_the_end(up, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running = up("web", "--no-prepare")
        heard = [systemd.recv(1024)]
        while b"READY=1" not in heard[-1]:
            heard.append(systemd.recv(1024))
        assert running.health()["database"] == "ok", "it said that it was ready before it answered"
        assert b"WATCHDOG=1" in systemd.recv(1024)
        running.process.send_signal(signal.SIGTERM)
        while heard[-1] != b"STOPPING=1":
            heard.append(systemd.recv(1024))
    assert running.process.wait(40) == 0


SUPERVISES = "import django; django.setup(); from volmig.management.commands.up import supervise; supervise([], '')"


def test_a_supervisor_that_was_stopped_and_continued_goes_on(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        ours = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "DJANGO_SETTINGS_MODULE": "volmig.settings"}
        command = [sys.executable, "-c", SUPERVISES]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | ours) as process:
            for _ in range(3):
                systemd.recv(1024)  # it is about to wait
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(1.2)  # longer than it waits
                os.kill(process.pid, signal.SIGCONT)
                assert systemd.recv(1024).endswith(b"WATCHDOG=1"), "it ended"
            process.terminate()
            assert process.wait(40) == 0
