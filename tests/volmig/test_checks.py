"""Unsafe settings are refused before anything starts; so are unsafe task arguments."""

import datetime as dt

import pytest
from django.conf import settings as present
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ, Task

from volmig.apps import queue_is_safe, requests_are_not_atomic, sqlite_is_safe
from volmig.queue import is_stuck, later


def test_the_settings_as_shipped_are_safe():
    assert [*queue_is_safe(), *sqlite_is_safe(), *requests_are_not_atomic()] == []


@pytest.mark.parametrize(
    "change", [{"retry": 60}, {"sync": True}, {"ack_failures": False}, {"max_attempts": 0}, {"orm": None}, {"bulk": 10}]
)
def test_an_unsafe_queue_is_refused(settings, change):
    settings.Q_CLUSTER = settings.Q_CLUSTER | change
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
    ("waits", "done", "stuck"),
    [
        pytest.param(40, 50, True, id="a task waits and none was ended meanwhile"),
        pytest.param(40, None, True, id="none was ever ended"),
        pytest.param(40, 5, False, id="they are busy"),
        pytest.param(5, 50, False, id="it has just come"),
        pytest.param(-860, 50, False, id="somebody has taken it"),
        pytest.param(None, 50, False, id="nothing is to be done"),
    ],
)
def test_workers_that_take_no_task_any_more_are_told_from_those_that_are_busy_or_idle(db, waits, done, stuck):
    if waits is not None:
        OrmQ.objects.create(key="volmig", payload="", lock=ago(waits))
    if done is not None:
        Task.objects.create(id="a", name="a", func="a", started=ago(done), stopped=ago(done), success=True)
    assert is_stuck(30) is stuck
