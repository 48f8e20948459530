"""Backups: the disk that a swap left over, until when it is kept, and rehearsals of putting it back."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from jobs.engine import plan as planning
from jobs.engine.evidence import Evidence
from jobs.engine.steps import Task
from jobs.models.footprint import Footprint
from jobs.models.wake import wake
from volmig.notify import announce
from volmig.record.models import Event

if TYPE_CHECKING:
    from jobs.models.job import Job

KEEPING = ("done", "rolled_back")
LONGEST = dt.timedelta(days=366)
RESULTS = ("ok", "differs", "unreadable")
IDENTITY = ("inode", "file_size", "mtime_ns", "uid", "gid", "mode")
FIGURES: Mapping[str, Callable[[Any], bool]] = {
    "sha256": lambda found: isinstance(found, str) and re.fullmatch(r"[0-9a-f]{64}", found) is not None,
    "seconds": lambda found: type(found) in (int, float) and 0 <= found < 1e9,
    **dict.fromkeys(("file_size", "inode", "mtime_ns", "allocated", "leaks"), lambda found: is_count(found)),
}
LINES, LENGTH = 10, 500  # of what a hypervisor says


def is_count(found: Any) -> bool:
    """Whether a hypervisor said a whole number that a column can hold."""
    return type(found) is int and 0 <= found < 1 << 63


class RehearsalQuerySet(models.QuerySet["Rehearsal"]):
    """Rehearsals of kept disks."""

    def open(self) -> Self:
        """Asked for and not at its end."""
        return self.filter(ended_at=None)


class Rehearsal(models.Model):
    """One reading of a kept disk that tells whether it could be used again; `number` counts those of a job."""

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="rehearsals")
    number = models.PositiveIntegerField()
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    asked_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    result = models.CharField(max_length=12, blank=True, choices=[(result, result) for result in RESULTS])
    findings = models.JSONField(default=list, blank=True)
    figures = models.JSONField(default=dict, blank=True)

    objects = RehearsalQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["job", "number"], name="one_rehearsal"),
            models.UniqueConstraint(fields=["job"], condition=models.Q(ended_at=None), name="one_rehearsal_at_a_time"),
        ]

    def __str__(self) -> str:
        return f"rehearsal {self.number} of migration {self.job_id}"

    def end(self, told: Mapping[str, Any] | None, trouble: str = "") -> None:
        """Keep what was found; `told` is what the hypervisor measured, `trouble` why it measured nothing."""
        said = told or {}
        self.result = next((result for result in RESULTS if result == said.get("verdict")), "unreadable")
        lines: Any = said.get("findings")
        lines = [*(lines if isinstance(lines, list) else ()), *([trouble] if trouble else [])]
        self.findings = [str(line)[:LENGTH] for line in lines[:LINES]]
        self.figures = {name: said[name] for name, is_one in FIGURES.items() if is_one(said.get(name))}
        self.ended_at = timezone.now()
        with transaction.atomic():
            self.save(update_fields=["result", "findings", "figures", "ended_at"])
            data = {"result": self.result, "findings": self.findings, **self.figures}
            Event.append("backup.rehearsed", job=self.job_id, object=str(self.job), data=data)
            if self.result != "ok":
                self._warn()

    def _warn(self) -> None:
        subject = f"Migration {self.job_id}: the backup of {self.job.instance_name} has failed its rehearsal"
        text = f"A rehearsal found: {self.result}. {'; '.join(self.findings)}"
        announce("backup_bad", subject=subject, text=text, url_path=self.job.get_absolute_url())


def of(job: Job) -> Footprint | None:
    """The disk of a job that is not in use and is kept, if any."""
    return job.footprints.kept().select_related("share").first()


def bases(job: Job) -> list[dict[str, str]]:
    """The files that the kept disk stands on: `path`, `kept` (its second name beside the disk) or `why` it has none.

    Empty where the disk that the swap replaced is in use again: what is kept then stands alone.
    """
    rows = job.evidence().of(Task.EXCHANGE).get("bases")
    if job.was_rolled_back() or not isinstance(rows, list):
        return []
    return [{name: str(row.get(name, "")) for name in ("path", "kept", "why")} for row in rows if isinstance(row, dict)]


def start_clock(job: Job) -> None:
    """From the end on it is kept for so many days."""
    until = timezone.now() + dt.timedelta(days=settings.BACKUP_DAYS)
    if job.footprints.kept().update(keep_until=until):
        wake(job.pk, until)


def mind(job: Job) -> None:
    """Set the alarm for when it will be due; say once that it is. It is never deleted by a clock."""
    kept = of(job)
    if kept is None or kept.keep_until is None:
        return
    if not kept.is_due:
        wake(job.pk, kept.keep_until)
    elif not Event.objects.filter(job=job.pk, action="backup.due", at__gte=kept.keep_until).exists():
        say_due(job, kept)


@transaction.atomic
def say_due(job: Job, backup: Footprint) -> None:
    """Writes the event and queues the notice that a backup has expired."""
    data = {"path": backup.name, "bytes": backup.bytes, "keep_until": backup.keep_until}
    Event.append("backup.due", job=job.pk, object=str(job), data=data)
    who = job.requester.get_username()
    subject = f"Migration {job.pk}: the backup of {job.instance_name} has expired"
    text = (
        f"{who}, who requested the migration: {backup.name} was kept until {backup.keep_until:%Y-%m-%d %H:%M} "
        "UTC. Nothing is deleted automatically. Request its purge, or keep it longer and give a reason."
    )
    announce("backup_due", subject=subject, text=text, url_path=job.get_absolute_url())


def recorded(job: Job, kept: Footprint) -> dict[str, Any]:
    """What is known of the kept disk: the old one as it was when the instance had been stopped, or the rejected one.

    Its SHA-256 is known from the first rehearsal that found it in order, or from the staging where nothing was written
    to it since.
    """
    evidence = job.evidence()
    live = None if job.was_rolled_back() else evidence.of(Task.STOP).get("live")
    seen = live if isinstance(live, Mapping) else untouched(job, evidence)
    known = {name: seen[name] for name in (*IDENTITY, "sha256") if name in seen}
    known |= {"inode": int(kept.identity)} if kept.identity.isdecimal() else {}
    first = job.rehearsals.filter(result="ok").last()
    digest = first.figures.get("sha256") if first else None
    return {**known, **({"sha256": digest} if digest else {})}


def untouched(job: Job, evidence: Evidence) -> dict[str, Any]:
    """Of a disk that never was in use: the staged copy as it was read back."""
    back = job.runs.for_task(Task.EXCHANGE).filter(direction="undo", result="done").last()
    if back is None or not back.evidence.get("untouched"):
        return {}
    read = evidence.one(Task.VERIFY)
    return {name: read[name] for name in ("file_size", "mtime_ns", "sha256")}


def rehearsal_steps(job: Job) -> tuple[planning.Planned, ...]:
    """What a rehearsal does; none when nothing is kept."""
    kept = of(job)
    if kept is None:
        return ()
    known = recorded(job, kept)
    return planning.rehearsal(job.migration(), kept.name, known, int(known.get("file_size") or kept.bytes))
