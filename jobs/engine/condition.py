"""What a migration is doing, in one sentence: the most urgent of what is true of it, and how long it still takes.

Sentences hold no length of time, so that they change only when something did; `since` and `next_try` are beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from jobs.engine import routes, states
from jobs.engine.steps import Range as Range

Tone = Literal["bad", "warn", "wait", "ask", "run", "good", "flat"]
FRESH: Final = timedelta(seconds=10)  # figures of this age prove that their hypervisor is there
PATIENCE: Final = timedelta(seconds=15)  # a call, or a pause between bytes, of this length is nothing unusual
# What a hypervisor that is needed does not do, by the kind of wait, and the advice.
TROUBLE: Final[Mapping[str, tuple[str, str]]] = {
    "host": ("no response from {}", "Check {}."),
    "version": ("the version of hostctl that is needed is not installed on {}", "Install it on {}."),
    "key": ("the host key of {} has changed or is not pinned", "Compare and pin the host key of {}."),
    "facts": ("{} does not give the facts that are needed", "Check {}."),
    "busy": ("{} is still busy with another step of this migration", "Check {}."),
}
UNTOUCHED: Final = "The live disk is not changed"
GRACE: Final = 2.0  # seconds over its forecast that do not make a step late: ticks come when they come


@dataclass(frozen=True)
class Step:
    """The attempt that is under way; `answered` once its hypervisor has said that the work runs there."""

    name: str
    title: str
    host: str
    undo: bool
    started_at: datetime
    answered: bool
    silent_since: datetime | None = None
    progress_at: datetime | None = None
    counts_bytes: bool = False
    seconds_left: float | None = None  # by its measured rate
    forecast: Range | None = None

    @property
    def doing(self) -> str:
        """What is done, in words."""
        return f"Undo: {self.title}" if self.undo else self.title


@dataclass(frozen=True)
class Down:
    """The time that the instance is shut off: from its recorded stop until it was seen running (None: not yet).

    `certain` is false while a stop was asked for and nobody knows what became of it; `forecast` as approved.
    """

    since: datetime
    until: datetime | None = None
    certain: bool = True
    forecast: Range | None = None

    def seconds(self, now: datetime) -> float:
        """For how long it is, or was, down."""
        return max(0.0, ((self.until or now) - self.since).total_seconds())

    def over(self, now: datetime) -> bool:
        """Whether it takes, or took, longer than the upper bound of its forecast."""
        return self.forecast is not None and self.seconds(now) > self.forecast[2]


@dataclass(frozen=True)
class Situation:
    """All that a sentence about a migration depends on. `calm` is what to say when nothing is urgent.

    `idle_since` is since when work is due that no worker has taken. `waits` is the kind of `waiting_for` (one of
    TROUBLE, or slot, window, settle, retry, fault), `waits_on` the hypervisors that it is about.
    """

    now: datetime
    status: str
    calm: str
    stalled_after: timedelta
    halt_reason: str = ""
    halted_at: datetime | None = None
    waiting_for: str = ""
    waits: str = ""
    waits_on: str = ""
    waiting_since: datetime | None = None
    wants: str = ""
    step: Step | None = None
    down: Down | None = None
    next_try: datetime | None = None
    idle_since: datetime | None = None
    destination: str = ""

    @property
    def is_down(self) -> bool:
        """Whether the instance is down, as far as is known."""
        return self.down is not None and self.down.until is None

    @property
    def down_words(self) -> str:
        """That the instance is down, or may be while that is not certain."""
        return "is down" if self.is_down and self.down and self.down.certain else "may be down"


@dataclass(frozen=True)
class Condition:
    """One sentence. `attention`: someone should act, and `advice` says how; `detail` is the raw error behind it.

    `moving` is true only while time passes as forecast: without it there is no time left to be shown.
    """

    kind: str
    sentence: str
    tone: Tone
    since: datetime | None = None
    next_try: datetime | None = None
    advice: str = ""
    detail: str = ""
    attention: bool = False
    moving: bool = False


def condition(seen: Situation) -> Condition:
    """The most urgent of what is true, and only that.

    In this order: halted, down and stalled, down for too long, no response, no worker, nothing moves, waiting for a
    window or a slot, running, waiting for a person, ended.
    """
    for look in (_halted, _stalled, _down_too_long, _unanswered, _waiting, _running, _person):
        found = look(seen)
        if found is not None:
            return found
    if seen.status in states.ENDED:
        return Condition("over", seen.calm, "flat")
    moving = seen.status in states.WORKING and not seen.waiting_for
    return Condition("working", seen.calm, "run", moving=moving)


def _halted(seen: Situation) -> Condition | None:
    if not seen.halt_reason:
        return None
    if seen.is_down or seen.status in states.MAY_BE_DOWN:
        stopped, advice = "volmig has stopped and will not continue on its own.", "Act now."
        said = f"The instance {seen.down_words}. {stopped}"
    else:
        runs = "The instance runs on its current disk" if seen.status in states.ENDED | {"on_trial"} else UNTOUCHED
        said, advice = f"{runs}. volmig has stopped and changes nothing more until someone decides.", ""
    return Condition("halted", said, "bad", seen.halted_at, None, advice, seen.halt_reason, attention=True)


def _stalled(seen: Situation) -> Condition | None:
    """For longer than the threshold nothing is heard or nothing moves; worse while the instance is down."""
    stall = _stall(seen)
    if stall is None or seen.now - stall[0] <= seen.stalled_after:
        return None
    since, kind, sentence, advice = stall
    if seen.is_down:
        kind, sentence = f"down-{kind}", f"The instance {seen.down_words}. {sentence}"
    tone: Tone = "bad" if seen.status in states.MAY_BE_DOWN else "warn"
    return Condition(kind, sentence, tone, since, seen.next_try, advice, seen.waiting_for, attention=True)


def _down_too_long(seen: Situation) -> Condition | None:
    if not seen.is_down or seen.down is None or not seen.down.over(seen.now):
        return None
    doing = f" {seen.step.doing} on {seen.step.host} has not finished." if seen.step else ""
    return Condition(
        "down-late",
        f"The instance has been down for longer than forecast.{doing}",
        "bad",
        seen.down.since,
        None,
        f"Check {seen.step.host if seen.step else seen.destination}.",
        seen.waiting_for,
        attention=True,
    )


def _unanswered(seen: Situation) -> Condition | None:
    """No answer, or no byte, for long enough to say so and not for long enough to be a stall."""
    stall = _stall(seen)
    if stall is None or stall[1] == "hanging" or seen.now - stall[0] <= PATIENCE:
        return None
    return Condition(stall[1], stall[2], "warn", stall[0], seen.next_try, "", seen.waiting_for)


def _waiting(seen: Situation) -> Condition | None:
    if (
        seen.step is not None
        or not seen.waiting_for
        or seen.waits not in ("slot", "window", "settle", "retry", "fault")
    ):
        return None
    if seen.waits == "fault":
        fault = "volmig failed with an internal error. Retrying automatically."
        advice = "Read the workers' log, and report it with the evidence archive."
        return Condition(
            "fault", fault, "bad", seen.waiting_since, seen.next_try, advice, seen.waiting_for, attention=True
        )
    if seen.waits == "retry":
        again = "A step failed and is tried again."
        return Condition("retrying", again, "warn", seen.waiting_since, seen.next_try, "", seen.waiting_for)
    return Condition(f"waiting-{seen.waits}", seen.waiting_for, "wait", seen.waiting_since, seen.next_try)


def _running(seen: Situation) -> Condition | None:
    step = seen.step
    if step is None:
        return None
    if is_late(step.forecast, (seen.now - step.started_at).total_seconds()):
        return Condition(
            "late", f"{step.doing} on {step.host} is taking longer than forecast.", "warn", step.started_at
        )
    return Condition("running", f"{step.doing} on {step.host}.", "run", step.started_at, moving=True)


def _person(seen: Situation) -> Condition | None:
    if not seen.wants:
        return None
    return Condition("person", seen.calm, "ask", advice=seen.wants)


# What stands still


def _stall(seen: Situation) -> tuple[datetime, str, str, str] | None:
    """Since when something stands still, its kind, the sentence and what to do; None while all is as it should be."""
    step = seen.step
    if seen.idle_since is not None and seen.now - seen.idle_since > seen.stalled_after:
        return seen.idle_since, "idle", "No worker has taken up this migration.", "Check that volmig's workers run."
    if step is None:
        return _without_step(seen)
    since = silent_since(step, seen.now)
    if since is not None:
        kind, what, advice = _trouble(seen, step.host)
        return since, kind, f"{step.doing}: {what}.", advice
    if step.answered and step.counts_bytes:
        moved = step.progress_at or step.started_at
        advice = f"Check the link and the disks that {step.host} works with."
        return moved, "still", f"{step.doing} on {step.host} has moved no data.", advice
    upper = timedelta(seconds=step.forecast[2] if step.forecast else 0)
    if step.answered and seen.now - step.started_at > upper:
        return step.started_at, "hanging", f"{step.doing} on {step.host} does not finish.", f"Check {step.host}."
    return None


def _without_step(seen: Situation) -> tuple[datetime, str, str, str] | None:
    if not seen.waiting_for or seen.waits not in TROUBLE or seen.waiting_since is None:
        return None
    kind, what, advice = _trouble(seen, "a hypervisor that is needed")
    begins = what[:1].upper() if what.startswith(("no ", "the ", "a ")) else what[:1]  # a name keeps its letters
    return seen.waiting_since, kind, f"{begins}{what[1:]}.", advice


def _trouble(seen: Situation, host: str) -> tuple[str, str, str]:
    """The kind of trouble with a hypervisor, as a clause, and what to do."""
    waits = seen.waits if seen.waiting_for and seen.waits in TROUBLE else "host"
    if seen.waiting_for and seen.waits in TROUBLE:
        host = seen.waits_on or host
    what, advice = TROUBLE[waits]
    return "unanswered" if waits == "host" else waits, what.format(host), advice.format(host)


def silent_since(step: Step, now: datetime) -> datetime | None:
    """Since when the hypervisor of a step has not responded; None while it does.

    A call without an answer is no silence while figures come in: they prove that the host is there.
    """
    if step.progress_at is not None and now - step.progress_at <= FRESH:
        return None
    if not step.answered:
        return step.started_at
    return step.silent_since


# How long it takes


def is_late(forecast: Range | None, seconds: float) -> bool:
    """Whether something took longer than the upper bound of its forecast."""
    return forecast is not None and seconds > forecast[2] + GRACE


@dataclass(frozen=True)
class Outlook:
    """How long the whole takes, corrected by what is known: low, usual, high in seconds.

    `known` are the seconds of finished steps and of the running one; `open_ended` while a step runs over its forecast
    or nothing moves, so that the range is only the least.
    """

    whole: Range
    known: float
    open_ended: bool
    late: tuple[str, ...]


def time_left(found: Condition, step: Step | None, steps: Iterable[tuple[str, Range]]) -> Range | None:
    """Seconds to the end of the phase, of which `steps` are unfinished; None while nothing moves as it was forecast.

    This alone decides whether a time left is shown, on pages, by the API, by the client and in messages.
    """
    if not found.moving:
        return None
    return _total(_left(name, forecast, step) for name, forecast in steps)


def _total(ranges: Iterable[Range]) -> Range:
    low = usual = high = 0.0
    for each in ranges:
        low, usual, high = low + each[0], usual + each[1], high + each[2]
    return low, usual, high


def _left(name: str, forecast: Range, step: Step | None) -> Range:
    if step is None or step.name != name or step.seconds_left is None:
        return forecast
    return step.seconds_left * 0.8, step.seconds_left, step.seconds_left * 1.4


def outlook(
    steps: Sequence[tuple[str, Range]],
    done: Mapping[str, float],
    step: Step | None,
    found: Condition,
    now: datetime,
) -> Outlook:
    """The forecast of all `steps`, with what finished ones (`done`: their seconds) really took in place of it."""
    known, rest, late = 0.0, [], []
    for name, forecast in steps:
        if name in done:
            known += done[name]
            late += [name] if is_late(forecast, done[name]) else []
        elif step is not None and step.name == name and not step.undo:
            elapsed = (now - step.started_at).total_seconds()
            known += elapsed
            late += [name] if is_late(forecast, elapsed) else []
            rest.append(_rest(name, forecast, step, elapsed))
        else:
            rest.append(forecast)
    low, usual, high = _total(rest)
    whole = known + low, known + usual, known + high
    stuck = step is not None and not found.moving
    return Outlook(whole, known, stuck or found.attention, tuple(late))


def _rest(name: str, forecast: Range, step: Step, elapsed: float) -> Range:
    if step.seconds_left is not None:
        return _left(name, forecast, step)
    low, middle, high = (max(0.0, each - elapsed) for each in forecast)
    return low, middle, high


# The instance


def downtime(runs: Iterable[Any], forecast: Range | None) -> Down | None:
    """When the instance was last shut off by a migration, from its journal; None when it never was.

    `runs` are the attempts, oldest first, as the journal has them. A hypervisor's clock may be wrong: a moment that it
    tells is taken as far as it lies between the request and the answer. An instance that was off before is left out.
    """
    down: Down | None = None
    for run in runs:
        verb = _verb(run)
        if verb == "instance_stop":
            down = _stopped(run, down, forecast)
        elif verb == "instance_start" and down is not None and run.result == "done" and _runs(run):
            down = Down(down.since, _moment(run, "started_at"), forecast=forecast)
    return down


def _verb(run: Any) -> str:
    step = routes.named().get(run.step)
    return "" if step is None else step.undo if run.direction == "undo" else step.verb


def _runs(run: Any) -> bool:
    return str(run.evidence.get("state", "running")) == "running"


def _stopped(run: Any, down: Down | None, forecast: Range | None) -> Down | None:
    if run.result == "done":
        if run.evidence.get("was") == "shut off":
            return down
        still = down is not None and down.until is None and down.certain
        return down if still else Down(_moment(run, "stopped_at"), None, True, forecast)
    unknown = run.result == "lost" or (run.ended_at is None and run.silent_since is not None)
    if unknown and (down is None or down.until is not None):
        return Down(run.started_at, None, False, forecast)
    return None if down is not None and not down.certain and run.ended_at else down


def _moment(run: Any, name: str) -> datetime:
    """A moment of the evidence, no earlier than the request and no later than the answer."""
    ended: datetime = run.ended_at or run.started_at
    value = _time(run.evidence.get(name))
    if value is None:
        return ended
    began: datetime = run.started_at
    return min(max(value, began), ended)


def _time(value: Any) -> datetime | None:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
