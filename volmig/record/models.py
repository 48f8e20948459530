"""Events: append-only rows, each signed together with the one before it."""

import hashlib
import hmac
import json
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Self

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models, transaction
from django.utils import timezone

from volmig.record.origin import origin

SIGNED = ("seq", "at", "actor_id", "actor_name", "role", "session", "address", "action", "job", "object", "data")


class ChainHead(models.Model):
    """The last link; its row lock gives every event its place, so it is always taken last."""

    seq = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64, default="", blank=True)

    def __str__(self) -> str:
        return f"{self.seq} {self.hash}"


class EventQuerySet(models.QuerySet["Event"]):
    def of_job(self, number: int) -> Self:
        return self.filter(job=number)


class Event(models.Model):
    """What was decided or done, by whom and from where."""

    seq = models.BigIntegerField(unique=True)
    at = models.DateTimeField()
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    actor_name = models.CharField(max_length=150, blank=True)
    role = models.CharField(max_length=200, blank=True)
    session = models.CharField(max_length=16, blank=True)
    address = models.CharField(max_length=45, blank=True)
    action = models.CharField(max_length=80)
    job = models.BigIntegerField(null=True, blank=True)
    object = models.CharField(max_length=255, blank=True)
    data = models.JSONField(default=dict, blank=True, encoder=DjangoJSONEncoder)
    prev_hash = models.CharField(max_length=64, blank=True)
    hash = models.CharField(max_length=64)

    objects = EventQuerySet.as_manager()

    class Meta:
        ordering = ["-seq"]
        indexes = [
            models.Index(fields=["job", "-seq"], name="event_by_job"),
            models.Index(fields=["action", "-seq"], name="event_by_action"),
            models.Index(fields=["actor", "-seq"], name="event_by_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.seq} {self.action} {self.object}".strip()

    @classmethod
    def append(
        cls,
        action: str,
        *,
        actor: Any = None,
        job: int | None = None,
        object: str = "",  # noqa: A002 - the word of the record
        data: dict[str, Any] | None = None,
    ) -> "Event":
        """Adds an event after the last one, in the caller's transaction when there is one."""
        plain = json.loads(json.dumps(data or {}, cls=DjangoJSONEncoder))  # what is signed is what is read back
        event = cls(at=timezone.now(), action=action, actor=actor, job=job, object=object[:255], data=plain)
        event.describe(actor)
        with transaction.atomic():
            head, _ = ChainHead.objects.select_for_update().get_or_create(pk=1)
            event.seq, event.prev_hash = head.seq + 1, head.hash
            event.hash = event.signature()
            event.save(force_insert=True)
            ChainHead.objects.filter(pk=1).update(seq=event.seq, hash=event.hash)
        return event

    def describe(self, actor: Any) -> None:
        """Fills in who acted and from where, in words that stay true when the account changes."""
        if actor:
            self.actor_name = actor.get_username()
            groups = actor.groups.order_by("name").values_list("name", flat=True)
            self.role = "superuser" if actor.is_superuser else ", ".join(groups)
        self.address, self.session = origin()

    def signature(self) -> str:
        return sign(self.prev_hash, [getattr(self, name) for name in SIGNED])


def sign(prev_hash: str, values: Sequence[Any]) -> str:
    """Returns the signature of the values of an event's SIGNED fields, together with the event before it."""
    signed = dict(zip(SIGNED, values, strict=True))
    signed["at"] = signed["at"].astimezone(UTC).isoformat(timespec="microseconds")
    line = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return hmac.new(settings.AUDIT_KEY.encode(), f"{prev_hash}\n{line}".encode(), hashlib.sha256).hexdigest()
