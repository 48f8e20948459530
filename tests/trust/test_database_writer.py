"""Whoever can write to the database, and do nothing else, runs no code in a worker.

One attempt for every table and column that a task queue on this database has ever read: volmig's queued tasks, and
django-q's own schedules, queue and results, which are there because django-q's migrations make them.
"""

import ast
import base64
import inspect
import os
import pickle
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django.core import signing
from django.utils.module_loading import import_string

from tests.trust.amounts import FULL, figure
from tests.trust.processes import ROOT, Processes
from volmig import broker
from volmig.models import QueuedTask

SCHEDULER_SECONDS = 40  # django-q's scheduler looks at its rows after half a minute
NOW = "2026-01-01 00:00:00"

pytestmark = pytest.mark.skipif("VOLMIG_DB" in os.environ, reason="the attacker writes into a file of its own")


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Attacks:
    """Rows that would make a file each; what an attempt was for is the file's name."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks
        self.rows: list[tuple[str, str, dict[str, object]]] = []
        self.queued()
        self.schedules()
        self.packages()
        self.results()

    def add(self, what: str, table: str, **columns: object) -> None:
        self.rows.append((what, table, columns))

    def touch(self, what: str) -> str:
        return f"touch {self.marks / what}"

    def pickled(self, what: str) -> bytes:
        return pickle.dumps(Touch(self.marks / what))

    def queued(self) -> None:
        """volmig's own table: a row that is right but for one column, in every queue."""
        right = {"queue": "background", "name": "hosts.tasks.refresh", "number": 1, "urgent": False, "queued_at": NOW}
        for name in ("os.system", "posix.system", "subprocess.getoutput", "builtins.exec", "volmig.broker.run"):
            for queue in ("background", "migrations"):
                what = f"queuedtask-name-{name}-{queue}"
                number = f"import os; os.system('{self.touch(what)}')" if "exec" in name else self.touch(what)
                self.add(what, "volmig_queuedtask", **{**right, "queue": queue, "name": name, "number": number})
        columns = "queue number waits urgent queued_at taken_at begun_at run done_at"
        for column in columns.split():
            for form in ("text", "pickle"):
                what = f"queuedtask-{column}-{form}"
                value = self.touch(what) if form == "text" else base64.b64encode(self.pickled(what)).decode()
                self.add(what, "volmig_queuedtask", **{**right, column: value})
        self.add("queuedtask-null", "volmig_queuedtask", **{**right, "number": None, "name": "hosts.tasks.refresh"})

    def schedules(self) -> None:
        """django-q's schedules: any function by name, any hook, arguments that are parsed as Python."""
        right = {
            "func": "os.getpid", "schedule_type": "I", "minutes": 1, "repeats": -1, "next_run": NOW, "name": "a"
        }  # fmt: skip
        for name in ("os.system", "subprocess.getoutput"):
            for cluster in (None, "migrations", "background"):
                what = f"schedule-func-{name}-{cluster}"
                columns = {**right, "func": name, "args": f"'{self.touch(what)}'", "cluster": cluster}
                self.add(what, "django_q_schedule", **columns)
        for column in ("args", "kwargs", "hook", "cron", "name", "task", "intended_date_kwarg", "cluster"):
            what = f"schedule-{column}"
            code = f"__import__('os').system('{self.touch(what)}')"
            # Arguments that are no literal would stop the scheduler before it came to the other rows.
            self.add(what, "django_q_schedule", **{**right, column: repr(code) if column == "args" else code})

    def packages(self) -> None:
        """django-q's queue: packages without a signature, with another key's, and with another purpose's."""
        for key in ("volmig", "migrations", "background"):
            for how in ("plain", "unsigned", "other-key"):
                what = f"ormq-{key}-{how}"
                packed = self.pickled(what)
                payload = {
                    "plain": base64.b64encode(packed).decode(),
                    "unsigned": base64.urlsafe_b64encode(packed).decode().rstrip("=") + ":1tZfYq:AAAA",
                    "other-key": signing.TimestampSigner(key="another", salt="volmig").sign(
                        base64.urlsafe_b64encode(packed).decode().rstrip("=")
                    ),
                }[how]
                self.add(what, "django_q_ormq", key=key, payload=payload, lock=NOW)

    def results(self) -> None:
        """django-q's results: its monitor reads them back, each column a pickle, and calls the hook of a saved one."""
        for number, column in enumerate(("args", "kwargs", "result")):
            what = f"task-{column}"
            right = {"func": "os.getpid", "started": NOW, "stopped": NOW, "success": 1, "attempt_count": 1, "name": "a"}
            pickled = base64.b64encode(self.pickled(what)).decode()
            self.add(what, "django_q_task", **{**right, "id": f"{number:032}", column: pickled})
        self.add("task-hook", "django_q_task", **{**right, "id": "9" * 32, "hook": "os.getpid", "success": 0})

    def write(self, processes: Processes) -> None:
        for _, table, columns in self.rows:
            names, marks = ", ".join(f'"{name}"' for name in columns), ", ".join("?" * len(columns))
            processes.rows(f"INSERT INTO {table} ({names}) VALUES ({marks})", *columns.values())  # noqa: S608 - names of this file

    def run(self) -> list[str]:
        return sorted(path.name for path in self.marks.iterdir())


@pytest.fixture
def marks(tmp_path):
    made = tmp_path / "marks"
    made.mkdir()
    return made


@pytest.fixture
def processes(tmp_path, migrated):
    one = Processes(shutil.copytree(migrated, tmp_path / "data"))
    yield one
    one.stop()


@pytest.fixture
def attacks(marks):
    return Attacks(marks)


