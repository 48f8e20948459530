"""What was done through Nova, for the adoption of a migration: Nova remembers no steps, so they are inferred.

The result has the shape in which a hypervisor recalls its steps, so that they are compared and entered like those.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from hosts.remote.host import Answer, Request
from jobs.engine import adoption
from jobs.engine.plan import Unready
from jobs.hands import Hands, Heard
from jobs.journal import Journal
from jobs.models import Job

SKEW = 60.0  # seconds by which the clocks of Nova and of hypervisors may differ
Recalled = Mapping[str, Any]
Measured = Mapping[str, Mapping[str, Any]]


def ask(hands: Hands, runs: Sequence[adoption.Known], reported: Sequence[Recalled]) -> dict[str, Any]:
    """What Nova and libvirt show, with the steps that follow from it and are not among `runs`, those of the last lap.

    `reported` is what hypervisors recall. Under `silent` stands why somebody did not say, under `unsettled` why that
    has to be asked again later.
    """
    job = hands.job
    said = evidence_of(hands.ask({"instance": Request("recall", {"instance": job.instance_id})})["instance"])
    if "silent" in said:
        return said
    server = said["server"] or {}
    nova = {name: server.get(name, "") for name in ("vm_state", "host", "locked", "locked_reason")}
    shown = {"known": "yes", "fence": 0, "nova": nova, "shown": in_words(job, server), "runs": []}
    if task := server.get("task_state"):
        return shown | {"unsettled": f"Nova is at work on the instance ({task}). Compare again when that has ended."}
    libvirt = evidence_of(hands.ask({"destination": state_request(job, reported)})["destination"])
    if "silent" in libvirt:
        return {"silent": f"libvirt on {job.destination} has to say how the instance is: {libvirt['silent']}"}
    evidence = measured(job, reported)
    since = min((float(run.get("at") or 0) for run in reported), default=job.created_at.timestamp()) - SKEW
    acts = [row for row in said["acts"] if row["at"][:19] >= dt.datetime.fromtimestamp(since, dt.UTC).isoformat()[:19]]
    seen = adoption.Instance(
        locked=bool(server.get("locked")) and server.get("locked_reason") == lock_reason(job),
        off=server.get("vm_state") == "stopped" and libvirt["state"] != "running",
        acts=tuple((row["action"], row["request"]) for row in acts),
        ran=adoption.ran_on_new_disk(libvirt, evidence),
    )
    inferred = [
        recalled(job, step, direction, found)
        for step, direction in adoption.done_through_nova(runs, seen)
        for found in [evidence_for(step, direction, seen, evidence, swap_of(job, reported))]
    ]
    for run in inferred:
        place(run, reported)
    return shown | {"libvirt": libvirt["state"], "runs": inferred}


def in_words(job: Job, server: Mapping[str, Any]) -> str:
    """How Nova shows the instance, for people."""
    if not server:
        return "does not know the instance: it was deleted"
    locked = "not locked"
    if server.get("locked"):
        ours = server.get("locked_reason") == lock_reason(job)
        locked = f"locked by {'this migration' if ours else server.get('locked_reason') or 'somebody'}"
    return f"{server.get('vm_state')} on {server.get('host') or 'no host'}, {locked}"


def lock_reason(job: Job) -> str:
    return f"volmig:{job.uuid}"


def evidence_of(heard: Heard) -> dict[str, Any]:
    """What was answered, or under `silent` why nothing was."""
    answer = heard.answer or Answer("silent")
    if answer.state == "done":
        return dict(answer.evidence)
    return {"silent": str(heard.error or answer.found or "it did not say why")}


def measured(job: Job, reported: Sequence[Recalled]) -> dict[str, dict[str, Any]]:
    """By step, what its good attempts measured, as the journal and the hypervisors have it."""
    mine = {row.step: row.evidence for row in job.runs.filter(direction="do", result="done").order_by("pk")}
    good = [run for run in reported if (run["direction"], run["state"]) == ("do", "done")]
    return mine | {run["step"]: run.get("evidence") or {} for run in good}


def swap_of(job: Job, reported: Sequence[Recalled]) -> dict[str, Any]:
    """The arguments of the last swap that was begun; empty when none was."""
    mine = [row.args for row in job.runs.filter(step="swap", direction="do").exclude(result="refused").order_by("pk")]
    theirs = [
        run.get("args") or {}
        for run in reported
        if (run["step"], run["direction"]) == ("swap", "do") and run["state"] != "refused"
    ]
    return dict([{}, *mine, *theirs][-1])


def state_request(job: Job, reported: Sequence[Recalled]) -> Request:
    """Ask libvirt for the instance, and where its disk was exchanged also for the file of the disk."""
    swap = swap_of(job, reported)
    file = {str(name): swap[name] for name in ("instances", "disk") if name in swap}
    return Request("instance_state", {"instance": job.instance_id, **file}, job=str(job.uuid), number=job.pk)


def evidence_for(
    step: str, direction: str, seen: adoption.Instance, evidence: Measured, swap: Mapping[str, Any]
) -> dict[str, Any]:
    """What the steps that follow, and a rollback, need to know of one that was done through Nova."""
    request = seen.request(step, direction)
    known: dict[str, Any] = {"adopted": True, "already": not request, **({"request": request} if request else {})}
    if (step, direction) == ("lock", "do"):
        return known | {"prevents": True}
    if (step, direction) == ("stop", "do"):  # the swap was given what the stop had measured
        return known | {"was": "running" if request else "shut off", "live": swap.get("live") or {}}
    if (step, direction) == ("start", "do"):
        return known | {"state": "running"}
    return known


def recalled(job: Job, step: str, direction: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """One step as a hypervisor would recall it; an attempt that was begun and has no end is this one."""
    rows = [row for row in job.runs.all() if (row.step, row.direction) == (step, direction)]
    unended = [row for row in rows if row.ended_at is None]
    attempt = unended[-1].attempt if unended else max((row.attempt for row in rows), default=0) + 1
    before = unended[-1].evidence if unended else {}
    run = {"step": step, "direction": direction, "attempt": attempt, "state": "done", "args": {}}
    return run | {"evidence": {**evidence, **{name: before[name] for name in ("was",) if name in before}}}


BESIDE_SWAP = {("lock", "do"): -2, ("stop", "do"): -1, ("start", "do"): 1}
BESIDE_RETURN = {("start", "undo"): -1, ("stop", "undo"): 1, ("lock", "undo"): 2}


def place(run: dict[str, Any], reported: Sequence[Recalled]) -> None:
    """Give a step its place among those that hypervisors recall: beside the exchange of the disks, or at the end."""
    key = (run["step"], run["direction"])
    direction, offset = ("do", BESIDE_SWAP[key]) if key in BESIDE_SWAP else ("undo", BESIDE_RETURN[key])
    swaps = [each for each in reported if (each["step"], each["direction"]) == ("swap", direction)]
    beside = swaps[-1] if swaps else None
    if beside is None:
        beside = max(reported, key=lambda each: (each["fence"], each["claim"], each["at"]), default=None)
        offset += 3
    for name in ("fence", "claim", "at"):
        run[name] = (beside or {}).get(name) or 0
    run["at"] += offset / 1000


def arguments(journal: Journal, run: Recalled) -> dict[str, Any]:
    """What the step was asked with, as far as the plan and what is entered by now give it."""
    planned, known = journal.planned[run["step"]], journal.evidence()
    try:
        args = planned.filled({**known, "limits": {"rate": 0}})
    except Unready:  # the swap that it rests on is not known to have measured that
        return {}
    return args if run["direction"] == "do" else {**args, "made": known.get(run["step"], {})}
