"""Whole migrations with the real hostctl on machines whose tools are fakes."""

import pytest

from tests.jobs.lives import WAYS, begin, check_the_world


@pytest.mark.parametrize("way", WAYS)
def test_a_migration_goes_its_way_through_the_real_hostctl(real_life, machines, way):
    free, life = machines.relay.free, begin(real_life, machines, way)
    assert life.live() == life.wish, (life.said, life.job.outcome_reason)
    check_the_world(machines, life.job, free)
