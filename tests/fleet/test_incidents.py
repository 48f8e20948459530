"""What befell volmig itself and is over, as people learn of it afterwards, and what is wrong with it now."""

import datetime as dt
import errno
import os
import queue
import subprocess
import uuid
from multiprocessing import Value

import pytest
from django.conf import settings
from django.db import OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django_q.monitor import monitor
from django_q.signing import SignedPackage
from django_q.worker import worker

from jobs.models import Job
from jobs.web import attention
from tests.factories import a_job
from tests.fleet.beats import a_process
from tests.ticks import LONG_AGO
from volmig import broker, database, incarnation
from volmig.broker import TableBroker
from volmig.health import alive, heart, ready
from volmig.health.models import Incident, Process
from volmig.models import TAKEN_LATELY, QueuedTask, QueuedTaskQuerySet
from volmig.queue import call

NOBODY = 4_000_000  # no process has this number
CLIENTS = "connection failed: FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute"


def listed(ada, kind):
    """What the overview lists of this kind: subject, sentence and detail."""
    found = attention.items(ada, None)
    return [(item.subject, item.sentence, item.detail) for item in found if item.kind == f"process-{kind}"]


@pytest.fixture
def outage(monkeypatch):
    """An outage that lasted 22 s, as a part of this machine met it: outage("watcher", OperationalError(…))."""
    now = [0.0]
    monkeypatch.setattr(database, "monotonic", lambda: now[0])
    monkeypatch.setattr("socket.gethostname", lambda: "wat1")

    def met(who, error):
        one = database.Outage(who)
        one.failed(error)
        now[0] += 22
        one.over()

    return met


@pytest.mark.django_db
def test_an_outage_of_the_database_is_listed_once_when_it_is_over(outage, ada, site):
    for who in ("watcher", "workers (migrations)"):
        outage(who, OperationalError("connection refused"))
    [(subject, said, detail)] = listed(ada, "over")
    first, last = Incident.objects.first().began_at, Incident.objects.last().ended_at
    assert (subject, said) == (
        "volmig",
        f"The database was unreachable from {first:%H:%M:%S} to {last:%H:%M:%S} UTC.",
    )
    assert detail == "Noticed by: watcher on wat1, workers (migrations) on wat1."
    assert 21 < (last - first).total_seconds() < 30


@pytest.mark.django_db
def test_what_is_over_is_shown_apart_and_not_counted(outage, client, ada, site):
    outage("watcher", OperationalError(CLIENTS))
    client.force_login(ada)
    page = client.get("/").content.decode()
    assert "Resolved in the last 30 minutes" in page
    assert "The database had no free connection from" in page
    assert "Needs attention" not in page
    assert "<b>0</b><span>need attention" in page
    assert "data-attention" not in page, "nothing red in the menu"
    site["watcher"].delete()
    page = client.get("/").content.decode()
    assert 'data-attention="1"' in page
    assert page.index("No watcher is running.") < page.index("Resolved in the last 30 minutes")
    assert 'data-attention="1"' in client.get("/attention/count").content.decode()


@pytest.mark.django_db
def test_rows_that_hold_anything_do_not_take_the_overview_away(ada, site):
    for part in ("12", "9", "no number"):
        Incident.objects.note("lease", "wrk1", part, 5.0)
    Incident.objects.note("of a later release", "wrk1", "x", 5.0)
    [(_, said, detail)] = listed(ada, "over")
    assert said.startswith("Workers stopped handling 3 migrations from ")
    assert detail.startswith("Migrations 9, 12, no number.")


@pytest.mark.django_db
def test_a_database_without_a_free_connection_is_named_as_that(outage, ada, site, monkeypatch):
    outage("watcher", OperationalError(CLIENTS))
    [(_, said, _)] = listed(ada, "over")
    assert said.startswith("The database had no free connection from")

    def refuse(_wrapper):
        raise OperationalError(CLIENTS)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", refuse)
    assert ready.database() == ["The database has no free connection."]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("most", "last", "said"),
    [
        pytest.param("connection refused", CLIENTS, "The database was unreachable", id="all reconnect at once"),
        pytest.param(CLIENTS, "connection refused", "The database had no free connection", id="restarted with more"),
    ],
)
def test_an_outage_is_named_as_what_it_was_for_most_of_its_time(ada, site, most, last, said):
    one = database.Outage("watcher")
    for error in (*[most] * 20, last):
        one.failed(OperationalError(error))
    one.over()
    [(_, sentence, _)] = listed(ada, "over")
    assert sentence.startswith(said)


