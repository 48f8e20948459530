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


# What `make fleet` says of its figures


def figures(size, **changed):
    good = {
        "size": size, "waiting": {"max": 1.0}, "rows": 2, "errors": [], "refused_logins": 0, "logins": {"max": 9},
        "next_step": {"median": 1.0}, "progress": {"median": 1.0, "most": 2.0}, "watcher_ms": 2.0,
    }  # fmt: skip
    return good | changed


def not_held(*found):
    return [said for holds, said in fleet.judged(list(found)) if not holds]


def test_good_figures_hold():
    assert not_held(figures(10), figures(200), figures(500)) == []


@pytest.mark.parametrize(
    ("size", "changed", "said"),
    [
        (200, {"waiting": {"max": 5.0}}, "oldest waiting task under 5 s"),
        (500, {"waiting": {"max": 20.0}}, "oldest waiting task under 20 s"),
        (10, {"rows": 3}, "two queue rows"),
        (10, {"errors": ["Hypervisor 1: no answer"]}, "no false error"),
        (10, {"refused_logins": 1}, "no false error"),
        (10, {"logins": {"max": fleet.LOGINS + 1}}, "bounded logins"),
        (200, {"next_step": {"median": 3.0}}, "end of a step"),
        (200, {"progress": {"median": 1.5, "most": 2.0}}, "progress on the page"),
        (200, {"progress": {"median": 1.0, "most": 3.0}}, "progress on the page"),
        (200, {"progress": {}}, "progress on the page"),
        (200, {"next_step": {}}, "end of a step"),
    ],
)
def test_a_figure_that_is_too_high_or_missing_does_not_hold(size, changed, said):
    [found] = not_held(figures(size, **changed))
    assert said in found


def test_watchers_that_need_more_for_each_hypervisor_of_a_larger_site_do_not_hold():
    [found] = not_held(figures(10, watcher_ms=1.0), figures(50, watcher_ms=1.2))
    assert "flat or falling" in found


def test_the_age_of_progress_counts_every_report_until_a_page_shows_as_much():
    """At 10.0 a page showed what was reported at 9.0; the next it was shown at 11.0, was reported at 10.5."""
    assert list(fleet.ages([(9.0, 10.0), (10.5, 11.0)])) == pytest.approx([0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
