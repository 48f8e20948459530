"""The task queue's way in: calls are queued here and nowhere else. volmig.broker is the way out, to the workers.

Ticks, for which guests wait, have a queue and workers of their own; everything else has others (settings.TASKS).
"""

import datetime as dt
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.db.models import Max
from django.utils import timezone

from volmig.models import CausedCall, QueuedTask, lately
from volmig.parts import MIGRATIONS
from volmig.refusals import Refused, Sentence

AGAIN_AFTER = 10  # seconds after a call ended before a person can cause the same one again
WINDOW = 600  # seconds over which a person's and a token's calls are counted
MINUTE = 57  # seconds; a little less, so that a minute's work does not slip by the time between two looks
KEEP_FOR = dt.timedelta(seconds=2 * WINDOW)


# The queues that wait for workers because of what the running request asked for; None where no page is answered.
requested: ContextVar[set[str] | None] = ContextVar("requested", default=None)


def note_request(dotted: str) -> None:
    """For volmig.health.absent, which says so when no worker runs."""
    if (queues := requested.get()) is not None:
        queues.add(settings.TASKS[dotted])


def later(dotted: str, *numbers: int, by: Any = None, urgent: bool = False, is_request: bool = True) -> None:
    """Queues a call as part of the current transaction, and last in it, unless an equal one waits.

    `by` is the person who caused it, if one did; `urgent` puts it before all others of its queue; a notice, which
    nobody waits for, is no request.

    Raises Refused when the person has caused too many calls.
    """
    if by is not None:
        count(by, settings.TASKS[dotted])
    if is_request:
        note_request(dotted)
    QueuedTask.objects.queue([call(dotted, *numbers, urgent=urgent)])


def call(dotted: str, *numbers: int, urgent: bool = False) -> QueuedTask:
    """A call that waits, for QueuedTask.objects.queue. Raises TypeError for anything but one integer at most."""
    if not all(type(number) is int for number in numbers) or len(numbers) > 1:
        raise TypeError(f"{dotted}: a task takes one argument at most, and that is an integer: integers only")
    task = QueuedTask(queue=settings.TASKS[dotted], name=dotted, number=next(iter(numbers), None), urgent=urgent)
    task.waits = str(task)
    return task


def ask(dotted: str, *numbers: int, by: Any) -> Sentence | None:
    """Queues a call because a person asked for it, unless the same one waits, runs, or ended a moment ago.

    Returns None when it was queued, else a sentence that says why nothing was. Raises Refused when the person has
    caused too many calls.
    """
    equal = QueuedTask.objects.filter(name=dotted, number=numbers[0] if numbers else None)
    if equal.waiting().exists():
        note_request(dotted)
        return Sentence("already-queued", "This was already requested and is waiting for a worker.")
    if equal.running().exists():
        return Sentence("already-running", "This was already requested and is running now.")
    if (ended := equal.filter(done_at__range=lately(AGAIN_AFTER)).aggregate(at=Max("done_at"))["at"]) is not None:
        wait = max(1, round(AGAIN_AFTER - (timezone.now() - ended).total_seconds()))
        return Sentence("asked-a-moment-ago", f"This was done a moment ago. It can be requested again in {wait} s.")
    later(dotted, *numbers, by=by)
    return None


def ask_each(dotted: str, numbers: Iterable[int], by: Any) -> int:
    """Queues a call for each of these numbers because a person asked for all of them at once; returns how many.

    Those that wait, run, or ended a moment ago are left out. It counts as one call of this person, and raises Refused
    when they have caused too many.
    """
    equal = QueuedTask.objects.filter(name=dotted)
    there = equal.waiting() | equal.running() | equal.filter(done_at__range=lately(AGAIN_AFTER))
    if missing := set(numbers).difference(there.values_list("number", flat=True)):
        count(by, settings.TASKS[dotted])
        QueuedTask.objects.queue([call(dotted, number) for number in missing])
    note_request(dotted)
    return len(missing)


def count(by: Any, queue: str) -> None:
    """Counts one call of this person; raises Refused when they, or the token in use, have caused too many lately."""
    caused = CausedCall.objects.filter(queue=queue, at__range=lately(WINDOW))
    token, (per_person, per_token) = token_of(by), settings.TASKS_CAP[queue]
    what = "actions on migrations" if queue == MIGRATIONS else "requests for background work"
    for rows, limit, whose in (
        (caused.filter(person=by.pk), per_person, "Your account"),
        (caused.filter(token=token) if token else caused.none(), per_token, "This token"),
    ):
        if rows.count() >= limit:
            said = f"{whose} has made {limit} {what} in the last {WINDOW // 60} minutes. Wait before you make more."
            raise Refused(Sentence("too-many-requests", said))
    CausedCall.objects.create(queue=queue, person=by.pk, token=token)


def token_of(by: Any) -> int | None:
    """The key of the token with which this person calls the API; None on pages."""
    token: int | None = getattr(by, "token_key", None)
    return token


def queue_minute() -> None:
    """Queues each call of settings.EVERY_MINUTE that does not wait and was not queued in this minute.

    Every process that feeds workers may call this as often as it likes.
    """
    rows = QueuedTask.objects.filter(name__in=settings.EVERY_MINUTE)
    waiting, lately_queued = rows.waiting(), rows.filter(queued_at__range=lately(MINUTE))
    there = {*waiting.values_list("name", flat=True), *lately_queued.values_list("name", flat=True)}
    if missing := [call(dotted) for dotted in settings.EVERY_MINUTE if dotted not in there]:
        QueuedTask.objects.queue(missing)


def sweep() -> None:
    """Task, once a minute: deletes calls that ended so long ago that neither debouncing nor caps need them."""
    before = timezone.now() - KEEP_FOR
    QueuedTask.objects.filter(done_at__lt=before).delete()
    CausedCall.objects.filter(at__lt=before).delete()


def last_done(queue: str) -> dt.datetime | None:
    """When a worker last ended a task of this queue, well or badly; None when none did in the last minutes."""
    begun = QueuedTask.objects.filter(queue=queue).exclude(begun_at=None)  # others are closed without a worker
    latest: dt.datetime | None = begun.aggregate(at=Max("done_at"))["at"]
    return latest
