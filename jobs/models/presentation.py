"""What a job tells people: where it is, what ran, what comes, how long it takes, and what they may do about it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings
from django.utils import timezone

from jobs.engine import condition, halt_help, routes, states, stored_steps
from jobs.engine.steps import DESTINATION
from volmig.accounts.roles import why_not

if TYPE_CHECKING:
    from jobs.models.job import Job
    from jobs.models.steprun import StepRun
    from volmig.accounts.models import Team

SENTENCES = {
    "checking": "Running pre-flight checks on the hypervisors. Nothing is changed.",
    "planned": "Ready to start: checks passed and the plan is complete. Nothing has been changed.",
    "preparing": "Copying beside the live disk, which is not changed.",
    "awaiting_approval": "The copy is verified and staged. Another person has to approve the swap.",
    "approved": "The swap is approved. volmig reads the facts again before it begins.",
    "swapping": "The disk is being swapped.",
    "on_trial": "The instance runs on the new disk. Check its data and confirm it; the old disk is kept.",
    "rolling_back": "The old disk is being put back.",
    "undoing": "Everything created so far is being removed. The live disk was not changed.",
    "undone": "Ended before the swap. The live disk was never changed and all temporary resources were removed.",
    "rolled_back": "The instance runs on its old disk again. The rejected disk is kept until it is purged.",
    "done": "The instance runs on the new disk and its data is confirmed. The old disk is kept until it is purged.",
    "purging": "The unused disk is being deleted.",
    "purged": "The unused disk is deleted. Nothing of this migration is left.",
}
Want = Literal["", "start", "approve", "confirm"]
PHASES = {"checking": "", "planned": "A", "preparing": "A", "swapping": "B", "on_trial": "C", "purging": "D"}


@dataclass(frozen=True)
class Row:
    """One step on the time line; state is todo, running, done, failed, skipped or undone; seconds as measured."""

    step: str
    title: str
    phase: str
    state: str
    seconds: float | None
    run: StepRun | None
    forecast: float
    late: bool = False
    box: str = ""


@dataclass(frozen=True)
class Action:
    """A verb that a person may, or may not yet, use on a job."""

    verb: str
    label: str
    explains: str
    needs: str = "submit"
    url_name: str = "jobs:verb"
    allowed: bool = True
    why_not: str = ""

    def for_user(self, user: Any, teams: list[Team], at_present: str = "") -> Action:
        """The same with this person's permission on what belongs to these teams; `at_present` says why not now."""
        why = at_present or " ".join(why_not(user, self.needs, teams))
        return Action(self.verb, self.label, self.explains, self.needs, self.url_name, not why, why)


START = Action("start", "Start", "Copies the volume beside the live disk. The instance keeps running.")
CANCEL = Action(
    "cancel",
    "Cancel",
    "Stops at the next safe point and removes everything created so far. You can then submit it again, "
    "also through another relay.",
)
RESUME = Action("resume", "Resume", "Checks the step again and continues if it finds the expected state.")
TRY_AGAIN = Action(
    "try-again",
    "Retry now",
    "Does not wait for the next automatic try. Completed steps are kept.",
)
CONFIRM = Action("confirm", "Confirm the data", "Ends the trial: you have checked the data in the instance.")
RATE = Action("rate", "Set limit", "Applies from the next copy pass.")
ROLLBACK = Action(
    "ask-rollback",
    "Request rollback",
    "Another person has to approve. Data written since the swap will be lost.",
)
ROLL_BACK = Action(
    "roll-back",
    "Roll back now",
    "Pre-approved together with the swap. Data written since the swap will be lost.",
)
WITHDRAW = Action(
    "withdraw",
    "Withdraw your approval",
    "Possible until the swap begins. The request then needs another approval.",
    "view",
    "jobs:approval",
)
PURGE = Action(
    "ask-purge",
    "Request purge",
    "Another person has to approve. The unused disk is then deleted for good.",
)
REHEARSE = Action(
    "rehearse",
    "Rehearse the backup",
    "Reads the kept disk whole on its hypervisor, with qemu-img check, and compares it with its recorded data. "
    "Nothing is written, and the live disk is not read.",
)
EXTEND = Action(
    "extend",
    "Keep it longer",
    "Needs a date and a reason. Until that date the backup does not expire, and a request for its purge is void. "
    "It keeps its space on the share.",
    url_name="jobs:extend",
)
REVIEW = Action(
    "review",
    "Review the request",
    "Shows what would be done, for you to approve or reject.",
    "approve",
    "jobs:approval",
)


