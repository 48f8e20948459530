"""Wrong passwords at the login page: who is meant, and until when the name is closed from this address."""

import datetime as dt
import threading
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.http import HttpRequest
from django.utils.crypto import salted_hmac

# Striped by name and address: strangers seldom wait for each other, and no list of names grows.
TURNS = [threading.Lock() for _ in range(64)]


def turn(request: HttpRequest) -> threading.Lock:
    """One guess at a time: otherwise many at once would all be looked at before the first was counted."""
    return TURNS[hash((name_of(request), request.META.get("REMOTE_ADDR"))) % len(TURNS)]


def name_of(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str:
    """Returns what stands for the name in the count of failures."""
    name = (credentials or {}).get("username") or request.POST.get("username", "")
    # Not the name itself: one that nobody has may be a password that was typed into the wrong field.
    return salted_hmac("volmig.accounts.throttle", str(name), algorithm="sha256").hexdigest()


def closed_until(request: HttpRequest) -> dt.datetime:
    """When all failures that count against this name from this address have lapsed."""
    attempts = AccessAttempt.objects.filter(username=name_of(request), ip_address=request.META.get("REMOTE_ADDR"))
    last: dt.datetime = attempts.order_by("-attempt_time").values_list("attempt_time", flat=True)[0]
    cool_off: dt.timedelta = settings.AXES_COOLOFF_TIME
    return last + cool_off
