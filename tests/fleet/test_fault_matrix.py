"""Two of every process, and what goes wrong with them while migrations are under way: all of it resumes unaided.

After each fault every migration is done, none halted, nothing was done twice on a hypervisor, and the overview (or what
answers in its place) said what was wrong.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

import psycopg
import pytest

from tests import postgresql
from tests.family import children, family
from tests.fleet import clock
from tests.fleet.parts import can_have_names, rows, until
from tests.fleet.two_of_all import Volmig
from tests.trust.amounts import FULL, amount, figure

pytestmark = [
    pytest.mark.skipif(postgresql.programs() is None, reason="needs PostgreSQL's package"),
    pytest.mark.skipif(not can_have_names(), reason="only root can give machines names"),
]
only_whole = pytest.mark.skipif(not FULL, reason="runs in make trust")
MIGRATIONS = amount(10, 3)
TASKS = 1000
MOST_SECONDS = amount(600, 300)  # until all are done: none of this is about speed


@pytest.fixture(scope="module")
def volmig(tmp_path_factory):
    with Volmig(tmp_path_factory.mktemp("site"), migrations=12 * MIGRATIONS) as running:
        yield running


@contextlib.contextmanager
def migrations_under_way(volmig):
    """What goes wrong within befalls migrations amid their copy and amid their swap; afterwards they are all done."""
    began, most = time.monotonic(), 0
    numbers = volmig.order(MIGRATIONS)
    volmig.until_under_way(numbers)
    yield began
    end = time.monotonic()
    while volmig.statuses(numbers) != dict.fromkeys(numbers, "done"):
        most = max(most, volmig.most_rows())
        volmig.check(numbers, end + MOST_SECONDS)
        time.sleep(0.5)
    assert most <= 2, "rows of the queue for one migration"
    assert volmig.site.run_twice() == {}
    volmig.check_disks(numbers)


# kill -9


def of_cluster(supervisor):
    """The processes of the cluster of migrations, by what they are; the feeder takes tasks from the database."""
    (main,) = [pid for pid in children(supervisor) if "VOLMIG_PART=workers" in environment(pid)]
    (sentinel,) = children(main)
    *workers, monitor, feeder = children(sentinel)
    return {"main": main, "sentinel": sentinel, "monitor": monitor, "feeder": feeder, "worker": workers[0]}


def environment(pid):
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


def busy_worker(volmig, name):
    """A worker process that is amid a migration."""

    def found():
        query = "SELECT lease_owner FROM jobs_job WHERE lease_until > now() AND lease_owner LIKE %s"
        owners = rows(volmig.address, query, f"{name}:%")
        return next((int(owner.split(":")[1]) for (owner,) in owners), 0)

    return until(found, 60)


KILLED = {
    "web": ("web1", lambda volmig, pid: children(pid)[0], r"web1: The web process .*ended unexpectedly"),
    "watcher": ("wat1", lambda volmig, pid: children(pid)[0], r"wat1: The watcher .*ended unexpectedly"),
    "feeder": ("wrk1", lambda volmig, pid: of_cluster(pid)["feeder"], r"wrk1: The workers .*ended unexpectedly"),
    "worker": ("wrk1", lambda volmig, pid: busy_worker(volmig, "wrk1"), r"Workers stopped handling .*migration"),
    "monitor": ("wrk2", lambda volmig, pid: of_cluster(pid)["monitor"], ""),
    "sentinel": ("wrk2", lambda volmig, pid: of_cluster(pid)["sentinel"], r"wrk2: The workers .*ended unexpectedly"),
    "main": ("wrk1", lambda volmig, pid: of_cluster(pid)["main"], r"wrk1: The workers .*ended unexpectedly"),
}


@pytest.mark.parametrize("victims", [[each] for each in KILLED] if FULL else [["web", "watcher", "feeder", "worker"]])
def test_whatever_is_killed_is_started_again_and_everything_resumes(volmig, victims):
    with migrations_under_way(volmig) as began:
        for each in victims:
            name, which, _ = KILLED[each]
            os.kill(which(volmig, volmig.supervisor(name)), signal.SIGKILL)
    said = "nothing: a killed monitor is replaced before any task waits for it"
    for each in filter(None, (KILLED[each][2] for each in victims)):
        said = volmig.until_said(each, began)
    figure(f"kill -9 of {', '.join(victims)}: {MIGRATIONS} migrations done, nothing ran twice; overview: {said}")


@only_whole
def test_a_machine_whose_supervisor_is_killed_is_missed_until_it_is_started_again(volmig):
    """As systemd starts it again after a while (Restart=always); until then the other machine does the work."""
    with migrations_under_way(volmig) as began:
        before = list(family(volmig.supervisor("wrk2")))
        os.kill(volmig.supervisor("wrk2"), signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), 60)
        volmig.until_said(r"wrk2: No heartbeat from the workers", began)
        volmig.up("wrk2")
    said = volmig.until_said(r"wrk2: The workers ended unexpectedly", began)
    figure(f"kill -9 of the supervisor of wrk2: {MIGRATIONS} migrations done, nothing ran twice; overview: {said}")


# The database


@contextlib.contextmanager
def stopped(server):
    server.stop("fast")
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("seconds", amount([20, 300], [5]))
def test_a_database_that_is_away_is_waited_for(volmig, seconds):
    with migrations_under_way(volmig) as began, stopped(volmig.postgresql):
        volmig.forget()
        time.sleep(seconds)  # an outage is measured in time
        volmig.until_probed("The database does not respond.")
        assert 200 not in {status for statuses in volmig.answers.values() for status in statuses}
    volmig.until_said(r"The database was unreachable from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d", began)
    whole = "SELECT max(ended_at - began_at) >= make_interval(secs => %s) FROM health_incident WHERE kind = 'database'"
    until(lambda: rows(volmig.address, whole, seconds - 1)[0][0])
    said = volmig.until_said(r"The database was unreachable from .* Noticed by: .*watcher on wat", began)
    figure(f"PostgreSQL down for {seconds} s: {MIGRATIONS} migrations done, nothing ran twice; overview: {said}")


@contextlib.contextmanager
def every_slot_taken(volmig):
    taken = []
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline:
            try:
                taken.append(psycopg.connect(volmig.address))
            except psycopg.OperationalError:
                time.sleep(0.2)
        yield
    finally:
        for connection in taken:
            connection.close()


@only_whole
def test_a_database_whose_connections_are_all_taken_is_waited_for(volmig):
    with migrations_under_way(volmig) as began, every_slot_taken(volmig):
        volmig.forget()
        volmig.until_probed("The database has no free connection.")
    said = volmig.until_said(r"The database had no free connection", began)
    figure(f"every connection taken: {MIGRATIONS} migrations done, nothing ran twice; overview: {said}")


# Machines


def test_a_worker_machine_whose_disk_is_full_leaves_the_work_to_the_other(volmig):
    full = volmig.machines["wrk1"].data / "full"
    with migrations_under_way(volmig) as began:
        free = os.statvfs(full.parent).f_bavail * os.statvfs(full.parent).f_frsize
        with full.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)
        assert os.statvfs(full.parent).f_bavail == 0
        said = volmig.until_said(r"wrk1: The disk of the data directory is full", began)
        until(lambda: "This machine takes no tasks" in volmig.machines["wrk1"].log("workers"), 300, volmig.logs)
    full.unlink()
    until(lambda: "this machine takes tasks" in volmig.machines["wrk1"].log("workers"), 300)
    figure(f"data disk full on wrk1: {MIGRATIONS} migrations done by the other; overview: {said}")


@only_whole
def test_watchers_of_two_containers_with_one_name_and_one_process_id_share_the_work(volmig):
    for name in ("wat1", "wat2"):
        volmig.machines[name].stop()
    twins = [volmig.machine("volmig-watcher", folder, contained=True) for folder in ("twin1", "twin2")]
    for twin in twins:
        volmig.copy_keys(twin)
        volmig.let_in(twin)
        twin.up("watcher")
    try:
        query = "SELECT pid, pid_space FROM health_process WHERE machine = 'volmig-watcher'"
        until(lambda: len(rows(volmig.address, query)) == 2)
        first, second = rows(volmig.address, query)
        assert first[0] == second[0], "the same process id"
        with migrations_under_way(volmig) as began:
            owners = "SELECT owner, count(*) FROM jobs_lease WHERE name LIKE 'part %' AND until > now() GROUP BY owner"
            until(lambda: sorted(count for _, count in rows(volmig.address, owners)) == [16, 16], 60)
            volmig.until_followed_once(20)
        said = volmig.until_said("volmig-watcher: Two machines, containers or data directories have this name", began)
    finally:
        for twin in twins:
            twin.stop()
        for name in ("wat1", "wat2"):
            volmig.up(name)
    figure(f"two containers with one name: parts shared 16 to 16, each hypervisor followed once; overview: {said}")


@only_whole
@pytest.mark.skipif(not clock.can_be_off(), reason="needs a C compiler")
@pytest.mark.parametrize("seconds", [40, -40])
def test_a_watcher_whose_clock_is_off_does_no_harm(volmig, tmp_path, seconds):
    volmig.machines["wat1"].stop()
    volmig.up("wat1", **clock.off_by(seconds, tmp_path))
    try:
        until(lambda: ("wat1", "watcher") in {each[:2] for each in volmig.parts()})
        with migrations_under_way(volmig) as began:
            way = "ahead of" if seconds > 0 else "behind"
            said = volmig.until_said(rf"wat1: Its clock is {way} the database's\..* By (39|40)\.\d s", began)
    finally:
        volmig.machines["wat1"].stop()
        volmig.up("wat1")
    figure(f"a watcher whose clock is {seconds} s off: {MIGRATIONS} migrations done; overview: {said}")


# Overload


@only_whole
def test_all_workers_started_into_a_backlog_with_little_processor_time_work_it_off(volmig):
    began = time.monotonic()
    for name in ("wrk1", "wrk2"):
        volmig.machines[name].stop()
    volmig.queue(TASKS)
    numbers = volmig.order(MIGRATIONS)
    logged = {name: len(volmig.machines[name].log("workers")) for name in ("wrk1", "wrk2")}
    for name in logged:
        volmig.up(name)
    with volmig.starved("wrk1", "wrk2", share=0.2):
        said = volmig.until_said(r"Migrations wait for a worker: [\d,]+ tasks wait, the oldest for", began)
        until(lambda: len({each[0] for each in volmig.parts() if each[1] == "workers"}) == 2, 600, volmig.logs)
        until(lambda: volmig.waiting_tasks() < TASKS / 2, 600, volmig.logs)
    deadline = time.monotonic() + MOST_SECONDS
    while volmig.statuses(numbers) != dict.fromkeys(numbers, "done") or volmig.waiting_tasks() > 10:
        volmig.check(numbers, deadline)
        assert volmig.most_rows() <= 2
        time.sleep(0.5)
    for name, length in logged.items():
        assert "no sign of life" not in volmig.machines[name].log("workers")[length:], "they were left to work"
    assert volmig.site.run_twice() == {}
    figure(f"workers started into {TASKS} tasks: none was restarted, all were worked off; overview: {said}")
