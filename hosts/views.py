"""Pages about hypervisors; all that they show was seen by the workers, none of them waits for a machine."""

from pathlib import Path
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.db.models import Prefetch
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from hosts.forms import CloudForm, EditForm, PinForm, RegisterForm
from hosts.models import (
    NFS_PORTS,
    Cloud,
    DataAddress,
    Hypervisor,
    LogicalVolume,
    Mount,
    Share,
    VolumeGroup,
    ssh_key_file,
)
from hosts.remote import hostctl
from hosts.remote.host import fingerprint
from volmig.accounts.models import Team
from volmig.accounts.roles import may, needs
from volmig.data import ssh_public_key
from volmig.queue import later
from volmig.record.models import Event

PARTS = {"state": "hosts/_state.html", "seen": "hosts/_seen.html"}
SORTS = {"name": "name", "size": "-size", "group": "volume_group__name", "open": "-is_open", "uuid": "uuid"}


@require_GET
@needs("view")
def overview(request: HttpRequest) -> HttpResponse:
    hypervisors = Hypervisor.objects.visible_to(request.user).active().select_related("bastion", "cloud", "team")
    groups = Prefetch("volume_groups", VolumeGroup.objects.with_held())
    seen = list(hypervisors.prefetch_related(groups, "mounts__share", "instances", "reaches"))
    mounts = Mount.objects.filter(hypervisor__in=hypervisors).select_related("hypervisor")
    context = {
        "hypervisors": seen,
        "matrix": matrix(seen),
        "shares": Share.objects.visible_to(request.user).with_held().prefetch_related(Prefetch("mounts", mounts)),
        "current_hash": hostctl.source_hash(),
        "may_administer": may(request.user, "administer"),
        "several_teams": Team.objects.count() > 1,
    }
    return render(request, "hosts/list.html", context)


def matrix(hypervisors: list[Hypervisor]) -> dict[str, Any]:
    """Who reaches which data address: a row for each hypervisor, a cell for each address, with each port's state."""
    owners = DataAddress.objects.filter(hypervisor__in=hypervisors).select_related("hypervisor")
    columns = list(owners.order_by("hypervisor__name", "address"))
    rows = []
    for hypervisor in hypervisors:
        seen = {(reach.address, reach.port): reach for reach in hypervisor.reaches.all()}
        tried = {address for address, _ in seen}
        cells = [
            [seen.get((column.address, port)) for port in NFS_PORTS] if column.address in tried else []
            for column in columns
        ]
        own = [column.hypervisor_id == hypervisor.pk for column in columns]
        at = max((reach.seen_at for reach in seen.values()), default=None)
        rows.append({"hypervisor": hypervisor, "at": at, "cells": list(zip(own, cells, strict=True))})
    return {"columns": columns, "rows": rows, "ports": NFS_PORTS}


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
        "may_administer": may(request.user, "administer"),
        **installation(host.user),
    }
    return render(request, PARTS.get(request.GET.get("part", ""), "hosts/hypervisor.html"), context)


def installation(user: str) -> dict[str, str]:
    """What the install commands need: the login, volmig's public key and this hostctl's hash."""
    key = ssh_key_file()
    try:
        public = ssh_public_key(Path(key)) if key else ""
    except (ValueError, OSError):
        public = ""
    return {"login": user, "public_key": public or "PUBLIC-KEY-OF-VOLMIG", "hash": hostctl.source_hash()}


@require_http_methods(["GET", "POST"])
@needs("administer")
def register(request: HttpRequest) -> HttpResponse:
    form = RegisterForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with transaction.atomic():
            host = form.save()
            later("hosts.tasks.offer_key", host.pk)
            Event.append("hypervisor.register", actor=request.user, object=host.name, data=host.registration())
        messages.success(request, f"{host.name} is registered. Compare its host key, then pin it.")
        return redirect("hosts:pin", host.pk)
    return render(request, "hosts/register.html", {"form": form, **installation("volmig")})


