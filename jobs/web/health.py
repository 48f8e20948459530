"""Answers for load balancers, orchestrators and Prometheus, and the page of volmig's own processes."""

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import DatabaseError, InterfaceError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_safe

from jobs.models import Lease
from jobs.web import metrics
from volmig.accounts.roles import needs
from volmig.health import alive, ready
from volmig.health.models import Incident, Process
from volmig.parts import BACKGROUND, MIGRATIONS
from volmig.queue import last_done

IDLE = 150  # seconds: every minute gives the workers something to do


@require_safe
@login_not_required
def live(request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers at all; the database is not asked."""
    return JsonResponse({"live": True})


@require_safe
@login_not_required
def readiness(request: HttpRequest) -> HttpResponse:
    """200 when this machine can serve, else 503 with a sentence for each reason."""
    reasons = ready.reasons()
    return JsonResponse({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


@require_safe
@login_not_required
def health(request: HttpRequest) -> HttpResponse:
    """As before there was readiness: 503 when this machine cannot serve; of watcher and workers only how silent."""
    reasons = ready.reasons()
    answer: dict[str, object] = {
        "database": "failed" if {ready.NO_ANSWER, ready.NO_CONNECTION, ready.NO_WRITE} & {*reasons} else "ok"
    }
    if reasons:
        return JsonResponse(answer | {"reasons": reasons}, status=503)
    try:
        seen = {"watcher": watcher(), "workers": workers(MIGRATIONS), "background": workers(BACKGROUND)}
    except (DatabaseError, InterfaceError):
        return JsonResponse({"database": "failed"}, status=503)
    return JsonResponse(answer | seen)


def watcher() -> dict[str, object]:
    """State of the watcher's lease, for the older /healthz."""
    silent = Lease.objects.silent("watcher")
    return {"state": "not seen" if silent is None else "silent" if silent else "ok", "lease_over_seconds": silent}


def workers(queue: str) -> dict[str, object]:
    """State of a queue's workers, for the older /healthz; seconds since the last task."""
    at = last_done(queue)
    age = round((timezone.now() - at).total_seconds(), 1) if at else None
    return {"state": "not seen" if age is None else "silent" if age > IDLE else "ok", "last_task_seconds": age}


@require_GET
@login_not_required
def figures(request: HttpRequest) -> HttpResponse:
    """/metrics for whoever shows VOLMIG_METRICS_TOKEN; not there when none is set."""
    if not settings.METRICS_TOKEN:
        raise Http404
    if not metrics.may_read(request.headers.get("Authorization", "")):
        return HttpResponse("A token is required.\n", status=401, headers={"WWW-Authenticate": "Bearer"})
    try:
        return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)
    except (DatabaseError, InterfaceError):
        return HttpResponse(f"{ready.NO_ANSWER}\n", status=503)


@require_GET
@needs("administer")
def processes(request: HttpRequest) -> HttpResponse:
    """Every process of volmig that sent a heartbeat within a day, and what went wrong within it."""
    shown = {
        "processes": Process.objects.with_age(),
        "troubles": alive.now(),
        "incidents": alive.over(Incident.objects.all()),
    }
    return render(request, "health/processes.html", shown)
