"""Unsafe settings are refused before anything starts; so are unsafe task arguments."""

import pytest
from django.conf import settings as present

from volmig.apps import queue_is_safe, requests_are_not_atomic, sqlite_is_safe
from volmig.queue import later


def test_the_settings_as_shipped_are_safe():
    assert [*queue_is_safe(), *sqlite_is_safe(), *requests_are_not_atomic()] == []


@pytest.mark.parametrize(
    "change", [{"retry": 60}, {"sync": True}, {"ack_failures": False}, {"max_attempts": 0}, {"orm": None}, {"bulk": 10}]
)
def test_an_unsafe_queue_is_refused(settings, change):
    settings.Q_CLUSTER = settings.Q_CLUSTER | change
    assert len(queue_is_safe()) == 1


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
