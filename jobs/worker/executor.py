"""What a tick does in each status of a job: look, decide by the engine, act through it, move on by the table."""

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from hosts.models import Hypervisor
from hosts.remote.host import HostctlDiffers, HostError, Unreachable
from hosts.remote.nova_control import foreign, told
from jobs.engine import approval_binding, checks, plan, runner, states
from jobs.engine.host_facts import Facts, Nova
from jobs.engine.plan import Planned
from jobs.engine.routes import task_of
from jobs.engine.rules import Around, Case
from jobs.engine.steps import Task
from jobs.models import Approval, Job, Rehearsal, backup
from jobs.models.job import LONGEST_SLEEP
from jobs.models.wake import wake
from jobs.worker.cleanup import take_away
from jobs.worker.facts import USUAL, Unheard, fact_requests, trouble, understood
from jobs.worker.gateway import Hands, Heard
from jobs.worker.journal import Journal, host_of
from jobs.worker.scheduling import SLOT, measured, reserve, reserved
from volmig.health import tallies
from volmig.notify import announce
from volmig.record.models import Event

STALE = dt.timedelta(minutes=10)
BUSY = dt.timedelta(seconds=3)
IN_A_ROW = dt.timedelta(minutes=5)  # failures within this time count together


class Work:
    """One job in the hands of one tick."""

    def __init__(self, job: Job, hands: Hands) -> None:
        self.job, self.hands = job, hands

    def go_on(self) -> None:
        """Work through statuses until one has to wait.

        A database that was set back is found out at once, also where nothing is to be changed yet.
        """
        if self.job.status in states.MAY_ACT:
            self.hands.judge_all()
        if self.job.taken_over and not self._shut_out():
            return
        if wait := take_away(self.job, self.hands):
            self._rest(wait)
            return
        while not self.job.halt_reason and (handler := self.handlers.get(self.job.status)):
            before = self.job.status
            try:
                handler(self)
            except Unheard as error:
                self._ask_again(error)
            if self.job.status == before:
                return

    @transaction.atomic
    def _ask_again(self, error: Unheard) -> None:
        """Soon; but what answers again and again without giving the facts is for a person to look at."""
        job, since = self.job, max(timezone.now() - IN_A_ROW, self.job.resumed_at or self.job.created_at)
        if error.answers:
            Event.append("facts.failed", job=job.pk, object=str(job), data={"found": str(error)})
            if Event.objects.filter(job=job.pk, action="facts.failed", at__gte=since).count() >= runner.MAX_FAILED:
                return job.halt(str(error), {"code": "no-facts"})
        return self._wait(str(error), timezone.now() + SLOT, error.kind, error.hosts)

    def _shut_out(self) -> bool:
        """An earlier owner who never let go may still be acting: nothing before no hypervisor listens to it any more.

        What it began and wrote down is ours now; what runs unknown to the journal has to end first.
        """
        journal = self._journal()
        try:
            heard = self.hands.ask(dict.fromkeys(journal.unforgotten(), self.hands.about("fence")))
        except HostError as error:  # a hypervisor that has to say first who owns it
            self._wait(f"Before continuing after a worker ended: {error}", timezone.now() + BUSY)
            return False
        known = {f"{run.step}-{run.direction}-{run.attempt}" for run in journal.rows if not run.ended_at}
        why_not = {
            host_of(self.job, role).name: said
            for role, each in heard.items()
            if (said := still_held(host_of(self.job, role), each, known))
        }
        if why_not:
            errors = [each.error for each in heard.values() if each.error]
            kind = runner.wait_kind(errors) if errors else "busy"
            self._wait(" ".join(why_not.values()), timezone.now() + BUSY, kind, ", ".join(why_not))
            return False
        self.job.put(taken_over=False)
        return True

    # Before anything is made

    def _check(self) -> None:
        job = self.job
        if job.cancel_requested_at:
            return self._cancel()
        heard = self._ask(*job.get_route().answers, fully=True)
        silent = {
            role: str(each.error)
            for role, each in heard.items()
            if isinstance(each.error, Unreachable | HostctlDiffers)
        }
        if silent:
            kind = runner.wait_kind(heard[role].error for role in silent)
            return self._wait(" ".join(silent.values()), timezone.now() + SLOT, kind, self._names(silent))
        around = dataclasses.replace(self._around(heard), policies=self._policies())
        case = Case(job.migration(), self._facts(heard), around)
        found = checks.look(case)
        job.put(facts=case.facts.to_json(), facts_at=timezone.now(), checks=[each.to_json() for each in found])
        blocking = checks.blocking(found)
        if blocking:
            reason = " ".join(each.sentence for each in blocking)
            return job.go("blocked", outcome="blocked", outcome_reason=reason)
        job.keep_hostctl()
        job.keep_plan(plan.make(case.migration, case.facts, measured(job)))
        start = timezone.now() if job.start_when_checked else None
        return job.go("passed", start_requested_at=start, start_when_checked=False)

    def _planned(self) -> None:
        job = self.job
        if job.cancel_requested_at:
            self._cancel()
        elif job.start_requested_at and job.facts_at and abs(timezone.now() - job.facts_at) > STALE:
            job.go("stale", start_requested_at=None, start_when_checked=True)
        elif job.start_requested_at:
            job.go("started")

    # Phase A

    def _prepare(self) -> None:
        job = self.job
        if job.cancel_requested_at:
            return self._cancel()
        if not self._took_back_earlier():
            return None
        why_not = reserve(job)
        if why_not:
            return self._wait(why_not, timezone.now() + SLOT, "slot")
        outcome = self._advance("A")
        if isinstance(outcome, runner.Finished):
            return self._ask_for_swap(self._fresh(), "staged")
        if isinstance(outcome, runner.Failed):
            return job.go("failed", outcome="failed", outcome_reason=outcome.sentence)
        return self._rest(outcome)

    def _ask_for_swap(self, facts: Facts, event: str = "", voided: str = "", changes: list[str] | None = None) -> None:
        """Bind what is true now, ask people, and move on; one transaction, so that nobody sees half of it.

        Nobody is asked about an instance on which Nova is at work, or which is not there any more.
        """
        bound, (why_not, passes) = self.job.bound("swap", facts), self.job.get_route().control.not_now(facts)
        with transaction.atomic():
            for old in self.job.approvals.open().filter(kind="swap"):
                old.void(voided or why_not, changes)
            if not why_not:
                self.job.make_approval("swap", bound, self.job.requester)
            if event:
                self.job.go(event)
        if why_not and not passes:
            return self.job.halt(why_not, {"code": "unknown-instance", "found": changes or why_not})
        return self._wait(why_not, timezone.now() + SLOT, "slot") if why_not else self._look_again()

    def _look_again(self) -> None:
        """While people decide: when the request expires, or sooner, to see what others do to the instance."""
        approval = self.job.approvals.open().filter(kind="swap").first()
        if approval is not None:
            notice = [timezone.now() + notice_every()] if self.job.through_nova else []
            wake(self.job.pk, min([approval.expires_at, *notice]))

    def _took_back_earlier(self) -> bool:
        """A copy that went stale is taken back before the next is made; true when nothing of it is left."""
        job = self.job
        if job.lap == 1:
            return True
        steps = job.planned()
        journal = Journal(job, steps.steps, job.lap - 1)
        outcome = runner.undo(steps.phase("A"), journal, self.hands, timezone.now)
        self._rest(outcome)
        return isinstance(outcome, runner.Finished)

    # The gate

    def _await_approval(self) -> None:
        if self.job.cancel_requested_at:
            return self._cancel()
        approval = self.job.approvals.open().filter(kind="swap").first()
        if approval is None or approval.state == "expired":
            facts = self._fresh()
            return None if self._went_stale(facts) else self._ask_for_swap(facts, voided="It expired.")
        if approval.state == "approved":
            return self.job.go("approved")
        if changes := self._noticed(approval):
            return self._ask_for_swap(
                self._fresh(), "", "The instance has changed since the approval was requested.", changes
            )
        return self._look_again()

    def _noticed(self, approval: Approval) -> list[str]:
        """What Nova says differently about the instance than when people were asked."""
        if not self.job.through_nova or approval.created_at > timezone.now() - notice_every():
            return []
        nova = self._of_nova()
        seen = self.job.get_route().control.binding(self.job.migration(), Facts(instance=nova))
        asked = {name: approval.bound["instance"].get(name) for name in seen}
        return approval_binding.difference({"instance": asked}, {"instance": seen})

    def _of_nova(self) -> Nova:
        """What Nova says about the instance now; raises Unheard when it does not say."""
        heard = self._ask("instance")
        if said := trouble(heard["instance"]):
            raise Unheard(f"Nova has to respond first: {said.sentence}", heard.values(), "Nova")
        nova: Nova = understood(self.job, "instance", heard["instance"])
        return nova

    def _approved(self) -> None:
        if self.job.cancel_requested_at:
            return self._cancel()
        approval = self.job.approvals.open().filter(kind="swap").first()
        if approval is not None:
            approval.keep_up()
            if approval.state == "approved" and self._waits_for_window(approval):
                return None
        facts = self._fresh()
        if self._went_stale(facts):
            return None
        if approval is None or approval.state != "approved":
            lost = "It no longer has enough approvals."
            why = "It expired." if approval and approval.state == "expired" else lost
            return self._ask_for_swap(facts, "expired", why)
        seen = self.job.bound("swap", facts)
        if approval_binding.digest(seen) != approval.digest:
            changes = approval_binding.difference(approval.bound, seen)
            return self._ask_for_swap(facts, "void", approval_binding.why_void(changes), changes)
        return None if self._waits_for_hostctl() else self._use(approval, "consumed")

    def _waits_for_window(self, approval: Approval) -> bool:
        """Whether the swap has to wait, for as long as the consent counts: never is it late by a window's end."""
        sentence, until = self.job.why_wait()
        if sentence:
            self._wait(sentence, min(until, approval.expires_at), "window")
        return bool(sentence)

    def _waits_for_hostctl(self) -> bool:
        """Whether a hypervisor lacks this migration's version of hostctl: that must not be found out with the guest
        down. One that does not answer at all is waited for by the step that needs it.
        """
        said = self.hands.boots(self.job.get_route().roles)
        lacking = {role: lacks for role, each in said.items() if (lacks := runner.lacks(self._names([role]), each))}
        if lacking:
            sentence = f"Before the instance is stopped: {' '.join(lacking.values())}"
            self._wait(sentence, timezone.now() + SLOT, "version", self._names(lacking))
        return bool(lacking)

    def _went_stale(self, facts: Facts) -> bool:
        """Whether what was verified is not there any more: then the copy is made again, or a person has to look."""
        route, evidence = self.job.get_route(), self.job.evidence()
        stale = approval_binding.stale(route, facts, evidence)
        if stale and approval_binding.foreign_stage(route, facts, evidence):
            sentence = "Another file is in the place of the verified copy; volmig does not change it."
            self.job.halt(sentence, {"code": "foreign-stage", "found": stale})
        elif stale:
            self._copy_again(stale)
        return bool(stale)

    @transaction.atomic
    def _copy_again(self, stale: list[str]) -> None:
        """Void what was consented to, and go back to the beginning with the space yet to be reserved."""
        for approval in self.job.approvals.open().filter(kind="swap"):
            approval.void("The copy no longer matches what was verified; volmig makes it again.", stale)
        self.job.footprints.filter(kind="space").delete()
        if self.job.status == "approved":
            self.job.go("void")
        self.job.go("stage_stale", lap=self.job.lap + 1)

    def _use(self, approval: Approval, event: str, **values: Any) -> None:
        """Use the consent up in the very transaction that moves the job."""
        if not approval.seals:
            said = "The approval has no seal yet. The web process makes it: check that it runs, then retry."
            return self._wait(said, timezone.now() + SLOT)
        with transaction.atomic():
            if approval.use():
                return self.job.go(event, **values)
        return wake(self.job.pk, timezone.now() + SLOT)

    # Phase B and after

    def _swap(self) -> None:
        job = self.job
        if job.cancel_requested_at and not runner.begun(Task.START, self._journal()):
            return job.go("cancelled", outcome="cancelled", outcome_reason="Cancelled before the instance was started.")
        if self._is_late():
            why = "The window closed before the instance was shut down. It keeps running."
            return job.go("failed", outcome="failed", outcome_reason=why)
        if not runner.begun(Task.STOP, self._journal()) and self._waits_for_hostctl():
            return None
        outcome = self._advance("B")
        if isinstance(outcome, runner.Finished):
            return self._arrive("seen_running", "swap_done", "runs on its new disk")
        if isinstance(outcome, runner.Failed) and safe_to_go_back(outcome):
            if others := self._acted_upon():
                why = f"Someone else changed the instance: {'; '.join(others)}. {outcome.sentence}"
                return job.halt(why, {"step": outcome.step, **outcome.error, "code": "foreign-action"})
            return job.go("failed", outcome="failed", outcome_reason=outcome.sentence)
        return self._rest(outcome)

    def _is_late(self) -> bool:
        """Whether a worker came so late that the swap would outlast its window; once the stop began it goes through."""
        return not runner.begun(Task.STOP, self._journal()) and bool(self.job.why_wait()[0])

    def _acted_upon(self) -> list[str]:
        """What others had Nova do since the approval, in words."""
        if not self.job.through_nova:
            return []
        return [told(row) for row in self._others(self._of_nova())]

    def _others(self, nova: Nova) -> list[dict[str, Any]]:
        rows = [dataclasses.asdict(row) for row in nova.actions]
        return foreign(rows, **self.job.acted())

    def _try_out(self) -> None:
        job = self.job
        rollback = job.approvals.open().filter(kind="rollback", expires_at__gt=timezone.now()).first()
        if rollback is not None and rollback.state == "approved":
            if self._lost_its_way_back():
                return None
            return self._use(
                rollback,
                "rollback_approved",
                outcome="rolled back",
                outcome_reason=why_back(rollback),
            )
        outcome = self._advance("C")
        if not isinstance(outcome, runner.Finished):
            return self._rest(outcome)
        if job.confirmed_at and rollback is None:
            return job.go("confirmed", outcome="done")
        if job.through_nova and self._disturbed():
            return None
        said = "Check the data in the instance and confirm it."
        return job.put(waiting_for=said, wait_kind="person", wait_hosts="")

    def _lost_its_way_back(self) -> bool:
        """Whether what the old disk stands on is gone: that must not be found out with the guest down."""
        if not self.job.kept_bases():
            return False
        heard = self._ask("destination")["destination"]
        if said := trouble(heard):
            why = f"The old disk has to be checked first: {said.sentence}"
            raise Unheard(why, [heard], self._names(["destination"]))
        lost: tuple[str, ...] = understood(self.job, "destination", heard).way_back
        if lost:
            why = f"The rollback did not begin, and the instance still runs: {'; '.join(lost)}."
            self.job.halt(why, {"code": "base-missing", "found": "; ".join(lost)})
        return bool(lost)

    def _disturbed(self) -> bool:
        """Whether somebody did to the instance on trial what stands against the way back; all they did is recorded."""
        job, now = self.job, timezone.now()
        wake(job.pk, now + notice_every())
        if job.runs.filter(ended_at__gt=now - notice_every()).exists():
            return False  # Nova was asked about it just now
        nova = self._of_nova()
        others = self._others(nova)
        for row in others:
            if not Event.objects.filter(job=job.pk, action="instance.action", object=row["request"]).exists():
                Event.append("instance.action", job=job.pk, object=row["request"], data=row)
        grave = [told(row) for row in others if row["action"] not in USUAL]
        not_now = job.get_route().control.not_now
        lost, _ = not_now(Facts(instance=nova)) if nova.server is None or grave else ("", True)
        if not grave and not lost:
            return False
        said = " ".join(
            [*(["Someone changed it through Nova: " + "; ".join(grave) + "."] if grave else []), lost]
        ).strip()
        job.halt(f"The instance was changed while on trial. {said}", {"code": "foreign-action", "found": grave or lost})
        return True

    def _roll_back(self) -> None:
        if not self._locked_again():
            return
        job = self.job
        made = job.planned()
        untouched = not job.approvals.filter(kind="rollback", consumed_at__isnull=False).exists()
        extra = {made.one(Task.EXCHANGE).step.name: {"untouched": untouched}}
        if self._take_back(made.phase("A", "B"), extra):
            self._arrive("rolled_back", "rolled_back", "has its old disk again")

    @transaction.atomic
    def _arrive(self, event: str, kind: str, words: str) -> None:
        """Move on, and tell people in the same breath."""
        job = self.job
        job.go(event)
        if (down := job.down()) and down.until:
            tallies.record("volmig_downtime_seconds", down.seconds(down.until))
        subject = f"Migration {job.pk}: {job.instance_name} {words}"
        announce(kind, subject=subject, text=job.sentence(), url_path=job.get_absolute_url())

    def _locked_again(self) -> bool:
        """On trial it may have been unlocked: nobody else is to start the instance between its stop and the rename."""
        lock = self.job.planned().one(Task.LOCK)
        outcome = runner.restore(lock, self._journal(), self.hands, timezone.now)
        self._rest(outcome)
        return isinstance(outcome, runner.Finished)

    def _undo(self) -> None:
        if self._took_back_earlier() and self._take_back(self.job.planned().phase("A"), {}):
            self.job.go("undone")

    def _take_back(self, steps: tuple[Planned, ...], extra: dict[str, dict[str, Any]]) -> bool:
        """Undo these steps and have everybody forget the job; true when nothing is left."""
        for old in self.job.approvals.open():
            old.void("The migration has ended.")
        outcome = runner.undo(steps, self._journal(), self.hands, timezone.now, extra)
        if isinstance(outcome, runner.Finished):
            outcome = runner.sweep(self._forgets(), self._journal(), self.hands, timezone.now)
        if not isinstance(outcome, runner.Finished):
            self._rest(outcome)
            return False
        self.job.footprints.filter(state="reserved").update(state="gone", since=timezone.now())
        return True

    def _forgets(self) -> tuple[Planned, ...]:
        return tuple(each for each in self.job.planned().phase("C") if each.step.task is Task.FORGET)

    def _ended(self) -> None:
        """After the end the kept disk is rehearsed when asked for, minded, and purged by its own approval."""
        rehearsal = self.job.rehearsals.open().first()
        if rehearsal is not None and not self._rehearsed(rehearsal):
            return
        backup.mind(self.job)
        purge = self.job.approvals.open().filter(kind="purge").first()
        if purge is not None and purge.state == "approved":
            self._use(purge, "purge_approved")

    def _rehearsed(self, rehearsal: Rehearsal) -> bool:
        """Whether it has come to its end: the disk is read, and the hypervisor has forgotten that it was."""
        job, trouble = self.job, []
        steps = backup.rehearsal_steps(job)
        journal = Journal(job, steps, rehearsal.number)
        for step in steps:
            outcome = runner.advance((step,), journal, self.hands, timezone.now)
            if isinstance(outcome, runner.Wait):
                self._rest(outcome)
                return False
            if isinstance(outcome, runner.Failed | runner.Halt):
                trouble.append(outcome.sentence)
        rehearsal.end(journal.evidence().of(Task.REHEARSE), " ".join(trouble))
        job.put(waiting_for="")
        return True

    def _purge(self) -> None:
        steps = self.job.purging_plan().phase("D")
        outcome = runner.advance(steps, self._journal(), self.hands, timezone.now)
        if isinstance(outcome, runner.Finished):
            return self.job.go("purged")
        return self._rest(outcome)

    handlers: dict[str, Callable[["Work"], None]] = {
        "checking": _check,
        "planned": _planned,
        "preparing": _prepare,
        "awaiting_approval": _await_approval,
        "approved": _approved,
        "swapping": _swap,
        "on_trial": _try_out,
        "rolling_back": _roll_back,
        "undoing": _undo,
        "done": _ended,
        "rolled_back": _ended,
        "purging": _purge,
    }

    # What all of them use

    def _cancel(self) -> None:
        self.job.go("cancelled", outcome="cancelled", outcome_reason="It was cancelled.")

    def _journal(self) -> Journal:
        return Journal(self.job, self.job.planned().steps)

    def _advance(self, phase: str) -> runner.Outcome:
        return runner.advance(self.job.planned().phase(phase), self._journal(), self.hands, timezone.now)

    def _rest(self, outcome: runner.Outcome) -> None:
        """Wait, or halt: what fails where the table knows no way on is for a person."""
        if isinstance(outcome, runner.Wait):
            self._wait(outcome.sentence, outcome.until, outcome.kind, outcome.hosts)
            if outcome.silent_since and self.job.status in ("swapping", "rolling_back"):
                self._alert(outcome)
        elif isinstance(outcome, runner.Failed | runner.Halt):
            data = dict(outcome.data if isinstance(outcome, runner.Halt) else outcome.error)
            self.job.halt(outcome.sentence, {"step": outcome.step, **data})

    def _alert(self, outcome: runner.Wait) -> None:
        """Tell people, once in every silence, that an instance is locked or down until somebody answers."""
        job = self.job
        if Event.objects.filter(job=job.pk, action="job.unanswered", at__gte=outcome.silent_since).exists():
            return
        with transaction.atomic():
            Event.append("job.unanswered", job=job.pk, object=str(job), data={"waiting_for": outcome.sentence})
            state, down = job.condition(), job.down()
            since = f" Down since {down.since:%H:%M:%S} UTC." if down and down.until is None else ""
            text = f"{state.sentence}{since} {state.advice} Retrying automatically. Details: {outcome.sentence}"
            subject = f"Migration {job.pk}: {job.instance_name} waits in mid-swap"
            announce("unanswered", subject=subject, text=text, url_path=job.get_absolute_url())

    def _wait(self, sentence: str, until: dt.datetime, kind: str = "", hosts: str = "") -> None:
        """Say what is waited for, and since when: since the first time that it was the same."""
        job, what = self.job, (kind, hosts[:200])
        since = job.waiting_since if job.waiting_for and (job.wait_kind, job.wait_hosts) == what else None
        job.put(waiting_for=sentence, wait_kind=kind, wait_hosts=what[1], waiting_since=since or timezone.now())
        wake(job.pk, until if kind == "window" else min(until, timezone.now() + LONGEST_SLEEP))

    def _names(self, roles: Iterable[str]) -> str:
        """What people call those who are asked in these roles."""
        return ", ".join("Nova" if role == "instance" else str(host_of(self.job, role).name) for role in roles)

    def _ask(self, *roles: str, fully: bool = False) -> dict[str, Heard]:
        requests = fact_requests(self.job, fully)
        return self.hands.ask({role: requests[role] for role in roles if role in requests})

    def _facts(self, heard: dict[str, Heard]) -> Facts:
        """What they said, as far as they said it; raise Unheard when it cannot be understood."""
        parts: dict[str, Any] = {
            role: understood(self.job, role, each)
            for role, each in heard.items()
            if each.answer is not None and each.answer.state == "done"
        }
        return Facts(**parts)

    def _fresh(self) -> Facts:
        """Source and destination as they are now; raise Unheard when one does not say."""
        heard = self._ask("source", "destination", "instance")
        silent = {role: said for role, each in heard.items() if (said := trouble(each))}
        if silent:
            why = " ".join(each.sentence for each in silent.values())
            raise Unheard(
                f"The facts have to be read again: {why}", [heard[role] for role in silent], self._names(silent)
            )
        return self._facts(heard)

    def _policies(self) -> dict[str, dict[str, Any]]:
        """What each hypervisor says that its own policy is; one that does not say is left out."""
        heard = self.hands.ask(dict.fromkeys(self.job.get_route().roles, self.hands.about("policy")))
        return {
            role: each.answer.evidence for role, each in heard.items() if each.answer and each.answer.state == "done"
        }

    def _around(self, heard: dict[str, Heard]) -> Around:
        job, others = self.job, Job.objects.active().exclude(pk=self.job.pk)
        return Around(
            reserved_on_relay=reserved(job, hypervisor=job.relay, name=job.relay_vg),
            reserved_on_share=reserved(job, share__source=job.share_source),
            job_with_volume=others.filter(lv_uuid=job.lv_uuid).values_list("pk", flat=True).first(),
            job_with_instance=others.filter(instance_id=job.instance_id).values_list("pk", flat=True).first(),
            seal_keys={role: host_of(job, role).seal_fingerprint for role in job.get_route().roles},
            skew={role: each.skew for role, each in heard.items()},
            trouble={role: said for role, each in heard.items() if (said := trouble(each))},
        )


