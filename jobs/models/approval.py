"""Approvals: what was shown to be consented to, who consented, and the one use that may be made of it."""

import datetime as dt
from typing import Any, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.utils import timezone

from jobs.models.refused import Refused
from jobs.queue import wake
from volmig.accounts.models import Team
from volmig.accounts.roles import OwnedQuerySet, why_not
from volmig.record.models import Event

KINDS = ("swap", "rollback", "purge")
User = settings.AUTH_USER_MODEL


class ApprovalQuerySet(OwnedQuerySet["Approval"]):
    owners = ("job__source__team", "job__relay__team", "job__destination__team")

    def open(self) -> Self:
        """Neither used nor void; it may be expired, or approved and waiting for its use."""
        return self.filter(voided_at=None, consumed_at=None)

    def consume(self, approval: "Approval") -> bool:
        """Use it up, once; call it in the transaction that writes what it allows."""
        now = timezone.now()
        return bool(self.open().filter(pk=approval.pk, expires_at__gt=now).update(consumed_at=now))


class Approval(models.Model):
    """A request for consent to `bound`, whose SHA-256 is `digest`."""

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="approvals")
    kind = models.CharField(max_length=10, choices=[(kind, kind) for kind in KINDS])
    version = models.PositiveIntegerField(default=1)
    digest = models.CharField(max_length=64)
    bound = models.JSONField()
    requester = models.ForeignKey(User, models.PROTECT, related_name="+")
    last_editor = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    voided_at = models.DateTimeField(null=True, blank=True)
    void_reason = models.TextField(blank=True)
    void_changes = models.JSONField(default=list, blank=True)
    consumed_at = models.DateTimeField(null=True, blank=True)

    objects = ApprovalQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["job", "kind"], condition=Q(voided_at=None, consumed_at=None), name="one_open_approval"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of migration {self.job_id}"

    @property
    def state(self) -> str:
        """open, approved, rejected, void, expired or consumed."""
        if self.consumed_at:
            return "consumed"
        if self.voided_at:
            return "rejected" if self.decisions.filter(verdict="reject").exists() else "void"
        if self.expires_at <= timezone.now():
            return "expired"
        return "approved" if self.is_enough() else "open"

    @staticmethod
    def needed() -> int:
        """How many people have to consent."""
        return int(settings.APPROVERS)

    def is_enough(self) -> bool:
        """Whether enough people consented who may still consent today."""
        people = [each.person for each in self.decisions.filter(verdict="approve").select_related("person")]
        teams = self.teams()
        return sum(not why_not(person, "approve", teams) for person in people) >= self.needed()

    def teams(self) -> list[Team]:
        """Those that its job belongs to."""
        return self.job.teams()

    def reasons(self) -> str:
        """What those who consented gave as reasons."""
        return "; ".join(self.decisions.filter(verdict="approve").values_list("reason", flat=True))

    def why_not(self, by: Any) -> list[str]:
        """Why this person may not decide, whoever they are; empty when they may."""
        sentences = why_not(by, "approve", self.teams())
        if by.pk == self.requester_id:
            sentences.append("You asked for this; somebody else has to decide.")
        elif by.pk == self.last_editor_id:
            sentences.append("You changed this migration last; somebody else has to decide.")
        if self.decisions.filter(person=by).exists():
            sentences.append("You have already decided.")
        if self.state not in ("open", "approved"):
            sentences.append(f"This request is {self.state}.")
        return sentences

    def approve(self, by: Any, digest: str, reason: str) -> None:
        """Consent to exactly what `digest` stands for; raise Refused with sentences when that may not be."""
        with transaction.atomic():
            self._lock()
            self._refuse(by, reason)
            if digest != self.digest:
                raise Refused("What you looked at is not what is asked now; look at it again.")
            self._decide(by, "approve", reason)
            if self.kind == "swap" and self.is_enough() and self.job.status == "awaiting_approval":
                self.job.go("approved", actor=by)
            wake(self.job_id)

    def reject(self, by: Any, reason: str) -> None:
        """Refuse consent; a rejected swap is undone, a rejected rollback or purge just does not happen."""
        with transaction.atomic():
            self._lock()
            self._refuse(by, reason)
            self._decide(by, "reject", reason)
            self.void(f"Rejected by {by.get_username()}: {reason}")
            if self.kind == "swap":
                self.job.withdraw_consent(by)
            wake(self.job_id)

    def void(self, reason: str, changes: list[str] | None = None) -> None:
        """Make it worthless; what was consented to is not what would happen."""
        self.voided_at, self.void_reason, self.void_changes = timezone.now(), reason, changes or []
        self.save(update_fields=["voided_at", "void_reason", "void_changes"])
        Event.append(
            "approval.void",
            job=self.job_id,
            object=str(self),
            data={"approval": self.pk, "reason": reason, "changes": self.void_changes},
        )

    def _lock(self) -> None:
        # Lock order: the job first, so that a tick and a person never wait for each other.
        self.job.refresh_from_db(from_queryset=type(self.job)._default_manager.select_for_update())
        self.refresh_from_db(
            from_queryset=Approval.objects.select_for_update(),
            fields=["digest", "expires_at", "voided_at", "consumed_at"],
        )

    def _refuse(self, by: Any, reason: str) -> None:
        sentences = self.why_not(by)
        if not reason.strip():
            sentences.append("Say why: the record keeps it.")
        if sentences:
            raise Refused(sentences)

    def _decide(self, by: Any, verdict: str, reason: str) -> None:
        Decision.objects.create(
            approval=self,
            person=by,
            verdict=verdict,
            reason=reason.strip(),
            requester_id=self.requester_id,
            last_editor_id=self.last_editor_id,
        )
        Event.append(
            f"approval.{verdict}",
            actor=by,
            job=self.job_id,
            object=str(self),
            data={"approval": self.pk, "digest": self.digest, "reason": reason.strip()},
        )


class Decision(models.Model):
    """One person's yes or no; whom it must not be from stands beside it, so that the database can refuse it too."""

    approval = models.ForeignKey(Approval, models.PROTECT, related_name="decisions")
    person = models.ForeignKey(User, models.PROTECT, related_name="+")
    requester = models.ForeignKey(User, models.PROTECT, related_name="+")
    last_editor = models.ForeignKey(User, models.PROTECT, related_name="+")
    verdict = models.CharField(max_length=10, choices=[("approve", "approve"), ("reject", "reject")])
    reason = models.TextField()
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["approval", "person"], name="one_decision"),
            models.CheckConstraint(
                condition=~Q(person=F("requester")) & ~Q(person=F("last_editor")), name="decided_by_another"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} by {self.person}"


def expiry() -> dt.datetime:
    """Until when a new request may be used."""
    return timezone.now() + dt.timedelta(hours=settings.APPROVAL_HOURS)
