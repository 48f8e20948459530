"""Four conversions at once: each page that stays open is told of its own job, again and again."""

import pytest

from tests.bench import latency
from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.torture]  # the bench measures the same, with times


def test_four_pages_see_their_conversions_move_without_a_reload(lab):
    seen = latency.run(lab, size=80 * MIB, data=64, rate=6 * MIB)
    assert len(seen) == 4
    for job in seen:
        shown = [done for done, _ in job.fragments]
        assert len(set(shown)) >= 5, shown
        assert shown == sorted(shown)
        assert {done for done, _ in job.reports} & set(shown), "no page showed what qemu-img reported"
