"""Teams, to which hypervisors belong, and logins: each person's sessions, since when and from where."""

import datetime as dt
from typing import Any, Self

from django.conf import settings
from django.contrib.sessions.models import Session
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from volmig.accounts.factors import App  # noqa: F401 - a model of this app, too
from volmig.accounts.throttle import Tries as Tries
from volmig.accounts.tokens import Token as Token
from volmig.models import CLOCKS_DIFFER

STANDARD = "everybody"  # the team that everything belongs to until somebody says otherwise
SEEN_EVERY = dt.timedelta(minutes=1)  # or every page would be a write to the database


class TeamQuerySet(models.QuerySet["Team"]):
    """Teams, and who is a member of which."""

    def is_single(self) -> bool:
        """Whether everything belongs to one team."""
        return self.count() < 2

    def of(self, user: Any) -> Self:
        """Those that a person is a member of."""
        if user.is_superuser:
            return self.all()
        return self.filter(Q(everybody=True) | Q(pk__in=Team.members.through.objects.filter(user=user).values("team")))


class Team(models.Model):
    """Whose hypervisors they are: members see them and the migrations between them, and act on them by their roles."""

    name = models.CharField(max_length=100, unique=True)
    everybody = models.BooleanField("everybody with a role is a member", default=False)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="teams")

    objects = TeamQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """The page on which an administrator changes it."""
        return f"/teams/{self.pk}/"


class LoginQuerySet(models.QuerySet["Login"]):
    """Sessions of people: which are valid, and which have ended."""

    def alive(self) -> Self:
        """Those that still open pages."""
        sessions = Session.objects.filter(expire_date__gt=timezone.now())
        return self.filter(session_key__in=sessions.values("pk"), seen_at__gt=idle_since(), since__gt=old_since())

    def over(self) -> Self:
        """Those that were idle or lasted for too long, or that were used before the clock was set back."""
        back = Q(seen_at__gt=timezone.now() + CLOCKS_DIFFER)
        return self.filter(Q(seen_at__lte=idle_since()) | Q(since__lte=old_since()) | back)

    def end(self) -> int:
        """Ends these sessions everywhere, open sockets included; returns how many there were."""
        keys = list(self.values_list("session_key", flat=True))
        Session.objects.filter(pk__in=keys).delete()
        self.model.objects.filter(session_key__in=keys).delete()
        return len(keys)

    def of(self, request: HttpRequest) -> "Login":
        """The login that the request belongs to; begun now when it is new."""
        now = timezone.now()
        begun = {"person": request.user, "since": now, "seen_at": now, "address": request.META.get("REMOTE_ADDR", "")}
        return self.get_or_create(session_key=request.session.session_key, defaults=begun)[0]


class Login(models.Model):
    """One session of a person: Django's own row tells neither whose it is nor from where."""

    session_key = models.CharField(max_length=40, unique=True)
    person = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="logins")
    since = models.DateTimeField()
    seen_at = models.DateTimeField(db_index=True)
    address = models.CharField(max_length=45, blank=True)

    objects = LoginQuerySet.as_manager()

    class Meta:
        ordering = ["-seen_at"]

    def __str__(self) -> str:
        return f"{self.person} since {self.since}"

    def why_over(self) -> str:
        """Why this session counts no more, as a sentence; empty while it does."""
        if self.since <= old_since():
            return f"Your session reached its limit of {settings.SESSION_HOURS} hours. Log in again."
        if self.seen_at > timezone.now() + CLOCKS_DIFFER:  # nobody knows how long ago that was
            return "You were logged out because the server's clock was set back."
        if self.seen_at <= idle_since():
            return f"You were logged out after {settings.IDLE_MINUTES} minutes without activity."
        return ""

    def note(self, address: str) -> None:
        """Notes that it is used now, from this address."""
        now = timezone.now()
        if now - self.seen_at >= SEEN_EVERY or self.address != address:
            type(self).objects.filter(pk=self.pk).update(seen_at=now, address=address)


def idle_since() -> dt.datetime:
    """The time before which a session's last activity ends it (VOLMIG_IDLE_MINUTES)."""
    return timezone.now() - dt.timedelta(minutes=settings.IDLE_MINUTES)


def old_since() -> dt.datetime:
    """The time before which a session's begin ends it (VOLMIG_SESSION_HOURS)."""
    return timezone.now() - dt.timedelta(hours=settings.SESSION_HOURS)


def sweep() -> None:
    """Ends what is over, so that sockets close of which no request would tell; forgets what ended otherwise."""
    Login.objects.over().end()
    Session.objects.filter(expire_date__lte=timezone.now()).delete()
    Login.objects.exclude(session_key__in=Session.objects.values("pk")).delete()
