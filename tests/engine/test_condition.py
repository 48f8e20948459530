"""The one sentence about a migration: what is most urgent wins, and where nothing moves no time left is shown."""

import datetime as dt
import itertools
from types import SimpleNamespace

import pytest

from jobs.engine import condition, states
from jobs.engine.condition import Down, Situation, Step

NOW = dt.datetime(2026, 11, 30, 2, 0, tzinfo=dt.UTC)
STALLED = dt.timedelta(seconds=90)


def ago(seconds):
    return NOW - dt.timedelta(seconds=seconds)


def step(**changed):
    given = {"name": "convert", "title": "Convert", "host": "src", "undo": False, "started_at": ago(30)}
    return Step(**{**given, "answered": True, "forecast": (20, 60, 600), **changed})


def moving(**changed):
    return step(counts_bytes=True, progress_at=ago(1), seconds_left=40.0, **changed)


def seen(**changed):
    return Situation(**{"now": NOW, "status": "preparing", "calm": "Copying.", "stalled_after": STALLED, **changed})


def told(**changed):
    return condition.condition(seen(**changed))


DOWN = Down(ago(37), forecast=(3.3, 19, 104))
URGENT = {
    "halted": {"halt_reason": "Strange.", "halted_at": ago(5)},
    "down-unanswered": {"down": DOWN, "step": step(answered=False, started_at=ago(100)), "status": "swapping"},
    "down-late": {"down": Down(ago(200), forecast=(3, 19, 104)), "step": step(), "status": "swapping"},
    "unanswered": {"step": step(answered=False, started_at=ago(20))},
    "idle": {"idle_since": ago(95)},
    "still": {"step": step(counts_bytes=True, progress_at=ago(20))},
    "waiting-slot": {"waiting_for": "It waits for migration 3.", "waits": "slot", "waiting_since": ago(8)},
    "late": {"step": step(started_at=ago(700), counts_bytes=True, progress_at=ago(1))},
    "running": {"step": moving()},
    "person": {"wants": "start", "status": "planned"},
    "over": {"status": "done"},
}


@pytest.mark.parametrize("kind", URGENT)
def test_each_condition_is_told(kind):
    found = told(**URGENT[kind])
    assert found.kind == kind
    assert found.sentence.endswith(".")


def test_of_two_conditions_the_more_urgent_is_told():
    assert told(**URGENT["running"], **URGENT["halted"]).kind == "halted"
    assert told(**{**URGENT["down-unanswered"], **URGENT["halted"]}).sentence.startswith("The instance is down. ")
    assert told(**{**URGENT["down-late"], "step": step(answered=False, started_at=ago(91))}).kind == "down-unanswered"
    assert told(**URGENT["idle"], **URGENT["running"]).kind == "idle"
    assert told(**URGENT["still"], **URGENT["waiting-slot"]).kind == "still"
    assert told(**URGENT["running"], **URGENT["waiting-slot"]).kind == "running"


def test_a_call_without_an_answer_is_no_silence_while_figures_come_in():
    """The unit runs, the watcher hears of it, and one call timed out: the host is there."""
    copying = {"silent_since": ago(300), "waiting_for": "Tried to convert: no answer.", "waits": "host"}
    found = told(step=moving(silent_since=copying.pop("silent_since")), **copying)
    assert (found.kind, found.detail, found.moving) == ("running", "", True)


@pytest.mark.parametrize(
    ("silent", "attention"),
    [({"answered": False}, True), ({"silent_since": ago(91)}, True), ({"silent_since": ago(89)}, False)],
)
def test_a_silence_needs_attention_from_the_threshold_on(silent, attention):
    found = told(step=step(**{"started_at": ago(91), **silent}))
    assert (found.attention, found.tone) == (attention, "warn")
    assert found.sentence == "Convert: no response from src."


def test_the_sentence_names_who_is_silent_and_not_who_waits_for_it():
    found = told(step=step(silent_since=ago(95)), waiting_for="…", waits="host", waits_on="jump")
    assert (found.sentence, found.advice) == ("Convert: no response from jump.", "Check jump.")


@pytest.mark.parametrize("waits", condition.TROUBLE)
def test_each_trouble_with_a_hypervisor_is_told_for_what_it_is(waits):
    """One that answers without hostctl, or with another key, is not one that does not respond."""
    there = {"waiting_for": "…", "waits": waits, "waits_on": "jump", "waiting_since": ago(95)}
    with_step = told(step=step(silent_since=ago(95)), **there)
    without = told(status="checking", **there)
    assert with_step.sentence == f"Convert: {condition.TROUBLE[waits][0].format('jump')}."
    assert with_step.sentence[9:].lower() == without.sentence.lower()
    assert with_step.kind == without.kind == ("unanswered" if waits == "host" else waits)
    assert (with_step.attention, without.attention, with_step.moving) == (True, True, False)
    assert ("no response" in with_step.sentence) == (waits == "host")


def test_a_hanging_start_needs_attention_although_its_host_answers():
    start = step(name="start", title="Start the instance", host="dst", forecast=(1, 3, 10))
    late = told(step=step(name="start", title="Start", host="dst", forecast=(1, 3, 10), started_at=ago(20)))
    assert (late.kind, late.moving) == ("late", False)
    hanging = told(step=condition.Step(**{**vars(start), "started_at": ago(95)}), down=DOWN, status="swapping")
    assert (hanging.kind, hanging.tone, hanging.attention) == ("down-hanging", "bad", True)


