"""Whose host it is: a request of another volmig, or of an older state of this one, is refused and changes nothing."""

import uuid
from pathlib import Path

import pytest

from hosts.remote.hostctl import ownership
from hosts.remote.hostctl.store import Store

from .test_request import counted, nothing_left, send

__all__ = ["counted", "nothing_left"]  # fixtures
VOLMIG, OTHER = "a" * 32, "b" * 32
FIRST, SECOND, THIRD = "1" * 32, "2" * 32, "3" * 32


def ask(desk, verb, session, claim=1, *, job, step="a", fence=1, volmig=VOLMIG, args=None, **more):
    who = {"incarnation": volmig, "session": session, "claim": claim}
    return send(desk, verb, args, job=job, step=step, fence=fence, **who, **more)


def everything(desk):
    return {str(path): path.read_bytes() for path in Path(desk.state).rglob("*") if path.is_file()}


def owner(desk):
    return desk.ownership().read()


def test_a_host_belongs_to_whoever_acts_there_first(desk, job, counted):
    assert ask(desk, "lv_create", FIRST, 4, job=job)["state"] == "done"
    assert owner(desk) == {"incarnation": VOLMIG, "session": FIRST, "claims": {FIRST: 4}}
    assert send(desk, "status", job=job)["evidence"]["owner"] == owner(desk)


@pytest.mark.parametrize("verb", ["lv_create", "fence", "forget", "own"])
@pytest.mark.parametrize(
    ("session", "more", "code"),
    [
        (SECOND, {}, "other-owner"),
        (SECOND, {"after": THIRD}, "other-owner"),
        (FIRST, {"volmig": OTHER}, "other-incarnation"),
        (SECOND, {"volmig": OTHER, "after": FIRST}, "other-incarnation"),
        ("", {"volmig": ""}, "other-incarnation"),
    ],
)
def test_another_is_refused_with_the_owner_and_nothing_is_changed(desk, job, counted, verb, session, more, code):
    ask(desk, "lv_create", FIRST, 4, job=job)
    before = everything(desk)
    answer = ask(desk, verb, session, 9, job=job, fence=5, step="b", **more)
    if verb == "own" and not session:
        assert answer["error"]["code"] == "bad-request"
    else:
        assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("refused", code, False)
        assert answer["error"]["evidence"] == {"owner": owner(desk)}
    assert (everything(desk), len(counted)) == (before, 1)


def test_whoever_knows_the_owner_takes_over_and_the_claims_of_both_are_kept(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job)
    assert ask(desk, "lv_create", SECOND, 2, job=job, step="b", fence=2, after=FIRST)["state"] == "done"
    assert owner(desk) == {"incarnation": VOLMIG, "session": SECOND, "claims": {FIRST: 4, SECOND: 2}}
    assert ask(desk, "lv_create", FIRST, 5, job=job, step="c", fence=3)["error"]["code"] == "other-owner"


def test_a_lower_claim_of_the_same_session_is_another_worker_and_the_highest_is_kept(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job)
    assert ask(desk, "lv_create", FIRST, 3, job=str(uuid.uuid4()))["state"] == "done"
    assert owner(desk)["claims"] == {FIRST: 4}


@pytest.mark.parametrize("verb", ["lv_create", "fence", "forget"])
def test_a_lower_claim_of_the_same_session_for_the_same_migration_is_refused(desk, job, counted, verb):
    """The database was set back while its workers ran on: by counting, the fence alone would be caught up with."""
    ask(desk, "lv_create", FIRST, 4, job=job)
    ask(desk, "lv_create", FIRST, 9, job=job, step="b")
    before = everything(desk)
    answer = ask(desk, verb, FIRST, 8, job=job, step="c", fence=5)
    assert (answer["state"], answer["error"]["code"], answer["error"]["touched"]) == ("refused", "other-owner", False)
    assert answer["error"]["evidence"] == {"owner": owner(desk)}
    assert (everything(desk), len(counted)) == (before, 2)
    assert ask(desk, "lv_create", FIRST, 9, job=job, step="b")["state"] == "done", "a request that is repeated is none"
    assert ask(desk, verb, FIRST, 10, job=job, step="c", fence=5)["state"] == "done"


def test_a_lower_claim_is_refused_for_a_migration_that_was_forgotten_too(desk, job, counted, nothing_left):
    ask(desk, "lv_create", FIRST, 9, job=job)
    assert ask(desk, "forget", FIRST, 10, job=job)["state"] == "done"
    assert ask(desk, "lv_create", FIRST, 9, job=job, step="b", fence=2)["error"]["code"] == "other-owner"
    assert ask(desk, "lv_create", FIRST, 11, job=job, step="b", fence=2)["state"] == "done"


