"""Where a migration really is, by what its hosts keep of it: decided when a database that is behind is adopted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.engine import routes
from jobs.engine.evidence import Evidence
from jobs.engine.routes import begins_copy, ends_copy, task_of
from jobs.engine.steps import Task


@dataclass(frozen=True)
class Known:
    """One attempt at a step, as the journal or a host has it; `fence` and `claim` give the order."""

    step: str
    direction: str
    attempt: int
    state: str
    fence: int = 0
    claim: int = 0
    at: float = 0.0
    left: bool = False  # something of what it was to take away is still there

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from other attempts: step, direction and number."""
        return self.step, self.direction, self.attempt

    @property
    def task(self) -> Task | None:
        """What its step is for; None where this volmig does not know the step."""
        return task_of(self.step)

    @property
    def is_done(self) -> bool:
        """It ended well, and nothing is left of what it was to take away."""
        return self.state == "done" and not self.left

    @property
    def has_begun(self) -> bool:
        """It may have changed something."""
        return self.state != "refused"


@dataclass(frozen=True)
class Verdict:
    """What an adopted migration goes on from, in words for the person who adopts it.

    `outcome` is for a migration that has none yet; `asks` is the approval that is asked for again; `halts` says why a
    person has to decide.
    """

    status: str
    words: str
    outcome: str = ""
    asks: str = ""
    halts: str = ""


def verdict(was: str, runs: Sequence[Known]) -> Verdict:
    """Where it is. `was` is the status in the database, `runs` are of its last lap, in order.

    No decision from before counts: an approval is asked for again, a start, a confirmation or a cancellation is for a
    person to repeat. What needs no decision is finished: an undo, a rollback before the instance ran on the new disk.
    """
    ended, outcome = ("rolled_back", "rolled back") if _good(runs, Task.EXCHANGE, "undo") else ("done", "done")
    if _good(runs, Task.PURGE):
        return Verdict("purging", "The kept disk was purged; the rest of that is finished.", outcome)
    if _begun(runs, Task.PURGE):
        return Verdict(ended, "A purge was begun and did not end well. It needs a new approval.", outcome)
    if was in ("done", "rolled_back", "purged"):
        return Verdict(was, "It has ended, and its hosts say nothing else.")
    if was == "purging":
        return Verdict(ended, "The purge never reached a host. It needs a new approval.", outcome)
    return _swapped(was, runs)


def _swapped(was: str, runs: Sequence[Known]) -> Verdict:
    """From the lock on."""
    back = any(_begun(runs, task, "undo") for task in (Task.START, Task.EXCHANGE, Task.STOP, Task.LOCK))
    ran = _begun(runs, Task.START)
    if back and ran and _good(runs, Task.EXCHANGE) and not _good(runs, Task.EXCHANGE, "undo"):
        said = "A rollback was under way, and the instance had run on its new disk. It needs a new approval."
        return Verdict("on_trial", said, asks="rollback")
    if back:
        return Verdict("rolling_back", "A rollback was under way; it is finished.", outcome="rolled back")
    if _good(runs, Task.START):
        return Verdict("on_trial", "The instance runs on its new disk. A person confirms, or asks for a rollback.")
    if ran:
        return Verdict("swapping", "The start on the new disk was begun; it is seen through.")
    if any(_begun(runs, task) for task in (Task.LOCK, Task.STOP, Task.EXCHANGE)):
        said = "The swap was under way and the instance never ran on its new disk. It gets its old disk back."
        return Verdict("rolling_back", said, outcome="rolled back")
    return _prepared(was, runs)


def _prepared(was: str, runs: Sequence[Known]) -> Verdict:
    """Up to the gate."""
    before = {step.name for step in routes.steps() if step.phase == "A"}
    copied = [run for run in runs if run.step in before and run.has_begun]
    if any(run.direction == "undo" for run in copied):
        return Verdict("undoing", "It was being undone; that is finished.", outcome="cancelled")
    if was == "undoing" and copied:
        return Verdict("undoing", "It was to be undone; that is finished.", outcome="cancelled")
    if copied:
        if _copied(runs):
            return Verdict("preparing", "The copy was verified; the swap needs a new approval.")
        return Verdict("preparing", "The copy was under way; it goes on, and the swap needs a new approval.")
    if was in ("checking", "planned"):
        return Verdict(was, "Nothing was begun. A person starts it.")
    if was in ("preparing", "undoing"):
        return Verdict("planned" if was == "preparing" else was, "No host has begun anything for it.")
    if was == "undone":
        return Verdict(was, "It has ended, and its hosts say nothing else.")
    said = "The database takes it for further than any of its hosts: they know nothing of it, or forgot it long ago."
    return Verdict(was, said, halts=said)


