"""Submissions: which migration a program's key for its wish has led to, so that asking again makes no second one."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.utils import timezone

from volmig.refusals import Refused, Sentence

if TYPE_CHECKING:
    from jobs.models.job import Job


class SubmissionQuerySet(models.QuerySet["Submission"]):
    """Idempotency keys of the API."""

    def once(self, by: Any, key: str, digest: str, submit: "Callable[[], Job]") -> "tuple[Job, bool]":
        """What this person's key has led to, or else what `submit` gives now, and whether that is new.

        `digest` stands for all that was asked; raise Refused when the same key asked for something else. A refused
        wish uses no key up. The key's row comes first, so that of two at the same time one waits and finds it.
        """
        with transaction.atomic():
            try:
                with transaction.atomic():
                    mine = self.create(person=by, key=key, digest=digest)
            except IntegrityError:
                return self.get(person=by, key=key).again(digest), False
            mine.job = submit()
            mine.save(update_fields=["job"])
            return mine.job, True


class Submission(models.Model):
    """An idempotency key of a person, and the migration that it made."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="+")
    key = models.CharField(max_length=100)
    digest = models.CharField(max_length=64)
    job = models.ForeignKey("jobs.Job", models.PROTECT, null=True, related_name="+")
    at = models.DateTimeField(default=timezone.now)

    objects = SubmissionQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["person", "key"], name="one_submission")]

    def __str__(self) -> str:
        return f"{self.key} of {self.person}"

    def again(self, digest: str) -> "Job":
        """The migration; Refused (`key-used`) when the request is another one."""
        if digest != self.digest or self.job is None:
            said = f"This key was already used for another request, which became migration {self.job_id}."
            raise Refused(Sentence("key-used", said))
        return self.job
