"""Login, the audit page and the health answer."""

import time

from django import forms
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView
from django.core.paginator import Paginator
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_GET

from volmig.accounts.roles import needs
from volmig.record.models import ChainHead, Event


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
    response = LoginView.as_view(redirect_authenticated_user=True)(request)
    if request.method == "POST" and request.user.is_authenticated:
        request.session["password_at"] = time.time()
    return response


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
    """Answers 200 when the database answers; says nothing else to people who are not logged in."""
    try:
        ChainHead.objects.count()
    except DatabaseError:
        return JsonResponse({"database": "failed"}, status=503)
    return JsonResponse({"database": "ok"})
