"""Removals: what a person asked to have taken away of a job that has ended, and what became of it."""

from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.engine import drift, states
from jobs.models.wake import wake
from volmig.accounts.roles import why_not
from volmig.record.models import Event
from volmig.refusals import Refused, Sentence

if TYPE_CHECKING:
    from jobs.models.job import Job


class RemovalQuerySet(models.QuerySet["Removal"]):
    """Requested removals of leftovers."""

    def open(self) -> Self:
        """Those that have not ended."""
        return self.filter(ended_at=None)

    def ask(self, by: Any, found: drift.Finding, job: "Job", hypervisor: Hypervisor, step: str) -> "Removal":
        """Have one leftover taken away by the undo of `step`; raise Refused, with nothing written, if that may not be.

        It is looked for once more before anything is done: what was scanned may be a day old.
        """
        sentences = why_not(by, "submit", [hypervisor.team])
        if sentence := drift.why_not_removed(found) or why_not_now(job, hypervisor):
            sentences.append(Sentence("leftover-kept", sentence))
        if sentences:
            raise Refused(sentences)
        about = found.about
        try:
            with transaction.atomic():
                asked = self.create(
                    job=job, hypervisor=hypervisor, step=step, asked_by=by, kind=about.kind, place=about.place,
                    name=about.name, identity=about.identity,
                )  # fmt: skip
                Event.append("leftover.remove", actor=by, job=job.pk, object=asked.name[:255], data=asked.told())
                wake(job.pk, by=by)
        except IntegrityError:
            raise Refused(Sentence("asked-already", "Its removal is already requested.")) from None
        return asked


class Removal(models.Model):
    """One wish; `identity` is the ledger's, `after` the last run of the job that was there when work on it began.

    `result` is removed, gone (there was nothing to remove any more) or refused, with a sentence in `said`.
    """

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="removals")
    hypervisor = models.ForeignKey(Hypervisor, models.PROTECT, related_name="+")
    step = models.CharField(max_length=30)
    kind = models.CharField(max_length=12)
    place = models.CharField(max_length=255)
    name = models.CharField(max_length=400)
    identity = models.CharField(max_length=400)
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    asked_at = models.DateTimeField(default=timezone.now)
    began_at = models.DateTimeField(null=True, blank=True)
    after = models.BigIntegerField(default=0)
    result = models.CharField(max_length=10, blank=True)
    said = models.TextField(blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = RemovalQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["job", "kind", "place", "name"], condition=Q(ended_at=None), name="one_open_removal"
            )
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} on {self.place}"

    def told(self) -> dict[str, Any]:
        """What is meant, for the audit log."""
        names = ("kind", "place", "name", "identity", "step")
        return {**{name: getattr(self, name) for name in names}, "hypervisor": self.hypervisor.name}

    def begin(self) -> None:
        """Written before the act: what ran until now is neither for it nor against it."""
        self.began_at = timezone.now()
        self.after = self.job.runs.order_by("-pk").values_list("pk", flat=True).first() or 0
        self.save(update_fields=["began_at", "after"])

    @transaction.atomic
    def end(self, result: str, said: str) -> None:
        """Stores the result with its sentence, and writes the event."""
        self.result, self.said, self.ended_at = result, said, timezone.now()
        self.save(update_fields=["result", "said", "ended_at"])
        Event.append(f"leftover.{result}", job=self.job_id, object=self.name[:255], data={**self.told(), "why": said})


def why_not_now(job: "Job", hypervisor: Hypervisor) -> str:
    """Why nothing of a job may be taken away just now, as a sentence; empty when it may."""
    if job.status not in states.ENDED or job.status == "purging" or job.halt_reason:
        return f"Migration {job.pk} is {job.words}; only that migration may remove what it created."
    if hypervisor.retired_at or hypervisor.quarantined_at or not hypervisor.host_key:
        return f"{hypervisor.name} cannot be used: it is retired, in quarantine or its host key is not pinned."
    return ""
