"""The ledger of all jobs and what hypervisors told, brought together: what pages show and removals stand on."""

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.functional import cached_property

from hosts.models import Hypervisor, Scan
from jobs.engine import leftovers, states
from jobs.engine.leftovers import Entry, Finding, Thing, Told
from jobs.models import Footprint, Job, Refused, Removal, StepRun
from jobs.models.footprint import BULKY
from jobs.models.job import ROLES
from volmig.queue import ask_each
from volmig.refused import Sentence

ON_SHARE = frozenset({"stage", "backup", "directory"})
ON_HYPERVISOR = frozenset({"lv", "fence", "filesystem", "mount", "export", "unit", "memory", "directory"})

HIDDEN = "of another team"
OF_OTHERS = "It belongs to a migration of another team."


@dataclass(frozen=True)
class Row:
    """A finding with the job whose marker or ledger it is, and the hypervisor on which it would be acted."""

    found: Finding
    job: Job | None
    hypervisor: Hypervisor
    removal: Removal | None = None
    of_others: bool = False  # of a migration that the person may not see: what it is, without its name

    @property
    def about(self) -> Entry | Thing:
        return self.found.about

    @property
    def thing(self) -> Thing:
        """What was seen, or what would be seen if it were there: for commands by hand."""
        about = self.about
        return self.found.thing or Thing(about.kind, about.place, about.name, about.job, about.identity)

    @property
    def bytes(self) -> int:
        return self.thing.bytes or (self.found.entry.bytes if self.found.entry else 0)

    @property
    def since(self) -> dt.datetime | None:
        """By the ledger, else since it was first seen or what its file says."""
        return self.found.entry.since if self.found.entry and self.found.entry.key else self.thing.since

    @property
    def step(self) -> str:
        """The step whose undo removes it; empty when none does."""
        roles = [role for role in ROLES if self.job and getattr(self.job, f"{role}_id") == self.hypervisor.pk]
        running = self.found.entry is not None and self.found.entry.state == "running"
        return leftovers.step_for(self.about.kind, self.about.name, roles[0], running) if roles else ""

    @cached_property
    def why_kept(self) -> str:
        """Why volmig does not remove it, as a sentence; empty when somebody may ask for that."""
        if self.of_others:
            return OF_OTHERS
        return leftovers.why_not_removed(self.found) or ("" if self.step else "No step of its migration removes it.")

    @cached_property
    def why_not_struck(self) -> str:
        return OF_OTHERS if self.of_others else leftovers.why_not_struck(self.found)

    def without_names(self, own: dict[str, Hypervisor]) -> "Row | None":
        """The same for people who may not see its migration: names, paths and identities hold its UUID.

        `own` are their hypervisors by name; None when none of them is concerned nor has seen it.
        """
        entry, thing = self.found.entry, self.found.thing
        host = own.get(self.hypervisor.name) or own.get(thing.seen_by if thing else "")
        if host is None:
            return None
        found = replace(
            self.found,
            entry=entry and replace(entry, name=HIDDEN, job="", identity="", needed=""),
            thing=thing and replace(thing, name=HIDDEN, job="", identity="", path=""),
        )
        return Row(found, None, host, None, of_others=True)

    @property
    def hands(self) -> tuple[list[str], list[str]]:
        return leftovers.by_hand(self.thing)

    def is_about(self, kind: str, name: str, job: str, identity: str) -> bool:
        about = self.thing
        return (about.kind, about.name, about.job, about.identity) == (kind, name, job, identity)


def rows(hypervisors: QuerySet[Hypervisor]) -> list[Row]:
    """The comparison for these hypervisors and the shares that they mount; the newest scan of each counts."""
    asked = Scan.objects.filter(hypervisor__in=hypervisors).exclude(began_at=None)
    scans = list(asked.select_related("hypervisor__team").defer("hypervisor__facts"))
    if not scans:
        return []
    speaks = speakers(scans)
    told = [*told_by_hypervisors(scans), *(told_of_share(source, scan) for source, scan in speaks.items())]
    things = [thing for scan in scans for thing in things_of(scan, speaks)]
    jobs = jobs_of(things)
    entries = [*entries_of(scans, speaks, jobs), *traces(things, jobs, scans)]
    found = leftovers.compare(entries, things, told)
    jobs |= {str(job.uuid): job for job in named(found, jobs)}
    by_name = {scan.hypervisor.name: scan.hypervisor for scan in scans}
    wishes = {(each.job_id, each.kind, each.place, each.name): each for each in Removal.objects.open()}
    made = (row_of(each, jobs, by_name, speaks) for each in found)
    return [with_removal(row, wishes) for row in made]


def rows_for(user: Any) -> list[Row]:
    """The comparison that a person may see."""
    hypervisors = Hypervisor.objects.visible_to(user).active()
    found, own = rows(hypervisors), {each.name: each for each in hypervisors.select_related("team").defer("facts")}
    mine = Job.objects.visible_to(user).filter(pk__in={row.job.pk for row in found if row.job})
    visible = set(mine.values_list("pk", flat=True))
    shown = (row if row.job is None or row.job.pk in visible else row.without_names(own) for row in found)
    return [row for row in shown if row]


