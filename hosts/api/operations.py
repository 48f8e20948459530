"""Operations on what migrations run between: hypervisors and their volumes, shares, clouds, instances."""

from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from ninja import Router, Status

from hosts.api import schemas
from hosts.clouds import FOUND
from hosts.forms import TYPED, EditForm, PinForm, RegisterForm, RetireForm
from hosts.models import Cloud, Hypervisor, Instance, LogicalVolume, Server, Share
from hosts.remote.host import fingerprint
from hosts.views import with_hypervisors
from volmig.accounts.models import Team
from volmig.accounts.roles import needs
from volmig.api.auth import fresh
from volmig.api.etags import match, tagged
from volmig.api.problems import checked
from volmig.api.schemas import Done, Number, Words
from volmig.queue import ask

router = Router(tags=["Hypervisors"])
around = Router(tags=["Shares, clouds and instances"])


def full(rows: Any) -> Any:
    """Hypervisors with everything that their documents contain, in a fixed number of queries."""
    return rows.with_seen().select_related("cloud", "team", "bastion").prefetch_related("data_addresses")


def found(request: HttpRequest, verb: str, number: int) -> Hypervisor:
    """The hypervisor, if the person may use this verb on it; Http404 or PermissionDenied otherwise."""
    row: Hypervisor = full(Hypervisor.objects).find(request.user, verb, pk=number)
    return row


@router.get("", response=schemas.Hypervisors, summary="List hypervisors")
@needs("view")
def hypervisors(request: HttpRequest, name: Words = "") -> Any:
    """Those of your teams that are not retired; `name` picks one."""
    rows = full(Hypervisor.objects.visible_to(request.user).active())
    return {"items": [schemas.Hypervisor.of(row) for row in (rows.filter(name=name) if name else rows)]}


@router.post("", response={201: schemas.Hypervisor}, summary="Register a hypervisor")
@needs("administer")
def register(request: HttpRequest, told: schemas.NewHypervisor) -> Any:
    """A worker then reads its host key: poll the hypervisor until it has `offered_fingerprint`, compare that on the
    machine itself, then pin it."""
    form = checked(RegisterForm(columns(told)), limit_mib="limit_mib")
    return Status(201, schemas.Hypervisor.of(found(request, "view", form.register(request.user).pk)))


def columns(told: schemas.Registration) -> dict[str, Any]:
    """What the page's form would send: keys in place of names, 0 for a name that nothing has."""
    values: dict[str, Any] = told.dict()
    kinds: dict[str, Any] = {"bastion": Hypervisor.objects.active(), "cloud": Cloud.objects, "team": Team.objects}
    for kind, rows in kinds.items():
        if values[kind]:
            values[kind] = rows.filter(name=values[kind]).values_list("pk", flat=True).first() or 0
    if told.team is None:
        values["team"] = Team.objects.order_by("pk").values_list("pk", flat=True).first()
    return values


