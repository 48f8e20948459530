"""Pages of what volmig made on hypervisors and shares, compared with what they report."""

import datetime as dt
from collections import defaultdict
from typing import Any

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_GET

from hosts.models import Hypervisor, Scan, Server
from jobs.drift import ABOUT, Row, ask_anew, recent_for, rows_for, scans_queued
from jobs.engine import states
from jobs.models import Job, Refused, Removal
from jobs.web.base import show
from volmig.accounts.roles import may, needs, why_not
from volmig.posting import posted_from


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
    forgotten = [each for each in servers if not any(at is None or at >= each.seen_at for at in told[each.uuid])]
    return forgotten[:20]


VERDICTS = {
    "left": ("Orphaned", "In the inventory and on the hypervisor, but no longer needed."),
    "other": ("Another object with the same name", "It is not the object in the inventory. volmig never changes it."),
    "stranger": ("Unknown", "It has volmig's marker, but is not in this volmig's inventory."),
    "gone": ("Gone", "In the inventory, but no longer on the hypervisor."),
    "needed": ("In use", "In the inventory, on the hypervisor and needed."),
}
SHOWN = 50  # of each verdict, unless all of one are asked for


@require_GET
@needs("view")
def leftovers(request: HttpRequest) -> HttpResponse:
    """The ledger compared with what every hypervisor last reported; `?all=` shows one verdict whole, and no other."""
    hypervisors = Hypervisor.objects.visible_to(request.user).active()
    made = recent_for(request.user)
    found = rows_for(request.user, made)
    whole = request.GET.get("all", "")
    shown, most = ({whole: VERDICTS[whole]}, None) if whole in VERDICTS else (VERDICTS, SHOWN)
    by_verdict = {verdict: [row for row in found if row.found.verdict == verdict] for verdict in shown}
    lately = timezone.now() - dt.timedelta(days=2)
    mine = Removal.objects.filter(hypervisor__in=hypervisors, job__in=Job.objects.visible_to(request.user))
    removals = mine.filter(Q(ended_at=None) | Q(ended_at__gte=lately))
    values = {
        "sections": [
            {
                "verdict": verdict,
                "name": name,
                "means": means,
                "rows": [choice(row, request.user) for row in by_verdict[verdict][:most]],
                "count": len(by_verdict[verdict]),
            }
            for verdict, (name, means) in shown.items()
        ],
        "whole": whole if most is None else "",
        "compared_at": made.at,
        "drifting": sum(row.found.drifts for row in found),
        "scans": hypervisors.select_related("scan").defer("facts", "scan__things", "scan__on_shares").order_by("name"),
        "asked": Scan.objects.filter(hypervisor__in=hypervisors).exclude(began_at=None).exists(),
        "removals": removals.select_related("hypervisor", "asked_by").order_by("-pk")[:50],
        "locks": forgotten_locks() if may(request.user, "administer") else [],
    }
    return show(request, "jobs/leftovers.html", "jobs/_leftovers.html", values)


def choice(row: Row, user: Any) -> dict[str, Any]:
    """What the page shows of a row, and what this person may do about it, or why not.

    As plain values: a template takes long to look up values within others.
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
