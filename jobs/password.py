"""Whether whoever sits at the screen is who is logged in: the password that was typed, and how often it was wrong."""

import datetime as dt
import time
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from jobs.models import Approval
from volmig.record.models import Event

FRESH = 300  # seconds for which a password that was typed counts for a decision
TRIES = 5
WHILE = dt.timedelta(minutes=10)  # so many wrong ones in this time close it for as long
REFUSED = "approval.password_refused"
COUNTED = (REFUSED, "person.password_refused")  # the account page asks too: together they have five tries


def typed_at(request: HttpRequest) -> float:
    """When this session's person last typed their password, in seconds since the epoch; 0 when not known."""
    return float(request.session.get("password_at", 0))


def is_fresh(request: HttpRequest) -> bool:
    """Whether it was typed so lately that it need not be typed again."""
    return time.time() - typed_at(request) < FRESH


def trouble(request: HttpRequest, asked: Approval, password: str) -> str:
    """Why this password does not count, as a sentence; empty when it does. A wrong one becomes an event."""
    if not password:
        return "Type your password."
    told = {"job": asked.job_id, "object": str(asked), "data": {"approval": asked.pk}}
    return why_wrong(request, password, "you cannot decide anything", REFUSED, **told)


def why_wrong(
    request: HttpRequest, password: str, closed: str = "nothing is changed", action: str = COUNTED[1], **told: Any
) -> str:
    """Why a password does not count, as a sentence; empty when it does. A wrong one becomes an event."""
    with transaction.atomic():
        person = alone(request)
        if until := closed_until(person):
            return f"Too many wrong passwords: {closed} before {timezone.localtime(until):%H:%M %Z}."
        if not person.check_password(password):
            Event.append(action, actor=person, **{"object": person.get_username(), **told})
            return "This is not your password."
    return ""


def alone(request: HttpRequest) -> Any:
    """This session's person, one guess at a time: otherwise many sessions at once would all see fewer than five."""
    return get_user_model().objects.select_for_update().get(username=request.user.get_username())


def closed_until(person: Any) -> dt.datetime | None:
    """When this person's password counts again, from the record and so for all sessions; None when it counts now."""
    times = list(Event.objects.filter(actor=person, action__in=COUNTED).values_list("at", flat=True)[:TRIES])
    if len(times) < TRIES or times[0] - times[-1] > WHILE:
        return None
    until = times[0] + WHILE
    return until if until > timezone.now() else None
