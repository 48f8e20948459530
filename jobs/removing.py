"""Takes away, in a tick of a job that has ended, what people asked to have removed: looked at afresh, one by one."""

from django.utils import timezone

from hosts.models import Hypervisor, Scan
from hosts.remote.host import HostError, Request
from hosts.tasks import scan_soon
from jobs.engine import leftovers, runner
from jobs.engine.steps import TABLE
from jobs.hands import Hands
from jobs.journal import Journal
from jobs.leftovers import rows
from jobs.models import Job, Removal
from jobs.models.job import ROLES
from jobs.models.removal import why_not_now

ORDER = {step.name: number for number, step in enumerate(TABLE)}


def take_away(job: Job, hands: Hands) -> runner.Wait | None:
    """Work on every open wish in the order of undoing, memories last; what one has to wait for, or None."""
    wishes = list(job.removals.open().select_related("hypervisor__team"))
    for wish in sorted(wishes, key=lambda wish: (wish.step.startswith("forget"), -ORDER[wish.step])):
        if wait := take_one_away(job, wish, hands):
            return wait
    if wishes:
        job.put(waiting_for="")
    return None


def take_one_away(job: Job, wish: Removal, hands: Hands) -> runner.Wait | None:
    """Only what is there now, with marker and recorded identity, of a job that has ended; else nothing is touched."""
    if said := why_not_now(job, wish.hypervisor):
        return wish.end("refused", f"{said} Nothing was removed.")
    if wish.after is None:
        if said := why_not_any_more(job, wish, hands):
            return wish.end("refused", f"{said} Nothing was removed.")
        last = job.runs.order_by("pk").last()
        wish.after = last.pk if last else 0
        wish.save(update_fields=["after"])
    outcome = undo(job, wish.step, wish, hands)
    if isinstance(outcome, runner.Wait):
        return outcome
    if isinstance(outcome, runner.Finished):
        wish.end("removed", "It was there with the recorded identity, and is taken away.")
        forget(job, wish, hands)
    else:
        wish.end("refused", outcome.sentence)
    scan_soon(wish.hypervisor_id)
    return None


def why_not_any_more(job: Job, wish: Removal, hands: Hands) -> str:
    """Ask the hypervisor once more, and keep what it tells; why the wish cannot be met then, empty when it can."""
    role, began = role_of(job, wish.hypervisor), timezone.now()
    heard = hands.ask({role: Request("leftovers")})[role]
    if heard.error is not None or heard.answer is None:
        return f"{wish.hypervisor.name} could not be asked: {heard.error}"
    if heard.answer.state != "done":
        return f"{wish.hypervisor.name} did not tell what is there: {(heard.answer.error or {}).get('found')}."
    scan, _ = Scan.objects.get_or_create(hypervisor=wish.hypervisor, defaults={"tried_at": began})
    try:
        scan.record(heard.answer.evidence, began)
    except HostError as error:
        return str(error)
    about = (wish.kind, wish.name, str(job.uuid), wish.identity)
    seen = rows(Hypervisor.objects.filter(pk=wish.hypervisor_id))
    found = next((row for row in seen if row.is_about(*about) and row.about.place == wish.place), None)
    return found.why_kept if found else "It is not there, or not the one that was recorded."


def undo(job: Job, step: str, wish: Removal, hands: Hands) -> runner.Outcome:
    """The guarded undo of a step, told the recorded identity; only what happens from now on counts."""
    steps = {each.step.name: each for each in job.planned().steps}
    if step not in steps:
        return runner.Halt(step, "Its migration was never planned, so no step of it removes this.")
    journal = Journal(job, tuple(steps.values()))
    journal.resumed_at = wish.asked_at
    more = leftovers.bound(wish.kind, wish.identity)
    made = {**journal.evidence().get(step, {}), **more.pop("made", {})}
    if step == "source_fence":
        made["lv_uuid"] = job.lv_uuid
    extra = {step: {"made": made, **more}} if made or more else {}
    return runner.remove(steps[step], journal, hands, timezone.now, wish.after or 0, extra)


def forget(job: Job, wish: Removal, hands: Hands) -> None:
    """What the hypervisor remembers of this very removal goes too, unless more of the job is still there."""
    step = f"forget_{role_of(job, wish.hypervisor)}"
    if wish.step != step:
        undo(job, step, wish, hands)


def role_of(job: Job, hypervisor: Hypervisor) -> str:
    """What a hypervisor is in a job."""
    return next(role for role in ROLES if getattr(job, f"{role}_id") == hypervisor.pk)
