"""Migrations and their verbs: each checks who asks, changes one row, leaves one event and wakes the job."""

import datetime as dt
import logging
import uuid as uuids
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import Any, Self

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from hosts.models import Compute, HostctlVersion, Hypervisor, Instance, LogicalVolume, Mount, Share, networks
from hosts.remote.hostctl import source_hash
from jobs.engine import approval_binding, condition, routes, states, windows
from jobs.engine import plan as planning
from jobs.engine.evidence import Evidence
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.routes import Route
from jobs.engine.steps import Task
from jobs.models import backup, presentation, sealing, search
from jobs.models.approval import NO_REASON, Approval
from jobs.models.archive import Archive, ArchivedJSONField
from jobs.models.policy import Policy, Terms
from jobs.models.search import Word
from jobs.models.steprun import StepRun
from jobs.models.wake import wake
from volmig import incarnation
from volmig.accounts.models import Team
from volmig.accounts.roles import OwnedQuerySet, why_not
from volmig.health import tallies
from volmig.health.models import Incident
from volmig.models import CLOCKS_DIFFER
from volmig.notify import announce
from volmig.queue import later
from volmig.record.models import Event
from volmig.refusals import Moved, Refused, Sentence
from volmig.templatetags.units import spoken

log = logging.getLogger(__name__)
User = settings.AUTH_USER_MODEL
ROLES = ("source", "relay", "destination")
# The columns that say what becomes what, and those that say how.
MOVED = (
    "source_vg", "source_lv", "lv_uuid", "source_size", "relay_vg", "share_source", "instance_id", "instance_name",
    "disk",
)  # fmt: skip
TERMS = ("rate", "ticket", "rollback_minutes")
LONGEST_SLEEP = dt.timedelta(minutes=10)  # of a migration that is at work: it looks then whatever it waits for
NO_LIMIT = Sentence("no-limit", "The bandwidth limit has to be greater than zero.")
RESTING = sorted(states.ENDED - {"purging"})  # statuses in which nobody works on it
HOLDING = Q(status__in=sorted(states.ACTIVE))
ASKABLE = {"rollback": ("on_trial",), "purge": ("done", "rolled_back")}


def abandoned() -> Q:
    """Leases of owners that went away: they ran out, or reach further than any, as the clock was set back since."""
    longest = dt.timedelta(seconds=settings.LEASE_SECONDS) + CLOCKS_DIFFER
    return Q(lease_until__lt=Now()) | Q(lease_until__gt=Now() + longest)


