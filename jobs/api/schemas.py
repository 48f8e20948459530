"""The documents of migrations, approvals and what they leave; in which units, the API's description says."""

import datetime as dt
import uuid
from typing import Annotated, Any, Self

from ninja import Field, Schema

from jobs.drift import Row
from jobs.models import Approval as ApprovalRow
from jobs.models import Footprint, StepRun
from jobs.models import Job as JobRow
from jobs.models.presentation import Want
from jobs.web.review import Review as Reading
from volmig.api.schemas import PLAIN, Day, Kind, Long, Mib, Name, Page, Told, Words, same


class Wish(Told):
    """A migration, by the names that discovery knows: `volume` (VG/LV) of `source` becomes `disk` of `instance`.

    `destination` is needed only when several hypervisors have the instance. `rate_mib` is a limit in MiB/s.
    `rollback_minutes`: for how long after the swap the requester may go back by the swap's own approval.
    """

    source: Name
    volume: Name
    instance: uuid.UUID
    disk: Name = "disk.local"
    destination: Name | None = None
    relay: Name
    relay_vg: Name
    ticket: Words = ""
    rate_mib: Mib = None
    rollback_minutes: Annotated[int, Field(ge=0, le=24 * 60)] = 0


class NewJob(Wish):
    """`start` begins it as soon as the checks pass; else it waits, planned."""

    start: bool = True


class End(Schema):
    """Where a disk is, passes or goes: `path` is VG/LV on the source, a VG on the relay, a share on the destination."""

    hypervisor: str
    path: str


class Wanted(Schema):
    """A request for consent. Whoever consents names `digest`, which stands for all that would be done."""

    id: int
    kind: str
    state: str
    digest: str
    approvers: int
    consents: int
    requester: str
    created_at: dt.datetime
    expires_at: dt.datetime

    @classmethod
    def of(cls, row: ApprovalRow) -> Self:
        """The document of an approval request in a list."""
        names = ("kind", "state", "digest", "approvers", "created_at", "expires_at")
        return cls(id=row.pk, consents=row.count(), requester=row.requester.get_username(), **same(row, *names))


class Decision(Schema):
    """One person's yes or no."""

    person: str
    verdict: str
    reason: str
    at: dt.datetime
    withdrawn_at: dt.datetime | None


class Approval(Wanted):
    """A request with all that a yes stands on: what is bound, what proves it, what would run, and who said what."""

    job: int
    question: str
    when: str
    if_wrong: str
    why_not: list[str]
    proofs: list[str]
    unproved: list[str]
    warnings: list[str]
    differs: list[str]
    commands: list[str]
    bound: dict[str, Any]
    decisions: list[Decision]

    @classmethod
    def read(cls, row: ApprovalRow, by: Any) -> Self:
        """The document of a request with everything that it binds, for one person."""
        review = Reading(row)
        said = row.decisions.select_related("person").order_by("pk")
        names = ("verdict", "reason", "at", "withdrawn_at")
        return cls(
            **Wanted.of(row).model_dump(),
            job=row.job_id,
            question=review.question,
            when=review.when,
            if_wrong=review.if_wrong,
            why_not=list(row.why_not(by)),
            proofs=[f"{each.sentence} {each.exact}".strip() for each in review.proofs if each.holds],
            unproved=[each.sentence for each in review.proofs if not each.holds],
            warnings=[str(each["sentence"]) for each in review.warnings],
            differs=[each.sentence for each in review.requested if not each.same],
            commands=review.commands,
            bound=row.bound,
            decisions=[Decision(person=each.person.get_username(), **same(each, *names)) for each in said],
        )


class Halt(Schema):
    """Why it stands still. `touched` tells whether anything live was; null when that is not known."""

    reason: str
    code: str
    step: str
    touched: bool | None
    next: str

    @classmethod
    def of(cls, job: JobRow) -> "Halt | None":
        """Why it is halted; None when it is not."""
        if not job.halt_reason:
            return None
        data = job.halt_data if isinstance(job.halt_data, dict) else {}
        touched = data.get("touched")
        told = {name: str(data.get(name) or "") for name in ("code", "step", "next")}
        return Halt(reason=job.halt_reason, touched=touched if isinstance(touched, bool) else None, **told)


class Action(Schema):
    """A verb of the API that leads on from here, and why this token's person may not use it, if so."""

    verb: str
    does: str
    allowed: bool
    why_not: str


