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
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from volmig import keys
from volmig.health import tallies
from volmig.models import CLOCKS_DIFFER
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


class Publisher(models.Model):
    """The machine that publishes heads, and those that did before it. One row.

    `owner` names the process that holds the lease, `place` its data directory. `former` has, for each data directory
    that published before, its host, the path of its heads and the last event that it published.
    """

    LEASE = dt.timedelta(seconds=45)

    owner = models.CharField(max_length=32)
    place = models.CharField(max_length=32)
    host = models.CharField(max_length=100)
    path = models.CharField(max_length=500)
    since = models.DateTimeField()
    until = models.DateTimeField()
    seq = models.BigIntegerField(default=0)
    at = models.DateTimeField(null=True, blank=True)
    former = models.JSONField(default=dict, blank=True)

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"

    @classmethod
    def take(cls, owner: str, place: str, host: str, path: str) -> bool:
        """Takes or renews the lease, by the database's clock; False while another process has it.

        A process of the same data directory may take a lease that ran out, one of another only after it has been out
        for as long again: a machine that restarts keeps publishing, and heads do not move with every restart.
        """
        with transaction.atomic():
            until = Now() + cls.LEASE
            row = cls.objects.select_for_update().filter(pk=1).first()
            if row is None:
                return cls.begin(owner, place, host, path)
            # One that reaches further than any was taken before the clock was set back.
            long_out = Q(until__lt=Now() - cls.LEASE) | Q(until__gt=Now() + cls.LEASE + CLOCKS_DIFFER)
            free = Q(owner=owner) | Q(place=place, until__lt=Now()) | long_out
            if not cls.objects.filter(pk=1).filter(free).update(owner=owner, until=until):
                return False
            if (row.place, row.path) != (place, path):
                row.hand_over(place, host, path)
            return True

    @classmethod
    def begin(cls, owner: str, place: str, host: str, path: str) -> bool:
        """The first lease of this database, by its clock: those of the machines that compare it may differ."""
        until = Now() + cls.LEASE
        values = {"owner": owner, "place": place, "host": host, "path": path, "since": Now(), "until": until}
        made = cls.objects.get_or_create(pk=1, defaults=values)[1]
        if made:
            Event.append("evidence.publisher", object=host, data={"path": path})
        return made

    def hand_over(self, place: str, host: str, path: str) -> None:
        """From now on another data directory publishes, or the same to another file."""
        former = {**self.former, self.place: {"host": self.host, "path": self.path, "seq": self.seq}}
        mine = former.pop(place, {})
        seq = mine.get("seq", 0) if mine.get("path") == path else 0
        type(self).objects.filter(pk=1).update(
            place=place, host=host, path=path, since=Now(), seq=seq, at=None, former=former
        )
        before = {"host": self.host, "path": self.path, "seq": self.seq}
        Event.append("evidence.publisher", object=host, data={"path": path, "before": before})

    @classmethod
    def give_back(cls, owner: str) -> None:
        """Lets any machine publish at once, because this one cannot write."""
        cls.objects.filter(pk=1, owner=owner).update(until=Now() - 2 * cls.LEASE)

    @classmethod
    def note(cls, place: str, path: str, seq: int) -> None:
        """Remembers the last event that this machine published."""
        cls.objects.filter(pk=1, place=place, path=path).update(seq=seq, at=Now())

    @classmethod
    def current(cls) -> "Publisher | None":
        """The machine that publishes, or did so last; None when none has yet."""
        return cls.objects.filter(pk=1).first()

    def published_by(self, place: str, path: str) -> int | None:
        """The last event that this data directory published to this file; None when it never did."""
        if (self.place, self.path) == (place, path):
            return self.seq
        before = self.former.get(place, {})
        return int(before["seq"]) if before.get("path") == path else None


class EventQuerySet(models.QuerySet["Event"]):
    """Events of the audit log, by migration, person, action and time."""

    def of_job(self, number: int) -> Self:
        """Those of one migration."""
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
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+", db_index=False
    )
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
            # By PostgreSQL an index in the order of a language is of no use for LIKE.
            models.Index(
                fields=["object", "-seq"], opclasses=["varchar_pattern_ops", "int8_ops"], name="event_of_object"
            ),
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
        keys.confirm("audit_key")  # an event under another key would look like a changed one
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
        """What its hash has to be, under audit_key."""
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