@require_http_methods(["GET", "POST"])
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.active().find(request.user, "administer", pk=pk)
    form = EditForm(request.POST or None, instance=host)
    if request.method == "POST" and form.is_valid():
        again = Hypervisor.objects.find(request.user, "administer", pk=pk)
        return edited(request, again, form)  # the form wrote what was typed into its own instance
    return render(request, "hosts/edit.html", {"host": host, "form": form})


def edited(request: HttpRequest, host: Hypervisor, form: EditForm) -> HttpResponse:
    with transaction.atomic():
        moved = host.reregister(request.user, **form.told())
        later("hosts.tasks.refresh" if host.host_key else "hosts.tasks.offer_key", host.pk)
    told = f"The registration of {host.name} is changed."
    if moved and not host.host_key:
        messages.success(request, f"{told} Compare the host key that is offered there, then pin it.")
        return redirect("hosts:pin", host.pk)
    kept = " Its pinned key stays: a machine there that cannot show it is refused and put into quarantine."
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
def cloud(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Adds a cloud, or changes the one of this key."""
    known = get_object_or_404(Cloud, pk=pk) if pk else None
    form = CloudForm(request.POST or None, instance=known)
    if request.method == "POST" and form.is_valid():
        changed = get_object_or_404(Cloud, pk=pk) if pk else Cloud()
        changed.reregister(request.user, **form.cleaned_data)
        messages.success(request, f"{changed.name} is {'changed' if pk else 'added'}.")
        return redirect("hosts:clouds")
    return render(request, "hosts/cloud.html", {"form": form, "name": form.initial.get("name")})


@require_http_methods(["GET", "POST"])
def pin(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "administer", pk=pk)
    offered = fingerprint(host.offered_key) if host.offered_key else ""
    form = PinForm(request.POST or None, offered=offered, initial={"shown": offered})
    if request.method == "POST" and offered and form.is_valid():
        host.pin(request.user, host.offered_key)
        later("hosts.tasks.refresh", host.pk)
        messages.success(request, f"The host key of {host.name} is pinned. Its first inventory is under way.")
        return redirect("hosts:hypervisor", host.pk)
    old = fingerprint(host.host_key) if host.host_key else ""
    kind = host.offered_key.split()[0].removeprefix("ssh-") if host.offered_key else ""
    return render(request, "hosts/pin.html", {"host": host, "form": form, "offered": offered, "old": old, "kind": kind})


@require_POST
def offer(request: HttpRequest, pk: int) -> HttpResponse:
    """Asks for the host key again, before a first or a deliberate new pinning."""
    host = Hypervisor.objects.find(request.user, "administer", pk=pk)
    host.put(offered_key="", last_error="")
    later("hosts.tasks.offer_key", host.pk)
    return redirect("hosts:pin", host.pk)


@require_POST
def refresh(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "view", pk=pk)
    later("hosts.tasks.refresh", host.pk)
    messages.info(request, f"{host.name} is being looked at. The ages below tell when the figures are new.")
    return redirect("hosts:hypervisor", host.pk)


@require_POST
def retire(request: HttpRequest, pk: int) -> HttpResponse:
    host = Hypervisor.objects.find(request.user, "administer", pk=pk)
    if request.POST.get("name") != host.name:
        messages.error(request, f"Type {host.name} to retire it. Nothing was changed.")
        return redirect("hosts:hypervisor", host.pk)
    if why := host.still_needed():
        messages.error(request, f"{why} Nothing was changed.")
        return redirect("hosts:hypervisor", host.pk)
    host.retire(request.user)
    messages.success(request, f"{host.name} is retired. Its history stays.")
    return redirect("hosts:list")


@require_GET
@needs("view")
def bundle(request: HttpRequest) -> HttpResponse:
    """hostctl as one file, to be installed root-owned on a hypervisor."""
    headers = {"Content-Disposition": 'attachment; filename="hostctl"', "X-Hostctl-Hash": hostctl.source_hash()}
    return HttpResponse(hostctl.bundle(), content_type="application/octet-stream", headers=headers)
