"""Pages about hypervisors; all that they show was seen by the workers, none of them waits for a machine."""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db.models import Count, Min, Prefetch, Q
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from hosts.clouds import FOUND
from hosts.forms import CloudForm, EditForm, PinForm, RegisterForm, RetireForm
from hosts.models import (
    ANSWERED,
    Cloud,
    DataAddress,
    Hypervisor,
    Instance,
    LogicalVolume,
    Reach,
    Server,
    Share,
    site,
)
from hosts.network import RELAYS
from hosts.remote import hostctl
from hosts.remote.host import fingerprint
from hosts.remote.hostctl import pack
from hosts.remote.hostctl.facts import RELAY_PORTS
from volmig.accounts import step_up
from volmig.accounts.models import Team
from volmig.accounts.roles import may, needs
from volmig.data_dir import published_ssh_key
from volmig.posting import posted_from
from volmig.queue import ask
from volmig.refusals import Refused

HostView = Callable[[HttpRequest, Hypervisor], HttpResponse]
PkView = Callable[[HttpRequest, int], HttpResponse]
MATRIX = 24  # hypervisors, and addresses, of which each pair is shown
PARTS = {"state": "hosts/_state.html", "policy": "hosts/_policy.html", "seen": "hosts/_seen.html"}
SORTS = {"name": "name", "size": "-size", "group": "volume_group__name", "open": "-is_open", "uuid": "uuid"}


@require_GET
@needs("view")
def overview(request: HttpRequest) -> HttpResponse:
    hypervisors = Hypervisor.objects.visible_to(request.user).active().select_related("bastion", "team")
    seen = list(hypervisors.with_seen().defer("bastion__facts"))
    context = {
        "hypervisors": seen,
        "reachability": reachability(seen),
        "late": Hypervisor.objects.visible_to(request.user).lateness(),
        "shares": Share.objects.visible_to(request.user).with_figures(request.user),
        "current_hash": hostctl.source_hash(),
        "may_administer": may(request.user, "administer"),
        "several_teams": not Team.objects.is_single(),
    }
    return render(request, "hosts/list.html", context)


def reachability(hypervisors: list[Hypervisor]) -> dict[str, Any]:
    """Who reaches which data address: each port in a matrix of a few hypervisors, and counts of more.

    A matrix of 500 hypervisors would have a million ports.
    """
    if len(hypervisors) <= MATRIX:
        owners = DataAddress.objects.filter(hypervisor__in=hypervisors).select_related("hypervisor")
        columns = list(owners.order_by("hypervisor__name", "address")[: MATRIX + 1])
        if len(columns) <= MATRIX:
            return {"matrix": matrix(hypervisors, columns)}
    return {"counts": counts(hypervisors), "relays": RELAYS}


def matrix(hypervisors: list[Hypervisor], columns: list[DataAddress]) -> dict[str, Any]:
    """A row for each hypervisor, a cell for each address: each port's state, or why none was probed."""
    members, rows = site(), []
    reaches = Reach.objects.filter(hypervisor__in=hypervisors)
    found = {(each.hypervisor_id, each.address, each.port): each for each in reaches}
    probed = {(hypervisor, address) for hypervisor, address, _ in found}
    for hypervisor in hypervisors:
        cells: list[dict[str, Any]] = []
        for column in columns:
            key = hypervisor.pk, column.address
            if column.hypervisor_id == hypervisor.pk:
                cells.append({"own": True})
            elif key in probed:
                cells.append({"ports": [found.get((*key, port)) for port in RELAY_PORTS]})
            else:
                cells.append({"why": members.why_not(hypervisor.pk, column.hypervisor_id, column.address)})
        at = max((each.seen_at for each in found.values() if each.hypervisor_id == hypervisor.pk), default=None)
        rows.append({"hypervisor": hypervisor, "at": at, "cells": cells})
    return {"columns": columns, "rows": rows, "ports": RELAY_PORTS}


