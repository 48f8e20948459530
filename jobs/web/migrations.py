"""Pages of migrations: submit one, see it, act on it, search and export all of them."""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from jobs.models import Job, Refused
from jobs.models.footprint import BULKY
from jobs.web.base import PAGE, show
from jobs.web.evidence import archive
from jobs.web.forms import MIB, Choices, MigrationForm, RateForm
from jobs.web.history import SearchForm, narrowed, stream
from volmig.accounts.roles import may, needs
from volmig.paging import page
from volmig.posting import posted_from
from volmig.record.models import Event
from volmig.refusals import Sentence

TABS = {"plan": "Plan", "log": "Log", "evidence": "Evidence", "approvals": "Approvals", "events": "Events"}


@require_GET
@needs("view")
def checks(request: HttpRequest) -> HttpResponse:
    """What each check means, from the documentation."""
    return render(request, "jobs/checks.html", {"chapters": explanations()})


def explanations() -> list[dict[str, Any]]:
    """docs/checks.md as chapters: a heading of the second level with its paragraphs."""
    text = (settings.BASE_DIR / "docs/checks.md").read_text(encoding="utf-8")
    parts = [part.strip().split("\n\n") for part in text.split("\n## ")[1:]]
    return [{"name": part[0].strip(), "paragraphs": part[1:]} for part in parts]


@require_http_methods(["GET", "POST"])
@needs("submit")
def new(request: HttpRequest) -> HttpResponse:
    """Choose source, destination and relay; GET narrows the choices, POST submits."""
    if request.method == "POST":
        form = MigrationForm(request.user, request.POST)
        if form.is_valid() and (job := submit(request, form)):
            return redirect("jobs:job", job.pk)
    else:
        form = MigrationForm(request.user, initial=request.GET.dict())
    choices = Choices.of(request.user, request.POST if request.method == "POST" else request.GET)
    response = show(request, "jobs/new.html", "jobs/_choices.html", {"form": form, "choices": choices})
    response.status_code = 422 if form.errors else 200
    return response


def submit(request: HttpRequest, form: MigrationForm) -> Job | None:
    """Hand the form to the model; its refusals come back as errors of the form."""
    try:
        return Job.objects.submit(request.user, **form.wanted(), start="start" in request.GET)
    except Refused as refused:
        for sentence in refused.sentences:
            form.add_error(None, sentence)
    return None


@require_GET
def job(request: HttpRequest, number: int, tab: str = "") -> HttpResponse:
    """One migration; htmx fetches its parts again with ?part=actions, facts or tab."""
    job = Job.objects.with_names().with_runs().find(request.user, "view", pk=number)
    tab = tab or request.GET.get("tab") or ("log" if job.runs.all() else "plan")
    if tab not in TABS:
        raise Http404
    offered = job.actions(request.user)
    may_set_rate = any(each.verb == "rate" and each.allowed for each in offered)
    part = request.GET.get("part") if request.GET.get("part") in ("actions", "facts") else "tab"
    values = {
        "job": job,
        "tab": tab,
        "tabs": TABS,
        "actions": offered,
        "may_set_rate": may_set_rate,
        "limit_changed": part == "actions" and may_set_rate != ("limit" in request.GET),
        "rate_form": RateForm(initial={"rate": rate_of(job)}),
        "again": again(job, request.user),
        "kept": job.backup(),
        "rehearsals": job.rehearsals.select_related("by")[:5],
    }
    return show(request, "jobs/job.html", f"jobs/_{part}.html", values | TAB_VALUES[tab](job, request))


def rate_of(job: Job) -> float | None:
    """The job's own limit in MiB/s, as forms show it."""
    return round(job.rate / MIB, 1) if job.rate else None


def plan(request: HttpRequest, number: int) -> HttpResponse:
    """The plan under an address of its own."""
    return job(request, number, tab="plan")


def again(job: Job, by: Any) -> str:
    """The form of a new migration filled in as this one was, for those that came to nothing; empty for others."""
    if job.status != "undone" or not may(by, "submit"):
        return ""
    values = job.again(by) | {"rate": rate_of(job)}
    return urlencode({name: value for name, value in values.items() if value})