class JobQuerySet(OwnedQuerySet["Job"]):
    """Migrations, by person, state and place."""

    owners = tuple(f"{role}__team" for role in ROLES)  # a job across teams needs membership in each

    def owned_by(self, teams: set[int]) -> Self:
        """By keys that one index of the three hypervisors gives: joined, a database would sort all the rows first."""
        theirs = list(Hypervisor.objects.filter(team__in=teams).values_list("pk", flat=True))
        between = Job.objects.order_by().filter(**{f"{role}__in": theirs for role in ROLES})
        return self.filter(pk__in=between.values("pk"))

    def with_names(self) -> Self:
        """For pages: the names that every one of them shows."""
        named = self.select_related(*ROLES, "requester")
        return named.defer(*(f"{role}__facts" for role in ROLES))

    def with_runs(self) -> Self:
        """For pages: the journal comes along in one query for all, without its bulky columns."""
        runs = StepRun.objects.select_related("hypervisor").defer("args", "commands", "error", "hypervisor__facts")
        return self.prefetch_related(models.Prefetch("runs", runs))

    def active(self) -> Self:
        """Those that hold their volume and their instance."""
        return self.filter(status__in=states.ACTIVE)

    def halted(self) -> Self:
        """Those that wait until a person decides."""
        return self.exclude(halt_reason="")

    def waiting_for_consent(self) -> Self:
        """Those with an open approval request."""
        return self.filter(approvals__in=Approval.objects.open()).distinct()

    def due(self) -> Self:
        """What has an alarm that went off, or an owner that went away, and nobody who works on it."""
        return self.filter(Q(lease_until=None) | abandoned()).filter(
            Q(wake_at__lte=Now()) | Q(lease_until__isnull=False)
        )

    def unarchived(self) -> Self:
        """Those that ended and whose columns still hold what belongs into an archive."""
        return self.filter(archived_at=None, ended_at__isnull=False, status__in=RESTING)

    def archive(self, most: int, after: int = 0) -> int | None:
        """Archive up to `most` of them with keys above `after`, each in a short transaction; what is locked
        or worked on is left for the next time. Returns the last key, None when there are no more.
        """
        found = list(self.unarchived().filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:most])
        for pk in found:
            with transaction.atomic():
                rows = Job.objects.select_for_update(skip_locked=True).unarchived().filter(pk=pk, lease_until=None)
                if rows.values_list("pk").first():
                    Archive.objects.keep(pk)
        return found[-1] if len(found) == most else None

    def follow_the_clock(self) -> None:
        """Have times that lie in the future count from now: they were noted before this machine's clock was set back.

        Until the clock came there again nobody would go on, and nothing would be found to stall. Of what is under way
        alone; an alarm that a person's decision or a window sets may lie far ahead.
        """
        now = timezone.now()
        ahead, asleep = now + CLOCKS_DIFFER, Q(wake_at__gt=now + LONGEST_SLEEP, status__in=states.WORKING)
        active = self.filter(status__in=states.MAY_ACT)
        stopped = Q(waiting_since__gt=ahead) | Q(resumed_at__gt=ahead) | (asleep & ~Q(wait_kind="window"))
        for pk in list(active.filter(stopped).values_list("pk", flat=True)):
            log.warning("migration %s: times are in the future; was the clock set back? They are treated as now.", pk)
            mine = active.filter(pk=pk)
            mine.filter(waiting_since__gt=ahead).update(waiting_since=now)
            # Later than the ends of attempts below: those before the resume still do not count against it.
            mine.filter(resumed_at__gt=ahead).update(resumed_at=now + dt.timedelta(seconds=1))
            mine.filter(wake_at__gt=now).update(wake_at=now)
        columns = ("started_at", "progress_at", "silent_since", "ended_at")
        beyond = {column: Q(**{f"{column}__gt": ahead}) for column in columns}
        runs = StepRun.objects.filter(job__in=active.values("pk"))
        if runs.filter(
            reduce(or_, beyond.values())
        ).exists():  # with SQLite an update takes the lock, whatever it finds
            for column, is_beyond in beyond.items():
                runs.filter(is_beyond).update(**{column: now})

    def claim(self, job_id: int, owner: str, seconds: float) -> "Job | None":
        """Become the only one that works on a job that is due, for so many seconds; raises its fence by one.

        The row remembers when that took the job from an owner who never let go and may still be acting. Nobody gets a
        job while volmig is read-only, or when it is found to be a copy or an older state of itself.
        """
        if incarnation.check():
            return None
        until = Now() + dt.timedelta(seconds=seconds)
        mine = {"lease_owner": owner, "lease_until": until, "fence": F("fence") + 1, "wake_at": None}
        free, lost = self.filter(lease_until=None, wake_at__lte=Now()), self.filter(abandoned())
        try:
            with transaction.atomic():
                before: tuple[str, dt.datetime | None] | None = None
                if not free.filter(pk=job_id).update(**mine):
                    before = lost.filter(pk=job_id).values_list("lease_owner", "lease_until").first()
                    if not lost.filter(pk=job_id).update(**mine, taken_over=True):
                        return None
                counted = incarnation.count()
        except incarnation.ReadOnly:  # the database was replaced by an older one since it was checked
            incarnation.check()
            return None
        try:
            incarnation.remember(counted)
        except incarnation.Unwritable as error:
            log.error("migration %s is left to another machine: %s", job_id, error)
            self.filter(pk=job_id, lease_owner=owner).update(lease_until=None, lease_owner="", wake_at=Now())
            return None
        if before:
            note_lost(job_id, *before)
        job = self.select_related("source__cloud", "relay", "destination__cloud").get(pk=job_id)
        job.counted = counted
        return job

    def submit(
        self,
        by: Any,
        *,
        source_volume: LogicalVolume,
        destination: Instance,
        disk: str,
        relay: Hypervisor,
        relay_vg: str,
        ticket: str = "",
        rate: int | None = None,
        rollback_minutes: int = 0,
        start: bool = False,
    ) -> "Job":
        """Ask for a migration and have it checked; raise Refused, with nothing created, when that may not be.

        `rate` is bytes per second; `rollback_minutes` is for how long after the swap the requester may go back by the
        swap's own approval; `start` begins it as soon as the checks pass.
        """
        source, share = source_volume.volume_group.hypervisor, share_of(destination, disk)
        sentences = [*refusals(by, source_volume, destination, disk, relay, relay_vg, share)]
        if rate is not None and rate <= 0:
            sentences.append(NO_LIMIT)
        if sentences or share is None:
            raise Refused(sentences)
        job = self.model(
            requester=by,
            last_editor=by,
            ticket=ticket,
            source=source,
            relay=relay,
            destination=destination.hypervisor,
            source_vg=source_volume.volume_group.name,
            source_lv=source_volume.name,
            lv_uuid=source_volume.uuid,
            source_size=source_volume.size,
            relay_vg=relay_vg,
            share_source=share.source,
            instance_id=destination.uuid,
            instance_name=destination.called,
            disk=disk,
            rate=rate,
            rollback_minutes=rollback_minutes,
            start_when_checked=start,
        )
        try:
            with transaction.atomic():
                job.save(force_insert=True)
                Event.append("job.submit", actor=by, job=job.pk, object=str(job), data=job.asked())
                wake(job.pk, by=by)
        except IntegrityError:
            raise Refused(in_another_job(source_volume.uuid, destination.uuid)) from None
        return job


def note_lost(job_id: int, owner: str, until: dt.datetime | None) -> None:
    """For the overview: a worker that went away amid a migration, or that could not say that it lives."""
    machine = owner.partition(":")[0]
    lasted = max(0.0, (timezone.now() - until).total_seconds()) if until else 0.0
    Incident.objects.note("lease", machine, str(job_id), lasted, f"Its worker was {owner}.")


