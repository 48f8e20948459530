"""What pages say of a job: its steps in phases, how far the running one is, and values in words."""

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from jobs.engine import drift
from jobs.models import presentation
from volmig.templatetags.units import spoken

register = template.Library()

PHASES = {"A": "copy, live disk unchanged", "B": "cut-over: instance down", "C": "trial", "D": "purge"}


@dataclass
class Box:
    """One box of the pipeline: a step, or several that belong together."""

    step: str
    title: str
    state: str
    seconds: float
    forecast: float
    run: Any
    note: str = ""
    late: bool = False


@dataclass
class Phase:
    """One phase of the pipeline, with the gate or the point of no return before it."""

    letter: str
    title: str
    rows: list[Box]
    note: str = ""
    gate: str = ""
    gate_state: str = "ask"
    gate_icon: str = "shield-check"
    point: bool = False


@register.filter
def phases(job: Any) -> list[Phase]:
    """The pipeline of a job."""
    rows: dict[str, list[presentation.Row]] = {letter: [] for letter in PHASES}
    for row in job.timeline():
        rows[row.phase].append(row)
    drawn = [Phase(letter, title, boxes(rows[letter])) for letter, title in PHASES.items()]
    b, c = drawn[1], drawn[2]
    b.gate, b.gate_state, b.gate_icon = gate(job)
    c.point = True
    if downtime := (job.plan or {}).get("downtime"):
        b.note = f"forecast {spoken(downtime[1])} ({spoken(downtime[0])} – {spoken(downtime[2])})"
    return drawn


def boxes(rows: list[presentation.Row]) -> list[Box]:
    """The boxes of a phase: a plan has more steps than an eye takes in, and its log shows every one.

    A step without a box joins the last one, so that none is ever hidden.
    """
    titles = list(dict.fromkeys(row.box for row in rows if row.box)) or [row.title for row in rows[-1:]]
    named = {title: [row for row in rows if (row.box or titles[-1]) == title] for title in titles}
    return [made for title, rows in named.items() if (made := box(title, rows))]


@register.filter
def running_row(job: Any) -> Box | None:
    """The part of the pipeline in which a step is under way."""
    return next((row for phase in phases(job) for row in phase.rows if row.run is not None), None)


def box(title: str, rows: list[Any]) -> Box | None:
    """Steps that are drawn as one; the state is the one that matters most to an eye."""
    if not rows:
        return None
    running = next((row.run for row in rows if row.state == "running"), None)
    seconds, forecast = sum(row.seconds or 0 for row in rows), sum(row.forecast or 0 for row in rows)
    state, late = together([row.state for row in rows]), any(row.late for row in rows)
    return Box(rows[0].step, title, state, seconds, forecast, running, late=late)


def together(found: list[str]) -> str:
    """The state of a box from the states of its steps."""
    for loud in ("failed", "running"):
        if loud in found:
            return loud
    settled = [state for state in found if state in ("done", "skipped", "undone")]
    if len(settled) == len(found):
        return "undone" if "undone" in found else "done" if "done" in found else "skipped"
    return "running" if "done" in settled else "undone" if settled and "undone" in settled else "todo"


def gate(job: Any) -> tuple[str, str, str]:
    """What stands at the gate before the instance goes down."""
    if job.status in ("swapping", "on_trial", "done", "rolling_back", "rolled_back", "purging", "purged"):
        return "approved", "open", "circle-check"
    if job.status == "approved":
        return "approved", "open", "circle-check"
    if job.outcome == "rejected":
        return "rejected", "shut", "circle-x"
    if job.status == "awaiting_approval":
        return "awaiting another person", "ask", "hourglass"
    return "another person approves", "ask", "shield-check"


@register.filter
def percent(run: Any) -> str:
    """How far a running step is, with one decimal; empty when it does not say."""
    share = fraction(run)
    return "" if share is None else f"{share * 100:.1f}"


@register.filter
def tens(run: Any) -> int:
    """How far in whole tens: what is worth announcing."""
    return int((fraction(run) or 0) * 10) * 10


def fraction(run: Any) -> float | None:
    """Bytes done of bytes in all, between 0 and 1."""
    if not run or not run.bytes_total:
        return None
    return min(1.0, float(run.bytes_done or 0) / float(run.bytes_total))


@register.simple_tag
def announcement(job: Any, run: Any) -> str:
    """What a screen reader is told of the running step."""
    left = job.time_left()
    rest = f", about {spoken(left[1])} left" if left else ""
    return f"{title_of(job, run)}: {tens(run)} percent{rest}" if run.bytes_total else title_of(job, run)


@register.filter
def title_of(job: Any, run: Any) -> str:
    """The title of the step that a run is of."""
    return presentation.step_title(job, run.step)


@register.filter
def titles(job: Any, names: Iterable[str]) -> str:
    """The titles of several steps, with commas."""
    return ", ".join(presentation.step_title(job, name) for name in names)


@register.filter
def upper_bound(job: Any, run: Any) -> float | None:
    """The most seconds that a step was forecast to take."""
    step = presentation.planned_step(job, run.step) if run.direction == "do" else None
    return float(step["seconds"][2]) if step else None