def log(job: Job, request: HttpRequest) -> dict[str, Any]:
    """The commands that changed something, or with ?questions=1 also the many that only read."""
    lines = job.log()
    acts = [line for line in lines if not line.get("probe")]
    asked = request.GET.get("questions") == "1"
    return {"log": lines if asked else acts, "questions": len(lines) - len(acts), "with_questions": asked}


TAB_VALUES: dict[str, Callable[[Job, HttpRequest], dict[str, Any]]] = {
    "plan": lambda job, request: {},
    "log": log,
    "evidence": lambda job, request: {
        "runs": job.runs.select_related("hypervisor"),
        "footprints": job.footprints.select_related("hypervisor", "share").order_by("pk"),
    },
    "approvals": lambda job, request: {"approvals": job.approvals.prefetch_related("decisions__person")},
    "events": lambda job, request: {"events": Event.objects.of_job(job.pk).select_related("actor")[:500]},
}


@require_GET
def evidence(request: HttpRequest, number: int) -> HttpResponse:
    """Everything about a migration as one archive; that somebody took it is recorded, though not among its events."""
    job = Job.objects.with_names().find(request.user, "view", pk=number)
    Event.append("evidence.export", actor=request.user, object=str(job))
    told = {"Content-Disposition": f'attachment; filename="volmig-migration-{number}.zip"'}
    return HttpResponse(archive(job), content_type="application/zip", headers=told)


def rate(request: HttpRequest, job: Job) -> None:
    """Set the limit that was typed, or say what is wrong with it."""
    form = RateForm(request.POST)
    if not form.is_valid():
        said = f"The limit stays as it was: {' '.join(map(str, form.errors['rate']))}"
        raise Refused(Sentence("bad-limit", said))
    job.set_rate(request.user, form.rate_in_bytes())


VERBS: dict[str, Callable[[HttpRequest, Job], object]] = {
    "start": lambda request, job: job.start(request.user),
    "cancel": lambda request, job: job.cancel(request.user),
    "resume": lambda request, job: job.resume(request.user),
    "try-again": lambda request, job: job.try_again(request.user),
    "confirm": lambda request, job: job.confirm(request.user),
    "rate": rate,
    "roll-back": lambda request, job: job.roll_back(request.user),
    "ask-rollback": lambda request, job: job.ask("rollback", request.user),
    "ask-purge": lambda request, job: job.ask("purge", request.user),
    "rehearse": lambda request, job: job.rehearse(request.user),
}


@posted_from("jobs:job", "number", verbs=VERBS)
def verb(request: HttpRequest, number: int, verb: str) -> HttpResponse:
    """One of the things that can be done to a job."""
    job = Job.objects.find(request.user, "submit", pk=number)
    try:
        VERBS[verb](request, job)
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("jobs:job", number)


@require_GET
@needs("view")
def history(request: HttpRequest) -> HttpResponse:
    """All migrations there ever were; filters and order live in the address."""
    form = SearchForm(request.user, request.GET)
    rows = narrowed(Job.objects.visible_to(request.user).with_names().defer(*BULKY), form)
    found = page(rows, form.order, request.GET, PAGE)
    values = {"form": form, "page": found, "filtered": any(request.GET.values())}
    return show(request, "jobs/history.html", "jobs/_history.html", values)


@require_GET
@needs("view")
def export(request: HttpRequest) -> StreamingHttpResponse:
    """The migrations that fit the filters, as CSV; that somebody took them is recorded."""
    form = SearchForm(request.user, request.GET)
    if not form.is_valid():
        raise BadRequest("A filter cannot be understood, so nothing was exported.")
    Event.append("history.export", actor=request.user, data={"filters": form.wanted()})
    name = f"volmig-migrations-{timezone.now():%Y%m%d-%H%M%S}.csv"
    told = {"Content-Disposition": f'attachment; filename="{name}"'}
    rows = narrowed(Job.objects.visible_to(request.user), form)
    return StreamingHttpResponse(stream(rows), content_type="text/csv; charset=utf-8", headers=told)
