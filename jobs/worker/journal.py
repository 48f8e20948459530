"""The journal that the engine writes, on StepRun rows: with each step go its footprint, its event and the lease."""

import datetime as dt
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from hosts.models import Share
from hosts.remote.host import Answer
from jobs.engine import routes
from jobs.engine.evidence import Evidence
from jobs.engine.plan import Planned
from jobs.engine.steps import Artifact, Step, Task, hypervisor_role
from jobs.models import Job, Moved, StepRun
from jobs.models.backup import is_count
from volmig import incarnation
from volmig.record.models import Event

log = logging.getLogger(__name__)


def note(run: StepRun, what: str) -> None:
    """One log line for what became of an attempt, with its fields; the journal and the audit log have the rest."""
    fields = {"migration": run.job_id, "step": run.step, "direction": run.direction, "attempt": run.attempt}
    log.info("Step %s", what, extra={**fields, "hypervisor": run.hypervisor and run.hypervisor.name})


class Journal:
    """One job's journal in the hands of one owner of its lease; a write under a stale fence raises Moved."""

    def __init__(self, job: Job, planned: Sequence[Planned], lap: int = 0) -> None:
        self.job, self.lap, self.resumed_at = job, lap or job.lap, job.resumed_at
        self.planned = {each.step.name: each for each in planned}
        self.rows = list(job.runs.select_related("hypervisor"))
        answered = sorted((run for run in self.rows if run.boot_id), key=lambda run: run.ended_at or run.started_at)
        self.boots = {run.hypervisor.name: run.boot_id for run in answered if run.hypervisor}

    def runs(self, step: str, direction: str) -> list[StepRun]:
        """The attempts at a step in this copy round, oldest first."""
        return [run for run in self.rows if (run.step, run.direction, run.lap) == (step, direction, self.lap)]

    def evidence(self) -> Evidence:
        """What the last good attempt at each step measured."""
        good = ("do", "done", self.lap)
        rows = (run for run in self.rows if (run.direction, run.result, run.lap) == good)
        return Evidence({run.step: run.evidence for run in rows})

    def boot_id(self, hypervisor: str) -> str:
        """The boot of the hypervisor that answered last."""
        return self.boots.get(hypervisor, "")

    def learn(self, hypervisor: str, boot_id: str) -> None:
        """Keeps a hypervisor's boot ID: another one later means a reboot."""
        self.boots[hypervisor] = boot_id

    def touched(self, hypervisor: str) -> bool:
        """True when a step of this migration ever ran there."""
        return any(run.hypervisor and run.hypervisor.name == hypervisor for run in self.rows)

    def unforgotten(self) -> list[str]:
        """The roles of its hypervisors that may still have something of this job."""
        on = {name: host_of(self.job, name).name for name in self.job.get_route().roles}
        forgot = {
            run.hypervisor.name: run.pk
            for run in self.rows
            if run.hypervisor and self._verb(run) == "forget" and run.result == "done"
        }
        last = {run.hypervisor.name: run.pk for run in self.rows if run.hypervisor}
        return [name for name, host in on.items() if last.get(host, 0) > forgot.get(host, 0)]

    def _verb(self, run: StepRun) -> str:
        """What a run asks for; a rehearsal is no part of the plan."""
        planned = self.planned.get(run.step)
        return (planned.step if planned else routes.named()[run.step]).verb

    def begin(self, planned: Planned, direction: str, args: dict[str, Any]) -> StepRun:
        """Writes the intent and returns its row; in a transaction, before anything is sent."""
        step = planned.step.name
        earlier = [run.attempt for run in self.rows if (run.step, run.direction) == (step, direction)]
        attempt = max(earlier, default=0) + 1
        with transaction.atomic():
            self._hold(waiting_for="")
            self.job.counted = incarnation.count()
            run = StepRun.objects.create(
                job=self.job,
                lap=self.lap,
                step=step,
                direction=direction,
                attempt=attempt,
                # Known before it is asked for: an undo may have to stop it although no answer ever came.
                unit=self._unit(step, direction, attempt),
                fence=self.job.fence,
                hypervisor=host_of(self.job, planned.step.on),
                args=args,
                bytes_total=planned.bytes,
            )
            self._expect_from(planned, direction)
        # Before anything is sent: a database that loses this step later is then known to be older than this directory.
        incarnation.remember(self.job.counted)
        self.rows.append(run)
        note(run, "begun")
        return run

    def attempt(self, key: tuple[str, str, int]) -> StepRun | None:
        """The row of this step, direction and attempt; None when it has none."""
        return next((run for run in self.rows if run.key == key), None)

    def _unit(self, step: str, direction: str, attempt: int) -> str:
        return f"volmig-{self.job.uuid.hex}-{step}-{direction}-{attempt}"

    def record(self, run: StepRun, answer: Answer) -> None:
        """Writes the outcome, or the progress of what still runs."""
        run.unit, run.boot_id = answer.unit or run.unit, answer.boot_id or run.boot_id
        if answer.boot_id and run.hypervisor:
            self.learn(run.hypervisor.name, answer.boot_id)
        if answer.state == "running":
            run.result = "running"  # what a program measured that remembers nothing is kept from one look to the next
            run.evidence, run.commands = {**run.evidence, **answer.evidence}, [*run.commands, *answer.commands]
        elif answer.state != "busy":
            self._end(run, answer)
        with transaction.atomic():
            self._hold()
            run.save(
                update_fields=["silent_since", "unit", "boot_id", "result", "ended_at", "evidence", "commands", "error"]
            )
            if run.ended_at:
                self._settle(run)
        if run.ended_at:
            note(run, run.result)

    def silent(self, run: StepRun) -> None:
        """Somebody whom this attempt needs does not answer; the first such moment is kept."""
        self._silence(run, run.silent_since or timezone.now())

    def heard(self, run: StepRun) -> None:
        """The hypervisor responds again."""
        self._silence(run, None)

    def unread(self, run: StepRun, unread: bool) -> None:
        """Notes whether the hypervisor responds without a readable status."""
        if run.unread != unread:
            run.unread = unread
            with transaction.atomic():
                self._hold()
                run.save(update_fields=["unread"])

    def _silence(self, run: StepRun, since: dt.datetime | None) -> None:
        if run.silent_since != since:
            run.silent_since = since
            with transaction.atomic():
                self._hold()
                run.save(update_fields=["silent_since"])

    def learn_of(self, recalled: Mapping[str, Any], hypervisor: Any, lap: int) -> StepRun:
        """Enter an attempt that a hypervisor recalls and this journal lacks, or its end; with ledger and event.

        The ledger keeps what a later attempt left, as where an undo has ended and the do before it is entered only now.
        Its times are those of the hypervisor's clock. Where no result was stored (lost, or recalled by an older
        hostctl) nobody knows when it ended: it is entered as ended when it began.
        """
        step, direction, attempt = (recalled[name] for name in ("step", "direction", "attempt"))
        begun, ended = (moment(recalled.get(name)) for name in ("at", "ended"))
        run = self.attempt((step, direction, attempt))
        if run is None:
            run = StepRun(job=self.job, step=step, direction=direction, attempt=attempt, lap=lap)
            run.unit = self._unit(step, direction, attempt)
            run.hypervisor, run.args, run.started_at = hypervisor, recalled.get("args") or {}, begun
            self.rows.append(run)
        run.fence, run.boot_id = int(recalled.get("fence") or 0), str(recalled.get("boot_id") or "")
        run.result = str(recalled["state"])
        run.evidence, run.error = recalled.get("evidence") or {}, recalled.get("error") or None
        run.commands = recalled.get("commands") or []
        run.ended_at = None if run.result == "running" else max(run.started_at, ended)
        with transaction.atomic():
            run.save()
            planned, is_last = self.planned.get(step), not self._is_overtaken(run)
            if planned is not None and is_last and run.result != "refused":
                self._expect_from(planned, direction)
            if run.ended_at and planned is not None:
                self._settle(run, is_last)
        return run

    def _is_overtaken(self, run: StepRun) -> bool:
        """Whether a later attempt at the same step is known to be done."""

        def order(each: StepRun) -> tuple[int, int, bool, int]:
            return each.lap, each.fence, each.direction == "undo", each.attempt

        done = (each for each in self.rows if each is not run and (each.step, each.result) == (run.step, "done"))
        return any(order(each) > order(run) for each in done)

    def _end(self, run: StepRun, answer: Answer) -> None:
        run.silent_since = None
        run.result, run.ended_at = answer.state, timezone.now()
        run.evidence, run.commands, run.error = answer.evidence, [*run.commands, *answer.commands], answer.error

    def _settle(self, run: StepRun, is_last: bool = True) -> None:
        """What an ended step means for the ledger, unless a later attempt has settled that, and for the audit log."""
        if run.result == "done" and is_last:
            step = self.planned[run.step].step
            self._took_away(step, run) if run.direction == "undo" else self._made(step, run)
        Event.append(
            f"step.{run.result}",
            job=self.job.pk,
            object=run.step,
            data={
                "direction": run.direction,
                "attempt": run.attempt,
                "hypervisor": run.hypervisor and run.hypervisor.name,
                "evidence": run.evidence,
                "error": run.error,
                "commands": [each.get("text") for each in run.commands],
            },
        )

    def _expect_from(self, planned: Planned, direction: str) -> None:
        """Enter in the ledger what a step may leave, or its undo: a swap that is undone leaves the rejected disk."""
        if direction == "do":
            self._expect(planned, planned.leaves)
        elif planned.step.task is Task.EXCHANGE:
            self._expect(planned, self._rejected(planned)[0])

    def _expect(self, planned: Planned, name: str) -> None:
        """The ledger knows of a thing before it is made: a crash between the two leaves no unknown leftover."""
        if artifact := planned.step.artifact:
            on = planned.step.on
            place = {"share": share(self.job)} if artifact.on_share else {"hypervisor": host_of(self.job, on)}
            mark, _ = self.job.footprints.get_or_create(kind=artifact.kind, name=name, defaults=place)
            if mark.state == "gone":
                self.job.footprints.filter(pk=mark.pk).mark(mark.kind, "reserved", identity="")

    def _made(self, step: Step, run: StepRun) -> None:
        ledger = self.job.footprints
        if step.artifact:
            self._keep(step.artifact, self.planned[step.name].leaves, run)
        if step.task is Task.PURGE:
            ledger.mark("backup", "gone")
        for other in self.planned.values():
            if other.step.torn_by == step.name and other.step.leaves:
                ledger.filter(name=other.leaves).mark(other.step.leaves, "gone")

    def _keep(self, artifact: Artifact, name: str, run: StepRun) -> None:
        """It is there, with the identity that the step measured; it takes the space that was kept free for it."""
        ledger = self.job.footprints
        held = {"bytes": bytes_in(run, artifact.bytes)} if artifact.bytes else {}
        identity = str(run.evidence.get(artifact.identity, ""))
        ledger.filter(name=name).mark(artifact.kind, "present", identity=identity, **held)
        if artifact.reserves:
            kept_free = ledger.exclude(share=None) if artifact.on_share else ledger.exclude(hypervisor=None)
            kept_free.mark("space", "gone")

    def _took_away(self, step: Step, run: StepRun) -> None:
        if not step.leaves:
            return
        ledger, planned = self.job.footprints, self.planned[step.name]
        ledger.filter(name=planned.leaves).mark(step.leaves, "gone")
        if step.task is Task.EXCHANGE:
            # Swapping back deletes nothing: the new disk now lies where the old one did, under another name.
            name, left = self._rejected(planned)
            identity, held = run.evidence.get(left.identity), bytes_in(run, left.bytes)
            found = {"state": "present", "identity": str(identity), "bytes": held} if identity else {"state": "gone"}
            ledger.filter(name=name).mark(step.leaves, **found)

    def _rejected(self, exchange: Planned) -> tuple[str, Artifact]:
        """Where the new disk lies once the exchange was taken back, and what identifies it."""
        return self.job.get_route().sink.rejected(exchange.leaves)

    def _hold(self, **also: Any) -> None:
        """Still the owner? Then for a while longer."""
        until = Now() + dt.timedelta(seconds=settings.LEASE_SECONDS)
        if not Job.objects.filter(pk=self.job.pk, fence=self.job.fence).update(lease_until=until, **also):
            raise Moved(f"Another worker has taken over migration {self.job.pk}.")


def moment(seconds: Any) -> dt.datetime:
    """A time that a hypervisor gave in seconds since the epoch; the epoch itself where it gave none."""
    return dt.datetime.fromtimestamp(float(seconds or 0), dt.UTC)


def bytes_in(run: StepRun, name: str) -> int:
    """A size that a hypervisor measured, as far as a column can hold it; 0 when it said none."""
    found = run.evidence.get(name)
    return int(found or 0) if is_count(found) else 0


def host_of(job: Job, on: str) -> Any:
    """The hypervisor that a step's `on` means; an instance is handled on its destination."""
    return getattr(job, hypervisor_role(on))


def share(job: Job) -> Share:
    """The share of the destination's disk."""
    return Share.objects.get(source=job.share_source)
