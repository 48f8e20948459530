"""What adoption infers of steps that Nova carried out, which nobody remembers."""

import pytest

from jobs.engine.adoption import Instance, Known, done_through_nova, ran_on_new_disk
from jobs.engine.evidence import Evidence

LOCK, STOP, START = ("lock", "req-1"), ("stop", "req-2"), ("start", "req-3")
SWAP, BACK = Known("swap", "do", 1, "done"), Known("swap", "undo", 1, "done")
BEGAN_BACK = Known("swap", "undo", 1, "running")
DONE = [Known(name, "do", 1, "done") for name in ("lock", "stop", "swap", "start")]
# What is known, what Nova and libvirt show, and which steps follow that are not known.
CASES = {
    "nothing was begun": ([], Instance(), []),
    "locked": ([], Instance(locked=True, acts=(LOCK,)), ["lock do"]),
    "locked, and shut down": ([], Instance(locked=True, off=True, acts=(LOCK, STOP)), ["lock do", "stop do"]),
    "locked, and it was shut off by its user": ([], Instance(locked=True, off=True, acts=(LOCK,)), ["lock do"]),
    "locked, shut down, started by a rollback": (
        [], Instance(locked=True, acts=(LOCK, STOP, START)), ["lock do"],
    ),
    "locked by others, and shut down by them": ([], Instance(off=True), []),
    "swapped": ([SWAP], Instance(locked=True, off=True, acts=(LOCK, STOP), ran=False), ["lock do", "stop do"]),
    "swapped and started": (
        [SWAP], Instance(locked=True, acts=(LOCK, STOP, START)), ["lock do", "stop do", "start do"],
    ),
    "it ran on the new disk, and its user shut it down": (
        [SWAP], Instance(locked=True, off=True, acts=(LOCK, STOP, START)), ["lock do", "stop do", "start do"],
    ),
    "a rollback has shut it down": (
        DONE, Instance(locked=True, off=True, acts=(LOCK, STOP, START, ("stop", "req-4"))), ["start undo"],
    ),
    "a rollback has begun to exchange the disks": (
        [*DONE, BEGAN_BACK], Instance(locked=True, off=True), ["start undo"],
    ),
    "the old disk is back": (
        [SWAP, BACK], Instance(locked=True, off=True, acts=(LOCK, STOP)), ["lock do", "stop do"],
    ),
    "the old disk is back after the instance ran on the new one": (
        [*DONE, BACK], Instance(locked=True, off=True, acts=(LOCK, STOP, START, ("stop", "req-4"))), ["start undo"],
    ),
    "rolled back, and released": (
        [SWAP, BACK],
        Instance(acts=(LOCK, STOP, START, ("unlock", "req-5"))),
        ["lock do", "stop do", "stop undo", "lock undo"],
    ),
    "released by another user, with the old disk back": (
        [SWAP, BACK], Instance(off=True, acts=(LOCK, STOP)), ["lock do", "stop do"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_steps_that_nova_carried_out_follow_from_what_hosts_remember_and_nova_shows(case):
    runs, seen, wanted = CASES[case]
    assert [" ".join(each) for each in done_through_nova(runs, seen)] == wanted


def test_a_step_that_is_known_is_not_entered_twice():
    seen = Instance(locked=True, acts=(LOCK, STOP, START))
    assert done_through_nova(DONE, seen) == []
    begun = [*DONE[:3], Known("start", "do", 1, "running")]
    assert done_through_nova(begun, seen) == [("start", "do")], "it was begun, and its end is not known"


def test_a_rollback_is_told_from_the_swap_by_its_own_stop_and_start():
    seen = Instance(acts=(LOCK, STOP, START, ("stop", "req-4"), ("start", "req-5")))
    asked = [("stop", "do"), ("start", "do"), ("start", "undo"), ("stop", "undo"), ("lock", "undo")]
    assert [seen.request(*each) for each in asked] == ["req-2", "req-3", "req-4", "req-5", ""]


FILE = {"inode": 7, "file_size": 100, "mtime_ns": 5}
EVIDENCE = {"swap": {"swapped_at": 1000.0}, "stage_verify": FILE}
OFF = {"state": "shut off", "runs": [{"at": 900.0, "ended": "shutdown"}], "live": FILE}


@pytest.mark.parametrize(
    ("changes", "ran"),
    [
        ({}, False),
        ({"state": "running"}, True),
        ({"state": "unknown"}, True),
        ({"runs": None}, True),
        ({"live": None}, True),
        ({"live": {**FILE, "mtime_ns": 6}}, True),
        ({"runs": [{"at": 1000.0, "ended": "shutdown"}]}, True),
        ({"runs": [{"at": 1001.0, "ended": "failed"}]}, False),
    ],
)
def test_that_no_guest_ran_on_the_new_disk_is_believed_only_when_all_agree(changes, ran):
    assert ran_on_new_disk(OFF | changes, Evidence(EVIDENCE)) is ran


def test_without_the_time_of_the_swap_a_guest_may_have_run():
    assert ran_on_new_disk(OFF, Evidence()) is True