def with_removal(row: Row, wishes: dict[Any, Removal]) -> Row:
    wish = row.job and wishes.get((row.job.pk, row.about.kind, row.about.place, row.about.name))
    return Row(row.found, row.job, row.hypervisor, wish) if wish else row


def row_of(found: Finding, jobs: dict[str, Job], by_name: dict[str, Hypervisor], speaks: dict[str, Scan]) -> Row:
    about = found.about
    job = jobs.get(about.job)
    on_share = speaks.get(about.place)
    if on_share is None:
        return Row(found, job, by_name[about.place])
    # The relay put the stage there and takes it away; what nobody knows is looked at where it was seen.
    return Row(found, job, job.relay if job and found.entry else on_share.hypervisor)


def speakers(scans: Iterable[Scan]) -> dict[str, Scan]:
    """For each share the newest scan in which it answered."""
    heard: dict[str, Scan] = {}
    for scan in sorted(scans, key=lambda scan: scan.began_at or scan.tried_at):
        heard |= {share["source"]: scan for share in scan.shares if share["answered"]}
    return heard


def told_by_hypervisors(scans: Iterable[Scan]) -> list[Told]:
    return [
        Told(scan.hypervisor.name, moment(scan), frozenset() if scan.more else ON_HYPERVISOR - set(scan.missed))
        for scan in scans
    ]


def told_of_share(source: str, scan: Scan) -> Told:
    return Told(source, moment(scan), frozenset() if scan.more else ON_SHARE)


def moment(scan: Scan) -> dt.datetime:
    return scan.began_at or scan.tried_at


def things_of(scan: Scan, speaks: dict[str, Scan]) -> list[Thing]:
    """What a scan found, without what a newer one told of the same share."""
    mine = [row for row in scan.things if not row["share"] or speaks.get(row["share"]) is scan]
    return [
        Thing(
            row["kind"],
            row["share"] or scan.hypervisor.name,
            row["name"],
            row["job"],
            row["identity"],
            row["size"],
            dt.datetime.fromtimestamp(row["since"], dt.UTC)
            if row["since"]
            else dt.datetime.fromisoformat(row["first_seen"]),
            row["path"],
            scan.hypervisor.name,
        )
        for row in mine
    ]


def jobs_of(things: Iterable[Thing]) -> dict[str, Job]:
    """The jobs of this volmig that markers name, by UUID."""
    known = Job.objects.filter(uuid__in={thing.job for thing in things if thing.job})
    return {str(job.uuid): job for job in known.with_names().defer(*BULKY)}


def named(found: Iterable[Finding], jobs: dict[str, Job]) -> Iterable[Job]:
    """The jobs of what the ledger has and no marker names."""
    wanted = {each.entry.job for each in found if each.entry} - jobs.keys()
    return Job.objects.filter(uuid__in=wanted).with_names().defer(*BULKY) if wanted else ()


def entries_of(scans: list[Scan], speaks: dict[str, Scan], jobs: dict[str, Job]) -> list[Entry]:
    """The ledger at these places: what stands, and what is said to be gone of jobs that something was found of."""
    there = Q(hypervisor__in=[scan.hypervisor_id for scan in scans]) | Q(share__source__in=list(speaks))
    kept = Footprint.objects.filter(there).exclude(kind__in=("space", "lock"))
    kept = kept.select_related("hypervisor", "share", "job").defer(*(f"job__{name}" for name in BULKY))
    gone = kept.filter(state="gone", job__in=[job.pk for job in jobs.values()])
    # In two queries, each of which an index answers: in one, the whole ledger would be read.
    marks = sorted([*kept.left(), *gone], key=lambda mark: mark.pk)
    planned = {mark.job_id for mark in marks if mark.kind in ("mount", "export")}
    plans = dict(Job.objects.filter(pk__in=planned).values_list("pk", "plan")) if planned else {}
    return [entry(mark, plans.get(mark.job_id) or {}) for mark in marks]


def entry(mark: Footprint, plan: dict[str, Any]) -> Entry:
    place = mark.share.source if mark.share else mark.hypervisor.name if mark.hypervisor else ""
    name = f".volmig/{mark.name.rpartition('/.volmig/')[2]}" if mark.share else mark.name
    return Entry(
        mark.kind,
        place,
        name,
        str(mark.job.uuid),
        recorded(mark, plan),
        mark.state,
        mark.since,
        needed(mark.job, mark),
        at_work(mark.job),
        mark.pk,
        mark.bytes,
    )


def recorded(mark: Footprint, plan: dict[str, Any]) -> str:
    """Its identity: measured, or for what has none but where it leads, as it was planned."""
    if mark.kind == "fence":
        return mark.job.lv_uuid
    args = {step["name"]: step["args"] for step in plan.get("steps", ())}
    if mark.kind == "mount" and (planned := args.get("source_mount")):
        return f"{planned['address']}:{planned['export']}"
    if mark.kind == "export" and (planned := args.get("relay_export")):
        return str(planned["client"])
    return mark.identity


