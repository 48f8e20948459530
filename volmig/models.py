"""Notices, kept until they were sent; calls that wait for a worker; which volmig this database is, and its keys."""

import datetime as dt
import logging
import uuid
from itertools import groupby
from operator import attrgetter
from typing import Any, Self

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import Exists, OuterRef, Q, Subquery
from django.utils import timezone

log = logging.getLogger(__name__)
LOST_AFTER = 15  # seconds after a task's limit: a worker that does not end by then is killed within five
TAKEN_A_MOMENT_AGO = dt.timedelta(seconds=15)  # a cluster takes one task more than its workers run
TAKEN_LATELY = dt.timedelta(
    seconds=20
)  # what a tick may take (jobs.worker.gateway); the lease of a lost one is no shorter
KEPT_FOR_ITS_CLUSTER = dt.timedelta(seconds=1)
CLOCKS_DIFFER = dt.timedelta(seconds=60)  # by which the clocks of several machines of one volmig may differ


class Notice(models.Model):
    """A notice to send to the webhook, and whether it was sent."""

    kind = models.CharField(max_length=40)
    subject = models.CharField(max_length=200)
    text = models.TextField()
    url_path = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    emailed_at = models.DateTimeField(null=True, blank=True)
    posted_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}"


def lately(seconds: float) -> tuple[dt.datetime, dt.datetime]:
    """From so many seconds ago until now, for __range; not times in the future, after a clock was set back."""
    now = timezone.now()
    return now - dt.timedelta(seconds=seconds), now + dt.timedelta(seconds=5)


def runs_of(cluster: str) -> tuple[uuid.UUID, uuid.UUID]:
    """The first and the last UUID that begins with these hex digits, for __range."""
    least, most = (uuid.UUID(cluster.ljust(32, digit)) for digit in "0f")
    return least, most


