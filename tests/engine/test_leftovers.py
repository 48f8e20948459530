"""The ledger against reality, purely: every difference has its name, and only what is proved may be removed."""

import datetime as dt
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine.drift import (
    Entry,
    Finding,
    Thing,
    Told,
    bound,
    by_hand,
    compare,
    step_for,
    why_not_removed,
    why_not_struck,
)
from jobs.engine.routes import named, steps

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)
BEFORE, AFTER = NOON - dt.timedelta(hours=1), NOON + dt.timedelta(minutes=1)
JOB, OTHER = "0f8fad5b-d9cb-469f-a165-70867728950e", "11111111-2222-4333-8444-555555555555"
LV = Entry("lv", "jump", "vg/volmig_0f8", JOB, "UUID-1", "present", BEFORE)
SEEN = Thing("lv", "jump", "vg/volmig_0f8", JOB, "UUID-1", 1 << 30)
ALL = Told("jump", NOON, frozenset({"lv", "unit"}))


def one(entry, thing, told=ALL):
    found = compare([entry] if entry else [], [thing] if thing else [], [told])
    assert len(found) <= 1
    return found[0] if found else None


def verdict(*args):
    found = one(*args)
    return found and found.verdict


@pytest.mark.parametrize(
    ("entry", "thing", "wanted"),
    [
        (LV, SEEN, "left"),
        (replace(LV, needed="Migration 1 is preparing.", at_work=True), SEEN, "needed"),
        (replace(LV, state="gone"), SEEN, "left"),
        (replace(LV, state="trace"), SEEN, "left"),
        (replace(LV, state="reserved", identity=""), SEEN, "left"),
        (LV, None, "gone"),
        (replace(LV, state="reserved"), None, "gone"),
        (replace(LV, state="reserved", needed="x", at_work=True), None, None),
        (replace(LV, state="gone"), None, None),
        (replace(LV, state="trace"), None, None),
        (None, SEEN, "stranger"),
        (LV, replace(SEEN, identity="UUID-2"), "other"),
        (LV, replace(SEEN, identity=""), "other"),
        (LV, replace(SEEN, job=OTHER), "other"),
        (LV, replace(SEEN, job=""), "other"),
        (replace(LV, state="gone"), replace(SEEN, job=OTHER), "stranger"),
    ],
)
def test_every_difference_has_its_name(entry, thing, wanted):
    assert verdict(entry, thing) == wanted


@pytest.mark.parametrize("thing", [SEEN, None, replace(SEEN, identity="UUID-2")])
def test_what_the_ledger_learnt_after_the_scan_is_not_held_against_it(thing):
    assert one(replace(LV, since=AFTER), thing) is None
    assert one(replace(LV, since=NOON), thing) is None


def test_a_place_that_was_not_asked_proves_no_absence():
    assert one(LV, None, Told("src", NOON, ALL.kinds)) is None


def test_a_kind_that_could_not_be_listed_proves_no_absence():
    assert one(LV, None, Told("jump", NOON, frozenset({"unit"}))) is None


def test_the_same_name_at_another_place_is_another_thing():
    found = compare([LV], [replace(SEEN, place="src")], [ALL, Told("src", NOON, ALL.kinds)])
    assert sorted(each.verdict for each in found) == ["gone", "stranger"]


def test_what_a_job_at_work_has_lost_is_told_and_does_not_count_as_drift():
    found = one(replace(LV, needed="x", at_work=True), None)
    assert (found.verdict, found.drifts) == ("gone", False)
    assert "running" in why_not_struck(found)
    assert one(LV, None).drifts
    assert why_not_struck(one(LV, None)) == ""


@pytest.mark.parametrize(
    ("entry", "thing", "says"),
    [
        (LV, None, "already gone"),
        (None, SEEN, "not in the inventory"),
        (
            LV,
            replace(SEEN, identity="UUID-2"),
            "Another object has this name: the inventory has UUID-1, found was UUID-2",
        ),
        (LV, replace(SEEN, job=OTHER), "Another object has this name"),
        (replace(LV, needed="Migration 1 is preparing."), SEEN, "Migration 1 is preparing."),
        (replace(LV, identity=""), SEEN, "never recorded"),
        (replace(LV, kind="backup"), replace(SEEN, kind="backup"), "purge"),
    ],
)
def test_removal_is_refused(entry, thing, says):
    assert says in why_not_removed(one(entry, thing))


