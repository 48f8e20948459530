"""Whether a migration may begin to copy now: slots of source and relay, and space that is reserved."""

import datetime as dt
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from hosts.models import Hypervisor, Share
from jobs.engine.sizes import MIB
from jobs.engine.steps import Range
from jobs.models import Footprint, Job, StepRun

SLOT = dt.timedelta(seconds=10)


def reserved(job: Job, **where: Any) -> int:
    """Bytes that other jobs keep free there."""
    return Footprint.objects.exclude(job=job).filter(kind="space").reserved_bytes(**where)


@transaction.atomic
def reserve(job: Job) -> str:
    """Take a slot on source and relay and keep space free on relay and share; why that has to wait, or nothing.

    The rows of hypervisors and share are locked, so that two jobs never count the same bytes or the same slot.
    """
    hosts = sorted({job.source_id, job.relay_id})
    list(Hypervisor.objects.select_for_update().filter(pk__in=hosts).order_by("pk"))
    share = Share.objects.select_for_update().get(source=job.share_source)
    if job.footprints.filter(kind="space").exists():
        return ""
    why_not = no_slot(job) or no_space(job)
    if not why_not:
        relay, stage = job.plan["footprint"]["relay"], job.plan["footprint"]["share"]
        job.footprints.create(kind="space", hypervisor=job.relay, name=job.relay_vg, bytes=relay)
        job.footprints.create(kind="space", share=share, name=share.source, bytes=stage)
    return why_not


def no_slot(job: Job) -> str:
    """One conversion at a time reads from a source, and two pass through a relay, unless the settings say otherwise."""
    at_work = Job.objects.filter(status="preparing", footprints__kind="space").exclude(pk=job.pk).distinct()
    on_source = at_work.filter(source=job.source).values_list("pk", flat=True)
    on_relay = at_work.filter(relay=job.relay).values_list("pk", flat=True)
    if len(on_source) >= getattr(settings, "CONVERSIONS_PER_SOURCE", 1):
        return f"It waits for migration {on_source[0]}, which reads from {job.source.name}."
    if len(on_relay) >= getattr(settings, "CONVERSIONS_PER_RELAY", 2):
        return f"It waits for a slot on the relay {job.relay.name}, which migrations {listed(on_relay)} are using."
    return ""


def no_space(job: Job) -> str:
    """What was free when it was looked at, less what others have reserved since."""
    seen, sizes = job.seen(), job.plan["footprint"]
    group, share = (seen.relay.vg, seen.relay.share) if seen.relay else (None, None)
    if group and sizes["relay"] > group.free - reserved(job, hypervisor=job.relay, name=job.relay_vg):
        return f"It waits for {sizes['relay'] // MIB} MiB in {job.relay_vg} on {job.relay.name}."
    if share and sizes["share"] > share.free - reserved(job, share__source=job.share_source):
        return f"It waits for {sizes['share'] // MIB} MiB on {job.share_source}."
    return ""


def listed(numbers: Any) -> str:
    """Numbers joined by "and"."""
    return " and ".join(str(number) for number in numbers)


def measured(job: Job) -> dict[str, Range]:
    """Bytes per second (slow, usual, fast) of the passes of earlier jobs between the same machines."""
    between = Q(job__source=job.source, job__relay=job.relay, job__destination=job.destination)
    rates = {}
    for each in job.get_route().steps:
        if each.throughput:
            runs = StepRun.objects.filter(between, step=each.name, direction="do", result="done", bytes_total__gt=0)
            speeds = sorted(run.bytes_total / max(run.seconds, 0.5) for run in runs.order_by("-pk")[:20])
            if len(speeds) >= 3:
                rates[each.throughput.name] = (speeds[0], speeds[len(speeds) // 2], speeds[-1])
    return rates