def counts(hypervisors: list[Hypervisor]) -> list[dict[str, Any]]:
    """For each hypervisor that is probed from: how many relays' addresses it reaches, and how many not."""
    closed = Count("address", distinct=True, filter=~Q(state__in=ANSWERED))
    rows = Reach.objects.filter(hypervisor__in=hypervisors).order_by().values("hypervisor")
    figures = rows.annotate(probed=Count("address", distinct=True), shut=closed, at=Min("seen_at"))
    found: dict[int, dict[str, Any]] = {row["hypervisor"]: dict(row) for row in figures}
    probed = [found[each.pk] | {"hypervisor": each} for each in hypervisors if each.pk in found]
    return [row | {"reached": row["probed"] - row["shut"]} for row in probed]


@require_GET
def hypervisor(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "view", pk=pk)
    sort = request.GET.get("sort", "name")
    volumes = LogicalVolume.objects.filter(volume_group__hypervisor=host).select_related("volume_group")
    context = {
        "host": host,
        "groups": host.volume_groups.with_held(),
        "volumes": volumes.order_by(SORTS.get(sort, "name"), "name"),
        "sort": sort if sort in SORTS else "name",
        "current_hash": hostctl.source_hash(),
        "fingerprint": fingerprint(host.host_key) if host.host_key else "",
        "report": host.facts.get("policy") or {},
        "may_administer": may(request.user, "administer"),
        **installation(host.user),
    }
    return render(request, PARTS.get(request.GET.get("part", ""), "hosts/hypervisor.html"), context)


def installation(user: str) -> dict[str, str]:
    """What the install commands need: the login, volmig's public key and this hostctl's hash."""
    public = "" if settings.SSH_KEY == "agent" else published_ssh_key()
    return {"login": user, "public_key": public or "PUBLIC-KEY-OF-VOLMIG", "hash": hostctl.source_hash()}


def administered(rows: Callable[[], Any] = Hypervisor.objects.active) -> Callable[[HostView], PkView]:
    """Makes a view of a hypervisor that its administrator alone gets, with a password typed within the last minutes.

    Whoever may not administer it is refused before anything else is said.
    """

    def decorate(view: HostView) -> PkView:
        @wraps(view)
        def guarded(request: HttpRequest, pk: int) -> HttpResponse:
            host = rows().find(request.user, "administer", pk=pk)
            return view(request, host) if step_up.is_fresh(request) else step_up.confirm(request)

        return guarded

    return decorate


@posted_from("hosts:hypervisor", "pk")
@administered()
def policy(request: HttpRequest, host: Hypervisor) -> HttpResponse:
    """The policy to install, with the seal key in it; the audit log has who was shown it."""
    document = json.dumps(host.show_policy(request.user), indent=2)
    return render(request, "hosts/policy.html", {"host": host, "document": document})


@posted_from("hosts:hypervisor", "pk")
@administered()
def seal_key(request: HttpRequest, host: Hypervisor) -> HttpResponse:
    host.replace_seal_key(request.user)
    messages.success(request, f"{host.name} has a new seal key. Show the policy and install it now.")
    return redirect("hosts:hypervisor", host.pk)


@require_http_methods(["GET", "POST"])
@needs("administer")
def register(request: HttpRequest) -> HttpResponse:
    form = RegisterForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        host = form.register(request.user)
        messages.success(request, f"{host.name} is registered. Compare its host key, then pin it.")
        return redirect("hosts:pin", host.pk)
    return render(request, "hosts/register.html", {"form": form, **installation("volmig")})


@require_http_methods(["GET", "POST"])
@administered()
def edit(request: HttpRequest, host: Hypervisor) -> HttpResponse:
    form = EditForm(request.POST or None, instance=host)
    if request.method == "POST" and form.is_valid():
        again = Hypervisor.objects.find(request.user, "administer", pk=host.pk)
        return edited(request, again, form)  # the form wrote what was typed into its own instance
    return render(request, "hosts/edit.html", {"host": host, "form": form})


