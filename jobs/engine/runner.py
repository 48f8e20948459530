"""Carries a plan out: asks for one step after another, writes the intent before and the outcome after, and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from hosts.remote.host import Answer, Host, HostError, HostKeyChanged, Request, Unreachable
from jobs.engine.plan import Planned, Unready

MAX_FAILED: Final = 3
MAX_LOST: Final = 5
FLAGGED_AFTER: Final = timedelta(seconds=90)
LOOK_AGAIN: Final = timedelta(seconds=30)  # running work is followed by the watcher; this is for when it is not
OVER: Final = frozenset({"done", "failed", "refused", "lost"})


class Run(Protocol):
    """One attempt at a step, or at its undo, as the journal keeps it; `result` is empty until something is known."""

    @property
    def attempt(self) -> int: ...
    @property
    def args(self) -> dict[str, Any]: ...
    @property
    def result(self) -> str: ...
    @property
    def evidence(self) -> dict[str, Any]: ...
    @property
    def unit(self) -> str: ...
    @property
    def boot_id(self) -> str: ...
    @property
    def ended_at(self) -> datetime | None: ...
    @property
    def silent_since(self) -> datetime | None: ...


class Journal(Protocol):
    """What was begun and how it ended; every write is its own transaction and raises when the fence has moved on.

    The runs that are handed back to `record` and `silent` are the journal's own.
    """

    def runs(self, step: str, direction: str) -> Sequence[Run]: ...
    def begin(self, planned: Planned, direction: str, attempt: int, args: dict[str, Any]) -> Run: ...
    def record(self, run: Any, answer: Answer) -> None: ...
    def silent(self, run: Any) -> None: ...
    def evidence(self) -> Mapping[str, Mapping[str, Any]]: ...
    def boot_id(self, hypervisor: str) -> str: ...
    def touched(self, hypervisor: str) -> bool: ...


class Hands(Protocol):
    """What acts: a way to the host of each step, the request's envelope, and what is allowed just now."""

    def host(self, on: str) -> Host: ...
    def request(self, planned: Planned, direction: str, run: Run, stops: str) -> Request: ...
    def limits(self) -> Mapping[str, Any]: ...
    def tired(self) -> bool: ...


@dataclass(frozen=True)
class Finished:
    """All steps are done."""


@dataclass(frozen=True)
class Wait:
    """Nothing can go on before `until`; `flagged` when a person should look at it."""

    sentence: str
    until: datetime
    flagged: bool = False


@dataclass(frozen=True)
class Failed:
    """A step did not come out right and is not tried again."""

    step: str
    sentence: str
    error: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Halt:
    """Something was seen that nobody foresaw: nothing may be touched until a person has looked."""

    step: str
    sentence: str
    data: Mapping[str, Any] = field(default_factory=dict)


Outcome = Finished | Wait | Failed | Halt
Clock = Callable[[], datetime]
Steps = Sequence[Planned]
Extra = Mapping[str, Mapping[str, Any]]


def advance(steps: Steps, journal: Journal, hands: Hands, clock: Clock) -> Outcome:
    """Do what is not done yet, in order, until something has to wait or all is done."""
    work = _Work(journal, hands, clock)
    while (planned := _first_open(steps, journal)) is not None:
        outcome = work.perform(planned, "do")
        if outcome is not None:
            return outcome
    return Finished()


def undo(steps: Steps, journal: Journal, hands: Hands, clock: Clock, extra: Extra | None = None) -> Outcome:
    """Take back what was begun, last first; one step that will not be undone does not keep the others from it.

    `extra` are further arguments of undoing verbs, by the name of the step.
    """
    work = _Work(journal, hands, clock, extra or {})
    errors: list[Failed] = []
    for planned in reversed(steps):
        outcome = work.take_back(planned)
        if isinstance(outcome, Failed):
            errors.append(outcome)
        elif outcome is not None:
            return outcome
    return _still_there(errors) if errors else Finished()


