"""Logging in and out, the audit page and the health answer."""

import math
import time

from django import forms
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView, LogoutView
from django.core.paginator import Paginator
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from jobs.models import Lease
from volmig.accounts.models import Login
from volmig.accounts.roles import needs
from volmig.accounts.throttle import closed_until
from volmig.queue import last_done
from volmig.record.models import Event

IDLE = 150  # seconds: a schedule gives the workers something to do every minute


class EventFilter(forms.Form):
    """Each field that is filled in narrows the list."""

    who = forms.CharField(required=False)
    what = forms.CharField(required=False)
    on = forms.CharField(required=False)
    job = forms.IntegerField(label="Migration", required=False, min_value=1)
    since = forms.DateTimeField(required=False, widget=forms.DateTimeInput(attrs={"type": "datetime-local"}))

    LOOKUPS = {
        "who": "actor_name__iexact",
        "what": "action__icontains",
        "on": "object__icontains",
        "job": "job",
        "since": "at__gte",
    }

    def lookups(self) -> dict[str, object]:
        if not self.is_valid():
            return {}
        return {lookup: self.cleaned_data[name] for name, lookup in self.LOOKUPS.items() if self.cleaned_data[name]}


@login_not_required
def login(request: HttpRequest) -> HttpResponseBase:
    """Logs in, and notes when: consent asks for the password again once it was typed too long ago in this session."""
    known = request.user.is_authenticated  # Django sends such people on, whatever password they post
    response = LoginView.as_view(redirect_authenticated_user=True)(request)
    if request.method == "POST" and not known:
        note_login(request)
    return response


def note_login(request: HttpRequest) -> None:
    if request.user.is_authenticated:
        request.session["password_at"] = time.time()
        Login.objects.of(request)
        Event.append("person.login", actor=request.user, object=request.user.get_username())
        return
    # A name that nobody has may be a password that was typed into the wrong field: it is not kept.
    name = get_user_model().objects.filter(username=request.POST.get("username", "")).values_list("username", flat=True)
    locked = {"locked": True} if getattr(request, "axes_locked_out", False) else {}
    Event.append("person.login_refused", object=name.first() or "", data=locked)


def locked_out(request: HttpRequest, response: HttpResponse, credentials: object) -> HttpResponse:
    """Answers a login that is not even tried, in place of axes' own words."""
    until = closed_until(request)
    page = render(request, "registration/locked.html", {"until": until}, status=429)
    page["Retry-After"] = max(1, math.ceil((until - timezone.now()).total_seconds()))
    return page


@require_POST
def logout(request: HttpRequest) -> HttpResponseBase:
    Event.append("person.logout", actor=request.user, object=request.user.get_username())
    return LogoutView.as_view()(request)


@require_GET
@needs("audit")
def audit(request: HttpRequest) -> HttpResponse:
    form = EventFilter(request.GET)
    for field in form.fields.values():
        field.widget.attrs["class"] = "form-control"
    events = Event.objects.filter(**form.lookups())
    page = Paginator(events, 100).get_page(request.GET.get("page"))
    return render(request, "record/audit.html", {"page": page, "form": form})


@login_not_required
def health(request: HttpRequest) -> HttpResponse:
    """Answers 200 when the database answers, 503 when not; of watcher and workers only how long they are silent."""
    try:
        return JsonResponse({"database": "ok", "watcher": watcher(), "workers": workers()})
    except DatabaseError:
        return JsonResponse({"database": "failed"}, status=503)


def watcher() -> dict[str, object]:
    silent = Lease.objects.silent("watcher")
    return {"state": "not seen" if silent is None else "silent" if silent else "ok", "lease_over_seconds": silent}


def workers() -> dict[str, object]:
    at = last_done()
    age = round((timezone.now() - at).total_seconds(), 1) if at else None
    return {"state": "not seen" if age is None else "silent" if age > IDLE else "ok", "last_task_seconds": age}
