"""Adopts migrations of a database that was restored or copied: compares them with their hosts, one by one takes over.

While volmig is read-only this is the only thing that reaches out to hypervisors with more than questions, and all that
it sends is who owns a host and a job. A person confirms each migration; the last confirmation ends read-only mode.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Min, Q
from django.utils import timezone

from hosts.models import Hypervisor
from hosts.remote import nova, ssh
from hosts.remote.host import Answer, HostError, Request
from jobs.engine import adoption, plan, routes, states
from jobs.engine.steps import DESTINATION, INSTANCE, RELAY, ROLES
from jobs.models import Adoption, Job, Refused, StepRun, sealing
from jobs.worker import adopting_nova
from jobs.worker.adopting_nova import arguments, evidence_of
from jobs.worker.executor import Work
from jobs.worker.facts import Unheard
from jobs.worker.gateway import Hands, Heard
from jobs.worker.journal import Journal, host_of, share
from jobs.worker.scheduling import measured
from volmig import incarnation
from volmig.accounts.roles import why_not
from volmig.models import QueuedTask
from volmig.queue import later
from volmig.record.models import Event
from volmig.refusals import Sentence

BEFORE = "It was requested before the database was restored or copied, so it is no longer valid."
NEVER_SENT = {
    "code": "never-sent",
    "tried": "begin the step",
    "found": "its hypervisor never received the request",
    "touched": False,
    "next": "",
    "evidence": {},
}
AT_ONCE = 32  # hypervisors that are asked at a time: in turn, those of a large site take longer than a task may last
MOST_UNKNOWN = 100  # migrations of one hypervisor that the database lacks and that are read step by step
NOT_BEGUN = ("checking", "planned")
History = list[tuple[int, adoption.Known]]  # attempts in order, each with its lap
NOT_READ_ONLY = Sentence("not-read-only", "volmig is not read-only; there is nothing to adopt.")


# Comparing


def compare() -> None:
    """Task: ask every hypervisor who owns it and what it knows, and those of each migration what they keep of it.

    First those that were never compared, then those that were compared longest ago: where hosts are away, a task's
    limit may end it before the last one, and the next comparison goes on from there.
    """
    if (state := incarnation.read_only()) is None:
        return
    for hypervisor, seen in hear_all():
        keep_host(state.episode, hypervisor, seen)
    rows = Adoption.objects.filter(episode=state.episode).exclude(job=None).order_by("compared_at")
    order = {pk: number for number, pk in enumerate(rows.values_list("job", flat=True), 1)}
    for job in sorted(concerned(state.episode), key=lambda each: order.get(each.pk, 0)):
        if not is_adopted(job, state.episode):
            compare_one(job, state.episode)


def hear_all() -> Iterator[tuple[Hypervisor, dict[str, Any]]]:
    """What every hypervisor recalls, as the answers come; the database is not used in the threads.

    So answers are kept even if the task reaches its time limit while it still waits for unreachable hypervisors.
    """
    known = {str(uuid) for uuid in Job.objects.values_list("uuid", flat=True)}
    ways = [(each, each.remote()) for each in Hypervisor.objects.reachable().select_related("bastion")]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        asked = {pool.submit(recalled, address, known): each for each, address in ways}
        for answered in as_completed(asked):
            yield asked[answered], answered.result()


def recalled(address: Any, known: Container[str]) -> dict[str, Any]:
    """What a hypervisor recalls, or under `silent` why it did not say.

    Under `unknown` stand, step by step, the migrations that are not among those that are `known`: first those that it
    has working data of, and no more than MOST_UNKNOWN.
    """
    try:
        with ssh.connect(address) as host:
            seen = evidence_of(Heard(host.call(Request("recall"))))
            jobs = seen.get("jobs") or {}
            lacking = [uuid for uuid in jobs if uuid not in known]
            lacking.sort(key=lambda uuid: (jobs[uuid]["known"] != "yes", uuid))
            unknown = {
                uuid: brief(evidence_of(Heard(host.call(Request("recall", job=uuid)))))
                for uuid in lacking[:MOST_UNKNOWN]
            }
    except HostError as error:
        return evidence_of(Heard(error=error))
    return seen | {"unknown": unknown}


def brief(seen: Mapping[str, Any]) -> dict[str, Any]:
    """Of a migration that the database lacks: what is shown of it and what names its volume and its instance."""
    runs = [
        {name: run.get(name) for name in ("step", "direction", "attempt", "state", "fence", "claim", "at")}
        | {"args": {name: run["args"][name] for name in ("instance", "vg", "lv") if name in (run.get("args") or {})}}
        for run in seen.get("runs") or []
    ]
    return {name: seen[name] for name in ("known", "fence", "silent") if name in seen} | {"runs": runs}


def keep_host(episode: str, hypervisor: Hypervisor, seen: Mapping[str, Any]) -> Adoption:
    """What a hypervisor's owner means: `words` are empty when this database knows all that was done there."""
    fault = incarnation.stale(seen.get("owner") or {})
    words = f"{fault.found[:1].upper()}{fault.found[1:]}." if fault else ""
    status = "other" if fault and fault.is_other else ""
    row, _ = Adoption.objects.get_or_create(episode=episode, job=None, hypervisor=hypervisor)
    row.seen, row.compared_at, row.words, row.status = dict(seen), timezone.now(), words, status
    row.trouble = str(seen.get("silent", ""))
    row.save(update_fields=["seen", "compared_at", "words", "status", "trouble"])
    return row


