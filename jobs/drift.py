"""The ledger of all jobs and what hypervisors told, brought together: what pages show and removals stand on."""

import datetime as dt
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.functional import cached_property

from hosts.models import UUID, Hypervisor, Scan, Share
from jobs.engine import drift as leftovers
from jobs.engine import states
from jobs.engine.drift import Entry, Finding, Thing, Told
from jobs.models import Footprint, Job, Refused, Removal, StepRun
from jobs.models.job import ROLES
from jobs.models.plans import plans
from volmig.queue import ask_each
from volmig.recent import Recent
from volmig.refusals import Sentence

ON_SHARE = frozenset({"stage", "backup", "directory"})
ON_HYPERVISOR = frozenset({"lv", "fence", "filesystem", "mount", "export", "unit", "memory", "directory"})

HIDDEN = "of another team"
OF_OTHERS = "It belongs to a migration of another team."
# What is compared, and shown, of a job; of its hypervisors the keys.
COLUMNS = ("uuid", "status", "halt_reason", "instance_name", "lv_uuid", "digest", *ROLES)
IN_FOLDER = re.compile(rf"\.volmig/({UUID})(?:/|\Z)")  # of a job, on a share
# Of more things and rows of the ledger than FEW no page compares all anew each time it is shown.
FEW, SECONDS = 200, 15.0


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


class Mark(NamedTuple):
    """A row of the ledger as far as it is compared."""

    pk: int
    job_id: int
    kind: str
    hypervisor_id: int | None
    share_id: int | None
    name: str
    identity: str
    bytes: int
    state: str
    since: dt.datetime
    keep_until: dt.datetime | None


@dataclass(frozen=True)
class Comparison:
    """What is found where hypervisors are compared with the ledger, and what that was compared of.

    `jobs` are by UUID, and have COLUMNS only; `speaks` are the scans that count, by the share of which they do.
    """

    found: list[Finding]
    things: list[Thing]
    entries: list[Entry]
    jobs: dict[str, Job]
    scans: list[Scan]
    speaks: dict[str, Scan]
    at: dt.datetime


def comparison(hypervisors: QuerySet[Hypervisor]) -> Comparison:
    """The comparison for these hypervisors and the shares that they mount; the newest scan of each counts."""
    scans, speaks = reports(hypervisors)
    told = [*told_by_hypervisors(scans), *(told_of_share(source, scan) for source, scan in speaks.items())]
    things = [thing for scan in scans for thing in things_of(scan, speaks)]
    jobs = jobs_of(things)
    marks = marks_of(scans, speaks, things, jobs)
    jobs |= {str(job.uuid): job for job in others_of(marks, jobs)}
    entries = [*entries_of(marks, scans, jobs), *traces(things, jobs)]
    found = leftovers.compare(entries, things, told)
    made = Comparison(found, things, entries, jobs, scans, speaks, timezone.now())
    give_relays(made)
    return made


# By the hypervisors that a person sees: what others report changes no figure of theirs. For pages and the API alone:
# what people do about a finding, and what is done on hypervisors, stands on a comparison of its moment.
recent: Recent[frozenset[int], Comparison] = Recent(
    lambda pks: comparison(Hypervisor.objects.filter(pk__in=pks)),
    SECONDS,
    lambda made: len(made.things) + len(made.entries) > FEW,
)


def rows(hypervisors: QuerySet[Hypervisor]) -> list[Row]:
    """The comparison as it is now, with jobs, hypervisors and open removals."""
    return rows_of(comparison(hypervisors))


def rows_of(made: Comparison) -> list[Row]:
    by_name = {scan.hypervisor.name: scan.hypervisor for scan in made.scans}
    wishes = {(each.job_id, each.kind, each.place, each.name): each for each in Removal.objects.open()}
    found = (row_of(each, made.jobs, by_name, made.speaks) for each in made.found)
    return [with_removal(row, wishes) for row in found]