@pytest.mark.django_db
def test_what_asked_nothing_of_the_database_does_not_end_its_outage(outage, monkeypatch, caplog):
    """As a turn of the watcher in which nothing was due."""
    with monkeypatch.context() as away:
        away.setattr(database, "fault", lambda: OperationalError("connection refused"))
        outage("watcher", OperationalError("connection refused"))
    assert "responds again" not in caplog.text
    assert not Incident.objects.exists()
    outage("watcher", OperationalError("connection refused"))
    assert Incident.objects.count() == 1


@pytest.mark.parametrize(
    ("hours", "shown"),
    [
        ((0, 0), "from 12:00:00 to 12:00:09 UTC"),
        ((24, 24), "from 29 November, 12:00:00 to 12:00:09 UTC"),
        ((24, 0), "from 29 November, 12:00:00 to 30 November, 12:00:09 UTC"),
    ],
)
def test_times_of_another_day_have_their_day(monkeypatch, hours, shown):
    """The page of processes lists a day."""
    noon = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
    monkeypatch.setattr(timezone, "now", lambda: noon + dt.timedelta(hours=3))
    began, ended = (noon - dt.timedelta(hours=each) for each in hours)
    assert alive.times(began, ended + dt.timedelta(seconds=9)) == shown


@pytest.mark.django_db
def test_two_outages_are_two(ada, site):
    Incident.objects.note("database", "wat1", "watcher", 10)
    Incident.objects.update(
        began_at=timezone.now() - dt.timedelta(minutes=9), ended_at=timezone.now() - dt.timedelta(minutes=8)
    )
    Incident.objects.note("database", "wat1", "watcher", 10)
    assert len(listed(ada, "over")) == 2


@pytest.mark.django_db
def test_what_is_over_leaves_the_overview_after_half_an_hour_and_the_page_after_a_day(client, ada, site):
    client.force_login(ada)
    for hours, on_overview, on_page in ((0, 1, True), (1, 0, True), (25, 0, False)):
        Incident.objects.all().delete()
        Incident.objects.note("database", "wat1", "watcher", 10)
        at = timezone.now() - dt.timedelta(hours=hours)
        Incident.objects.update(began_at=at - dt.timedelta(seconds=10), ended_at=at)
        assert len(listed(ada, "over")) == on_overview
        Incident.objects.note("process", "web1", "web", 3)  # which removes what is too old
        assert ("The database was unreachable" in client.get("/processes/").content.decode()) is on_page


@pytest.mark.django_db(transaction=True)
def test_noting_never_fails_for_the_databases_sake(monkeypatch):
    with monkeypatch.context() as away:
        name = "/nowhere/at/all" if connections["default"].vendor == "sqlite" else "nowhere"
        connections.close_all()
        away.setitem(connections.settings["default"], "NAME", name)
        Incident.objects.note("database", "wat1", "watcher", 10)
    connections.close_all()
    assert not Incident.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_was_killed_is_listed_once_another_has_taken_its_place(ada, site):
    for _ in range(2):
        a_process("watcher", machine="wat1", pid_space=heart.pid_space(), age=7, pid=NOBODY)
        Process(
            name=uuid.uuid4().hex, machine="wat1", pid_space=heart.pid_space(), part="watcher", pid=os.getpid()
        ).beat()
        Process.objects.filter(pid_space=heart.pid_space()).delete()
    a_process("watcher", machine="wat1", pid_space=heart.pid_space(), age=1, pid=os.getpid())
    Process(name=uuid.uuid4().hex, machine="wat1", pid_space=heart.pid_space(), part="watcher", pid=os.getpid()).beat()
    [(subject, said, _)] = listed(ada, "over")
    assert subject == "wat1"
    assert said.startswith("The watcher ended unexpectedly 2 times, last between ")
    assert said.endswith(", and started again.")


@pytest.mark.django_db(transaction=True)
def test_a_process_whose_supervisor_was_killed_is_missed_although_it_ended_in_an_orderly_way(monkeypatch):
    ended = subprocess.Popen(["/bin/true"])  # and nobody has noticed, as where its parent is no init
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    for supervisor, is_missed in ((NOBODY, True), (ended.pid, True), (os.getppid(), False)):
        monkeypatch.setenv(heart.SUPERVISOR, str(supervisor))
        one = heart.Heart("workers", None)
        one.beat()
        one.stop()
        assert Process.objects.filter(name=one.process.name).exists() is is_missed
    ended.wait()


