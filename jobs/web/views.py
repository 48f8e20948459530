"""Pages of migrations and approvals: find and authorise first, call the model's verb, show the answer."""

import datetime as dt
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.core.exceptions import BadRequest
from django.db.models import Count, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.views.decorators.http import require_GET, require_http_methods

from hosts.models import Hypervisor, Scan, Server, Share, VolumeGroup
from jobs.drift import ABOUT, Row, ask_anew, drift, rows_for, scans_queued
from jobs.engine import states
from jobs.models import Approval, Footprint, Job, Policy, Refused, Removal
from jobs.models.footprint import BULKY
from jobs.models.job import JobQuerySet
from jobs.models.plans import plans
from jobs.web import attention
from jobs.web.evidence import archive
from jobs.web.forms import MIB, Choices, DecisionForm, ExtendForm, MigrationForm, RateForm
from jobs.web.history import SearchForm, narrowed, stream
from jobs.web.review import Review
from volmig import incarnation
from volmig.accounts import factors
from volmig.accounts.roles import may, needs, roles_of, why_not
from volmig.accounts.step_up import typed_at
from volmig.paging import page
from volmig.posting import posted_from
from volmig.record.models import Event
from volmig.refusals import Sentence

PAGE = 50
LISTED = 25  # migrations of each kind on the overview; the history has all of them
TABS = {"plan": "Plan", "log": "Log", "evidence": "Evidence", "approvals": "Approvals", "events": "Events"}
WAITING = {"planned", "awaiting_approval", "on_trial"}  # nothing moves until a person does
MOVES = Q(halt_reason="") & ~Q(status__in=WAITING)


def chrome(request: HttpRequest) -> dict[str, Any]:
    """What every page's frame shows: who looks, what waits for them, the colours that they chose."""
    theme = request.COOKIES.get("theme", "")
    mode = incarnation.read_only()
    colours = {"theme": theme if theme in ("light", "dark") else "", "read_only": mode}
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return colours
    found: Any = SimpleLazyObject(lambda: attention.items(user, mode))  # not every part of a page shows it
    words = "superuser" if user.is_superuser else ", ".join(sorted(roles_of(user))) or "no role yet"
    return colours | {
        "attention": SimpleLazyObject(lambda: [item for item in found if not item.resolved]),
        "resolved": SimpleLazyObject(lambda: [item for item in found if item.resolved]),
        "nobody_approves": settings.APPROVERS == 0,
        "waiting_approvals": SimpleLazyObject(lambda: Approval.objects.inbox(user).count()),
        "role_words": words,
        **{f"may_{verb}": may(user, verb) for verb in ("submit", "approve", "administer", "audit")},
    }


@require_GET
@needs("view")
def overview(request: HttpRequest) -> HttpResponse:
    """Is anything wrong, and must I act?"""
    jobs = Job.objects.visible_to(request.user)
    active = jobs.active().order_by("-pk")
    # Only what moves shows its journal, and the time left by its plan. Of hundreds the history shows the rest.
    moving, waiting = active.filter(MOVES), active.filter(halt_reason="", status__in=WAITING)
    running = list(moving.with_names().with_runs().defer(*BULKY)[:LISTED])
    plans.give(running)
    counted = active.order_by().aggregate(
        moving=Count("pk", distinct=True, filter=MOVES),
        waiting=Count("pk", distinct=True, filter=Q(halt_reason="", status__in=WAITING)),
    )
    hypervisors = Hypervisor.objects.visible_to(request.user).active()
    seen = frozenset(hypervisors.order_by().values_list("pk", flat=True))
    inbox = list(Approval.objects.inbox(request.user).with_names().order_by("created_at"))
    return show(
        request,
        "jobs/overview.html",
        "jobs/_overview.html",
        {
            "running": running,
            "running_count": counted["moving"],
            "waiting": list(waiting.select_related("requester").defer(*BULKY)[:LISTED]),
            "waiting_count": counted["waiting"],
            "inbox": inbox,
            "waiting_approvals": len(inbox),
            "failed": failed(jobs),
            "groups": relay_groups(hypervisors),
            "shares": Share.objects.visible_to(request.user).with_figures(request.user).prefetch_related(None),
            "due": Footprint.objects.backups(request.user).due().order_by("keep_until")[:8],
            "policies": Policy.objects.with_windows(hypervisors),
            "hypervisors": len(seen),
            "drifting": drift.get(seen).findings,
            "forgotten_locks": forgotten_locks() if may(request.user, "administer") else [],
            "any_job": bool(counted["moving"] or counted["waiting"]) or jobs.exists(),
        },
    )


