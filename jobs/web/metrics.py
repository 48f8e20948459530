"""Metrics for Prometheus, read from the database at each scrape, so that any process reports those of all.

The number of queries is the same whatever the database holds, and each is answered by an index or by a table of a few
rows. Labels are statuses, queues, outcomes, reasons, parts and volmig's own machines; never a hypervisor or a
migration.
"""

import datetime as dt
import hmac
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Count, F, FloatField, Max, Min, Q
from django.db.models.functions import Abs, Coalesce
from django.utils import timezone
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hosts.models import Hypervisor
from hosts.remote.hostctl import source_hash
from hosts.remote.meter import OUTCOMES
from jobs.engine import states
from jobs.engine.checks import SKEW
from jobs.models import Approval, Footprint, Job, StepRun
from jobs.web import attention
from volmig import __version__, incarnation
from volmig.database import is_postgresql
from volmig.health.models import Process, Tally
from volmig.health.tallies import SERIES, UNAVAILABLE, Series
from volmig.models import Notice, QueuedTask
from volmig.parts import BACKGROUND, MIGRATIONS, PARTS
from volmig.record.models import ChainHead, Event

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
RECENT_NOTICES = 500  # searched for failures at most; the table grows without end
Rows = Iterable[tuple[tuple[str, ...], float]]