def give_relays(made: Comparison) -> None:
    """Sets the relay of each job of which the ledger has something on a share, with its team: it takes that away."""
    on_share = {each.about.job for each in made.found if each.entry and each.about.place in made.speaks}
    concerned = [made.jobs[uuid] for uuid in on_share if uuid in made.jobs]
    known = {scan.hypervisor_id: scan.hypervisor for scan in made.scans}
    if lacking := {job.relay_id for job in concerned} - known.keys():
        known |= Hypervisor.objects.select_related("team").defer("facts").in_bulk(lacking)
    for job in concerned:
        job.relay = known[job.relay_id]


def recent_for(user: Any) -> Comparison:
    """The comparison of what a person sees; at a large site it may be SECONDS old."""
    seen = Hypervisor.objects.visible_to(user).active().order_by()
    return recent.get(frozenset(seen.values_list("pk", flat=True)))


def drift_for(user: Any) -> int:
    """How many differences a person sees."""
    made = recent_for(user)
    return len(rows_for(user, replace(made, found=[each for each in made.found if each.drifts])))


def rows_for(user: Any, made: Comparison) -> list[Row]:
    """What a person may see of a comparison of the hypervisors that they see."""
    found = rows_of(made)
    mine = Job.objects.visible_to(user).filter(pk__in={row.job.pk for row in found if row.job})
    visible = set(mine.order_by().values_list("pk", flat=True))
    hidden = any(row.job and row.job.pk not in visible for row in found)
    hosts = Hypervisor.objects.visible_to(user).active().select_related("team").defer("facts") if hidden else ()
    own = {each.name: each for each in hosts}
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
    for scan in sorted(scans, key=moment):
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


def reports(hypervisors: QuerySet[Hypervisor]) -> tuple[list[Scan], dict[str, Scan]]:
    """The scans of these hypervisors, and for each share the one that speaks for it.

    What a scan lists on shares is read where it counts only: many hypervisors mount the same share, and each lists it.
    """
    asked = Scan.objects.filter(hypervisor__in=hypervisors).exclude(began_at=None)
    asked = asked.select_related("hypervisor__team").defer("hypervisor__facts")
    scans = list(asked.defer("hypervisor__facts", "on_shares"))
    newest = asked.in_bulk({scan.pk for scan in speakers(scans).values()}) if scans else {}
    # A scan that was taken meanwhile counts as a whole, so that its things are never taken for those of the one before.
    return [newest.get(scan.pk, scan) for scan in scans], speakers(newest.values())


def things_of(scan: Scan, speaks: dict[str, Scan]) -> list[Thing]:
    """What a scan found, without what a newer one told of the same share."""
    sources = {source for source, each in speaks.items() if each is scan}
    on_shares = [row for row in scan.on_shares if row["share"] in sources] if sources else []
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
        for row in [*scan.things, *on_shares]
    ]


def jobs_of(things: Iterable[Thing]) -> dict[str, Job]:
    """The jobs of this volmig that markers name, or in whose directory on a share something lies, by UUID."""
    named = {thing.job for thing in things if thing.job}
    named |= {found[1] for thing in things if (found := IN_FOLDER.match(thing.name))}
    known = Job.objects.filter(uuid__in=named).only(*COLUMNS).order_by() if named else ()
    return {str(job.uuid): job for job in known}


def others_of(marks: Iterable[Mark], jobs: dict[str, Job]) -> Iterable[Job]:
    """The jobs of what the ledger has and no marker names."""
    wanted = {mark.job_id for mark in marks} - {job.pk for job in jobs.values()}
    return Job.objects.filter(pk__in=wanted).only(*COLUMNS).order_by() if wanted else ()


def marks_of(scans: list[Scan], speaks: dict[str, Scan], things: list[Thing], jobs: dict[str, Job]) -> list[Mark]:
    """The ledger at these places as far as the scans say something about it, as tuples of Mark: what stands, and of the
    jobs that something was found of also what is said to be gone.

    A scan that does not list all of a share says nothing of the rest, of which there may be far more. A disk lies in
    the directory of its job, by which its rows are found.
    """
    hosts, whole = [scan.hypervisor_id for scan in scans], [name for name, scan in speaks.items() if not scan.more]
    ledger = Footprint.objects.order_by().exclude(kind__in=("space", "lock"))
    here = [thing for thing in things if thing.place not in speaks]
    there = [thing for thing in things if thing.place in speaks]
    # In queries each of which an index answers: in one, the whole ledger would be read. For the same reason those of
    # jobs say nothing of places, by whose index a database would read all that ever lay there.
    marks = marks_in(ledger.left().filter(hypervisor__in=hosts)) if hosts else {}
    marks |= marks_in(ledger.left().filter(share__in=Share.objects.filter(source__in=whole))) if whole else {}
    marks |= {key: mark for key, mark in of_found(ledger, here, jobs).items() if mark.hypervisor_id in hosts}
    marks |= {key: mark for key, mark in of_found(ledger, there, jobs).items() if mark.share_id}
    return [marks[key] for key in sorted(marks)]


