"""The real processes: each sends heartbeats, is missed when it is killed and not when it stops, and logs JSON."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request

import pytest

from tests.rig import free_port
from tests.volmig.test_up import ROOT, family, until, up  # noqa: F401 - up is a fixture

pytestmark = pytest.mark.skipif("VOLMIG_DB" in os.environ, reason="what starts here has a file for its database")


def beats(data):
    """The PID of each part that has sent a heartbeat."""
    with sqlite3.connect(f"file:{data}/db.sqlite3?mode=ro", uri=True) as database:
        return dict(database.execute("SELECT part, pid FROM health_process").fetchall())


def probe(data, part):
    command = [sys.executable, "manage.py", "health", part]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"VOLMIG_DATA": str(data)}, capture_output=True, text=True
    )
    return done.returncode, done.stdout


def figures(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_every_process_sends_heartbeats_and_metrics_and_json_lines(up, monkeypatch):  # noqa: F811
    port = free_port()
    monkeypatch.setenv("VOLMIG_METRICS_PORT", str(port))
    monkeypatch.setenv("VOLMIG_LOG_FORMAT", "json")
    running = up()
    until(lambda: running.health() and len(beats(running.data)) == 4)
    parts = beats(running.data)
    assert parts.keys() == {"web", "workers", "background", "watcher"}
    assert set(parts.values()) <= family(running.process.pid)
    assert [probe(running.data, part) for part in ("web", "workers", "watcher")] == [
        (0, "All heartbeats of this part are recent.\n")
    ] * 3
    until(lambda: "volmig_tick_seconds" in figures(port))
    assert 'volmig_processes{part="watcher"} 1.0' in figures(port)
    os.kill(parts["watcher"], signal.SIGKILL)
    until(lambda: parts["watcher"] != beats(running.data).get("watcher"), 60)  # the next one has taken its place
    assert len(beats(running.data)) == 4
    running.stop(signal.SIGTERM)
    assert beats(running.data) == {}, "after an orderly end no process is missed"
    lines = [line for line in running.log.read_text().splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in lines]
    assert {"watcher", "web"} & {line["part"] for line in found}, running.log.read_text()
    assert "Traceback" not in running.log.read_text()
