"""The ways into hostctl: a request on standard input, words by hand, a unit, and the watch."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import __main__ as entry
from hosts.remote.hostctl import store, transient_units

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """call("status", job, data=b"…") gives the exit status and what was printed on both."""
    mask = os.umask(0o022)
    monkeypatch.chdir(tmp_path)

    def call(*words, data=b""):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        return entry.main(list(words)), capsys.readouterr()

    yield call
    os.umask(mask)


@pytest.mark.parametrize("words", [[], ["hostctl"]])
def test_one_request_gets_one_answer_on_one_line(call, words):
    status, printed = call(*words, data=b'{"verb": "reach", "args": {"targets": []}}')
    assert (status, printed.err) == (0, "")
    assert json.loads(printed.out)["evidence"] == {"results": [], "untried": []}
    assert printed.out.count("\n") == 1


def test_what_is_no_request_is_answered_all_the_same(call):
    status, printed = call(data=b"\xff{")
    assert (status, json.loads(printed.out)["error"]["code"]) == (0, "bad-request")


@pytest.mark.parametrize("words", [["status"], ["run", "JOB"], ["help"], ["rollback", "JOB", "now"], ["purge", "JOB"]])
def test_other_words_do_nothing_and_show_what_there_is(call, job, words):
    status, printed = call(*[word.replace("JOB", job) for word in words])
    assert (status, printed.out) == (2, "")
    assert printed.err == entry.USAGE


@pytest.mark.parametrize("verb", ["status", "rollback", "run"])
def test_a_job_that_is_no_uuid_never_becomes_a_path(call, verb):
    status, printed = call(verb, "../x", "stop-do-1")
    assert (status, printed.out) == (2, "")
    assert "is not the UUID of a job" in printed.err


def test_by_hand_a_job_that_is_not_known_here_has_no_steps(call, job):
    status, printed = call("status", job)
    known = {"fence": 0, "known": "no", "steps": [], "owner": {}}
    assert (status, json.loads(printed.out)["evidence"]) == (0, known)


def test_a_unit_runs_the_request_that_was_stored_for_it(call, desk, job, monkeypatch):
    desk.units.run_now = False
    asked = {"verb": "discard_copy", "job": job, "step": "convert", "direction": "undo"}
    mountpoint = "/mnt/volmig/" + job.replace("-", "")
    running = desk.handle(json.dumps({**asked, "args": {"mountpoint": mountpoint}}).encode())
    assert running["state"] == "running"
    monkeypatch.setattr(entry, "Desk", lambda: desk)
    assert call("run", job, "convert-undo-1")[0] == 0
    kept = store.Store(job, desk.state, desk.run)
    assert kept.result("convert-undo-1")["evidence"] == {"already": True}


def test_a_watch_beats_until_nobody_reads_it_and_then_ends_without_a_word():
    program = subprocess.Popen(
        [sys.executable, "-m", "hosts.remote.hostctl"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    program.stdin.write(b'{"verb": "watch"}')
    program.stdin.close()
    assert set(json.loads(program.stdout.readline())) == {"beat"}
    program.stdout.close()
    assert (program.wait(60), program.stderr.read()) == (0, b"")
    program.stderr.close()


def test_a_watch_that_nobody_reads_any_more_ends_at_once(call, monkeypatch):
    class Pipe(io.StringIO):
        def flush(self):
            if len(self.getvalue()) > 0:
                raise BrokenPipeError

    printed = Pipe()
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(entry.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        call(data=b'{"verb": "watch"}')
    assert ended.value.code == 0
    assert set(json.loads(printed.getvalue())) == {"beat"}


# Following


def test_where_no_job_ever_was_there_is_nothing_to_follow(tmp_path):
    following = transient_units.Watch(str(tmp_path / "no"), str(tmp_path / "run"), lambda unit: True)
    assert list(following.changes()) == []


@pytest.mark.parametrize("hierarchy", ["", "systemd/", "unified/"])
def test_a_unit_runs_as_long_as_its_control_group_has_processes(tmp_path, monkeypatch, hierarchy):
    group = tmp_path / hierarchy / "system.slice/volmig-x.service"
    group.mkdir(parents=True)

    def read(path):
        return Path(path.replace("/sys/fs/cgroup", str(tmp_path))).open()

    monkeypatch.setattr(transient_units, "open", read, raising=False)
    assert not transient_units._running("volmig-x")
    (group / "cgroup.procs").write_text("4711\n")
    assert transient_units._running("volmig-x")
    (group / "cgroup.procs").write_text("")
    assert not transient_units._running("volmig-x")
