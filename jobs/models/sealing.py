"""Seals of approvals: made where keys are, in the web process, when an approval is complete; workers hand them on.

A hypervisor stops no guest, swaps no disk and deletes none without one (hostctl's authority.py). They expire a day
after the approval does, which is the time for the phase that it begins; those by which a swap is undone, a day later.
Whoever acts on the migration on a page or through the API has them made anew while that phase goes on.
"""

import datetime as dt
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from django.utils import timezone

from hosts.remote.hostctl import authority
from jobs.engine.steps import Task
from volmig import data_dir

if TYPE_CHECKING:
    from jobs.models.adoption import Adoption
    from jobs.models.approval import Approval
    from jobs.models.job import Job

PHASE: Final = dt.timedelta(days=1)
BACK: Final = dt.timedelta(days=1)
VERBS: Final = {
    "swap": ("instance_stop", "swap", "swap_back"),
    "rollback": ("instance_stop", "swap_back"),
    "purge": ("purge",),
}
# By what an adopted migration goes on from: the approval of its swap is not in a database that was set back. Whoever
# adopts it has read that the old disk comes back, or may have to.
ADOPTED: Final = {"rolling_back": ("swap_back",), "swapping": ("instance_stop", "swap_back")}
PHASES: Final = {"swapping": ("swap",), "rolling_back": ("swap", "rollback"), "purging": ("purge",)}


def seal(approval: "Approval") -> None:
    """Make the seals of a complete approval; nothing in a process that has no key."""
    if not data_dir.may_read("seal_key"):
        return
    good_until = max(approval.expires_at, timezone.now()) + PHASE
    approval.seals = {
        verb: made(
            approval.job,
            verb,
            arguments(approval, verb),
            approval.digest,
            good_until + (BACK if approval.kind == "swap" and verb != "swap" else dt.timedelta()),
        )
        for verb in VERBS[approval.kind]
    }
    approval.save(update_fields=["seals"])


def made(job: "Job", verb: str, args: dict[str, Any], digest: str, until: dt.datetime) -> dict[str, Any]:
    """One seal; `digest` names what a person saw who approved it."""
    return authority.make(job.destination.seal_key(), str(job.uuid), verb, args, digest, int(until.timestamp()))


def seal_adoption(row: "Adoption") -> None:
    """Make the seals by which an adopted migration gives the instance its old disk back; nothing without a key."""
    job = row.job
    if job is None or not data_dir.may_read("seal_key"):
        return
    args, until = {"instance": job.instance_id, "disk": job.disk}, timezone.now() + PHASE
    row.seals = {verb: made(job, verb, args, row.digest, until) for verb in ADOPTED.get(row.status, ())}
    row.save(update_fields=["seals"])


def unseal(approval: "Approval") -> None:
    """Hand its seals on no more: it is not complete any longer."""
    if approval.seals:
        approval.seals = {}
        approval.save(update_fields=["seals"])


def arguments(approval: "Approval", verb: str) -> dict[str, Any]:
    """What a seal binds, as it was approved: which disk of which instance, and what is to take its place or to go."""
    job = approval.job
    disk = {"instance": job.instance_id, "disk": job.disk}
    if verb == "swap":
        return disk | {"share_source": job.share_source, "stage": approval.bound["stage"]}
    if verb == "purge":
        return job.purging_plan().one(Task.PURGE).filled(job.evidence())
    return disk


def renew(job: "Job") -> None:
    """Make anew what the phase that goes on needs, and what an approval lacks that is complete by now."""
    if not data_dir.may_read("seal_key"):
        return
    for approval in job.approvals.filter(kind__in=PHASES.get(job.status, ()), consumed_at__isnull=False):
        seal(approval)
    if job.status in ADOPTED and (adopted := job.adoptions.exclude(adopted_at=None).last()):
        seal_adoption(adopted)
    for approval in job.approvals.open().filter(seals={}):
        if approval.state == "approved":
            seal(approval)


def seal_for(job: "Job", verb: str) -> dict[str, Any]:
    """The seal that the last used approval, or the last adoption, gives for this verb; empty when none does."""
    used = job.approvals.filter(consumed_at__isnull=False).order_by("-pk").values_list("consumed_at", "seals")
    adopted = job.adoptions.filter(adopted_at__isnull=False).values_list("adopted_at", "seals")
    given = [(at, seals[verb]) for at, seals in (*adopted, *used) if at and verb in seals]
    found: dict[str, Any] = max(given, key=itemgetter(0), default=(None, {}))[1]
    return found
