"""The task queue's way in: calls are queued here and nowhere else. volmig.broker is the way out, to the workers.

Ticks, for which guests wait, have a queue and workers of their own; everything else has others (settings.TASKS).
"""

import datetime as dt
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Max, Q
from django.utils import timezone

from volmig.models import QueuedTask
from volmig.refused import Refused, Sentence

MIGRATIONS, BACKGROUND = "migrations", "background"
AGAIN_AFTER = 10  # seconds after a call ended before a person can cause the same one again
WINDOW = 600  # seconds over which a person's and a token's calls are counted
MINUTE = 57  # seconds; a little less, so that a minute's work does not slip by the time between two looks
KEEP_FOR = dt.timedelta(seconds=2 * WINDOW)


def later(dotted: str, *numbers: int, by: Any = None) -> None:
    """Queues a call as part of the current transaction; `by` is the person who caused it, if one did.

    Of equal calls that wait a worker makes one run. Outside a transaction an equal call that waits is enough: whatever
    the caller has written is committed, so that the run will see it. Within one it is not: a worker may take the
    waiting one before this transaction is committed.

    Raises Refused when the person has caused too many calls.
    """
    if not all(type(number) is int for number in numbers) or len(numbers) > 1:
        raise TypeError(f"{dotted}: a task takes one argument at most, and that is an integer: integers only")
    number, queue = (numbers[0] if numbers else None), settings.TASKS[dotted]
    if by is not None:
        cap(by, queue)
    elif not connection.in_atomic_block and QueuedTask.objects.filter(name=dotted, number=number).waiting().exists():
        return
    person, token = (None, None) if by is None else (by.pk, token_of(by))
    QueuedTask.objects.create(queue=queue, name=dotted, number=number, person=person, token=token)


def ask(dotted: str, *numbers: int, by: Any) -> Sentence | None:
    """Queues a call because a person asked for it, unless the same one waits, runs, or ended a moment ago.

    `by` is None for a further call of a request that was counted already. Returns None when it was queued, else a
    sentence that says why nothing was. Raises Refused when the person has caused too many calls.
    """
    equal = QueuedTask.objects.filter(name=dotted, number=numbers[0] if numbers else None)
    if equal.waiting().exists():
        return Sentence("already-queued", "This was already requested and is waiting for a worker.")
    if equal.running().exists():
        return Sentence("already-running", "This was already requested and is running now.")
    if (ended := equal.since("done_at", AGAIN_AFTER).aggregate(at=Max("done_at"))["at"]) is not None:
        wait = max(1, round(AGAIN_AFTER - (timezone.now() - ended).total_seconds()))
        return Sentence("asked-a-moment-ago", f"This was done a moment ago. It can be requested again in {wait} s.")
    later(dotted, *numbers, by=by)
    return None


def cap(by: Any, queue: str) -> None:
    """Raises Refused when this person, or the token that they use, has caused too many calls in the last minutes."""
    caused = QueuedTask.objects.filter(queue=queue).since("queued_at", WINDOW)
    token, (per_person, per_token) = token_of(by), settings.TASKS_CAP[queue]
    what = "actions on migrations" if queue == MIGRATIONS else "requests for background work"
    for rows, limit, whose in (
        (caused.filter(person=by.pk), per_person, "Your account"),
        (caused.filter(token=token) if token else caused.none(), per_token, "This token"),
    ):
        if rows.count() >= limit:
            said = f"{whose} has made {limit} {what} in the last {WINDOW // 60} minutes. Wait before you make more."
            raise Refused(Sentence("too-many-requests", said))


def token_of(by: Any) -> int | None:
    """The key of the token with which this person calls the API; None on pages."""
    token: int | None = getattr(by, "token_key", None)
    return token


def queue_minute() -> None:
    """Queues each call of settings.EVERY_MINUTE that does not wait and was not queued in this minute.

    Every process that feeds workers may call this as often as it likes.
    """
    rows = QueuedTask.objects.filter(name__in=settings.EVERY_MINUTE)
    there = {*rows.waiting().values_list("name", flat=True)} | {
        *rows.since("queued_at", MINUTE).values_list("name", flat=True)
    }
    for dotted in settings.EVERY_MINUTE:
        if dotted not in there:
            later(dotted)


def sweep() -> None:
    """Task, once a minute: deletes calls that ended so long ago that neither debouncing nor caps need them."""
    QueuedTask.objects.filter(done_at__lt=timezone.now() - KEEP_FOR).delete()


def last_done(queue: str) -> dt.datetime | None:
    """When a worker last ended a task of this queue, well or badly; None when none did in the last minutes."""
    latest: dt.datetime | None = QueuedTask.objects.filter(queue=queue).aggregate(at=Max("done_at"))["at"]
    return latest


def is_stuck(queue: str, seconds: float) -> bool:
    """Whether a task has waited for so long that nobody took, and meanwhile none was taken or ended.

    A worker that is killed while it waits for a task takes the queue's lock along: no other gets anything any more.
    Workers that are busy look the same for as long as their tasks may last: `seconds` has to be more than that.
    """
    before, rows = timezone.now() - dt.timedelta(seconds=seconds), QueuedTask.objects.filter(queue=queue)
    moved = rows.filter(Q(taken_at__gte=before) | Q(done_at__gte=before))
    return rows.filter(taken_at=None, done_at=None, queued_at__lt=before).exists() and not moved.exists()