def failed(jobs: JobQuerySet) -> JobQuerySet:
    """What came to nothing lately; by the keys of what ended lately, which are few."""
    lately = Job.objects.filter(ended_at__gte=timezone.now() - dt.timedelta(days=14)).order_by()
    rows = jobs.filter(pk__in=lately.values("pk"), outcome__in=["failed", "blocked", "rejected"])
    return rows.defer(*BULKY).order_by("-ended_at")[:8]


def forgotten_locks() -> list[Server]:
    """Instances that, as Nova last told, are locked by volmig although no migration works on them (any more)."""
    locked = Server.objects.filter(locked=True, locked_reason__startswith="volmig:")
    servers = list(locked.select_related("cloud").defer("words"))
    if not servers:  # as nearly always; of both in one query, planning alone took longer
        return []
    jobs = Job.objects.filter(instance_id__in={server.uuid for server in servers}).order_by()
    jobs = jobs.filter(Q(status__in=states.ACTIVE) | Q(ended_at__gte=min(server.seen_at for server in servers)))
    told = defaultdict(list)
    for instance, status, ended_at in jobs.values_list("instance_id", "status", "ended_at"):
        told[instance].append(None if status in states.ACTIVE else ended_at)
    return [server for server in servers if not any(at is None or at >= server.seen_at for at in told[server.uuid])][
        :20
    ]


def relay_groups(hypervisors: QuerySet[Hypervisor]) -> QuerySet[VolumeGroup]:
    """Volume groups on hypervisors that mount a share, so could relay, with what jobs hold of them."""
    relays = hypervisors.exclude(mounts=None)
    rows = VolumeGroup.objects.with_held().filter(hypervisor__in=relays)
    shown = rows.select_related("hypervisor").only("name", "size", "free", "seen_at", "hypervisor__name")
    return shown.order_by("hypervisor__name", "name")


def show(request: HttpRequest, page: str, part: str, values: dict[str, Any]) -> HttpResponse:
    """The whole page, or for htmx only the part that it fetches again."""
    partial = request.headers.get("HX-Request") == "true"
    response = render(request, part if partial else page, values)
    response["Vary"] = "HX-Request"
    return response


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


@require_http_methods(["GET", "POST"])
def extend(request: HttpRequest, number: int) -> HttpResponse:
    """Until when the disk that is not in use is kept, and why; what was typed stays when it is refused."""
    job = Job.objects.with_names().find(request.user, "submit", pk=number)
    form = ExtendForm(request.POST or None)
    if request.method == "POST" and form.is_valid() and keep_longer(request, job, form):
        return redirect("jobs:job", number)
    status = 422 if form.errors else 200
    return render(request, "jobs/extend.html", {"job": job, "form": form, "kept": job.backup()}, status=status)


def keep_longer(request: HttpRequest, job: Job, form: ExtendForm) -> bool:
    """Hand it to the model; its refusals come back as errors of the form."""
    try:
        job.extend(request.user, form.until(), form.cleaned_data["reason"])
    except Refused as refused:
        for sentence in refused.sentences:
            form.add_error(None, sentence)
        return False
    messages.success(request, "It is kept longer, and that is recorded.")
    return True


@require_GET
@needs("view")
def backups(request: HttpRequest) -> HttpResponse:
    """Every disk that a swap left over, what is due first; the space that they hold on each share."""
    rows = Footprint.objects.backups(request.user)
    clocked = rows.filter(keep_until__lte=timezone.now()) if "due" in request.GET else rows.exclude(keep_until=None)
    values = {
        "page": page(clocked, "keep_until", request.GET, PAGE),
        "only_due": "due" in request.GET,
        "on_trial": [] if "due" in request.GET else rows.filter(keep_until=None).order_by("pk"),
        "shares": Share.objects.visible_to(request.user).with_backups(request.user),
    }
    return show(request, "jobs/backups.html", "jobs/_backups.html", values)


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


