"""What an approver is shown before a yes: before and after, the proof, what will run, what differs since."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone
from django.utils.html import format_html

from jobs.engine import approval_binding, windows
from jobs.engine.steps import Task
from jobs.models import Approval, StepRun
from volmig.record.models import Event
from volmig.templatetags.units import size, spoken


@dataclass(frozen=True)
class Row:
    """One line of before and after."""

    name: str
    before: Any
    after: Any
    mono: bool = False


@dataclass(frozen=True)
class Proof:
    """One thing that was measured; `exact` is the figure itself."""

    holds: bool
    sentence: str
    exact: str = ""


@dataclass(frozen=True)
class Line:
    """One line on what differs since the request was made."""

    same: bool
    sentence: str


AT_ONCE = "immediately after the last required approval, once the facts are re-read"
WORDS = {
    "swap": (
        "Replace {disk} of {name}?",
        AT_ONCE,
        "rolled back automatically until the guest first runs; after that only with a new approval",
    ),
    "rollback": (
        "Put the old {disk} of {name} back?",
        "immediately after approval",
        "data written since the swap is lost to the instance; the new disk is kept until its purge",
    ),
    "purge": (
        "Delete the unused disk of {name}?",
        "immediately after approval",
        "the deletion cannot be undone",
    ),
}
DOWN = {"rollback": "its shutdown and start", "purge": "not at all"}


class Review:
    """A reading of one approval for people; everything comes from what is bound and from the job's own evidence."""

    def __init__(self, asked: Approval) -> None:
        self.asked, self.job, self.bound = asked, asked.job, asked.bound
        question, self.at_once, self.if_wrong = WORDS[asked.kind]
        self.question = question.format(disk=self.job.disk, name=self.job.instance_name)
        self.downtime = (self.job.plan or {}).get("downtime") if asked.kind == "swap" else None
        self.downtime_words = DOWN.get(asked.kind, "not known")
        if "rollback" in self.bound:
            told = f"; for {self.job.rollback_minutes} minutes after the swap {asked.requester} can roll back"
            self.if_wrong += f"{told} without further approval; data written since the swap is then lost"

    @property
    def when(self) -> str:
        """When it would be done: in which window, where its team's policy knows any."""
        if (
            self.asked.kind != "swap"
            or not self.asked.is_open
            or self.job.status not in ("awaiting_approval", "approved")
        ):
            return self.at_once
        schedules, now = self.job.terms().schedules, timezone.now()
        span = self.job.window()
        if not schedules or (span and span.begin <= now):
            return self.at_once
        if span is None:
            return "not within a year: no window is long enough for the high end of the forecast"
        told = windows.words(span, now, ZoneInfo(schedules[0].zone))
        return f"{told}, once the facts are re-read; the approval is valid until that window ends"

    @property
    def needed(self) -> str:
        """How many people have to say yes, and how many did."""
        wanted, said = self.asked.approvers, self.asked.count()
        if self.asked.granted_by_id:
            return "Pre-approved together with the swap."
        if not wanted:
            return "This site does not require a second person's approval."
        return f"{said} of {wanted} required approvals given."

    @property
    def requested(self) -> list[Line]:
        """What differs between what was asked for and checked at first, and what is to be consented to."""
        event = Event.objects.of_job(self.job.pk).filter(action="job.submit").first()
        changes = approval_binding.difference(event.data, self.job.asked()) if event else []
        changes += self.moved() if self.asked.kind == "swap" and self.asked.is_open else []
        return [Line(False, change) for change in changes] or [Line(True, "No changes since the submission.")]

    def moved(self) -> list[str]:
        """Which facts are not as they were when the plan was made."""
        try:
            checked = self.job.bound("swap", self.job.seen())
        except (KeyError, TypeError):
            return ["the facts of the first check are incomplete"]
        same = [name for name in ("source", "live", "instance") if name in self.bound]
        return approval_binding.difference(
            {name: checked[name] for name in same}, {name: self.bound[name] for name in same}
        )

    @property
    def commands(self) -> list[str]:
        """The commands that are bound, as text."""
        return [line["text"] if isinstance(line, dict) else str(line) for line in self.bound.get("commands", [])]

    @cached_property
    def runs(self) -> dict[Task | None, StepRun]:
        """The last good run of the step of each task."""
        return {run.task: run for run in self.job.runs.filter(direction="do", result="done").order_by("pk")}

    def evidence(self, task: Task) -> dict[str, Any]:
        """What the step of a task measured; empty when it did not end well."""
        return self.runs[task].evidence if task in self.runs else {}

    @property
    def rows(self) -> list[Row]:
        """The live disk beside the staged image."""
        if self.asked.kind != "swap":
            return []
        facts = self.job.facts or {}
        destination, source = facts.get("destination") or {}, facts.get("source") or {}
        disk, live, stage = destination.get("disk") or {}, self.bound.get("live", {}), self.bound.get("stage", {})
        owner = f"{disk.get('uid')}:{disk.get('gid')} {disk.get('mode') or 0:04o} {disk.get('label') or 'no label'}"
        return [
            Row("Virtual size", size(live.get("virtual_size")), size(self.job.source_size)),
            Row(
                "Format, on the share",
                format_html("{}, {}", live.get("format"), size(disk.get("allocated"))),
                format_html("qcow2, {}", size(stage.get("file_size"))),
            ),
            Row("Contents", summary(destination), summary(source)),
            Row("Owner, mode, label", owner, "the same, set before the rename", mono=False),
            Row("Backing chain", ", ".join(live.get("backing") or []) or "none", "none"),
            Row("Inode", live.get("inode"), stage.get("inode"), mono=True),
            Row("Path", live.get("path"), "renamed onto the same path", mono=True),
        ]

    @property
    def proofs(self) -> list[Proof]:
        """What proves that the staged image is the source volume."""
        if self.asked.kind != "swap":
            return [
                Proof(True, f"{key.replace('_', ' ').capitalize()}: {self.bound[key]}")
                for key in ("gives up", "stays")
                if key in self.bound
            ]
        return [self.compared(), self.hashed(), self.quiet()]

    def compared(self) -> Proof:
        """qemu-img compare of the volume with the copy."""
        if not self.evidence(Task.COMPARE):
            return Proof(False, "No comparison with the source volume has been done.")
        took = spoken(self.runs[Task.COMPARE].seconds)
        volume, whole = f"{self.job.source_vg}/{self.job.source_lv}", f"{self.job.source_size:,}".replace(",", "\u202f")
        return Proof(True, f"Block by block equal to {volume}: {whole} bytes compared in {took}.")

    def hashed(self) -> Proof:
        """The hash before the comparison, the one on the relay, and the one read back from the filer."""
        tasks = (Task.HASH, Task.DELIVER, Task.VERIFY)
        sealed, made, read = (self.evidence(task).get("sha256") for task in tasks)
        if not made or not made == sealed == read:
            return Proof(
                False, "The staged image, as read back from the share, has not been proved equal to the compared copy."
            )
        words = "Same hash before the comparison, when written by the relay, and when read back on the destination:"
        return Proof(True, words, f"sha256 {made}")

    def quiet(self) -> Proof:
        """Write counters at the fence and after the comparison."""
        fence, compare = self.evidence(Task.FENCE), self.evidence(Task.COMPARE)
        if not fence or "writes" not in compare:
            return Proof(False, "Writes to the source volume have not been counted.")
        if fence.get("writes") != compare["writes"]:
            return Proof(False, "The source volume was written to during the copy.")
        return Proof(
            True, "Source quiet throughout: closed, fenced read-only, 0 writes counted between fence and comparison."
        )

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Checks that do not hold and do not block."""
        return [check for check in self.job.checks or [] if not check.get("ok") and check.get("severity") == "warns"]

    @property
    def since(self) -> list[Line]:
        """What differs between what was asked and what is."""
        changes = [Line(False, str(change)) for change in self.asked.void_changes or []]
        if self.asked.voided_at:
            return changes or [Line(False, self.asked.void_reason)]
        read = f"{spoken_ago(self.job.facts_at)} ago" if self.job.facts_at else "before"
        return [
            Line(
                self.asked.version == self.job.version,
                "The plan has not changed."
                if self.asked.version == self.job.version
                else "The plan has changed: this request no longer matches it.",
            ),
            Line(
                True,
                f"Facts read {read}; volmig reads them again before it acts, and a difference voids the approval.",
            ),
        ]


def spoken_ago(at: Any) -> str:
    """How long ago, in words."""
    return spoken((timezone.now() - at).total_seconds())


def summary(side: dict[str, Any]) -> str:
    """What a disk holds, in words."""
    return (side.get("contents") or {}).get("summary") or "not recognised"
