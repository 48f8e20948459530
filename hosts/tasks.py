"""Discovery: what the workers ask hypervisors in the background."""

import datetime as dt
import math
from typing import Any

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from hosts.models import NFS_PORTS, WAY, DataAddress, Hypervisor, keep
from hosts.remote import hostctl, ssh
from hosts.remote.host import Answer, Garbled, Host, HostctlDiffers, HostError, HostKeyChanged, Request
from volmig.queue import later

INVENTORY_SECONDS = 60


def refresh_stale() -> None:
    """Task, once a minute: queues a refresh of the hypervisors whose figures are older than VOLMIG_REFRESH_SECONDS.

    Only as many as keep all of them fresh in turn: workers that look around do not move migrations.
    """
    now = timezone.now()
    before = now - dt.timedelta(seconds=settings.REFRESH_SECONDS)
    share = math.ceil(Hypervisor.objects.reachable().count() * 60 / settings.REFRESH_SECONDS)
    stale = Hypervisor.objects.stale(before).order_by(F("tried_at").asc(nulls_first=True))
    for pk in stale.values_list("pk", flat=True)[:share]:
        later("hosts.tasks.refresh", pk)
        Hypervisor.objects.filter(pk=pk).update(tried_at=now)  # or busy workers would find it queued again next minute


def refresh(hypervisor_id: int) -> None:
    """Task: looks at one hypervisor; what went wrong is kept as its last error."""
    hypervisor = Hypervisor.objects.reachable().filter(pk=hypervisor_id).first()
    if hypervisor is None:
        return
    hypervisor.put(tried_at=timezone.now())
    try:
        with ssh.connect(hypervisor.remote()) as host:
            look(hypervisor, host)
    except HostError as error:
        note(hypervisor, error)


def look(hypervisor: Hypervisor, host: Host) -> None:
    """Hello proves the way and the program, the inventory is what is there, reach is whom it can talk to."""
    asked(host, Request("hello"))
    hypervisor.put(hostctl_hash=hostctl.source_hash())
    inventory = asked(host, Request("inventory"), INVENTORY_SECONDS)
    try:
        hypervisor.record_inventory(inventory)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Garbled(f"read the inventory of {hypervisor}", f"{type(error).__name__}: {error}") from error
    look_around(hypervisor, host)


def look_around(hypervisor: Hypervisor, host: Host) -> None:
    others = DataAddress.objects.filter(hypervisor__in=Hypervisor.objects.active()).exclude(hypervisor=hypervisor)
    addresses = sorted(set(others.values_list("address", flat=True)))
    targets = [{"address": address, "port": port} for address in addresses for port in NFS_PORTS]
    results = asked(host, Request("reach", {"targets": targets}), 30)["results"] if targets else []
    now = timezone.now()
    rows = [{"address": row["address"], "port": row["port"], "state": row["state"], "seen_at": now} for row in results]
    keep(hypervisor.reaches, ("address", "port"), rows)


def asked(host: Host, request: Request, timeout: float = 20) -> dict[str, Any]:
    answer: Answer = host.call(request, timeout)
    if answer.state != "done":
        error = answer.error or {}
        found = str(error.get("found") or f"it answered {answer.state}")
        raise HostError(f"call {request.verb}", found, str(error.get("next") or ""))
    return answer.evidence


def note(hypervisor: Hypervisor, error: HostError) -> None:
    """Keeps the error for people; a changed key quarantines the machine that offered it, which may be a bastion."""
    hypervisor.put(last_error=str(error))
    if isinstance(error, HostctlDiffers):
        hypervisor.put(hostctl_hash="")
    if isinstance(error, HostKeyChanged) and error.address:
        for culprit in Hypervisor.objects.active().at(error.address):
            culprit.quarantine(str(error))


def offer_key(hypervisor_id: int) -> None:
    """Task: asks for the host key that a person is to compare and pin; nobody is logged in for it."""
    hypervisor = Hypervisor.objects.active().get(pk=hypervisor_id)
    try:
        bastion = hypervisor.bastion.remote() if hypervisor.bastion else None
        key = ssh.offered_key(hypervisor.address, hypervisor.port, bastion)
    except HostError as error:
        note(hypervisor, error)
    else:
        way = {name: getattr(hypervisor, name) for name in WAY}  # who changed it meanwhile wants another machine's key
        Hypervisor.objects.filter(pk=hypervisor.pk, **way).update(offered_key=key)