def test_raw_errors_are_the_detail_and_never_the_sentence():
    raw = "Tried to convert the source volume on volmig@10.0.0.1: no answer within 20 s."
    found = told(step=step(silent_since=ago(95)), waiting_for=raw, waits="host", waits_on="src")
    assert raw not in found.sentence
    assert found.detail == raw


def test_there_is_no_time_left_unless_all_moves_as_forecast():
    """Every combination of what may be the case at once: whoever shows a time left asks this one function."""
    steps = [("convert", (20.0, 60.0, 600.0)), ("compare", (5.0, 10.0, 20.0))]
    parts = [{}, *URGENT.values()]
    shown = 0
    for one, other, third in itertools.product(parts, parts, parts):
        situation = seen(**{**one, **other, **third})
        found = condition.condition(situation)
        left = condition.time_left(found, situation.step, steps)
        if left is not None:
            shown += 1
            assert found.kind in ("running", "working"), found
            assert not found.attention
            assert not situation.halt_reason
            assert not situation.is_down or not situation.down.over(NOW)
    assert shown > 10


def test_a_time_left_is_by_the_measured_rate_for_the_running_step():
    steps = [("convert", (20.0, 60.0, 600.0)), ("compare", (5.0, 10.0, 20.0))]
    left = condition.time_left(told(step=moving()), moving(), steps)
    assert left == (37.0, 50.0, 76.0)


def test_no_sentence_holds_a_length_of_time():
    """They are compared to see whether something changed, and the age stands beside them."""
    for changed in URGENT.values():
        situation = seen(**changed)
        later = condition.Situation(**{**vars(situation), "now": NOW + dt.timedelta(seconds=0.5)})
        assert condition.condition(situation) == condition.condition(later)


@pytest.mark.parametrize("status", states.STATUSES)
def test_every_status_has_a_sentence(status):
    assert told(status=status).sentence == "Copying."


# The forecast of the whole


def test_finished_steps_count_as_they_took_and_late_ones_are_named():
    steps = [("lock", (0.3, 1.0, 4.0)), ("convert", (20.0, 60.0, 600.0)), ("compare", (5.0, 10.0, 20.0))]
    running = moving()
    found = condition.outlook(steps, {"lock": 167.0}, running, told(step=running), NOW)
    assert found.late == ("lock",)
    assert found.whole == (167 + 30 + 32 + 5, 167 + 30 + 40 + 10, 167 + 30 + 56 + 20)
    assert not found.open_ended


def test_a_running_step_over_its_forecast_leaves_the_end_open():
    stuck = step(started_at=ago(700))
    found = condition.outlook([("convert", (20.0, 60.0, 600.0))], {}, stuck, told(step=stuck), NOW)
    assert (found.open_ended, found.late, found.whole[0]) == (True, ("convert",), 700.0)


# The clock


def run(name, direction="do", result="done", began=100, ended=50, **evidence):
    end = ago(ended) if ended is not None else None
    return SimpleNamespace(
        step=name, direction=direction, result=result, started_at=ago(began), ended_at=end, silent_since=None,
        evidence=evidence,
    )  # fmt: skip


def at(seconds):
    return ago(seconds).timestamp()


def test_it_runs_from_the_recorded_stop_until_the_guest_was_seen_running():
    stop = run("stop", was="running", stopped_at=at(60))
    assert condition.downtime([stop], None) == Down(ago(60))
    start = run("start", began=45, ended=20, started_at=at(25), state="running")
    assert condition.downtime([stop, run("swap"), start], None) == Down(ago(60), ago(25))


def test_a_hypervisors_clock_that_is_wrong_does_not_move_it_out_of_the_call():
    for said, expected in ((at(5000), 100), (at(-5000), 50)):
        assert condition.downtime([run("stop", was="running", stopped_at=said)], None).since == ago(expected)


def test_an_instance_that_was_off_before_has_no_downtime():
    assert condition.downtime([run("stop", was="shut off", stopped_at=at(60))], None) is None


def test_a_failed_start_does_not_end_it_and_a_start_on_the_old_disk_does():
    stop, failed = run("stop", was="running", stopped_at=at(90), began=95, ended=89), run("start", result="failed")
    assert condition.downtime([stop, failed], None).until is None
    taken_back = run("start", "undo", was="shut off", stopped_at=at(40))
    started = run("stop", "undo", began=30, ended=10, started_at=at(12), state="running")
    assert condition.downtime([stop, failed, taken_back, started], None) == Down(ago(90), ago(12))


def test_a_rollback_from_the_trial_has_a_downtime_of_its_own():
    stop = run("stop", was="running", stopped_at=at(900), began=950, ended=890)
    start = run("start", began=880, ended=870, started_at=at(875))
    again = run("start", "undo", was="running", stopped_at=at(40), began=60, ended=30)
    assert condition.downtime([stop, start, again], None) == Down(ago(40))


def test_while_nobody_knows_what_became_of_the_stop_it_may_be_down():
    asked = run("stop", result="", began=70, ended=None)
    asked.silent_since = ago(50)
    assert condition.downtime([asked], None) == Down(ago(70), certain=False)
    assert condition.downtime([run("stop", result="lost", began=70)], None).certain is False
    refused = run("stop", result="failed", began=30, ended=10)
    assert condition.downtime([run("stop", result="lost", began=70), refused], None) is None


@pytest.mark.parametrize(("seconds", "over"), [(103, False), (105, True)])
def test_it_is_over_its_forecast_beyond_the_upper_bound(seconds, over):
    assert Down(ago(seconds), forecast=(3, 19, 104)).over(NOW) is over
