"""What needs attention now: one list for the overview, whose length every page shows; and what was resolved just now.

One query says whether there can be anything; what there is of each kind is read only then.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Count, Exists, Prefetch, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.engine.checks import SKEW
from jobs.engine.condition import TROUBLE, Condition, Down
from jobs.engine.routes import names_of
from jobs.engine.steps import Task
from jobs.models import Approval, Job, StepRun
from jobs.models.footprint import BULKY
from jobs.models.job import ROLES, JobQuerySet
from jobs.models.plans import plans
from volmig import incarnation
from volmig.accounts.roles import may
from volmig.health import alive
from volmig.health.models import Process
from volmig.recent import Recent

EXPIRES_SOON = dt.timedelta(hours=1)
# Statuses in which work is due or a guest may be down; a person's turn needs attention only when a host is missing.
AT_WORK = ("checking", "preparing", "approved", "swapping", "rolling_back", "undoing", "purging")
IN_QUARANTINE = ~Q(quarantined_at=None)
WRONG_CLOCK = Q(clock_off__gt=SKEW) | Q(clock_off__lt=-SKEW)
TROUBLED = Q(wait_kind__in=(*TROUBLE, "fault")) & ~Q(waiting_for="")
WATCHED = ~Q(halt_reason="") | Q(status__in=AT_WORK) | TROUBLED
CLOCK_STEPS = names_of(Task.STOP, Task.START)  # whose runs say since when an instance is down
# Of more migrations at work than FEW conditions are not computed for each page anew, but for all pages of this process.
FEW, SECONDS = 20, 2.0


@dataclass(frozen=True)
class Item:
    """One thing that someone should act on: what it is about, the sentence, since when, and the one next action."""

    subject: str
    sentence: str
    url: str
    action: str
    since: dt.datetime | None
    bad: bool
    job: int = 0
    detail: str = ""
    advice: str = ""
    kind: str = ""
    down: Down | None = None
    until: dt.datetime | None = None
    resolved: bool = False  # it is over: shown for a while, so that people learn of it, and not counted


def jobs_at_work(jobs: JobQuerySet) -> list[Job]:
    """Those whose condition may need attention, with the runs that it depends on, in two queries."""
    rows = StepRun.objects.filter(Q(ended_at=None) | Q(step__in=CLOCK_STEPS)).select_related("hypervisor")
    runs = Prefetch("runs", rows.defer("args", "commands", "error", "hypervisor__facts"))
    unshown = (*BULKY, *(f"{role}__facts" for role in ROLES))
    found = list(jobs.filter(WATCHED).with_names().prefetch_related(runs).defer(*unshown))
    plans.give(found)  # forecasts are in them
    return found


def at_work(jobs: JobQuerySet, now: dt.datetime, count: int) -> list[tuple[Job, Condition]]:
    """The `count` of `jobs` whose condition may need attention, each with it; that of many is SECONDS old at most."""
    if count <= FEW:
        return [(job, job.condition(now)) for job in jobs_at_work(jobs)] if count else []
    keys = jobs.filter(WATCHED).order_by().values_list("pk", flat=True)
    known = snapshot.get(None)
    return [known[key] for key in keys if key in known]


def conditions(_: None) -> dict[int, tuple[Job, Condition]]:
    """The conditions of all migrations at work, each with its migration, by its number."""
    now = timezone.now()
    return {job.pk: (job, job.condition(now)) for job in all_at_work()}


def all_at_work() -> list[Job]:
    """Those of everybody, with less work than `jobs_at_work`: of what many have in common one is made for all."""
    rows = StepRun.objects.filter(Q(ended_at=None) | Q(step__in=CLOCK_STEPS))
    runs = Prefetch("runs", rows.defer("args", "commands", "error"))
    jobs = list(Job.objects.filter(WATCHED).defer(*BULKY).prefetch_related(runs))
    plans.give(jobs)  # forecasts are in them
    hosts = Hypervisor.objects.defer("facts").in_bulk({getattr(job, f"{role}_id") for job in jobs for role in ROLES})
    for job in jobs:
        for role in ROLES:
            setattr(job, role, hosts[getattr(job, f"{role}_id")])
        for run in job.runs.all():
            run.hypervisor = hosts.get(run.hypervisor_id) if run.hypervisor_id else None
    return jobs


snapshot = Recent(conditions, SECONDS)


def items(user: Any, mode: incarnation.State | None) -> list[Item]:
    """Everything that this person may see and someone should act on, the worst first, and at the end what was resolved
    within the last half hour; `mode` is read-only mode."""
    if not may(user, "view"):
        return []
    now = timezone.now()
    there = present(user, now)
    work = at_work(Job.objects.visible_to(user), now, there["jobs"])
    rows, urgent = [job for job, _ in work], [(job, state) for job, state in work if state.attention]
    named = {getattr(job, f"{role}_id") for job, _ in urgent for role in ROLES}
    found = [of_job(job, state) for job, state in urgent]
    found += hypervisors(user, rows, named, now) if there["quarantine"] or (rows and there["unseen"]) else []
    found += [of_clock(each) for each in wrong_clocks(user)] if there["clocks"] else []
    found += [of_trouble(each) for each in alive.troubles()] if there["processes"] else []
    found += late_refreshes(user) if there["late"] else []
    found += read_only(user, mode) if mode else []
    found += expiring(user, now) if there["approvals"] else []
    return sorted(found, key=lambda item: (item.resolved, not item.bad, item.since or now))


def present(user: Any, now: dt.datetime) -> dict[str, int]:
    """Of which kinds there is something that may need attention, and of migrations how many; one query."""
    mine = Hypervisor.objects.visible_to(user).active()
    kinds: dict[str, QuerySet[Any]] = {
        "quarantine": mine.filter(IN_QUARANTINE),
        "unseen": mine.filter(unseen(now)),
        "late": mine.late(),
        "approvals": Approval.objects.visible_to(user).expiring(now, EXPIRES_SOON),
        "clocks": mine.filter(WRONG_CLOCK),
        # Only administrators can do something about volmig's own machines.
        "processes": Process.objects.all() if may(user, "administer") else Process.objects.none(),
    }
    jobs = (
        Job.objects.visible_to(user)
        .filter(WATCHED)
        .order_by()
        .values(one=Value(1))
        .annotate(count=Count("pk", distinct=True))
    )
    there: list[Any] = [
        Coalesce(Subquery(jobs.values("count")), 0),
        *(Exists(rows.order_by()) for rows in kinds.values()),
    ]
    found = get_user_model().objects.filter(pk=user.pk).values_list(*there)
    return dict(zip(("jobs", *kinds), found.get(), strict=True))


def unseen(now: dt.datetime) -> Q:
    """Hypervisors whose last scan failed, and that have not been reached for long."""
    since = now - dt.timedelta(seconds=settings.REFRESH_SECONDS + settings.STALLED_SECONDS)
    return ~Q(last_error="") & (Q(seen_at=None) | Q(seen_at__lt=since))


def of_job(job: Job, state: Condition) -> Item:
    return Item(
        f"Migration {job.pk}: {job.instance_name}",
        state.sentence,
        job.get_absolute_url(),
        "Decide" if state.kind == "halted" else "Open",
        state.since,
        state.tone == "bad",
        job.pk,
        state.detail,
        state.advice,
        state.kind,
        down if (down := job.down()) and down.until is None else None,
    )


def hypervisors(user: Any, jobs: list[Job], named: set[int], now: dt.datetime) -> list[Item]:
    """Hypervisors in quarantine, and those that a migration uses and that have not been reached for long.

    Those of a migration that is listed already are left out: it says more.
    """
    used = {getattr(job, f"{role}_id") for job in jobs for role in ROLES} - named
    missing = IN_QUARANTINE | (Q(pk__in=used) & unseen(now))
    rows = Hypervisor.objects.visible_to(user).active().filter(missing).defer("facts")
    return [of_hypervisor(each) for each in rows]


def of_hypervisor(hypervisor: Hypervisor) -> Item:
    url = f"/hosts/{hypervisor.pk}/"
    if hypervisor.quarantined_at:
        said, since = "In quarantine: no migration can use it.", hypervisor.quarantined_at
        return Item(hypervisor.name, said, url, "Open", since, True, detail=hypervisor.quarantine_reason)
    said = "Unreachable, and a migration uses it."
    return Item(hypervisor.name, said, url, "Open", hypervisor.seen_at, False, detail=hypervisor.last_error)


def wrong_clocks(user: Any) -> QuerySet[Hypervisor]:
    return Hypervisor.objects.visible_to(user).active().filter(WRONG_CLOCK).defer("facts")


def of_clock(hypervisor: Hypervisor) -> Item:
    """A clock that is off by more than the checks of a migration allow."""
    way = "ahead of" if hypervisor.clock_off > 0 else "behind"
    detail = f"By {abs(hypervisor.clock_off):.1f} s when it was last refreshed."
    advice, url = f"Synchronise the clock of {hypervisor.name} (NTP).", f"/hosts/{hypervisor.pk}/"
    said = f"Its clock is {way} volmig's: no migration can begin on it."
    return Item(hypervisor.name, said, url, "Open", None, False, detail=detail, advice=advice, kind="clock")


def of_trouble(found: alive.Trouble) -> Item:
    """Something that is wrong with volmig itself."""
    return Item(
        found.machine or "volmig",
        found.sentence,
        "/processes/",
        "Open",
        found.since,
        found.bad,
        detail=found.detail,
        advice=found.advice,
        kind=f"process-{found.kind}",
        resolved=found.kind == "over",
    )


def late_refreshes(user: Any) -> list[Item]:
    """Workers do not keep up with refreshing hypervisors."""
    late = Hypervisor.objects.visible_to(user).lateness()
    if late is None:  # refreshed meanwhile
        return []
    subject, why = "Refreshes are late", late.reason
    return [Item(subject, late.sentence, "/hosts/", "Open", late.oldest, False, detail=why, advice=late.advice)]


def read_only(user: Any, mode: incarnation.State) -> list[Item]:
    """Read-only mode, which only administrators can end, but which everybody's migrations wait for."""
    said = "volmig is read-only: no hypervisor is changed until an administrator has adopted the migrations."
    url, action = ("/adopt/", "Adopt") if may(user, "administer") else ("#read-only", "Read why")
    return [Item("Read-only mode", said, url, action, mode.since, True, detail=mode.reason, kind="read-only")]


