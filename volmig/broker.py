"""The task queue's way out: what workers run. Nothing else imports django-q.

Whoever can write to the database must not run code in a worker. django-q's own tables would allow that: schedules are
any function by name, results are pickles that its monitor reads back without a signature, and a saved result calls any
hook. So none of its tables is used: rows of QueuedTask say a name and an integer, the name is looked up in
settings.TASKS here and once more in the worker, results are not kept, and the minute's work is in the settings.
"""

import logging
import os
import time
import uuid
from contextlib import suppress

from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone
from django.utils.module_loading import import_string
from django_q.brokers import Broker
from django_q.signing import SignedPackage

from volmig import beats
from volmig.database import AWAY, Outage
from volmig.health import heart, tallies
from volmig.models import LOST_AFTER, QueuedTask
from volmig.parts import BACKGROUND, of_queue
from volmig.queue import queue_minute
from volmig.record import publisher

log = logging.getLogger(__name__)
# A cluster whose workers are all busy takes no task until one of them ends, if only by its limit.
PATIENCE = settings.TASK_SECONDS + LOST_AFTER + 15.0
MINUTE_EVERY = 5.0  # seconds between looks at what the minute brings


class TableBroker(Broker):  # type: ignore[misc]
    """Feeds one cluster, named after its queue, from the table of queued tasks."""

    minute_at = 0.0
    outage: Outage | None = None
    full = False

    def dequeue(self) -> list[tuple[str, str]] | None:
        """One task for the workers, as (run, package); None after a pause when none waits, or without a database."""
        beats.beat()
        heart.turn(of_queue(str(self.list_key)).name, PATIENCE)
        if self.outage is None:
            self.outage = Outage(f"workers ({self.list_key})")
            if self.list_key == os.environ.get("Q_CLUSTER_NAME") == BACKGROUND:
                publisher.begin()  # a machine has one such process, which lives as long as its workers
        try:
            task = self.next()
        except AWAY as error:
            time.sleep(self.outage.failed(error))
            return None
        self.outage.over()
        if task is None:
            time.sleep(settings.TASK_POLL)
            return None
        return [(str(task.run), package(task))]

    def next(self) -> QueuedTask | None:
        """Takes the next task of its queue; None when there is none, or the disk of the data directory is full."""
        close_old_connections()
        if self.is_full():
            return None
        if time.monotonic() >= self.minute_at:
            self.minute_at = time.monotonic() + MINUTE_EVERY
            queue_minute()
        return QueuedTask.objects.take(self.list_key, os.environ.get("VOLMIG_CLUSTER", ""))

    def is_full(self) -> bool:
        """Whether this machine takes no tasks, which others do: what it did could not be kept in its data directory."""
        before, self.full = self.full, heart.disk_is_full()
        if self.full and not before:
            log.error(
                "The disk of %s is full or cannot be read. This machine takes no tasks until it is writable.",
                settings.DATA,
            )
        elif before and not self.full:
            log.warning("The disk of %s is writable again: this machine takes tasks.", settings.DATA)
        return self.full

    def acknowledge(self, task_id: str) -> None:
        """The run ended well. Its worker has written so already, see `run`, unless the database was away then."""
        with suppress(*AWAY):  # then it runs once more
            QueuedTask.objects.end(uuid.UUID(task_id))

    delete = acknowledge

    def fail(self, task_id: str) -> None:
        """What cannot be unpacked never began: its row waits again after a while."""

    def queue_size(self) -> int:
        """How many tasks wait in this queue."""
        return QueuedTask.objects.filter(queue=self.list_key).waiting().count()

    def lock_size(self) -> int:
        """How many tasks of this queue run."""
        return QueuedTask.objects.filter(queue=self.list_key).running().count()

    def ping(self) -> bool:
        """True: there is no broker beside the database."""
        return True

    def info(self) -> str:
        """The name that django-q prints."""
        return "volmig's queued tasks"


def package(task: QueuedTask) -> str:
    """What django-q's pusher unpacks a moment later in the same process: one function, whatever the row says.

    `cached` keeps its monitor from the table of results; the cache (settings.CACHES) keeps nothing. `ack_failure` keeps
    it from ending a run that failed: its worker has, unless it failed before it began, and then it waits again.
    """
    run = task.run.hex if task.run else ""
    call = {"func": "volmig.broker.run", "args": (task.name, task.number, run), "kwargs": {}}
    about = {"id": run, "name": str(task), "started": timezone.now()}
    packed: str = SignedPackage.dumps({**about, **call, "cached": 1, "ack_failure": False})
    return packed


def run(name: str, number: int | None, taken: str) -> None:
    """In the worker: calls the function of settings.TASKS with this name, new or former; everything else is refused."""
    name = settings.FORMER_TASKS.get(name, name)
    if name not in settings.TASKS or not (number is None or type(number) is int):
        raise PermissionError(f"{name!r} is not a task of volmig")
    if not QueuedTask.objects.begin(uuid.UUID(taken)):
        log.warning("%s was not started: another worker has taken it or an equal call", name)
        return
    function = import_string(name)
    beats.beat()
    try:
        function() if number is None else function(number)
    finally:
        beats.beat()
        # Here, for django-q's monitor may be killed, and what takes its place waits for a lock that went with it.
        with suppress(*AWAY):  # then it runs once more
            QueuedTask.objects.end(uuid.UUID(taken))
    tallies.flush_due()
