"""Whole migrations with the real hostctl on machines whose tools are fakes."""

import pytest

from hosts.remote.hostctl.commands import Output
from tests import faketools
from tests.factories import operator
from tests.jobs.lives import WAYS, begin, check_the_world
from tests.machines import NoFault, PowerCut


@pytest.mark.parametrize("way", WAYS)
def test_a_migration_goes_its_way_through_the_real_hostctl(real_life, machines, way):
    free, life = machines.relay.free, begin(real_life, machines, way)
    assert life.live() == life.wish, (life.said, life.job.outcome_reason)
    check_the_world(machines, life.job, free)


@pytest.mark.parametrize(("way", "state"), [("rolled back", "shut off"), ("done", "running"), ("purged", "running")])
def test_an_instance_that_was_off_is_off_again_after_a_rollback(real_life, machines, way, state):
    for domain in machines.destination.domains.values():
        domain.state = "shut off"
    free, life = machines.relay.free, begin(real_life, machines, way)
    assert life.live() == life.wish, (life.said, life.job.outcome_reason)
    check_the_world(machines, life.job, free, state=state)


class Reboots(NoFault):
    """A machine loses its power amid the first conversion."""

    def __init__(self, victim):
        self.victim, self.over = victim, False

    def tool(self, machine, argv, how, run):
        if not self.over and argv[1:2] == ("convert",):
            self.over = True
            self.victim.reboot()
            if machine is self.victim:
                raise PowerCut
        return run()


@pytest.mark.parametrize("victim", ["source", "relay"])
def test_what_a_reboot_took_away_is_made_again_by_the_real_hostctl(real_life, machines, victim):
    free, life = machines.relay.free, begin(real_life, machines, "done")
    machines.fault = Reboots(getattr(machines, victim))
    assert life.live() == "done", (life.said, life.job.outcome_reason)
    assert machines.fault.over
    assert life.job.runs.filter(step="convert").count() > 1
    check_the_world(machines, life.job, free)


class SilentSystemd(NoFault):
    """It says nothing of any unit of volmig's."""

    def tool(self, machine, argv, how, run):
        return Output(124) if "show" in argv and argv[-1].startswith("volmig-") else run()


def test_a_copy_is_stopped_and_taken_back_although_systemd_says_nothing_of_it(real_life, machines):
    free, life = machines.relay.free, begin(real_life, machines, "cancelled amid the copy")
    machines.fault = SilentSystemd()
    assert life.live() == "undone", life.said
    check_the_world(machines, life.job, free)


class Withdraws(NoFault):
    """An administrator withdraws what the relay exports during each of so many passes."""

    def __init__(self, relay, verb, times, and_then=lambda: None):
        self.relay, self.verb, self.left, self.and_then = relay, verb, times, and_then

    def tool(self, machine, argv, how, run):
        if self.left and argv[1:2] == (self.verb,):
            self.left -= 1
            self.relay.etab.clear()
            self.and_then()
        return run()


@pytest.mark.parametrize("verb", ["convert", "compare"])
def test_an_export_that_was_withdrawn_is_made_again_by_the_real_hostctl(real_life, machines, verb):
    free, life = machines.relay.free, begin(real_life, machines, "done")
    machines.fault = Withdraws(machines.relay, verb, 1)
    assert life.live() == "done", (life.said, life.job.outcome_reason)
    assert [run.result for run in life.job.runs.filter(step=verb)] == ["failed", "done"]
    check_the_world(machines, life.job, free)


class ExportsAnew(NoFault):
    """An administrator runs `exportfs -r` on the relay during every pass: what no file lists is no longer exported."""

    def __init__(self, relay):
        self.relay, self.times = relay, 0

    def tool(self, machine, argv, how, run):
        if argv[1:2] in (("convert",), ("compare",)):
            self.times += 1
            faketools.exportfs(self.relay, ["-r"])
        return run()


def test_an_export_outlives_an_exportfs_r_amid_each_pass(real_life, machines):
    free, life = machines.relay.free, begin(real_life, machines, "done")
    machines.relay.etab["/srv/unrelated"] = ("10.0.0.9", "rw")
    machines.fault = ExportsAnew(machines.relay)
    assert life.live() == "done", (life.said, life.job.outcome_reason)
    assert machines.fault.times == 2
    assert [run.result for run in life.job.runs.filter(step__in=("convert", "compare"), direction="do")] == ["done"] * 2
    assert machines.relay.etab == {}, "ours is withdrawn, and what was in no file went with the first exportfs -r"
    check_the_world(machines, life.job, free)


def test_a_migration_that_is_cancelled_while_its_export_is_away_is_undone_without_a_person(real_life, machines):
    free, life = machines.relay.free, begin(real_life, machines, "done")
    machines.fault = Withdraws(machines.relay, "convert", 1, lambda: life.job.cancel(operator()))
    assert life.live() == "undone", life.said
    assert life.job.runs.filter(step="relay_export", direction="do").count() == 1, "it was away to the end"
    check_the_world(machines, life.job, free)


def test_what_happens_within_a_rewound_site_leaves_no_trace(real_life, machines):
    life = begin(real_life, machines, "done")
    before = everything(machines)
    with life.rewound():
        life.live()
        assert everything(machines) != before
    assert everything(machines) == before


def everything(site):
    """Names with inode, size, time, bytes and number of names, and what the machines know."""
    seen = [(path, path.lstat()) for path in sorted(site.root.rglob("*"))]
    files = [
        (path, each.st_ino, each.st_nlink, each.st_size, each.st_mtime_ns) for path, each in seen if path.is_file()
    ]
    read = [path.open("rb").read(1 << 17) for path, *_ in files]
    known = [(host.boot_id, host.volumes, host.mounted, host.etab, host.services, host.domains) for host in site.hosts]
    return repr((files, read, [path for path, _ in seen], known))