class JobLine(Schema):
    """A migration in a list; `halted` stands beside the status."""

    number: int
    status: str
    outcome: str
    halted: bool
    instance_id: str
    instance_name: str
    disk: str
    source: End
    relay: End
    destination: End
    size: int
    ticket: str
    requester: str
    created_at: dt.datetime
    ended_at: dt.datetime | None

    @classmethod
    def of(cls, row: JobRow, **more: Any) -> Self:
        """The document of a migration in a list; `size` in bytes."""
        names = ("number", "status", "outcome", "instance_id", "instance_name", "disk", "ticket")
        return cls(
            source=End(hypervisor=row.source.name, path=f"{row.source_vg}/{row.source_lv}"),
            relay=End(hypervisor=row.relay.name, path=row.relay_vg),
            destination=End(hypervisor=row.destination.name, path=row.share_source),
            halted=bool(row.halt_reason),
            size=row.source_size,
            requester=row.requester.get_username(),
            **same(row, *names, "created_at", "ended_at"),
            **more,
        )


class Job(JobLine):
    """A migration. How far its running step is, which changes all the time, is under `progress`.

    `rate` is its bandwidth limit, null for none. For `rollback_minutes` after the swap its requester may go back.
    """

    uuid: uuid.UUID
    lv_uuid: str
    sentence: str
    outcome_reason: str
    waiting_for: str
    halt: Halt | None
    approval: Wanted | None
    rate: int | None
    rollback_minutes: int
    plan_version: int
    plan_sha256: str
    cancel_requested_at: dt.datetime | None
    confirmed_at: dt.datetime | None
    kept_until: dt.datetime | None
    actions: list[Action]

    @classmethod
    def read(cls, row: JobRow, by: Any) -> Self:
        """The document of a migration with the actions of one person."""
        asked, kept = row.open_approval(), row.backup()
        names = ("uuid", "lv_uuid", "outcome_reason", "waiting_for", "rate", "rollback_minutes")
        return cls.of(
            row,
            sentence=row.sentence(),
            halt=Halt.of(row),
            approval=Wanted.of(asked) if asked else None,
            plan_version=row.version,
            plan_sha256=row.digest,
            kept_until=kept.keep_until if kept else None,
            actions=actions(row, by),
            **same(row, *names, "cancel_requested_at", "confirmed_at"),
        )


# The pages' verbs that the API calls otherwise
SPOKEN = {"ask-rollback": "rollback", "roll-back": "rollback-now", "ask-purge": "purge", "review": "approve"}


def actions(job: JobRow, by: Any) -> list[Action]:
    """What one person may do with it now, and why not."""
    return [
        Action(verb=SPOKEN.get(each.verb, each.verb), does=each.explains, allowed=each.allowed, why_not=each.why_not)
        for each in job.actions(by)
    ]


class Step(Schema):
    """`seconds` is how long it took, null before it has ended."""

    name: str
    title: str
    phase: str
    state: str
    seconds: float | None


class Pass(Schema):
    """The step under way; `bytes_total` is 0 for one that is no pass over the disk. `rate` is over the last 30 s."""

    name: str
    hypervisor: str
    bytes_done: int
    bytes_total: int
    rate: int
    seconds_left: float | None
    silent_since: dt.datetime | None

    @classmethod
    def of(cls, run: StepRun, moving: bool) -> Self:
        """The figures of the running step: bytes, bytes per second, seconds left while data moves."""
        figures = same(run, "bytes_done", "bytes_total", "rate", "silent_since")
        left = run.seconds_left if moving else None
        return cls(
            name=run.step, hypervisor=run.hypervisor.name if run.hypervisor else "", seconds_left=left, **figures
        )


class Condition(Schema):
    """The one status sentence, as on the page. `kind` stays the same for the same condition: halted,
    unanswered, version, key, facts, busy, still, hanging and idle, the same eight as down-… while the instance is down,
    down-late, fault, waiting-slot, waiting-window, waiting-settle, retrying, late, running, working, person or over.

    `tone` is bad, warn, wait, ask, run or flat. `attention`: someone should act. `detail` is the raw error.
    """

    kind: str
    sentence: str
    tone: str
    since: dt.datetime | None
    attention: bool
    advice: str
    detail: str

    @classmethod
    def of(cls, row: JobRow) -> Self:
        """The status sentence with its tone and advice."""
        state = row.condition()
        return cls(**same(state, "kind", "sentence", "tone", "since", "attention", "advice", "detail"))


class Down(Schema):
    """When the instance was shut off by the migration, until when (null: it still is), and the forecast in seconds:
    low, usual, high. `certain` is false while nobody knows what became of a stop that was asked for."""

    since: dt.datetime
    until: dt.datetime | None
    certain: bool
    forecast: list[float] | None

    @classmethod
    def of(cls, row: JobRow) -> Self | None:
        """Since when the instance is down and the forecast in seconds; None while it runs."""
        down = row.down()
        if down is None:
            return None
        return cls(forecast=list(down.forecast) if down.forecast else None, **same(down, "since", "until", "certain"))