# What only Nova knows


@dataclass(frozen=True)
class Instance:
    """An instance as Nova and libvirt show it; `locked` is a lock of this very migration.

    `acts` are what volmig's own user had Nova do to it since the migration began, oldest first: (what, request ID).
    `ran` is false only when surely no guest has run on the new disk.
    """

    locked: bool = False
    off: bool = False
    acts: tuple[tuple[str, str], ...] = ()
    ran: bool = True

    def last(self, *names: str) -> str:
        """The last of these that was done; empty when none was."""
        return next((what for what, _ in reversed(self.acts) if what in names), "")

    def request(self, task: Task, direction: str) -> str:
        """The request ID of what a step asked Nova for; a rollback stops and starts once more after the swap did."""
        found = [request for what, request in self.acts if what == ASKED_OF_NOVA[task, direction]]
        return (found[-1] if direction == "undo" else found[0]) if found else ""


# By what a step is for, and its direction: the action of Nova.
ASKED_OF_NOVA: Mapping[tuple[Task, str], str] = {
    (Task.LOCK, "do"): "lock",
    (Task.STOP, "do"): "stop",
    (Task.START, "do"): "start",
    (Task.START, "undo"): "stop",
    (Task.STOP, "undo"): "start",
    (Task.LOCK, "undo"): "unlock",
}


def done_through_nova(runs: Sequence[Known], seen: Instance) -> list[tuple[Task, str]]:
    """The steps (task, direction) that Nova was asked for and that were carried out, as far as `runs` lack them.

    Nova keeps no memory of steps. But the disks are only exchanged while the instance is locked and shut off, in either
    direction, which hypervisors remember; the lock carries the migration's name; and libvirt and the file of the disk
    show whether a guest has run on it. What cannot be inferred is left to the engine, whose verbs begin by looking.
    """
    swapped, back = _begun(runs, Task.EXCHANGE), _begun(runs, Task.EXCHANGE, "undo")
    returned = _good(runs, Task.EXCHANGE, "undo") or not swapped
    stopped = seen.off and seen.last("stop", "start") == "stop"
    found: list[tuple[Task, str]] = []
    if swapped or seen.locked:
        found.append((Task.LOCK, "do"))
    if swapped or (seen.locked and stopped):
        found.append((Task.STOP, "do"))
    if _good(runs, Task.EXCHANGE) and not returned and seen.ran:
        found.append((Task.START, "do"))
    if (_begun(runs, Task.START) or (Task.START, "do") in found) and (back or stopped):
        found.append((Task.START, "undo"))
    if returned and not seen.locked and seen.last("lock", "unlock") == "unlock":
        undone = [task for task in (Task.STOP, Task.LOCK) if _begun(runs, task) or (task, "do") in found]
        found += [(task, "undo") for task in undone]
    return [each for each in found if not _good(runs, *each)]


def ran_on_new_disk(libvirt: Mapping[str, Any], evidence: Evidence) -> bool:
    """Whether a guest may have run on the disk that the swap put in place; `libvirt` is an answer to instance_state.

    `evidence` is that of the good steps, by name. Only libvirt's own log, together with the file's times, says no: as
    for a start that failed (hosts.remote.nova_control).
    """
    swapped_at, live = evidence.of(Task.EXCHANGE).get("swapped_at"), libvirt.get("live")
    if libvirt.get("state") != "shut off" or libvirt.get("runs") is None or swapped_at is None or not live:
        return True
    later = [run for run in libvirt["runs"] if run["at"] >= float(swapped_at) - 1 and run["ended"] != "failed"]
    stage = evidence.of(Task.VERIFY)
    return bool(later) or any(live[name] != stage.get(name) for name in ("inode", "file_size", "mtime_ns"))


# What the database lacks altogether


