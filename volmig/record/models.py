"""Events: append-only rows, each signed together with the one before it."""

import datetime as dt
import hmac
import json
import time
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Self

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections, models, transaction
from django.utils import timezone

from volmig.health import tallies
from volmig.record.origin import origin

SIGNED = ("seq", "at", "actor_id", "actor_name", "role", "session", "address", "action", "job", "object", "data")

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
LAST = "\U0010ffff"  # sorts behind every text that begins in the same way
MANY = 5000  # so many are sorted in no time; of more, some are soon met when the record is read backwards
FILES = 100  # of so many files of heads, the latest, the end is kept
SLACK = 1000  # times are noted a moment before numbers are given; many at once may differ by so much
ACTIONS = """WITH RECURSIVE each(action) AS (
  SELECT min(action) FROM record_event
  UNION ALL
  SELECT (SELECT min(action) FROM record_event WHERE action > each.action) FROM each WHERE each.action IS NOT NULL
) SELECT action FROM each WHERE action IS NOT NULL"""


class ChainHead(models.Model):
    """The last link; its row lock gives every event its place, so it is always taken last."""

    seq = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64, default="", blank=True)
    # The last event that a published head covers, so that a cut end of that file shows.
    published = models.BigIntegerField(default=0)
    # The same for each file of heads, by the SHA-256 of its first head: every machine publishes to a file of its own.
    files = models.JSONField(default=dict, blank=True)

    def __str__(self) -> str:
        return f"{self.seq} {self.hash}"

    @classmethod
    def note_published(cls, seq: int, file: str) -> None:
        """Remembers that a head for event `seq` is now the last of the file that begins with head `file`."""
        with transaction.atomic():
            files = cls.objects.select_for_update().filter(pk=1).values_list("files", flat=True).first() or {}
            files.pop(file, None)
            latest = dict([*files.items(), (file, seq)][-FILES:])
            cls.objects.filter(pk=1).update(published=seq, files=latest)

    @classmethod
    def published_to(cls, file: str) -> int:
        """The last event published to the file that begins with head `file`; to any file where that one is unknown."""
        head = cls.objects.filter(pk=1).first()
        return int(head.files.get(file, head.published)) if head else 0


class EventQuerySet(models.QuerySet["Event"]):
    def of_job(self, number: int) -> Self:
        return self.filter(job=number)

    def by(self, name: str) -> Self:
        """By a person, however their name is written in capitals and small letters."""
        people = get_user_model().objects.filter(username__iexact=name)
        return self.filter(actor_name__in={name, *people.values_list("username", flat=True)})

    def like(self, words: str) -> Self:
        """Those in whose action the words occur."""
        return self.filter(action__in=[each for each in self.actions() if words.lower() in each])

    def actions(self) -> list[str]:
        """Every action that ever was recorded: there are dozens, so the index is asked for one after the other."""
        with connections[self.db].cursor() as cursor:
            cursor.execute(ACTIONS)
            return [row[0] for row in cursor.fetchall()]

    def about(self, name: str) -> Self:
        """On what is called so; when nothing is, on what begins like this. Capitals and small letters as they are."""
        if self.model.objects.filter(object=name).exists():
            return self.filter(object=name)
        beginning = self.filter(object__gte=name, object__lt=name + LAST)
        if connections[self.db].vendor == "sqlite" and not beginning[MANY:].exists():
            return beginning  # its LIKE uses no index, which is what is wanted for what many events are on
        return self.filter(object__startswith=name)

    def since(self, at: dt.datetime) -> Self:
        """From a time on; bounded by numbers, too, for that is the order in which they are read."""
        first = self.model.objects.filter(at__gte=at).order_by("at").values_list("seq", flat=True).first()
        return self.filter(at__gte=at, seq__gte=first - SLACK) if first else self.none()


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
            models.Index(fields=["actor_name", "-seq"], name="event_by_name"),
            models.Index(fields=["object", "-seq"], name="event_by_object"),
            models.Index(fields=["at", "seq"], name="event_by_time"),
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
            began = time.monotonic()
            head, _ = ChainHead.objects.select_for_update().get_or_create(pk=1)
            tallies.observe("volmig_audit_lock_wait_seconds", time.monotonic() - began)
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

    def is_signed(self) -> bool:
        """Whether it is as this volmig wrote it."""
        return hmac.compare_digest(self.hash, self.signature())

    def signature(self) -> str:
        return sign(self.prev_hash, [getattr(self, name) for name in SIGNED])


def sign(prev_hash: str, values: Sequence[Any]) -> str:
    """Returns the signature of the values of an event's SIGNED fields, together with the event before it."""
    # In one call, for a long record is signed again event by event when it is verified.
    return hmac.digest(settings.AUDIT_KEY.encode(), f"{prev_hash}\n{signed_text(values)}".encode(), "sha256").hex()


def signed_text(values: Sequence[Any]) -> str:
    """An event as canonical JSON, of the values of its SIGNED fields."""
    signed = dict(zip(SIGNED, values, strict=True))
    signed["at"] = signed["at"].astimezone(UTC).isoformat(timespec="microseconds")
    return canonical(signed)


def head_now() -> tuple[int, str]:
    """The number and the hash of the last event; (0, "") when there is none."""
    return ChainHead.objects.filter(pk=1).values_list("seq", "hash").first() or (0, "")
