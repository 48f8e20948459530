"""Unsafe settings are refused before anything starts; so are unsafe task arguments."""

import time

import pytest
from django.conf import settings as present
from django.db import connection
from django.utils import timezone

from volmig.apps import queue_is_safe, requests_are_not_atomic, sqlite_is_safe
from volmig.broker import TableBroker
from volmig.management.commands import up
from volmig.models import QueuedTask
from volmig.queue import later


def test_the_settings_as_shipped_are_safe():
    assert [*queue_is_safe(), *sqlite_is_safe(), *requests_are_not_atomic()] == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"retry": 60}, id="tasks delivered twice"),
        pytest.param({"sync": True}, id="ticks inside requests"),
        pytest.param({"broker_class": "django_q.brokers.orm.ORM"}, id="a broker that runs any function"),
        pytest.param({"broker_class": None}, id="the broker of another setting"),
        pytest.param({"scheduler": True}, id="schedules from rows"),
        pytest.param({"cache": "default"}, id="results that are kept"),
        pytest.param({"ALT_CLUSTERS": {}}, id="a queue that nobody serves"),
    ],
)
def test_an_unsafe_queue_is_refused(settings, change):
    settings.Q_CLUSTER = settings.Q_CLUSTER | change
    assert len(queue_is_safe()) == 1


def test_schedules_in_the_other_cluster_are_refused(settings):
    alone = settings.Q_CLUSTER["ALT_CLUSTERS"]["background"]
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"ALT_CLUSTERS": {"background": alone | {"scheduler": True}}}
    assert len(queue_is_safe()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("TASKS", {"hosts.tasks.refresh": "migrations"}, id="other work in the queue of ticks"),
        pytest.param("FORMER_TASKS", {"jobs.old.run": "os.getpid"}, id="a former name of what is no task"),
        pytest.param("FORMER_TASKS", {"hosts.tasks.scan": "hosts.tasks.refresh"}, id="a former name that is in use"),
        pytest.param("EVERY_MINUTE", ["os.getpid"], id="a minute's work that is no task"),
        pytest.param("CACHES", {"old": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}}, id="pickles"),
    ],
)
def test_unsafe_tasks_and_caches_are_refused(settings, name, value):
    there = getattr(settings, name)
    setattr(settings, name, there | value if isinstance(there, dict) else there + value)
    assert len(queue_is_safe()) == 1


@pytest.mark.skipif(connection.vendor != "sqlite", reason="it is about SQLite")
@pytest.mark.parametrize(
    ("option", "value"),
    [("transaction_mode", "DEFERRED"), ("timeout", 5), ("init_command", "PRAGMA synchronous=NORMAL")],
)
def test_unsafe_sqlite_options_are_refused(monkeypatch, option, value):
    monkeypatch.setitem(present.DATABASES["default"]["OPTIONS"], option, value)
    assert sqlite_is_safe()


def test_atomic_requests_are_refused(monkeypatch):
    monkeypatch.setitem(present.DATABASES["default"], "ATOMIC_REQUESTS", True)
    assert requests_are_not_atomic()


@pytest.mark.parametrize("argument", ["x", None, True, [1], 1.0])
def test_only_integers_go_into_the_queue(argument):
    with pytest.raises(TypeError, match="integers only"):
        later("volmig.notify.send", argument)


def test_what_a_cluster_had_when_it_was_killed_waits_again_at_once_and_nothing_else_does(db, monkeypatch):
    killed, other = "a1" * 8, "a2" * 8
    for number, cluster in ((1, killed), (2, killed), (3, other), (4, killed)):
        add(number)
        assert QueuedTask.objects.take("background", cluster).number == number
    QueuedTask.objects.filter(number=1).update(done_at=timezone.now())
    monkeypatch.setattr(up.connection, "close", lambda: None)  # the test's own
    up.give_back(killed)
    assert [QueuedTask.objects.take("background", other).number for _ in range(2)] == [2, 4]
    assert QueuedTask.objects.take("background", other) is None


def test_a_broker_takes_in_the_name_of_its_cluster(db, monkeypatch):
    monkeypatch.setenv("VOLMIG_CLUSTER", "b7" * 8)
    monkeypatch.setattr("volmig.broker.close_old_connections", lambda: None)  # the test's own
    add(1)
    broker = TableBroker("background")
    broker.minute_at = time.monotonic() + 60
    [(run, _)] = broker.dequeue()
    assert run.replace("-", "").startswith("b7" * 8)


def add(number, **times):
    return QueuedTask.objects.create(queue="background", name="hosts.tasks.refresh", number=number, **times)
