"""The runner: intent before the act, outcome after it, and what each kind of answer leads to."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from hosts.remote.host import Answer, HostctlDiffers, Unreachable
from jobs.engine import runner
from jobs.engine.plan import make
from jobs.engine.steps import Task

from .sound import FACTS, MIGRATION

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PLAN = make(MIGRATION, FACTS)
MEASURED = {
    "relay_lv": {"lv_uuid": "xyz"},
    "relay_export": {"started": []},
    "source_fence": {"writes": 1, "sectors_written": 8, "was": "writeable", "holder_unit": "u"},
    "seal": {"sha256": "ab"},
    "compare": {"file_size": 9},
    "stage": {"sha256": "ab", "file_size": 9},
    "stage_verify": {"inode": 2, "file_size": 9, "mtime_ns": 3, "sha256": "ab"},
    "stop": {"live": {"inode": 1, "file_size": 9, "mtime_ns": 3, "uid": 1, "gid": 1, "mode": 1}},
    "swap": {"live_inode": 2, "backup_inode": 1},
}


@dataclass
class Run:
    step: str
    direction: str
    attempt: int
    args: dict[str, Any]
    result: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    unit: str = ""
    boot_id: str = ""
    started_at: dt.datetime = START
    ended_at: dt.datetime | None = None
    silent_since: dt.datetime | None = None
    progress_at: dt.datetime | None = None
    hypervisor: str = ""
    pk: int = 0
    error: dict[str, Any] | None = None
    unread: bool = False


class Journal:
    def __init__(self, clock):
        self.rows, self.clock, self.learned, self.resumed_at = [], clock, {}, None

    def runs(self, step, direction):
        return [run for run in self.rows if (run.step, run.direction) == (step, direction)]

    def begin(self, planned, direction, args):
        attempt, pk = len(self.runs(planned.step.name, direction)) + 1, len(self.rows) + 1
        self.rows.append(Run(planned.step.name, direction, attempt, args, hypervisor=planned.hypervisor, pk=pk))
        self.rows[-1].started_at = self.clock()
        return self.rows[-1]

    def record(self, run, answer):
        run.unit, run.boot_id = answer.unit, answer.boot_id
        self.learned.pop(run.hypervisor, None)
        if answer.state in runner.OVER:
            run.silent_since, run.error = None, answer.error
            run.result, run.evidence, run.ended_at = answer.state, answer.evidence, self.clock()
        elif answer.state == "running":
            run.result = "running"

    def silent(self, run):
        run.silent_since = run.silent_since or self.clock()

    def heard(self, run):
        run.silent_since = None

    def unread(self, run, unread):
        run.unread = unread

    def learn(self, hypervisor, boot_id):
        self.learned[hypervisor] = boot_id

    def evidence(self):
        return {run.step: run.evidence for run in self.rows if (run.direction, run.result) == ("do", "done")}

    def boot_id(self, hypervisor):
        last = next((run.boot_id for run in reversed(self.rows) if run.hypervisor == hypervisor and run.boot_id), "")
        return self.learned.get(hypervisor, last)

    def touched(self, hypervisor):
        return any(run.hypervisor == hypervisor for run in self.rows)


class Envelope(NamedTuple):
    step: Any
    direction: str
    run: Run
    stops: str


class Hands:
    """Says what it was told to say, else that all is well; notes what had been written when it was asked."""

    def __init__(self, journal):
        self.journal, self.says, self.calls, self.weary = journal, {}, [], False
        self.booted = {}

    def host(self, on):
        return self

    def request(self, planned, direction, run, stops):
        return Envelope(planned.step, direction, run, stops)

    def call(self, request):
        step, direction, run, stops = request
        assert run in self.journal.rows, "the act came before its intent"
        self.calls.append((step.name, direction, stops))
        said = self.says.get((step.name, direction), [])
        answer = said.pop(0) if said else Answer("done", dict(MEASURED.get(step.name, {})))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def boots(self, roles):
        return {role: self.booted.get(role, "") for role in roles}

    def limits(self):
        return {"rate": 0}

    def tired(self):
        return self.weary


class Stage:
    def __init__(self):
        self.now = START
        self.journal = Journal(lambda: self.now)
        self.hands = Hands(self.journal)

    def advance(self, phase="A"):
        return runner.advance(PLAN.phase(phase), self.journal, self.hands, lambda: self.now)

    def undo(self, *phases, **extra):
        return runner.undo(PLAN.phase(*phases), self.journal, self.hands, lambda: self.now, extra)

    def says(self, step, *answers, direction="do"):
        self.hands.says[step, direction] = list(answers)

    def asked(self, direction="do"):
        return [name for name, way, _ in self.hands.calls if way == direction]


@pytest.fixture
def stage():
    return Stage()


def refusal(code, state="refused"):
    error = {"code": code, "tried": "make it", "found": "something else", "touched": False, "next": ""}
    return Answer(state, error=error)


def test_all_steps_are_asked_for_in_order_and_once(stage):
    assert stage.advance() == runner.Finished()
    assert stage.asked() == [each.step.name for each in PLAN.phase("A")]
    assert stage.advance() == runner.Finished()
    assert len(stage.hands.calls) == len(PLAN.phase("A"))


def test_running_work_is_waited_for_and_asked_about_again_as_the_same_attempt(stage):
    stage.says("convert", Answer("running", unit="volmig-x-convert-do-1"))
    outcome = stage.advance()
    assert isinstance(outcome, runner.Wait)
    assert "running on src" in outcome.sentence
    assert stage.advance() == runner.Finished()
    assert [run.attempt for run in stage.journal.runs("convert", "do")] == [1]


@pytest.mark.parametrize(("since", "pause"), [(None, 30), (14, 120), (-14, 120), (15, 30), (-40, 30)])
def test_work_whose_bytes_move_is_looked_after_less_often(stage, since, pause):
    stage.says("convert", Answer("running"), Answer("running"))
    stage.advance()
    (run,) = stage.journal.runs("convert", "do")
    run.progress_at = None if since is None else stage.now - dt.timedelta(seconds=since)
    assert (stage.advance().until - stage.now).total_seconds() == pause, "a watcher's clock may be wrong"


def test_work_that_moves_no_byte_is_told_although_its_hypervisor_answers(stage):
    stage.says("convert", Answer("running"), Answer("running"))
    stage.advance()
    (run,) = stage.journal.runs("convert", "do")
    run.progress_at = stage.journal.clock() - dt.timedelta(seconds=91)
    assert "moved nothing for 91 s" in stage.advance().sentence
    assert run.silent_since is None, "it did answer"


def test_a_mount_that_never_carries_a_first_byte_is_told(stage):
    stage.says("source_mount", *[Answer("running")] * 3)
    assert "moved nothing" not in stage.advance().sentence
    stage.now += dt.timedelta(seconds=90)
    assert "moved nothing" not in stage.advance().sentence
    stage.now += dt.timedelta(seconds=1)
    assert "moved nothing for 91 s; check the link, and its MTU on both hosts" in stage.advance().sentence


def test_work_that_needs_no_link_and_counts_no_bytes_may_take_its_time(stage):
    stage.says("relay_fs", *[Answer("running")] * 2)
    stage.advance()
    stage.now += dt.timedelta(minutes=10)
    assert stage.advance().sentence == "Put a filesystem on it and mount it is running on jump."


@pytest.mark.parametrize("code", ["foreign-volume", "unknown-state"])
def test_what_is_not_foreseen_halts(stage, code):
    stage.says("relay_fs", refusal(code))
    outcome = stage.advance()
    assert isinstance(outcome, runner.Halt)
    assert outcome.data["code"] == code
    assert stage.asked() == ["relay_lv", "relay_fs"]


def test_a_refused_precondition_fails_at_once_with_its_sentence(stage):
    stage.says("source_fence", refusal("volume-open"))
    outcome = stage.advance()
    assert isinstance(outcome, runner.Failed)
    assert "Tried to make it: something else." in outcome.sentence
    assert len(stage.journal.runs("source_fence", "do")) == 1


def test_a_failed_step_is_tried_three_times(stage):
    stage.says("convert", *[refusal("io-error", "failed")] * 5)
    assert isinstance(stage.advance(), runner.Failed)
    assert [run.attempt for run in stage.journal.runs("convert", "do")] == [1, 2, 3]


def test_a_step_that_may_not_be_repeated_fails_at_once(stage):
    stage.advance()
    stage.says("stop", refusal("stop-deadline", "failed"))
    assert isinstance(stage.advance("B"), runner.Failed)
    assert len(stage.journal.runs("stop", "do")) == 1


def test_lost_work_is_begun_again_but_not_for_ever(stage):
    stage.says("convert", refusal("lost", "lost"))
    assert stage.advance() == runner.Finished()
    assert [run.result for run in stage.journal.runs("convert", "do")] == ["lost", "done"]
    other = Stage()
    other.says("convert", *[refusal("lost", "lost")] * 9)
    assert isinstance(other.advance(), runner.Failed)
    assert len(other.journal.runs("convert", "do")) == runner.MAX_LOST


@pytest.mark.parametrize("step", ["convert", "relay_erase", "source_fence"])
def test_a_step_whose_question_a_tool_did_not_answer_is_asked_again_but_not_for_ever(stage, step):
    stage.says(step, refusal("probe-failed"), refusal("probe-failed"))
    assert stage.advance() == runner.Finished()
    assert [run.result for run in stage.journal.runs(step, "do")] == ["refused", "refused", "done"]
    other = Stage()
    other.says(step, *[refusal("probe-failed")] * 9)
    assert isinstance(other.advance(), runner.Failed)
    assert len(other.journal.runs(step, "do")) == runner.MAX_FAILED


def test_a_host_that_does_not_answer_is_waited_for_with_longer_pauses_and_flagged(stage):
    stage.says("relay_fs", *[Unreachable("reach jump", "connection refused")] * 9)
    first = stage.advance()
    assert isinstance(first, runner.Wait)
    assert "needs attention" not in first.sentence
    stage.now += dt.timedelta(seconds=30)
    second = stage.advance()
    assert second.until - stage.now > first.until - START
    stage.now += dt.timedelta(seconds=61)
    third = stage.advance()
    assert "for 91 s; needs attention" in third.sentence
    assert len(stage.journal.runs("relay_fs", "do")) == 1


def differs(has="1111", touched=False):
    error = HostctlDiffers("call lv_create", "it has another hostctl", "Install it.", touched)
    error.has, error.needs = has, "2222"
    return error


def test_a_hypervisor_without_the_version_of_hostctl_is_waited_for_like_one_that_is_away(stage):
    stage.says("relay_lv", differs(), differs(), Answer("done", MEASURED["relay_lv"]))
    first = stage.advance()
    assert isinstance(first, runner.Wait)
    assert first.silent_since is None
    assert "jump has hostctl 1111, this migration needs 2222. Install it." in first.sentence
    stage.now += dt.timedelta(seconds=91)
    late = stage.advance()
    assert late.silent_since == START
    assert "waits for hostctl for 91 s; needs attention. jump has hostctl 1111" in late.sentence
    assert isinstance(stage.advance(), runner.Finished)
    assert len(stage.journal.runs("relay_lv", "do")) == 1


def test_a_step_that_a_hypervisor_refused_unread_has_not_begun(stage):
    stage.says("relay_lv", differs(), differs())
    for _ in range(2):
        stage.advance()
        assert not runner.begun(Task.OPEN, stage.journal)
    assert isinstance(stage.undo("A"), runner.Finished)
    assert stage.asked("undo") == []


@pytest.mark.parametrize("first", [Unreachable("reach jump", "no answer", touched=None), differs(touched=None)])
def test_a_step_that_may_have_been_read_once_has_begun_whatever_is_refused_later(stage, first):
    stage.says("relay_lv", first, differs())
    for _ in range(2):
        stage.advance()
        assert runner.begun(Task.OPEN, stage.journal)


def test_before_a_step_that_was_refused_unread_is_asked_for_again_it_counts_as_begun(stage):
    stage.says("relay_lv", differs(), Unreachable("reach jump", "the connection was cut", touched=None))
    stage.advance()
    assert not runner.begun(Task.OPEN, stage.journal)
    stage.advance()
    assert runner.begun(Task.OPEN, stage.journal)


def test_a_step_that_rests_on_what_was_not_measured_halts_before_anything_is_asked(stage):
    stage.says("relay_lv", Answer("done", {}))
    outcome = stage.advance()
    assert isinstance(outcome, runner.Halt)
    assert (outcome.step, outcome.data["code"], stage.asked()) == ("relay_fs", "unready", ["relay_lv"])


def test_a_busy_host_is_asked_again_soon(stage):
    stage.says("relay_fs", Answer("busy"))
    outcome = stage.advance()
    assert outcome.until == START + dt.timedelta(seconds=2)
    assert stage.advance() == runner.Finished()


def test_a_host_that_stays_busy_is_for_a_person_after_ten_minutes_and_is_waited_for_anew(stage):
    stage.says("relay_fs", *[Answer("busy")] * 40)
    asked = 0
    while isinstance(outcome := stage.advance(), runner.Wait):
        stage.now, asked = outcome.until, asked + 1
    assert (outcome.step, outcome.data["code"]) == ("relay_fs", "stays-busy")
    assert (stage.now - START >= runner.BUSY_FOR_LONG, asked < 20) == (True, True)
    assert isinstance(stage.advance(), runner.Wait)


def test_a_tired_tick_begins_nothing_more(stage):
    stage.hands.weary = True
    assert isinstance(stage.advance(), runner.Wait)
    assert stage.hands.calls == []


def test_what_a_reboot_took_away_is_made_again_until_it_is_torn_down(stage):
    booted = [Answer("done", {}, boot_id="first"), Answer("done", {}, boot_id="second")]
    stage.says("source_mount", *booted)
    fence = MEASURED["source_fence"]
    stage.says("source_fence", *[Answer("done", fence, boot_id=boot) for boot in ("first", "second")])
    stage.says("convert", Answer("lost", boot_id="second"))
    assert stage.advance() == runner.Finished()
    assert stage.asked().count("source_mount") == 2
    assert stage.asked().count("relay_fs") == 1


GROUND = ["relay_fs", "relay_export", "source_mount"]


@pytest.mark.parametrize(("code", "state"), [("io-error", "failed"), ("not-mounted", "refused")])
@pytest.mark.parametrize("step", ["convert", "compare"])
def test_what_a_step_that_failed_rests_on_is_asked_for_again_from_the_ground_up(stage, step, code, state):
    stage.says(step, refusal(code, state))
    assert stage.advance() == runner.Finished()
    at = stage.asked().index(step)
    assert stage.asked()[at : at + 5] == [step, *GROUND, step]
    assert stage.asked().count("relay_lv") == stage.asked().count("source_fence") == 1


@pytest.mark.parametrize("code", ["foreign-mount", "volume-open"])
def test_a_refusal_of_another_kind_has_nothing_asked_for_again(stage, code):
    stage.says("convert", refusal(code))
    stage.advance()
    assert stage.asked()[-1] == "convert"
    assert stage.asked().count("source_mount") == 1


def test_what_is_asked_for_again_gives_a_step_that_fails_by_itself_no_more_attempts(stage):
    boot = {"boot_id": "first"}
    for name in (*GROUND, "source_fence"):
        stage.says(name, *[Answer("done", dict(MEASURED.get(name, {})), **boot) for _ in range(9)])
    stage.says("convert", *[refusal("io-error", "failed")] * 9)
    assert isinstance(stage.advance(), runner.Failed)
    assert stage.asked().count("convert") == runner.MAX_FAILED


def test_undo_takes_back_in_reverse_what_was_begun(stage):
    stage.says("source_mount", Unreachable("reach src", "gone"))
    stage.advance()
    assert stage.undo("A") == runner.Finished()
    assert stage.asked("undo") == ["source_mount", "relay_export", "relay_fs", "relay_lv"]


def test_undo_stops_the_unit_that_still_runs(stage):
    stage.says("convert", Answer("running", unit="volmig-x-convert-do-1"))
    stage.advance()
    stage.undo("A")
    assert stage.hands.calls[-6] == ("convert", "undo", "volmig-x-convert-do-1")
    assert [stops for _, way, stops in stage.hands.calls if way == "undo"][1:] == [""] * 5


def test_a_refused_step_has_nothing_to_undo(stage):
    stage.says("relay_fs", refusal("not-empty"))
    stage.advance()
    stage.undo("A")
    assert stage.asked("undo") == ["relay_lv"]


def test_what_was_torn_down_is_not_undone_again(stage):
    stage.advance()
    stage.undo("A")
    assert stage.asked("undo") == ["stage", "source_fence"]


def test_one_undo_that_fails_keeps_the_others_going_and_halts_at_the_end(stage):
    stage.says("convert", refusal("io-error", "failed"), refusal("io-error", "failed"), refusal("io-error", "failed"))
    stage.advance()
    stage.says("source_mount", *[refusal("busy-mount", "failed")] * 3, direction="undo")
    for pause in (5, 30):
        waits = stage.undo("A")
        assert waits.until == stage.now + dt.timedelta(seconds=pause)
        assert stage.undo("A") == waits
        stage.now = waits.until
    outcome = stage.undo("A")
    assert isinstance(outcome, runner.Halt)
    assert [each["step"] for each in outcome.data["errors"]] == ["source_mount"]
    assert stage.asked("undo")[-3:] == ["relay_export", "relay_fs", "relay_lv"]
    assert stage.undo("A") == outcome
    assert stage.asked("undo").count("source_mount") == 3
    stage.journal.resumed_at = stage.now = stage.now + dt.timedelta(seconds=1)
    assert stage.undo("A") == runner.Finished()


def test_undoing_is_told_what_was_made_and_what_else_it_has_to_know(stage):
    stage.advance()
    stage.advance("B")
    stage.now += dt.timedelta(hours=1)
    stage.undo("B", swap={"untouched": True})
    args = stage.journal.runs("swap", "undo")[0].args
    assert (args["untouched"], args["made"]) == (True, MEASURED["swap"])


def test_the_lock_stays_until_no_cache_can_name_the_old_file(stage):
    stage.advance()
    stage.advance("B")
    outcome = stage.advance("C")
    assert isinstance(outcome, runner.Wait)
    assert outcome.until == START + dt.timedelta(seconds=FACTS.destination.acdirmax + MIGRATION.margin)
    assert "unlock" not in stage.asked()
    stage.now = outcome.until
    assert stage.advance("C") == runner.Finished()


def test_the_sweep_halts_when_something_of_ours_is_still_there(stage):
    stage.advance()
    forgets = [each for each in PLAN.phase("C") if each.step.verb == "forget"]
    stage.says("forget_relay", Answer("done", {"left": ["mount on /srv/volmig/x"]}), direction="undo")
    outcome = runner.sweep(forgets, stage.journal, stage.hands, lambda: stage.now)
    assert isinstance(outcome, runner.Halt)
    assert "mount on /srv/volmig/x" in outcome.sentence


def test_the_sweep_leaves_hypervisors_alone_that_were_never_touched(stage):
    forgets = [each for each in PLAN.phase("C") if each.step.verb == "forget"]
    assert runner.sweep(forgets, stage.journal, stage.hands, lambda: stage.now) == runner.Finished()
    assert stage.hands.calls == []


def test_a_pass_that_hangs_is_left_alone_while_what_it_stands_on_is_made_again(stage):
    stage.says("relay_fs", *[Answer("done", boot_id=boot) for boot in ("first", "second")])
    stage.says("relay_export", *[Answer("done", {"started": []}, boot_id=boot) for boot in ("first", "second")])
    stage.says("convert", *[Answer("running", unit="volmig-x-convert-do-1")] * 3)
    stage.advance()
    stage.hands.booted = {"relay": "second"}
    assert isinstance(stage.advance(), runner.Wait)
    assert stage.asked()[-4:] == ["convert", "relay_fs", "relay_export", "convert"]
    assert stage.advance() == runner.Finished()
    assert stage.asked().count("source_mount") == 2
    assert [run.attempt for run in stage.journal.runs("convert", "do")] == [1]


def test_a_refusal_is_judged_only_when_the_others_have_answered(stage):
    stage.says("compare", refusal("not-fenced"))
    stage.hands.booted = {"relay": Unreachable("reach jump", "connection refused")}
    for _ in range(5):
        waits = stage.advance()
        assert isinstance(waits, runner.Wait)
    stage.now += dt.timedelta(seconds=95)
    assert "for 95 s; needs attention. Tried to reach jump" in stage.advance().sentence
    stage.hands.booted = {}
    assert isinstance(stage.advance(), runner.Failed)
    assert stage.asked().count("compare") == 1


def test_where_the_instance_is_down_nobody_waits_for_the_relay(stage):
    stage.advance()
    stage.hands.booted = {"relay": Unreachable("reach jump", "connection refused")}
    stage.says("swap", refusal("attributes-differ"))
    assert isinstance(stage.advance("B"), runner.Failed)


def test_a_step_that_was_taken_away_is_restored_once(stage):
    lock = PLAN.phase("B")[0]
    restore = (lock, stage.journal, stage.hands, lambda: stage.now)
    assert runner.restore(*restore) == runner.Finished()
    assert stage.hands.calls == []
    stage.advance()
    stage.advance("B")
    stage.now += dt.timedelta(hours=1)
    stage.advance("C")
    for _ in range(2):
        assert runner.restore(*restore) == runner.Finished()
    assert stage.asked().count("lock") == 2
    stage.undo("B")
    stage.now += dt.timedelta(hours=1)
    assert stage.undo("B") == runner.Finished()
    assert runner.restore(*restore) == runner.Finished()
    assert (stage.asked().count("lock"), stage.asked("undo")[-1]) == (2, "lock")


def on_trial(stage):
    """Everything done up to the trial, with the lock taken off again."""
    for phase in ("A", "B", "C"):
        stage.now += dt.timedelta(hours=1)
        stage.advance(phase)
    lock = PLAN.phase("B")[0]
    return lambda: runner.restore(lock, stage.journal, stage.hands, lambda: stage.now)


def test_what_was_begun_and_has_no_end_yet_is_not_restored_yet(stage):
    restore = on_trial(stage)
    stage.says("lock", Unreachable("call lock on dst", "the connection was cut"))
    assert isinstance(restore(), runner.Wait)
    assert restore() == runner.Finished()
    assert stage.asked().count("lock") == 3


def test_what_could_not_be_restored_is_not_taken_for_restored(stage):
    restore = on_trial(stage)
    stage.says("lock", *[Answer("failed", error={"code": "busy", "found": "no"})] * 3)
    assert isinstance(restore(), runner.Failed)


def test_what_may_have_been_taken_away_is_restored_too(stage):
    stage.says("unlock", Unreachable("call unlock on dst", "the connection was cut"))
    restore = on_trial(stage)
    assert restore() == runner.Finished()
    assert stage.asked().count("lock") == 2
