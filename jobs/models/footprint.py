"""Footprints: everything that a job reserves or makes outside the database, in one ledger."""

from typing import Any, Self

from django.db import models, transaction
from django.db.models import Sum
from django.utils import timezone

from hosts.models import Hypervisor, Share
from jobs.engine import leftovers
from jobs.models.refused import Refused
from volmig.accounts.roles import why_not
from volmig.record.models import Event

KINDS = ("space", "lv", "filesystem", "mount", "export", "stage", "backup", "fence", "lock")
STATES = ("reserved", "present", "gone")


class FootprintQuerySet(models.QuerySet["Footprint"]):
    def left(self) -> Self:
        """What still stands or is still kept free."""
        return self.exclude(state="gone")

    def reserved_bytes(self, **where: Any) -> int:
        """Bytes kept free for things that are not there yet, e.g. on hypervisor=… with name=… (a volume group)."""
        return self.filter(state="reserved", **where).aggregate(sum=Sum("bytes"))["sum"] or 0

    def mark(self, kind: str, state: str, **found: Any) -> int:
        return self.filter(kind=kind).update(state=state, since=timezone.now(), **found)


class Footprint(models.Model):
    """One thing; `identity` tells it from another of the same name (lv_uuid, inode, filesystem UUID)."""

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="footprints")
    kind = models.CharField(max_length=12, choices=[(kind, kind) for kind in KINDS])
    hypervisor = models.ForeignKey(Hypervisor, models.PROTECT, null=True, blank=True, related_name="footprints")
    share = models.ForeignKey(Share, models.PROTECT, null=True, blank=True, related_name="footprints")
    name = models.CharField(max_length=400)
    identity = models.CharField(max_length=100, blank=True)
    bytes = models.BigIntegerField(default=0)
    state = models.CharField(max_length=10, choices=[(state, state) for state in STATES], default="reserved")
    since = models.DateTimeField(default=timezone.now)
    keep_until = models.DateTimeField(null=True, blank=True)

    objects = FootprintQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["job", "kind", "name"], name="one_footprint")]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.state})"

    @transaction.atomic
    def strike_off(self, by: Any, found: leftovers.Finding, hypervisor: Hypervisor) -> None:
        """Mark as gone what its place says is not there; raise Refused when it does not, or has changed since."""
        sentences = why_not(by, "submit", [hypervisor.team])
        if sentence := leftovers.why_not_struck(found):
            sentences.append(sentence)
        if sentences:
            raise Refused(sentences)
        mine = Footprint.objects.filter(pk=self.pk, state=self.state, since=self.since)
        if not mine.update(state="gone", since=timezone.now()):
            raise Refused("The ledger has changed meanwhile; look again.")
        data = {"kind": self.kind, "identity": self.identity, "place": found.about.place, "looked": found.at}
        Event.append("leftover.struck", actor=by, job=self.job_id, object=self.name[:255], data=data)