@router.get("/{number}", response={200: schemas.Hypervisor, 304: None}, summary="Show a hypervisor")
def hypervisor(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    return tagged(request, response, schemas.Hypervisor.of(found(request, "view", number)))


@router.get("/{number}/registration", response={200: schemas.Registration, 304: None}, summary="Show its registration")
def registration(request: HttpRequest, response: HttpResponse, number: Number) -> Any:
    """Returns the ETag that a change needs."""
    return tagged(request, response, schemas.Registration.of(active(request, number)))


def active(request: HttpRequest, number: int) -> Hypervisor:
    """The same for administrators, without retired hypervisors."""
    return full(Hypervisor.objects.active()).find(request.user, "administer", pk=number)  # type: ignore[no-any-return]


@router.put("/{number}/registration", response=schemas.Registration, summary="Change its registration")
def change(request: HttpRequest, response: HttpResponse, number: Number, told: schemas.Registration) -> Any:
    """Needs If-Match, and a token that is at most 15 minutes old. The pinned key stays: volmig refuses another
    machine at a new address and quarantines the hypervisor."""
    with transaction.atomic():
        active(request, number)  # who may not change it is told so first
        fresh(request)
        Hypervisor.objects.select_for_update().only("pk").filter(pk=number).first()  # of two that read the same, one
        host = active(request, number)
        match(request, schemas.Registration.of(host), needed=True)
        form = checked(EditForm(columns(told), instance=active(request, number)))  # it writes into its own instance
        form.change(host, request.user)
    return tagged(request, response, schemas.Registration.of(active(request, number)))


@router.post("/{number}/pin", response=schemas.Hypervisor, summary="Pin its host key")
def pin(request: HttpRequest, number: Number, told: schemas.Pin) -> Any:
    """Trusts the offered key if it has this fingerprint, and ends a quarantine. Needs a token that is at most
    15 minutes old."""
    host = found(request, "administer", number)
    fresh(request)
    offered = fingerprint(host.offered_key) if host.offered_key else ""
    shown = told.fingerprint.strip()
    form = PinForm({"shown": shown, "typed": shown[-TYPED:]}, offered=offered)
    checked(form, shown="fingerprint", typed="fingerprint").pin(host, request.user)
    return schemas.Hypervisor.of(found(request, "view", number))


@router.post("/{number}/offer", response={202: Done}, summary="Read its host key again")
def offer(request: HttpRequest, number: Number) -> Any:
    said = found(request, "administer", number).ask_key(request.user)
    return Status(
        202, {"detail": said or "The host key is being read. Poll the hypervisor until it has an offered fingerprint."}
    )


@router.post("/{number}/refresh", response={202: Done}, summary="Refresh it")
def refresh(request: HttpRequest, number: Number) -> Any:
    """A refresh that is queued, running or just ended is not queued again; `detail` says so."""
    said = ask("hosts.tasks.refresh", found(request, "view", number).pk, by=request.user)
    return Status(202, {"detail": said or "It is being refreshed. `seen_at` shows when the data is new."})


@router.post("/{number}/retire", response=schemas.Hypervisor, summary="Retire it")
def retire(request: HttpRequest, number: Number, told: schemas.Retire) -> Any:
    host = found(request, "administer", number)
    checked(RetireForm(told.dict(), host))
    host.retire(request.user)
    return schemas.Hypervisor.of(host)


@router.get("/{number}/volumes", response=schemas.Volumes, summary="List its logical volumes")
def volumes(request: HttpRequest, number: Number) -> Any:
    """As last reported."""
    host = found(request, "view", number)
    rows = LogicalVolume.objects.filter(volume_group__hypervisor=host).select_related("volume_group__hypervisor")
    return {"items": [schemas.Volume.of(row) for row in rows.order_by("volume_group__name", "name")]}


@around.get("/volumes", response=schemas.Volumes, summary="Find logical volumes")
@needs("view")
def find_volumes(request: HttpRequest, q: Words = "") -> Any:
    """By part of the name, which contains the instance's id with Nova; the first 100."""
    rows = LogicalVolume.objects.visible_to(request.user).filter(volume_group__hypervisor__retired_at=None)
    named = rows.filter(name__icontains=q) if q else rows
    order = ("volume_group__hypervisor__name", "volume_group__name", "name")
    listed = named.select_related("volume_group__hypervisor").order_by(*order)[:FOUND]
    return {"items": [schemas.Volume.of(row) for row in listed]}


@around.get("/shares", response=schemas.Shares, summary="List shares")
@needs("view")
def shares(request: HttpRequest) -> Any:
    """Those that your teams' hypervisors mount; `held` is reserved by migrations, `kept` is used by disks that wait
    for their purge."""
    rows = Share.objects.visible_to(request.user).with_figures(request.user)
    return {"items": [schemas.Share.of(row) for row in rows]}


@around.get("/clouds", response=schemas.Clouds, summary="List clouds")
@needs("administer")
def clouds(request: HttpRequest) -> Any:
    return {"items": [schemas.Cloud.of(row) for row in Cloud.objects.prefetch_related("hypervisors")]}


def ask_cloud(request: HttpRequest, number: int, task: str) -> Any:
    """Queues a task for a cloud that Nova controls; 202 with a sentence."""
    said = ask(task, get_object_or_404(Cloud.objects.with_nova(), pk=number).pk, by=request.user)
    return Status(202, {"detail": said or "The request was queued. `seen_at` shows when the data is new."})


@around.post("/clouds/{number}/check", response={202: Done}, summary="Check a cloud's credential")
@needs("administer")
def check_cloud(request: HttpRequest, number: Number) -> Any:
    return ask_cloud(request, number, "hosts.tasks.check_cloud")


@around.post("/clouds/{number}/refresh", response={202: Done}, summary="Read a cloud's instances again")
@needs("administer")
def refresh_cloud(request: HttpRequest, number: Number) -> Any:
    return ask_cloud(request, number, "hosts.tasks.refresh_cloud")


@around.get("/servers", response=schemas.Servers, summary="Find instances")
@needs("view")
def servers(request: HttpRequest, q: Words = "") -> Any:
    """By name, id, project or address, as last reported; at most 100 of each source."""
    rows = list(Server.objects.visible_to(request.user).search(q).defer("words").select_related("cloud")[:FOUND])
    seen = Instance.objects.visible_to(request.user).filter(hypervisor__retired_at=None).select_related("hypervisor")
    mine = list(seen.filter(uuid__in=[row.uuid for row in rows]))
    told = [
        schemas.Server.in_nova(
            each["server"],
            [here for here in mine if here.uuid == each["server"].uuid],
            each["hypervisor"].name if each["hypervisor"] else None,
        )
        for each in with_hypervisors(rows)
    ]
    elsewhere = seen.exclude(uuid__in=Server.objects.values("uuid")).search(q)[:FOUND]
    return {"items": [*told, *(schemas.Server.in_libvirt(row) for row in elsewhere)]}
