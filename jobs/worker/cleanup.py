"""Takes away, in a tick of a job that has ended, what people asked to have removed: looked at afresh, one by one."""

import datetime as dt

from django.utils import timezone

from hosts.models import Hypervisor, Scan
from hosts.remote.host import HostError, Request
from hosts.tasks import scan_soon
from jobs.drift import Row, rows
from jobs.engine import drift, runner
from jobs.engine.routes import task_of
from jobs.engine.steps import Task
from jobs.models import Job, Removal
from jobs.models.job import ROLES
from jobs.models.removal import why_not_now
from jobs.worker.gateway import Hands
from jobs.worker.journal import Journal


def take_away(job: Job, hands: Hands) -> runner.Wait | None:
    """Work on every open wish in the order of undoing, memories last; what one has to wait for, or None."""
    wishes = list(job.removals.open().select_related("hypervisor__team"))
    order = {each.step.name: number for number, each in enumerate(job.planned().steps)} if wishes else {}
    for wish in sorted(wishes, key=lambda wish: (task_of(wish.step) is Task.FORGET, -order.get(wish.step, 0))):
        if wait := take_one_away(job, wish, hands):
            return wait
    if wishes:
        job.put(waiting_for="")
    return None


def take_one_away(job: Job, wish: Removal, hands: Hands) -> runner.Wait | None:
    """Only what is there now, with marker and recorded identity, of a job that has ended; else nothing is touched."""
    if said := why_not_now(job, wish.hypervisor):
        return wish.end("refused", f"{said} Nothing was removed.")
    if wish.began_at is None:
        if ended := look(job, wish, hands):
            return wish.end(*ended)
        wish.begin()
    outcome = undo(job, wish.step, wish, hands, wish.began_at)
    if isinstance(outcome, runner.Finished):
        outcome = forget(job, wish, hands) or outcome
    if isinstance(outcome, runner.Wait):
        return outcome
    if isinstance(outcome, runner.Finished):
        wish.end("removed", "It matched the recorded identity and was removed.")
    else:
        wish.end("refused", outcome.sentence)
    scan_soon(wish.hypervisor_id)
    return None


def look(job: Job, wish: Removal, hands: Hands) -> tuple[str, str] | None:
    """Ask the hypervisor once more, and keep what it tells; with what a wish ends that cannot be met then, or None."""
    try:
        seen = told_now(job, wish, hands)
    except HostError as error:
        return "refused", f"{wish.hypervisor.name} did not respond: {error} Nothing was removed."
    about = (wish.kind, wish.place, wish.name)
    named = [row for row in seen if row.found.thing and (row.about.kind, row.about.place, row.about.name) == about]
    if not named:
        return "gone", "It no longer exists, so nothing had to be removed."
    ours = [row for row in named if row.is_about(wish.kind, wish.name, str(job.uuid), wish.identity)]
    said = ours[0].why_kept if len(named) == len(ours) == 1 else "It is not, or not only, the recorded object."
    return ("refused", f"{said} Nothing was removed.") if said else None


def told_now(job: Job, wish: Removal, hands: Hands) -> list[Row]:
    """The comparison after a fresh scan of the hypervisor; raises HostError when it does not tell."""
    role, began = role_of(job, wish.hypervisor), timezone.now()
    heard = hands.ask({role: Request("leftovers")})[role]
    if heard.error is not None or heard.answer is None:
        raise heard.error or HostError(f"scan {wish.hypervisor}", "there was no response", "Scan again later.")
    if heard.answer.state != "done":
        raise HostError(f"scan {wish.hypervisor}", heard.answer.found or "it gave no reason")
    scan, _ = Scan.objects.get_or_create(hypervisor=wish.hypervisor, defaults={"tried_at": began})
    scan.record(heard.answer.evidence, began)
    scan.refresh_from_db()
    if not scan.told(wish.kind, wish.place):
        raise HostError(f"list what is on {wish.place}", "the scan did not cover it completely", "Scan again later.")
    return rows(Hypervisor.objects.filter(pk=wish.hypervisor_id))


def undo(job: Job, step: str, wish: Removal, hands: Hands, since: dt.datetime | None) -> runner.Outcome:
    """The guarded undo of a step, told the recorded identity; only what happened `since` counts for or against it."""
    steps = {each.step.name: each for each in job.planned().steps}
    if step not in steps:
        return runner.Halt(step, "Its migration was never planned, so no step of it removes this.")
    journal = Journal(job, tuple(steps.values()))
    journal.resumed_at = since
    more = drift.bound(wish.kind, wish.identity)
    made = {**journal.evidence().get(step, {}), **more.pop("made", {})}
    if steps[step].step.task is Task.FENCE:
        made["lv_uuid"] = job.lv_uuid
    extra = {step: {"made": made, **more}} if made or more else {}
    return runner.remove(steps[step], journal, hands, timezone.now, wish.after, extra)


def forget(job: Job, wish: Removal, hands: Hands) -> runner.Wait | None:
    """What the hypervisor remembers of this very removal goes too, unless more of the job is there or about to go."""
    step = drift.step_for("memory", "", role_of(job, wish.hypervisor))
    more = job.removals.open().filter(hypervisor=wish.hypervisor).exclude(pk=wish.pk)
    if wish.step == step or more.exists():
        return None
    outcome = undo(job, step, wish, hands, wish.began_at)
    return outcome if isinstance(outcome, runner.Wait) else None


def role_of(job: Job, hypervisor: Hypervisor) -> str:
    """What a hypervisor is in a job."""
    return next(role for role in ROLES if getattr(job, f"{role}_id") == hypervisor.pk)
