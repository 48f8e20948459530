"""Approvals: what was shown to be consented to, who consented, and the one use that may be made of it."""

import datetime as dt
from typing import Any, Self

from django.conf import settings
from django.db import models, transaction
from django.db.models import Count, F, Q
from django.utils import timezone

from jobs.models import sealing, search
from jobs.models.footprint import BULKY
from jobs.models.search import Word
from jobs.models.wake import wake
from volmig.accounts import factors
from volmig.accounts.models import Team
from volmig.accounts.roles import OwnedQuerySet, may, why_not
from volmig.record.models import Event
from volmig.refusals import Refused, Sentence

KINDS = ("swap", "rollback", "purge")
User = settings.AUTH_USER_MODEL
NO_REASON = Sentence("no-reason", "Give a reason for the audit log.")
NO_FACTOR = Sentence(
    "no-second-factor", "You need a second factor to decide. Set one up on your account page, then come back."
)
OWN_REQUEST = Sentence("own-request", "You requested this; another person has to decide.")
OWN_CHANGE = Sentence("own-change", "You changed this migration last; another person has to decide.")
DECIDED = Sentence("decided-already", "You have already decided.")


class ApprovalQuerySet(OwnedQuerySet["Approval"]):
    """Approval requests: open ones, and those that a person may decide."""

    owners = ("job__source__team", "job__relay__team", "job__destination__team")

    def open(self) -> Self:
        """Neither used nor void; it may be expired, or approved and waiting for its use."""
        return self.filter(voided_at=None, consumed_at=None)

    def expiring(self, now: dt.datetime, within: dt.timedelta) -> Self:
        """Open ones that have not expired yet and will within this time."""
        return self.open().filter(expires_at__gt=now, expires_at__lte=now + within)

    def with_names(self) -> Self:
        """For pages: who asked and for which migration, without their bulky columns."""
        return self.select_related("job", "requester").defer("bound", *(f"job__{name}" for name in BULKY))

    def undecided(self) -> Self:
        """Those that still want a yes."""
        yes = Count("decisions", filter=Q(decisions__verdict="approve", decisions__withdrawn_at=None))
        return self.open().filter(expires_at__gt=timezone.now()).annotate(yes=yes).filter(yes__lt=F("approvers"))

    def inbox(self, user: Any) -> Self:
        """Those that this person may decide and has not decided yet."""
        if not may(user, "approve"):
            return self.none()
        mine = Decision.objects.filter(person=user, withdrawn_at=None).values("approval")
        return self.undecided().of_teams(user).exclude(Q(requester=user) | Q(last_editor=user)).exclude(pk__in=mine)

    def consume(self, approval: "Approval") -> bool:
        """Use it up, once; Approval.use is how to call it."""
        now = timezone.now()
        return bool(self.open().filter(pk=approval.pk, expires_at__gt=now).update(consumed_at=now))