def sweep(steps: Steps, journal: Journal, hands: Hands, clock: Clock) -> Outcome:
    """Have every hypervisor that was touched forget the job at its end, and halt when something is left there."""
    work = _Work(journal, hands, clock)
    for planned in steps:
        while journal.touched(planned.hypervisor) and not is_done(planned.step.name, "undo", journal):
            outcome = work.perform(planned, "undo")
            if outcome is not None:
                return outcome
    left = [
        thing
        for planned in steps
        for run in journal.runs(planned.step.name, "undo")
        for thing in run.evidence.get("left", ())
    ]
    return Halt("forget", f"Still there: {', '.join(left)}.", {"found": left}) if left else Finished()


def begun(step: str, journal: Journal) -> bool:
    """Whether a step may have changed anything; a refused attempt has not."""
    return any(run.result != "refused" for run in journal.runs(step, "do"))


def is_done(step: str, direction: str, journal: Journal) -> bool:
    return bool(_done(journal.runs(step, direction)))


def sentence_of(planned: Planned, error: Mapping[str, Any] | None) -> str:
    """An error of hostctl as a sentence for people, with the step and the hypervisor in front."""
    said = error or {}
    tried, found = said.get("tried", planned.step.verb), said.get("found", "it did not say why")
    return f"{planned.step.title} ({planned.hypervisor}): tried to {tried}; {found}. {said.get('next', '')}".strip()


@dataclass(frozen=True)
class _Work:
    """What an outcome needs: the journal, what acts, and the time; `extra` are arguments of undoing verbs."""

    journal: Journal
    hands: Hands
    clock: Clock
    extra: Extra = field(default_factory=dict)

    def perform(self, planned: Planned, direction: str) -> Outcome | None:
        """Ask for one step once; None when it is done, or is to be tried again at once."""
        now = self.clock()
        early = Wait("", now) if self.hands.tired() else _too_early(planned, self.journal, now)
        if early is not None:
            return early
        try:
            run = self._intent(planned, direction)
        except Unready as error:
            return Halt(planned.step.name, str(error))
        stops = _stops(planned, direction, self.journal)
        return self._ask(planned, run, self.hands.request(planned, direction, run, stops))

    def take_back(self, planned: Planned) -> Outcome | None:
        """Undo one step as often as it may be tried; None when nothing of it is left."""
        while _to_undo(planned, self.journal):
            outcome = self.perform(planned, "undo")
            if outcome is not None:
                return outcome
        return None

    def _intent(self, planned: Planned, direction: str) -> Run:
        """The attempt that is open, to be asked again with the same arguments, or a new one."""
        run = _last(self.journal.runs(planned.step.name, direction))
        if run is not None and run.result not in OVER:
            return run
        args = self._arguments(planned, direction)
        return self.journal.begin(planned, direction, run.attempt + 1 if run else 1, args)

    def _arguments(self, planned: Planned, direction: str) -> dict[str, Any]:
        known = self.journal.evidence()
        args = planned.filled({**known, "limits": self.hands.limits()})
        if direction == "do":
            return args
        name = planned.step.name
        return {**args, "made": known.get(name, {}), **self.extra.get(name, {})}

    def _ask(self, planned: Planned, run: Run, request: Request) -> Outcome | None:
        try:
            answer = self.hands.host(planned.step.on).call(request)
        except Unreachable as error:
            self.journal.silent(run)
            return _unreachable(planned, run, error, self.clock())
        except HostError as error:
            code = "host-key-changed" if isinstance(error, HostKeyChanged) else type(error).__name__
            return Halt(planned.step.name, str(error), {"code": code, "hypervisor": planned.hypervisor})
        self.journal.record(run, answer)
        return _judge(planned, request.direction, answer, self.journal, self.clock())


