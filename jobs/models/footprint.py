"""Footprints: everything that a job reserves or makes outside the database, in one ledger."""

from typing import Any, Self

from django.apps import apps
from django.db import models, transaction
from django.db.models import Exists, OuterRef, Subquery, Sum
from django.utils import timezone

from hosts.models import Hypervisor, Share
from jobs.engine import drift
from volmig.accounts.roles import OwnedQuerySet, why_not
from volmig.record.models import Event
from volmig.refusals import Refused, Sentence

KINDS = ("space", "lv", "filesystem", "mount", "export", "stage", "backup", "fence", "lock")
BULKY = ("plan", "facts", "checks", "halt_data")  # of a job, which no list shows
STATES = ("reserved", "present", "gone")


class FootprintQuerySet(OwnedQuerySet["Footprint"]):
    """The inventory: what volmig reserved or created, by state and place."""

    owners = ("job__source__team", "job__relay__team", "job__destination__team")

    def left(self) -> Self:
        """What still stands or is still kept free."""
        return self.exclude(state="gone")

    def kept(self) -> Self:
        """Disks that swaps left over: they hold space until their purge."""
        return self.filter(kind="backup", state="present")

    def due(self) -> Self:
        """Those of them whose time has run out; nothing is deleted by that."""
        return self.kept().filter(keep_until__lte=timezone.now())

    def backups(self, user: Any) -> Self:
        """The kept disks that a person may see, with their migrations and what is asked for."""
        named = self.kept().with_state().visible_to(user).select_related("job__destination", "job__requester", "share")
        return named.defer("job__destination__facts", *(f"job__{name}" for name in BULKY))

    def with_state(self) -> Self:
        """For pages: whether their purge is asked for, whether one is rehearsed, and what the last rehearsal found."""
        job, now = OuterRef("job"), timezone.now()
        rehearsals = apps.get_model("jobs", "Rehearsal")._default_manager.filter(job=job).order_by("-pk")
        open_ones = apps.get_model("jobs", "Approval")._default_manager.filter(
            job=job, kind="purge", voided_at=None, consumed_at=None, expires_at__gt=now
        )
        ended = rehearsals.exclude(ended_at=None)
        return self.annotate(
            purge_asked=Exists(open_ones),
            rehearsing=Exists(rehearsals.filter(ended_at=None)),
            rehearsal=Subquery(ended.values("result")[:1]),
            rehearsed_at=Subquery(ended.values("ended_at")[:1]),
        )

    def reserved_bytes(self, **where: Any) -> int:
        """Bytes kept free for things that are not there yet, e.g. on hypervisor=… with name=… (a volume group)."""
        return self.left().filter(state="reserved", **where).aggregate(sum=Sum("bytes"))["sum"] or 0

    def mark(self, kind: str, state: str, **found: Any) -> int:
        """Sets the state of the objects of this kind, and what was measured."""
        return self.filter(kind=kind).update(state=state, since=timezone.now(), **found)


class Footprint(models.Model):
    """One thing; `identity` tells it from another of the same name (lv_uuid, inode, filesystem UUID)."""

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="footprints", db_index=False)
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
        indexes = [
            models.Index(
                fields=["keep_until", "id"],
                condition=models.Q(kind="backup", state="present"),
                name="footprint_kept",
            ),
            models.Index(
                fields=["id"], condition=models.Q(kind="backup", state="present"), name="footprint_kept_by_age"
            ),
            # What stands is little, what ever stood is ten rows for each migration.
            models.Index(
                fields=["hypervisor", "name"], condition=models.Q(state="reserved"), name="footprint_reserved"
            ),
            models.Index(fields=["share"], condition=~models.Q(state="gone"), name="footprint_left_of"),
            models.Index(fields=["hypervisor"], condition=~models.Q(state="gone"), name="footprint_left_on"),
            # What kept disks hold is read from the index alone.
            models.Index(
                fields=["share", "bytes"],
                condition=models.Q(kind="backup", state="present"),
                name="footprint_kept_of",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.state})"

    @transaction.atomic
    def strike_off(self, by: Any, found: drift.Finding, hypervisor: Hypervisor) -> None:
        """Mark as gone what its place says is not there; raise Refused when it does not, or has changed since."""
        sentences = why_not(by, "submit", [hypervisor.team])
        if sentence := drift.why_not_struck(found):
            sentences.append(Sentence("leftover-there", sentence))
        if sentences:
            raise Refused(sentences)
        mine = Footprint.objects.filter(pk=self.pk, state=self.state, since=self.since)
        if not mine.update(state="gone", since=timezone.now()):
            raise Refused(Sentence("changed-meanwhile", "The inventory has changed; reload and try again."))
        data = {"kind": self.kind, "identity": self.identity, "place": found.about.place, "looked": found.at}
        Event.append("leftover.struck", actor=by, job=self.job_id, object=self.name[:255], data=data)

    @property
    def is_due(self) -> bool:
        """Whether it was kept until a moment that has passed."""
        return self.keep_until is not None and self.keep_until <= timezone.now()
