"""Heartbeats of volmig's processes, what befell them, sums of what they count, and the row that a probe writes."""

import datetime as dt
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Self

from django.db import DatabaseError, InterfaceError, models
from django.db.models import ExpressionWrapper, F
from django.db.models.functions import Now
from django.utils import timezone

log = logging.getLogger(__name__)
LATE = dt.timedelta(seconds=45)  # without a heartbeat, of which one is due every ten seconds
KEPT = dt.timedelta(days=1)  # for so long a process that is lost is shown, unless another takes its place


def running_for(pid: int) -> float | None:
    """For how many seconds the process or thread of this PID has run; None when there is none.

    Field 22 of proc_pid_stat(5) is when it began, in clock ticks since the machine did. Field 3 says of one that has
    ended that its parent has yet to notice (Z).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError:  # it is there, and hidden (hidepid)
        return math.inf
    fields = stat.rpartition(b")")[2].split()  # from the third on
    if fields[0] in (b"Z", b"X"):
        return None
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


class ProcessQuerySet(models.QuerySet["Process"]):
    """Heartbeats of all processes on all machines."""

    def alive(self) -> Self:
        """Those whose last heartbeat is not late, by the database's clock."""
        return self.filter(beaten_at__gte=Now() - LATE)

    def with_age(self) -> Self:
        """With `age`, the time since the last heartbeat, by the database's clock."""
        age = ExpressionWrapper(Now() - F("beaten_at"), output_field=models.DurationField())
        return self.annotate(age=age)

    def ended_before(self, process: "Process") -> "list[Process]":
        """Earlier processes in the PID space of `process` that ended without an orderly stop: by their PIDs, so this is
        to be called there."""
        there = self.with_age().filter(pid_space=process.pid_space, part=process.part).exclude(name=process.name)
        return [row for row in there if not row.is_there]

    def replaced_by(self, process: "Process", ended: "list[Process]") -> Self:
        """Rows of earlier processes that this one stands for, and rows too old to be shown."""
        others = self.exclude(name=process.name)
        late = models.Q(pid_space=process.pid_space, part=process.part, beaten_at__lt=Now() - LATE)
        return others.filter(late | models.Q(pk__in=[row.pk for row in ended]) | models.Q(beaten_at__lt=Now() - KEPT))


class Process(models.Model):
    """One process of volmig, by its own word; the row goes when it stops in an orderly way.

    `pid_space` is that of volmig.health.heart: two containers may have one name. `skew` is by how many seconds its
    machine's clock is ahead of the database's (None: not measured), the disk is that of its data directory, in bytes,
    and `figures` are what only it knows, such as open websockets.
    """

    name = models.CharField(max_length=32, unique=True)
    machine = models.CharField(max_length=255)
    pid_space = models.CharField(max_length=32)
    part = models.CharField(max_length=20)
    pid = models.PositiveIntegerField()
    version = models.CharField(max_length=40)
    started_at = models.DateTimeField(default=timezone.now)
    beaten_at = models.DateTimeField(default=timezone.now)
    skew = models.FloatField(null=True, blank=True)
    disk_free = models.BigIntegerField(null=True, blank=True)
    disk_size = models.BigIntegerField(null=True, blank=True)
    figures = models.JSONField(default=dict, blank=True)

    age: dt.timedelta  # of with_age()

    objects = ProcessQuerySet.as_manager()

    class Meta:
        ordering = ["machine", "part", "pk"]

    def __str__(self) -> str:
        return f"{self.part} on {self.machine}"

    @property
    def late(self) -> bool:
        """True when its heartbeat is older than it may be."""
        return self.age > LATE

    @property
    def is_there(self) -> bool:
        """Whether it has not ended, in an orderly way or not; to be asked in its PID space, of a row with its age.

        A PID is used again, in a container that starts anew by the same process at once: what has run for less than the
        time since the last heartbeat did not send it.
        """
        ran = running_for(self.pid)
        return ran is not None and ran >= self.age.total_seconds()

    def beat(self, **values: Any) -> None:
        """Write the heartbeat by the database's clock; the first one takes the place of a process that was lost."""
        mine = Process.objects.filter(name=self.name)
        if not mine.update(beaten_at=Now(), **values):
            for column, value in values.items():
                setattr(self, column, value)
            self.save(force_insert=True)
            mine.update(started_at=Now(), beaten_at=Now())
            ended = Process.objects.ended_before(self)
            Process.objects.replaced_by(self, ended).delete()
            for row in ended:
                Incident.objects.note("process", row.machine, row.part, row.age.total_seconds())


class IncidentQuerySet(models.QuerySet["Incident"]):
    """What went wrong with volmig and is over."""

    def note(self, kind: str, machine: str, part: str, seconds: float, detail: str = "") -> None:
        """Something began so many seconds ago and is over now; times are by the database's clock.

        Never raises for the database's sake: whoever notes it has better things to do.
        """
        try:
            began = Now() - dt.timedelta(seconds=seconds)
            self.create(kind=kind, machine=machine, part=part, detail=detail[:500], began_at=began, ended_at=Now())
            self.filter(ended_at__lt=Now() - KEPT).delete()
        except (DatabaseError, InterfaceError) as error:
            log.warning("An incident of %s on %s could not be stored: %s", part, machine, error)

    def lately(self, within: dt.timedelta) -> Self:
        """Those that ended in this time, by the database's clock."""
        return self.filter(ended_at__gte=Now() - within)


class Incident(models.Model):
    """Something that went wrong with volmig itself and is over: kept for a day, so that people learn of it afterwards.

    Kinds: "database" (no process of this part reached it) and "slots" (it had no connection free), "process" (it ended
    without an orderly stop, and another took its place), "lease" (a worker that lost a migration to another one).
    """

    kind = models.CharField(max_length=20)
    machine = models.CharField(max_length=255)
    part = models.CharField(max_length=60)
    detail = models.CharField(max_length=500, blank=True)
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(db_index=True)

    objects = IncidentQuerySet.as_manager()

    class Meta:
        ordering = ["began_at", "pk"]

    def __str__(self) -> str:
        return f"{self.kind} of {self.part} on {self.machine}"


class Tally(models.Model):
    """A sum over all processes and for ever, of one series of volmig.health.tallies.

    `labels` is a JSON object, `bound` the upper bound of a histogram's bucket, "sum", or empty for a counter.
    """

    name = models.CharField(max_length=60)
    labels = models.CharField(max_length=200)
    bound = models.CharField(max_length=12, blank=True)
    value = models.FloatField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["name", "labels", "bound"], name="one_tally")]

    def __str__(self) -> str:
        return f"{self.name}{self.labels} {self.bound}: {self.value:g}"


class Probe(models.Model):
    """The one row that readiness probes write, to see that the database takes writes."""

    at = models.DateTimeField()

    def __str__(self) -> str:
        return f"probed at {self.at}"