def edited(request: HttpRequest, host: Hypervisor, form: EditForm) -> HttpResponse:
    moved = form.change(host, request.user)
    told = f"The registration of {host.name} is changed."
    if moved and not host.host_key:
        messages.success(request, f"{told} Compare the host key offered there, then pin it.")
        return redirect("hosts:pin", host.pk)
    kept = " Its pinned key stays: volmig refuses a machine there with another key and quarantines the hypervisor."
    messages.success(request, told + (kept if moved else ""))
    return redirect("hosts:hypervisor", host.pk)


@require_GET
@needs("administer")
def clouds(request: HttpRequest) -> HttpResponse:
    members = Prefetch("hypervisors", Hypervisor.objects.active())
    alone = Hypervisor.objects.active().filter(cloud=None)
    return render(request, "hosts/clouds.html", {"clouds": Cloud.objects.prefetch_related(members), "alone": alone})


@require_http_methods(["GET", "POST"])
@needs("administer")
@step_up.fresh
def cloud(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Adds a cloud, or changes the one of this key."""
    known = get_object_or_404(Cloud, pk=pk) if pk else None
    form = CloudForm(request.POST or None, instance=known)
    if request.method == "POST" and form.is_valid():
        changed = get_object_or_404(Cloud, pk=pk) if pk else Cloud()
        changed.reregister(request.user, **form.told())
        messages.success(request, f"{changed.name} is {'changed' if pk else 'added'}.")
        return redirect("hosts:clouds")
    secret = known is not None and Cloud.objects.filter(pk=known.pk).exclude(secret="").exists()
    return render(request, "hosts/cloud.html", {"form": form, "name": form.initial.get("name"), "has_secret": secret})


@require_GET
@needs("administer")
def nova(request: HttpRequest, pk: int) -> HttpResponse:
    """What a cloud's Nova last told, and what the credential may do there."""
    known = get_object_or_404(Cloud.objects.with_nova(), pk=pk)
    matched = known.matched()
    members = known.hypervisors.active()
    context = {
        "cloud": known,
        "members": [{"hypervisor": each, "computes": matched.get(each.pk, [])} for each in members],
        "unmatched": known.unmatched(),
        "servers": known.servers.count(),
    }
    return render(request, "hosts/nova.html", context)


@posted_from("hosts:nova", "pk")
@needs("administer")
def look_at_cloud(request: HttpRequest, pk: int, what: str) -> HttpResponse:
    """Has the workers check the credential, or read computes and instances again."""
    known = get_object_or_404(Cloud.objects.with_nova(), pk=pk)
    task = {"check": "hosts.tasks.check_cloud", "refresh": "hosts.tasks.refresh_cloud"}[what]
    queued = f"The request to {known.name} was queued. The ages below show when the data is new."
    show(request, lambda: ask(task, known.pk, by=request.user), queued)
    return redirect("hosts:nova", known.pk)


@require_GET
@needs("view")
def instances(request: HttpRequest) -> HttpResponse:
    """Instances by name, id, project or address, from what was last read; nobody is asked for this page."""
    words = request.GET.get("q", "").strip()[:200]
    found = Server.objects.visible_to(request.user).search(words)
    elsewhere = Instance.objects.visible_to(request.user).filter(hypervisor__retired_at=None)
    elsewhere = elsewhere.exclude(uuid__in=Server.objects.values("uuid")).search(words)
    context = {
        "q": words,
        "total": found.count(),
        "servers": with_hypervisors(list(found.defer("words").select_related("cloud")[:FOUND])),
        "elsewhere": elsewhere.select_related("hypervisor")[:FOUND],
        "clouds": Cloud.objects.with_nova(),
    }
    return render(request, "hosts/instances.html", context)


def with_hypervisors(servers: list[Server]) -> list[dict[str, Any]]:
    """Each with the registered hypervisor that Nova has it on, or None."""
    believed = Team.objects.is_single()
    named = {
        (each.cloud_id, name): each
        for each in Hypervisor.objects.active().only("pk", "name", "nova_host", "cloud_id", "facts")
        for name in each.names_in_nova(believed)
    }
    return [
        {
            "server": each,
            "hypervisor": named.get((each.cloud_id, each.host)) or named.get((each.cloud_id, each.hypervisor_name)),
        }
        for each in servers
    ]


@require_GET
@needs("view")
def instance(request: HttpRequest, uuid: str) -> HttpResponse:
    """One instance as Nova and libvirt each last told of it, with its disks on registered hypervisors."""
    told = with_hypervisors(list(Server.objects.visible_to(request.user).filter(uuid=uuid).select_related("cloud")))
    here = Instance.objects.visible_to(request.user).filter(uuid=uuid, hypervisor__retired_at=None)
    seen = list(here.select_related("hypervisor"))
    found = LogicalVolume.objects.visible_to(request.user).filter(volume_group__hypervisor__retired_at=None)
    volumes = list(found.of_instances([uuid]))
    if not (told or seen or volumes):
        raise Http404(f"No instance {uuid} found.")
    context = {
        "uuid": uuid,
        "name": next((row["server"].name for row in told), next((each.name for each in seen), uuid)),
        "told": told,
        "seen": seen,
        "volumes": volumes,
    }
    return render(request, "hosts/instance.html", context)


@require_http_methods(["GET", "POST"])
@administered(Hypervisor.objects.all)
def pin(request: HttpRequest, host: Hypervisor) -> HttpResponse:
    offered = fingerprint(host.offered_key) if host.offered_key else ""
    form = PinForm(request.POST or None, offered=offered, initial={"shown": offered})
    if request.method == "POST" and offered and form.is_valid():
        form.pin(host, request.user)
        messages.success(request, f"The host key of {host.name} is pinned. Its first inventory is being read.")
        return redirect("hosts:hypervisor", host.pk)
    old = fingerprint(host.host_key) if host.host_key else ""
    kind = host.offered_key.split()[0].removeprefix("ssh-") if host.offered_key else ""
    return render(request, "hosts/pin.html", {"host": host, "form": form, "offered": offered, "old": old, "kind": kind})


@posted_from("hosts:pin", "pk")
def offer(request: HttpRequest, pk: int) -> HttpResponse:
    """Asks for the host key again, before a first or a deliberate new pinning."""
    host = Hypervisor.objects.find(request.user, "administer", pk=pk)
    show(request, lambda: host.ask_key(request.user), f"The host key of {host.name} is being read.")
    return redirect("hosts:pin", host.pk)


@posted_from("hosts:hypervisor", "pk")
def refresh(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "view", pk=pk)
    queued = f"{host.name} is being refreshed. The ages below show when the data is new."
    show(request, lambda: ask("hosts.tasks.refresh", host.pk, by=request.user), queued)
    return redirect("hosts:hypervisor", host.pk)


def show(request: HttpRequest, queue: Callable[[], str | None], queued: str) -> None:
    """Queues what a person asked for, and shows `queued`, or why nothing was queued."""
    try:
        said = queue()
    except Refused as refused:
        messages.error(request, str(refused))
    else:
        messages.info(request, said or queued)


@posted_from("hosts:hypervisor", "pk")
def retire(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "administer", pk=pk)
    form = RetireForm(request.POST, host)
    if not form.is_valid():
        messages.error(request, f"{' '.join(map(str, form.errors['name']))} Nothing was changed.")
        return redirect("hosts:hypervisor", host.pk)
    host.retire(request.user)
    messages.success(request, f"{host.name} is retired. Its history is kept.")
    return redirect("hosts:list")


@require_GET
@needs("view")
def bundle(request: HttpRequest) -> HttpResponse:
    """hostctl as one file, to be installed root-owned on a hypervisor."""
    headers = {"Content-Disposition": 'attachment; filename="hostctl"', "X-Hostctl-Hash": hostctl.source_hash()}
    return HttpResponse(pack.bundle(), content_type="application/octet-stream", headers=headers)