def at_work(job: Job) -> bool:
    """Whether its own ticks still make and remove things."""
    return job.status in states.ACTIVE or job.status == "purging"


def needed(job: Job, mark: Footprint | None = None) -> str:
    """Why something has to stay, as a sentence; empty when nothing needs it any more."""
    if at_work(job):
        return f"Migration {job.pk} is {job.words} and takes it away itself."
    if mark is None or mark.kind != "backup" or (mark.keep_until and mark.keep_until <= timezone.now()):
        return ""
    return f"It is kept until its purge is approved: migration {job.pk} is {job.words}."


def traces(things: Iterable[Thing], jobs: dict[str, Job], scans: list[Scan]) -> list[Entry]:
    """What the journal proves of units, memories and directories that were found: jobs of ours worked there."""
    wanted = [thing for thing in things if thing.kind in leftovers.TRACES and thing.job in jobs]
    if not wanted:
        return []
    pks = {jobs[thing.job].pk for thing in wanted}
    runs = list(StepRun.objects.filter(job__in=pks).values("job", "hypervisor__name", "unit", "ended_at", "started_at"))
    marks = list(Footprint.objects.filter(job__in=pks).select_related("hypervisor", "share"))
    return [made for thing in wanted if (made := trace(thing, jobs[thing.job], runs, marks))]


def trace(thing: Thing, job: Job, runs: Iterable[Any], marks: list[Footprint]) -> Entry | None:
    """The entry of one such thing, since when the job last did something about it; None when it never did."""
    mine = [run for run in runs if (run["job"], run["hypervisor__name"]) == (job.pk, thing.place)]
    held = [mark for mark in marks if mark.job_id == job.pk and proves(mark, thing)]
    if thing.kind == "unit":
        mine = [run for run in mine if run["unit"] == thing.name]
    times = [mark.since for mark in held]
    if thing.kind != "directory":
        times += [run["ended_at"] or run["started_at"] for run in mine]
    if not times:
        return None
    said, runs_on = needed(job), thing.kind == "unit" and any(run["ended_at"] is None for run in mine)
    state = "running" if runs_on else "trace"
    return Entry(thing.kind, thing.place, thing.name, thing.job, thing.identity, state, max(times), said, at_work(job))


def proves(mark: Footprint, thing: Thing) -> bool:
    """Whether a row of the ledger is the reason for a directory, or for the unit that holds a source."""
    if thing.kind == "unit":
        return mark.kind == "fence" and thing.name.endswith("-holder") and there(mark, thing)
    if thing.kind == "directory":
        folder = f"/{thing.name}/" if mark.share else ""
        return there(mark, thing) and (mark.name == thing.name or (bool(folder) and folder in mark.name))
    return False


def there(mark: Footprint, thing: Thing) -> bool:
    return thing.place == (mark.share.source if mark.share else mark.hypervisor.name if mark.hypervisor else None)


# What people do about them


def ask_anew(by: Any) -> int:
    """Queues a scan of every hypervisor of theirs, unless one waits, runs or ended a moment ago; returns how many.

    All of them are one request of this person. Raises Refused when they have made too many.
    """
    return ask_each("hosts.tasks.scan", Hypervisor.objects.visible_to(by).reachable().values_list("pk", flat=True), by)


def scans_queued(count: int) -> str:
    """The answer to a person who asked for scans."""
    if count == 0:
        return "No scan was queued: every hypervisor is being scanned, or was a moment ago."
    return f"{count} {'scan is' if count == 1 else 'scans are'} queued. The ages show when the figures are new."


def one_of(by: Any, host: Hypervisor, kind: str, name: str, job: str, identity: str) -> Row:
    """The row that is meant, as it stands now; refused when there is none (any more)."""
    found = [row for row in rows_for(by) if row.hypervisor.pk == host.pk and row.is_about(kind, name, job, identity)]
    if not found:
        raise Refused(Sentence("not-so", "That is not so any more. Nothing was changed; look again."))
    return found[0]


def remove(by: Any, host: Hypervisor, *about: str) -> str:
    """Have it removed; returns what happens now, as a sentence."""
    row = one_of(by, host, *about)
    if row.why_kept or row.job is None:
        raise Refused(Sentence("leftover-kept", row.why_kept or "Its migration is not known here."))
    Removal.objects.ask(by, row.found, row.job, host, row.step)
    return (
        f"{row.about.name} is looked at once more and removed, if it is still as recorded. See below what became of it."
    )


def strike(by: Any, host: Hypervisor, *about: str) -> str:
    """Mark it as gone; returns that it is, as a sentence."""
    row = one_of(by, host, *about)
    if row.why_not_struck or row.found.entry is None:
        raise Refused(Sentence("leftover-there", row.why_not_struck))
    Footprint.objects.get(pk=row.found.entry.key).strike_off(by, row.found, host)
    return f"{row.about.name} is marked as gone, and that is recorded."


ABOUT: dict[str, Callable[..., str]] = {"remove": remove, "strike": strike}