class Progress(Schema):
    """How far a migration is. `seconds_left` to the end of this phase: low, middle, high; null unless it moves as it
    was forecast: not while anything stalls, is late or waits.

    `wants` is what some person has to do before it goes on: start, approve or confirm; empty while volmig is at it.
    """

    number: int
    status: str
    outcome: str
    halted: bool
    sentence: str
    condition: Condition
    down: Down | None
    wants: Want
    waiting_for: str
    running: Pass | None
    seconds_left: list[float] | None
    steps: list[Step]

    @classmethod
    def of(cls, row: JobRow) -> Self:
        """The document for polling: status, running step, steps, seconds left."""
        run, left = row.running(), row.time_left()
        steps = [
            Step(name=each.step, title=each.title, phase=each.phase, state=each.state, seconds=ended(each))
            for each in row.timeline()
        ]
        return cls(
            halted=bool(row.halt_reason),
            sentence=row.sentence(),
            condition=Condition.of(row),
            down=Down.of(row),
            wants=row.wants(),
            running=Pass.of(run, left is not None) if run else None,
            seconds_left=[round(each, 1) for each in left] if left else None,
            steps=steps,
            **same(row, "number", "status", "outcome", "waiting_for"),
        )


def ended(row: Any) -> float | None:
    """How long a step took; null while it runs, so that a document changes only when something happened."""
    return None if row.state in ("running", "todo") or row.seconds is None else round(row.seconds, 1)


class Plan(Schema):
    """What was checked, and what would run, as it is shown to people."""

    number: int
    version: int
    sha256: str
    facts_at: dt.datetime | None
    checks: list[dict[str, Any]]
    steps: list[dict[str, Any]]

    @classmethod
    def of(cls, row: JobRow) -> Self:
        """Checks, steps and the hash that an approval binds."""
        steps = (row.plan or {}).get("steps") or []
        figures: dict[str, Any] = {"number": row.number, "version": row.version, "sha256": row.digest}
        return cls(**figures, facts_at=row.facts_at, checks=row.checks or [], steps=steps)


class Consent(Told):
    """A yes to exactly what `digest` stands for; `instance` is the last six characters of the instance's id."""

    digest: Annotated[str, Field(max_length=64, pattern=PLAIN)]
    instance: Annotated[str, Field(max_length=40, pattern=PLAIN)]
    reason: Words
    kind: Kind | None = None


class Reason(Told):
    """Why; `kind` tells which request, when a migration has several."""

    reason: Words
    kind: Kind | None = None


class Rate(Told):
    """A limit in MiB/s, null for none."""

    rate_mib: Mib


class Rollback(Told):
    """`now` uses the rollback that was approved in advance with the swap; else one is asked for."""

    now: bool = False


class Longer(Told):
    """Until the end of which day, and why."""

    day: Day
    reason: Words


class Backup(Schema):
    """A disk that a swap left over; `keep_until` is null during the trial."""

    job: int
    instance_name: str
    share: str
    path: str
    size: int
    keep_until: dt.datetime | None
    is_due: bool
    purge_asked: bool
    rehearsal: str | None
    rehearsed_at: dt.datetime | None

    @classmethod
    def of(cls, row: Footprint) -> Self:
        """The document of a kept disk; `size` in bytes."""
        return cls(
            job=row.job_id,
            instance_name=row.job.instance_name,
            path=row.name,
            size=row.bytes,
            share=row.share.source if row.share else "",
            **same(row, "is_due", "keep_until", "purge_asked", "rehearsal", "rehearsed_at"),
        )


class About(Told):
    """Which thing: exactly as the list told it."""

    kind: Name
    name: Long
    job: Name
    identity: Long


class Leftover(Schema):
    """`verdict` is left (over), other (another one under the same name), stranger (not in the ledger), gone, or needed
    (in use). `job` is the migration's UUID in its marker, `number` the migration's. Of migrations that you may not see
    `name` is "of another team", and `job` and `identity` are empty."""

    verdict: str
    kind: str
    place: str
    name: str
    job: str
    number: int | None
    identity: str
    size: int
    since: dt.datetime | None
    hypervisor: str
    hypervisor_id: int
    removable: bool
    why_kept: str
    asked: bool

    @classmethod
    def of(cls, row: Row) -> Self:
        """The document of an object of volmig on a hypervisor or share."""
        return cls(
            verdict=row.found.verdict,
            number=row.job.pk if row.job else None,
            size=row.bytes,
            since=row.since,
            hypervisor=row.hypervisor.name,
            hypervisor_id=row.hypervisor.pk,
            removable=not row.why_kept and not row.removal,
            why_kept=row.why_kept,
            asked=row.removal is not None,
            **same(row.thing, "kind", "place", "name", "job", "identity"),
        )


class Jobs(Page):
    """One page of migrations."""

    items: list[JobLine]


class Approvals(Page):
    """One page of approval requests."""

    items: list[Wanted]


class Backups(Page):
    """One page of kept disks."""

    items: list[Backup]


class Leftovers(Page):
    """`asked_at` is when the hypervisor that told longest ago told; null while one has told nothing."""

    items: list[Leftover]
    asked_at: dt.datetime | None
