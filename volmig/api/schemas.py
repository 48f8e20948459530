"""The documents that the API gives and takes; in which units, its description says."""

import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from ninja import Field, Schema

from hosts.models import Cloud as CloudRow
from hosts.models import Hypervisor as HypervisorRow
from hosts.models import Instance, LogicalVolume
from hosts.models import Server as ServerRow
from hosts.remote.host import fingerprint
from jobs.drift import Row
from jobs.models import Approval as ApprovalRow
from jobs.models import Footprint, StepRun
from jobs.models import Job as JobRow
from jobs.models.presentation import Want
from jobs.web.review import Review as Reading
from volmig.accounts.models import Token
from volmig.record.models import Event as EventRow

Number = Annotated[int, Field(ge=1, le=2**63 - 1)]
PLAIN = r"^[^\x00]*$"
Words = Annotated[str, Field(max_length=500, pattern=PLAIN)]
Name = Annotated[str, Field(max_length=255, pattern=PLAIN)]
Long = Annotated[str, Field(max_length=900, pattern=PLAIN)]  # names and identities of things that are left over
Kind = Literal["swap", "rollback", "purge"]
Key = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[!-~]+$")]
Mib = Annotated[float, Field(ge=0.1, le=100_000)] | None  # with one decimal, as the page has it
# As text: pydantic would take a number for the seconds since 1970.
Day = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")]
Moment = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d( \d\d:\d\d)?)?$")]


class Told(Schema):
    """What programs send: nothing that is not asked for."""

    model_config = {"extra": "forbid"}  # a word that is misspelt is not passed over


def same(row: Any, *names: str) -> dict[str, Any]:
    """What a row calls as its document does."""
    return {name: getattr(row, name) for name in names}


class Me(Schema):
    """Whose token this is, what it is for just now, and until when."""

    person: str
    roles: list[str]
    scope: list[str]
    token: str
    expires_at: dt.datetime

    @classmethod
    def of(cls, token: Token, roles: Iterable[str]) -> Self:
        name = token.person.get_username()
        scope = sorted(token.verbs())
        return cls(person=name, roles=sorted(roles), scope=scope, token=token.name, expires_at=token.expires_at)


class Done(Schema):
    """That it is done, or what happens now, in the words of the page."""

    detail: str


# Hypervisors


class Group(Schema):
    """`held` is what migrations keep free for what is not there yet."""

    name: str
    size: int
    free: int
    held: int


class MountedShare(Schema):
    share: str
    path: str


class Hypervisor(Schema):
    """`state` is registered (no key pinned), usable, quarantined or retired.

    `offered_fingerprint` is that of the key which it showed when it was asked; compare it on the machine, then pin it.
    """

    id: int
    name: str
    state: Literal["registered", "usable", "quarantined", "retired"]
    quarantine_reason: str
    address: str
    port: int
    user: str
    team: str
    cloud: str | None
    fits_as: list[str]
    fingerprint: str
    offered_fingerprint: str
    seen_at: dt.datetime | None
    last_error: str
    hostctl_hash: str
    volume_groups: list[Group]
    mounts: list[MountedShare]
    data_addresses: list[str]

    @classmethod
    def of(cls, row: HypervisorRow) -> Self:
        names = ("name", "quarantine_reason", "address", "port", "user", "seen_at", "last_error", "hostctl_hash")
        return cls(
            id=row.pk,
            state=state_of(row),
            team=row.team.name,
            cloud=row.cloud.name if row.cloud else None,
            fits_as=row.role_hints,
            fingerprint=fingerprint(row.host_key) if row.host_key else "",
            offered_fingerprint=fingerprint(row.offered_key) if row.offered_key else "",
            volume_groups=[Group(**same(each, "name", "size", "free", "held")) for each in row.groups_seen],
            mounts=[MountedShare(share=each.share.source, path=each.path) for each in row.mounts_seen],
            data_addresses=[str(each) for each in row.data_addresses.all()],
            **same(row, *names),
        )


def state_of(row: HypervisorRow) -> Literal["registered", "usable", "quarantined", "retired"]:
    if row.retired_at:
        return "retired"
    if row.quarantined_at:
        return "quarantined"
    return "usable" if row.host_key else "registered"


class Registration(Told):
    """What people tell volmig about a hypervisor beside its name; other hypervisors, clouds and teams by their names.

    `limit_mib` is the bandwidth limit as relay in MiB/s, null for none.
    """

    address: Name
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: Name = "volmig"
    shipped: bool = False
    bastion: Name | None = None
    cloud: Name | None = None
    nova_host: Name = ""
    team: Name | None = None
    limit_mib: Annotated[int, Field(ge=1, le=2**40)] | None = None

    @classmethod
    def of(cls, row: HypervisorRow) -> "Registration":
        return Registration(
            bastion=row.bastion.name if row.bastion else None,
            cloud=row.cloud.name if row.cloud else None,
            team=row.team.name,
            limit_mib=row.rate_limit // 2**20 if row.rate_limit else None,
            **same(row, "address", "port", "user", "shipped", "nova_host"),
        )


class NewHypervisor(Registration):
    """A registration with the name, which never changes."""

    name: Name