class Approval(models.Model):
    """A request for consent to `bound`, whose SHA-256 is `digest`, by as many people as `approvers`.

    `granted_by` is the used approval of the swap that allowed this rollback in advance.
    """

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
    approvers = models.PositiveSmallIntegerField(default=1)
    granted_by = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="grants")
    seals = models.JSONField(default=dict, blank=True)  # by verb, once it is complete; only hypervisors can use them

    objects = ApprovalQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["job", "kind"], condition=Q(voided_at=None, consumed_at=None), name="one_open_approval"
            ),
        ]
        indexes = [
            models.Index(fields=["expires_at"], condition=Q(voided_at=None, consumed_at=None), name="approval_open"),
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

    @property
    def is_open(self) -> bool:
        """Whether it may still be decided or used; it may be expired."""
        return not self.voided_at and not self.consumed_at

    def consents(self) -> "models.QuerySet[Decision]":
        """Each yes that was not withdrawn."""
        return self.decisions.filter(verdict="approve", withdrawn_at=None)

    def count(self) -> int:
        """How many people consented who may still consent today."""
        teams = self.teams()
        people = [each.person for each in self.consents().select_related("person")]
        return sum(not why_not(person, "approve", teams) for person in people)

    def is_enough(self) -> bool:
        """Whether what is needed was said: by people now, or in advance with the swap."""
        if self.granted_by is not None:
            return self.granted_by.consumed_at is not None
        return self.count() >= self.approvers

    def teams(self) -> list[Team]:
        """Those that its job belongs to."""
        return self.job.teams()

    def reasons(self) -> str:
        """What those who consented gave as reasons."""
        return "; ".join(self.consents().values_list("reason", flat=True))

    def why_not(self, by: Any) -> list[Sentence]:
        """Why this person may not decide, whoever they are; empty when they may."""
        sentences = why_not(by, "approve", self.teams())
        if not sentences and factors.is_missing(by):
            sentences.append(NO_FACTOR)
        if by.pk == self.requester_id:
            sentences.append(OWN_REQUEST)
        elif by.pk == self.last_editor_id:
            sentences.append(OWN_CHANGE)
        if self.decisions.filter(person=by, withdrawn_at=None).exists():
            sentences.append(DECIDED)
        if self.state not in ("open", "approved"):
            sentences.append(Sentence(f"request-{self.state}", f"This request is {self.state}."))
        return sentences

    def approve(self, by: Any, digest: str, reason: str) -> None:
        """Consent to exactly what `digest` stands for; raise Refused with sentences when that may not be."""
        with transaction.atomic():
            self._lock()
            self._refuse(by, reason)
            if digest != self.digest:
                raise Refused(Sentence("other-digest", "The request has changed since you opened it; review it again."))
            enough = self.count() + 1 >= self.approvers
            holds = {"holds_until": until} if enough and (until := self._hold_until_window()) else {}
            self._decide(by, "approve", reason, **holds)
            if self.is_enough():
                sealing.seal(self)
            if self.kind == "swap" and self.is_enough() and self.job.status == "awaiting_approval":
                self.job.go("approved", actor=by)
            wake(self.job_id, by=by)

    def reject(self, by: Any, reason: str) -> None:
        """Refuse consent; a rejected swap is undone, a rejected rollback or purge just does not happen."""
        with transaction.atomic():
            self._lock()
            self._refuse(by, reason)
            self._decide(by, "reject", reason)
            self.void(f"Rejected by {by.get_username()}: {reason}")
            if self.kind == "swap":
                self.job.withdraw_consent(by)
            wake(self.job_id, by=by)

    def withdraw(self, by: Any, reason: str) -> None:
        """Take one's own yes back, as long as nothing was done by it."""
        with transaction.atomic():
            self._lock()
            mine = self.consents().filter(person=by).first()
            if mine is None:
                raise Refused(Sentence("no-consent", "You have not approved this."))
            if self.state not in ("open", "approved"):
                said = f"This request is {self.state}: you can no longer withdraw."
                raise Refused(Sentence(f"request-{self.state}", said))
            if not reason.strip():
                raise Refused(NO_REASON)
            mine.withdrawn_at = timezone.now()
            mine.save(update_fields=["withdrawn_at"])
            data = {"approval": self.pk, "digest": self.digest, "reason": reason.strip()}
            Event.append("approval.withdraw", actor=by, job=self.job_id, object=str(self), data=data)
            if not self.is_enough():
                sealing.unseal(self)
            if self.kind == "swap" and self.job.status == "approved" and not self.is_enough():
                self.job.go("withdrawn", actor=by)
            wake(self.job_id, by=by)

    def use(self) -> bool:
        """Use it up in the caller's transaction, which writes what it allows; false when it may not be used any more.

        The job's row is locked, so that no withdrawal, loss of a role or change of a policy comes in between.
        """
        list(type(self.job)._default_manager.select_for_update().filter(pk=self.job_id).values_list("pk"))
        self.keep_up()
        if unsigned := self.unsigned():
            self.void("The audit log does not confirm what the database has for this approval.", unsigned)
            return False
        if not self.is_enough() or not Approval.objects.consume(self):
            return False
        people = list(self.consents().values_list("person__username", flat=True))
        data = {"approval": self.pk, "digest": self.digest, "approvers": self.approvers, "consents": people}
        data |= {"granted_by": self.granted_by_id} if self.granted_by_id else {}
        data |= {"one_person_site": True} if self.is_one_persons() else {}
        Event.append("approval.use", job=self.job_id, object=str(self), data=data)
        return True

    def unsigned(self) -> list[str]:
        """What the rows say of this approval and no signed event does, as sentences; none when all is as it should be.

        Rows can be written by whoever reaches the database; events are signed with a key that is not in it.
        """
        if granted := self.granted_by:
            used = Event.objects.of_job(self.job_id).filter(action="approval.use", data__approval=granted.pk)
            genuine = any(each.is_signed() and each.data["digest"] == granted.digest for each in used)
            return [] if genuine else ["No signed event confirms that the swap's approval allowed it."]
        return [
            f"No signed event confirms the decision of {each.person}."
            for each in self.consents().select_related("person")
            if not self.is_signed_by(each.person)
        ]

    def is_signed_by(self, person: Any) -> bool:
        """Whether the last signed event of this person about this request is a yes to exactly this."""
        mine = Event.objects.of_job(self.job_id).filter(actor=person, data__approval=self.pk)
        last = mine.filter(action__in=("approval.approve", "approval.withdraw")).order_by("-seq").first()
        wanted = ("approval.approve", self.digest)
        return last is not None and (last.action, last.data.get("digest")) == wanted and last.is_signed()

    def is_one_persons(self) -> bool:
        """Whether nobody but the requester was to be asked, because the site has only one person."""
        return not self.approvers and not self.granted_by_id

    def keep_up(self) -> None:
        """Want as many consents as policies and settings want by now, should that be more than when it was asked."""
        if not self.granted_by_id and (wanted := self.job.terms().approvers) > self.approvers:
            self.approvers = wanted
            self.save(update_fields=["approvers"])

    def _hold_until_window(self) -> dt.datetime | None:
        """A yes for a window that is still to come counts until that window ends; returns until when, if so."""
        span = self.job.window() if self.kind == "swap" else None
        if span is None or span.begin <= timezone.now() or span.end <= self.expires_at:
            return None
        self.expires_at = span.end
        self.save(update_fields=["expires_at"])
        return self.expires_at

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
            fields=["digest", "expires_at", "voided_at", "consumed_at", "approvers"],
        )

    def _refuse(self, by: Any, reason: str) -> None:
        sentences = self.why_not(by)
        if not reason.strip():
            sentences.append(NO_REASON)
        if sentences:
            raise Refused(sentences)

    def _decide(self, by: Any, verdict: str, reason: str, **also: Any) -> None:
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
            data={"approval": self.pk, "digest": self.digest, "reason": reason.strip(), **also},
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
    withdrawn_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["approval", "person"], condition=Q(withdrawn_at=None), name="one_standing_decision"
            ),
            models.CheckConstraint(
                condition=~Q(person=F("requester")) & ~Q(person=F("last_editor")), name="decided_by_another"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.verdict} by {self.person}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """The job is found by who decided about it, too."""
        new = self._state.adding
        super().save(*args, **kwargs)
        if new:
            Word.objects.keep(self.approval.job_id, [search.person(self.person.get_username())])