@require_GET
@needs("view")
def approvals(request: HttpRequest) -> HttpResponse:
    """What waits for this person, what waits for others, and what was decided lately."""
    rows = Approval.objects.visible_to(request.user).with_names()
    waiting, undecided = Approval.objects.inbox(request.user), Approval.objects.undecided().values("pk")
    mine = rows.filter(pk__in=waiting.values("pk")).order_by("created_at")
    others = rows.filter(pk__in=undecided).exclude(pk__in=waiting.values("pk")).order_by("created_at")
    closed = rows.exclude(pk__in=undecided).prefetch_related("decisions__person").order_by("-pk")[:PAGE]
    return show(
        request, "jobs/approvals.html", "jobs/_approvals.html", {"mine": mine, "others": others, "closed": closed}
    )


@require_GET
@needs("view")
def count(request: HttpRequest) -> HttpResponse:
    """How much waits for this person, for the navigation, which asks again when something was asked or decided."""
    return render(request, "jobs/_count.html", {"waiting_approvals": Approval.objects.inbox(request.user).count()})


@require_GET
@needs("view")
def attention_count(request: HttpRequest) -> HttpResponse:
    """How much needs attention, for the menu and the title of every page."""
    return render(request, "jobs/_attention_count.html")


@require_http_methods(["GET", "POST"])
def approval(request: HttpRequest, pk: int) -> HttpResponse:
    """Everything a yes stands on, and the form to say it."""
    rows = Approval.objects.select_related("job__source", "job__relay", "job__destination", "requester", "last_editor")
    asked = rows.find(request.user, "approve" if request.method == "POST" else "view", pk=pk)
    verdict = request.POST.get("verdict", "")
    if verdict == "withdraw":
        return withdraw(request, asked)
    form = DecisionForm(request, asked)
    if request.method == "POST" and form.is_valid() and decide(request, asked, verdict, form):
        return redirect("jobs:job", asked.job_id)
    values = {
        "asked": asked,
        "job": asked.job,
        "form": form,
        "why_not": asked.why_not(request.user),
        "review": Review(asked),
        "needs_factor": may(request.user, "approve") and factors.is_missing(request.user),
        "mine": asked.consents().filter(person_id=request.user.pk).exists() and asked.state in ("open", "approved"),
    }
    if typed := typed_at(request):
        values["typed_at"] = dt.datetime.fromtimestamp(typed, dt.UTC)
    response = show(request, "jobs/approval.html", "jobs/_request.html", values)
    response.status_code = 422 if form.errors else 200
    return response


def withdraw(request: HttpRequest, asked: Approval) -> HttpResponse:
    """Take one's own yes back; that is safe, so no password is asked for."""
    try:
        asked.withdraw(request.user, request.POST.get("reason", ""))
        messages.success(request, "Your consent is withdrawn, and that is recorded.")
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("jobs:approval", asked.pk)


def decide(request: HttpRequest, asked: Approval, verdict: str, form: DecisionForm) -> bool:
    """Say yes or no; refusals come back as errors of the form."""
    try:
        if verdict == "approve":
            asked.approve(request.user, form.cleaned_data["digest"], form.cleaned_data["reason"])
        elif verdict == "reject":
            asked.reject(request.user, form.cleaned_data["reason"])
        else:
            raise Refused(Sentence("no-verdict", "Say whether you approve or reject."))
    except Refused as refused:
        for sentence in refused.sentences:
            form.add_error(None, sentence)
        return False
    return True


VERDICTS = {
    "left": ("Left over", "The ledger has it and it is there, although nothing needs it any more."),
    "other": ("Another one under the same name", "What is there is not what the ledger recorded. It is never touched."),
    "stranger": ("Not in the ledger", "It carries volmig's marker, and this volmig knows nothing of it."),
    "gone": ("Gone", "The ledger has it, and it is not there any more."),
    "needed": ("In use", "The ledger has it, it is there, and it has to be."),
}
IN_USE_SHOWN = 200