def gauge(name: str, about: str, rows: Rows, labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    """A gauge with its samples; names begin with volmig_."""
    family = GaugeMetricFamily(f"volmig_{name}", about, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def one(name: str, about: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return gauge(name, about, [((), value)])


# What heartbeats of a part carry: the name of the metric, the part, the figure, how those of one machine are combined.
CARRIED: tuple[tuple[str, str, str, Callable[[list[float]], float], str], ...] = (
    ("websockets", "web", "websockets", sum, "Open live pages."),
    ("hypervisors_streaming", "watcher", "streaming", sum, "Hypervisors whose progress a watcher follows."),
    ("watcher_turn_seconds", "watcher", "turn_seconds", max, "Longest cycle of a watcher since its last heartbeat."),
)


def processes() -> Iterator[Metric]:
    """Heartbeats, with the clock, the disk and the figures that they carry."""
    rows = list(Process.objects.with_age())
    alive = [row for row in rows if not row.late]
    running = [((part,), sum(row.part == part for row in alive)) for part in PARTS]
    yield gauge("processes", "Processes of volmig whose heartbeat is recent.", running, ("part",))
    ages = grouped((((row.machine, row.part), max(0.0, row.age.total_seconds())) for row in rows), min)
    about = "Time since the last heartbeat; a process that stopped in an orderly way has none."
    yield gauge("process_heartbeat_age_seconds", about, ages, ("machine", "part"))
    off = grouped((((row.machine,), row.skew) for row in alive if row.skew is not None), furthest)
    yield gauge("clock_skew_seconds", "How far a machine's clock is ahead of the database's.", off, ("machine",))
    # Of those that are late, too: a machine whose disk is full may be late because of that.
    free = grouped((((row.machine,), row.disk_free) for row in rows if row.disk_free is not None), min)
    yield gauge("data_disk_free_bytes", "Free space in the data directory.", free, ("machine",))
    size = grouped((((row.machine,), row.disk_size) for row in rows if row.disk_size is not None), max)
    yield gauge("data_disk_size_bytes", "Size of the disk of the data directory.", size, ("machine",))
    for name, part, figure, together, about in CARRIED:
        values = (
            ((row.machine,), float(row.figures[figure])) for row in alive if row.part == part and figure in row.figures
        )
        yield gauge(name, about, grouped(values, together), ("machine",))


def grouped(rows: Rows, together: Callable[[list[float]], Any]) -> Rows:
    """One value for each set of labels."""
    found: dict[tuple[str, ...], list[float]] = {}
    for labels, value in rows:
        found.setdefault(labels, []).append(value)
    return [(labels, together(values)) for labels, values in found.items()]


def furthest(values: list[float]) -> float:
    """The one that is furthest from zero."""
    return max(values, key=abs)


def tasks() -> Iterator[Metric]:
    """The queues of workers."""
    queues, now = (MIGRATIONS, BACKGROUND), timezone.now()
    waiting = {row["queue"]: row for row in queued().annotate(rows=Count("pk"), oldest=Min("queued_at"))}
    running = dict(
        QueuedTask.objects.running().order_by().values("queue").annotate(n=Count("pk")).values_list("queue", "n")
    )
    calls = queued("name", "number").annotate(rows=Count("pk")).filter(rows__gt=1)
    more = {queue: sum(row["rows"] - 1 for row in calls if row["queue"] == queue) for queue in queues}
    depth = [((queue, "waiting"), waiting.get(queue, {}).get("rows", 0)) for queue in queues]
    depth += [((queue, "running"), running.get(queue, 0)) for queue in queues]
    yield gauge("queue_tasks", "Tasks that wait for a worker or are running.", depth, ("queue", "state"))
    since = {queue: row["oldest"] for queue, row in waiting.items()}
    ages = [((queue,), max(0.0, (now - since.get(queue, now)).total_seconds())) for queue in queues]
    yield gauge("queue_oldest_seconds", "For how long the oldest waiting task has waited.", ages, ("queue",))
    equal = [((queue,), more[queue]) for queue in queues]
    yield gauge("queue_duplicate_tasks", "Waiting tasks that equal another waiting task.", equal, ("queue",))


def queued(*columns: str) -> Any:
    """Waiting tasks by queue."""
    return QueuedTask.objects.waiting().order_by().values("queue", *columns)


def migrations() -> Iterator[Metric]:
    """Migrations under way, and what they wait for."""
    now = timezone.now()
    rows = Job.objects.filter(status__in=states.MAY_ACT).order_by().values("status").annotate(n=Count("pk"))
    found = dict(rows.values_list("status", "n"))
    by_status = [((status,), found.get(status, 0)) for status in states.STATUSES if status in states.MAY_ACT]
    yield gauge("migrations", "Migrations that have not ended, by status.", by_status, ("status",))
    yield one("migrations_halted", "Migrations that wait for a person's decision.", Job.objects.halted().count())
    yield gauge("instances_down", "Instances that are shut off, by condition.", down(now), ("condition",))
    asked = Approval.objects.open().filter(expires_at__gt=now).count()
    yield one("approvals_waiting", "Requests for approval that are open.", asked)
    runs = StepRun.objects.running().filter(bytes_total__gt=0, job__halt_reason="")
    last = runs.aggregate(at=Min(Coalesce("progress_at", "started_at")))["at"]
    age = max(0.0, (now - last).total_seconds()) if last else 0.0
    yield one("progress_age_seconds", "Longest time for which a running copy has moved no data.", age)
    yield one("backups_due", "Kept disks past their retention.", Footprint.objects.due().count())


DOWN = ("expected", "late", "stalled", "halted")


def down(now: dt.datetime) -> Rows:
    """Only a migration that swaps, goes back or is halted can hold an instance down: these are few."""
    swapping = list(Job.objects.filter(status__in=("swapping", "rolling_back")).order_by().values_list("pk", flat=True))
    halted = list(Job.objects.halted().order_by().values_list("pk", flat=True))
    found = dict.fromkeys(DOWN, 0)
    for job in attention.jobs_at_work(Job.objects.filter(pk__in={*swapping, *halted})):
        spell = job.down()
        if spell is not None and spell.until is None:
            found[how(job.condition(now).kind)] += 1
    return [((name,), number) for name, number in found.items()]


def how(kind: str) -> str:
    """The label of an instance that is down."""
    if kind == "halted":
        return "halted"
    if kind == "down-late":
        return "late"
    return "stalled" if kind.startswith("down-") else "expected"


def hypervisors() -> Iterator[Metric]:
    """Those that are registered, as they were last seen."""
    now, own = timezone.now(), source_hash()
    unseen, quarantined = attention.unseen(now), attention.IN_QUARANTINE
    rows = Hypervisor.objects.active().order_by()
    found = rows.aggregate(
        every=Count("pk"),
        quarantined=Count("pk", filter=quarantined),
        unreachable=Count("pk", filter=unseen & ~quarantined),
        other=Count("pk", filter=~Q(hostctl_hash__in=("", own))),
        off=Count("pk", filter=attention.WRONG_CLOCK),
        most=Max(Abs(F("clock_off")), output_field=FloatField()),
    )
    calm = found["every"] - found["quarantined"] - found["unreachable"]
    kinds = {"reachable": calm, "unreachable": found["unreachable"], "quarantined": found["quarantined"]}
    counts = [((kind,), number) for kind, number in kinds.items()]
    yield gauge("hypervisors", "Registered hypervisors, by the last attempt to reach them.", counts, ("state",))
    yield one("hypervisors_hostctl_differs", "Hypervisors with another version of hostctl.", found["other"])
    yield one("hypervisors_clock_differs", f"Hypervisors whose clock differs by more than {SKEW:g} s.", found["off"])
    yield one("hypervisors_clock_skew_seconds", "The largest difference of a hypervisor's clock.", found["most"] or 0.0)


def audit() -> Iterator[Metric]:
    """The audit log, notices, read-only mode."""
    now = timezone.now()
    head = ChainHead.objects.filter(pk=1).first()
    published = head.published if head else 0
    first = Event.objects.filter(seq=published + 1).values_list("at", flat=True).first()
    lag = max(0.0, (now - first).total_seconds()) if first else 0.0
    yield one("audit_head_lag_seconds", "Age of the oldest event that no published head covers.", lag)
    newest = Notice.objects.aggregate(newest=Max("pk"))["newest"] or 0
    recent = Notice.objects.filter(pk__gt=newest - RECENT_NOTICES, created_at__gt=now - dt.timedelta(days=1))
    failed = recent.exclude(error="").count()
    yield one("notices_failed", f"Of the last {RECENT_NOTICES} notices, those of a day that were not sent.", failed)
    yield one("read_only", "1 while volmig is read-only.", float(incarnation.read_only() is not None))


def database() -> Iterator[Metric]:
    """Connections, of PostgreSQL alone."""
    rows: list[tuple[str, float]] = []
    if is_postgresql():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
                " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
            )
            rows = list(zip(("database_connections", "database_connections_limit"), cursor.fetchone(), strict=True))
    abouts = {
        "database_connections": "Connections to the database server, of all its users.",
        "database_connections_limit": "Connections that the database server allows.",
    }
    for name, about in abouts.items():
        yield gauge(name, about, [((), value) for named, value in rows if named == name])


def sums() -> Iterator[Metric]:
    """What processes have counted and timed."""
    found: dict[str, dict[tuple[str, ...], dict[str, float]]] = {name: {} for name in SERIES}
    for name, labels, bound, value in Tally.objects.values_list("name", "labels", "bound", "value"):
        if name in SERIES:
            values_of = json.loads(labels)
            key = tuple(str(values_of.get(label, "")) for label in SERIES[name].labels)
            found[name].setdefault(key, {})[bound] = value
    # From the start, or the first failure would be no increase.
    for name, values in (("volmig_ssh_connects", OUTCOMES), ("volmig_unavailable_answers", UNAVAILABLE)):
        for each in values:
            found[name].setdefault((each,), {"": 0.0})
    for name, rows in found.items():
        yield histogram(name, SERIES[name], rows) if SERIES[name].bounds else counter(name, SERIES[name], rows)


def counter(name: str, series: Series, rows: dict[tuple[str, ...], dict[str, float]]) -> Metric:
    """A counter from the tallies in the database."""
    family = CounterMetricFamily(name, series.help, labels=series.labels)
    if not series.labels:
        rows = rows or {(): {}}
    for key, values in rows.items():
        family.add_metric(key, values.get("", 0.0))
    return family


def histogram(name: str, series: Series, rows: dict[tuple[str, ...], dict[str, float]]) -> Metric:
    """A histogram from the tallies in the database."""
    family = HistogramMetricFamily(name, series.help, labels=series.labels)
    if not series.labels:
        rows = rows or {(): {}}
    for key, values in rows.items():
        total, buckets = 0.0, []
        for bound in [*(f"{each:g}" for each in series.bounds), "+Inf"]:
            total += values.get(bound, 0.0)
            buckets.append((bound, total))
        family.add_metric(key, buckets, values.get("sum", 0.0))
    return family


FAMILIES = (processes, tasks, migrations, hypervisors, audit, database, sums)


class Figures(Collector):
    """All of them; a database error is raised, and the scrape fails as a whole."""

    def describe(self) -> Iterable[Metric]:
        """Nothing: figures are read when they are scraped."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics, each read from the database once."""
        began = time.monotonic()
        yield gauge(
            "build_info", "Always 1; the label is the version of volmig.", [((__version__,), 1.0)], ("version",)
        )
        for family in FAMILIES:
            yield from family()
        yield one("scrape_seconds", "Time taken to collect these metrics.", time.monotonic() - began)


registry = CollectorRegistry(auto_describe=False)
registry.register(Figures())


def exposition() -> bytes:
    """All figures in Prometheus' text format; raises DatabaseError."""
    return generate_latest(registry)


def may_read(authorization: str) -> bool:
    """Whether a request with this Authorization header shows VOLMIG_METRICS_TOKEN, if there is one."""
    expected = f"Bearer {settings.METRICS_TOKEN}".encode()
    return not settings.METRICS_TOKEN or hmac.compare_digest(authorization.encode("utf-8", "replace"), expected)
