"""Calls that the release before left in the queue, under the names that tasks had then, run under their new names."""

import pytest
from django.conf import settings
from django.utils.module_loading import import_string

from volmig import broker, queue
from volmig.models import QueuedTask

pytestmark = pytest.mark.django_db


def left_behind(name, number=None):
    """A row as the release before queued it."""
    return QueuedTask.objects.create(
        queue=settings.TASKS[settings.FORMER_TASKS[name]],
        name=name,
        number=number,
        waits=name if number is None else f"{name} {number}",
    )


def run_next(name):
    """What a cluster and its worker do with the next row of this name's queue."""
    task = QueuedTask.objects.take(queue=settings.TASKS[settings.FORMER_TASKS[name]])
    broker.run(task.name, task.number, task.run.hex)


@pytest.mark.parametrize("name", sorted(settings.FORMER_TASKS))
def test_a_row_under_a_former_name_is_taken_and_run_under_the_new_one(name, monkeypatch):
    ran = []
    monkeypatch.setattr(broker, "import_string", lambda dotted: lambda *numbers: ran.append((dotted, *numbers)))
    row = left_behind(name, 7)
    run_next(name)
    row.refresh_from_db()
    assert ran == [(settings.FORMER_TASKS[name], 7)]
    assert row.done_at is not None


@pytest.mark.parametrize("name", ["jobs.archiving.sweep", "jobs.watch.sweep", "volmig.guessing.record"])
def test_the_function_that_has_moved_really_runs(name):
    row = left_behind(name)
    run_next(name)
    row.refresh_from_db()
    assert row.done_at is not None


def test_a_former_name_is_none_of_todays_and_leads_to_one():
    assert not set(settings.FORMER_TASKS) & set(settings.TASKS)
    assert set(settings.FORMER_TASKS.values()) <= set(settings.TASKS)
    for name in settings.FORMER_TASKS:
        with pytest.raises(ImportError):
            import_string(name)


def test_nothing_new_is_queued_under_a_former_name():
    with pytest.raises(KeyError):
        queue.later("jobs.tick.run", 1)


def test_a_minutes_work_under_a_name_that_is_gone_is_removed_and_comes_no_more():
    """What each minute brings is in the settings, not in a table of schedules: only a row that waits can be left."""
    for name in ("jobs.gone.sweep", "hosts.tasks.gone"):
        QueuedTask.objects.create(queue="background", name=name, waits=name)
    assert QueuedTask.objects.take("background") is None
    assert not QueuedTask.objects.exists()
    queue.queue_minute()
    assert {row.name for row in QueuedTask.objects.all()} == set(settings.EVERY_MINUTE)
