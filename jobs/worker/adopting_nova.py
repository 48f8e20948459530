"""What was done through Nova, for the adoption of a migration: Nova remembers no steps, so they are inferred.

The result has the shape in which a hypervisor recalls its steps, so that they are compared and entered like those.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from hosts.remote.host import Answer, Request
from jobs.engine import adoption
from jobs.engine.evidence import Evidence
from jobs.engine.plan import Unready
from jobs.engine.routes import names_of, task_of
from jobs.engine.steps import LIMITS, Task
from jobs.models import Job
from jobs.worker.gateway import Hands, Heard
from jobs.worker.journal import Journal

SKEW = 60.0  # seconds by which the clocks of Nova and of hypervisors may differ
Recalled = Mapping[str, Any]


def ask(hands: Hands, runs: Sequence[adoption.Known], reported: Sequence[Recalled]) -> dict[str, Any]:
    """What Nova and libvirt show, with the steps that follow from it and are not among `runs`, those of the last lap.

    `reported` is what hypervisors recall. Under `silent` stands why Nova or libvirt did not say, under `unsettled` why
    that has to be asked again later.
    """
    job = hands.job
    nova = evidence_of(hands.ask({"instance": Request("recall", {"instance": job.instance_id})})["instance"])
    if "silent" in nova:
        return nova
    server = nova["server"] or {}
    kept = {name: server.get(name, "") for name in ("vm_state", "host", "locked", "locked_reason")}
    shown = {"known": "yes", "fence": 0, "nova": kept, "shown": in_words(job, server), "runs": []}
    if task := server.get("task_state"):
        return shown | {"unsettled": f"Nova is working on the instance ({task}). Compare again when it has finished."}
    libvirt = evidence_of(hands.ask({"destination": state_request(job, reported)})["destination"])
    if "silent" in libvirt:
        return {"silent": f"libvirt on {job.destination} has to report the state of the instance: {libvirt['silent']}"}
    seen = instance(job, nova, libvirt, reported)
    steps = adoption.done_through_nova(runs, seen)
    return shown | {"runs": [recalled(job, task, direction, seen, reported) for task, direction in steps]}


def instance(
    job: Job, nova: Mapping[str, Any], libvirt: Mapping[str, Any], reported: Sequence[Recalled]
) -> adoption.Instance:
    """How Nova and libvirt show it, with what volmig had done to it since the first step of this migration."""
    server = nova["server"] or {}
    began = min((float(run.get("at") or 0) for run in reported), default=job.created_at.timestamp())
    since = dt.datetime.fromtimestamp(began - SKEW, dt.UTC).isoformat()[:19]
    return adoption.Instance(
        locked=bool(server.get("locked")) and server.get("locked_reason") == lock_reason(job),
        off=server.get("vm_state") == "stopped" and libvirt["state"] != "running",
        acts=tuple((row["action"], row["request"]) for row in nova["acts"] if row["at"][:19] >= since),
        ran=adoption.ran_on_new_disk(libvirt, measured(job, reported)),
    )


def in_words(job: Job, server: Mapping[str, Any]) -> str:
    """How Nova shows the instance, for people."""
    if not server:
        return "has no such instance: it was deleted"
    locked = "not locked"
    if server.get("locked"):
        ours = server.get("locked_reason") == lock_reason(job)
        locked = f"locked by {'this migration' if ours else server.get('locked_reason') or 'someone'}"
    return f"{server.get('vm_state')} on {server.get('host') or 'no host'}, {locked}"


def lock_reason(job: Job) -> str:
    """The reason by which Nova's lock is known as this migration's."""
    return f"volmig:{job.uuid}"


def evidence_of(heard: Heard) -> dict[str, Any]:
    """What was answered, or under `silent` why nothing was."""
    answer = heard.answer or Answer("silent")
    if answer.state == "done":
        return dict(answer.evidence)
    return {"silent": str(heard.error or answer.found or "it gave no reason")}


def measured(job: Job, reported: Sequence[Recalled]) -> Evidence:
    """By step, what its good attempts measured, as the journal and the hypervisors have it."""
    mine = {row.step: row.evidence for row in job.runs.filter(direction="do", result="done").order_by("pk")}
    good = [run for run in reported if (run["direction"], run["state"]) == ("do", "done")]
    return Evidence(mine | {run["step"]: run.get("evidence") or {} for run in good})


def swap_of(job: Job, reported: Sequence[Recalled]) -> dict[str, Any]:
    """The arguments of the last swap that was begun; empty when none was."""
    runs = job.runs.for_task(Task.EXCHANGE).filter(direction="do").exclude(result="refused")
    mine = [row.args for row in runs.order_by("pk")]
    theirs = [
        run.get("args") or {}
        for run in reported
        if (task_of(run["step"]), run["direction"]) == (Task.EXCHANGE, "do") and run["state"] != "refused"
    ]
    return dict([{}, *mine, *theirs][-1])


def state_request(job: Job, reported: Sequence[Recalled]) -> Request:
    """Ask libvirt for the instance, and where its disk was exchanged also for the file of the disk."""
    swap = swap_of(job, reported)
    file = {str(name): swap[name] for name in ("instances", "disk") if name in swap}
    return Request("instance_state", {"instance": job.instance_id, **file}, job=str(job.uuid), number=job.pk)


def recalled(
    job: Job, task: Task, direction: str, seen: adoption.Instance, reported: Sequence[Recalled]
) -> dict[str, Any]:
    """One step as a hypervisor would recall it; an attempt that was begun and has no end is this one."""
    (step,) = names_of(task)
    rows = [row for row in job.runs.all() if (row.step, row.direction) == (step, direction)]
    unended = [row for row in rows if row.ended_at is None]
    attempt = unended[-1].attempt if unended else max((row.attempt for row in rows), default=0) + 1
    evidence = evidence_for(task, direction, seen, swap_of(job, reported))
    if unended and "was" in unended[-1].evidence:  # it was written down before Nova was asked
        evidence["was"] = unended[-1].evidence["was"]
    run = {"step": step, "direction": direction, "attempt": attempt, "state": "done", "args": {}, "evidence": evidence}
    return run | place(task, direction, reported)


def evidence_for(task: Task, direction: str, seen: adoption.Instance, swap: Mapping[str, Any]) -> dict[str, Any]:
    """What the steps that follow, and a rollback, need to know of one that was done through Nova."""
    request = seen.request(task, direction)
    known: dict[str, Any] = {"adopted": True, "already": not request, **({"request": request} if request else {})}
    if (task, direction) == (Task.LOCK, "do"):
        return known | {"prevents": True}
    if (task, direction) == (Task.STOP, "do"):  # the swap was given what the stop had measured
        return known | {"was": "running" if request else "shut off", "live": swap.get("live") or {}}
    if (task, direction) == (Task.START, "do"):
        return known | {"state": "running"}
    return known


# In thousandths of a second from it.
BESIDE_SWAP = {(Task.LOCK, "do"): -2, (Task.STOP, "do"): -1, (Task.START, "do"): 1}
BESIDE_RETURN = {(Task.START, "undo"): -1, (Task.STOP, "undo"): 1, (Task.LOCK, "undo"): 2}


def place(task: Task, direction: str, reported: Sequence[Recalled]) -> dict[str, Any]:
    """Its place (fence, claim, at) among what hypervisors recall: beside the exchange of the disks, or at the end."""
    exchange, offset = (
        ("do", BESIDE_SWAP[key]) if (key := (task, direction)) in BESIDE_SWAP else ("undo", BESIDE_RETURN[key])
    )
    swaps = [run for run in reported if (task_of(run["step"]), run["direction"]) == (Task.EXCHANGE, exchange)]
    if swaps:
        beside = swaps[-1]
    else:
        beside = max(reported, key=lambda run: (run["fence"], run["claim"], run["at"]), default={})
        offset += 3  # after it
    at = float(beside.get("at") or 0) + offset / 1000
    return {"fence": beside.get("fence") or 0, "claim": beside.get("claim") or 0, "at": at}


def arguments(journal: Journal, run: Recalled) -> dict[str, Any]:
    """What the step was asked with, as far as the plan and what is entered by now give it."""
    planned, known = journal.planned[run["step"]], journal.evidence()
    try:
        args = planned.filled({**known, LIMITS: {"rate": 0}})
    except Unready:  # the swap that it rests on is not known to have measured that
        return {}
    return args if run["direction"] == "do" else {**args, "made": known.get(run["step"], {})}
