"""Which of volmig's processes are missing, by their heartbeats: for exec probes, the overview and a page of their own.

Where no process has ever sent a heartbeat nothing is known, and nothing is missing.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from django.db.models import Count, Min
from django.utils import timezone

from volmig.health import absent, heart
from volmig.health.models import KEPT, Incident, Process
from volmig.models import QueuedTask
from volmig.parts import BACKGROUND, MIGRATIONS, called, how_to_start, of_group, of_queue
from volmig.templatetags.units import spoken

SKEW = 5.0  # seconds; leases, which are for 10 s and more, are by the database's clock, alarms by that of the machine
LOW, LOW_SHARE = 1024**3, 0.1  # free bytes of a data directory's disk, and share of it, of which both are too little
TOOK_OVER = dt.timedelta(seconds=15)  # by which the end of a process may lie after its last heartbeat
TOGETHER = dt.timedelta(seconds=30)  # that two processes of one name have to live at the same time
SHOWN = dt.timedelta(minutes=30)  # for so long the overview lists what is over; the page of processes has it for a day
NEAR = dt.timedelta(seconds=30)  # between what is one outage as several processes met it
MISSING = {
    "workers": (
        "No workers are running.",
        f"Migrations wait until they are started: {how_to_start('workers')}.",
    ),
    "background": (
        "No background workers are running.",
        f"Nothing is refreshed, scanned or notified until they are started: {how_to_start('workers')}.",
    ),
    "watcher": (
        "No watcher is running.",
        "Copies on hypervisors continue, but progress is not updated and migrations continue late. "
        f"Start it: {how_to_start('watcher')}.",
    ),
}


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong with volmig itself; `kind`, `machine` and `part` stay the same while it lasts."""

    kind: str
    machine: str
    part: str
    sentence: str
    advice: str
    detail: str = ""
    bad: bool = True
    since: dt.datetime | None = None


def troubles() -> list[Trouble]:
    """What is wrong with volmig's own processes and machines, and what was a moment ago; three queries."""
    return [*now(), *over(Incident.objects.lately(SHOWN))]


def now() -> list[Trouble]:
    """What is wrong with them."""
    rows = list(Process.objects.with_age())
    found = machines(rows)
    # Heartbeats cannot be written into a database on such a disk, which is listed.
    unwritable = {each.machine for each in found if each.kind == "disk" and each.part != "low"}
    gone = missing(rows)
    return [
        *gone,
        *(each for each in late(rows) if each.machine not in unwritable),
        *found,
        *namesakes(rows),
        *(each for each in backlog() if not any(other.part == each.part for other in gone)),
    ]


def missing(rows: list[Process]) -> list[Trouble]:
    """Parts of which no process runs anywhere, unless volmig is only just starting."""
    gone = absent.parts(rows)
    return [
        Trouble("missing", "", part, sentence, advice, bad=part != "background", since=gone[part])
        for part, (sentence, advice) in MISSING.items()
        if part in gone
    ]


def late(rows: list[Process]) -> list[Trouble]:
    """Processes that did not stop in an orderly way, and of which no other took the place on their machine."""
    alive = [row for row in rows if not row.late]

    def is_replaced(lost: Process) -> bool:
        """Whether one was started there since: of two containers of one name each may have its own."""
        since = lost.beaten_at - TOOK_OVER
        return any((lost.machine, lost.part) == (row.machine, row.part) and row.started_at > since for row in alive)

    return [
        Trouble(
            "late",
            row.machine,
            row.part,
            f"No heartbeat from the {called(row.part)}: the process has ended or hangs.",
            f"Check {row.machine}.",
            since=row.beaten_at,
        )
        for row in rows
        if row.late and row.age < KEPT and not is_replaced(row)
    ]