class Pin(Told):
    """The whole fingerprint, SHA256:…, as it was read on the machine itself."""

    fingerprint: Name


class Retire(Told):
    """The name once more, so that nobody retires the neighbour."""

    name: Name


class Volume(Schema):
    """`instance` and `disk` are those that it was made as, null for other volumes."""

    id: int
    hypervisor: str
    path: str
    lv_uuid: str
    size: int
    is_open: bool
    tags: list[str]
    instance: str | None
    disk: str | None
    seen_at: dt.datetime

    @classmethod
    def of(cls, row: LogicalVolume) -> Self:
        return cls(
            id=row.pk,
            hypervisor=row.volume_group.hypervisor.name,
            lv_uuid=row.uuid,
            instance=row.instance or None,
            disk=row.disk or None,
            **same(row, "path", "size", "is_open", "tags", "seen_at"),
        )


class ShareAt(Schema):
    """What one hypervisor reports of a share that it mounts."""

    hypervisor: str
    path: str
    size: int
    free: int
    seen_at: dt.datetime


class Share(Schema):
    """`size`, `free` and `seen_at` are what your hypervisors report, the least where they differ; `mounts` has each.
    `held` is reserved by migrations for what is not there yet, `kept` taken by disks that wait for their purge: of
    migrations to your hypervisors."""

    source: str
    size: int
    free: int
    held: int
    kept: int
    seen_at: dt.datetime
    mounts: list[ShareAt]

    @classmethod
    def of(cls, row: Any) -> Self:
        mounts = [
            ShareAt(hypervisor=each.hypervisor.name, **same(each, "path", "size", "free", "seen_at"))
            for each in row.mounts.all()
        ]
        return cls(mounts=mounts, **same(row, "source", "size", "free", "held", "kept", "seen_at"))


class Cloud(Schema):
    """`control` is how its instances are stopped and started; the credential is never told."""

    id: int
    name: str
    control: str
    hypervisors: list[str]
    seen_at: dt.datetime | None
    last_error: str

    @classmethod
    def of(cls, row: CloudRow) -> Self:
        names = sorted(each.name for each in row.hypervisors.all() if not each.retired_at)
        return cls(id=row.pk, hypervisors=names, **same(row, "name", "control", "seen_at", "last_error"))


class Disk(Schema):
    name: str
    path: str
    format: str


class Server(Schema):
    """An instance: as Nova told where a cloud has it, as libvirt did on each hypervisor that has it."""

    id: str
    name: str
    project: str
    status: str
    cloud: str | None
    hypervisor: str | None
    disks: list[Disk]
    seen_at: dt.datetime

    @classmethod
    def in_nova(cls, row: ServerRow, here: Iterable[Instance], hypervisor: str | None) -> Self:
        disks = [Disk(**each) for mine in here for each in mine.disks]
        names = {"id": row.uuid, "name": row.name, "project": row.project_name or row.project, "status": row.status}
        return cls(**names, cloud=row.cloud.name, hypervisor=hypervisor, disks=disks, seen_at=row.seen_at)

    @classmethod
    def in_libvirt(cls, row: Instance) -> Self:
        names = {"id": row.uuid, "name": row.name, "project": "", "status": row.state}
        disks = [Disk(**each) for each in row.disks]
        return cls(**names, cloud=None, hypervisor=row.hypervisor.name, disks=disks, seen_at=row.seen_at)


# Migrations


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
        names = ("kind", "state", "digest", "approvers", "created_at", "expires_at")
        return cls(id=row.pk, consents=row.count(), requester=row.requester.get_username(), **same(row, *names))


class Decision(Schema):
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


# What is left over, and the record


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


class Event(Schema):
    """One row of the record; `hash` signs it together with the one before."""

    seq: int
    at: dt.datetime
    actor: str
    role: str
    session: str
    address: str
    action: str
    job: int | None
    object: str
    data: Any
    prev_hash: str
    hash: str

    @classmethod
    def of(cls, row: EventRow) -> Self:
        names = ("seq", "at", "role", "session", "address", "action", "job", "object", "data", "prev_hash", "hash")
        return cls(actor=row.actor_name, **same(row, *names))


# Lists


class EvidenceKey(Schema):
    """A public key (base64) that signed evidence from `from` until `until`; `signature` is by the key `signed_by`."""

    id: str
    public: str
    since: str = Field(alias="from")
    until: str
    signed_by: str
    signature: str


class EvidenceKeys(Schema):
    """The oldest first; the last is in use."""

    keys: list[EvidenceKey]


class Page(Schema):
    """`next` is the address of what follows, null at the end."""

    next: str | None = None


class Hypervisors(Page):
    items: list[Hypervisor]


class Volumes(Page):
    items: list[Volume]


class Shares(Page):
    items: list[Share]


class Clouds(Page):
    items: list[Cloud]


class Servers(Page):
    items: list[Server]


class Jobs(Page):
    items: list[JobLine]


class Approvals(Page):
    items: list[Wanted]


class Backups(Page):
    items: list[Backup]


class Leftovers(Page):
    """`asked_at` is when the hypervisor that told longest ago told; null while one has told nothing."""

    items: list[Leftover]
    asked_at: dt.datetime | None


class Events(Page):
    items: list[Event]