class QueuedTaskQuerySet(models.QuerySet["QueuedTask"]):
    """Calls in the queue: waiting, running, and those that equal another."""

    def waiting(self) -> Self:
        """Those that no worker has, or whose worker was lost.

        A worker that does not end at a task's limit is killed, and cannot say that it ended: so what began longer ago
        than that waits again, as does what a cluster has had for longer than it can take until it begins, and what was
        taken in the future, before a clock was set back. A run that comes too late does not begin: see `begin`.
        """
        now = timezone.now()
        lost = Q(begun_at__lt=now - dt.timedelta(seconds=settings.TASK_SECONDS + LOST_AFTER))
        lost |= Q(taken_at__lt=now - dt.timedelta(seconds=settings.TASK_RETRY))
        lost |= Q(taken_at__gt=now + CLOCKS_DIFFER)
        return self.filter(done_at=None).filter(Q(taken_at=None) | lost)

    def running(self) -> Self:
        """Those that a worker has and has not had for too long."""
        since = timezone.now() - dt.timedelta(seconds=settings.TASK_SECONDS)
        return self.filter(Q(taken_at__gte=since) | Q(begun_at__gte=since), done_at=None)

    def at_hand(self) -> Self:
        """Those that wait or that a cluster has just taken, so that an equal one need not be queued beside them."""
        return self.filter(done_at=None).filter(Q(taken_at=None) | Q(taken_at__gt=timezone.now() - TAKEN_A_MOMENT_AGO))

    def queue(self, tasks: "list[QueuedTask]") -> None:
        """Adds these calls, each unless an equal one waits.

        One that waits is locked until the caller's transaction ends, so that no worker takes it before what this
        transaction writes can be seen. Two transactions that each queue several calls could wait for each other:
        calls are queued in one order, and last in a transaction.

        One that waits may become urgent and stays so: who queues it once more has perhaps read the status of before.
        """
        tasks = sorted(tasks, key=lambda each: (each.name, each.number or 0))
        same = ["queue", "name", "number"]
        with transaction.atomic(savepoint=False):
            for urgent, some in groupby(tasks, attrgetter("urgent")):  # in the order above, across statements
                columns = [*same, "urgent"] if urgent else same
                self.bulk_create(list(some), update_conflicts=True, unique_fields=["waits"], update_fields=columns)

    def first_for(self, cluster: str) -> Self:
        """Without those that another cluster gets for a moment, because it ran an equal call last.

        It still has connections to the hypervisors that the call is about, and they know its session. Urgent ones are
        for whoever comes first. While an equal call has just been taken nobody gets one: it would find its migration
        at work, and a third could wait meanwhile.
        """
        now = timezone.now()
        equal = QueuedTask.objects.filter(name=OuterRef("name"), number=OuterRef("number"), run__isnull=False)
        anyone = Q(urgent=True) | Q(queued_at__lt=now - KEPT_FOR_ITS_CLUSTER) | Q(queued_at__gt=now) | Q(last_run=None)
        last = Subquery(equal.order_by("-pk").values("run")[:1])
        lately = (now - TAKEN_LATELY, now + CLOCKS_DIFFER)
        at_work = equal.filter(done_at=None, taken_at__range=lately).exclude(pk=OuterRef("pk"))
        return self.alias(last_run=last).filter(~Exists(at_work), anyone | Q(last_run__range=runs_of(cluster)))

    def take(self, queue: str, cluster: str = "") -> "QueuedTask | None":
        """The first waiting task of the queue, the urgent ones before all others; it stands for all equal ones.

        Taking a call closes every other open row of the same call that waits, or that a cluster took so long ago that
        it is lost or at work for long: at most two rows of a call are open, one that was taken and one that waits. If
        this cluster dies before its worker begins, the call waits again after settings.TASK_RETRY; ticks are swept.

        The run's UUID begins with `cluster`, the hex digits by which its supervisor finds what it had: see give_back.
        None when nothing waits. Rows that no worker may run are removed; those that a transaction still holds, which
        queued them once more, are left to the next call.
        """
        # Of columns that are not needed nothing is read: one that cannot be converted would stop the queue.
        waiting = self.filter(queue=queue).waiting().only("queue", "name", "number")
        if not waiting.first_for(cluster).exists():
            return None  # without a lock, which in SQLite would keep all others from writing
        with transaction.atomic():
            free = waiting.select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked)
            ours = free.first_for(cluster).order_by("-urgent", "pk")
            while (first := ours.first()) and (fault := first.fault()):
                log.error("queued task %s (%s) was removed and not run: %s", first.pk, first, fault)
                self.filter(pk=first.pk).delete()
            if first is None:
                return None
            now = timezone.now()
            closed = Q(run=None) | Q(taken_at__lt=now - TAKEN_LATELY) | Q(taken_at__gt=now + CLOCKS_DIFFER)
            equal = self.filter(closed, name=first.name, number=first.number, done_at=None).exclude(pk=first.pk)
            locked = equal.select_for_update(skip_locked=connection.features.has_select_for_update_skip_locked)
            self.filter(pk__in=list(locked.values_list("pk", flat=True))).update(done_at=now, waits=None)
            first.run, first.taken_at = uuid.UUID(cluster + uuid.uuid4().hex[len(cluster) :]), now
            self.filter(pk=first.pk).update(run=first.run, taken_at=now, begun_at=None, waits=None)
        return first

    def begin(self, run: uuid.UUID) -> bool:
        """In the worker: whether this run may begin. It may not once another worker was given its call.

        It closes what other clusters took of the same call: where two took equal ones at once, one of them begins.
        """
        now = timezone.now()
        if not self.filter(run=run, done_at=None).update(begun_at=now):
            return False
        name, number = self.filter(run=run).values_list("name", "number")[0]
        self.filter(name=name, number=number, done_at=None, run__isnull=False).exclude(run=run).update(done_at=now)
        return True

    def end(self, run: uuid.UUID) -> None:
        """The run ended, well or badly; its rows stay for a while for debouncing and caps."""
        self.filter(run=run, done_at=None).update(done_at=timezone.now())

    def give_back(self, cluster: str) -> int:
        """Lets what this cluster had and did not end wait again; returns how many rows. It must not run any more."""
        return self.filter(done_at=None, run__range=runs_of(cluster)).update(taken_at=None, run=None, begun_at=None)


