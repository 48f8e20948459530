"""The n-th tool or system call on a hypervisor goes wrong, for every n and in every way: nothing is lost or left.

Here hostctl is the real one, and what goes wrong is beneath it; in test_nth_call.py it is what hostctl itself says.
"""

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from hosts.remote.hostctl.commands import Output
from tests.jobs import lives
from tests.jobs.lives import WAYS, begin, check_the_world

pytestmark = pytest.mark.usefixtures("unmeasured")
STRIDE = 401  # of the quick run, which begins anywhere, so that in time every call has its turn
# What tools end with when they could not do what they were asked; of some, 1 or 2 is an answer.
FAILURES = {"blkid": 8, "mount": 32, "umount": 32} | dict.fromkeys(
    ("lvs", "vgs", "lvcreate", "lvremove", "lvchange"), 5
)
RUBBISH = "%PDF-1.4\n\x00\x07{[<\ufffd\n"


def failure(program):
    return Output(FAILURES.get(program, 1), "", f"{program}: it did not work\n")


def no_system_call(run):
    """Whatever goes wrong, a system call does not take part in it."""
    return run()


def breaks(run):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def breaks_when_it_is_done(run):
    run()
    return breaks(run)


def takes_too_long(run):
    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def fails(program, how, run):
    return failure(program)


def fails_when_it_is_done(program, how, run):
    run()
    return failure(program)


def hangs(program, how, run):
    """Until its time is over; a tool that has as long as it wants is ended by somebody who looked at it."""
    return Output(124, "", "\nno response within 30 s") if how.get("timeout", 30) else Output(137)


def says_rubbish(program, how, run):
    return run()._replace(out=RUBBISH, err=RUBBISH)


# How a tool and a system call go wrong, and whether all later ones like it do, too.
KINDS = {
    "fails once": (fails, breaks, False),
    "fails for ever": (fails, breaks, True),
    "hangs": (hangs, takes_too_long, False),
    "says rubbish": (says_rubbish, no_system_call, False),
    "is done and reported as failed": (fails_when_it_is_done, breaks_when_it_is_done, False),
}


class Fault:
    """Lies between hostctl and its hypervisor, and lets the `nth` tool or system call go wrong."""

    def __init__(self, nth, kind):
        self.nth, self.count, self.hit = nth, 0, None
        self.of_tools, self.of_system_calls, self.for_ever = KINDS[kind]

    def lay(self, site):
        site.fault = self

    def tool(self, machine, argv, how, run):
        words = (Path(argv[0]).name, *argv[1:])
        if self.strikes((machine.name, *words)):
            return self.of_tools(words[0], how, run)
        return run()

    def system_call(self, machine, text, run):
        if self.of_system_calls is not no_system_call and self.strikes((machine.name, text)):
            return self.of_system_calls(run)
        return run()

    def strikes(self, what):
        self.count += 1
        if self.count == self.nth:
            self.hit = what
        return self.count == self.nth or (self.for_ever and what == self.hit)


def every_nth(real_life, machines, kind, way, stride):
    free, life = machines.relay.free, begin(real_life, machines, way)

    def check(life):
        check_the_world(machines, life.job, free)
        assert machines.handed_on == [], "somebody will read what lay on a volume"
        if not life.job.halt_reason:
            assert machines.relay.services == services, "a service that volmig started still runs"

    services = dict(machines.relay.services)
    ends = lives.every_nth(life, partial(Fault, kind=kind), stride, check)
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"\n{way}, a tool or system call {kind}: {ends.total()} migrations: {told}")
    return ends


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_goes_wrong_with_one_tool_nothing_is_lost_and_nothing_is_left(real_life, machines, kind, way):
    assert every_nth(real_life, machines, kind, way, STRIDE)


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_goes_wrong_with_any_tool_nothing_is_lost_and_nothing_is_left(real_life, machines, kind, way):
    assert every_nth(real_life, machines, kind, way, 1)
