"""Routes: how a disk gets from where it is into an instance. Each is made of four parts, and its steps are theirs.

A new route is one line of ROUTES; a new transport or endpoint is one file and its use in such a line. Only what is
listed is offered: each line is a combination that was proved to copy, to be undone and to go back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from jobs.engine.controls.libvirt import LIBVIRT
from jobs.engine.controls.nova import NOVA
from jobs.engine.endpoints.lv import LV
from jobs.engine.endpoints.qcow2 import QCOW2
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.part import Answers, Control, Part, Sink, Source, Steps, Transport
from jobs.engine.steps import Made, Step, Task
from jobs.engine.transports.relay_nfs import RELAY_NFS

ROUTES: Final[dict[str, tuple[Source, Transport, Sink]]] = {
    "relay-nfs": (LV, RELAY_NFS, QCOW2),
}
CONTROLS: Final[dict[str, Control]] = {each.kind: each for each in (LIBVIRT, NOVA)}


class UnknownRoute(LookupError):  # noqa: N818 - the word that callers read
    """No route, or no control, has this name."""


@dataclass(frozen=True)
class Route:
    """One way of moving a disk. `steps` are those of its plans, in order, `rehearsal` those that read a kept disk."""

    name: str
    source: Source
    transport: Transport
    sink: Sink
    control: Control

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order in which pages show what they say."""
        return self.source, self.transport, self.sink, self.control

    @property
    def roles(self) -> tuple[str, ...]:
        """The hypervisors that take part."""
        return self.transport.roles

    @property
    def steps(self) -> Steps:
        """Those of its plans, in the order in which they are carried out."""
        return _composed(self)

    @property
    def rehearsal(self) -> Steps:
        """Those that read a kept disk; no part of a plan."""
        return self.sink.rehearsal()

    def one(self, task: Task) -> Step:
        """The step of a task of which each plan has one; raise LookupError when it has none, or several."""
        return only(self.steps, task, self.name)

    def has(self, facts: Facts) -> bool:
        """Whether these facts are enough for a plan."""
        return all(part.has(facts) for part in self.parts)

    @property
    def needs(self) -> str:
        """Without which facts no plan can be made, in words."""
        *first, last = [part.needs for part in self.parts if part.needs]
        return f"{', '.join(first)}, and {last}" if first else last

    @property
    def answers(self) -> dict[str, Answers]:
        """By role, the type in which its facts are read."""
        return {role: answer for part in self.parts for role, (_, answer) in part.facts.items()}

    def fact_requests(self, ask: Migration) -> dict[str, tuple[str, dict[str, Any]]]:
        """By role, the verb by which it is asked for its facts, and the arguments that the parts want."""
        verbs = {role: verb for part in self.parts for role, (verb, _) in part.facts.items()}
        asks = [*(part.asks(ask) for part in self.parts), {self.transport.delivers: self.sink.place(ask)}]
        return {
            role: (verb, {name: value for each in asks for name, value in each.get(role, {}).items()})
            for role, verb in verbs.items()
        }

    def look_commands(self, ask: Migration, role: str, instances: str) -> list[tuple[str, ...]]:
        """Commands that only read, for a person on the hypervisor in this role."""
        return [command for part in self.parts for command in part.look_commands(ask, instances).get(role, ())]

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Everything that steps refer to by name; raise ValueError when facts are missing."""
        if not self.has(facts):
            raise ValueError(f"A plan needs {self.needs}.")
        return self._merged(
            {"source_size": ask.source_size, "rate": ask.rate},
            self.source.values(ask, facts),
            self.transport.values(ask, facts, self.sink),
            self.sink.values(ask, facts),
            self.control.values(ask, facts),
        )

    def _merged(self, *values: Mapping[str, Any]) -> dict[str, Any]:
        """All of them; two parts that give a value the same name would take each other's volumes."""
        names = [name for each in values for name in each]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LookupError(f"Two parts of {self.name} give the planned value {', '.join(twice)}.")
        return {name: value for each in values for name, value in each.items()}


def only(steps: Steps, task: Task, where: str) -> Step:
    """The one step of a task; raise LookupError when there is none, or several."""
    found = [step for step in steps if step.task is task]
    if len(found) != 1:
        raise LookupError(f"{where} has {len(found)} steps to {task}.")
    return found[0]


