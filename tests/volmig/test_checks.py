"""Unsafe settings are refused before anything starts; so are unsafe task arguments."""

import datetime as dt

import pytest
from django.conf import settings as present
from django.db import connection
from django.utils import timezone

from volmig.apps import queue_is_safe, requests_are_not_atomic, sqlite_is_safe
from volmig.models import QueuedTask
from volmig.queue import is_stuck, later


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


def ago(seconds):
    return timezone.now() - dt.timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("waits", "taken", "done", "stuck"),
    [
        pytest.param(40, False, 50, True, id="a task waits and none was ended meanwhile"),
        pytest.param(40, False, None, True, id="none was ever ended"),
        pytest.param(40, False, 5, False, id="they are busy"),
        pytest.param(5, False, 50, False, id="it has just come"),
        pytest.param(40, True, 50, False, id="somebody has taken it"),
        pytest.param(None, False, 50, False, id="nothing is to be done"),
    ],
)
def test_workers_that_take_no_task_any_more_are_told_from_those_that_are_busy_or_idle(db, waits, taken, done, stuck):
    if waits is not None:
        taken = {"taken_at": timezone.now()} if taken else {}
        QueuedTask.objects.create(queue="migrations", name="jobs.tick.run", queued_at=ago(waits), **taken)
    if done is not None:
        QueuedTask.objects.create(queue="migrations", name="jobs.tick.run", done_at=ago(done))
    assert (is_stuck("migrations", 30), is_stuck("background", 30)) == (stuck, False)