def machines(rows: list[Process]) -> list[Trouble]:
    """Disks and clocks, each machine once. Of the disk of this machine what it is now: full, it takes no heartbeat."""
    here, own = heart.pid_space(), heart.disk()
    found = {}
    for row in rows:
        local = row.pid_space == here
        if row.late and not local:
            continue
        free, size = (own["disk_free"], own["disk_size"]) if local else (row.disk_free, row.disk_size)
        if trouble := low_disk(row.machine, free, size):
            found["disk", row.machine] = trouble
        if not row.late and row.skew is not None and abs(row.skew) > SKEW:
            found["clock", row.machine] = wrong_clock(row.machine, row.skew)
    return list(found.values())


def namesakes(rows: list[Process]) -> list[Trouble]:
    """Machines or containers that have one name: what is said of one may be about the other."""
    alive = [row for row in rows if not row.late]
    found = set()
    for one in alive:
        for other in alive:
            if (one.machine, one.part) == (other.machine, other.part) and one.pid_space < other.pid_space:
                lived = min(one.beaten_at, other.beaten_at) - max(one.started_at, other.started_at)
                if lived >= TOGETHER:
                    found.add(one.machine)
    return [
        Trouble(
            "name",
            machine,
            "",
            "Two machines, containers or data directories have this name and run the same part.",
            "Give each its own host name, so that this page can name each of them.",
            bad=False,
        )
        for machine in sorted(found)
    ]


# Of each queue: for how many seconds its oldest task may wait, what is said of it, and what makes more workers.
WAITING = {
    MIGRATIONS: (30.0, "Migrations wait for a worker", "VOLMIG_WORKERS"),
    BACKGROUND: (300.0, "Refreshes, scans and notices wait for a worker", "VOLMIG_BACKGROUND_WORKERS"),
}


def backlog() -> list[Trouble]:
    """Queues whose oldest task has waited for too long."""
    at = timezone.now()
    waiting = QueuedTask.objects.waiting().filter(queue__in=WAITING).order_by().values("queue")
    found = []
    for row in waiting.annotate(count=Count("pk"), oldest=Min("queued_at")):
        age = (at - row["oldest"]).total_seconds()
        patience, what, variable = WAITING[row["queue"]]
        if age > patience:
            tasks = f"{row['count']:,} task{'s wait' if row['count'] > 1 else ' waits'}"
            advice = f"They may catch up. If this lasts, start more of them ({variable}, or another machine)."
            said = f"{what}: {tasks}, the oldest for {spoken(age)}."
            part = of_queue(row["queue"]).name
            found.append(Trouble("backlog", "", part, said, advice, bad=row["queue"] == MIGRATIONS))
    return found


@dataclass
class Group:
    """Incidents that are one thing to people: an outage that several processes met, or a process that ended often."""

    began: dt.datetime
    ended: dt.datetime
    rows: list[Incident] = field(default_factory=list)

    @property
    def whom(self) -> str:
        """The processes that noticed it."""
        return f"Noticed by: {', '.join(sorted({f'{row.part} on {row.machine}' for row in self.rows}))}."

    @property
    def when(self) -> str:
        """From when to when it lasted."""
        return times(self.began, self.ended)


def over(rows: Iterable[Incident]) -> list[Trouble]:
    """What went wrong and is over."""
    groups = dict[tuple[str, str, str], list[Group]]()
    for row in rows:
        apart = row.kind == "process"
        known = groups.setdefault((row.kind, row.machine, row.part) if apart else (row.kind, "", ""), [])
        if not known or (not apart and row.began_at > known[-1].ended + NEAR):
            known.append(Group(row.began_at, row.ended_at))
        known[-1].ended = max(known[-1].ended, row.ended_at)
        known[-1].rows.append(row)
    return [HAPPENED[kind](kind, group) for (kind, *_), known in groups.items() if kind in HAPPENED for group in known]


def outage(kind: str, group: Group) -> Trouble:
    """The database was unreachable, or had no free connection."""
    what = "The database was unreachable" if kind == "database" else "The database had no free connection"
    return ended(kind, group, "", f"{what} {group.when}.", "It is over; migrations continue.", group.whom)


