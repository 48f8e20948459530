"""The audit page and the health answer."""

from django.contrib.auth.decorators import login_not_required
from django.core.paginator import Paginator
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from volmig.accounts.roles import needs
from volmig.record.models import ChainHead, Event


@needs("audit")
def audit(request: HttpRequest) -> HttpResponse:
    events = Event.objects.select_related("actor")
    page = Paginator(events, 100).get_page(request.GET.get("page"))
    return render(request, "record/audit.html", {"page": page})


@login_not_required
def health(request: HttpRequest) -> HttpResponse:
    """Answers 200 when the database answers; says nothing else to people who are not logged in."""
    try:
        ChainHead.objects.count()
    except DatabaseError:
        return JsonResponse({"database": "failed"}, status=503)
    return JsonResponse({"database": "ok"})