@pytest.mark.django_db
def test_a_migration_that_a_worker_lost_is_listed(ada, site):
    job = a_job()
    Job.objects.filter(pk=job.pk).update(lease_owner="wrk1:77:abc", lease_until=LONG_AGO)
    assert Job.objects.claim(job.pk, "wrk2:5:def", 30).taken_over
    Incident.objects.update(began_at=timezone.now() - dt.timedelta(seconds=9))
    [(subject, said, detail)] = listed(ada, "over")
    assert subject == "volmig"
    assert said.startswith(f"Workers stopped handling migration {job.pk} from ")
    assert detail == f"Migration {job.pk}. Its worker was wrk1:77:abc."
    Job.objects.filter(pk=job.pk).update(lease_until=None, lease_owner="", wake_at=LONG_AGO)
    Job.objects.claim(job.pk, "wrk2:5:def", 30)
    assert Incident.objects.count() == 1, "a free one was lost by nobody"


# What is wrong now


@pytest.mark.django_db
def test_two_containers_with_one_name_are_told_apart_by_nobody(ada, site):
    hour = timezone.now() - dt.timedelta(hours=1)
    a_process("watcher", machine="twin", pid_space="one", started_at=hour)
    assert listed(ada, "name") == []
    other = a_process("watcher", machine="twin", pid_space="other", started_at=timezone.now())
    assert listed(ada, "name") == [], "it may have taken the place of the first"
    Process.objects.filter(pk=other.pk).update(started_at=hour)
    assert [subject for subject, *_ in listed(ada, "name")] == ["twin"]
    a_process("web", machine="m2", pid_space="one", started_at=hour)
    a_process("workers", machine="m2", pid_space="other", started_at=hour)
    assert len(listed(ada, "name")) == 1, "one machine may have a data directory for each part"


@pytest.mark.django_db
def test_one_of_two_with_one_name_that_is_lost_is_missed(ada, site):
    hour = timezone.now() - dt.timedelta(hours=1)
    a_process("watcher", machine="twin", pid_space="one", started_at=hour, age=300)
    other = a_process("watcher", machine="twin", pid_space="other", started_at=hour)
    assert [subject for subject, *_ in listed(ada, "late")] == ["twin"]
    Process.objects.filter(pk=other.pk).update(started_at=timezone.now() - dt.timedelta(seconds=280))
    assert listed(ada, "late") == []


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "patience"), [("jobs.worker.tick.run", 30), ("hosts.tasks.refresh", 300)])
def test_a_queue_whose_oldest_task_waits_for_too_long_is_listed(ada, site, name, patience):
    QueuedTask.objects.queue([call(name, number) for number in range(1000)])
    QueuedTask.objects.update(queued_at=timezone.now() - dt.timedelta(seconds=patience - 5))
    assert listed(ada, "backlog") == []
    QueuedTask.objects.update(queued_at=timezone.now() - dt.timedelta(seconds=patience + 5))
    [(_, said, _)] = listed(ada, "backlog")
    assert "1,000 tasks wait, the oldest for" in said
    part = site["workers" if patience == 30 else "background"]
    Process.objects.filter(pk=part.pk).update(beaten_at=timezone.now() - dt.timedelta(seconds=80))
    assert listed(ada, "backlog") == [], "none run, which says more"
    QueuedTask.objects.update(done_at=timezone.now())
    assert alive.backlog() == []


# A data directory that is full


@pytest.fixture
def full(monkeypatch):
    space = {"disk_free": 0, "disk_size": 48 << 20}
    monkeypatch.setattr(heart, "disk", lambda: space)
    return space


@pytest.mark.django_db(transaction=True)
def test_a_machine_whose_data_directory_is_full_takes_no_tasks(full, caplog, monkeypatch):
    monkeypatch.setattr(broker.time, "sleep", lambda seconds: None)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    feeder = TableBroker(list_key="migrations")
    assert [feeder.dequeue(), feeder.dequeue()] == [None, None]
    assert sum("takes no tasks" in record.getMessage() for record in caplog.records) == 1
    full["disk_free"] = 40 << 20
    assert feeder.dequeue()
    assert "this machine takes tasks" in caplog.text