def expiring(user: Any, now: dt.datetime) -> list[Item]:
    """Requests that are open or not yet used, and expire within the hour."""
    rows = Approval.objects.visible_to(user).expiring(now, EXPIRES_SOON)
    return [
        Item(
            f"Migration {asked.job_id}: {asked.job.instance_name}",
            f"The approval request for its {asked.kind} expires soon.",
            f"/approvals/{asked.pk}/",
            "Review",
            None,
            False,
            kind="expiring",
            until=asked.expires_at,
        )
        for asked in rows.with_names()
    ]


def marks() -> tuple[dict[int, tuple[Any, ...]], tuple[Any, ...]]:
    """What differs when a page would: of each migration at work, and of everything else that needs attention.

    Conditions change with time alone, and then no row changes.
    """
    now, mode, jobs = timezone.now(), incarnation.read_only(), Job.objects.all()
    work = at_work(jobs, now, jobs.filter(WATCHED).count())
    states = {job.pk: mark(job, state, now) for job, state in work}
    used = {getattr(job, f"{role}_id") for job, _ in work for role in ROLES}
    soon, active = Approval.objects.expiring(now, EXPIRES_SOON), Hypervisor.objects.active()
    others = (
        tuple(soon.order_by("pk").values_list("pk", flat=True)),
        tuple(active.filter(IN_QUARANTINE).order_by("pk").values_list("pk", flat=True)),
        tuple(active.filter(unseen(now), pk__in=used).order_by("pk").values_list("pk", flat=True)),
        # By team, which is who sees them: while workers catch up, how many are late changes with every refresh.
        tuple(active.late().order_by("team_id").values_list("team_id", flat=True).distinct()),
        mode and mode.episode,
        tuple(active.filter(WRONG_CLOCK).order_by("pk").values_list("pk", flat=True)),
        tuple((each.kind, each.machine, each.part) for each in alive.troubles()),
    )
    return states, others


def mark(job: Job, state: Condition, now: dt.datetime) -> tuple[Any, ...]:
    down = job.down()
    return state.kind, state.sentence, state.attention, down and (down.since, down.until, down.over(now))