def _judge(planned: Planned, direction: str, answer: Answer, journal: Journal, now: datetime) -> Outcome | None:
    if answer.state == "done":
        return None
    if answer.state == "running":
        undoing = "Undo: " if direction == "undo" else ""
        return Wait(f"{undoing}{planned.step.title} is running on {planned.hypervisor}.", now + LOOK_AGAIN)
    if answer.state == "busy":
        return Wait(f"{planned.hypervisor} is still busy with another step of this job.", now + timedelta(seconds=2))
    error = dict(answer.error or {})
    sentence = sentence_of(planned, error)
    if answer.state == "refused" and str(error.get("code", "")).startswith(("foreign-", "unknown-")):
        return Halt(planned.step.name, sentence, error)
    if answer.state != "refused" and _may_repeat(planned, direction, answer.state, journal):
        return None
    return Failed(planned.step.name, sentence, error)


def _may_repeat(planned: Planned, direction: str, state: str, journal: Journal) -> bool:
    ended = [run for run in journal.runs(planned.step.name, direction) if run.result == state]
    if state == "lost":
        # A verb that was killed is started again: each finds out for itself how far it had come.
        return len(ended) < MAX_LOST
    return (planned.step.repeatable or direction == "undo") and len(ended) < MAX_FAILED


def _first_open(steps: Steps, journal: Journal) -> Planned | None:
    """The first step that is not done, or whose work a reboot of its hypervisor has taken away."""
    return next((planned for planned in steps if not _settled(planned, journal)), None)


def _settled(planned: Planned, journal: Journal) -> bool:
    run = _last(journal.runs(planned.step.name, "do"))
    if run is None or run.result != "done":
        return False
    torn = planned.step.torn_by and journal.runs(planned.step.torn_by, "do")
    if not planned.step.volatile or torn:
        return True
    return journal.boot_id(planned.hypervisor) in ("", run.boot_id)


def _to_undo(planned: Planned, journal: Journal) -> bool:
    step = planned.step
    if not step.undo or not begun(step.name, journal) or is_done(step.name, "undo", journal):
        return False
    return not (step.torn_by and is_done(step.torn_by, "do", journal))


def _stops(planned: Planned, direction: str, journal: Journal) -> str:
    """The unit of running work that an undo has to stop first."""
    run = _last(journal.runs(planned.step.name, "do"))
    return run.unit if direction == "undo" and run is not None and run.result == "running" else ""


def _too_early(planned: Planned, journal: Journal, now: datetime) -> Wait | None:
    """Other NFS clients may open the old file by name for a while after a rename; until then the lock stays."""
    renames = _done([*journal.runs("swap", "do"), *journal.runs("swap", "undo")])
    ended = [run.ended_at for run in renames if run.ended_at]
    if not planned.not_before or not ended:
        return None
    until = max(ended) + timedelta(seconds=planned.not_before)
    sentence = f"{planned.step.title} waits until no other hypervisor can still open the old file."
    return Wait(sentence, until) if until > now else None


def _unreachable(planned: Planned, run: Run, error: Unreachable, now: datetime) -> Wait:
    silence = now - (run.silent_since or now)
    pause = min(max(silence, timedelta(seconds=2)), timedelta(seconds=60))
    flagged = silence > FLAGGED_AFTER
    since = f" for {int(silence.total_seconds())} s; somebody should look" if flagged else ""
    sentence = f"{planned.step.title} waits: {planned.hypervisor} has not answered{since}. {error}"
    return Wait(sentence, now + pause, flagged)


def _still_there(errors: Iterable[Failed]) -> Halt:
    listed = list(errors)
    data = {"errors": [{"step": each.step, "sentence": each.sentence, **each.error} for each in listed]}
    return Halt(listed[0].step, "Not everything could be taken back. " + listed[0].sentence, data)


def _last(runs: Sequence[Run]) -> Run | None:
    return runs[-1] if runs else None


def _done(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.result == "done"]
