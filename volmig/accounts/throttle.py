"""Login throttling: how often a password, a code or a token may be tried, by name, address and network.

Every try is counted in the database *before* the secret is checked and taken back when it was right, so many tries at
the same time are no more than the same tries in turn, in however many processes. django-axes, which was here before,
counts after the check and by one combination only; it has no growing delay, no networks and no known browsers.
"""

import datetime as dt
import ipaddress
import secrets
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import signing
from django.db import models, transaction
from django.db.models import F
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.crypto import salted_hmac

COOL_OFF = dt.timedelta(minutes=10)
QUIET = dt.timedelta(hours=1)  # after so long without a try, a name's count starts again
FIRST_DELAY, LONGEST_DELAY = dt.timedelta(seconds=10), dt.timedelta(minutes=15)
DEVICE_DAYS, DEVICE_NAMES = 180, 4


@dataclass(frozen=True)
class Limit:
    """So many tries, then closed: for COOL_OFF, or with `grows` for a delay that doubles with each further try."""

    tries: int
    grows: bool = False


# Kinds sort as they are locked. `login` and `code` are one name from one address, or from one known browser.
LIMITS = {
    "address": Limit(30),
    "all": Limit(3000),  # more passwords than a server can check in ten minutes; it also bounds the rows kept here
    "code": Limit(5),
    "codename": Limit(20, grows=True),
    "login": Limit(5),
    "loginname": Limit(50, grows=True),
    "network": Limit(100),
    "tokenaddress": Limit(20),
    "tokennetwork": Limit(100),
}


def digest(*parts: str) -> str:
    """Stands for a name or an address in a row. A name that nobody has may be a password typed in the wrong field."""
    return salted_hmac("volmig.accounts.throttle", "\0".join(parts), algorithm="sha256").hexdigest()


def network_of(address: str) -> str:
    """The /24 (IPv4) or /64 (IPv6) network of an address; the address itself when it is not an IP address."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = getattr(known, "ipv4_mapped", None)
    known = mapped or known
    return str(ipaddress.ip_network(f"{known}/{24 if known.version == 4 else 64}", strict=False))


class Tries(models.Model):
    """Tries of one bucket: of a kind in LIMITS, by a digest. `wrong` and `refused` are not in the audit log yet."""

    kind = models.CharField(max_length=20)
    key = models.CharField(max_length=64)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True, blank=True, related_name="+")
    place = models.CharField(max_length=64, blank=True)
    count = models.PositiveIntegerField(default=0)
    since = models.DateTimeField()
    last_at = models.DateTimeField(db_index=True)
    closed_until = models.DateTimeField(null=True, blank=True)
    wrong = models.PositiveIntegerField(default=0)
    refused = models.PositiveIntegerField(default=0)
    noticed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["kind", "key"], name="one_bucket_of_tries")]

    def __str__(self) -> str:
        return f"{self.kind} {self.key[:8]}: {self.count}"

    def is_closed(self, now: dt.datetime) -> bool:
        """Whether nothing is checked now; a time further away than any delay comes from a clock that was set back."""
        return self.closed_until is not None and now < self.closed_until <= now + max(COOL_OFF, LONGEST_DELAY)

    def is_over(self, now: dt.datetime) -> bool:
        """Whether its count starts again."""
        if LIMITS[self.kind].grows:
            return not self.last_at <= now < self.last_at + QUIET
        return not self.since <= now < self.since + COOL_OFF and not self.is_closed(now)

    def add(self, now: dt.datetime) -> None:
        """Counts one try, and closes the bucket when that was the last one it allows."""
        limit = LIMITS[self.kind]
        if self.is_over(now) or (self.closed_until and not limit.grows):
            self.count, self.since, self.noticed_at = 0, now, None
        self.count, self.last_at, self.closed_until = self.count + 1, now, None
        if self.count >= limit.tries:
            doublings = min(self.count - limit.tries, 10)
            self.closed_until = now + (min(FIRST_DELAY * 2**doublings, LONGEST_DELAY) if limit.grows else COOL_OFF)
        self.save(update_fields=["count", "since", "last_at", "closed_until", "noticed_at"])

    def take_back(self) -> None:
        """The try was a right one. It clears the count of its name from there, and of the others only itself."""
        self.count = 0 if self.kind in ("login", "code") else max(0, self.count - 1)
        if self.count < LIMITS[self.kind].tries:
            self.closed_until = None
        self.save(update_fields=["count", "closed_until"])


@dataclass(frozen=True)
class Attempt:
    """One try of a secret, with the buckets that it counts in: (kind, key, place), in the order in which they lock."""

    buckets: tuple[tuple[str, str, str], ...]
    name: str = ""

    @classmethod
    def to_log_in(cls, request: HttpRequest, what: str, name: str) -> "Attempt":
        """To log in under this name, by `what`: login (a password) or code.

        A browser in which the name logged in before has a count of its own and none else: guesses from elsewhere
        delay strangers, and nobody can lock others out of a browser that they use.
        """
        name, address = get_user_model().normalize_username(name), request.META.get("REMOTE_ADDR", "")
        if device := device_of(request, name):
            return cls(((what, digest(name, "device", device), address),), name)
        network = network_of(address)
        buckets = [
            ("address", digest(address), address),
            ("all", digest(), ""),
            (what, digest(name, address), address),
            (f"{what}name", digest(name), ""),
            ("network", digest(network), network),
        ]
        return cls(tuple(sorted(buckets)), name)

    @classmethod
    def with_token(cls, request: HttpRequest) -> "Attempt":
        """With a token that nobody has; right ones are never counted, they cannot be guessed."""
        address = request.META.get("REMOTE_ADDR", "")
        network = network_of(address)
        return cls((("tokenaddress", digest(address), address), ("tokennetwork", digest(network), network)))

    def closed(self) -> Tries | None:
        """Which bucket refuses this try now."""
        now = timezone.now()
        wanted = models.Q(pk__in=())
        for kind, key, _ in self.buckets:
            wanted |= models.Q(kind=kind, key=key)
        closed = [row for row in Tries.objects.filter(wanted) if row.is_closed(now)]
        return max(closed, key=lambda row: row.closed_until, default=None)  # type: ignore[arg-type,return-value]

    def begin(self) -> dt.datetime | None:
        """Counts the try. When one of its buckets is closed, nothing may be checked: returns until when."""
        if row := self.closed():
            return refuse(row)
        with transaction.atomic():
            rows = [self.row(*bucket) for bucket in self.buckets]
            now = timezone.now()
            closed = [row for row in rows if row.is_closed(now)]
            if not closed:
                for row in rows:
                    row.add(now)
        return refuse(closed[0]) if closed else None

    def row(self, kind: str, key: str, place: str) -> Tries:
        """The bucket's row, locked."""
        now = timezone.now()
        begun = {"place": place[:64], "since": now, "last_at": now, "person_id": self.person(kind)}
        return Tries.objects.select_for_update().get_or_create(kind=kind, key=key, defaults=begun)[0]

    def person(self, kind: str) -> int | None:
        """Key of the person whose name was tried; None for unknown names and for limits that are not about one."""
        if not self.name or kind in ("address", "all", "network"):
            return None
        return get_user_model().objects.filter(username=self.name).values_list("pk", flat=True).first()

    def wrong(self) -> dt.datetime | None:
        """The secret was wrong; returns until when nothing more is checked, None when another try is allowed now."""
        kind, key, _ = self.own
        Tries.objects.filter(kind=kind, key=key).update(wrong=F("wrong") + 1)
        row = self.closed()
        return row.closed_until if row else None

    @property
    def own(self) -> tuple[str, str, str]:
        """The bucket in whose row the audit log finds the wrong ones."""
        return next(each for each in self.buckets if each[0] in ("code", "login", "tokenaddress"))

    def right(self) -> None:
        """The secret was right."""
        with transaction.atomic():
            for bucket in self.buckets:
                self.row(*bucket).take_back()


