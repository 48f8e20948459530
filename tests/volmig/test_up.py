"""manage.py up: everything starts with one command and nothing is left when it stops."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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


def until(condition, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise TimeoutError


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Up:
    def __init__(self, data, *parts, port=0):
        self.port, self.data = port or free_port(), data
        self.log = data / "up.log"
        environment = os.environ | {
            "VOLMIG_DATA": str(data),
            "VOLMIG_ADMIN_USER": "root",
            "VOLMIG_ADMIN_PASSWORD": "correct horse battery",
        }
        command = [sys.executable, "manage.py", "up", *parts, "--bind", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(self.log.read_text())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self, number):
        before = family(self.process.pid)
        self.process.send_signal(number)
        self.process.wait(40)
        return before


@pytest.fixture
def up(tmp_path):
    started = []

    def start(*parts, **options):
        started.append(Up(tmp_path, *parts, **options))
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_web_workers_and_watcher_start_and_none_is_left(up, number):
    running = up()
    until(running.answers)
    until(lambda: len(family(running.process.pid)) >= 6)  # uvicorn, watcher, qcluster with its own children
    left = running.stop(number)
    assert gone(left)
    assert running.process.returncode == 0, running.log.read_text()


def test_children_stop_when_the_supervisor_is_killed(up):
    running = up("web")
    until(running.answers)
    left = running.stop(signal.SIGKILL)
    until(lambda: gone(left), 15)


def test_a_second_one_on_the_same_data_is_refused(up):
    first = up("web")
    until(first.answers)
    second = up("web")
    assert second.process.wait(30) == 1
    assert "runs already" in second.log.read_text()


def test_a_part_that_cannot_start_ends_all_with_its_reason(up):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = up("web", port=taken.getsockname()[1])
        assert running.process.wait(40) == 1
    assert "ended at once" in running.log.read_text()


def test_a_web_server_that_dies_is_started_again(up):
    running = up("web")
    until(running.answers)
    time.sleep(5)  # dying earlier than this counts as not being able to start
    [web] = family(running.process.pid)
    os.kill(web, signal.SIGKILL)
    until(lambda: family(running.process.pid) - {web})
    until(running.answers)