def test_whoever_writes_to_the_database_runs_no_code_in_a_worker(processes, attacks):
    attacks.write(processes)
    # The last rows of each queue: whatever stands before them was read and judged when these have run.
    for queue, name in (("migrations", "jobs.worker.watcher.sweep"), ("background", "volmig.queue.sweep")):
        processes.rows(
            "INSERT INTO volmig_queuedtask (queue, name, urgent, queued_at) VALUES (?, ?, 0, ?)", queue, name, NOW
        )
    processes.start_workers()
    for name in ("jobs.worker.watcher.sweep", "volmig.queue.sweep"):
        done = "SELECT id FROM volmig_queuedtask WHERE name = ? AND done_at > ?"
        processes.until(done, name, NOW)
    if FULL:
        time.sleep(SCHEDULER_SECONDS)  # the time itself is what is tried: django-q's scheduler would have looked
    log = (processes.data / "up.log").read_text()
    assert attacks.run() == [], log
    assert "was removed and not run" in log
    assert processes.rows("SELECT id FROM volmig_queuedtask WHERE name IN ('os.system', 'builtins.exec')") == []
    figure(f"writing to the database alone: attempts {len(attacks.rows)}, code run {len(attacks.run())}")


def test_the_attempts_run_code_where_a_queue_reads_what_django_q_reads(processes, attacks):
    """Else the test above would prove nothing: with django-q's own broker the same rows do run."""
    attacks.write(processes)
    processes.run("from django_q.models import Task\nprint(len(list(Task.objects.all())))")
    assert attacks.run() == ["task-args", "task-kwargs", "task-result"]
    stock = (
        "from django_q import conf\n"
        "conf.Conf.BROKER_CLASS, conf.Conf.ORM, conf.Conf.CLUSTER_NAME = None, 'default', 'volmig'\n"
        "from django_q.brokers.orm import ORM\nfrom django_q.scheduler import scheduler\n"
        "from django_q.models import OrmQ\nOrmQ.objects.all().delete()\n"
        "scheduler(ORM('volmig'))\nprint(*(row.func() for row in OrmQ.objects.all()))"
    )
    assert "os.system" in processes.run(stock).split()


def test_the_migration_empties_the_tables_that_are_not_used_any_more(processes, attacks):
    processes.manage("migrate", "volmig", "0001", "--verbosity", "0")
    attacks.rows = [row for row in attacks.rows if row[1] != "volmig_queuedtask"]
    attacks.write(processes)
    processes.manage("migrate", "--verbosity", "0")
    for table in ("django_q_schedule", "django_q_ormq", "django_q_task"):
        assert processes.rows(f"SELECT id FROM {table}") == []  # noqa: S608 - names of this file
    assert attacks.run() == []


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("os.system", "true", id="another function"),
        pytest.param("volmig.broker.run", 1, id="the door itself"),
        pytest.param("jobs.worker.tick", 1, id="a module"),
        pytest.param("jobs.worker.tick.run", "1", id="an argument that is text"),
        pytest.param("jobs.worker.tick.run", True, id="an argument that is a truth value"),
    ],
)
def test_a_worker_refuses_what_is_not_a_task_however_it_came_to_it(name, number):
    with pytest.raises(PermissionError):
        broker.run(name, number, "0" * 32)


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["os.system", "volmig.broker.run", "jobs.worker.tick", ""])
def test_the_broker_takes_no_row_that_names_something_else_and_removes_it(name):
    for queue in ("migrations", "background"):
        QueuedTask.objects.create(queue=queue, name=name, number=1)
        assert QueuedTask.objects.take(queue) is None
    assert not QueuedTask.objects.exists()


@pytest.mark.django_db
def test_thousands_of_bad_rows_do_not_keep_the_broker_from_the_task_behind_them():
    QueuedTask.objects.bulk_create(QueuedTask(queue="migrations", name="os.system") for _ in range(1500))
    QueuedTask.objects.create(queue="migrations", name="jobs.worker.tick.run", number=1)
    assert QueuedTask.objects.take("migrations").number == 1
    assert QueuedTask.objects.count() == 1


@pytest.mark.django_db
def test_a_task_in_the_queue_of_another_is_not_run():
    QueuedTask.objects.create(queue="migrations", name="hosts.tasks.refresh", number=1)
    assert QueuedTask.objects.take("migrations") is None
    assert not QueuedTask.objects.exists()


def test_every_task_is_a_function_of_one_integer_at_most():
    for name in (*settings.TASKS, *settings.FORMER_TASKS.values()):
        function = import_string(name)
        parameters = inspect.signature(function).parameters.values()
        assert [each.annotation for each in parameters] in ([], [int]), name


def test_every_call_that_the_code_queues_is_a_task():
    """Found in the source: what is queued under another name would fail when it is queued, in front of a person."""
    queued = set()
    for path in [path for top in ("volmig", "hosts", "jobs") for path in (ROOT / top).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"later", "ask"} and node.args:
                queued |= {leaf.value for leaf in ast.walk(node.args[0]) if isinstance(leaf, ast.Constant)}
    assert queued <= set(settings.TASKS), queued - set(settings.TASKS)
    assert len(queued) >= 6


def test_no_table_but_those_of_django_q_holds_pickles_and_nothing_reads_those():
    pickles = {
        field.model._meta.app_label
        for model in apps.get_models()
        for field in model._meta.get_fields()
        if "pickle" in type(field).__name__.lower()
    }
    assert pickles == {"django_q"}
    assert "json" in settings.SESSION_SERIALIZER.lower()
    found = subprocess.run(
        ["grep", "-rlE", r"django_q|\bpickle\b", "--include=*.py", "volmig", "hosts", "jobs"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    told = {"volmig/broker.py", "volmig/settings.py", "volmig/migrations/0002_queued_tasks.py", "volmig/models.py"}
    assert set(found) <= told
