"""A worker is killed at every boundary of every step: the next one goes on, nothing is lost and nothing is left."""

import pytest

from jobs.engine import failpoints, routes
from tests.jobs.lives import WAYS, Killed, begin, check_the_world

pytestmark = pytest.mark.usefixtures("unmeasured")

# At this boundary volmig knows least: it was done, and nobody wrote that down.
WORST = failpoints.AFTER_DO


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    failpoints.arm(None)


def reached(life, until=""):
    """The boundaries that this migration comes by when nobody dies, in order."""
    points = []
    failpoints.arm(points.append)
    with life.rewound():
        life.live(until)
    failpoints.arm(None)
    return list(dict.fromkeys(points))


def killing(*points):
    """Kills whoever reaches one of these boundaries, once each; what is left of them."""
    left = set(points)

    def die(point):
        if point in left:
            left.remove(point)
            raise Killed(point)

    failpoints.arm(die)
    return left


def killed_once(a_life, site, way, moment=""):
    """One migration for each boundary on this way, with one worker killed there; how many there were."""
    free, life, count = site.relay.free, begin(a_life, site, way), 0
    for station in life.stations():
        for point in reached(life, station):
            if not point.endswith(moment):
                continue
            with life.rewound():
                left = killing(point)
                assert life.live() == life.wish, f"killed at {point}: {life.said}"
                assert not left, point
                check_the_world(site, life.job, free)
            count += 1
    print(f"\n{way}: a worker killed at each of {count} boundaries, one in a migration; all ended {life.wish}")
    return count


def test_every_boundary_of_the_plan_is_on_the_way_of_some_migration(a_life, site):
    ways = set()
    for way in WAYS:
        with a_life().rewound():
            ways |= set(reached(begin(a_life, site, way)))
    assert set(failpoints.every(routes.steps())) - ways == set()


@pytest.mark.parametrize("way", WAYS)
def test_whoever_dies_with_something_done_and_not_written_down_is_replaced_and_the_migration_ends_well(
    a_life, site, way
):
    assert killed_once(a_life, site, way, WORST)


@pytest.mark.torture
@pytest.mark.parametrize("way", WAYS)
def test_whoever_dies_at_any_boundary_is_replaced_and_the_migration_ends_well(a_life, site, way):
    assert killed_once(a_life, site, way)


@pytest.mark.parametrize("way", WAYS)
def test_one_migration_whose_workers_die_at_every_boundary_ends_well(a_life, site, way):
    free, life = site.relay.free, begin(a_life, site, way)
    left = killing(*reached(life))
    assert life.live() == life.wish, life.said
    assert left == set()
    check_the_world(site, life.job, free)
