"""Operations on migrations, their approvals and what they leave."""

import hashlib
from typing import Annotated, Any, Literal

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from ninja import Header, Path, Query, Router, Status

from hosts.models import Hypervisor, Instance, LogicalVolume, VolumeGroup
from jobs.api import schemas
from jobs.drift import ABOUT, ask_anew, recent_for, rows_for, scans_queued
from jobs.models import Approval, Footprint, Job, Submission
from jobs.models.footprint import BULKY
from jobs.web.evidence import archive
from jobs.web.forms import ConsentForm, ExtendForm, MigrationForm, RateForm
from jobs.web.history import ORDERS, SearchForm, narrowed
from volmig.accounts.roles import needs
from volmig.api import schemas as api_schemas
from volmig.api.etags import match, tagged
from volmig.api.lists import Edge, following
from volmig.api.problems import checked
from volmig.api.schemas import Day, Key, Number, Words
from volmig.paging import page
from volmig.record.models import Event

router = Router(tags=["Migrations"])
checking = Router(tags=["Migrations"])
around = Router(tags=["Approvals and leftovers"])
KEY: Any = Header(None, alias="Idempotency-Key")  # type: ignore[type-arg]
Thing = Annotated[Literal["remove", "strike"], Path()]


class Search(Edge):
    """Filters as those of the history."""

    q: Words = ""
    host: Words = ""
    person: Words = ""
    status: Words = ""
    since: Day = ""
    until: Day = ""
    sort: Literal["", "newest", "oldest", "name", "name-down", "largest", "smallest", "ended"] = ""


assert set(Search.model_fields["sort"].annotation.__args__) == {"", *ORDERS}  # type: ignore[union-attr]  # noqa: S101


@router.get("", response=schemas.Jobs, summary="List migrations")
@needs("view")
def jobs(request: HttpRequest, wanted: Query[Search]) -> Any:
    """Newest first unless `sort` says otherwise. `q` matches the beginning of words, `host` is a hypervisor's name,
    `since` and `until` are days (2026-11-26)."""
    sent = wanted.dict(exclude={"host"})
    if wanted.host:
        seen = Hypervisor.objects.visible_to(request.user)
        sent["host"] = seen.filter(name=wanted.host).values_list("pk", flat=True).first() or 0
    form = checked(SearchForm(request.user, sent))
    listed = narrowed(Job.objects.visible_to(request.user).with_names().defer(*BULKY), form)
    found = page(listed, form.order, request.GET, wanted.limit)
    return {"items": [schemas.JobLine.of(row) for row in found], "next": following(request, found)}


@router.post("", response={200: schemas.Job, 201: schemas.Job}, summary="Request a migration")
@needs("submit")
def submit(
    request: HttpRequest,
    response: HttpResponse,
    wanted: schemas.NewJob,
    idempotency_key: Key | None = KEY,
) -> Any:
    """Checks and plans it, and with `start` starts it if all checks pass.

    With `Idempotency-Key` the same request makes one migration however often it is sent: 201 the first time, 200 with
    the same migration from then on. The same key with another request is refused.
    """
    return asked(request, response, wanted, wanted.start, idempotency_key)


@checking.post("/preflight", response={200: schemas.Job, 201: schemas.Job}, summary="Check and plan, without running")
@needs("submit")
def preflight(
    request: HttpRequest,
    response: HttpResponse,
    wanted: schemas.Wish,
    idempotency_key: Key | None = KEY,
) -> Any:
    """Creates a migration that is checked and planned but not started: read its `plan`, then start or cancel it. Until
    then it reserves its volume and its instance."""
    return asked(request, response, wanted, False, idempotency_key)


def asked(request: HttpRequest, response: HttpResponse, wanted: schemas.Wish, start: bool, key: str | None) -> Any:
    """Submits once per Idempotency-Key: 201 with a new migration, 200 with the one that the key made."""
    user: Any = request.user

    def make() -> Job:
        form = checked(MigrationForm(user, chosen(user, wanted)), rate="rate_mib")
        return Job.objects.submit(user, **form.wanted(), start=start)

    if key:
        digest = hashlib.sha256(f"{start}\n{wanted.model_dump_json()}".encode()).hexdigest()
        made, new = Submission.objects.once(user, key, digest, make)
    else:
        made, new = make(), True
    shown = schemas.Job.read(found(request, "view", made.pk), user)
    response["Location"] = f"/api/v1/jobs/{made.pk}"
    return Status(201 if new else 200, tagged(request, response, shown))


