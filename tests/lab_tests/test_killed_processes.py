"""volmig's own processes are killed amid one migration, again and again, and it ends as if nothing had been."""

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from jobs.engine import failpoints, routes
from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.torture]

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
WISH = f"--source src --volume vg_nova0/{OLD}_disk.local --instance {NEW} --relay jump --relay-vg vg_nova0".split()
KILLS = 30
BOUNDARIES = [
    point for point in failpoints.every(step for step in routes.steps() if step.phase != "D") if ".do." in point
]
PARTS = ("web", "workers", "watcher")
WATCHING = "SELECT owner FROM jobs_lease WHERE name = 'watcher' AND until > strftime('%Y-%m-%d %H:%M:%f', 'now')"


class Processes:
    """The processes of one volmig, as /proc shows them."""

    def __init__(self, site):
        self.site = site

    def children(self, parent):
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                above = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            found += [int(directory.name)] if above == parent else []
        return found

    def part(self, name):
        """The pid of what this supervisor started, of workers those that tick; None while it is down."""
        started = self.children(self.site.supervisors[name].pid)
        return next((pid for pid in started if not self.is_background(pid)), None)

    def is_background(self, pid):
        """Whether it is the cluster that runs everything but ticks, or just gone."""
        try:
            return b"Q_CLUSTER_NAME=background" in (Path("/proc") / str(pid) / "environ").read_bytes()
        except OSError:
            return True

    def workers(self):
        """What the queue's guard started: workers, and what feeds them."""
        queue = self.part("workers")
        return [pid for guard in (self.children(queue) if queue else []) for pid in self.children(guard)]

    def replace(self, name):
        """Kill it with its supervisor and have another one start at once, as an init system does."""
        pid, supervisor = self.part(name), self.site.supervisors[name]
        supervisor.send_signal(signal.SIGSTOP)  # it is not to start another one in between
        kill(pid)
        supervisor.kill()
        supervisor.wait()
        self.site.up(name)


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


class Scene:
    """A volume with 28 MiB of data, a guest that is switched off, a volmig, and two people's shells."""

    def __init__(self, lab, volmig, olga, pavel, **made):
        self.lab, self.site, self.olga, self.pavel, self.processes = lab, volmig, olga, pavel, Processes(volmig)
        self.database = sqlite3.connect(f"file:{volmig.data}/db.sqlite3?mode=ro", uri=True, timeout=30)
        self.__dict__.update(made)

    def submit(self, *words):
        self.number = str(self.olga.json("submit", *WISH, *words)["number"])

    def asked(self, sql):
        return self.database.execute(sql).fetchall()

    def works(self, name):
        """Whether this part does its work: pages are served, or the one that runs has the watcher's lease."""
        pid = self.processes.part(name)
        if name == "web":
            return pid and self.site.answers()
        return [(pid,)] == [(int(owner.rpartition(":")[2]),) for (owner,) in self.asked(WATCHING)]

    def patiently(self, shell, *words):
        """A person whose click meets a web process that is down clicks again."""
        for _ in range(60):
            code, _, said = shell.run(*words)
            if code == 0:
                return
            time.sleep(2)
        raise AssertionError(said)

    def until(self, status, meanwhile=lambda: None, seconds=900):  # a watcher waits ten for the lease of a dead one
        deadline = time.monotonic() + seconds
        while (found := self.asked("SELECT status, halt_reason FROM jobs_job")) != [(status, "")]:
            assert found[0][1] == "", found
            assert time.monotonic() < deadline, found
            meanwhile()
            time.sleep(0.1)

    def ends_well(self, meanwhile=lambda: None):
        self.until("awaiting_approval", meanwhile)
        self.patiently(self.pavel, "approve", self.number, "--instance", NEW[-6:], "--reason", "Agreed.")
        self.until("on_trial", meanwhile)
        self.lab.wait_console(self.guest, f"VOLMIG-DATA sha256 {self.digest}")
        self.patiently(self.olga, "confirm", self.number)
        self.until("done", meanwhile)
        assert self.lab.sha256(self.lab.src, f"/dev/vg_nova0/{OLD}_disk.local") == self.source
        assert sorted(line.rpartition("/")[2] for line in self.lab.leftovers()) == ["README", "card.json", "disk.old"]


@pytest.fixture
def scene(clean_lab, site, shell_of, request):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    digest = lab.volume(lab.src, f"{OLD}_disk.local", 64 * MIB, data_mb=4, bulk_mb=24)
    source = lab.sha256(lab.src, f"/dev/vg_nova0/{OLD}_disk.local")
    guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    volmig = site(False, *PARTS, **getattr(request, "param", {}))
    people = shell_of(volmig, "olga", "submit"), shell_of(volmig, "pavel", "approve")
    return Scene(lab, volmig, *people, digest=digest, source=source, guest=guest)


def test_workers_that_are_killed_at_random_instants_of_copying_are_replaced_and_it_ends_well(scene):
    rng, killed = random.Random(5), {"convert": 0, "stage": 0}
    under_way = "SELECT step FROM jobs_steprun WHERE result = 'running' AND step IN ('convert', 'stage')"

    def meanwhile():
        for (step,) in scene.asked(under_way):
            if killed[step] < KILLS and (workers := scene.processes.workers()):
                killed[step] += kill(rng.choice(workers))
                time.sleep(rng.uniform(0, 0.6))

    scene.submit("--rate", "1.5")
    scene.ends_well(meanwhile)
    print(f"\nkilled: {killed}")
    assert min(killed.values()) >= KILLS // 2
    assert scene.asked("SELECT max(attempt) FROM jobs_steprun WHERE step IN ('convert', 'stage')") == [(1,)]


@pytest.mark.parametrize("scene", [{"VOLMIG_LAB": "yes", "VOLMIG_FAILPOINT": "*.do.*=wait"}], indirect=True)
@pytest.mark.parametrize("part", ["web", "watcher"])
def test_a_part_that_is_killed_at_every_boundary_of_one_migration_is_replaced_and_it_ends_well(scene, part):
    left, waiting = set(BOUNDARIES), scene.site.data / "failpoints"

    def meanwhile():
        for point in waiting.glob("*"):
            if point.name in left and not scene.works(part):
                continue
            if point.name in left:
                scene.processes.replace(part)
                left.remove(point.name)
            point.unlink()

    scene.submit()
    scene.ends_well(meanwhile)
    print(f"\n{part}: killed {len(BOUNDARIES) - len(left)} times, left {sorted(left)}")
    assert left == set()