def words(job: Job) -> str:
    """The status as people read it."""
    return job.status.replace("_", " ")


def sentence(job: Job) -> str:
    """One plain sentence about where it is and whether anything live is touched."""
    if job.halt_reason:
        return f"Halted while {job.words}: {job.halt_reason}"
    said = SENTENCES[job.status]
    if job.status == "preparing" and job.lap > 1:
        said = f"{said} The copy is repeated: {'; '.join(why_again(job))}."
    if job.status == "undone" and job.outcome:
        said = f"{job.outcome.capitalize()}. {job.outcome_reason or ''} {said}".replace("  ", " ")
    elif job.outcome_reason and job.status in ("undoing", "rolling_back", "rolled_back"):
        said = f"{said} Why: {job.outcome_reason}"
    return said


def why_again(job: Job) -> list[str]:
    """What was not as verified any more, so that the copy is made once more."""
    void = job.approvals.filter(kind="swap", voided_at__isnull=False).first()
    return list(void.void_changes) if void else []


def running(job: Job) -> StepRun | None:
    """The attempt that is under way."""
    return next((run for run in reversed(job.runs.all()) if not run.ended_at), None)


def timeline(job: Job) -> list[Row]:
    """All steps of the plan with their last attempts and forecasts."""
    last: dict[tuple[str, str], StepRun] = {(run.step, run.direction): run for run in _of_this_lap(job)}
    return [
        _row(job, step, last.get((step["name"], "do")), last.get((step["name"], "undo")))
        for step in job.plan.get("steps", ())
    ]


def _row(job: Job, step: dict[str, Any], done: StepRun | None, undone: StepRun | None) -> Row:
    run = undone or done
    return Row(
        step["name"],
        step["title"],
        step["phase"],
        _state(job, step, done, undone),
        run.seconds if run else None,
        run,
        step["seconds"][1],
        late=undone is None and run is not None and condition.is_late(expected(job, step), run.seconds),
        box=stored_steps.box(step),
    )


def _state(job: Job, step: dict[str, Any], done: StepRun | None, undone: StepRun | None) -> str:
    if undone is not None:
        # Forgetting is the same act at every end; there is nothing about it to take back.
        good = "done" if step["verb"] == "forget" else "undone"
        return good if undone.result == "done" else "failed" if undone.ended_at else "running"
    if done is not None:
        return "done" if done.result == "done" else "failed" if done.ended_at else "running"
    over = job.status in states.ENDED or job.status in ("undoing", "rolling_back")
    return "skipped" if over and not (step["phase"] == "D" and job.status in ("done", "rolled_back")) else "todo"


def _of_this_lap(job: Job) -> list[StepRun]:
    return [run for run in job.runs.all() if run.lap == job.lap]


def expected(job: Job, step: dict[str, Any]) -> condition.Range:
    """The forecast of a step as planned, slower where a bandwidth limit was set since."""
    low, usual, high = step["seconds"]
    if job.rate and step.get("bytes") and stored_steps.is_limited(step):
        least = step["bytes"] / job.rate + 1
        return max(low, least), max(usual, least), max(high, least * 1.2)
    return low, usual, high


def planned_step(job: Job, name: str) -> dict[str, Any] | None:
    """A step of the plan as it was made."""
    return next((step for step in (job.plan or {}).get("steps", ()) if step["name"] == name), None)


def step_title(job: Job, name: str) -> str:
    """What a step is called: as it was planned, else as it is called today."""
    if step := planned_step(job, name):
        return str(step["title"])
    today = routes.named().get(name)
    return today.title if today else name.replace("_", " ").capitalize()


def step_now(job: Job) -> condition.Step | None:
    """The attempt that is under way, as far as a sentence about it depends on it."""
    run = job.running()
    if run is None:
        return None
    planned = planned_step(job, run.step)
    return condition.Step(
        run.step,
        step_title(job, run.step),
        run.hypervisor.name if run.hypervisor else job.destination.name,
        run.direction == "undo",
        run.started_at,
        run.result == "running",
        run.silent_since,
        run.progress_at,
        run.bytes_total > 0,
        run.seconds_left,
        expected(job, planned) if planned and run.direction == "do" else None,
    )


def down(job: Job) -> condition.Down | None:
    """For how long its instance is, or was, shut off by it."""
    forecast = (job.plan or {}).get("downtime")
    return condition.downtime(job.runs.all(), (forecast[0], forecast[1], forecast[2]) if forecast else None)


