"""Hands: what a tick acts with: a connection to each hypervisor and to the cloud, and the envelope of each request.

Whatever changes something goes through one door, `Hands.send`. It refuses while volmig is read-only; it has the owners
of all the job's hypervisors judged before the first such request of a session; and it names who asks. What a host says
of its owner that the database does not know makes the whole volmig read-only.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from hosts.models import Hypervisor
from hosts.remote.host import Access, Address, Answer, Host, HostError, NoFacts, Request, Unreachable, skew
from hosts.remote.hostctl.policy import RULES
from hosts.remote.hostctl.verbs import VERBS
from hosts.remote.nova_control import Control, Nova
from hosts.tasks import note
from jobs.engine import states
from jobs.engine.plan import Planned
from jobs.engine.runner import Run
from jobs.engine.steps import DESTINATION, hypervisor_role
from jobs.models import Job, Moved, sealing
from jobs.worker.journal import host_of
from volmig import incarnation, logs

TICK_SECONDS = 20.0
FACTS_SECONDS = 20.0
JUDGES = 6  # sessions that a job remembers
# Until the instance may be down, all hypervisors of a job have to say who owns them.
UP = states.ACTIVE - {"swapping", "rolling_back", "on_trial"}
Connect = Callable[[Address], Host]
Enter = Callable[[Access], Nova]


@dataclass(frozen=True)
class Heard:
    """What one hypervisor said, or why it gave no reason; `skew` is how many seconds its clock is off, 0 if unknown."""

    answer: Answer | None = None
    error: HostError | None = None
    skew: float = 0.0

    def said(self) -> Answer:
        """The answer; raises why there is none."""
        if self.answer is None:
            raise self.error or NoFacts("call a hypervisor", "it gave no reason")
        return self.answer


@dataclass(frozen=True)
class Door:
    """A hypervisor as the engine reaches it: what only reads goes straight there, the rest through `Hands.send`."""

    hands: "Hands"
    on: str
    hypervisor: Hypervisor
    host: Host

    def call(self, request: Request, timeout: float = 20) -> Answer:
        """The same call, with the hypervisor and the step in every log line."""
        step = (
            {"step": request.step, "direction": request.direction, "attempt": request.attempt} if request.step else {}
        )
        with logs.about(hypervisor=self.hypervisor.name, **step):
            return self._call(request, timeout)

    def _call(self, request: Request, timeout: float) -> Answer:
        if not changes(request):
            return self.host.call(request, timeout)
        return self.hands.send(self.on, self.hypervisor, request, lambda asked: self.host.call(asked, timeout))

    def watch(self) -> Iterator[dict[str, Any]]:
        """Progress as the host streams it."""
        return self.host.watch()

    def close(self) -> None:
        """Gives the connection back."""
        self.host.close()


def changes(request: Request) -> bool:
    """Whether a request changes something on a host, if only who owns a job there."""
    return request.verb in ("fence", "own") or VERBS[request.verb].mutates


class Hands:
    """For one tick of one job; `connect` is how a hypervisor is entered, `enter` how a cloud is."""

    def __init__(self, job: Job, connect: Connect, enter: Enter) -> None:
        self.job, self.connect, self.enter = job, connect, enter
        self.hosts: dict[int, Host] = {}
        self.after: dict[int, str] = {}  # by hypervisor the session of this volmig that acted there last
        self.cloud: Control | None = None
        self.until = time.monotonic() + TICK_SECONDS

    def host(self, on: str) -> Host:
        """The way to where a step runs. `instance` is the control adapter of its cloud: Nova, or with libvirt hostctl
        on the instance's own hypervisor."""
        if on == "instance" and self.job.through_nova:
            return self._control()
        hypervisor = host_of(self.job, on)
        if hypervisor.pk not in self.hosts:
            try:
                self.hosts[hypervisor.pk] = self.connect(hypervisor.remote(self.job.hostctl_now))
            except HostError as error:
                note(hypervisor, error)
                raise
        return Door(self, on, hypervisor, self.hosts[hypervisor.pk])

    # The door

    def send(self, on: str, hypervisor: Hypervisor, request: Request, call: Callable[[Request], Answer]) -> Answer:
        """Send what changes something; raises ReadOnly, or Moved when another worker has the job by now."""
        self.may_act(on)
        return self.admitted(hypervisor, request, call(self.signed(hypervisor, request)), call)

    def admitted(
        self, hypervisor: Hypervisor, request: Request, answer: Answer, call: Callable[[Request], Answer]
    ) -> Answer:
        """The answer, unless it says that the job or the host is not ours; sent once more to a host whose owner is."""
        if refused_as(answer) == "other-owner":
            self.judge(hypervisor, owner_in(answer))
            answer = call(self.signed(hypervisor, request))
        code = refused_as(answer)
        if code == "stale-fence":
            self.judge_fence(hypervisor, answer.found)
        if code in ("other-owner", "other-incarnation"):
            self.judge(hypervisor, owner_in(answer))
            return Answer("busy", boot_id=answer.boot_id)  # another worker of this volmig acted in between
        return answer

    def signed(self, hypervisor: Hypervisor, request: Request) -> Request:
        """The request with volmig's identity, session and counter, and a seal where the verb needs one."""
        return replace(
            request,
            incarnation=incarnation.name(),
            session=incarnation.SESSION,
            claim=self.job.counted,
            after=self.after.get(hypervisor.pk, ""),
        )

    def may_act(self, on: str) -> None:
        """Before anything is changed: is volmig read-only, and do the job's hypervisors know more than the database?

        A session asks them once for each job. A host that does not answer is waited for. Only when the instance may be
        down a silent source or relay holds nothing up: all that comes after that goes by the destination, which knows.
        """
        if state := incarnation.read_only():
            raise incarnation.ReadOnly(state.reason)
        silent = self.judge_all()
        needed = set(self.job.get_route().roles) if self.job.status in UP else {hypervisor_role(on), DESTINATION}
        for role in needed & silent.keys():
            raise silent[role]

    def judge_all(self) -> dict[str, HostError]:
        """Have every hypervisor of the job say who owns it, once in a session; those that do not, and why.

        Raises ReadOnly as soon as one knows more than the database. With several machines of workers a job goes from
        one session to another and back, so those that have asked are all remembered.
        """
        judges = self.job.judges.split()
        if incarnation.SESSION in judges:
            return {}
        silent: dict[str, HostError] = {}
        for role, each in self.ask(dict.fromkeys(self.job.get_route().roles, self.about("status"))).items():
            if each.answer is not None and each.answer.state == "done":
                self.judge_status(host_of(self.job, role), each.answer.evidence)
            else:
                found = (each.answer and each.answer.found) or "it gave no reason"
                silent[role] = each.error or NoFacts(f"read the owner of {host_of(self.job, role)}", found)
        if not silent:
            self.job.put(judges=" ".join([incarnation.SESSION, *judges[: JUDGES - 1]]))
        return silent

    def judge_status(self, hypervisor: Hypervisor, said: Mapping[str, Any]) -> None:
        """Raises when another volmig or a later worker has acted there."""
        self.judge(hypervisor, said.get("owner") or {})
        if int(said.get("fence") or 0) > self.job.fence:
            self.judge_fence(hypervisor, f"fence {said['fence']} was already seen for this job")

    def judge(self, hypervisor: Hypervisor, owner: Mapping[str, Any]) -> None:
        """Whoever acted there was this volmig, as far as its database knows; else it goes read-only."""
        if fault := incarnation.stale(owner):
            state = incarnation.enter_read_only(f"{hypervisor.name}: {fault.found}.", fault.code)
            raise incarnation.ReadOnly(state.reason)
        self.after[hypervisor.pk] = str(owner.get("session") or "")

    def judge_fence(self, hypervisor: Hypervisor, found: str) -> None:
        """A host has seen a later owner of the job: another worker, as the database then says, or another volmig."""
        if Job.objects.filter(pk=self.job.pk, fence__gt=self.job.fence).exists():
            raise Moved(f"Another worker has taken over migration {self.job.pk}.")
        reason = f"{hypervisor.name}: migration {self.job.pk} has had a later owner than this database knows: {found}."
        state = incarnation.enter_read_only(reason, "stale-fence")
        raise incarnation.ReadOnly(state.reason)

    def take_over(self, on: str, owner: Mapping[str, Any]) -> Heard:
        """While volmig is read-only, for a person who adopts: own the hypervisor, and raise the job's fence there.

        Only a host of this incarnation, and only in place of the owner that was reported; nothing else is changed.
        """
        hypervisor, way = host_of(self.job, on), self._way(on)
        self.after[hypervisor.pk] = str(owner.get("session") or "")
        if incarnation.stale(owner):
            heard = way(self.signed(hypervisor, Request("own")))
            if heard.answer is None or heard.answer.state != "done":
                return heard
        return way(self.signed(hypervisor, self.about("fence")))

    # The cloud

    def _control(self) -> Control:
        if self.cloud is None:
            cloud, names = self.job.destination.cloud, frozenset(self.job.names_in_nova())
            if cloud is None:
                found = f"{self.job.destination} no longer belongs to a cloud"
                raise HostError("ask Nova", found, "Put it back into its cloud, then resume.")
            nova = self.enter(cloud.access())
            self.cloud = Control(nova, lambda: self.host("destination"), names, self._intend)
        return self.cloud

    def _intend(self, request: Request, found: dict[str, Any]) -> None:
        """A cloud knows no fence and remembers nothing: the destination is asked and remembers the owner instead."""
        answer = self.host(DESTINATION).call(self.about("fence"))
        if answer.state == "busy" and not answer.evidence.get("running"):  # it admitted nothing and keeps nothing
            tried = f"fence the migration on {self.job.destination}"
            raise Unreachable(tried, "another request is being handled there", "Retrying automatically.")
        if answer.state not in ("done", "busy"):
            said = answer.error or {}
            raise HostError(str(said.get("tried")), str(said.get("found")), str(said.get("next") or ""))
        self._note_intent(request, found)

    @transaction.atomic
    def _note_intent(self, request: Request, found: dict[str, Any]) -> None:
        """Check the lease and keep the intent in the database, before anything is changed."""
        if not Job.objects.filter(pk=self.job.pk, fence=self.job.fence, lease_until__gt=Now()).exists():
            raise Moved(f"Another worker has taken over migration {self.job.pk}.")
        run = self.job.runs.get(step=request.step, direction=request.direction, attempt=request.attempt)
        run.evidence |= found
        run.save(update_fields=["evidence"])

    def about(self, verb: str) -> Request:
        """A request about the job as a whole, and no step of it."""
        return Request(verb, job=str(self.job.uuid), number=self.job.pk, fence=self.job.fence)

    def request(self, planned: Planned, direction: str, run: Run, stops: str) -> Request:
        """The request of a step's attempt, or of its undo."""
        step = planned.step
        verb = step.undo if direction == "undo" else step.verb
        return Request(
            verb,
            run.args,
            job=str(self.job.uuid),
            number=self.job.pk,
            step=step.name,
            direction=direction,
            attempt=run.attempt,
            fence=self.job.fence,
            stops=stops,
            seal=sealing.seal_for(self.job, verb) if RULES[verb].sealed and not planned.control else {},
            known=self.job.known(run.evidence, run.pk) if planned.control else {},
        )

    def boots(self, roles: Iterable[str]) -> dict[str, str | HostError]:
        """The boot id of each of these hypervisors now, or why it does not say."""
        heard = self.ask(dict.fromkeys(roles, self.about("status")))
        return {on: each.answer.boot_id if each.answer else each.error or no_boot_id(on) for on, each in heard.items()}

    def limits(self) -> Mapping[str, Any]:
        """Bytes per second that the step may write."""
        return {"rate": self.job.rate_allowed()}

    def tired(self) -> bool:
        """A tick is short, and between two steps somebody may have called the job off: the rest is for the next one."""
        return time.monotonic() > self.until or self._called_off()

    def _called_off(self) -> bool:
        if self.job.cancel_requested_at:
            return False  # this tick knows it already
        return Job.objects.filter(pk=self.job.pk, cancel_requested_at__isnull=False).exists()

    def ask(self, requests: Mapping[str, Request]) -> dict[str, Heard]:
        """Ask several hypervisors at once, each by its role; the database is not used in the threads."""
        ways = {on: self._way(on) for on in requests}
        sent = {on: self._enveloped(on, request) for on, request in requests.items()}
        with ThreadPoolExecutor(max_workers=4) as pool:
            heard = {on: pool.submit(copy_context().run, way, sent[on]) for on, way in ways.items()}
            answers = {on: future.result() for on, future in heard.items()}
        for on, each in answers.items():
            if each.answer is not None and sent[on] is not requests[on]:
                answers[on] = self._heard(on, requests[on], each.answer, ways[on])
        for on, each in answers.items():
            if each.error is not None and on != "instance":
                note(host_of(self.job, on), each.error)
        return answers

    def _enveloped(self, on: str, request: Request) -> Request:
        """What changes something has to pass the door, and names who asks."""
        if on == "instance" or not changes(request):
            return request
        self.may_act(on)
        return self.signed(host_of(self.job, on), request)

    def _heard(self, on: str, request: Request, answer: Answer, way: Callable[[Request], Heard]) -> Heard:
        try:
            return Heard(self.admitted(host_of(self.job, on), request, answer, lambda again: way(again).said()))
        except HostError as error:
            return Heard(error=error)

    def _way(self, on: str) -> Callable[[Request], Heard]:
        try:
            return self._to_cloud() if on == "instance" else self._to_hypervisor(host_of(self.job, on))
        except HostError as error:
            said = error
            return lambda request: Heard(error=said)

    def _to_cloud(self) -> Callable[[Request], Heard]:
        control = self._control()

        def call(request: Request) -> Heard:
            try:
                return Heard(control.call(request))
            except HostError as error:
                return Heard(error=error)

        return call

    def _to_hypervisor(self, hypervisor: Hypervisor) -> Callable[[Request], Heard]:
        address = hypervisor.remote(self.job.hostctl_now)

        def call(request: Request) -> Heard:
            try:
                if hypervisor.pk not in self.hosts:
                    self.hosts[hypervisor.pk] = self.connect(address)
                began = time.time()
                answer = self.hosts[hypervisor.pk].call(request, FACTS_SECONDS)
            except HostError as error:
                return Heard(error=error)
            return Heard(answer, skew=skew(answer.evidence.get("time"), began, time.time()))

        return call

    def close(self) -> None:
        """Closes all hosts."""
        for host in self.hosts.values():
            host.close()


def no_boot_id(on: str) -> HostError:
    """The error of a host that does not give its boot ID."""
    return Unreachable(f"read the boot ID of the {on}", "there was no response", "Retrying automatically.")


def refused_as(answer: Answer) -> str:
    """The code of a request that was refused unread; what a unit stored is the end of a step."""
    if answer.state != "refused" or answer.unit:
        return ""
    return answer.code


def owner_in(answer: Answer) -> Mapping[str, Any]:
    """The owner that a refusal names."""
    evidence = (answer.error or {}).get("evidence") or {}
    owner = evidence.get("owner")
    return owner if isinstance(owner, dict) else {}