def of_found(ledger: QuerySet[Footprint], things: list[Thing], jobs: dict[str, Job]) -> dict[int, Mark]:
    """What the ledger has of the jobs and kinds of these things."""
    named = {thing.job for thing in things} | {found[1] for thing in things if (found := IN_FOLDER.match(thing.name))}
    keys = [jobs[uuid].pk for uuid in named if uuid in jobs]
    return marks_in(ledger.filter(job__in=keys, kind__in={thing.kind for thing in things})) if keys else {}


def marks_in(ledger: QuerySet[Footprint]) -> dict[int, Mark]:
    return {mark.pk: mark for mark in map(Mark._make, ledger.values_list(*Mark._fields))}


def entries_of(marks: list[Mark], scans: list[Scan], jobs: dict[str, Job]) -> list[Entry]:
    """The rows of the ledger as the comparison takes them."""
    by_key = {job.pk: job for job in jobs.values()}
    plans.give(by_key[mark.job_id] for mark in marks if mark.kind in leftovers.leading())
    hosts = {scan.hypervisor_id: scan.hypervisor.name for scan in scans}
    on = {mark.share_id for mark in marks if mark.share_id}
    shares = dict(Share.objects.filter(pk__in=on).values_list("pk", "source")) if on else {}
    now = timezone.now()
    return [
        entry(mark, by_key[mark.job_id], shares.get(mark.share_id or 0) or hosts.get(mark.hypervisor_id or 0, ""), now)
        for mark in marks
    ]


def entry(mark: Mark, job: Job, place: str, now: dt.datetime) -> Entry:
    return Entry(
        mark.kind,
        place,
        f".volmig/{mark.name.rpartition('/.volmig/')[2]}" if mark.share_id else mark.name,
        str(job.uuid),
        recorded(mark, job),
        mark.state,
        mark.since,
        needed(job, mark, now),
        at_work(job),
        mark.pk,
        mark.bytes,
    )


def recorded(mark: Mark, job: Job) -> str:
    """Its identity: measured, or for what has none but where it leads, as it was planned."""
    if mark.kind == "fence":
        return job.lv_uuid
    steps = (job.plan or {}).get("steps", ()) if mark.kind in leftovers.leading() else ()
    led = (leftovers.leads_to(mark.kind, step["name"], step["args"]) for step in steps)
    return next(filter(None, led), mark.identity)


def at_work(job: Job) -> bool:
    """Whether its own ticks still make and remove things."""
    return job.status in states.ACTIVE or job.status == "purging"


def needed(job: Job, mark: Mark | None = None, now: dt.datetime | None = None) -> str:
    """Why something has to stay, as a sentence; empty when nothing needs it any more."""
    if at_work(job):
        return f"Migration {job.pk} is {job.words} and removes it."
    if mark is None or mark.kind != "backup" or (mark.keep_until and mark.keep_until <= (now or timezone.now())):
        return ""
    return f"It is kept until its purge is approved: migration {job.pk} is {job.words}."


def traces(things: Iterable[Thing], jobs: dict[str, Job]) -> list[Entry]:
    """What the journal proves of units, memories and directories that were found: jobs of ours worked there."""
    wanted = [thing for thing in things if thing.kind in leftovers.TRACES and thing.job in jobs]
    if not wanted:
        return []
    pks = {jobs[thing.job].pk for thing in wanted}
    runs = StepRun.objects.filter(job__in=pks).order_by()
    marks = Footprint.objects.filter(job__in=pks).order_by()
    runs_of = by_job(runs.values("job_id", "hypervisor__name", "unit", "ended_at", "started_at"))
    marks_of = by_job(marks.values("job_id", "kind", "name", "since", "hypervisor__name", "share__source"))
    found = ((thing, jobs[thing.job]) for thing in wanted)
    return [made for thing, job in found if (made := trace(thing, job, runs_of[job.pk], marks_of[job.pk]))]


