"""The overview: is anything wrong, and must I act?"""

import datetime as dt

from django.db.models import Count, F, Q, QuerySet, Value
from django.db.models.functions import NullIf
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from hosts.models import Hypervisor, Share, VolumeGroup
from jobs.drift import drift_for
from jobs.models import Approval, Footprint, Job, Policy
from jobs.models.footprint import BULKY
from jobs.models.job import JobQuerySet
from jobs.models.plans import plans
from jobs.web.base import show
from jobs.web.leftovers import forgotten_locks
from volmig.accounts.roles import may, needs

FULLEST = 12  # volume groups on the overview; the hypervisors' pages have all of them
LISTED = 25  # migrations of each kind on the overview; the history has all of them
WAITING = {"planned", "awaiting_approval", "on_trial"}  # nothing moves until a person does
MOVES = Q(halt_reason="") & ~Q(status__in=WAITING)


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
    groups = relay_groups(hypervisors)
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
            "groups": list(groups[:FULLEST]),
            "groups_count": groups.count(),
            "shares": Share.objects.visible_to(request.user).with_figures(request.user).prefetch_related(None),
            "due": Footprint.objects.backups(request.user).due().order_by("keep_until")[:8],
            "policies": Policy.objects.with_windows(hypervisors),
            "hypervisors": hypervisors.count(),
            "drifting": drift_for(request.user),
            "forgotten_locks": forgotten_locks() if may(request.user, "administer") else [],
            "any_job": bool(counted["moving"] or counted["waiting"]) or jobs.exists(),
        },
    )


def failed(jobs: JobQuerySet) -> JobQuerySet:
    """What came to nothing lately; by the keys of what ended lately, which are few."""
    lately = Job.objects.filter(ended_at__gte=timezone.now() - dt.timedelta(days=14)).order_by()
    rows = jobs.filter(pk__in=lately.values("pk"), outcome__in=["failed", "blocked", "rejected"])
    return rows.defer(*BULKY).order_by("-ended_at")[:8]


def relay_groups(hypervisors: QuerySet[Hypervisor]) -> QuerySet[VolumeGroup]:
    """Volume groups on hypervisors that could relay, as they mount a share, with what jobs hold; the fullest first."""
    relays = hypervisors.exclude(mounts=None)
    rows = VolumeGroup.objects.with_held().filter(hypervisor__in=relays)
    shown = rows.select_related("hypervisor").only("name", "size", "free", "seen_at", "hypervisor__name")
    return shown.order_by(F("free") * 1.0 / NullIf("size", Value(0)), "hypervisor__name", "name")
