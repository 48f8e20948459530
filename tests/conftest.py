"""Fixtures for every test: tables that can be emptied, people with roles, and a queue that is drained by hand."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis

from tests.outside import outside_the_database

# A busy machine is slow, and no test is about how long something takes.
hypothesis.register_profile("patient", deadline=None)
hypothesis.load_profile("patient")
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # Playwright's loop runs beside the ORM in browser tests
pytest_plugins = ["tests.chromium", "tests.people", "tests.lab.fixtures", "tests.cloud.fixtures"]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Modules and tests stay to the end: the garbage collector need not go through them again and again (12 %)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _tables_can_be_emptied():
    """Lets transactional tests empty the tables: the record's triggers refuse that, and roles come by migration."""
    from django.test import TransactionTestCase

    tear_down = TransactionTestCase._fixture_teardown

    def empty(case):
        from django.contrib.auth.models import Group

        from volmig.accounts.roles import ALLOWS
        from volmig.record.apps import drop_triggers, make_triggers

        drop_triggers()
        tear_down(case)
        make_triggers()
        for name in ALLOWS:
            Group.objects.get_or_create(name=name)

    TransactionTestCase._fixture_teardown = empty
    yield
    TransactionTestCase._fixture_teardown = tear_down


@pytest.fixture(autouse=True)
def _as_before_the_first_start():
    """What the data directory and the process keep of the database goes when the test's database is set back."""
    for module, name in (("jobs.web.attention", "snapshot"), ("jobs.drift", "recent"), ("jobs.models.plans", "plans")):
        if module in sys.modules:
            getattr(sys.modules[module], name).forget()
    with outside_the_database():
        yield


@pytest.fixture
def unmeasured():
    """For what goes the same ways hundreds of times: to measure it too would take minutes, and tell nothing new.

    That holds for the processes that it starts, too: coverage begins in those that find its settings.
    """
    settings = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("COVERAGE_PROCESS_")}
    measuring = sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None
    if measuring is None:
        yield
        return
    measuring.stop()
    yield
    measuring.start()
    os.environ.update(settings)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """A data directory whose SQLite database has all tables and nobody in them: copy it. To migrate one takes 6 s."""
    data = tmp_path_factory.mktemp("migrated")
    environment = {name: value for name, value in os.environ.items() if name != "VOLMIG_DB"}
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=Path(__file__).parent.parent,
        env={**environment, "VOLMIG_DATA": str(data)},
        check=True,
    )
    return data


@pytest.fixture
def person(db, django_user_model):
    """Makes people: person("ann", "operator", "viewer")."""
    from django.contrib.auth.models import Group

    def make(name, *roles, **fields):
        user = django_user_model.objects.create_user(name, password="correct horse battery", **fields)
        user.groups.set(Group.objects.filter(name__in=roles))
        return user

    return make


@pytest.fixture
def drain(db):
    """Runs what is queued, in order, until nothing is left; returns the names of the tasks that ran."""
    from volmig import broker
    from volmig.models import QueuedTask

    def run(limit=100):
        ran = []
        while len(ran) < limit and (first := QueuedTask.objects.waiting().order_by("pk").first()):
            task = QueuedTask.objects.take(first.queue)
            try:
                broker.run(task.name, task.number, task.run.hex)
            finally:
                QueuedTask.objects.filter(run=task.run).delete()
            ran.append(task.name)
        return ran

    return run