def test_a_unit_that_begins_while_another_session_takes_over_does_not_lower_the_fence(desk, job, counted, monkeypatch):
    desk.units.run_now = False
    ask(desk, "lv_create", FIRST, 4, job=job)
    check = Store.check_fence

    def taken_over_just_then(store, fence, session=""):
        check(store, fence, session)
        with monkeypatch.context() as once:
            once.setattr(Store, "check_fence", check)
            ask(desk, "fence", SECOND, 9, job=job, fence=2, after=FIRST)

    with monkeypatch.context() as racing:
        racing.setattr(Store, "check_fence", taken_over_just_then)
        desk.run_unit(job, "a-do-1")
    assert desk.store(job).fenced() == {"fence": 2, "session": SECOND, "claim": 9}


def test_of_two_sessions_that_fence_an_unknown_migration_at_once_the_higher_fence_stays(desk, job, monkeypatch):
    exists = Store.exists

    def fenced_just_then(store):
        found = exists(store)
        with monkeypatch.context() as once:
            once.setattr(Store, "exists", exists)
            assert ask(desk, "fence", SECOND, 9, job=job, fence=3, after=FIRST)["state"] == "done"
        return found

    with monkeypatch.context() as racing:
        racing.setattr(Store, "exists", fenced_just_then)
        assert ask(desk, "fence", FIRST, 4, job=job, fence=2)["error"]["code"] == "stale-fence"
    assert desk.store(job).fence() == 3


def test_after_an_adoption_a_session_may_count_on_from_what_its_database_knows(desk, job, counted):
    ask(desk, "lv_create", FIRST, 9, job=job)
    assert ask(desk, "own", FIRST, 3, job="", step="")["state"] == "done"
    assert ask(desk, "fence", FIRST, 3, job=job, fence=2)["state"] == "done"
    assert ask(desk, "lv_create", FIRST, 4, job=job, step="b", fence=2)["state"] == "done"
    assert ask(desk, "lv_create", FIRST, 3, job=job, step="c", fence=3)["error"]["code"] == "other-owner"


def test_only_the_latest_sessions_are_kept(desk, job, counted, monkeypatch):
    monkeypatch.setattr(ownership, "SESSIONS", 2)
    for number, (session, before) in enumerate([(FIRST, ""), (SECOND, FIRST), (THIRD, SECOND)], 1):
        assert ask(desk, "fence", session, job=job, fence=number, after=before)["state"] == "done"
    assert list(owner(desk)["claims"]) == [SECOND, THIRD]


def test_an_equal_fence_of_another_session_is_refused(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job, fence=7)
    before = everything(desk)
    answer = ask(desk, "lv_create", SECOND, 4, job=job, step="b", fence=7, after=FIRST)
    assert answer["error"]["code"] == "stale-fence"
    assert everything(desk) == before, "whoever is refused does not become the owner"


def test_a_host_is_taken_over_from_another_volmig_only_by_its_name(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job)
    asked = {"volmig": OTHER, "after": FIRST}
    assert ask(desk, "own", SECOND, job="", step="", **asked)["error"]["code"] == "other-incarnation"
    wrong = {"instead_of": "c" * 32}
    assert ask(desk, "own", SECOND, job="", step="", args=wrong, **asked)["error"]["code"] == "other-incarnation"
    assert ask(desk, "own", SECOND, job="", step="", args={"instead_of": VOLMIG}, **asked)["state"] == "done"
    assert owner(desk) == {"incarnation": OTHER, "session": SECOND, "claims": {SECOND: 1}}


def test_a_host_that_was_taken_over_knows_only_its_new_owner(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job)
    taken = ask(desk, "own", SECOND, 7, job="", step="", after=FIRST)
    assert taken["evidence"]["before"]["claims"] == {FIRST: 4}
    assert owner(desk)["claims"] == {SECOND: 7}


def test_a_lock_that_another_request_holds_makes_it_busy(desk, job, counted, monkeypatch):
    monkeypatch.setattr("hosts.remote.hostctl.request.LOCK_WITHIN", 0.1)
    with desk.ownership().locked(0) as held:
        assert held
        answers = [ask(desk, verb, FIRST, job=job) for verb in ("lv_create", "fence", "forget", "own")]
    assert [answer["state"] for answer in answers] == ["busy"] * 4
    assert (owner(desk), counted) == ({}, [])