def situation(job: Job, now: dt.datetime | None = None) -> condition.Situation:
    """What the sentence about it depends on; it needs its journal and its plan."""
    now = now or timezone.now()
    held = job.lease_until is not None and job.lease_until > now
    due = job.wake_at if job.wake_at is not None and job.wake_at <= now else None
    abandoned = job.lease_until if job.lease_until is not None and not held else None
    step = step_now(job)
    troubled = bool(job.waiting_for) and job.wait_kind in (*condition.TROUBLE, "fault")
    return condition.Situation(
        now,
        job.status,
        # It costs a query, and is shown only then.
        job.sentence() if step is None and not job.halt_reason else "",
        dt.timedelta(seconds=settings.STALLED_SECONDS),
        halt_reason=job.halt_reason,
        halted_at=job.waiting_since if job.halt_reason else None,
        waiting_for=job.waiting_for,
        waits=job.wait_kind,
        waits_on=job.wait_hosts,
        waiting_since=job.waiting_since,
        wants="" if step is not None or troubled else job.wants(),
        step=step,
        down=job.down(),
        next_try=job.wake_at if job.wake_at is not None and job.wake_at > now and not held else None,
        idle_since=None if held or job.halt_reason else due or abandoned,
        destination=job.destination.name,
    )


def condition_now(job: Job, now: dt.datetime | None = None) -> condition.Condition:
    """Its one status sentence, with tone, age and next try."""
    return condition.condition(situation(job, now))


def unfinished(job: Job, phase: str) -> list[tuple[str, condition.Range]]:
    """Steps of a phase that are not done, with the range of their forecasts in seconds."""
    done = finished(job)
    return [
        (each["name"], expected(job, each))
        for each in job.plan["steps"]
        if each["phase"] == phase and each["name"] not in done
    ]


def finished(job: Job) -> dict[str, float]:
    """How many seconds each finished step of this copy round really took."""
    return {run.step: run.seconds for run in _of_this_lap(job) if run.direction == "do" and run.result == "done"}


def time_left(job: Job) -> condition.Range | None:
    """Seconds (low, usual, high) to the end of this phase; None when nothing moves as it was forecast."""
    phase = PHASES.get(job.status)
    if not phase or not job.plan:
        return None
    return condition.time_left(condition_now(job), step_now(job), unfinished(job, phase))


def outlook(job: Job) -> condition.Outlook | None:
    """The forecast of the whole migration, corrected by what its finished steps took; None before there is a plan."""
    if not (job.plan or {}).get("steps"):
        return None
    steps = [(each["name"], expected(job, each)) for each in job.plan["steps"] if each["phase"] in ("A", "B")]
    return condition.outlook(steps, finished(job), step_now(job), condition_now(job), timezone.now())


def log(job: Job) -> list[dict[str, Any]]:
    """Every command that ran, oldest first, with its hypervisor and step."""
    runs = job.runs.select_related("hypervisor")
    return [
        {
            "hypervisor": run.hypervisor.name if run.hypervisor else "",
            "step": run.step,
            "direction": run.direction,
            "attempt": run.attempt,
            **command,
        }
        for run in runs
        for command in run.commands
    ]


@dataclass(frozen=True)
class Halted:
    """Why a job stands still: what was expected, tried and found, how to look at it, and the ways on."""

    expected: str
    tried: Any
    found: Any
    touched: bool | None
    seen: dict[str, Any]
    by_hand: list[str]
    looks: list[str]
    on: str
    inodes: list[str]
    ways: list[Action]


TOLD = ("code", "step", "tried", "expected", "found", "touched", "next", "errors", "hypervisor")


def halted(job: Job) -> Halted | None:
    """What the page of a halted job says, to everybody who may see it; None while it is not halted."""
    if not job.halt_reason:
        return None
    data = job.halt_data if isinstance(job.halt_data, dict) else {}
    step, code = str(data.get("step") or ""), str(data.get("code") or "")
    instances, on = halt_instances(job), halted_on(job, step)
    migration, said = job.migration(), str(data.get("next") or "")
    return Halted(
        str(data.get("expected") or halt_help.expected(code)),
        data.get("tried"),
        data.get("found") or job.halt_reason,
        data.get("touched") if isinstance(data.get("touched"), bool) else None,
        {name: value for name, value in data.items() if name not in TOLD and value not in (None, "", [], {})},
        halt_help.by_hand(job.status, code, said, migration, instances),
        halt_help.looks(migration, on, instances),
        migration.host(on),
        halt_help.disks(migration, job.evidence()),
        ways(job),
    )


