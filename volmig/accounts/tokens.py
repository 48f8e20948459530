"""Tokens: what programs show instead of a password; each may do no more than it was made for."""

import datetime as dt
import hashlib
import secrets
from collections.abc import Collection, Iterable
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.utils import timezone

MARK = "volmig_"  # by which scanners for leaked secrets know one
APPROVING = dt.timedelta(minutes=15)  # so long after the password one decides about approvals
LONGEST = 366  # days
USED_EVERY = dt.timedelta(minutes=1)  # or every request would be a write to the database


def kept(letters: str) -> str:
    """How a token is kept. Plain SHA-256 will do: there are 256 random bits to guess."""
    return hashlib.sha256(letters.encode()).hexdigest()


class TokenQuerySet(models.QuerySet["Token"]):
    """API tokens, found by the digest of their letters."""

    def alive(self) -> Self:
        """Those that still work: neither revoked nor expired, of an account that is not disabled."""
        return self.filter(revoked_at=None, expires_at__gt=timezone.now(), person__is_active=True)

    def shown(self, letters: str) -> "Token | None":
        """The one whose letters these are, whether or not it still counts."""
        return self.select_related("person").filter(digest=kept(letters)).first()

    def make(self, person: Any, name: str, verbs: Iterable[str], days: int) -> tuple["Token", str]:
        """A new one, and its letters, which nobody can be shown again.

        One that may approve lasts for APPROVING, whatever `days` says: whoever made it has just typed the password.
        """
        letters = MARK + secrets.token_urlsafe(32)
        scope = sorted({"view", *verbs})
        lasts = APPROVING if "approve" in scope else dt.timedelta(days=days)
        until = timezone.now() + lasts
        return self.create(person=person, name=name, digest=kept(letters), scope=scope, expires_at=until), letters

    def revoke(self) -> int:
        """Ends these for ever, whether or not their person may log in just now; returns how many that were."""
        return self.filter(revoked_at=None).update(revoked_at=timezone.now())


class Token(models.Model):
    """`scope` are verbs of roles: with it one may do what both they and the roles of its person allow."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="tokens")
    name = models.CharField("What it is for", max_length=100)
    digest = models.CharField(max_length=64, unique=True)
    scope = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True)
    used_at = models.DateTimeField(null=True, blank=True)
    address = models.CharField(max_length=45, blank=True)

    objects = TokenQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"token {self.pk}"

    def told(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"token": self.pk, "name": self.name, "scope": self.scope, "expires_at": self.expires_at}

    def why_over(self) -> tuple[str, str]:
        """Why it does not count, as a code and a sentence; empty while it does."""
        if self.revoked_at:
            return "token-revoked", "This token was revoked."
        if self.expires_at <= timezone.now():
            return "token-expired", f"This token expired at {timezone.localtime(self.expires_at):%Y-%m-%d %H:%M %Z}."
        if not self.person.is_active:
            return "account-disabled", "The account that this token belongs to is disabled."
        return "", ""

    def verbs(self) -> Collection[str]:
        """Its scope now: approving ends a while after its person typed the password."""
        return {verb for verb in self.scope if verb != "approve" or self.is_fresh()}

    def is_fresh(self) -> bool:
        """Whether its person typed the password a moment ago to make it."""
        return self.created_at <= timezone.now() < self.created_at + APPROVING

    def note(self, address: str) -> None:
        """Notes that it is used now, from this address."""
        now = timezone.now()
        if self.used_at is None or now - self.used_at >= USED_EVERY or self.address != address:
            type(self).objects.filter(pk=self.pk).update(used_at=now, address=address)
