"""Which of volmig's processes are missing, by their heartbeats: for exec probes, the overview and a page of their own.

Where no process has ever sent a heartbeat nothing is known, and nothing is missing.
"""

import datetime as dt
from dataclasses import dataclass

from volmig.health import heart
from volmig.health.models import KEPT, Process
from volmig.templatetags.units import spoken

STARTING = dt.timedelta(seconds=60)  # after the first part has started, in which the others may still be missing
SKEW = 5.0  # seconds; leases, which are for 10 s and more, are by the database's clock, alarms by that of the machine
LOW, LOW_SHARE = 1024**3, 0.1  # free bytes of a data directory's disk, and share of it, of which both are too little
CALLED = {
    "web": "the web process",
    "workers": "the workers",
    "background": "the background workers",
    "watcher": "the watcher",
}
GROUPS = {"web": ("web",), "workers": ("workers", "background"), "watcher": ("watcher",)}  # as `manage.py up` has them
MISSING = {
    "workers": ("No workers run.", "Migrations stand still until they are started: manage.py up workers."),
    "background": (
        "No background workers run.",
        "Nothing is refreshed, scanned or notified until they are started: manage.py up workers.",
    ),
    "watcher": (
        "No watcher runs.",
        "Copies on hypervisors continue, but progress stands still and migrations move on late. "
        "Start it: manage.py up watcher.",
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
    """What is wrong with volmig's own processes and machines; one query."""
    rows = list(Process.objects.with_age())
    found = machines(rows)
    # Where the disk is full, heartbeats cannot be written into a database on it, and the full disk is listed.
    full = {each.machine for each in found if (each.kind, each.part) == ("disk", "full")}
    return [*missing(rows), *(each for each in late(rows) if each.machine not in full), *found]


def missing(rows: list[Process]) -> list[Trouble]:
    """Parts of which no process runs anywhere, unless volmig is only just starting."""
    alive = [row for row in rows if not row.late]
    if not any(row.beaten_at - row.started_at >= STARTING for row in alive):
        return []
    there = {row.part for row in alive}
    return [
        Trouble("missing", "", part, sentence, advice, bad=part != "background")
        for part, (sentence, advice) in MISSING.items()
        if part not in there
    ]


def late(rows: list[Process]) -> list[Trouble]:
    """Processes that did not stop in an orderly way, and of which no other took the place on their machine."""
    alive = {(row.machine, row.part) for row in rows if not row.late}
    return [
        Trouble(
            "late",
            row.machine,
            row.part,
            f"No heartbeat from {CALLED.get(row.part, row.part)}: the process has ended or hangs.",
            f"Check {row.machine}.",
            since=row.beaten_at,
        )
        for row in rows
        if row.late and row.age < KEPT and (row.machine, row.part) not in alive
    ]


def machines(rows: list[Process]) -> list[Trouble]:
    """Disks and clocks, each machine once. Of the disk of this machine what it is now: full, it takes no heartbeat."""
    here, own = heart.place(), heart.disk()
    found = {}
    for row in rows:
        local = row.place == here
        if row.late and not local:
            continue
        free, size = (own["disk_free"], own["disk_size"]) if local else (row.disk_free, row.disk_size)
        if trouble := low_disk(row.machine, free, size):
            found["disk", row.machine] = trouble
        if not row.late and row.skew is not None and abs(row.skew) > SKEW:
            found["clock", row.machine] = wrong_clock(row.machine, row.skew)
    return list(found.values())


def low_disk(machine: str, free: int | None, size: int | None) -> Trouble | None:
    if free is None or size is None:
        return None
    full = free < heart.FULL
    if not full and free >= min(LOW, LOW_SHARE * size):
        return None
    sentence = "The disk of the data directory is full." if full else "The disk of the data directory is almost full."
    detail = f"{free // 1024**2} of {size // 1024**2} MiB are free."
    return Trouble("disk", machine, "full" if full else "low", sentence, "Make space.", detail, full)


def wrong_clock(machine: str, skew: float) -> Trouble:
    way = "ahead of" if skew > 0 else "behind"
    sentence = f"Its clock is {way} the database's."
    return Trouble("clock", machine, way, sentence, "Synchronise it (NTP).", f"By {abs(skew):.1f} s.", True)


def faults(group: str) -> list[str]:
    """Why this machine's processes of a group (web, workers, watcher) are not well, a sentence each.

    By their own heartbeats alone: what is wrong elsewhere is no reason to start them anew.
    """
    mine = {row.part: row for row in Process.objects.with_age().filter(place=heart.place()).order_by("beaten_at")}
    found = []
    for part in GROUPS[group]:
        if part not in mine:
            found.append(f"No heartbeat from {CALLED[part]} of this machine.")
        elif mine[part].late:
            ago = spoken(mine[part].age.total_seconds())
            found.append(f"The last heartbeat from {CALLED[part]} of this machine was {ago} ago.")
    return found