class Job(models.Model):
    """One migration: one source volume to one disk of one instance, through a relay; sizes in bytes.

    `lap` counts how often the copy was begun: one that goes stale before its use is made again. `judges` names
    the sessions that have asked the job's hypervisors who owns them, the last one first; `counted` is how far the
    session had counted when it claimed the job or began its last step, and goes with each request.
    """

    counted = 0

    uuid = models.UUIDField(default=uuids.uuid4, unique=True, editable=False)
    requester = models.ForeignKey(User, models.PROTECT, related_name="+")
    last_editor = models.ForeignKey(User, models.PROTECT, related_name="+")
    ticket = models.CharField(max_length=100, blank=True)
    source = models.ForeignKey(Hypervisor, models.PROTECT, related_name="jobs_from", db_index=False)
    relay = models.ForeignKey(Hypervisor, models.PROTECT, related_name="jobs_through")
    destination = models.ForeignKey(Hypervisor, models.PROTECT, related_name="jobs_to")
    source_vg = models.CharField(max_length=128)
    source_lv = models.CharField(max_length=128)
    lv_uuid = models.CharField(max_length=38)
    source_size = models.BigIntegerField()
    relay_vg = models.CharField(max_length=128)
    share_source = models.CharField(max_length=255)
    instance_id = models.CharField(max_length=36)
    instance_name = models.CharField(max_length=255)
    disk = models.CharField(max_length=64)
    route = models.CharField(max_length=20, default="relay-nfs")
    rate = models.BigIntegerField(null=True, blank=True)
    rollback_minutes = models.PositiveSmallIntegerField(default=0)
    status = models.CharField(max_length=20, default="checking", choices=[(name, name) for name in states.STATUSES])
    outcome = models.CharField(max_length=20, blank=True)
    outcome_reason = models.TextField(blank=True)
    halt_reason = models.TextField(blank=True)
    halt_data = ArchivedJSONField(default=dict, blank=True)
    waiting_for = models.TextField(blank=True)
    wait_kind = models.CharField(max_length=10, blank=True)  # what that is about; see engine.condition
    wait_hosts = models.CharField(max_length=200, blank=True)
    waiting_since = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    start_requested_at = models.DateTimeField(null=True, blank=True)
    start_when_checked = models.BooleanField(default=False)
    confirmed_at = models.DateTimeField(null=True, blank=True)
    checks = ArchivedJSONField(default=list, blank=True)
    facts = ArchivedJSONField(default=dict, blank=True)
    facts_at = models.DateTimeField(null=True, blank=True)
    plan = ArchivedJSONField(default=dict, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    hostctl = models.CharField(max_length=16, blank=True)
    version = models.PositiveIntegerField(default=1)
    lap = models.PositiveIntegerField(default=1)
    fence = models.BigIntegerField(default=0)
    taken_over = models.BooleanField(default=False)
    judges = models.CharField(max_length=200, blank=True, default="")
    resumed_at = models.DateTimeField(null=True, blank=True)
    lease_owner = models.CharField(max_length=100, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    wake_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)  # since its last end

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["lv_uuid"], condition=HOLDING, name="one_active_job_per_volume"),
            models.UniqueConstraint(fields=["instance_id"], condition=HOLDING, name="one_active_job_per_instance"),
        ]
        indexes = [
            models.Index(fields=["wake_at"], condition=Q(wake_at__isnull=False), name="job_wake_at"),
            models.Index(fields=["lease_until"], condition=Q(lease_until__isnull=False), name="job_lease_until"),
            models.Index(fields=["status", "-id"], name="job_status"),
            models.Index(fields=["lv_uuid", "-id"], name="job_lv_uuid"),
            models.Index(fields=["instance_id", "-id"], name="job_instance_id"),
            models.Index(fields=["outcome", "-id"], name="job_outcome"),
            models.Index(fields=["-id"], condition=~Q(halt_reason=""), name="job_halted"),
            models.Index(fields=["-id"], condition=~Q(waiting_for=""), name="job_waiting"),
            models.Index(fields=[*ROLES, "id"], name="job_hypervisors"),
            models.Index(fields=["created_at", "id"], name="job_created_at"),
            models.Index(fields=["ended_at", "id"], name="job_ended_at"),
            models.Index(fields=["instance_name", "id"], name="job_instance_name"),
            models.Index(fields=["source_size", "id"], name="job_source_size"),
            models.Index(fields=["id"], condition=Q(archived_at=None, ended_at__isnull=False), name="job_unarchived"),
        ]

    def __str__(self) -> str:
        return f"Migration {self.pk}: {self.source_vg}/{self.source_lv} to {self.instance_name} {self.disk}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """A new one is found from then on by the words in it; these never change."""
        new = self._state.adding
        super().save(*args, **kwargs)
        if new:
            Word.objects.keep(self.pk, search.of_job(self))

    def get_absolute_url(self) -> str:
        """The migration's page."""
        return f"/migrations/{self.pk}/"

    @property
    def number(self) -> int:
        """The number that people use."""
        return int(self.pk)

    # What pages read

    words = property(presentation.words)
    sentence = presentation.sentence
    running = presentation.running
    timeline = presentation.timeline
    time_left = presentation.time_left
    condition = presentation.condition_now
    outlook = presentation.outlook
    down = presentation.down
    log = presentation.log
    actions = presentation.actions
    wants = presentation.wants
    halted = presentation.halted
    has_backup = presentation.has_backup
    kept_bases = backup.bases
    backup = backup.of

    def asked(self) -> dict[str, Any]:
        """What was asked for, in names, for the audit log."""
        hosts = {role: getattr(self, role).name for role in ROLES}
        return {**hosts, **{name: getattr(self, name) for name in (*MOVED, *TERMS)}}

    def teams(self) -> list[Team]:
        """Those that it belongs to: the teams of its hypervisors."""
        hypervisors = [self.source_id, self.relay_id, self.destination_id]
        return list(Team.objects.filter(hypervisors__in=hypervisors).distinct())

    # What Nova is asked about it

    @property
    def through_nova(self) -> bool:
        """Whether the instance is locked, stopped and started through Nova.

        Once there is a plan, as it was planned: another control of the cloud counts for migrations yet to come.
        """
        steps = (self.plan or {}).get("steps") or ()
        planned = {step.get("control", "") for step in steps if step["on"] == "instance"}
        cloud = self.destination.cloud
        return "openstack" in planned if planned else cloud is not None and cloud.through_nova

    def names_in_nova(self, role: str = "destination") -> set[str]:
        """What Nova may call the hypervisor in this role."""
        hypervisor: Hypervisor = getattr(self, role)
        names = hypervisor.names_in_nova()
        rows = Compute.objects.filter(cloud=hypervisor.cloud).filter(Q(name__in=names) | Q(host__in=names))
        return names.union(*rows.values_list("name", "host"))

    def known(self, measured: dict[str, Any], pk: int) -> dict[str, Any]:
        """What an adapter has to know that remembers nothing itself: what was measured and asked for so far.

        `measured` is what the attempt in hand has measured, `pk` the key of its row. What steps measured is under what
        they did: stopped, exchanged, verified.
        """
        rows = list(self.runs.filter(lap=self.lap).only("step", "direction", "evidence", "started_at"))
        seen = Evidence()
        for each in rows:
            if each.direction == "do":
                seen[each.step] = {**seen.get(each.step, {}), **each.evidence}
        return {
            "stopped": seen.of(Task.STOP),
            "exchanged": seen.of(Task.EXCHANGE),
            "verified": seen.of(Task.VERIFY),
            **self.acted(rows),
            "this": measured,
            "began": next(each.started_at.timestamp() for each in rows if each.pk == pk),
        }

    def acted(self, rows: list[StepRun] | None = None) -> dict[str, Any]:
        """Which actions Nova may know of: approved is the last one that was consented to, ours are volmig's own.

        What was done until a person said to go on has been seen: accepted is that moment.
        """
        used = self.approvals.filter(kind="swap", consumed_at__isnull=False).first()
        runs = rows if rows is not None else list(self.runs.filter(lap=self.lap).only("evidence"))
        at = self.resumed_at.astimezone(dt.UTC) if self.resumed_at else None
        return {
            "approved": used.bound["instance"].get("request", "") if used else "",
            "ours": [each.evidence["request"] for each in runs if each.evidence.get("request")],
            "accepted": at.replace(tzinfo=None).isoformat() if at else "",
        }

    @property
    def control(self) -> str:
        """The name of the part of its route that locks, stops and starts the instance."""
        return "openstack" if self.through_nova else ""

    # The engine's view of this row

    def get_route(self) -> Route:
        """The route that it takes, with its parts; raise UnknownRoute where only a newer volmig knows it."""
        return routes.route_of(self.route, self.control)

    def migration(self) -> Migration:
        """The engine's view of it: names and paths, without the database."""
        return Migration(
            job=str(self.uuid),
            number=self.pk,
            route=self.route,
            source=self.source.name,
            relay=self.relay.name,
            destination=self.destination.name,
            relay_address=self.relay_address(),
            rate=self.rate_allowed(),
            deadline=settings.STOP_DEADLINE,
            margin=settings.LOCK_MARGIN,
            control=self.control,
            **{name: getattr(self, name) for name in MOVED},
        )

    def relay_address(self) -> str:
        """The relay's data address that the source is to mount from; empty when they share no data network."""
        return networks().data_address(self.source_id, self.relay_id, (self.source.address, self.relay.address))

    def rate_allowed(self) -> int:
        """Bytes per second that this job may use now: its own limit, and its share of the relay's; 0 is no limit."""
        running = Job.objects.filter(relay=self.relay, status="preparing", halt_reason="").exclude(pk=self.pk).count()
        shares = [self.relay.rate_limit // (running + 1)] if self.relay.rate_limit else []
        return min([*shares, *([self.rate] if self.rate else [])], default=0)

    def planned(self) -> planning.Plan:
        """The plan as it was shown; empty while there is none."""
        return planning.Plan.from_json(self.plan or {"steps": []}, str(self.uuid))

    def seen(self) -> Facts:
        """The facts that were read from the hypervisors."""
        return Facts.from_json(self.facts, self.get_route().answers)

    # Its version of hostctl

    @property
    def hostctl_now(self) -> str:
        """The version of hostctl that it is carried out with: from its plan on always the same."""
        return source_hash() if self.status == "checking" else self.hostctl or source_hash()

    def keep_hostctl(self) -> None:
        """From here on it is carried out with this volmig's version, whatever volmig is upgraded to meanwhile."""
        HostctlVersion.objects.keep()
        self.put(hostctl=source_hash())

    def renew_hostctl(self) -> None:
        """What is done after its end is done with this volmig's version, unless something begun with another runs."""
        over = self.status in states.ENDED - {"purging"}
        if over and self.hostctl not in ("", source_hash()) and not self.runs.open().exists():
            self.keep_hostctl()

    # Verbs of people

    def start(self, by: Any) -> None:
        """Begin what was planned."""
        with self._verb(by, "submit", "start"):
            self._only_when("planned")
            self.put(start_requested_at=timezone.now())

    def cancel(self, by: Any) -> None:
        """Stop at the next safe point and take back what was made; a halt is lifted by it, for a person has looked."""
        data: dict[str, Any] = {}
        with self._verb(by, "submit", "cancel", data):
            if self.status not in states.CANCELLABLE:
                said = f"A migration that is {self.words} cannot be cancelled."
                raise Refused(Sentence("wrong-status", said))
            if sentence := self.why_no_cancel():
                raise Refused(Sentence("no-cancel", sentence))
            now = timezone.now()
            if self.halt_reason:
                data["halt_reason"] = self.halt_reason
                self.put(halt_reason="", halt_data={}, waiting_for="", resumed_at=now)
            self.put(cancel_requested_at=self.cancel_requested_at or now)

    def why_no_cancel(self) -> str:
        """Why it cannot be cancelled now, in a status in which that is possible; empty when it can."""
        if self.status == "swapping" and self.may_have_started():
            return "The instance may already run on the new disk: wait for the trial, then request a rollback."
        return "It is already being cancelled." if self.cancel_requested_at and not self.halt_reason else ""

    def may_have_started(self) -> bool:
        """Whether the start on the new disk was begun, so that the guest may have written to it."""
        starts = self.runs.for_task(Task.START).filter(direction="do", lap=self.lap)
        return starts.exclude(result="refused").exclude(unread=True).exists()

    def set_rate(self, by: Any, rate: int | None) -> None:
        """Limit the passes that have not begun yet to `rate` bytes per second; None for the relay's limit alone."""
        with self._verb(by, "submit", "rate", {"rate": rate}):
            self._only_when("checking", "planned", "preparing")
            if rate is not None and rate <= 0:
                raise Refused(NO_LIMIT)
            self.put(rate=rate, last_editor=by)
            if self.plan:
                self.keep_plan(planning.at_rate(self.planned(), self.rate_allowed()))

    def confirm(self, by: Any) -> None:
        """Say that the instance has its data; only a person can know that."""
        with self._verb(by, "submit", "confirm"):
            self._only_when("on_trial")
            if self.confirmed_at:
                raise Refused(Sentence("confirmed-already", "The data is already confirmed."))
            if self.approvals.open().filter(kind="rollback", expires_at__gt=timezone.now()).exists():
                said = "A rollback is requested; it has to be decided first."
                raise Refused(Sentence("rollback-asked", said))
            self.put(confirmed_at=timezone.now())

    def ask(self, kind: str, by: Any) -> Approval:
        """Ask for consent to a rollback (on trial) or to a purge (after it)."""
        with self._verb(by, "submit", f"ask.{kind}"):
            self._only_when(*ASKABLE[kind])
            if self.approvals.open().filter(kind=kind, expires_at__gt=timezone.now()).exists():
                raise Refused(Sentence("asked-already", f"A {kind} is already requested."))
            for old in self.approvals.open().filter(kind=kind):
                old.void("It expired.")
            return self.make_approval(kind, self.bound(kind), by)

    def extend(self, by: Any, until: dt.datetime, reason: str) -> None:
        """Keep the disk that is not in use for longer; raise Refused when that may not be."""
        data: dict[str, Any] = {"until": until, "reason": reason.strip()}
        with self._verb(by, "submit", "extend", data):
            self._only_when(*backup.KEEPING)
            kept = backup.of(self)
            if kept is None:
                raise Refused(Sentence("no-backup", "No disk of this migration is kept any more."))
            data["was"] = kept.keep_until
            if not reason.strip():
                raise Refused(NO_REASON)
            if until <= max(kept.keep_until or timezone.now(), timezone.now()):
                said = "The new date has to be in the future and later than the current one."
                raise Refused(Sentence("not-later", said))
            if until > timezone.now() + backup.LONGEST:
                raise Refused(Sentence("too-long", "At most a year at a time: the disk takes space on the share."))
            for old in self.approvals.open().filter(kind="purge"):
                old.void("The disk is kept longer.")
            self.footprints.kept().update(keep_until=until)

    def rehearse(self, by: Any) -> None:
        """Have the kept disk read and compared with what was recorded of it; nothing is written."""
        with self._verb(by, "submit", "rehearse"):
            self._only_when(*backup.KEEPING)
            if sentence := self.why_no_rehearsal():
                raise Refused(Sentence("no-rehearsal", sentence))
            self.rehearsals.create(number=self.rehearsals.count() + 1, by=by)

    def why_no_rehearsal(self) -> str:
        """Why the kept disk cannot be rehearsed now; empty when it can."""
        if self.rehearsals.open().exists():
            return "A rehearsal is running."
        return "" if self.has_backup() else "No disk of this migration is kept any more."

    def roll_back(self, by: Any) -> None:
        """Go back at once, by what was approved in advance together with the swap."""
        with self._verb(by, "submit", "rollback", {"in_advance": f"{self.rollback_minutes} minutes"}):
            self._only_when("on_trial")
            if sentence := self.why_no_rollback(by):
                raise Refused(Sentence("no-rollback", sentence))
            for old in self.approvals.open().filter(kind="rollback"):
                old.void("The pre-approved rollback is used instead.")
            self.make_approval("rollback", self.bound("rollback"), by, granted_by=self.swap_approval())

    def why_no_rollback(self, by: Any) -> str:
        """Why the rollback that was approved in advance may not be used now; empty when it may."""
        until = self.rollback_until()
        if until is None or until <= timezone.now():
            return "No pre-approved rollback is left; request one."
        if by.pk != self.requester_id:
            return "Only the requester of the migration may use the pre-approved rollback."
        return "The data is already confirmed." if self.confirmed_at else ""

    def rollback_until(self) -> dt.datetime | None:
        """Until when the swap's own approval also allows to go back; None when it never did."""
        granted = self.swap_approval()
        swapped = self.runs.for_task(Task.EXCHANGE).filter(direction="do", result="done").last()
        if granted is None or swapped is None or not granted.bound.get("rollback"):
            return None
        return (swapped.ended_at or swapped.started_at) + dt.timedelta(minutes=self.rollback_minutes)

    def swap_approval(self) -> Approval | None:
        """The one that was used."""
        return self.approvals.filter(kind="swap", consumed_at__isnull=False).first()

    def resume(self, by: Any) -> None:
        """Go on where it was halted: the step is probed again before anything is done."""
        with self._verb(by, "submit", "resume", {"halt_reason": self.halt_reason}):
            if not self.halt_reason:
                raise Refused(Sentence("not-halted", "It is not halted."))
            self.put(halt_reason="", halt_data={}, waiting_for="", resumed_at=timezone.now())

    def try_again(self, by: Any) -> None:
        """Look at once at what it waits for, instead of at the next look."""
        with self._verb(by, "submit", "try_again", {"waiting_for": self.waiting_for}):
            if self.halt_reason or not self.waits():
                said = "It is not waiting for anything that a retry could change."
                raise Refused(Sentence("not-waiting", said))

    def waits(self) -> bool:
        """Whether it is at work and cannot go on for the moment; work that runs on a hypervisor is no such wait."""
        step = presentation.step_now(self)
        busy = step is not None and step.answered and condition.silent_since(step, timezone.now()) is None
        return self.status in states.AT_WORK and bool(self.waiting_for) and not busy

    def again(self, by: Any) -> dict[str, Any]:
        """Values for asking for the same again, as keys of what is there now; None for what is gone."""
        volume = LogicalVolume.objects.filter(uuid=self.lv_uuid, volume_group__hypervisor=self.source).first()
        instance = Instance.objects.filter(uuid=self.instance_id, hypervisor=self.destination).first()
        group = self.relay.volume_groups.filter(name=self.relay_vg).first()
        return {
            "source": self.source_id,
            "volume": volume and volume.pk,
            "destination": self.destination_id,
            "disk": instance and f"{instance.pk}/{self.disk}",
            "relay": group and group.pk,
            "ticket": self.ticket,
            "rate": self.rate,
        }

    # What ticks and approvals do to a job

    def go(self, event: str, actor: Any = None, **values: Any) -> None:
        """Move on by the table of statuses; raise Moved when somebody moved it first."""
        old, new = self.status, states.next(self.status, event)
        if new in states.ENDED and not self.ended_at:
            values["ended_at"] = timezone.now()
        if new in RESTING and self.archived_at:
            values["archived_at"] = None  # there is more to archive now
        values = {"waiting_for": "", **values, "status": new}
        with transaction.atomic():
            if not Job.objects.filter(pk=self.pk, status=old, fence=self.fence).update(**values):
                raise Moved(f"Migration {self.pk} is no longer {old}.")
            Event.append(
                "job.status",
                actor=actor,
                job=self.pk,
                object=str(self),
                data={"from": old, "to": new, "by": event, "why": values.get("outcome_reason", "")},
            )
            log.info("Migration is now %s", new.replace("_", " "), extra={"migration": self.pk})
            if new in states.ENDED:
                self._look_again()
            if "ended_at" in values:
                outcome = values.get("outcome") or self.outcome or new
                tallies.record("volmig_migrations_ended", outcome=outcome)
            if new in backup.KEEPING:
                backup.start_clock(self)
        for name, value in values.items():
            setattr(self, name, value)

    def _look_again(self) -> None:
        """What was last seen of its hypervisors was seen while it held volumes and space there."""
        for hypervisor in sorted({self.source_id, self.relay_id, self.destination_id}):
            later("hosts.tasks.refresh", hypervisor)

    def halt(self, reason: str, data: dict[str, Any]) -> None:
        """Touch nothing more until a person has looked."""
        with transaction.atomic():
            self.put(halt_reason=reason, halt_data=data, waiting_for="", wait_kind="", waiting_since=timezone.now())
            Event.append("job.halt", job=self.pk, object=str(self), data={"reason": reason, **data})
            log.warning("Migration halted: %s", reason, extra={"migration": self.pk})
            announce("halted", subject=f"Migration {self.pk} halted", text=reason, url_path=self.get_absolute_url())

    def withdraw_consent(self, by: Any) -> None:
        """A swap that somebody rejected is not going to happen: take everything back."""
        if self.status == "approved":
            self.go("withdrawn", actor=by)
        self.go("rejected", actor=by, outcome="rejected", outcome_reason=f"Rejected by {by.get_username()}.")

    def keep_plan(self, made: planning.Plan) -> None:
        """Stores a plan under the next version; approvals of earlier versions no longer match."""
        shown = made.to_json()
        self.put(plan=shown, digest=approval_binding.digest(shown), version=self.version + 1)

    def bound(self, kind: str, facts: Facts | None = None) -> dict[str, Any]:
        """What an approval of this kind is bound to, from fresh `facts` where it depends on any."""
        migration, made, evidence = self.migration(), self.planned(), self.evidence()
        if kind == "swap":
            shown = approval_binding.swap(migration, facts or self.seen(), made, evidence, self.hostctl_now)
            return shown | self.bound_rollback()
        if kind == "rollback":
            return approval_binding.rollback(migration, made, evidence)
        return approval_binding.purge(migration, self.purging_plan(), evidence, self.kept_words)

    def bound_rollback(self) -> dict[str, Any]:
        """What a consent to the swap says about going back, when it does."""
        if not self.rollback_minutes:
            return {}
        # These words are hashed: other words would void requests that are open during an upgrade.
        allowed = f"allowed in advance for {self.rollback_minutes} minutes after the swap, when the requester asks"
        return {"rollback": {"is": allowed, "gives up": "everything that the instance wrote since the swap"}}

    # The clock

    def terms(self) -> Terms:
        """What its teams' policies want of it."""
        return Policy.objects.terms(self)

    def downtime(self) -> dt.timedelta:
        """How long phase B may take: the high end of its forecast."""
        made = self.planned()
        return dt.timedelta(seconds=made.seconds(each.step.name for each in made.phase("B"))[2])

    def window(self) -> windows.Span | None:
        """The span in which the swap fits next; None when it may run at any time, or not within a year."""
        schedules = self.terms().schedules
        return windows.next_fit(schedules, timezone.now(), self.downtime()) if schedules else None

    def why_wait(self) -> tuple[str, dt.datetime]:
        """Why the swap may not begin now, as a sentence, and when to look again; an empty one when it may."""
        schedules, now = self.terms().schedules, timezone.now()
        span = self.window()
        if not schedules or (span and span.begin <= now):
            return "", now
        sentence = windows.sentence(schedules, now, self.downtime(), spoken(self.downtime().total_seconds()))
        return sentence, span.begin if span else now + windows.HORIZON

    def purging_plan(self) -> planning.Plan:
        """The plan whose purge deletes the disk that is not in use: the old one, or after a rollback the new one."""
        made = self.planned()
        return planning.purge_of_rejected(made, self.get_route()) if self.was_rolled_back() else made

    def was_rolled_back(self) -> bool:
        """True when the old disk was put back."""
        return self.runs.for_task(Task.EXCHANGE).filter(direction="undo", result="done").exists()

    @property
    def kept_words(self) -> str:
        """Which disk stays after a purge; approvals bind these words."""
        return "the old disk" if self.was_rolled_back() else "the new disk"

    def evidence(self) -> Evidence:
        """What every finished step of this copy round measured."""
        runs = self.runs.filter(direction="do", result="done", lap=self.lap)
        return Evidence({run.step: run.evidence for run in runs})

    def make_approval(self, kind: str, bound: dict[str, Any], by: Any, granted_by: Approval | None = None) -> Approval:
        """Ask people; the request binds exactly what `bound` shows. What was granted in advance asks nobody."""
        terms = self.terms()
        approval = Approval.objects.create(
            job=self,
            kind=kind,
            version=self.version,
            digest=approval_binding.digest(bound),
            bound=bound,
            requester=by,
            last_editor=self.last_editor,
            expires_at=timezone.now() + terms.expiry,
            approvers=0 if granted_by else terms.approvers,
            granted_by=granted_by,
        )
        data = {"approval": approval.pk, "digest": approval.digest, "bound": bound, "approvers": approval.approvers}
        data |= {"granted_by": granted_by.pk} if granted_by else {}
        data |= {"one_person_site": True} if approval.is_one_persons() else {}
        Event.append("approval.ask", actor=by, job=self.pk, object=str(approval), data=data)
        if approval.approvers:
            self._tell_approvers(approval)
        if approval.is_enough():
            sealing.seal(approval)
        return approval

    def _tell_approvers(self, approval: Approval) -> None:
        kind = approval.kind
        announce(
            "approval_waiting",
            subject=f"Migration {self.pk}: {kind} waits for approval",
            text=f"{self}: {approval.requester} requests approval of the {kind}.",
            url_path=f"/approvals/{approval.pk}/",
        )

    def open_approval(self) -> Approval | None:
        """The open approval request, None without one."""
        return self.approvals.open().first()

    def put(self, **values: Any) -> None:
        """Write only these columns, so that a tick and a person never undo each other; raise Moved when a newer
        owner has the job."""
        if not Job.objects.filter(pk=self.pk, fence=self.fence).update(**values):
            raise Moved(f"Another worker has taken over migration {self.pk}.")
        for name, value in values.items():
            setattr(self, name, value)

    @contextmanager
    def _verb(self, by: Any, needs: str, action: str, data: dict[str, Any] | None = None) -> Any:
        """Who may, under the row's lock; the event and the wake are part of the same transaction."""
        if sentences := why_not(by, needs, self.teams()):
            raise Refused(sentences)
        with transaction.atomic():
            self.refresh_from_db(from_queryset=Job.objects.select_for_update())
            yield
            sealing.renew(self)
            Event.append(f"job.{action}", actor=by, job=self.pk, object=str(self), data=data)
            wake(self.pk, by=by)

    def _only_when(self, *statuses: str) -> None:
        if self.status not in statuses:
            wanted = " or ".join(each.replace("_", " ") for each in statuses)
            said = f"It is {self.words} now; this is for migrations that are {wanted}."
            raise Refused(Sentence("wrong-status", said))


def share_of(instance: Instance, disk: str) -> Share | None:
    """The share that a disk of an instance lies on, as its hypervisor mounts it."""
    path = next((each["path"] for each in instance.disks if each["name"] == disk), "")
    mounts = Mount.objects.filter(hypervisor=instance.hypervisor).select_related("share")
    under = [mount for mount in mounts if path.startswith(mount.path.rstrip("/") + "/")]
    return max(under, key=lambda mount: len(mount.path)).share if under else None


def refusals(
    by: Any, volume: LogicalVolume, instance: Instance, disk: str, relay: Hypervisor, relay_vg: str, share: Share | None
) -> list[Sentence]:
    """Why this may not even be asked, from what was last seen; the checks look at the hypervisors themselves."""
    source, destination = volume.volume_group.hypervisor, instance.hypervisor
    sentences = why_not(by, "submit", [each.team for each in (source, relay, destination)])
    sentences += [
        Sentence("hypervisor-unusable", f"{each.name} cannot be used: {why}.")
        for each in (source, relay, destination)
        if (why := unusable(each))
    ]
    if source == destination:
        said = f"Source and destination are both {source.name}; there is nothing to migrate."
        sentences.append(Sentence("same-hypervisor", said))
    if relay in (source, destination):
        said = f"The relay {relay.name} is also the source or the destination; choose another relay."
        sentences.append(Sentence("relay-is-an-end", said))
    if volume.is_open:
        sentences.append(Sentence("volume-open", f"{volume.path} is in use on {source.name}."))
    sentences += disk_refusals(instance, disk)
    if share is None:
        said = f"{disk} of {instance.called} is not on a share that {destination.name} mounts."
        sentences.append(Sentence("not-on-a-share", said))
    elif not relay.mounts.filter(share=share).exists():
        said = f"The relay {relay.name} does not mount {share.source}."
        sentences.append(Sentence("relay-lacks-share", said))
    if not relay.volume_groups.filter(name=relay_vg).exists():
        sentences.append(Sentence("no-volume-group", f"{relay.name} has no volume group {relay_vg}."))
    return sentences + in_another_job(volume.uuid, instance.uuid)


def unusable(hypervisor: Hypervisor) -> str:
    """Why volmig may not enter a hypervisor; empty when it may."""
    if hypervisor.retired_at:
        return "it is retired"
    if hypervisor.quarantined_at:
        return f"it is in quarantine ({hypervisor.quarantine_reason})"
    return "" if hypervisor.host_key else "its host key is not pinned"


def disk_refusals(instance: Instance, disk: str) -> list[Sentence]:
    """Why this disk of the instance cannot be replaced; empty when it can."""
    matching = [each for each in instance.disks if each["name"] == disk]
    if len(matching) != 1:
        said = f"{instance.called} has {len(matching)} disks named {disk}; exactly one is needed."
        return [Sentence("no-such-disk", said)]
    if matching[0]["format"] != "qcow2":
        return [Sentence("not-qcow2", f"{disk} of {instance.called} is {matching[0]['format']}, not qcow2.")]
    return []


def in_another_job(lv_uuid: str, instance_id: str) -> list[Sentence]:
    """A sentence for each active migration that already has the volume or the instance."""
    jobs = Job.objects.active()
    by_volume = jobs.filter(lv_uuid=lv_uuid).first()
    by_instance = jobs.filter(instance_id=instance_id).first()
    sentences = []
    if by_volume:
        sentences.append(Sentence("volume-in-migration", f"Migration {by_volume.pk} already moves this volume."))
    if by_instance:
        said = f"Migration {by_instance.pk} already uses this instance."
        sentences.append(Sentence("instance-in-migration", said))
    return sentences
