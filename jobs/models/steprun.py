"""The journal: one row for each attempt at a step or at its undo, written before the act and after it."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from django.db import connection, models
from django.utils import timezone

from hosts.models import Hypervisor
from hosts.remote.phrases import sentence
from jobs.engine.routes import names_of, task_of
from jobs.engine.steps import Task
from jobs.models.archive import ArchivedJSONField

RESULTS = ("running", "done", "failed", "refused", "lost")


PROGRESS = """
UPDATE jobs_steprun SET bytes_done = %s, bytes_total = %s, bytes_read = %s, bytes_written = %s, rate = %s,
    progress_at = %s
WHERE id = %s AND ended_at IS NULL
"""


class Progress(NamedTuple):
    """What the watcher has heard of a run; see StepRun for the units."""

    pk: int
    bytes_done: int
    bytes_total: int
    bytes_read: int
    bytes_written: int
    rate: int
    progress_at: dt.datetime


class StepRunQuerySet(models.QuerySet["StepRun"]):
    """Attempts at steps: the journal."""

    def open(self) -> Self:
        """Begun and not known to have ended."""
        return self.filter(ended_at=None)

    def for_task(self, *tasks: Task) -> Self:
        """Attempts at the steps that are for one of these tasks."""
        return self.filter(step__in=names_of(*tasks))

    def running(self) -> Self:
        """Detached work that goes on by itself on a hypervisor."""
        return self.filter(result="running", ended_at=None)

    def record_progress(self, heard: Sequence[Progress]) -> None:
        """Writes what was heard of runs that have not ended.

        One prepared statement for all: Django's bulk_update needs a tenth of a second of processor for 250 rows, which
        are written four times a second. In the order of their keys, so that two watchers never wait for each other.
        """
        adapted = connection.ops.adapt_datetimefield_value
        rows = [(*each[1:-1], adapted(each.progress_at), each.pk) for each in sorted(heard)]
        if rows:
            with connection.cursor() as cursor:
                cursor.executemany(PROGRESS, rows)


class StepRun(models.Model):
    """Bytes are of the pass over the disk; `rate` is bytes per second over the last 30 s; `lap` as on the job.

    `unread`: its hypervisor has surely refused every request for it unread, as it lacks the version of hostctl; so it
    has not begun.
    """

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="runs", db_index=False)
    step = models.CharField(max_length=30)
    direction = models.CharField(max_length=4, choices=[("do", "do"), ("undo", "undo")], default="do")
    attempt = models.PositiveIntegerField(default=1)
    lap = models.PositiveIntegerField(default=1)
    fence = models.BigIntegerField(default=0)
    hypervisor = models.ForeignKey(Hypervisor, models.PROTECT, null=True, related_name="+")
    args = ArchivedJSONField(default=dict, blank=True)
    unit = models.CharField(max_length=200, blank=True)
    boot_id = models.CharField(max_length=40, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(default=0)
    bytes_read = models.BigIntegerField(default=0)
    bytes_written = models.BigIntegerField(default=0)
    rate = models.BigIntegerField(default=0)
    progress_at = models.DateTimeField(null=True, blank=True)
    silent_since = models.DateTimeField(null=True, blank=True)
    unread = models.BooleanField(default=False)
    ended_at = models.DateTimeField(null=True, blank=True)
    result = models.CharField(max_length=10, blank=True, choices=[(result, result) for result in RESULTS])
    evidence = models.JSONField(default=dict, blank=True)
    commands = ArchivedJSONField(default=list, blank=True)
    error = models.JSONField(null=True, blank=True)

    objects = StepRunQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["job", "step", "direction", "attempt"], name="one_attempt"),
        ]
        indexes = [
            models.Index(fields=["hypervisor"], condition=models.Q(result="running"), name="run_running"),
            # Its first column is always empty: SQLite reads the whole table unless that is something to search for.
            models.Index(fields=["ended_at", "hypervisor"], condition=models.Q(ended_at=None), name="run_open"),
            models.Index(fields=["progress_at"], name="run_progress_at"),
        ]

    def __str__(self) -> str:
        return f"{self.step} {self.direction} {self.attempt} {self.result}".strip()

    @property
    def key(self) -> tuple[str, str, int]:
        """Which attempt at which step it is."""
        return self.step, self.direction, self.attempt

    @property
    def task(self) -> Task | None:
        """What its step is for; None for a step that this volmig does not know."""
        return task_of(self.step)

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return ((self.ended_at or timezone.now()) - self.started_at).total_seconds()

    @property
    def fraction(self) -> float:
        """How much of the pass is behind it, 0 to 1."""
        return min(self.bytes_done / self.bytes_total, 1) if self.bytes_total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """By the rate of the last 30 s; None while there is none to tell from."""
        return max(self.bytes_total - self.bytes_done, 0) / self.rate if self.rate and self.bytes_total else None

    @property
    def sentence(self) -> str:
        """What went wrong, for people."""
        error: dict[str, Any] = self.error or {}
        if not error:
            return ""
        tried, found = error.get("tried") or "run this step", error.get("found") or "it gave no reason"
        return sentence(str(tried), str(found), str(error.get("next") or ""))

    @property
    def took(self) -> dt.timedelta:
        """The same as a timedelta."""
        return dt.timedelta(seconds=self.seconds)