def ended_unexpectedly(kind: str, group: Group) -> Trouble:
    """A process ended and was started again, once or several times."""
    last = group.rows[-1]
    name, often = called(last.part), len(group.rows)
    how_often = f"ended unexpectedly {often} times, last" if often > 1 else "ended unexpectedly"
    when = times(last.began_at, last.ended_at, "between", "and")
    said = f"The {name} {how_often} {when}, and started again."
    return ended(kind, group, last.machine, said, f"If it happens again, read the log of {last.machine}.")


def lost_leases(kind: str, group: Group) -> Trouble:
    """Workers no longer handled migrations, and others took over."""
    # In the order of numbers, although a row of the database could hold anything.
    numbers = sorted({row.part for row in group.rows}, key=lambda each: (len(each), each))
    one = len(numbers) == 1
    which = f"migration {numbers[0]}" if one else f"{len(numbers)} migrations"
    why = "they ended, or could not reach the database"
    said = f"Workers stopped handling {which} {group.when}: {why}. Others took over."
    detail = f"{'Migration' if one else 'Migrations'} {', '.join(numbers)}. {group.rows[-1].detail}"
    return ended(kind, group, "", said, "It is over; migrations continue.", detail)


def ended(kind: str, group: Group, machine: str, sentence: str, advice: str, detail: str = "") -> Trouble:
    """A trouble that is over; it is listed but not counted."""
    part = f"{kind} {group.began:%Y%m%d%H%M%S} {len(group.rows)}"
    return Trouble("over", machine, part, sentence, advice, detail, bad=False)


HAPPENED: dict[str, Callable[[str, Group], Trouble]] = {
    "database": outage,
    "slots": outage,
    "process": ended_unexpectedly,
    "lease": lost_leases,
}


def times(began: dt.datetime, ended: dt.datetime, first: str = "from", second: str = "to") -> str:
    """From when to when, in the time zone of pages, to the second; with a day where that is not today's."""
    one, other = timezone.localtime(began), timezone.localtime(ended)
    return f"{first} {clock(one, timezone.localdate())} {second} {clock(other, one.date())} {other:%Z}"


def clock(at: dt.datetime, day: dt.date) -> str:
    """The time, with its day when that is not `day`."""
    return f"{at:%H:%M:%S}" if at.date() == day else f"{at.day} {at:%B}, {at:%H:%M:%S}"


def low_disk(machine: str, free: int | None, size: int | None) -> Trouble | None:
    """The trouble of a data directory that is full, nearly full or cannot be read; None for none. In bytes."""
    if free is None or size is None:
        advice = "Check that its disk or its share works."
        return Trouble("disk", machine, "unreadable", "The data directory cannot be read.", advice)
    full = free < heart.FULL
    if not full and free >= min(LOW, LOW_SHARE * size):
        return None
    sentence = "The disk of the data directory is full." if full else "The disk of the data directory is almost full."
    detail = f"{free // 1024**2} of {size // 1024**2} MiB are free."
    return Trouble("disk", machine, "full" if full else "low", sentence, "Free disk space.", detail, full)


def wrong_clock(machine: str, skew: float) -> Trouble:
    """The trouble of a clock that is off by `skew` seconds."""
    way = "ahead of" if skew > 0 else "behind"
    sentence = f"Its clock is {way} the database's."
    return Trouble("clock", machine, way, sentence, "Synchronise it (NTP).", f"By {abs(skew):.1f} s.", True)


def faults(group: str) -> list[str]:
    """Why this machine's processes of a group (web, workers, watcher) are not well, a sentence each.

    By their own heartbeats alone: what is wrong elsewhere is no reason to start them anew.
    """
    rows = list(Process.objects.with_age().filter(pid_space=heart.pid_space()).order_by("beaten_at"))
    found = []
    for part in of_group(group):
        mine = [row for row in rows if row.part == part.name]
        # One of several that has ended is started again, and one that hangs is not: it has not ended.
        late = [row for row in mine if row.late and (row is mine[-1] or row.is_there)]
        if not mine:
            found.append(f"No heartbeat from the {part.called} of this machine.")
        elif late:
            which, ago = f"{part.called} of this machine", spoken(late[0].age.total_seconds())
            found.append(f"The last heartbeat from the {which} was {ago} ago.")
    return found
