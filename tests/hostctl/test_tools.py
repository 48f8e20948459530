"""Programs run by absolute path, without a shell, in time, with capped output, and every run is recorded."""

import os
import sys
import time

import pytest

from hosts.remote.hostctl import commands, transient_units
from hosts.remote.hostctl.act import Refused, command
from hosts.remote.hostctl.commands import KEPT, OUTPUT_CAP, Output, Work
from hosts.remote.hostctl.store import Store


def working(*announced):
    return Work({}, "0f8fad5b-d9cb-469f-a165-70867728950e", lambda args, job: announced)


def test_a_program_is_found_only_in_directories_of_root(tmp_path, monkeypatch):
    (tmp_path / "evil").write_text("#!/bin/sh\n")
    (tmp_path / "evil").chmod(0o777)
    monkeypatch.setattr(commands, "DIRECTORIES", (str(tmp_path), "/usr/bin", "/bin"))
    assert commands.find("evil") == ""
    assert os.path.isabs(commands.find("env"))


def test_a_missing_program_is_an_answer_and_not_an_exception():
    output = working().ask("no-such-program", good=None)
    assert output.exit == 127
    assert "not installed" in output.err


@pytest.mark.parametrize(
    ("said", "has_processes", "alive"),
    [
        (Output(0, "ActiveState=active\n"), True, True),
        (Output(0, "ActiveState=inactive\n"), False, False),
        (Output(0, "ActiveState=failed\n"), False, False),
        (Output(124), True, True),
        (Output(124), False, False),
        (Output(0, "%PDF-1.4"), True, True),
    ],
)
def test_a_unit_of_which_systemd_says_nothing_is_not_taken_for_lost(said, has_processes, alive, monkeypatch):
    units = transient_units.Units()
    monkeypatch.setattr(units.work, "_run", lambda act, probe, how: said)
    monkeypatch.setattr(transient_units, "_running", lambda unit: has_processes)
    assert units.alive("volmig-x") is alive


def test_the_environment_is_ours():
    out = working().ask("env").out
    assert "LC_ALL=C" in out
    assert "HOME=" not in out


def test_standard_input_is_empty():
    assert working().ask("cat", timeout=5).out == ""


def test_a_question_with_another_exit_status_is_refused():
    with pytest.raises(Refused) as refused:
        working().ask("false")
    assert refused.value.code == "probe-failed"


def test_a_program_that_hangs_is_ended():
    begun = time.monotonic()
    assert working().ask("sleep", "60", timeout=0.3, good=None).exit == 124
    assert time.monotonic() - begun < 5


def test_a_flood_of_output_is_cut_and_the_program_ended():
    work = working()
    output = work.ask(sys.executable, "-c", "while True: print('x' * 65536)", good=None, timeout=20)
    assert output.exit == 124
    assert len(output.out) <= OUTPUT_CAP + 65536
    assert len(work.commands[0]["stdout"]) == KEPT


def test_every_run_is_recorded_with_what_it_was():
    act = command("true")
    work = working(act)
    work.ask("false", good=None)
    work.do(act)
    asked, done = work.commands
    assert (asked["text"], asked["probe"], asked["exit"]) == ("false", True, 1)
    assert (done["text"], done["probe"], done["exit"], done["kind"]) == ("true", False, 0, "command")
    assert os.path.isabs(done["argv"][0])


def test_progress_is_published_at_most_five_times_a_second():
    seen = []
    work = Work({}, "", lambda args, job: (), report=seen.append)
    for done in range(1000):
        work.report(done, 1000)
    assert len(seen) == 1
    work.report(1000, 1000, last=True)
    assert seen[-1]["done"] == 1000


@pytest.fixture
def watched(tmp_path, job):
    state, run = str(tmp_path / "state"), str(tmp_path / "run")
    store, live = Store(job, state, run), set()
    store.open()
    return store, live, transient_units.Watch(state, run, live.__contains__)


def test_watch_tells_progress_once_and_the_end_once(watched):
    store, live, watch = watched
    assert list(watch.changes()) == []
    store.write("convert-do-1.request", {})
    live.add(transient_units.unit_name(store.job, "convert-do-1"))
    transient_units.reporter(store, "convert-do-1")({"done": 5, "total": 10, "read": 5, "written": 5})
    [line] = watch.changes()
    assert (line["progress"]["step"], line["progress"]["attempt"], line["progress"]["done"]) == ("convert", 1, 5)
    assert list(watch.changes()) == []
    store.finish("convert-do-1", {"state": "done"})
    [line] = watch.changes()
    assert (line["ended"]["state"], line["ended"]["job"]) == ("done", store.job)
    assert list(watch.changes()) == []


def test_watch_does_not_call_a_unit_lost_that_is_only_starting(watched, monkeypatch):
    store, _live, watch = watched
    list(watch.changes())
    store.write("convert-do-1.request", {})
    assert list(watch.changes()) == []
    monkeypatch.setattr(transient_units, "GRACE", -1.0)
    [line] = watch.changes()
    assert line["ended"]["state"] == "lost"


def test_watch_is_silent_about_what_ended_before_it_began(watched):
    store, _live, watch = watched
    store.write("convert-do-1.request", {})
    store.finish("convert-do-1", {"state": "done"})
    assert list(watch.changes()) == []
