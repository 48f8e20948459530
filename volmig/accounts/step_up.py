"""Step-up authentication: sensitive changes need a password, and a second factor, typed within the last minutes."""

import datetime as dt
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from django.contrib import messages
from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone

from volmig.accounts import factors
from volmig.models import CLOCKS_DIFFER
from volmig.record.models import Event

FRESH = 300  # seconds for which a password that was typed counts for a decision
TRIES = 5
WHILE = dt.timedelta(minutes=10)  # so many wrong ones in this time close it for as long
REFUSED, CHANGE_REFUSED = "approval.password_refused", "person.password_refused"
COUNTED = (REFUSED, CHANGE_REFUSED)  # the account page asks too: together they have five tries


Answer = TypeVar("Answer", bound=HttpResponseBase)


def fresh(view: Callable[..., Answer]) -> Callable[..., Answer | HttpResponse]:
    """Makes a view that sends people whose password was typed too long ago to confirm who they are first.

    Its form, too, is shown only then: what was typed into it would be lost otherwise.
    """

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Answer | HttpResponse:
        return view(request, *args, **kwargs) if is_fresh(request) else confirm(request)

    return guarded


def confirm(request: HttpRequest) -> HttpResponse:
    """Leads to the page that asks for the password, and from there back: a form is sent again by the person."""
    back = request.get_full_path()
    if request.method != "GET":
        referrer = urlsplit(request.headers.get("Referer", ""))
        back = referrer.path if referrer.netloc == request.get_host() else reverse("overview")
        messages.warning(request, "Nothing was changed yet. Confirm that it is you, then submit again.")
    return redirect(f"{reverse('confirm')}?{urlencode({'next': back})}")


def proved(request: HttpRequest, password: str, code: str, asked: Any = None) -> str:
    """Takes a password, and the code of who has a second factor, as proof; why it is none, as a sentence.

    `asked` is the approval that it is typed for, if it is; events then name it.
    """
    if not password:
        return "Enter your password."
    if why := why_wrong(request, password, asked):
        return why
    if factors.has(request.user) and not factors.is_right(request.user, code):
        note_wrong(request.user, asked, code=True)
        return "Wrong code: not the current code of your app, nor an unused recovery code. Wait before you try again."
    request.session["password_at"] = time.time()
    return ""


def typed_at(request: HttpRequest) -> float:
    """When this session's person last typed their password, in seconds since the epoch; 0 when not known."""
    return float(request.session.get("password_at", 0))


def is_fresh(request: HttpRequest) -> bool:
    """Whether it was typed so lately that it need not be typed again. A time in the future does not count: the clock
    was set back."""
    return -CLOCKS_DIFFER.total_seconds() <= time.time() - typed_at(request) < FRESH


def why_wrong(request: HttpRequest, password: str, asked: Any = None) -> str:
    """Why a password does not count, as a sentence; empty when it does. A wrong one becomes an event."""
    with transaction.atomic():
        person = alone(request)
        if until := closed_until(person):
            closed = "no decision is possible" if asked else "no change is possible"
            return f"Too many wrong passwords: {closed} until {timezone.localtime(until):%H:%M %Z}."
        if not person.check_password(password):
            note_wrong(person, asked)
            return "Wrong password."
    return ""


def note_wrong(person: Any, asked: Any, **data: Any) -> None:
    """A wrong password, or code, as an event of the approval that it was typed for, if it was."""
    if asked:
        about = {"job": asked.job_id, "object": str(asked), "data": {"approval": asked.pk, **data}}
        Event.append(REFUSED, actor=person, **about)
    else:
        Event.append(CHANGE_REFUSED, actor=person, object=person.get_username(), data=data)


def alone(request: HttpRequest) -> Any:
    """This session's person, one guess at a time: otherwise many sessions at once would all see fewer than five."""
    return get_user_model().objects.select_for_update().get(username=request.user.get_username())


def closed_until(person: Any) -> dt.datetime | None:
    """When this person's password counts again, from the record and so for all sessions; None when it counts now."""
    times = list(Event.objects.filter(actor=person, action__in=COUNTED).values_list("at", flat=True)[:TRIES])
    if len(times) < TRIES or times[0] - times[-1] > WHILE:
        return None
    until, now = times[0] + WHILE, timezone.now()
    return until if now < until <= now + WHILE + CLOCKS_DIFFER else None  # later: a clock was set back