def concerned(episode: str) -> list[Job]:
    """The migrations that may act, with or without a decision, and those of which a host knows more."""
    wishes = Q(approvals__voided_at=None, approvals__consumed_at=None, approvals__isnull=False)
    removals = Q(removals__ended_at=None, removals__isnull=False)
    may_act = Q(status__in=states.MAY_ACT) | wishes | removals
    known: dict[str, int] = {}
    for row in Adoption.objects.filter(episode=episode, job=None):
        for uuid, each in (row.seen.get("jobs") or {}).items():
            known[uuid] = max(known.get(uuid, 0), int(each["fence"]))
    ahead = [
        job.pk for job in Job.objects.filter(uuid__in=known).only("uuid", "fence") if job.fence < known[str(job.uuid)]
    ]
    whole = Job.objects.select_related("source__cloud", "relay", "destination__cloud")
    return list(whole.filter(may_act | Q(pk__in=ahead)).distinct().order_by("pk"))


def compare_one(job: Job, episode: str) -> Adoption:
    """What the hosts of a migration keep of it, beside what it would go on from."""
    hands = Hands(job, ssh.connect, nova.connect)
    try:
        seen = ask(hands)
    finally:
        hands.close()
    trouble = why_not_adopted(job, seen)
    found = adoption.Verdict(job.status, "") if trouble else verdict(job, history(job, seen))
    return keep(episode, job, seen, trouble=trouble, status=found.status, words=found.words)


def ask(hands: Hands) -> dict[str, Any]:
    """By role, what each of the job's hypervisors recalls of it, and Nova where it has the instance."""
    heard = hands.ask(dict.fromkeys(hands.job.get_route().roles, Request("recall", job=str(hands.job.uuid))))
    seen = {on: evidence_of(each) for on, each in heard.items()}
    if asks_nova(hands.job) and not any("silent" in each for each in seen.values()):
        runs = history(hands.job, seen)
        lap = last_lap(hands.job, runs)
        seen["instance"] = adopting_nova.ask(hands, [run for of, run in runs if of == lap], reported_runs(seen))
    return seen


def asks_nova(job: Job) -> bool:
    """Whether Nova may know of steps; once a migration has ended, nothing of it is done through Nova any more."""
    return job.through_nova and job.status in states.ACTIVE


