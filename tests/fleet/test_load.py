"""A small `make fleet`: real processes, ten migrations at once. Nothing is timed; what must never happen is counted."""

import os

import pytest

from tests import postgresql
from tests.bench import fleet
from tests.trust.amounts import figure

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="needs PostgreSQL's package")
MIGRATIONS = 10


@pytest.fixture(scope="module")
def found():
    """The figures of a site on which ten migrations went from being asked for to their end."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith("VOLMIG_")}
    for name in inherited:
        del os.environ[name]
    try:
        return fleet.in_a_process_of_its_own(MIGRATIONS, "--sample")
    finally:
        os.environ.update(inherited)


def test_ten_migrations_at_once_end_well_with_two_of_every_part(found):
    assert found["statuses"] == {"done": MIGRATIONS}
    figure(
        f"{MIGRATIONS} migrations at once on {MIGRATIONS + fleet.SPARE} hypervisors: {found['rows']} queue rows of one "
        f"migration at most, {found['logins']['max']:.0f} logins in a second at most, no false error"
    )


def test_nothing_false_is_said_of_a_hypervisor_that_is_well(found):
    assert found["errors"] == []
    assert found["faults"] == [], "in the logs"
    assert found["refused_logins"] == 0


def test_of_one_migration_no_more_waits_than_its_next_tick(found):
    assert found["rows"] <= 2


def test_logins_are_bounded_and_connections_are_used_again(found):
    calls = sum(found["calls"].values())
    assert found["logins"]["max"] <= fleet.LOGINS
    assert found["logins_in_all"] < calls / 3, f"{calls} calls"


def test_hypervisors_refuse_nothing_but_one_worker_after_another(found):
    """Two machines of workers act on the same hypervisors: each owns one for its call, and asks who did before."""
    others = {said: count for said, count in found["refusals"].items() if "other-owner" not in said}
    assert others == {}