class QueuedTask(models.Model):
    """One call that waits for a worker, or that one had in the last minutes.

    Whoever can write to the database can write rows here: a row therefore says nothing but a name, which is looked up
    in settings.TASKS, and one integer. There is no function, no pickle and no option in it.

    `waits` names the call while it waits, so that equal ones do not multiply; it is empty once a cluster took the call.
    """

    queue = models.CharField(max_length=20)
    name = models.CharField(max_length=100)
    number = models.BigIntegerField(null=True, blank=True)
    waits = models.CharField(max_length=120, null=True, blank=True, unique=True)
    urgent = models.BooleanField(default=False)  # a guest may be down: before all others of its queue
    queued_at = models.DateTimeField(default=timezone.now)
    taken_at = models.DateTimeField(null=True, blank=True)  # by a cluster, for one of its workers
    begun_at = models.DateTimeField(null=True, blank=True)  # by that worker
    run = models.UUIDField(null=True, blank=True, db_index=True)
    done_at = models.DateTimeField(null=True, blank=True, db_index=True)

    objects = QueuedTaskQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["queue", "-urgent", "id"], condition=Q(done_at=None), name="queuedtask_first"),
            models.Index(fields=["name", "number"], name="queuedtask_call"),
        ]

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name} {self.number}"

    def fault(self) -> str:
        """Why no worker may run this row, whoever wrote it; empty when one may."""
        expected: Any = settings.TASKS.get(settings.FORMER_TASKS.get(self.name, self.name))
        if expected is None:
            return "its name is not in settings.TASKS"
        if expected != self.queue:
            return f"{self.name} belongs to the queue {expected}"
        if self.number is not None and type(self.number) is not int:  # SQLite keeps text in a column of integers
            return "its argument is not an integer"
        return ""


class CausedCall(models.Model):
    """One call that a person, or one of their tokens, caused in the last minutes, for the cap."""

    queue = models.CharField(max_length=20)
    person = models.BigIntegerField()
    token = models.BigIntegerField(null=True, blank=True)
    at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        indexes = [models.Index(fields=["person", "at"], name="causedcall_person")]

    def __str__(self) -> str:
        return f"account {self.person}: a call in the queue {self.queue}"


class Incarnation(models.Model):
    """The one row of this database; `ended` are the read-only episodes that a person ended."""

    name = models.CharField(max_length=32)
    episode = models.CharField(max_length=32, blank=True)
    since = models.DateTimeField(null=True, blank=True)
    code = models.CharField(max_length=40, blank=True)
    reason = models.TextField(blank=True)
    ended = models.JSONField(default=list, blank=True)

    def __str__(self) -> str:
        return f"volmig {self.name[:8]}"


class Session(models.Model):
    """One start of a process tree. Rows are never removed: hosts remember sessions for years."""

    name = models.CharField(max_length=32, unique=True)
    claims = models.BigIntegerField(default=0)
    host = models.CharField(max_length=100, blank=True)
    started_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"session {self.name[:8]} on {self.host}"


class RegisteredKey(models.Model):
    """The fingerprint of a key that every machine of this database needs, and which machine registered it.

    `path` is where it is on that machine: from there people copy it.
    """

    name = models.CharField(max_length=40, unique=True)
    fingerprint = models.CharField(max_length=64)
    host = models.CharField(max_length=100)
    path = models.CharField(max_length=500)
    registered_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.name} of {self.host}"


class Machine(models.Model):
    """One data directory with its settings: what has to be equal on all machines, as fingerprints under the audit key.

    `kind` is what its processes are: "web", "worker", or "" for all of it.
    """

    place = models.CharField(max_length=32)
    kind = models.CharField(max_length=10, blank=True)
    host = models.CharField(max_length=100)
    settings = models.JSONField(default=dict)
    seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["place", "kind"], name="machine_of_a_kind")]

    def __str__(self) -> str:
        return self.host