@pytest.mark.django_db
def test_a_migration_that_this_machine_cannot_remember_is_left_to_another(monkeypatch):
    job = a_job()
    assert incarnation.check() is None  # which has its first start behind it

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(incarnation.data_dir, "replace", no_space)
        assert Job.objects.claim(job.pk, "wrk1:7:abc", 30) is None
    job.refresh_from_db()
    assert (job.lease_until, job.lease_owner) == (None, "")
    assert Job.objects.due().filter(pk=job.pk).exists()
    assert not Job.objects.claim(job.pk, "wrk2:7:def", 30).taken_over


@pytest.mark.django_db
def test_a_worker_says_itself_that_its_task_ended(monkeypatch):
    """django-q's monitor may be killed, and what takes its place waits for ever for a lock that went with it."""
    ran = []
    monkeypatch.setattr(broker, "import_string", lambda dotted: ran.append)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    task = QueuedTask.objects.take("migrations")
    broker.run(task.name, task.number, task.run.hex)
    assert ran == [7]
    ended = QueuedTask.objects.get().done_at
    assert ended
    TableBroker(list_key="migrations").acknowledge(str(task.run))
    assert QueuedTask.objects.get().done_at == ended


@pytest.fixture
def carry_out(db, monkeypatch):
    """Carries a task out as a cluster does, whose processes are django-q's worker and monitor."""
    monkeypatch.setattr("django_q.worker.close_old_django_connections", lambda: None)  # the test's own

    def carry_out(task):
        tasks, results = queue.Queue(), queue.Queue()
        tasks.put(SignedPackage.loads(broker.package(task)) | {"ack_id": str(task.run)})
        tasks.put("STOP")
        worker(tasks, results, Value("f", -1))
        results.put("STOP")
        monitor(results, TableBroker(list_key=task.queue))

    return carry_out


@pytest.mark.parametrize("statement", ["update", "values_list"])
def test_a_call_that_could_not_begin_waits_again_and_is_not_done(carry_out, monkeypatch, statement):
    """A person asked for it, and the database was away for a moment just then."""
    ran = []
    monkeypatch.setattr(broker, "import_string", lambda dotted: ran.append)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    task = QueuedTask.objects.take("migrations")
    asked = getattr(QueuedTaskQuerySet, statement)

    def refuse_once(rows, *args, **values):
        monkeypatch.setattr(QueuedTaskQuerySet, statement, asked)
        raise OperationalError("connection refused")

    monkeypatch.setattr(QueuedTaskQuerySet, statement, refuse_once)
    carry_out(task)
    assert (ran, QueuedTask.objects.get().done_at) == ([], None)
    long_ago = timezone.now() - dt.timedelta(seconds=settings.TASK_RETRY + 1)
    QueuedTask.objects.update(taken_at=long_ago)
    carry_out(QueuedTask.objects.take("migrations"))
    assert ran == [7]
    assert QueuedTask.objects.get().done_at


def test_a_call_that_failed_is_done_and_not_made_again(carry_out, monkeypatch):
    def fail(number):
        raise ValueError(number)

    monkeypatch.setattr(broker, "import_string", lambda dotted: fail)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    carry_out(QueuedTask.objects.take("migrations"))
    assert QueuedTask.objects.get().done_at


@pytest.mark.django_db
def test_a_task_that_was_lost_with_its_worker_is_met_by_the_next_equal_one():
    """Else each fault would leave a row of a migration behind, which runs once more minutes later."""
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7), call("jobs.worker.tick.run", 8)])
    lost, other = QueuedTask.objects.take("migrations"), QueuedTask.objects.take("migrations")
    QueuedTask.objects.filter(run=lost.run).update(taken_at=timezone.now() - TAKEN_LATELY)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    again = QueuedTask.objects.take("migrations")
    assert (lost.number, other.number, again.number) == (7, 8, 7)
    assert QueuedTask.objects.begin(again.run)
    assert not QueuedTask.objects.begin(lost.run), "it came too late"
    assert QueuedTask.objects.begin(other.run)
    QueuedTask.objects.queue([call("jobs.worker.tick.run", 7)])
    assert QueuedTask.objects.waiting().get().number == 7, "what was queued since is done"