def chosen(user: Any, wanted: schemas.Wish) -> dict[str, Any]:
    """What the page's form would send: keys in place of names, 0 for a name that nothing (any more) has."""
    group, _, name = wanted.volume.partition("/")
    volumes = LogicalVolume.objects.visible_to(user).filter(
        volume_group__hypervisor__name=wanted.source, volume_group__name=group, name=name
    )
    instances = Instance.objects.visible_to(user).filter(uuid=str(wanted.instance), hypervisor__retired_at=None)
    if wanted.destination:
        instances = instances.filter(hypervisor__name=wanted.destination)
    relays = VolumeGroup.objects.visible_to(user).filter(hypervisor__name=wanted.relay, name=wanted.relay_vg)
    keys = list(instances.values_list("pk", flat=True)[:2])
    return {
        "volume": volumes.values_list("pk", flat=True).first() or 0,
        "disk": f"{keys[0] if len(keys) == 1 else 0}/{wanted.disk}",
        "relay": relays.values_list("pk", flat=True).first() or 0,
        "ticket": wanted.ticket,
        "rate": wanted.rate_mib and round(wanted.rate_mib, 1),
        "rollback_minutes": wanted.rollback_minutes,
    }


def found(request: HttpRequest, verb: str, number: int) -> Job:
    """The migration, if the person may use this verb on it; Http404 or PermissionDenied otherwise."""
    job: Job = Job.objects.with_names().with_runs().find(request.user, verb, pk=number)
    return job


