"""Carries a plan out: asks for one step after another, writes the intent before and the outcome after, and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

from hosts.remote.host import (
    Answer,
    Host,
    HostctlDiffers,
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    NoFacts,
    Request,
    Unreachable,
)
from hosts.remote.phrases import phrase, sentence
from jobs.engine import failpoints
from jobs.engine.plan import Planned, Unready
from jobs.engine.routes import names_of
from jobs.engine.steps import LIMITS, Task

MAX_FAILED: Final = 3
MAX_LOST: Final = 5
UNDO_PAUSES: Final = (5, 30)  # seconds before an undo is tried again: what holds a mount may let go of it
FLAGGED_AFTER: Final = timedelta(seconds=90)
BUSY_FOR_LONG: Final = timedelta(minutes=10)
LOOK_AGAIN: Final = timedelta(seconds=30)  # running work is followed by the watcher; this is for when it is not
MOVING: Final = timedelta(seconds=15)  # work whose bytes moved within this time is followed: its end wakes the job
LOOK_WHILE_MOVING: Final = timedelta(minutes=2)  # the watcher wakes the job when it stops moving, too
OVER: Final = frozenset({"done", "failed", "refused", "lost"})
# Passes without a word to volmig: the host is back, or an administrator has pinned its key or installed hostctl there.
SHUT: Final = (Unreachable, HostKeyChanged, HostKeyUnknown, HostctlDiffers)


class Run(Protocol):
    """One attempt at a step, or at its undo, as the journal keeps it; `result` is empty until something is known.

    What began later has the higher `pk`: clocks may be set back, and order decides what stands.
    """

    @property
    def attempt(self) -> int:
        """Its number, from 1."""

    @property
    def args(self) -> dict[str, Any]:
        """The arguments with which it was asked for."""

    @property
    def result(self) -> str:
        """running, done, failed, refused or lost; empty while nothing is known."""

    @property
    def evidence(self) -> dict[str, Any]:
        """What it measured."""

    @property
    def error(self) -> dict[str, Any] | None:
        """Why it failed or was refused, as hostctl says it: code, tried, found, next, touched."""

    @property
    def unit(self) -> str:
        """The unit of systemd in which it runs."""

    @property
    def boot_id(self) -> str:
        """The boot of its hypervisor when it answered last."""

    @property
    def pk(self) -> int:
        """Its place in the order of all attempts."""

    @property
    def started_at(self) -> datetime:
        """When it was begun."""

    @property
    def ended_at(self) -> datetime | None:
        """When it ended; None while it has not."""

    @property
    def silent_since(self) -> datetime | None:
        """Since when a hypervisor that it needs has not answered."""

    @property
    def progress_at(self) -> datetime | None:
        """When its bytes last moved."""

    @property
    def unread(self) -> bool:
        """Whether surely no hostctl has read a request for it."""


class Journal(Protocol):
    """What was begun and how it ended; every write is its own transaction and raises when the fence has moved on.

    The runs that are handed back to `record`, `silent` and `heard` are the journal's own. What ended before
    `resumed_at`, when a person last said to go on, is not held against a step any more.
    """

    @property
    def resumed_at(self) -> datetime | None:
        """When a person last said to go on; None for never."""

    def runs(self, step: str, direction: str) -> Sequence[Run]:
        """The attempts at a step in one direction ("do", "undo"), in order."""

    def begin(self, planned: Planned, direction: str, args: dict[str, Any]) -> Run:
        """Write that an attempt is made, before anybody is asked."""

    def record(self, run: Any, answer: Answer) -> None:
        """Write what an attempt came to, or that it still runs."""

    def silent(self, run: Any) -> None:
        """Write since when a hypervisor that it needs has not answered; the first such moment is kept."""

    def heard(self, run: Any) -> None:
        """Write that everybody answers again."""

    def unread(self, run: Any, unread: bool) -> None:
        """Write whether surely no hostctl has read a request for it."""

    def evidence(self) -> Mapping[str, Mapping[str, Any]]:
        """What the last good attempt at each step measured, by the name of the step."""

    def boot_id(self, hypervisor: str) -> str:
        """The boot of this hypervisor that answered last; empty for none."""

    def learn(self, hypervisor: str, boot_id: str) -> None:
        """Take note of the boot of a hypervisor."""

    def touched(self, hypervisor: str) -> bool:
        """Whether anything was ever asked of this hypervisor for this job."""


class Hands(Protocol):
    """What acts: a way to the host of each step, the request's envelope, and what is allowed just now.

    `boots` asks the hypervisors of these roles for their boot ids, or says why one does not answer.
    """

    def host(self, on: str) -> Host:
        """The way to where a step with this `on` runs; raise HostError where there is none."""

    def boots(self, roles: Iterable[str]) -> Mapping[str, str | HostError]:
        """The boot ids of the hypervisors in these roles, or why one does not answer."""

    def request(self, planned: Planned, direction: str, run: Run, stops: str) -> Request:
        """The request for an attempt; `stops` is the unit that has to be stopped first, or empty."""

    def limits(self) -> Mapping[str, Any]:
        """What is allowed just now, by name: `rate` in bytes per second, 0 for no limit."""

    def tired(self) -> bool:
        """Whether so much time has passed that the rest is for another tick."""


@dataclass(frozen=True)
class Finished:
    """All steps are done."""


@dataclass(frozen=True)
class Wait:
    """Nothing can go on before `until`; `kind` says what is waited for (see condition.Situation), `hosts` where."""

    sentence: str
    until: datetime
    silent_since: datetime | None = None  # since when somebody who is needed has not answered, once that is long
    kind: str = ""
    hosts: str = ""


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
    work = _Work(journal, hands, clock, steps)
    while (planned := _next(steps, journal)) is not None:
        outcome = work.perform(planned, "do")
        if outcome is not None:
            return outcome
    return Finished()


def restore(planned: Planned, journal: Journal, hands: Hands, clock: Clock) -> Outcome:
    """Do a step once more that a later one has taken away; nothing, when it never began or was undone."""
    work = _Work(journal, hands, clock)
    while _taken_away(planned, journal):
        outcome = work.perform(planned, "do")
        if outcome is not None:
            return outcome
    return Finished()


def undo(steps: Steps, journal: Journal, hands: Hands, clock: Clock, extra: Extra | None = None) -> Outcome:
    """Take back what was begun, last first; one step that will not be undone does not keep the others from it.

    But where the disk could not be put back the instance stays as it is, locked, until a person has looked: what
    comes next would start it on the disk that was to go. `extra` are further arguments of undoing verbs, by the name
    of the step.
    """
    work = _Work(journal, hands, clock, extra=extra or {})
    errors: list[Failed] = []
    for planned in reversed(steps):
        outcome = work.take_back(planned)
        if isinstance(outcome, Failed):
            errors.append(outcome)
            if planned.step.bars:
                break
        elif outcome is not None:
            return outcome
    return _still_there(errors) if errors else Finished()


def sweep(steps: Steps, journal: Journal, hands: Hands, clock: Clock) -> Outcome:
    """Have every hypervisor that was touched forget the job at its end."""
    work = _Work(journal, hands, clock)
    for planned in steps:
        while journal.touched(planned.hypervisor) and not is_done(planned.step.name, "undo", journal):
            outcome = work.perform(planned, "undo")
            if outcome is not None:
                return outcome
    return Finished()


def remove(planned: Planned, journal: Journal, hands: Hands, clock: Clock, after: int, extra: Extra) -> Outcome:
    """Undo one step again although its journal may say that nothing is left of it; once is enough.

    `after` is the `pk` of the last run that does not count.
    """
    work = _Work(journal, hands, clock, extra=extra)
    while not any(run.pk > after for run in _done(journal.runs(planned.step.name, "undo"))):
        outcome = work.perform(planned, "undo")
        if outcome is not None:
            return outcome
    return Finished()


def begun(task: Task, journal: Journal) -> bool:
    """Whether the step of a task may have changed anything; a refused attempt has not, nor one that no hostctl read."""
    return any(_may_have_acted(run) for step in names_of(task) for run in journal.runs(step, "do"))


def is_done(step: str, direction: str, journal: Journal) -> bool:
    """Whether a step came to a good end in this direction ("do", "undo")."""
    return bool(_done(journal.runs(step, direction)))


def sentence_of(planned: Planned, error: Mapping[str, Any] | None) -> str:
    """An error of hostctl as a sentence for people, with the step and the hypervisor in front."""
    said = error or {}
    tried, found = said.get("tried") or phrase(planned.step.verb), said.get("found") or "it did not say why"
    return (
        f"{planned.step.title} ({planned.hypervisor}): {sentence(str(tried), str(found), str(said.get('next') or ''))}"
    )


@dataclass(frozen=True)
class _Work:
    """What an outcome needs; `steps` are those on whose things a step may rest, `extra` arguments of undoing verbs."""

    journal: Journal
    hands: Hands
    clock: Clock
    steps: Steps = ()
    extra: Extra = field(default_factory=dict)

    def perform(self, planned: Planned, direction: str) -> Outcome | None:
        """Ask for one step once; None when it is done, or when what comes next has to be looked for again."""
        now = self.clock()
        early = Wait("", now) if self.hands.tired() else _too_early(planned, self.journal, now)
        if early is not None:
            return early
        if (last := self._went_wrong(planned, direction)) is not None:
            verdict = self._judge(planned, direction, last)
            if verdict is not None or self._has_to_go_back(planned, direction):
                return verdict
        try:
            run, fresh = self._intent(planned, direction)
        except Unready as error:
            return Halt(planned.step.name, str(error), {"code": "unready", "found": str(error)})
        stops = _stops(planned, direction, self.journal)
        return self._ask(planned, run, fresh, self.hands.request(planned, direction, run, stops))

    def take_back(self, planned: Planned) -> Outcome | None:
        """Undo one step as often as it may be tried; None when nothing of it is left."""
        while _to_undo(planned, self.journal):
            outcome = self.perform(planned, "undo")
            if outcome is not None:
                return outcome
        return None

    # Asking

    def _intent(self, planned: Planned, direction: str) -> tuple[Run, bool]:
        """The attempt that is open, to be asked again with the same arguments, or a new one; and whether until now
        surely nobody has read a request for it. It is written before the request that this is so no more.
        """
        run = _last(self.journal.runs(planned.step.name, direction))
        if run is None or run.result in OVER:
            return self.journal.begin(planned, direction, self._arguments(planned, direction)), True
        fresh = run.unread
        self.journal.unread(run, False)
        return run, fresh

    def _arguments(self, planned: Planned, direction: str) -> dict[str, Any]:
        known = self.journal.evidence()
        args = planned.filled({**known, LIMITS: self.hands.limits()})
        if direction == "do":
            return args
        name = planned.step.name
        return {**args, "made": known.get(name, {}), **self.extra.get(name, {})}

    def _ask(self, planned: Planned, run: Run, fresh: bool, request: Request) -> Outcome | None:
        known = run.result == "running"
        reach = partial(failpoints.reach, planned.step.name, request.direction)
        reach(failpoints.BEFORE_DO)
        try:
            answer = self.hands.host(planned.step.on).call(request)
        except SHUT as error:
            if fresh and isinstance(error, HostctlDiffers) and error.touched is False:
                self.journal.unread(run, True)
            self.journal.silent(run)
            return self._unanswered(planned, run, error)
        except HostError as error:
            seen = {"tried": error.tried, "found": error.found, "touched": error.touched}
            return Halt(
                planned.step.name,
                str(error),
                {"code": type(error).__name__, "hypervisor": planned.hypervisor, **seen, "next": error.next_step},
            )
        reach(failpoints.AFTER_DO)
        self.journal.record(run, answer)
        reach(failpoints.AFTER_RECORD)
        if answer.state == "running":
            return self._running(planned, request.direction, run, known, answer.again)
        return self._busy(planned, run) if answer.state == "busy" else None

    def _unanswered(self, planned: Planned, run: Run, error: HostError) -> Wait | Halt:
        """One that is away comes back; one that goes on answering something else is for a person."""
        now = self.clock()
        if not isinstance(error, NoFacts) or now - (run.silent_since or now) < BUSY_FOR_LONG:
            return _silence(planned, run, {planned.hypervisor: error}, now)
        self.journal.heard(run)  # so that it is waited for anew once a person says to go on
        return Halt(planned.step.name, str(error), {"code": "no-facts", "hypervisor": planned.hypervisor})

    def _busy(self, planned: Planned, run: Run) -> Wait | Halt:
        """What else runs there ends, or was stopped. Where systemd never says that it has, a person has to look."""
        self.journal.silent(run)
        now = self.clock()
        busy = now - (run.silent_since or now)
        if busy < BUSY_FOR_LONG:
            sentence = f"{planned.hypervisor} is still busy with another step of this job."
            return Wait(sentence, now + _pause(busy), kind="busy", hosts=planned.hypervisor)
        self.journal.heard(run)  # so that it is waited for anew once a person says to go on
        found = f"For {int(busy.total_seconds()) // 60} minutes {planned.hypervisor} has said that it is"
        sentence = f"{planned.step.title}: {found} busy with another step of this job."
        return Halt(planned.step.name, sentence, {"code": "stays-busy", "hypervisor": planned.hypervisor})

    def _running(self, planned: Planned, direction: str, run: Run, known: bool, again: float) -> Outcome | None:
        """Work that has been running for a while may hang on another hypervisor that is away or has rebooted."""
        silent = self._greet(planned, run) if known and direction == "do" else {}
        if silent:
            return _silence(planned, run, silent, self.clock())
        self.journal.heard(run)
        if known and self._has_to_go_back(planned, direction):
            return None
        undoing = "Undo: " if direction == "undo" else ""
        sentence = (
            f"{undoing}{planned.step.title} is running on {planned.hypervisor}.{_still(planned, run, self.clock())}"
        )
        return Wait(sentence, self.clock() + (timedelta(seconds=again) if again else self._look_after(run)))

    def _look_after(self, run: Run) -> timedelta:
        """For how long running work needs no look. Each costs several calls, and hundreds may run at once."""
        moving = run.progress_at is not None and abs(self.clock() - run.progress_at) < MOVING
        return LOOK_WHILE_MOVING if moving else LOOK_AGAIN

    # Judging

    def _went_wrong(self, planned: Planned, direction: str) -> Run | None:
        """The last attempt, when it came to a bad end and nobody has said since to go on."""
        run = _last(self.journal.runs(planned.step.name, direction))
        if run is None or run.result not in OVER or _is_good(run):
            return None
        return run if _since(run, self.journal.resumed_at) else None

    def _judge(self, planned: Planned, direction: str, run: Run) -> Outcome | None:
        """What a bad end leads to; None when it is to be tried again, or first what it rests on is made again."""
        silent = self._greet(planned, run) if direction == "do" else {}
        if self._has_to_go_back(planned, direction):
            return None
        if left := run.evidence.get("left"):
            data = {"code": "left-behind", "hypervisor": planned.hypervisor, "found": left}
            return Halt(planned.step.name, f"{planned.hypervisor}: Still there: {', '.join(left)}.", data)
        error = dict(run.error or {})
        sentence, code = sentence_of(planned, error), str(error.get("code", ""))
        if run.result == "refused" and code.startswith(("foreign-", "unknown-")):
            return Halt(planned.step.name, sentence, error)
        if silent:
            return _silence(planned, run, silent, self.clock())
        if not self._may_repeat(planned, direction, run.result, code):
            return Failed(planned.step.name, sentence, error)
        return self._rest(planned, direction, run, sentence)

    def _greet(self, planned: Planned, run: Run) -> dict[str, HostError]:
        """Learn which other hypervisors have rebooted since they made what this step rests on; errors of the silent.

        Only phase A has such things: where the instance is down, nobody waits for the relay.
        """
        roles = {each.step.on for each in self.steps if each.step.volatile} - {planned.step.on}
        said = self.hands.boots(sorted(roles)) if roles else {}
        names = {each.step.on: each.hypervisor for each in self.steps}
        for role, boot in said.items():
            if isinstance(boot, str) and boot:
                self.journal.learn(names[role], boot)
        silent = {names[role]: boot for role, boot in said.items() if isinstance(boot, HostError)}
        if silent:
            self.journal.silent(run)
        return silent

    def _has_to_go_back(self, planned: Planned, direction: str) -> bool:
        """Whether something that this step rests on has to be made again first."""
        return direction == "do" and bool(self.steps) and _next(self.steps, self.journal) is not planned

    def _may_repeat(self, planned: Planned, direction: str, result: str, code: str) -> bool:
        runs = self.journal.runs(planned.step.name, direction)
        ended = [run for run in runs if run.result == result and self._counts(run)]
        if result == "lost" or code == "started-late":
            # A verb that was killed, or that started too late for its owner, finds out for itself how far it had come.
            return len(ended) < MAX_LOST
        if code == "probe-failed":  # a tool did not answer, which may have been busy; the verb asks anew
            return len(ended) < MAX_FAILED
        again = planned.step.repeatable or direction == "undo"
        return _lost_ground(result, code) and again and len(ended) < MAX_FAILED

    def _counts(self, run: Run) -> bool:
        """Only ends count that came after a resume, and since the last boot of what they stand on.

        What is only asked for again, because a step failed, gives that step no more attempts.
        """
        volatile = [each.step.name for each in self.steps if each.step.volatile]
        made = [_first_of_boot(_done(self.journal.runs(name, "do"))) for name in volatile]
        return _since(run, self.journal.resumed_at) and run.pk > max(made, default=0)

    def _rest(self, planned: Planned, direction: str, run: Run, sentence: str) -> Wait | None:
        """An undo that failed is not tried again at once: it waits for longer each time."""
        runs = self.journal.runs(planned.step.name, direction)
        tries = sum(each.result == run.result and self._counts(each) for each in runs)
        pause = UNDO_PAUSES[min(tries, len(UNDO_PAUSES)) - 1] if direction == "undo" else 0
        until = (run.ended_at or self.clock()) + timedelta(seconds=pause)
        return Wait(f"It is tried again soon. {sentence}", until, kind="retry") if until > self.clock() else None


def _since(run: Run, moment: datetime | None) -> bool:
    return moment is None or run.ended_at is None or run.ended_at >= moment


def _next(steps: Steps, journal: Journal) -> Planned | None:
    """The first step that is not done; work that still runs on its hypervisor is heard first."""
    opened = next((planned for planned in steps if not _settled(planned, steps, journal)), None)
    here = [each for each in steps if opened is not None and each.hypervisor == opened.hypervisor]
    return next((each for each in here if _runs(each, journal)), opened)


def _runs(planned: Planned, journal: Journal) -> bool:
    run = _last(journal.runs(planned.step.name, "do"))
    return run is not None and run.result == "running"


def _settled(planned: Planned, steps: Steps, journal: Journal) -> bool:
    """Done, and its work was not taken away by a reboot or by somebody, nor made void by remaking what it rests on."""
    run = _last(journal.runs(planned.step.name, "do"))
    if run is None or not _is_good(run):
        return False
    torn = planned.step.torn_by and journal.runs(planned.step.torn_by, "do")
    if not planned.step.volatile or torn:
        return True
    remade = any(each.pk > run.pk for each in journal.runs(planned.step.rests_on, "do"))
    gone = remade or _is_doubted(planned, run, steps, journal)
    return not gone and journal.boot_id(planned.hypervisor) in ("", run.boot_id)


def _is_doubted(planned: Planned, run: Run, steps: Steps, journal: Journal) -> bool:
    """Whether something that rests on it, however far above, has failed since it was asked for."""
    above = [each for each in steps if each.step.rests_on == planned.step.name]
    return any(_failed_since(each, run, journal) or _is_doubted(each, run, steps, journal) for each in above)


def _failed_since(planned: Planned, run: Run, journal: Journal) -> bool:
    last = _last(journal.runs(planned.step.name, "do"))
    return last is not None and last.pk > run.pk and _lost_ground(last.result, str((last.error or {}).get("code", "")))


def _lost_ground(result: str, code: str) -> bool:
    """An end that may come of what lies beneath; a refusal says otherwise, but for that nothing is mounted there."""
    return result == "failed" or (result, code) == ("refused", "not-mounted")


def _first_of_boot(runs: Sequence[Run]) -> int:
    """The `pk` of the first run since the boot in which the last one ended; 0 for none."""
    return next((run.pk for run in runs if run.boot_id == runs[-1].boot_id), 0)


def _to_undo(planned: Planned, journal: Journal) -> bool:
    """Whether something may stand there: begun, and neither undone nor torn down since."""
    step = planned.step
    began = [run.pk for run in journal.runs(step.name, "do") if _may_have_acted(run)]
    gone = [run.pk for run in _done([*journal.runs(step.name, "undo"), *journal.runs(step.torn_by, "do")])]
    return bool(step.undo and began) and max(began) > max(gone, default=0)


def _taken_away(planned: Planned, journal: Journal) -> bool:
    """Whether a later step may have torn down what stood there, and it surely was neither made again nor undone since.

    An attempt of which no good end is known counts for what is worse: as tearing down, and as not making.
    """
    step = planned.step
    made = [run.pk for run in _done(journal.runs(step.name, "do"))]
    torn = [run.pk for run in journal.runs(step.torn_by, "do") if _may_have_acted(run)]
    return bool(made and torn) and max(made) < max(torn) and not is_done(step.name, "undo", journal)


def _may_have_acted(run: Run) -> bool:
    return run.result != "refused" and not run.unread


def _stops(planned: Planned, direction: str, journal: Journal) -> str:
    """The unit of work that may still run and that an undo has to stop first."""
    run = _last(journal.runs(planned.step.name, "do"))
    return run.unit if direction == "undo" and run is not None and run.result not in OVER else ""


def _too_early(planned: Planned, journal: Journal, now: datetime) -> Wait | None:
    """Other NFS clients may open the old file by name for a while after a rename; until then the lock stays."""
    exchanges = names_of(Task.EXCHANGE)
    renames = _done([run for name in exchanges for way in ("do", "undo") for run in journal.runs(name, way)])
    ended = [run.ended_at for run in renames if run.ended_at]
    if not planned.not_before or not ended:
        return None
    until = max(ended) + timedelta(seconds=planned.not_before)
    sentence = f"{planned.step.title} waits until no other hypervisor can still open the old file."
    return Wait(sentence, until, kind="settle") if until > now else None


def lacks(hypervisor: str, error: object) -> str:
    """The sentence for a hypervisor without the version of hostctl that a migration needs; empty for other errors."""
    if not isinstance(error, HostctlDiffers):
        return ""
    if not error.has:
        return str(error)
    return f"{hypervisor} has hostctl {error.has}, this migration needs {error.needs}. {error.next_step}"


def _silence(planned: Planned, run: Run, errors: Mapping[str, HostError], now: datetime) -> Wait:
    """Wait for hypervisors that cannot be asked: longer each time, and after a while a person is to look."""
    silence = now - (run.silent_since or now)
    since = f" for {int(silence.total_seconds())} s; needs attention" if silence > FLAGGED_AFTER else ""
    what = "hostctl" if all(isinstance(error, HostctlDiffers) for error in errors.values()) else "an answer"
    said = " ".join(lacks(hypervisor, error) or str(error) for hypervisor, error in errors.items())
    sentence = f"{planned.step.title} ({planned.hypervisor}) waits for {what}{since}. {said}"
    long = run.silent_since if silence > FLAGGED_AFTER else None
    return Wait(sentence, now + _pause(silence), long, wait_kind(errors.values()), ", ".join(errors))


def wait_kind(errors: Iterable[HostError | None]) -> str:
    """What kind of wait these errors are (see condition.TROUBLE); None stands for an answer that was of no use."""
    kinds = {_kind_of(error) for error in errors}
    return kinds.pop() if len(kinds) == 1 else "host"


def _kind_of(error: HostError | None) -> str:
    if isinstance(error, HostctlDiffers):
        return "version"
    if isinstance(error, HostKeyChanged | HostKeyUnknown):
        return "key"
    return "host" if isinstance(error, Unreachable) and not isinstance(error, NoFacts) else "facts"


def _pause(waited: timedelta) -> timedelta:
    """Until it is asked again: as long as it was waited for, but at least 2 s and at most a minute."""
    return min(max(waited, timedelta(seconds=2)), timedelta(seconds=60))


MTU: Final = (
    "check the link, and its MTU on both hosts and on switches: large packets may be lost where small ones pass"
)


def _still(planned: Planned, run: Run, now: datetime) -> str:
    """What is said of work that moves no byte although its hypervisor answers: a link that it needs may be dead.

    A mount that lets small packets through and no large ones never tells of a first byte.
    """
    moved = run.progress_at or (run.started_at if planned.step.rests_on else now)
    pause = now - moved
    if pause <= FLAGGED_AFTER:
        return ""
    advice = "check the link and the disks" if run.progress_at else MTU
    return f" It has moved nothing for {int(pause.total_seconds())} s; {advice}."


def _still_there(errors: Iterable[Failed]) -> Halt:
    listed = list(errors)
    told = [{"step": each.step, "sentence": each.sentence, **each.error} for each in listed]
    data = {"code": "not-undone", "found": [each.sentence for each in listed], "errors": told}
    return Halt(listed[0].step, "Not everything could be taken back. " + listed[0].sentence, data)


def _last(runs: Sequence[Run]) -> Run | None:
    return runs[-1] if runs else None


def _done(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if _is_good(run)]


def _is_good(run: Run) -> bool:
    """Done, and nothing is left of what it was to take away."""
    return run.result == "done" and not run.evidence.get("left")
