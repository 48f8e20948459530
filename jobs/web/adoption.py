"""The page on which administrators adopt migrations while volmig is read-only."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from django.contrib import messages
from django.db.models import Max
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET

from hosts.models import Hypervisor
from jobs.engine import routes, states
from jobs.models import Adoption, Refused
from jobs.worker import adopting
from volmig import incarnation
from volmig.accounts.roles import needs
from volmig.accounts.step_up import fresh
from volmig.health import absent
from volmig.parts import BACKGROUND
from volmig.posting import posted_from
from volmig.queue import ask


@require_GET
@needs("administer")
def adopt(request: HttpRequest) -> HttpResponse:
    """Migrations with what their hypervisors report, first where a guest may be down; hypervisors with their owners."""
    state = incarnation.read_only()
    rows = Adoption.objects.filter(episode=state.episode if state else "")
    of_migrations = rows.exclude(job=None).select_related("job__source", "job__relay", "job__destination", "by")
    migrations = sorted(map(shown, of_migrations.order_by("job")), key=lambda each: not each["is_down"])
    compared_at = rows.aggregate(at=Max("compared_at"))["at"]
    values = {
        "state": state,
        "attempt": adopting.last_attempt(state) if state else None,
        "compared_at": compared_at,
        "requested": adopting.requested(),
        "no_worker": absent.no_worker(BACKGROUND) if state else "",
        "nothing_to_ask": adopting.nothing_to_ask(state.episode) if state else False,
        "migrations": migrations,
        "left": sum(each["row"].adopted_at is None for each in migrations),
        "unknown": [shown_unknown(each) for each in adopting.unknown(state.episode)] if state else [],
        "hypervisors": rows.exclude(hypervisor=None).select_related("hypervisor").order_by("hypervisor__name"),
    }
    return render(request, "jobs/adopt.html", values)


def shown(row: Adoption) -> dict[str, Any]:
    """One migration: what the database says, and the last steps that each host reports."""
    job: Any = row.job
    return {
        "row": row,
        "job": job,
        "hosts": [reported(adopting.name_of(job, on), on, said) for on, said in row.seen.items()],
        "becomes": row.status.replace("_", " ").capitalize(),
        "is_down": row.adopted_at is None and row.status in states.MAY_BE_DOWN,
        "may_be_adopted": not (row.adopted_at or row.trouble or row.wanted_at),
    }


def shown_unknown(each: adopting.Unknown) -> dict[str, Any]:
    """One migration that the database lacks."""
    last_at = dt.datetime.fromtimestamp(each.last_at, dt.UTC) if each.last_at else None
    return {"each": each, "last_at": last_at, "hosts": [reported(name, "", said) for name, said in each.hosts.items()]}


def reported(name: str, role: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What one host, or Nova, says of a migration."""
    runs = said.get("runs") or []
    return {"name": name, "role": role, "said": said, "steps": len(runs), "last": [ended(run) for run in runs[-3:]]}


def ended(run: Mapping[str, Any]) -> str:
    """An attempt with its state, in words."""
    return f"{title(run)}: {run['state']}"


def title(run: Mapping[str, Any]) -> str:
    """The step's title, or its name when this version does not know it."""
    step = routes.named().get(run["step"])
    words = step.title if step else run["step"]
    return f"Undo: {words}" if run["direction"] == "undo" else words


def compare(request: HttpRequest) -> str:
    """Queues the comparison; returns the sentence to show."""
    said = ask("jobs.worker.adopting.compare", by=request.user)
    return str(said) if said else "Comparing with every hypervisor. Reload in a few seconds."


def migration(request: HttpRequest) -> str:
    """Queues the adoption of what was shown, by its digest; Refused when it has changed."""
    row = get_object_or_404(Adoption.objects.exclude(job=None), pk=request.POST.get("adoption", "0"))
    adopting.want(row, request.user, request.POST.get("digest", ""))
    return f"Migration {row.job_id} is being adopted. Reload in a few seconds."


def host(request: HttpRequest) -> str:
    """A worker takes it over: the web process reaches no host."""
    hypervisor = get_object_or_404(Hypervisor.objects.reachable(), pk=request.POST.get("hypervisor", "0"))
    adopting.want_host(hypervisor, request.user, request.POST.get("name", ""))
    return f"{hypervisor.name} is being taken over. Reload in a few seconds."


def finish(request: HttpRequest) -> str:
    """Queues the end of read-only mode; Refused while migrations are left."""
    adopting.want_end(request.user)
    return "Comparing with every hypervisor again; then read-only mode ends. Reload in a few seconds."


VERBS = {"compare": compare, "migration": migration, "host": host, "finish": finish}


@posted_from("adopt", verbs=VERBS)
@needs("administer")
@fresh
def adopt_verb(request: HttpRequest, verb: str) -> HttpResponse:
    """Compare, adopt one migration, take one hypervisor over, or finish."""
    try:
        messages.success(request, VERBS[verb](request))
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("adopt")