def of_hosts(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What hypervisors reported, without Nova."""
    return {on: each for on, each in seen.items() if on in ROLES}


def keep(episode: str, job: Job, seen: Mapping[str, Any], **values: Any) -> Adoption:
    """Stores what a comparison found; an adopted row stays as it is."""
    row, _ = Adoption.objects.get_or_create(episode=episode, job=job, hypervisor=None)
    values |= {"seen": seen, "digest": digest(seen), "compared_at": timezone.now()}
    if row.adopted_at is None:
        for name, value in values.items():
            setattr(row, name, value)
        row.save()
    return row


def digest(seen: Mapping[str, Any]) -> str:
    """Names what a person was shown: fences, the instance in Nova, and every step with its end."""
    shown = [
        [on, *map(each.get, ("known", "fence", "silent", "nova")), *map(_short, each.get("runs") or [])]
        for on, each in sorted(seen.items())
    ]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def _short(run: Mapping[str, Any]) -> list[Any]:
    return [run[name] for name in ("step", "direction", "attempt", "state")]


def why_not_adopted(job: Job, seen: Mapping[str, Any]) -> str:
    """Why nothing can be decided yet: a host that says nothing or belongs to another volmig, or Nova is at work."""
    sentences = []
    for on, each in seen.items():
        hypervisor = name_of(job, on)
        if "silent" in each:
            sentences.append(f"{hypervisor} has to respond first: {each['silent']}")
        elif "unsettled" in each:
            sentences.append(each["unsettled"])
        elif (fault := incarnation.stale(each.get("owner") or {})) and fault.is_other:
            sentences.append(f"{hypervisor} has to be taken over first: {fault.found}.")
    return " ".join(sentences)


def name_of(job: Job, on: str) -> str:
    """Who reported what stands under this key."""
    return "Nova" if on == "instance" else str(host_of(job, on).name)


def label(job: Job, on: str) -> str:
    """That name, with the role of a hypervisor."""
    return name_of(job, on) if on == "instance" else f"{name_of(job, on)} ({on})"


def verdict(job: Job, runs: History) -> adoption.Verdict:
    """The status that the reported attempts amount to, of the last copy round."""
    last = last_lap(job, runs)
    return adoption.verdict(job.status, [run for lap, run in runs if lap == last])


def last_lap(job: Job, runs: History) -> int:
    """The number of the last copy round that the database or a hypervisor has."""
    return max([job.lap, *(lap for lap, _ in runs)])


def history(job: Job, seen: Mapping[str, Any]) -> History:
    """Every attempt that journal or hosts know, in order, with its lap; the hosts say how it ended."""
    reported = {run.key: run for run in map(adoption.known_of, reported_runs(seen))}
    rows = [
        reported.pop(known.key, known)
        for known in (known_row(row) for row in job.runs.all())
        if known.key in reported or not unsent(known, job)
    ]
    fresh = adoption.in_order(run for run in reported.values() if run.step in routes.named())
    return adoption.laps([*rows, *fresh])


def known_row(row: StepRun) -> adoption.Known:
    """An attempt of the journal as the engine compares it."""
    left = bool(row.evidence.get("left"))
    return adoption.Known(row.step, row.direction, row.attempt, row.result, row.fence, left=left)


def unsent(known: adoption.Known, job: Job) -> bool:
    """Whether an intent without an end, which no host has heard of, never left; what Nova was asked is not known so."""
    through_nova = job.through_nova and routes.named()[known.step].on == "instance"
    return known.state in ("", "running") and not through_nova


def reported_runs(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attempts that all hypervisors reported."""
    return [run for each in seen.values() for run in each.get("runs") or []]


# Migrations that the database lacks


@dataclass(frozen=True)
class Unknown:
    """A migration that hypervisors know and the database does not: by hypervisor what it reports, and what to do.

    volmig does nothing about it. `moves` names its volume and its instance, as far as its steps do; `last_at` is when
    the last of them was begun, in seconds since the epoch; `is_over` when surely nothing of it is left to do.
    """

    uuid: str
    hosts: Mapping[str, Mapping[str, Any]]
    moves: str
    last_at: float
    advice: str
    is_over: bool


def unknown(episode: str) -> list[Unknown]:
    """As the last comparison found them, those first of which a hypervisor has working data, then the latest."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    rows = Adoption.objects.filter(episode=episode, job=None).select_related("hypervisor").order_by("hypervisor__name")
    for row in rows:
        for uuid, seen in (row.seen.get("unknown") or {}).items():
            found.setdefault(uuid, {})[str(row.hypervisor)] = seen
    known = {str(uuid) for uuid in Job.objects.filter(uuid__in=found).values_list("uuid", flat=True)}
    away = list(Hypervisor.objects.active().exclude(pk__in=rows.values("hypervisor")).values_list("name", flat=True))
    listed = [
        one_unknown(uuid, hosts, [*(str(row.hypervisor) for row in rows if is_silent(row, uuid)), *away])
        for uuid, hosts in found.items()
        if uuid not in known
    ]
    return sorted(listed, key=lambda each: (each.is_over, -each.last_at))


def is_silent(row: Adoption, uuid: str) -> bool:
    """Whether a hypervisor has not said what it did for this migration; one that does not know it has done nothing."""
    seen = (row.seen.get("unknown") or {}).get(uuid)
    lists = uuid in (row.seen.get("jobs") or {})
    return "silent" in row.seen or (lists and (seen is None or "silent" in seen))


def one_unknown(uuid: str, hosts: Mapping[str, Mapping[str, Any]], silent: Sequence[str]) -> Unknown:
    """A migration that only hypervisors have, with advice."""
    runs = [run for seen in hosts.values() for run in steps(seen)]
    ordered = adoption.laps(adoption.in_order(map(adoption.known_of, runs)))
    last = max((lap for lap, _ in ordered), default=1)
    here = (DESTINATION, INSTANCE)
    destination = [name for name, seen in hosts.items() if any(ran_on(run) in here for run in steps(seen))]
    of_lap = [run for lap, run in ordered if lap == last]
    doubt = "" if destination else adoption.in_doubt(of_lap, silent)
    names = " or ".join(destination) or "its destination"
    advice = doubt or adoption.by_hand(uuid, of_lap, destination=names, ended=is_ended(hosts))
    last_at = max((float(run["at"] or 0) for run in runs), default=0.0)
    return Unknown(uuid, hosts, what_moves(runs), last_at, advice, is_ended(hosts) and not doubt)


def what_moves(runs: Iterable[Mapping[str, Any]]) -> str:
    """The volume and the instance of these steps; volumes of the relay are temporary."""
    args = {name: value for run in runs if ran_on(run) != RELAY for name, value in run["args"].items()}
    volume = f"volume {args['vg']}/{args['lv']}" if "lv" in args else ""
    instance = f"instance {args['instance']}" if "instance" in args else ""
    return ", ".join(each for each in (volume, instance) if each)


def ran_on(run: Mapping[str, Any]) -> str:
    """The role of the hypervisor on which an attempt at a known step ran, or that it was the instance."""
    return routes.named()[run["step"]].on


def steps(seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a hypervisor reports of a migration, as far as this version knows the steps."""
    known = routes.named()
    return [run for run in seen["runs"] if run["step"] in known]


def is_ended(hosts: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every hypervisor has removed its working data."""
    return all(seen.get("known") == "forgotten" for seen in hosts.values())


# Taking over


def want(row: Adoption, by: Any, shown: str) -> None:
    """A person confirms one migration as it was shown; a worker takes it over. Raises Refused."""
    confirm(row, by, shown)
    Adoption.objects.filter(pk=row.pk, adopted_at=None).update(wanted_at=timezone.now())
    later("jobs.worker.adopting.adopt_wanted", row.pk)


def confirm(row: Adoption, by: Any, shown: str) -> None:
    """A person decides to take one migration over as it was shown; who does it comes next. Raises Refused."""
    may_adopt(by)
    if row.trouble or row.job is None:
        raise Refused(Sentence("cannot-adopt", row.trouble or "This is not a migration."))
    if shown != row.digest:
        raise Refused(Sentence("changed-meanwhile", "Its hypervisors now report a different state. Compare again."))
    sealing.seal_adoption(row)
    Adoption.objects.filter(pk=row.pk, adopted_at=None).update(by=by)
    data = {"digest": shown, "seals": sorted(row.seals)}
    Event.append("adoption.confirm", actor=by, job=row.job.pk, object=str(row.job), data=data)


def adopt_wanted(pk: int) -> None:
    """Task: take over the migration that a person confirmed; why that was not possible stays on the row."""
    row = Adoption.objects.filter(pk=pk, adopted_at=None).exclude(wanted_at=None).first()
    if row is None or row.job is None or (state := incarnation.read_only()) is None or state.episode != row.episode:
        return
    try:
        adopt(row)
    except (Refused, HostError, Unheard) as refused:
        not_adopted(pk, str(refused))
    except (Exception, SystemExit) as error:  # SystemExit: a task's limit
        not_adopted(pk, internal(error, "Compare again, then try again."))
        raise


def not_adopted(pk: int, why: str) -> None:
    """Stores why; the request of the administrator is over."""
    Adoption.objects.filter(pk=pk, adopted_at=None).update(wanted_at=None, trouble=why)


def internal(error: BaseException, advice: str) -> str:
    """The sentence for an unexpected error."""
    return f"Internal error ({type(error).__name__}: {error}); the log of the workers has more. {advice}"


def adopt(row: Adoption) -> None:
    """Take over one migration: own its hosts, raise its fence above all that was seen, enter what it lacks, decide."""
    job = Job.objects.select_related("source__cloud", "relay", "destination__cloud").get(adoptions=row)
    hands = Hands(job, ssh.connect, nova.connect)
    try:
        seen = ask(hands)
        if said := why_not_adopted(job, seen):
            raise Refused(Sentence("cannot-adopt", said))
        if digest(seen) != row.digest:
            compare_one(job, row.episode)
            raise Refused(Sentence("changed-meanwhile", "Its hypervisors now report a different state; compare again."))
        claim_above(row, job, max(int(each["fence"]) for each in seen.values()))
        for on, each in of_hosts(seen).items():
            taken_over(hands.take_over(on, each.get("owner") or {}), host_of(job, on).name)
        seen = ask(hands)  # from here on nobody else begins anything there
        if said := why_not_adopted(job, seen):
            raise Refused(Sentence("cannot-adopt", said))
        facts_first(job, hands, seen)
    finally:
        hands.close()
    with transaction.atomic():
        still_open(row, job, job.fence)
        found = enter(job, seen, row.by)
        seals = row.seals if found.status == row.status else {}  # made for what the person was shown
        values = {"seen": seen, "status": found.status, "words": found.words, "seals": seals, "trouble": ""}
        Adoption.objects.filter(pk=row.pk).update(adopted_at=timezone.now(), **values)


def still_open(row: Adoption, job: Job, fence: int = 0) -> None:
    """Within a transaction, with its row locked: raise Refused unless this adoption may go on.

    It may not once another has adopted the migration, or claimed it since under a higher fence than `fence`, nor once
    this read-only episode is over: workers act again then.
    """
    now = Adoption.objects.select_for_update().get(pk=row.pk)
    state = incarnation.read_only()
    if now.adopted_at is not None:
        raise Refused(Sentence("changed-meanwhile", "Someone else has adopted it; nothing was changed."))
    if state is None or state.episode != row.episode:
        raise Refused(Sentence("changed-meanwhile", "Read-only mode has already ended; nothing was changed."))
    if fence and Job.objects.select_for_update().get(pk=job.pk).fence != fence:
        raise Refused(Sentence("changed-meanwhile", "It is being adopted twice; the later request continues."))


def claim_above(row: Adoption, job: Job, fence: int) -> None:
    """Own the job in the database, under a fence that no host has seen."""
    with transaction.atomic():
        still_open(row, job)
        fence = max(fence, Job.objects.select_for_update().get(pk=job.pk).fence) + 1
        Job.objects.filter(pk=job.pk).update(fence=fence, lease_until=None, lease_owner="", taken_over=False)
        job.counted = incarnation.count()
    job.fence = fence
    incarnation.remember(job.counted)


def taken_over(heard: Heard, name: str) -> None:
    """Raise Refused unless the hypervisor has accepted the new owner; what runs there may go on."""
    answer = heard.answer or Answer("silent")
    running = answer.state == "busy" and answer.evidence.get("running")
    if answer.state != "done" and not running:
        found = heard.error or answer.found or "another request is being handled there"
        raise Refused(Sentence("cannot-adopt", f"{name} was not taken over: {found}. Try again."))


def facts_first(job: Job, hands: Hands, seen: Mapping[str, Any]) -> None:
    """Where hosts know steps of a plan that the database lacks, make it again from what is there now."""
    if (job.plan or {}).get("steps") or not reported_runs(seen):
        return
    work = Work(job, hands)
    facts = work._facts(work._ask(*job.get_route().answers, fully=True))
    try:
        made = plan.make(job.migration(), facts, measured(job))
    except ValueError as error:
        raise Refused(Sentence("cannot-adopt", f"Its plan cannot be made again: {error}")) from error
    job.put(facts=facts.to_json(), facts_at=timezone.now())
    job.keep_plan(made)


def enter(job: Job, seen: Mapping[str, Any], by: Any) -> adoption.Verdict:
    """Bring the journal up to what the hosts know, void every decision, and set the status by what really happened."""
    runs = history(job, seen)
    found = verdict(job, runs)
    never = [row for row in job.runs.all() if unsent(known_row(row), job)]
    reported = {tuple(_short(run)[:3]): (on, run) for on, each in seen.items() for run in each.get("runs") or []}
    lap = last_lap(job, runs)
    reserve_space(job, found, again=lap > job.lap)
    journal = Journal(job, job.planned().steps, lap)
    entered = []
    for of, known in runs:
        if known.key in reported and needs_entering(journal, known):
            on, run = reported[known.key]
            if on == "instance":
                run = {**run, "args": arguments(journal, run)}
            rehearsed = routes.named()[known.step].phase == ""
            journal.learn_of(run, host_of(job, on), 0 if rehearsed else of)
            entered.append("-".join(map(str, known.key)))
    for row in never:
        if row.key not in reported:
            StepRun.objects.filter(pk=row.pk).update(result="refused", ended_at=timezone.now(), error=NEVER_SENT)
    decide(job, found, lap, by)
    data = {"from": job.status, "to": found.status, "why": found.words, "entered": entered}
    Event.append("job.adopt", actor=by, job=job.pk, object=str(job), data=data)
    return found


def needs_entering(journal: Journal, known: adoption.Known) -> bool:
    """True when the journal lacks the attempt or its end."""
    row = journal.attempt(known.key)
    return row is None or row.ended_at is None


def reserve_space(job: Job, found: adoption.Verdict, again: bool) -> None:
    """The space that it keeps free, as if the database had seen it begin; steps that are entered next take their part.

    What was not begun has to reserve once more at its start, as far as there is a slot then: so it has no reservation,
    not even one that is gone. Nor has the copy before one that was made `again`.
    """
    ledger = job.footprints.filter(kind="space")
    if again or found.status in NOT_BEGUN:
        ledger.delete()
    if found.status in NOT_BEGUN or ledger.exists() or not job.plan:
        return
    sizes, on_share = job.plan["footprint"], share(job)
    job.footprints.create(kind="space", hypervisor=job.relay, name=job.relay_vg, bytes=sizes["relay"])
    job.footprints.create(kind="space", share=on_share, name=on_share.source, bytes=sizes["share"])


def decide(job: Job, found: adoption.Verdict, lap: int, by: Any) -> None:
    """Applies the verdict: status, approvals, removals, footprint; in the caller's transaction."""
    for old in job.approvals.open():
        old.void(BEFORE)
    for wish in job.removals.open():
        wish.end("refused", BEFORE)
    ended = found.status in states.ENDED
    kept = job.outcome if ended or found.status == job.status else ""  # what the database knows of it still holds
    if found.status != "preparing":  # nothing is going to be made any more that would need it
        job.footprints.filter(kind="space", state="reserved").mark("space", "gone")
    job.put(
        status=found.status,
        lap=lap,
        outcome=kept or found.outcome,
        outcome_reason=job.outcome_reason if kept else f"Adopted: {found.words}" if found.outcome else "",
        ended_at=(job.ended_at or timezone.now()) if ended else None,
        halt_reason=found.halts,
        halt_data={"code": "adopted", "found": found.halts} if found.halts else {},
        waiting_for="",
        cancel_requested_at=None,
        start_requested_at=None,
        start_when_checked=False,
        confirmed_at=None if not ended else job.confirmed_at,
        rollback_minutes=0,
        resumed_at=timezone.now(),
        judges="",
        wake_at=timezone.now(),
    )
    if found.asks:
        job.make_approval(found.asks, job.bound(found.asks), by or job.requester)


# Hosts, and the end


def want_host(hypervisor: Hypervisor, by: Any, typed: str) -> None:
    """A person takes over a hypervisor of another volmig, by typing its name; a worker does it. Raises Refused."""
    row = confirm_host(hypervisor, by, typed)
    Adoption.objects.filter(pk=row.pk).update(wanted_at=timezone.now())
    later("jobs.worker.adopting.own_wanted", row.pk)


def confirm_host(hypervisor: Hypervisor, by: Any, typed: str) -> Adoption:
    """The row of a hypervisor that a person decides to take over by typing its name. Raises Refused."""
    state = may_adopt(by)
    if typed.strip() != hypervisor.name:
        raise Refused(Sentence("name-differs", f"Type the name of the hypervisor, {hypervisor.name}, to take it over."))
    row = Adoption.objects.filter(episode=state.episode, hypervisor=hypervisor).first()
    if row is None:
        raise Refused(Sentence("not-compared", "Compare with the hypervisors first."))
    Event.append("adoption.host", actor=by, object=hypervisor.name)
    Adoption.objects.filter(pk=row.pk).update(by=by)
    return row


def own_wanted(pk: int) -> None:
    """Task: take over the hypervisor that a person named."""
    row = Adoption.objects.filter(pk=pk).exclude(wanted_at=None).select_related("hypervisor__bastion").first()
    state = incarnation.read_only()
    if row is None or row.hypervisor is None or state is None or state.episode != row.episode:
        return  # what another episode showed this person is no reason to take it over now
    try:
        take_host(row, row.hypervisor)
    except (Refused, HostError) as refused:
        Adoption.objects.filter(pk=pk).update(wanted_at=None, trouble=str(refused))
        return
    except (Exception, SystemExit) as error:  # SystemExit: a task's limit
        Adoption.objects.filter(pk=pk).update(wanted_at=None, trouble=internal(error, "Try again."))
        raise


def take_host(row: Adoption, hypervisor: Hypervisor) -> None:
    """Own the hypervisor of this row in place of another volmig. Raises Refused and HostError."""
    own(hypervisor, instead=True)
    Adoption.objects.filter(pk=row.pk).update(adopted_at=timezone.now(), words="", trouble="")


def may_adopt(by: Any) -> incarnation.State:
    """Why volmig is read-only; raises Refused when it is not, or when this person does not administer it."""
    if sentences := why_not(by, "administer", []):
        raise Refused(sentences)
    if (state := incarnation.read_only()) is None:
        raise Refused(NOT_READ_ONLY)
    return state


def own(hypervisor: Hypervisor, instead: bool = False) -> None:
    """Make this volmig the owner of a hypervisor, in place of the owner that it reports."""
    with transaction.atomic():
        counted = incarnation.count()
    with ssh.connect(hypervisor.remote()) as host:
        owner = host.call(Request("recall")).evidence.get("owner") or {}
        other = owner and owner["incarnation"] != incarnation.name()
        args = {"instead_of": owner["incarnation"]} if other and instead else {}
        request = Request("own", args, incarnation=incarnation.name(), session=incarnation.SESSION, claim=counted)
        answer = host.call(replace(request, after=str(owner.get("session") or "")))
    if answer.state != "done":
        raise Refused(
            Sentence("cannot-adopt", f"{hypervisor.name} was not taken over: {answer.found or answer.state}.")
        )


def want_end(by: Any) -> None:
    """The last confirmation; a worker asks every host once more. Raises Refused while a migration is not adopted."""
    state = may_adopt(by)
    still_to_adopt(state.episode)
    Event.append("adoption.finish", actor=by, data={"episode": state.episode})
    later("jobs.worker.adopting.finish_wanted", by.pk)


def finish_wanted(person: int) -> None:
    """Task: end read-only mode, or say why not.

    Only the episode whose end was requested, and not answered yet: the task may run twice, or late, and what another
    episode found has not been shown to that person.
    """
    state = incarnation.read_only()
    attempt = last_attempt(state) if state else None
    if attempt is None or attempt.action != "adoption.finish":
        return
    try:
        finish(get_user_model().objects.get(pk=person))
    except (Refused, HostError) as refused:
        unfinished(state, str(refused))
    except (Exception, SystemExit) as error:  # SystemExit: a task's limit
        unfinished(state, internal(error, "Try again."))
        raise


def unfinished(state: incarnation.State | None, why: str) -> None:
    """Logs and notes why read-only mode could not be ended."""
    incarnation.log.warning("Read-only mode was not ended: %s", why)
    Event.append("adoption.unfinished", data={"why": why, "episode": state.episode if state else ""})


def last_attempt(state: incarnation.State) -> Event | None:
    """The last event of an attempt to end this read-only mode: adoption.finish, or adoption.unfinished with `why`."""
    attempts = Event.objects.filter(action__in=("adoption.finish", "adoption.unfinished"))
    return attempts.filter(data__episode=state.episode).first()


class Requested(NamedTuple):
    """What was requested on the page and has not ended: when the oldest of it was, and whether a worker is at it."""

    at: dt.datetime
    running: bool


def requested() -> Requested | None:
    """The comparisons, adoptions and the end that wait for a worker, or that one is at; None when there are none."""
    names = [name for name in (*settings.TASKS, *settings.FORMER_TASKS) if ".adopting." in name]
    rows = QueuedTask.objects.filter(name__in=names, done_at=None)
    oldest = rows.aggregate(at=Min("queued_at"))["at"]
    return None if oldest is None else Requested(oldest, rows.running().exists())


def still_to_adopt(episode: str) -> None:
    """Raise Refused while a migration waits for its adoption."""
    if left := [job.pk for job in concerned(episode) if not is_adopted(job, episode)]:
        raise Refused(Sentence("cannot-finish", f"Not yet adopted: {numbers(left)}."))


def finish(by: Any) -> None:
    """End read-only mode: every migration was adopted and every hypervisor answers.

    Raises Refused, with everything as it was, when something is still to be done.
    """
    state, behind = may_adopt(by), []
    heard = {each: keep_host(state.episode, each, seen) for each, seen in hear_all()}
    for hypervisor, row in sorted(heard.items(), key=lambda item: item[0].name):
        if row.trouble:
            said = f"{hypervisor.name} has to respond or be retired first: {row.trouble}"
            raise Refused(Sentence("cannot-finish", said))
        if row.status == "other":
            said = f"Take {hypervisor.name} over by its name first. {row.words}"
            raise Refused(Sentence("cannot-finish", said))
        if row.words:
            behind.append(hypervisor)
    still_to_adopt(state.episode)
    for hypervisor in behind:
        own(hypervisor)
    incarnation.leave_read_only(by)


def is_adopted(job: Job, episode: str) -> bool:
    """True when the migration was adopted in this read-only mode."""
    return Adoption.objects.filter(episode=episode, job=job).exclude(adopted_at=None).exists()


def nothing_to_ask(episode: str) -> bool:
    """Whether there is no hypervisor that could be compared with, and no migration that waits for one."""
    return not Hypervisor.objects.reachable().exists() and not concerned(episode)


def numbers(keys: Iterable[int]) -> str:
    """ "migration 7", or "migrations 7, 8"."""
    shown: Sequence[str] = [str(each) for each in keys]
    return f"migration {shown[0]}" if len(shown) == 1 else f"migrations {', '.join(shown)}"