# State that cannot be read counts as damaged, never as none


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"[]", b'{"fence": 8'])
@pytest.mark.parametrize("which", ["owner", "fence", "tombstone", "request"])
def test_a_damaged_file_is_refused_and_never_taken_for_none(desk, job, counted, nothing_left, which, content):
    ask(desk, "lv_create", FIRST, 9, job=job, fence=8)
    if which == "tombstone":
        ask(desk, "forget", FIRST, 10, job=job, fence=8)
    names = {
        "owner": "owner",
        "fence": f"{job}/fence",
        "tombstone": f"forgotten/{job}",
        "request": f"{job}/a-do-1.request",
    }
    path = Path(desk.state, f"{names[which]}.json")
    assert path.exists()
    path.write_bytes(content)
    before, done = everything(desk), len(counted)
    who = {"volmig": OTHER} if which == "owner" else {}
    verbs = (
        ["lv_create", "status", "recall"]
        if which == "request"
        else ["lv_create", "fence", "forget", "status", "recall"]
    )
    answers = [ask(desk, verb, FIRST, 1, job=job, fence=1, **who) for verb in verbs]
    for verb, answer in zip(verbs, answers, strict=True):
        if which == "request" and verb == "status":
            continue  # it reads how a step ended, not what it was asked for
        assert (answer["state"], answer["error"]["touched"]) == ("refused", False), (verb, answer)
        code = "stale-fence" if which == "request" and verb == "lv_create" else "state-damaged"
        assert answer["error"]["code"] in (code, "state-damaged"), verb
        assert str(path) in answer["error"]["tried"] or code == "stale-fence"
    assert (everything(desk), len(counted)) == (before, done)


def test_a_damaged_figure_of_progress_is_only_not_shown(desk, job):
    from hosts.remote.hostctl.store import read_progress

    desk.store(job).open()
    path = Path(desk.run, job, "a-do-1.json")
    path.write_bytes(b"")
    assert read_progress(str(path)) is None


# What is kept of a job


def test_what_was_asked_for_and_what_came_of_it_can_be_recalled(desk, job, counted):
    ask(desk, "lv_create", FIRST, 4, job=job, args={"size": 5}, fence=2)
    ask(desk, "lv_create", FIRST, 5, job=job, step="b", args={"rate": 2}, fence=3)
    told = send(desk, "recall", job=job)["evidence"]
    assert (told["known"], told["fence"], told["session"], told["owner"]) == ("yes", 3, FIRST, owner(desk))
    first, second = told["runs"]
    assert (first["step"], first["verb"], first["args"], first["fence"]) == ("a", "lv_create", {"size": 5}, 2)
    assert (first["claim"], first["session"], first["state"], first["evidence"]) == (4, FIRST, "done", {"free": 1})
    assert (second["state"], second["error"]["code"]) == ("refused", "no-space")


def test_what_has_no_result_runs_or_is_lost(desk, job, counted):
    desk.units.run_now = False
    ask(desk, "lv_create", FIRST, job=job)
    assert [run["state"] for run in send(desk, "recall", job=job)["evidence"]["runs"]] == ["running"]
    desk.units.live.clear()
    assert [run["state"] for run in send(desk, "recall", job=job)["evidence"]["runs"]] == ["lost"]


def test_a_job_that_was_forgotten_differs_from_one_that_was_never_known(desk, job, counted, nothing_left):
    ask(desk, "lv_create", FIRST, job=job)
    ask(desk, "forget", FIRST, job=job, fence=2)
    told = send(desk, "recall", job=job)["evidence"]
    assert (told["known"], told["fence"]) == ("forgotten", 2)
    assert [(run["step"], run["state"], run["evidence"]) for run in told["runs"]] == [("a", "done", {"free": 1})]
    assert send(desk, "recall", job=str(uuid.uuid4()))["evidence"]["known"] == "no"


def test_what_is_done_after_the_job_was_forgotten_is_kept_beside_what_was_before(desk, job, counted, nothing_left):
    for number in (1, 2):
        ask(desk, "lv_create", FIRST, number, job=job, step="a" * number, fence=number)
        ask(desk, "forget", FIRST, job=job, fence=number)
    assert [run["step"] for run in send(desk, "recall", job=job)["evidence"]["runs"]] == ["a", "aa"]


def test_a_host_names_the_jobs_that_it_knows(desk, job, counted, nothing_left):
    gone = str(uuid.uuid4())
    ask(desk, "lv_create", FIRST, job=gone, fence=4)
    ask(desk, "forget", FIRST, job=gone, fence=4)
    ask(desk, "lv_create", FIRST, job=job, fence=6)
    told = send(desk, "recall")["evidence"]
    assert told["jobs"] == {job: {"fence": 6, "known": "yes"}, gone: {"fence": 4, "known": "forgotten"}}