def by_hand(job: str, runs: Sequence[Known], *, destination: str, ended: bool) -> str:
    """What a person does about a migration that hypervisors know and the database does not, in sentences.

    `runs` are in order and of its last lap; `ended` when every hypervisor has removed its working data. volmig itself
    does nothing about it: it knows neither who approved it nor what was wished for since.
    """
    returned = _good(runs, Task.EXCHANGE, "undo")
    if _good(runs, Task.PURGE):
        return "The disk that it kept was purged. Nothing is left to do."
    if _begun(runs, Task.EXCHANGE) and not returned:
        return _swapped_by_hand(job, runs, destination)
    if _begun(runs, Task.STOP) or returned:
        if ended:
            return "It ended with the instance on its old disk. Nothing has to be done."
        return (
            "The instance has its old disk and may be shut off: see whether it runs, and start it on "
            f"{destination}, or in Nova, and unlock it there, if it does not. {LEFTOVERS}"
        )
    if ended:
        return "It ended, and no disk was exchanged. Nothing has to be done."
    return (
        "No disk was exchanged. If Nova has the instance, see there that it runs and is not locked for volmig. "
        f"What runs on a hypervisor goes on to its end. {LEFTOVERS}"
    )


def in_doubt(runs: Sequence[Known], silent: Sequence[str]) -> str:
    """Why nobody can say yet what became of the disk, when no hypervisor that answered is the destination; or empty.

    `silent` are those that have not said what they did. Only a copy that was finished is exchanged for a disk.
    """
    careful = "The disk may have been exchanged, and the instance may be down. Remove nothing that belongs to it."
    if silent:
        has, it = ("has", "it") if len(silent) == 1 else ("have", "they")
        return (
            f"Not known yet: {', '.join(silent)} {has} not said what {it} did. {careful} "
            f"Compare again when {it} can be reached."
        )
    if _copied(runs):
        said = "Not known: the copy was finished, and its destination is none of the hypervisors that were asked."
        return f"{said} {careful} Find out where the instance is, and register that hypervisor."
    return ""


LEFTOVERS = "What was made for the copy is listed under Leftovers after a scan, with the commands that remove it."


def _swapped_by_hand(job: str, runs: Sequence[Known], destination: str) -> str:
    """The new disk is in its place, or may be."""
    back = (
        f"To go back to the old disk, shut the instance off, run volmig-hostctl rollback {job} on {destination}, then "
        "start it. What was written to the new disk is then not on it."
    )
    if _good(runs, Task.START) and not _begun(runs, Task.START, "undo"):
        return f"The instance was started on its new disk. Leave it running unless its data is wrong. {back}"
    if not _begun(runs, Task.STOP):  # hypervisors remember neither stop nor start: Nova was asked
        return f"The disks were exchanged. See in Nova whether the instance runs and is unlocked. {back}"
    return f"The instance may be down. The exchange of its disks was begun: see first whether it runs. {back}"


def laps(runs: Iterable[Known]) -> list[tuple[int, Known]]:
    """Each attempt with its lap: the first step of a copy, when it is done again, begins another copy."""
    lap, made, found = 1, False, []
    for run in runs:
        begins = begins_copy(run.step) and run.direction == "do"
        if begins and made:
            lap, made = lap + 1, False
        made = made or (begins and run.state == "done")
        found.append((lap, run))
    return found


def in_order(runs: Iterable[Known]) -> list[Known]:
    """As they were begun: by the fence of the claim, and within it by the session's counter."""
    return sorted(runs, key=lambda run: (run.fence, run.claim, run.at))


def known_of(run: Mapping[str, Any]) -> Known:
    """An attempt as a host recalls it."""
    return Known(
        str(run["step"]),
        str(run["direction"]),
        int(run["attempt"]),
        str(run["state"]),
        int(run.get("fence") or 0),
        int(run.get("claim") or 0),
        float(run.get("at") or 0),
        bool((run.get("evidence") or {}).get("left")),
    )


def _begun(runs: Iterable[Known], task: Task, direction: str = "do") -> bool:
    return any((run.task, run.direction) == (task, direction) and run.has_begun for run in runs)


def _good(runs: Iterable[Known], task: Task, direction: str = "do") -> bool:
    return any((run.task, run.direction) == (task, direction) and run.is_done for run in runs)


def _copied(runs: Iterable[Known]) -> bool:
    """Whether the copy was finished and verified."""
    return any(ends_copy(run.step) and run.direction == "do" and run.is_done for run in runs)