def by_job(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    grouped: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        grouped[row["job_id"]].append(row)
    return grouped


def trace(
    thing: Thing, job: Job, runs: Iterable[Mapping[str, Any]], marks: Iterable[Mapping[str, Any]]
) -> Entry | None:
    """The entry of one such thing, since when the job last did something about it; None when it never did.

    `runs` and `marks` are those of the job, wherever.
    """
    mine = [run for run in runs if run["hypervisor__name"] == thing.place]
    if thing.kind == "unit":
        mine = [run for run in mine if run["unit"] == thing.name]
    times = [mark["since"] for mark in marks if proves(mark, thing)]
    if thing.kind != "directory":
        times += [run["ended_at"] or run["started_at"] for run in mine]
    if not times:
        return None
    said, runs_on = needed(job), thing.kind == "unit" and any(run["ended_at"] is None for run in mine)
    state = "running" if runs_on else "trace"
    return Entry(thing.kind, thing.place, thing.name, thing.job, thing.identity, state, max(times), said, at_work(job))


def proves(mark: Mapping[str, Any], thing: Thing) -> bool:
    """Whether a row of the ledger is the reason for a directory, or for the unit that holds a source."""
    there = thing.place == (mark["share__source"] or mark["hypervisor__name"])
    if thing.kind == "unit":
        return there and mark["kind"] == "fence" and thing.name.endswith("-holder")
    if thing.kind == "directory":
        folder = f"/{thing.name}/" if mark["share__source"] else ""
        return there and (mark["name"] == thing.name or (bool(folder) and folder in mark["name"]))
    return False


# What people do about them


def ask_anew(by: Any) -> int:
    """Queues a scan of every hypervisor of theirs, unless one waits, runs or ended a moment ago; returns how many.

    All of them are one request of this person. Raises Refused when they have made too many.
    """
    return ask_each("hosts.tasks.scan", Hypervisor.objects.visible_to(by).reachable().values_list("pk", flat=True), by)


def scans_queued(count: int) -> str:
    """The answer to a person who asked for scans."""
    if count == 0:
        return "No scan was queued: every hypervisor is being scanned or was scanned a moment ago."
    return f"{count} {'scan is' if count == 1 else 'scans are'} queued. The ages show when the data is new."


def one_of(by: Any, host: Hypervisor, kind: str, name: str, job: str, identity: str) -> Row:
    """The row that is meant, as it stands now; refused when there is none (any more)."""
    made = comparison(Hypervisor.objects.visible_to(by).active())
    mine = (row for row in rows_for(by, made) if row.hypervisor.pk == host.pk)
    found = [row for row in mine if row.is_about(kind, name, job, identity)]
    if not found:
        raise Refused(Sentence("not-so", "The state has changed. Nothing was changed; reload and try again."))
    return found[0]


def remove(by: Any, host: Hypervisor, *about: str) -> str:
    """Have it removed; returns what happens now, as a sentence."""
    row = one_of(by, host, *about)
    if row.why_kept or row.job is None:
        raise Refused(Sentence("leftover-kept", row.why_kept or "volmig does not know its migration."))
    Removal.objects.ask(by, row.found, row.job, host, row.step)
    recent.forget()
    return f"{row.about.name} is checked again and removed if it still matches the inventory. See the result below."


def strike(by: Any, host: Hypervisor, *about: str) -> str:
    """Mark it as gone; returns that it is, as a sentence."""
    row = one_of(by, host, *about)
    if row.why_not_struck or row.found.entry is None:
        raise Refused(Sentence("leftover-there", row.why_not_struck))
    Footprint.objects.get(pk=row.found.entry.key).strike_off(by, row.found, host)
    recent.forget()
    return f"{row.about.name} is marked as gone; the audit log notes it."


ABOUT: dict[str, Callable[..., str]] = {"remove": remove, "strike": strike}
