"""Hands: what a tick acts with: a connection to each hypervisor and to the cloud, and the envelope of each request."""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from hosts.models import Hypervisor
from hosts.remote.host import Access, Address, Answer, Host, HostError, Request, Unreachable
from hosts.remote.hostctl.policy import RULES
from hosts.remote.instances import Control, Nova
from hosts.tasks import note
from jobs.engine.plan import Planned
from jobs.engine.runner import Run
from jobs.journal import host_of
from jobs.models import Job, Moved, sealing

TICK_SECONDS = 20.0
FACTS_SECONDS = 20.0
Connect = Callable[[Address], Host]
Enter = Callable[[Access], Nova]


@dataclass(frozen=True)
class Heard:
    """What one hypervisor said, or why it said nothing; `skew` is how many seconds its clock is off, 0 if unknown."""

    answer: Answer | None = None
    error: HostError | None = None
    skew: float = 0.0


class Hands:
    """For one tick of one job; `connect` is how a hypervisor is entered, `enter` how a cloud is."""

    def __init__(self, job: Job, connect: Connect, enter: Enter) -> None:
        self.job, self.connect, self.enter = job, connect, enter
        self.hosts: dict[int, Host] = {}
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
        return self.hosts[hypervisor.pk]

    def _control(self) -> Control:
        if self.cloud is None:
            cloud, names = self.job.destination.cloud, frozenset(self.job.names_in_nova())
            if cloud is None:
                found = f"{self.job.destination} no longer belongs to a cloud"
                raise HostError("ask Nova", found, "Put it back into its cloud, then resume.")
            nova = self.enter(cloud.access())
            self.cloud = Control(nova, lambda: self.host("destination"), names, self._intend)
        return self.cloud

    @transaction.atomic
    def _intend(self, request: Request, found: dict[str, Any]) -> None:
        """A cloud knows no fence and remembers nothing: the database is asked and told before something is changed."""
        if not Job.objects.filter(pk=self.job.pk, fence=self.job.fence, lease_until__gt=Now()).exists():
            raise Moved(f"Another worker has taken over migration {self.job.pk}.")
        run = self.job.runs.get(step=request.step, direction=request.direction, attempt=request.attempt)
        run.evidence |= found
        run.save(update_fields=["evidence"])

    def request(self, planned: Planned, direction: str, run: Run, stops: str) -> Request:
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
        status = Request("status", job=str(self.job.uuid), number=self.job.pk, fence=self.job.fence)
        heard = self.ask(dict.fromkeys(roles, status))
        return {
            on: each.answer.boot_id
            if each.answer
            else each.error
            or Unreachable(f"ask the {on} for its boot ID", "there was no answer", "Retrying automatically.")
            for on, each in heard.items()
        }

    def limits(self) -> Mapping[str, Any]:
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
        with ThreadPoolExecutor(max_workers=4) as pool:
            heard = {on: pool.submit(way, requests[on]) for on, way in ways.items()}
            answers = {on: future.result() for on, future in heard.items()}
        for on, each in answers.items():
            if each.error is not None and on != "instance":
                note(host_of(self.job, on), each.error)
        return answers

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
        for host in self.hosts.values():
            host.close()


def skew(said: Any, began: float, ended: float) -> float:
    """How far a clock is from any moment of the call, in seconds."""
    if not isinstance(said, int | float):
        return 0.0
    return min(said - began, 0.0) + max(said - ended, 0.0)