def notice_every() -> dt.timedelta:
    """How long after a notice the next one may follow."""
    return dt.timedelta(seconds=settings.NOTICE_SECONDS)


def still_held(hypervisor: Hypervisor, heard: Heard, known: set[str]) -> str:
    """Why an earlier owner may still be acting on a hypervisor; empty when it surely is not."""
    if said := heard.error:
        return f"Before continuing after a worker ended: {said}"
    answer = heard.answer
    if answer is not None and answer.state == "done":
        return ""
    running = answer.evidence.get("running") if answer else None
    if running and set(running) <= known:
        return ""
    what = ", ".join(running or ()) or "a request"
    return f"{hypervisor.name} is still busy with {what} of a worker that has ended."


def safe_to_go_back(failed: runner.Failed) -> bool:
    """Whether the old disk may be put back without asking: surely nothing was written to the new one.

    Before the start nothing can have been; at the start only hostctl knows whether the guest ever ran.
    """
    said = failed.error.get("evidence") or {}
    task = task_of(failed.step)
    if task is Task.START:
        return said.get("ever_ran") is False or failed.error.get("touched") is False
    return task in (Task.LOCK, Task.STOP) or failed.error.get("touched") is False


def why_back(rollback: Approval) -> str:
    """Why the old disk is put back, for people."""
    if rollback.granted_by_id:
        return f"{rollback.requester} used the rollback pre-approved with the swap."
    return f"A rollback was approved: {rollback.reasons() or 'this site does not require a second person.'}"