@router.get("/{number}", response={200: schemas.Job, 304: None}, summary="Show a migration")
def job(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Its ETag changes with its status, its requests and its allowed actions, not with its progress."""
    return tagged(request, response, schemas.Job.read(found(request, "view", number), request.user))


@router.get("/{number}/progress", response={200: schemas.Progress, 304: None}, summary="Show its progress")
def progress(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """For polling, at most once a second: send the ETag with If-None-Match; 304 means that nothing has changed."""
    return tagged(request, response, schemas.Progress.of(found(request, "view", number)))


@router.get("/{number}/plan", response={200: schemas.Plan, 304: None}, summary="Show its checks and plan")
def plan(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """The checks with their findings, the steps with their commands, and the hash of both."""
    return tagged(request, response, schemas.Plan.of(found(request, "view", number)))


@router.get("/{number}/events", response=api_schemas.Events, summary="List its events")
def events(request: HttpRequest, number: Number, wanted: Query[Edge]) -> Any:
    """Newest first."""
    listed = Event.objects.of_job(found(request, "view", number).pk)
    shown = page(listed, "-seq", request.GET, wanted.limit, key="seq")
    return {"items": [api_schemas.Event.of(row) for row in shown], "next": following(request, shown)}


ZIP = {"responses": {200: {"description": "A zip", "content": {"application/zip": {"schema": {"type": "string"}}}}}}


@router.get("/{number}/evidence", summary="Download its evidence", openapi_extra=ZIP)
def evidence(request: HttpRequest, number: Number) -> HttpResponse:
    """The same archive as on its page; the audit log notes the download."""
    row = found(request, "view", number)
    Event.append("evidence.export", actor=request.user, object=str(row))
    told = {"Content-Disposition": f'attachment; filename="volmig-migration-{number}.zip"'}
    return HttpResponse(archive(row), content_type="application/zip", headers=told)


@router.get("/{number}/approvals", response=schemas.Approvals, summary="List its approval requests")
def its_approvals(request: HttpRequest, number: Number) -> Any:
    """All of them, also void and used ones."""
    row = found(request, "view", number)
    return {"items": [schemas.Wanted.of(each) for each in row.approvals.select_related("requester")]}


# Verbs


def does(request: HttpRequest, response: HttpResponse, number: int, act: Any) -> Any:
    """One verb of a migration, if it still is what If-Match says; the migration as it is then."""
    with transaction.atomic():
        job = found(request, "submit", number)
        if as_read(request, number):
            job = found(request, "submit", number)
        act(job)
    return tagged(request, response, schemas.Job.read(found(request, "view", number), request.user))


def as_read(request: HttpRequest, number: int) -> bool:
    """Locks the migration and goes on only while it is what If-Match says; false, and no lock, without one."""
    if not request.headers.get("If-Match"):
        return False
    Job.objects.select_for_update().only("pk").filter(pk=number).first()
    match(request, schemas.Job.read(found(request, "view", number), request.user))
    return True


@router.post("/{number}/start", response=schemas.Job, summary="Start a planned migration")
def start(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Only once it is planned. Copies beside the live disk, then requests approval."""
    return does(request, response, number, lambda job: job.start(request.user))


@router.post("/{number}/cancel", response=schemas.Job, summary="Cancel it")
def cancel(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Stops at the next safe point and removes everything created so far."""
    return does(request, response, number, lambda job: job.cancel(request.user))


@router.post("/{number}/resume", response=schemas.Job, summary="Resume a halted migration")
def resume(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Checks the halted step again and continues if it finds the expected state."""
    return does(request, response, number, lambda job: job.resume(request.user))


@router.post("/{number}/try-again", response=schemas.Job, summary="Retry now")
def try_again(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Does not wait for the next automatic try; completed steps are kept."""
    return does(request, response, number, lambda job: job.try_again(request.user))


@router.post("/{number}/confirm", response=schemas.Job, summary="Confirm the data")
def confirm(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Ends the trial. Someone has to have checked the data in the instance."""
    return does(request, response, number, lambda job: job.confirm(request.user))


@router.post("/{number}/rate", response=schemas.Job, summary="Limit the bandwidth of later copy passes")
def rate(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Rate) -> Any:
    """In MiB/s; null for the relay's own limit."""
    form = checked(RateForm({"rate": told.rate_mib and round(told.rate_mib, 1)}), rate="rate_mib")
    return does(request, response, number, lambda job: job.set_rate(request.user, form.rate_in_bytes()))


@router.post("/{number}/rollback", response=schemas.Job, summary="Request a rollback, or use a pre-approved one")
def rollback(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Rollback) -> Any:
    """With `now` the pre-approved one, which only the requester may use."""
    user = request.user
    if told.now:
        return does(request, response, number, lambda job: job.roll_back(user))
    return does(request, response, number, lambda job: job.ask("rollback", user))


@router.post("/{number}/purge", response=schemas.Job, summary="Request the purge of the unused disk")
def purge(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Another person has to approve it."""
    return does(request, response, number, lambda job: job.ask("purge", request.user))


@router.post("/{number}/rehearse", response=schemas.Job, summary="Rehearse the backup")
def rehearse(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Reads the kept disk completely and compares it with its recorded data; changes nothing."""
    return does(request, response, number, lambda job: job.rehearse(request.user))


@router.post("/{number}/extend", response=schemas.Job, summary="Keep the unused disk longer")
def extend(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Longer) -> Any:
    """Until the end of a day at most a year from now, with a reason; voids a request for its purge."""
    form = checked(ExtendForm(told.dict()))
    return does(request, response, number, lambda job: job.extend(request.user, form.until(), told.reason))


# Consent


def asked_of(request: HttpRequest, number: int, kind: str | None) -> Approval:
    """The migration's latest approval request, or refuses with `not-found`; the row comes with its job."""
    rows = Approval.objects.select_related("job__source", "job__relay", "job__destination", "requester", "last_editor")
    named = rows.filter(kind=kind) if kind else rows
    return named.order_by("-pk").find(request.user, "approve", job=number)


def decides(request: HttpRequest, response: HttpResponse, number: int, kind: str | None, act: Any) -> Any:
    """One verb of an approval request, if the migration still matches If-Match."""
    with transaction.atomic():
        asked_of(request, number, kind)  # who may not decide is told so first
        as_read(request, number)
        act(asked_of(request, number, kind))
    return tagged(request, response, schemas.Job.read(found(request, "view", number), request.user))


@router.post("/{number}/approve", response=schemas.Job, summary="Approve")
def approve(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Consent) -> Any:
    """Needs a token with this scope, created within the last 15 minutes."""

    def act(asked: Approval) -> None:
        sent = {"digest": told.digest, "tail": told.instance, "reason": told.reason}
        form = checked(ConsentForm(sent, asked, "approve"), tail="instance")
        asked.approve(request.user, form.cleaned_data["digest"], form.cleaned_data["reason"])

    return decides(request, response, number, told.kind, act)


@router.post("/{number}/reject", response=schemas.Job, summary="Reject")
def reject(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Reason) -> Any:
    """Needs a token with this scope, created within the last 15 minutes. A rejected swap is undone."""
    return decides(request, response, number, told.kind, lambda asked: asked.reject(request.user, told.reason))


@router.post("/{number}/withdraw", response=schemas.Job, summary="Withdraw your approval")
def withdraw(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Reason) -> Any:
    """As long as the request was not used."""
    return decides(request, response, number, told.kind, lambda asked: asked.withdraw(request.user, told.reason))


@around.get("/approvals", response=schemas.Approvals, summary="List requests awaiting you")
@needs("view")
def inbox(request: HttpRequest) -> Any:
    """Requests that you may decide and have not decided yet; needs a token that may approve."""
    listed = Approval.objects.inbox(request.user).select_related("job", "requester").order_by("created_at")
    return {"items": [schemas.Wanted.of(row) for row in listed]}


@around.get("/approvals/{number}", response=schemas.Approval, summary="Show what an approval binds")
def approval(request: HttpRequest, number: Number) -> Any:
    """Question, proofs, warnings and commands, as on its page, and the digest to approve with."""
    rows = Approval.objects.select_related("job__source", "job__relay", "job__destination", "requester", "last_editor")
    return schemas.Approval.read(rows.find(request.user, "view", pk=number), request.user)


# What is left


@around.get("/backups", response=schemas.Backups, summary="List kept disks")
@needs("view")
def backups(request: HttpRequest, wanted: Query[Edge], due: bool = False) -> Any:
    """Oldest migrations first; with `due` only those that have expired."""
    kept = Footprint.objects.backups(request.user)
    shown = page(kept.due() if due else kept, "pk", request.GET, wanted.limit)
    return {"items": [schemas.Backup.of(row) for row in shown], "next": following(request, shown)}


@around.get("/leftovers", response=schemas.Leftovers, summary="Show drift: inventory against hypervisor reports")
@needs("view")
def leftovers(request: HttpRequest, all: bool = False) -> Any:  # noqa: A002 - a word of the address
    """Only differences; with `all` also what is in use."""
    hosts = Hypervisor.objects.visible_to(request.user).active()
    compared = [row for row in rows_for(request.user, recent_for(request.user)) if all or row.found.verdict != "needed"]
    told = list(hosts.order_by().values_list("scan__began_at", flat=True))
    at = min((each for each in told if each), default=None) if all_told(told) else None
    return {"items": [schemas.Leftover.of(row) for row in compared], "asked_at": at}


def all_told(times: list[Any]) -> bool:
    """True when every hypervisor was scanned at least once."""
    return bool(times) and None not in times


@around.post("/leftovers/scan", response={202: api_schemas.Done}, summary="Scan all hypervisors")
@needs("view")
def scan(request: HttpRequest) -> Any:
    """Hypervisors that were scanned a moment ago are left out; `detail` says how many scans are queued."""
    return Status(202, {"detail": scans_queued(ask_anew(request.user))})


@around.post(
    "/hypervisors/{number}/leftovers/{verb}", response={202: api_schemas.Done}, summary="Remove, or mark as gone"
)
def leftover(request: HttpRequest, number: Number, verb: Thing, told: schemas.About) -> Any:
    """`remove` checks an object again and removes it; `strike` marks a missing one as gone."""
    host = Hypervisor.objects.find(request.user, "submit", pk=number)
    if verb not in ABOUT:
        raise Http404
    return Status(202, {"detail": ABOUT[verb](request.user, host, told.kind, told.name, told.job, told.identity)})