def halted_on(job: Job, step: str) -> str:
    """Where the step runs that halted it; what halted between steps is seen on the destination."""
    return next((each.step.on for each in job.planned().steps if each.step.name == step), DESTINATION)


def halt_instances(job: Job) -> str:
    """Where the destination has its instances, as seen when it was checked."""
    seen = (job.facts.get("destination") or {}).get("instances")
    return str(seen or "/var/lib/nova/instances")


def ways(job: Job) -> list[Action]:
    """The verbs that lead on from a halt, each with what it does from here."""
    offered = [replace(RESUME, explains=halt_help.RESUME.get(job.status, RESUME.explains))]
    if job.status in states.CANCELLABLE and not job.why_no_cancel():
        offered.append(replace(CANCEL, explains=halt_help.CANCEL.get(job.status, halt_help.CANCEL_USUAL)))
    if job.status == "on_trial":
        offered += [
            replace(CONFIRM, explains=f"{CONFIRM.explains} Then resume: the migration ends as done."),
            replace(ROLLBACK, explains=f"{ROLLBACK.explains} Resume carries it out."),
        ]
    return offered


def actions(job: Job, user: Any) -> list[Action]:
    """Actions about it now; what this person may not do says why."""
    teams = job.teams()
    halt_ways = {each.verb: each for each in ways(job)} if job.halt_reason else {}
    offered = [halt_ways["resume"].for_user(user, teams)] if halt_ways else []
    if not halt_ways and job.waits():
        offered.append(TRY_AGAIN.for_user(user, teams))
    if job.status == "planned":
        waiting = "It is already starting." if job.start_requested_at else ""
        offered.append(START.for_user(user, teams, waiting))
    approval = job.open_approval()
    if approval and approval.expires_at > timezone.now():
        if approval.consents().filter(person=user).exists():
            offered.append(WITHDRAW.for_user(user, teams))
        offered.append(REVIEW.for_user(user, teams, " ".join(approval.why_not(user)[:1])))
    if job.status == "on_trial":
        offered.append(CONFIRM.for_user(user, teams, _why_not_confirm(job)))
        offered.append(ROLLBACK.for_user(user, teams, _asked(job, "rollback")))
        if (until := job.rollback_until()) and until > timezone.now():
            offered.append(ROLL_BACK.for_user(user, teams, job.why_no_rollback(user)))
    if job.status in ("done", "rolled_back") and job.has_backup():
        offered.append(REHEARSE.for_user(user, teams, job.why_no_rehearsal()))
        offered.append(EXTEND.for_user(user, teams))
        offered.append(PURGE.for_user(user, teams, _asked(job, "purge")))
    if job.status in ("checking", "planned", "preparing"):
        offered.append(RATE.for_user(user, teams))
    if job.status in states.CANCELLABLE:
        offered.append(halt_ways.get("cancel", CANCEL).for_user(user, teams, job.why_no_cancel()))
    return offered


def wants(job: Job) -> Want:
    """What some person has to do before it goes on: start, approve or confirm; empty while workers have their turn.

    A status alone does not tell: it stays for a moment after a person has done their part.
    """
    if job.halt_reason:
        return ""
    if job.status == "planned":
        return "" if job.start_requested_at or job.cancel_requested_at else "start"
    if job.status == "awaiting_approval":
        return "" if job.cancel_requested_at else _undecided(job, "swap")
    if job.status == "on_trial" and not job.confirmed_at:
        asked = job.approvals.open().filter(kind="rollback", expires_at__gt=timezone.now()).exists()
        return _undecided(job, "rollback") if asked else "confirm"
    return ""


def _undecided(job: Job, kind: str) -> Want:
    asked = job.approvals.open().filter(kind=kind).first()
    return "approve" if asked and asked.state == "open" else ""


def has_backup(job: Job) -> bool:
    """Whether a disk that is not in use lies beside the live one."""
    return job.footprints.filter(kind="backup", state="present").exists()


def _asked(job: Job, kind: str) -> str:
    open_ones = job.approvals.open().filter(kind=kind, expires_at__gt=timezone.now())
    return f"A {kind} is already requested." if open_ones.exists() else ""


def _why_not_confirm(job: Job) -> str:
    if job.confirmed_at:
        return "The data is already confirmed."
    return "A rollback is requested; it has to be decided first." if _asked(job, "rollback") else ""