@register.filter
def commands_of(job: Any, run: Any) -> list[str]:
    """The commands of a run as they ran, or as they are planned while none has ended."""
    if ran := [line["text"] for line in run.commands or [] if not line.get("probe")]:
        return ran
    step = presentation.planned_step(job, run.step) if run.direction == "do" else None
    return [line["text"] for line in step["commands"]] if step else []


@register.filter
def holes(text: str) -> SafeString:
    """A command with its «values that do not exist yet» marked."""
    parts = re.split(r"(«[^»]*»)", text)
    kinds = (
        (SafeString('<span class="hole">{}</span>') if part.startswith("«") else SafeString("{}"), part)
        for part in parts
    )
    return SafeString("".join(format_html(kind, part) for kind, part in kinds))


@register.filter
def took(job: Any) -> float | None:
    """Seconds from the request to the end."""
    return (job.ended_at - job.created_at).total_seconds() if job.ended_at else None


@register.filter
def minutes(seconds: float | None) -> str:
    """A length of time as a clock shows it: 0:37, 12:04, 1:02:03."""
    whole = max(0, round(seconds or 0))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@register.filter
def down_for(down: Any) -> float:
    """Seconds that an instance is, or was, down."""
    return float(down.seconds(timezone.now()))


@register.filter
def over(down: Any) -> bool:
    """Whether that is longer than the upper bound of its forecast."""
    return bool(down.over(timezone.now()))


@register.filter
def lasting(since: dt.datetime) -> str:
    """For how long something has been so."""
    return spoken((timezone.now() - since).total_seconds())


@register.filter
def until(at: dt.datetime) -> str:
    """How long until something."""
    return spoken((at - timezone.now()).total_seconds())


@register.simple_tag
def now_epoch() -> float:
    """The server's time as seconds since 1970, which clocks on the page go by."""
    return epoch(timezone.now())


@register.filter
def epoch(at: dt.datetime | None) -> float:
    """A time as seconds since 1970, for the plot."""
    return round(at.timestamp(), 3) if at else 0


@register.filter
def ends(seconds: float) -> str:
    """When something that takes so long from now ends."""
    at = timezone.localtime(timezone.now() + dt.timedelta(seconds=seconds))
    day = "" if at.date() == timezone.localdate() else at.strftime("%-d %b ")
    return f"{day}{at:%H:%M %Z}"


def parsed(at: Any) -> dt.datetime | None:
    """A time from the database or from a hypervisor's answer."""
    if isinstance(at, int | float):
        return dt.datetime.fromtimestamp(at, dt.UTC)
    if isinstance(at, dt.datetime):
        return at
    try:
        read = dt.datetime.fromisoformat(str(at))
    except ValueError:
        return None
    return read if read.tzinfo else read.replace(tzinfo=dt.UTC)


@register.filter
def moment(at: Any) -> str:
    """Date and time with the zone."""
    return f"{timezone.localtime(known):%-d %b %Y %H:%M %Z}" if (known := parsed(at)) else "–"


@register.filter
def clock(at: Any) -> SafeString | str:
    """The time of day; the date and the zone are there on hover."""
    if not (known := parsed(at)):
        return "–"
    local = timezone.localtime(known)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(),
        f"{local:%-d %b %Y %H:%M:%S %Z}",
        f"{local:%H:%M:%S}",
    )


@register.filter
def brief_seconds(seconds: float | None) -> str:
    """A short length of time with a tenth of a second."""
    return "–" if seconds is None else f"{seconds:.1f} s" if seconds < 60 else spoken(seconds)


@register.filter
def failing(checks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks that do not hold, the blocking ones first."""
    order = {"blocks": 0, "warns": 1, "informs": 2}
    return sorted(
        (check for check in checks if not check.get("ok")), key=lambda check: order.get(str(check.get("severity")), 3)
    )


@register.filter
def holding(checks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Checks that hold."""
    return [check for check in checks if check.get("ok")]


@register.filter
def spaced(name: str) -> str:
    """A name from code as words."""
    return str(name).replace("_", " ").replace("-", " ")


@register.filter
def shorter(name: str) -> SafeString | str:
    """A long name with its middle left out; the whole one is there on hover."""
    if len(name) <= 28:
        return name
    return format_html('<span title="{}">{}…{}</span>', name, name[:8], name[-12:])


@register.filter
def readable(value: Any) -> Any:
    """A value from JSON in words: pairs as «name: value», lists with commas."""
    if isinstance(value, dict):
        return format_html_join(" · ", "{}: {}", ((spaced(key), readable(each)) for key, each in value.items()))
    if isinstance(value, list):
        return format_html_join(", ", "{}", ((readable(each),) for each in value)) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "") else value


@register.filter
def besides(value: Mapping[str, Any], names: str) -> dict[str, Any]:
    """The pairs of a mapping that are not named, as far as they say anything."""
    return {key: each for key, each in value.items() if key not in names.split() and each not in (None, "", [], {})}


@register.filter
def kind_words(kind: str) -> str:
    """What people call a kind of thing that a migration makes."""
    return drift.word(kind)


@register.filter
def downtime_seen(job: Any) -> float | None:
    """Seconds from the instance seen stopped to it seen running again, when both happened."""
    down = job.down()
    return None if down is None or down.until is None else down_for(down)