def test_removal_is_offered_for_what_is_proved_to_be_ours_and_needed_by_nobody():
    assert why_not_removed(one(LV, SEEN)) == ""
    assert why_not_removed(one(replace(LV, state="gone"), SEEN)) == ""


@given(
    st.sampled_from(["present", "reserved", "gone", "trace"]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from([JOB, OTHER, ""]),
    st.sampled_from(["", "Migration 1 is preparing."]),
    st.sampled_from([BEFORE, AFTER]),
    st.sampled_from(["lv", "stage", "backup"]),
)
def test_nothing_is_offered_for_removal_that_is_not_proved(state, recorded, found, job, needed, since, kind):
    entry = Entry(kind, "jump", "name", JOB, recorded, state, since, needed, bool(needed))
    for each in compare([entry], [Thing(kind, "jump", "name", job, found)], [ALL]):
        if not why_not_removed(each):
            assert (recorded, job, needed) == (found, JOB, "")
            assert recorded
            assert kind != "backup"
            assert since < NOON


@pytest.mark.parametrize(
    ("kind", "name", "step"),
    [
        ("lv", "vg/volmig_0f8", "relay_lv"),
        ("stage", ".volmig/x/disk.new", "stage"),
        ("directory", "/srv/volmig/x", "relay_fs"),
        ("directory", "/mnt/volmig/x", "source_mount"),
        ("directory", ".volmig/x", "stage"),
        ("unit", "volmig-x-holder", "source_fence"),
        ("unit", "volmig-x-convert-do-1", "forget_relay"),
        ("memory", "/var/lib/volmig/x", "forget_relay"),
    ],
)
def test_each_kind_is_removed_by_the_guarded_undo_of_a_step(kind, name, step):
    assert step_for(kind, name, "relay") == step
    assert named()[step].undo


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("volmig-x-convert-do-1", "convert"),
        ("volmig-x-compare-do-12", "compare"),
        ("volmig-x-stage-do-1", "forget_source"),
        ("volmig-x-convert-undo-1", "forget_source"),
        ("volmig-x-holder", "source_fence"),
    ],
)
def test_only_a_copy_that_still_runs_is_stopped_by_its_own_undo(name, step):
    assert step_for("unit", name, "source", running=True) == step


def test_no_step_removes_a_backup_or_what_nobody_knows():
    assert step_for("backup", ".volmig/x/disk.old", "relay") == ""
    assert step_for("something", "else", "relay") == ""


def test_the_undo_is_told_the_identity_that_was_recorded():
    assert bound("lv", "UUID-1") == {"made": {"lv_uuid": "UUID-1"}}
    assert bound("stage", "4711") == {"expect_inode": 4711}
    assert bound("memory", "/var/lib/volmig/x") == {}


RECIPES = [step.leaves for step in steps() if step.leaves and step.leaves != "lock"]


@pytest.mark.parametrize("kind", [*RECIPES, "directory", "unit", "memory"])
def test_commands_by_hand_quote_whatever_somebody_called_it(kind):
    evil = "/mnt/x'; rm -rf {path} $(reboot)"
    looks, removes = by_hand(Thing(kind, "jump", evil, JOB, "id'; reboot", path=evil))
    assert looks
    assert removes
    for line in (*looks, *removes):
        for word in shlex.split(line):
            assert word.count(evil) == word.count("$(reboot)"), "it is one word of the command, never a part of it"
            assert word not in (";", "reboot")


def test_what_no_recipe_is_known_for_has_none():
    assert by_hand(Thing("something", "jump", "x", JOB, "")) == ([], [])


def test_a_finding_is_about_what_the_ledger_says_and_else_about_what_was_seen():
    assert Finding("gone", LV, None, NOON).about is LV
    assert Finding("stranger", None, SEEN, NOON).about is SEEN