def refuse(row: Tries) -> dt.datetime | None:
    """Counts a try at a closed limit; returns until when it is closed."""
    Tries.objects.filter(pk=row.pk).update(refused=F("refused") + 1)
    return row.closed_until


# Known browsers. "Device cookies" are OWASP's answer to guessing that also keeps strangers from locking accounts.


def cookie_name() -> str:
    """The __Host- prefix binds the cookie to this host over HTTPS (RFC 6265bis)."""
    return "__Host-device" if settings.SESSION_COOKIE_SECURE else "device"


def devices(request: HttpRequest) -> dict[str, str]:
    """The names (as digests) that logged in from this browser, each with the random number that its cookie has."""
    sent = request.get_signed_cookie(cookie_name(), "", salt="volmig.device", max_age=DEVICE_DAYS * 86400)
    return dict(each.split(".", 1) for each in str(sent).split(" ") if "." in each)


def device_of(request: HttpRequest, name: str) -> str:
    """The random number of this browser when the name logged in from it before; else empty."""
    try:
        return devices(request).get(digest(name)[:32], "")
    except (signing.BadSignature, ValueError):
        return ""


def remember_device(request: HttpRequest, response: HttpResponseBase, person: Any) -> None:
    """Makes this browser one that the person logged in from. Its cookie opens nothing."""
    try:
        known = devices(request)
    except (signing.BadSignature, ValueError):
        known = {}
    mine = digest(person.get_username())[:32]
    number = known.pop(mine, "") or secrets.token_urlsafe(16)
    kept = [*list(known.items())[1 - DEVICE_NAMES :], (mine, number)]
    response.set_signed_cookie(
        cookie_name(),
        " ".join(f"{name}.{value}" for name, value in kept),
        salt="volmig.device",
        max_age=DEVICE_DAYS * 86400,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
