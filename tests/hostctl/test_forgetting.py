"""Units as systemd knows them, and a host that forgets a job only when nothing of it is left."""

import pytest

from hosts.remote.hostctl import lvm, mounts, transient_units
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.store import Store

from .conftest import FakeUnits
from .test_guards import EXPORT, JOB, OURS, RELAY, THERE, lvs, scripted


@pytest.fixture
def units(monkeypatch):
    """The real ones, over a systemctl that says what the test puts into `said`."""
    real = transient_units.Units()
    real.work = scripted("forget", {})
    real.said = []
    record = real.work._run

    def run(act, probe, how):
        output = record(act, probe, how)
        return real.said.pop(0) if real.said and not probe else output

    real.work._run = run
    return real


@pytest.mark.parametrize(
    ("state", "alive"), [("active", True), ("deactivating", True), ("failed", False), ("inactive", False), ("", True)]
)
def test_a_unit_is_alive_until_systemd_says_that_it_has_ended_or_else_the_kernel(units, state, alive, monkeypatch):
    monkeypatch.setattr(transient_units, "_running", lambda unit: True)
    units.work.answers = {"systemctl show": Output(0, f"ActiveState={state}\n")}
    assert units.alive("volmig-x") is alive


def test_an_older_systemd_gets_what_it_knows(units):
    units.said = [Output(1, "", "Unknown assignment: Type=exec")]
    assert units.start("volmig-x", ["Nice=10"], ["/usr/bin/true"]) == ""
    first, second = units.work.acted
    assert ("Type=exec" in first, "Type=exec" in second, "Nice=10" in second) == (True, False, True)


def test_a_unit_that_does_not_start_says_why_and_is_not_tried_twice(units):
    units.said = [Output(1, "", "Failed to connect to bus: No such file or directory")]
    assert units.start("volmig-x", [], ["/usr/bin/true"]) == "Failed to connect to bus: No such file or directory"
    assert len(units.work.acted) == 1


def test_one_unit_is_stopped_by_its_name(units):
    units.stop("volmig-x")
    assert units.work.acted == ["systemctl stop -- volmig-x.service"]


# Forgetting


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host that remembers a step of the job; nothing else of it is there but what a test puts there."""
    rows: list[Mount] = []
    fake = FakeUnits()
    monkeypatch.setattr(mounts, "mounts", lambda: rows)
    monkeypatch.setattr(transient_units, "find", lambda program: "/usr/sbin/" + program)
    monkeypatch.setattr(transient_units, "Units", lambda: fake)
    kept = Store(JOB, str(tmp_path / "state"), str(tmp_path / "run"))
    kept.open()
    kept.write("relay_lv-do-1.request", {"verb": "lv_create"})

    def forget(**answers):
        work = scripted("forget", {"lvs": lvs(), **answers})
        call = work._call
        work._call = lambda act, function: call(act, function)._replace(value=function())
        return transient_units.forget(work, kept, fake)

    forget.kept, forget.rows, forget.units = kept, rows, fake
    return forget


def test_a_host_with_nothing_left_forgets_the_job(host):
    assert host() == {"left": []}
    assert not host.kept.exists()


FENCED = dict(OURS, lv_tags="volmig,volmig.src=" + JOB)
OTHERS = dict(OURS, lv_tags="volmig,volmig.job=11111111-2222-4333-8444-555555555555")


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        ({"lvs": lvs(OURS)}, ["logical volume vg/lv"]),
        ({"lvs": lvs(FENCED)}, ["logical volume vg/lv"]),
        ({"exportfs": Output(0, EXPORT % (RELAY, JOB))}, [f"export {RELAY} to 10.0.0.1"]),
    ],
)
def test_what_is_left_is_told_and_what_is_needed_to_remove_it_is_kept(host, answers, left):
    assert host(**answers) == {"left": left}
    assert host.kept.exists()


def test_a_mount_and_a_holder_are_left_too(host):
    host.rows.append(Mount("0:9", "/", THERE, "nfs", "10.0.0.2:" + RELAY, "rw"))
    host.units.live.add(lvm.holder(JOB))
    assert host() == {"left": [f"mount on {THERE}", f"unit {lvm.holder(JOB)}"]}
    assert host.kept.exists()


def test_what_is_left_of_another_job_is_in_nobodys_way(host):
    assert host(lvs=lvs(OTHERS)) == {"left": []}


def test_a_job_with_work_that_runs_is_not_forgotten(host):
    host.units.live.add(transient_units.unit_name(JOB, "relay_lv-do-1"))
    with pytest.raises(Refused) as refused:
        host()
    assert refused.value.code == "still-running"
    assert host.kept.exists()
