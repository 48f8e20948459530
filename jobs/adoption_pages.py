"""The page on which administrators adopt migrations while volmig is read-only."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from hosts.models import Hypervisor
from jobs import adopting
from jobs.engine.steps import NAMED
from jobs.models import Adoption, Refused
from volmig import incarnation
from volmig.accounts.roles import needs
from volmig.queue import ask
from volmig.step_up import fresh


@require_GET
@needs("administer")
def adopt(request: HttpRequest) -> HttpResponse:
    """Each migration beside what its hosts report, and each hypervisor with its owner."""
    state = incarnation.read_only()
    rows = Adoption.objects.filter(episode=state.episode if state else "")
    migrations = rows.exclude(job=None).select_related("job__source", "job__relay", "job__destination", "by")
    values = {
        "state": state,
        "attempt": adopting.last_attempt(state) if state else None,
        "migrations": [shown(row) for row in migrations.order_by("job")],
        "hypervisors": rows.exclude(hypervisor=None).select_related("hypervisor").order_by("hypervisor__name"),
    }
    return render(request, "jobs/adopt.html", values)


def shown(row: Adoption) -> dict[str, Any]:
    """One migration: what the database says, and the last steps that each host reports."""
    hosts = []
    for on, each in row.seen.items():
        runs = each.get("runs") or []
        last = [f"{title(run)}: {run['state']}" for run in runs[-3:]]
        hosts.append({"name": getattr(row.job, on).name, "role": on, "said": each, "steps": len(runs), "last": last})
    return {"row": row, "job": row.job, "hosts": hosts}


def title(run: dict[str, Any]) -> str:
    step = NAMED.get(run["step"])
    words = step.title if step else run["step"]
    return f"Undo: {words}" if run["direction"] == "undo" else words


@require_POST
@needs("administer")
@fresh
def adopt_verb(request: HttpRequest, verb: str) -> HttpResponse:
    """Compare, adopt one migration, take one hypervisor over, or finish."""
    if verb not in VERBS:
        raise Http404
    try:
        messages.success(request, VERBS[verb](request))
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("adopt")


def compare(request: HttpRequest) -> str:
    said = ask("jobs.adopting.compare", by=request.user)
    return str(said) if said else "Comparing with every host. Reload in a few seconds."


def migration(request: HttpRequest) -> str:
    row = get_object_or_404(Adoption.objects.exclude(job=None), pk=request.POST.get("adoption", "0"))
    adopting.want(row, request.user, request.POST.get("digest", ""))
    return f"Migration {row.job_id} is being adopted. Reload in a few seconds."


def host(request: HttpRequest) -> str:
    """A worker takes it over: the web process reaches no host."""
    hypervisor = get_object_or_404(Hypervisor.objects.reachable(), pk=request.POST.get("hypervisor", "0"))
    adopting.want_host(hypervisor, request.user, request.POST.get("name", ""))
    return f"{hypervisor.name} is being taken over. Reload in a few seconds."


def finish(request: HttpRequest) -> str:
    adopting.want_end(request.user)
    return "Comparing with every host once more; then read-only mode ends. Reload in a few seconds."


VERBS = {"compare": compare, "migration": migration, "host": host, "finish": finish}
