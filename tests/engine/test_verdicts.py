"""Where an adopted migration goes on from: by what its hosts report, and never by a decision from before."""

import pytest

from jobs.engine import adoption
from jobs.engine.adoption import Known, laps, verdict


def ran(*words):
    """Attempts in order: "stage" is done, "stage:failed" ended so, "-stage" is an undo."""
    found = []
    for number, word in enumerate(words, 1):
        name, _, state = word.partition(":")
        found.append(Known(name.lstrip("-"), "undo" if name.startswith("-") else "do", number, state or "done"))
    return found


COPY = ("relay_lv", "source_fence", "convert", "compare", "stage", "stage_verify", "relay_erase")
SWAP = (*COPY, "lock", "stop", "swap")


@pytest.mark.parametrize(
    ("was", "runs", "status", "more"),
    [
        # Nothing, or nothing but refusals, was begun
        ("planned", (), "planned", {}),
        ("checking", ("relay_lv:refused",), "checking", {}),
        ("preparing", (), "planned", {}),
        ("undoing", (), "undoing", {}),
        ("undone", (), "undone", {}),
        ("awaiting_approval", (), "awaiting_approval", {"halts": True}),
        # Up to the gate
        ("planned", ("relay_lv:lost",), "preparing", {}),
        ("preparing", COPY, "preparing", {}),
        ("awaiting_approval", COPY, "preparing", {}),
        ("preparing", (*COPY, "-stage"), "undoing", {"outcome": "cancelled"}),
        ("undoing", COPY, "undoing", {"outcome": "cancelled"}),
        # From the lock on
        ("approved", (*COPY, "lock:failed"), "rolling_back", {"outcome": "rolled back"}),
        ("preparing", SWAP, "rolling_back", {"outcome": "rolled back"}),
        ("swapping", (*SWAP, "start:lost"), "swapping", {}),
        ("preparing", (*SWAP, "start"), "on_trial", {}),
        ("swapping", (*SWAP, "-swap:running"), "rolling_back", {"outcome": "rolled back"}),
        ("on_trial", (*SWAP, "start", "-start"), "on_trial", {"asks": "rollback"}),
        ("on_trial", (*SWAP, "start", "-start", "-swap"), "rolling_back", {"outcome": "rolled back"}),
        # After the end
        ("on_trial", (*SWAP, "start", "purge"), "purging", {"outcome": "done"}),
        ("done", (*SWAP, "start"), "done", {}),
        ("rolled_back", (), "rolled_back", {}),
        ("done", (*SWAP, "start", "purge"), "purging", {"outcome": "done"}),
        ("done", (*SWAP, "start", "purge:failed"), "done", {"outcome": "done"}),
        ("rolled_back", (*SWAP, "-swap", "purge:lost"), "rolled_back", {"outcome": "rolled back"}),
        ("purging", (*SWAP, "start"), "done", {"outcome": "done"}),
        ("purging", (*SWAP, "-swap"), "rolled_back", {"outcome": "rolled back"}),
    ],
)
def test_the_hosts_decide_from_where_it_goes_on(was, runs, status, more):
    found = verdict(was, ran(*runs))
    assert found.status == status
    assert (found.outcome, found.asks, bool(found.halts)) == (
        more.get("outcome", ""),
        more.get("asks", ""),
        more.get("halts", False),
    )
    assert found.words.endswith(".")


def test_no_status_of_the_database_alone_makes_an_instance_be_touched():
    """Whatever the database says: without a lock that a host or Nova reports nothing is swapped or rolled back."""
    for was in ("checking", "planned", "preparing", "awaiting_approval", "approved", "swapping", "on_trial"):
        for runs in ((), COPY[:1], COPY):
            found = verdict(was, ran(*runs))
            assert found.status not in ("swapping", "rolling_back") or found.halts, (was, runs)


def test_an_undo_that_left_something_is_not_done():
    left = Known("swap", "undo", 2, "done", left=True)
    assert not left.is_done
    assert verdict("on_trial", [*ran(*SWAP, "start"), left]).asks == "rollback"


def test_a_temporary_volume_that_is_made_again_begins_another_lap():
    runs = ran("relay_lv:failed", "relay_lv", "convert", "-relay_lv", "relay_lv", "convert")
    assert [lap for lap, _ in laps(runs)] == [1, 1, 1, 1, 2, 2]


def test_attempts_are_in_the_order_in_which_they_were_begun():
    later, first, second = (
        Known("c", "do", 1, "done", fence=2),
        Known("a", "do", 1, "done", fence=1, claim=1),
        Known("b", "do", 1, "done", fence=1, claim=2),
    )
    assert adoption.in_order([later, second, first]) == [first, second, later]