@require_GET
@needs("view")
def leftovers(request: HttpRequest) -> HttpResponse:
    """The ledger against reality, as every hypervisor last told."""
    hypervisors = Hypervisor.objects.visible_to(request.user).active()
    found = rows_for(request.user)
    told = {verdict: [row for row in found if row.found.verdict == verdict] for verdict in VERDICTS}
    lately = timezone.now() - dt.timedelta(days=2)
    mine = Removal.objects.filter(hypervisor__in=hypervisors, job__in=Job.objects.visible_to(request.user))
    removals = mine.filter(Q(ended_at=None) | Q(ended_at__gte=lately))
    values = {
        "sections": [
            {
                "verdict": verdict,
                "name": name,
                "means": means,
                "rows": [choice(row, request.user) for row in told[verdict][:IN_USE_SHOWN]],
                "count": len(told[verdict]),
            }
            for verdict, (name, means) in VERDICTS.items()
        ],
        "drifting": sum(row.found.drifts for row in found),
        "scans": hypervisors.select_related("scan").defer("facts", "scan__things", "scan__on_shares").order_by("name"),
        "asked": Scan.objects.filter(hypervisor__in=hypervisors).exclude(began_at=None).exists(),
        "removals": removals.select_related("hypervisor", "asked_by").order_by("-pk")[:50],
        "locks": forgotten_locks() if may(request.user, "administer") else [],
    }
    return show(request, "jobs/leftovers.html", "jobs/_leftovers.html", values)


def choice(row: Row, user: Any) -> dict[str, Any]:
    """What the page shows of a row, and what this person may do about it, or why not.

    Of hundreds of rows, so as plain values: a template takes long to look up what lies within others.
    """
    about, thing, job, host = row.about, row.thing, row.job, row.hypervisor
    why_kept, why_not_struck, verdict = row.why_kept, row.why_not_struck, row.found.verdict
    removable, strikable = not why_kept and not row.removal, not why_not_struck
    by_hand = bool(why_kept) and not row.of_others and verdict in ("stranger", "other", "left")
    looks, removes = row.hands if by_hand else ([], [])
    return {
        "kind": about.kind,
        "name": about.name,
        "place": about.place,
        "path": thing.path or about.name,
        "seen_by": thing.seen_by,
        "form": {name: getattr(thing, name) for name in ("kind", "name", "job", "identity")},
        "of_others": row.of_others,
        "job": job and {"pk": job.pk, "name": job.instance_name, "words": job.words, "url": job.get_absolute_url()},
        "host": {"pk": host.pk, "name": host.name, "url": f"/hosts/{host.pk}/"},
        "bytes": row.bytes,
        "since": row.since,
        "at": row.found.at,
        "removal": row.removal,
        "removable": removable,
        "strikable": strikable,
        "refused": " ".join(why_not(user, "submit", [host.team])) if removable or strikable else "",
        "kept": why_not_struck if verdict == "gone" else why_kept,
        "looks": looks,
        "removes": removes,
    }


@posted_from("jobs:leftovers")
@needs("view")
def scan(request: HttpRequest) -> HttpResponse:
    """Scan every hypervisor again, unless it was requested or done a moment ago."""
    try:
        queued = ask_anew(request.user)
    except Refused as refused:
        messages.error(request, str(refused))
    else:
        messages.info(request, scans_queued(queued))
    return redirect("jobs:leftovers")


@posted_from("jobs:leftovers", verbs=ABOUT)
def leftover(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """Have one thing removed, or marked as gone; which one, the form tells by kind, name, job and identity."""
    host = Hypervisor.objects.find(request.user, "submit", pk=pk)
    try:
        about = (request.POST.get(field, "") for field in ("kind", "name", "job", "identity"))
        messages.success(request, ABOUT[verb](request.user, host, *about))
    except Refused as refused:
        for sentence in refused.sentences:
            messages.error(request, sentence)
    return redirect("jobs:leftovers")
