"""The task queue; nothing else imports django-q."""

import datetime as dt

from django.utils import timezone
from django_q.models import OrmQ, Schedule, Task
from django_q.tasks import async_task


def later(dotted: str, *numbers: int) -> None:
    """Queues a call as part of the current transaction; integers only, because the queue's payload is a pickle."""
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"{dotted}: task arguments are integers only")
    async_task(dotted, *numbers)


def every_minute(dotted: str) -> None:
    """Makes the schedule that queues this call once a minute, unless there is one; of several all but one go."""
    there = Schedule.objects.filter(func=dotted)
    kept = there.order_by("pk").first() or Schedule.objects.create(
        func=dotted,
        name=dotted,
        schedule_type=Schedule.MINUTES,
        minutes=1,
        repeats=-1,
        next_run=timezone.now() + dt.timedelta(seconds=5),
    )
    there.exclude(pk=kept.pk).delete()


def last_done() -> dt.datetime | None:
    """When a worker last ended a task, well or badly; None when none ever did."""
    latest: Task | None = Task.objects.order_by("-stopped").only("stopped").first()
    return latest.stopped if latest else None


def is_stuck(seconds: float) -> bool:
    """Whether a task has waited for so long that nobody took, and no worker has ended one meanwhile.

    A worker that is killed while it waits for a task takes the queue's lock along: no other gets anything any more.
    """
    before, done = timezone.now() - dt.timedelta(seconds=seconds), last_done()
    # The lock of a task is since when it may be taken; of one that was taken, it lies in the future.
    return (done is None or done < before) and OrmQ.objects.filter(lock__lt=before).exists()
