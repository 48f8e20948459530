"""The n-th call to a hypervisor goes wrong, for every n and in every way: nothing is lost and nothing is left."""

from dataclasses import replace
from functools import partial

import pytest

from hosts.remote.host import Answer, Garbled, Request, Unreachable
from tests.fakes import READS, FakeHost, Refusal
from tests.jobs import lives
from tests.jobs.lives import WAYS, begin, check_the_world

pytestmark = pytest.mark.usefixtures("unmeasured")

REMEMBERED_NOT = READS | {"fence", "forget"}  # hostctl keeps no result of these


def spoiled(host: FakeHost, request: Request, answer: Answer) -> Answer:
    """What was said about an act, in the place of what hostctl knew: it says the same when it is asked again."""
    if request.verb not in REMEMBERED_NOT:
        host.kept[request.job][f"{request.step}-{request.direction}-{request.attempt}"] = answer
    return answer


def fails(host, request):
    """Nothing is done, and the hypervisor says so."""
    if request.verb in REMEMBERED_NOT:
        return Refusal("failed", "it did not work", "failed").answer
    host.faults[request.verb] = Refusal("failed", "it did not work", "failed")
    answer = host.hear(request)
    host.faults.pop(request.verb, None)
    return answer


def is_done_and_reported(state):
    """All of it is done, and the hypervisor says otherwise, as an NFS server does that was asked twice."""

    def carry(host, request):
        answer = host.hear(request)
        if answer.state != "done":
            return answer
        said = Refusal("io-error", "Input/output error", state, None).answer
        return spoiled(host, request, replace(said, boot_id=answer.boot_id))

    return carry


def hangs(host, request):
    raise Unreachable(f"call {request.verb} on {host.name}", "no response within 20 s", "", None)


def hangs_when_it_is_done(host, request):
    host.hear(request)
    return hangs(host, request)


def answers_garbage(host, request):
    host.hear(request)
    raise Garbled(f"call {request.verb} on {host.name}", "the response is not hostctl's: %PDF-1.4", "Look there.", None)


# How a call goes wrong, and whether all later ones like it do, too.
KINDS = {
    "fails once": (fails, False),
    "is done and reported as failed": (is_done_and_reported("failed"), False),
    "is done and lost": (is_done_and_reported("lost"), False),
    "fails for ever": (fails, True),
    "hangs": (hangs, False),
    "hangs when it is done": (hangs_when_it_is_done, False),
    "answers garbage": (answers_garbage, False),
}
STRIDE = 31  # of the quick run, which begins anywhere, so that in time every call has its turn


class Fault:
    """Lies between volmig and the hypervisors, and lets the `nth` call go wrong."""

    def __init__(self, nth: int, kind: str) -> None:
        self.nth, self.count, self.hit = nth, 0, None
        self.wrong, self.for_ever = KINDS[kind]

    def lay(self, site):
        site.carry = self

    def __call__(self, host, request):
        self.count += 1
        like = (host.name, request.verb)
        if self.count == self.nth:
            self.hit = like
        if self.count == self.nth or (self.for_ever and like == self.hit):
            return self.wrong(host, request)
        return host.hear(request)


def every_nth(a_life, site, kind, way, stride):
    free, life = site.relay.free, begin(a_life, site, way)
    ends = lives.every_nth(life, partial(Fault, kind=kind), stride, lambda life: check_the_world(site, life.job, free))
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"\n{way}, a call {kind}: {ends.total()} migrations: {told}")
    return ends


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_goes_wrong_with_one_call_nothing_is_lost_and_nothing_is_left(a_life, site, kind, way):
    assert every_nth(a_life, site, kind, way, STRIDE)


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_goes_wrong_with_any_call_nothing_is_lost_and_nothing_is_left(a_life, site, kind, way):
    assert every_nth(a_life, site, kind, way, 1)
