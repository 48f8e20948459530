"""What a test started is ended, all of it, whatever one of them does."""

import subprocess

from tests.family import children, end_all, family

DEAF = "trap '' TERM; sleep 600 & echo; wait"


def test_one_that_does_not_stop_is_killed_with_all_below_it_and_keeps_no_other_running():
    deaf = subprocess.Popen(["sh", "-c", DEAF], stdout=subprocess.PIPE)
    other = subprocess.Popen(["sleep", "600"])
    assert deaf.stdout.readline() == b"\n", "it ignores the signal from here on"
    below = list(family(deaf.pid))
    assert below
    end_all([deaf, other], 0.1)
    assert (deaf.poll(), other.poll()) == (-9, -15)
    assert deaf.stdout.read() == b"", "nobody has the other end any more"


def test_one_that_has_ended_has_no_children_and_is_no_error():
    ended = subprocess.Popen(["true"])
    ended.wait(20)
    end_all([ended], 0.1)
    assert children(ended.pid) == []
