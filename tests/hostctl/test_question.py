"""Every question has its own time limit: what hangs is named, left behind, counted, and not repeated for ever."""

import contextlib
import json
import os
import signal
import time

import pytest

from hosts.remote.hostctl import commands, question, untrusted, verbs
from hosts.remote.hostctl.act import Refused

DEAD, ALIVE = "filer:/dead", "filer:/alive"


@pytest.fixture
def undying(monkeypatch):
    """SIGKILL reaches nobody, as where a process waits for a dead server; what was started is ended afterwards."""
    real, meant = os.kill, []
    monkeypatch.setattr(question.os, "kill", lambda pid, number: meant.append(pid))
    yield meant
    for pid in meant:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            real(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def hangs(work):
    untrusted.note(f"open the share {work.args['share_source']}")
    time.sleep(60)


def answers(work):
    return {"heard": os.getpid()}


@pytest.fixture
def ask(tmp_path):
    def asked(run, share=DEAD, seconds=0.2):
        work = commands.Work({"share_source": share}, "", lambda args, job: ())
        return question.answered(run, work, "destination_facts", str(tmp_path), seconds)

    return asked


def refused(code, run):
    with pytest.raises(Refused) as stop:
        run()
    assert stop.value.code == code
    return stop.value


def test_an_answer_comes_from_another_process(ask):
    assert ask(answers)["heard"] != os.getpid()


def children():
    """The processes of this one, ended ones that nobody waited for too."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_what_hangs_is_named_and_ended(ask, tmp_path):
    before = children()
    told = refused("timed-out", lambda: ask(hangs))
    assert told.found.startswith("open the share filer:/dead did not end within")
    assert question.stuck(str(tmp_path)) == []
    assert children() == before, "the process that hung is still there"


def test_a_process_that_cannot_be_ended_is_counted_and_no_more_than_three_are_left_behind(ask, tmp_path, undying):
    for _ in range(question.STUCK_OF_A_KIND):
        refused("timed-out", lambda: ask(hangs))
    assert [each.pid for each in question.stuck(str(tmp_path))] == sorted(undying)
    told = refused("too-many-stuck", lambda: ask(hangs))
    assert len(undying) == question.STUCK_OF_A_KIND, "it started another one"
    assert "open the share filer:/dead" in told.found
    assert ask(answers, ALIVE), "another share is asked all the same"


def test_once_the_server_answers_again_questions_are_asked_again(ask, tmp_path, undying, monkeypatch):
    for _ in range(question.STUCK_OF_A_KIND):
        refused("timed-out", lambda: ask(hangs))
    monkeypatch.undo()
    for pid in undying:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert ask(answers)
    assert question.stuck(str(tmp_path)) == []


def test_all_kinds_together_are_limited_too(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(question, "STUCK", 2)
    for number in range(2):
        question.remember(str(tmp_path), os.getpid() if number else os.getppid(), f"kind {number}", "stat /x")
    refused("too-many-stuck", lambda: ask(answers))


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_stuck_one(tmp_path):
    question.remember(str(tmp_path), os.getpid(), "kind", "stat /x")
    path = tmp_path / "stuck" / f"{os.getpid()}.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), began="1")))
    assert question.stuck(str(tmp_path)) == []
    assert not path.exists()


def test_a_tool_gets_no_more_time_than_is_left_of_the_question(ask):
    def slow(work):
        return {"exit": work.ask("sleep", 60, good=None, timeout=50).exit}

    assert ask(slow, seconds=1.5) == {"exit": 124}


def test_a_question_whose_process_dies_is_refused(ask):
    refused("no-answer", lambda: ask(lambda work: os._exit(1)))


def test_the_desk_asks_every_question_that_way_and_answers_itself_what_it_knows(desk, job, monkeypatch):
    hello = verbs.VERBS["hello"]
    monkeypatch.setattr(question, "within", lambda verb: 0.2)
    monkeypatch.setitem(verbs.VERBS, "hello", hello._replace(run=lambda work: time.sleep(60)))
    answer = desk.handle(json.dumps({"verb": "hello"}).encode())
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("refused", "timed-out", False)
    assert desk.handle(json.dumps({"verb": "status", "job": job}).encode())["state"] == "done"


def test_every_question_ends_before_whoever_asked_through_ssh_gives_up():
    from hosts.tasks import INVENTORY_SECONDS, LEFTOVERS_SECONDS

    patience = {"inventory": INVENTORY_SECONDS, "leftovers": LEFTOVERS_SECONDS}
    asked = [name for name, verb in verbs.VERBS.items() if not verb.mutates]
    assert [name for name in asked if question.within(name) + 3 >= patience.get(name, 20)] == []
