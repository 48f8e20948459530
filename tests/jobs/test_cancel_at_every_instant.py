"""A person cancels a migration at every instant: around each call to a hypervisor and before each change of its row.

It then ends with the old disk or, where it can no longer be cancelled, as it would have: nothing is lost, nothing left.
"""

import threading
from functools import partial

import pytest

from jobs.models import Job, Refused
from tests.factories import operator
from tests.jobs import lives
from tests.jobs.lives import begin, check_the_world

pytestmark = pytest.mark.usefixtures("unmeasured")
STRIDE = 13  # of the quick run, which begins anywhere, so that in time every instant has its turn
WAYS = ("done", "purged", "rolled back")


class Cancel:
    """Cancels the life's migration at the `nth` instant of a kind."""

    def __init__(self, nth, life):
        self.nth, self.life, self.count, self.hit = nth, life, 0, None
        self.refused = False

    def at(self, what):
        if threading.current_thread() is not threading.main_thread():
            return  # hypervisors are read at once; these have connections to the database of their own
        self.count += 1
        if self.count == self.nth:
            self.hit = what
            self.now()

    def now(self):
        try:
            Job.objects.get(pk=self.life.job.pk).cancel(operator())
        except Refused:
            self.refused = True  # with a sentence, and nothing is changed

    def lay(self, site):
        site.carry = self

    def __call__(self, host, request):
        return host.hear(request)


class BeforeACall(Cancel):
    def __call__(self, host, request):
        self.at((host.name, request.verb))
        return host.hear(request)


class AfterACall(Cancel):
    def __call__(self, host, request):
        answer = host.hear(request)
        self.at((host.name, request.verb))
        return answer


class BeforeAChange(Cancel):
    """Whoever changes the row read it before; a worker has to notice that it is another now."""

    busy = False

    def lay(self, site):
        super().lay(site)
        real, cancel = REAL, self

        def put(job, *args, **values):
            if job.pk == cancel.life.job.pk and not BeforeAChange.busy:
                BeforeAChange.busy = True
                try:
                    cancel.at(tuple(values))
                finally:
                    BeforeAChange.busy = False
            return real(job, *args, **values)

        Job.put = put


REAL = Job.put
KINDS = {"before a call": BeforeACall, "after a call": AfterACall, "before a change": BeforeAChange}


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    Job.put = REAL


def every_nth(a_life, site, kind, way, stride):
    free, life = site.relay.free, begin(a_life, site, way)
    check = partial(looked_at, site, free)
    ends = lives.every_nth(life, partial(KINDS[kind], life=life), stride, check)
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"\n{way}, cancelled {kind}: {ends.total()} migrations: {told}")
    return ends


def looked_at(site, free, life):
    check_the_world(site, life.job, free)
    assert not life.job.halt_reason, f"a cancel is no reason to halt: {life.job.halt_reason}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_an_instant_it_ends_without_a_person_and_nothing_is_left(a_life, site, kind, way):
    assert set(every_nth(a_life, site, kind, way, STRIDE)) <= {"done", "purged", "rolled_back", "undone"}


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_any_instant_it_ends_without_a_person_and_nothing_is_left(a_life, site, kind, way):
    assert set(every_nth(a_life, site, kind, way, 1)) <= {"done", "purged", "rolled_back", "undone"}