@cache
def _composed(route: Route) -> Steps:
    """The steps of the parts in the order in which they are carried out."""
    source, transport, sink, control = route.source, route.transport, route.sink, route.control
    steps = (
        *transport.open(source, sink),
        *source.fence(),
        *transport.carry(source, sink),
        *sink.verify(transport.copied()),
        *transport.close(),
        # While people decide, nothing is left but the copy and the fence.
        *control.lock(),
        *control.stop(sink),
        *sink.exchange(),
        *control.start(sink),
        # From here on the instance is on trial.
        *source.release(),
        *control.unlock(),
        *(_forget(role) for role in route.roles),
        # After an approval of its own kind:
        *sink.purge(),
    )
    return tuple(_resolved(step, steps, route.name) for step in steps)


def _forget(role: str) -> Step:
    title = f"Leave nothing behind on the {role}"
    return Step(f"forget_{role}", Task.FORGET, "C", role, "forget", title, undo="forget", box="Clean up")


def _resolved(step: Step, steps: Steps, route: str) -> Step:
    """The step with the names of steps in the place of tasks, by which parts refer to each other."""

    def named(which: str) -> str:
        return only(steps, which, route).name if isinstance(which, Task) else which

    def filled(args: Any) -> Any:
        if isinstance(args, Mapping):
            return {key: filled(value) for key, value in args.items()}
        return replace(args, step=named(args.step)) if isinstance(args, Made) else args

    return replace(step, args=filled(step.args), torn_by=named(step.torn_by))


def route_of(name: str, control: str = "") -> Route:
    """The route of this name, with the instance under this control; raise UnknownRoute where there is none."""
    if name not in ROUTES or control not in CONTROLS:
        raise UnknownRoute(f"volmig knows no route {name!r} under the control {control!r}.")
    return Route(name, *ROUTES[name], CONTROLS[control])


def of(ask: Migration) -> Route:
    """The route that a migration takes; raise UnknownRoute where there is none of that name."""
    return route_of(ask.route, ask.control)


def control_of(name: str) -> Control:
    """The control of this name; raise UnknownRoute where there is none."""
    if name not in CONTROLS:
        raise UnknownRoute(f"volmig knows no control {name!r}.")
    return CONTROLS[name]


# Steps by name, of all routes


def every() -> Iterator[Route]:
    """All routes, each under each control."""
    return (route_of(name, control) for name in ROUTES for control in CONTROLS)


def steps() -> Steps:
    """Those of the plans of all routes, each once."""
    return _all(tuple(ROUTES.items()))[0]


def named() -> Mapping[str, Step]:
    """Those of all routes by name, with those of rehearsals, which are no part of a plan."""
    return _all(tuple(ROUTES.items()))[1]


@cache
def _all(registered: tuple[tuple[str, tuple[Source, Transport, Sink]], ...]) -> tuple[Steps, Mapping[str, Step]]:
    """Both, put together once for what is registered: pages ask for them by the thousand."""
    found = [Route(name, *parts, control) for name, parts in registered for control in CONTROLS.values()]
    planned = {step.name: step for route in found for step in route.steps}
    return tuple(planned.values()), {**planned, **{step.name: step for route in found for step in route.rehearsal}}


def task_of(name: str) -> Task | None:
    """What the step with this name is for; None for a name that this volmig does not know."""
    step = named().get(name)
    return step.task if step else None


def names_of(*tasks: Task) -> tuple[str, ...]:
    """The names of all steps that are for one of these tasks, as journals have them."""
    return tuple(step.name for step in named().values() if step.task in tasks)


def _copies() -> Iterator[list[str]]:
    """The names of the steps before the gate, of each route."""
    return ([step.name for step in route.steps if step.phase == "A"] for route in every())


def begins_copy(name: str) -> bool:
    """Whether this is the first step of a copy: when it is done again, another copy begins."""
    return any(name == copy[0] for copy in _copies())


def ends_copy(name: str) -> bool:
    """Whether this is the last step of a copy: when it is done, the copy is verified and its way is closed."""
    return any(name == copy[-1] for copy in _copies())
