"""volmig's own processes are killed amid one migration, again and again, and it ends as if nothing had been."""

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.torture]

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
WISH = f"--source src --volume vg_nova0/{OLD}_disk.local --instance {NEW} --relay jump --relay-vg vg_nova0".split()
KILLS = 30


class Processes:
    """The processes of one volmig, as /proc shows them."""

    def __init__(self, site):
        self.root = site.process.pid

    def children(self, parent):
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                above = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            found += [int(directory.name)] if above == parent else []
        return found

    def part(self, word):
        """The pid of the part in whose command line this word stands; None while it is down."""
        return next((pid for pid in self.children(self.root) if word in said(pid)), None)

    def workers(self):
        """What the queue's guard started: workers, and what feeds them."""
        queue = self.part("qcluster")
        return [pid for guard in (self.children(queue) if queue else []) for pid in self.children(guard)]


def said(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


class Scene:
    """A volume with 28 MiB of data, a guest that is switched off, a volmig, and two people's shells."""

    def __init__(self, lab, volmig, olga, pavel, **made):
        self.lab, self.olga, self.pavel, self.processes = lab, olga, pavel, Processes(volmig)
        self.database = sqlite3.connect(f"file:{volmig.data}/db.sqlite3?mode=ro", uri=True, timeout=30)
        self.__dict__.update(made)

    def submit(self, *words):
        self.number = str(self.olga.json("submit", *WISH, *words)["number"])

    def asked(self, sql):
        return self.database.execute(sql).fetchall()

    def patiently(self, shell, *words):
        """A person whose click meets a web process that is down clicks again."""
        for _ in range(60):
            code, _, said = shell.run(*words)
            if code == 0:
                return
            time.sleep(2)
        raise AssertionError(said)

    def until(self, status, seconds=300, meanwhile=lambda: None):
        deadline = time.monotonic() + seconds
        while (found := self.asked("SELECT status, halt_reason FROM jobs_job")) != [(status, "")]:
            assert found[0][1] == "", found
            assert time.monotonic() < deadline, found
            meanwhile()
            time.sleep(0.1)

    def ends_well(self, meanwhile=lambda: None):
        self.until("awaiting_approval", meanwhile=meanwhile)
        self.patiently(self.pavel, "approve", self.number, "--instance", NEW[-6:], "--reason", "Agreed.")
        self.until("on_trial", meanwhile=meanwhile)
        self.lab.wait_console(self.guest, f"VOLMIG-DATA sha256 {self.digest}")
        self.patiently(self.olga, "confirm", self.number)
        self.until("done", meanwhile=meanwhile)
        assert self.lab.sha256(self.lab.src, f"/dev/vg_nova0/{OLD}_disk.local") == self.source
        assert sorted(line.rpartition("/")[2] for line in self.lab.leftovers()) == ["README", "card.json", "disk.old"]


@pytest.fixture
def scene(clean_lab, site, shell_of):
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    digest = lab.volume(lab.src, f"{OLD}_disk.local", 64 * MIB, data_mb=4, bulk_mb=24)
    source = lab.sha256(lab.src, f"/dev/vg_nova0/{OLD}_disk.local")
    guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    volmig = site(False)
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


@pytest.mark.parametrize("word", ["uvicorn", "jobs.watch"], ids=["web", "watcher"])
def test_a_part_that_is_killed_whenever_a_step_begins_or_ends_comes_back_and_it_ends_well(scene, word):
    seen, killed = [], []

    def meanwhile():
        now = scene.asked("SELECT step, direction, attempt, result FROM jobs_steprun ORDER BY id")
        if [now] != seen and (pid := scene.processes.part(word)):
            seen[:] = [now]
            killed.append(kill(pid))

    scene.submit()
    scene.ends_well(lambda: meanwhile() if scene.asked("SELECT 1 FROM jobs_steprun") else None)
    print(f"\n{word} killed {sum(killed)} times")
    assert sum(killed) >= 5, "it comes back later each time"
