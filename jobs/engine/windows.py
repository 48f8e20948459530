"""When a swap may run: weekly windows in a time zone, less blackout days, and the next of them that is long enough."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
HORIZON: Final = dt.timedelta(days=370)
_WINDOW: Final = re.compile(
    r"(?P<first>[a-z]{3})[a-z]*(?:\s*-\s*(?P<last>[a-z]{3})[a-z]*)?\s+(?P<begin>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d)",
    re.IGNORECASE,
)
_BLACKOUT: Final = re.compile(r"(?P<first>\d{4}-\d\d-\d\d)(?:\s+to\s+(?P<last>\d{4}-\d\d-\d\d))?", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Span:
    """From `begin` until before `end`; both have a zone."""

    begin: dt.datetime
    end: dt.datetime

    @property
    def length(self) -> dt.timedelta:
        """How long it lasts."""
        return self.end - self.begin


@dataclass(frozen=True)
class Window:
    """Minutes of the day between which a swap may run, on these days of the week (0 is Monday).

    One that ends before it begins ends on the day after.
    """

    days: tuple[int, ...]
    begin: int
    end: int

    @classmethod
    def read(cls, line: str) -> Window:
        """From text such as `Thu 02:00-04:00` or `Mon-Fri 22:00-06:00`; raise ValueError with a sentence."""
        match = _WINDOW.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"“{line}” is no window: write a day or days and two times, such as Thu 02:00-04:00.")
        first, last = _day(match["first"]), _day(match["last"] or match["first"])
        days = tuple((first + more) % 7 for more in range((last - first) % 7 + 1))
        return cls(days, _minutes(match["begin"]), _minutes(match["end"]))

    def __str__(self) -> str:
        days = DAYS[self.days[0]] if len(self.days) == 1 else f"{DAYS[self.days[0]]}-{DAYS[self.days[-1]]}"
        return f"{days} {_clock(self.begin)}-{_clock(self.end)}"


@dataclass(frozen=True)
class Blackout:
    """Days, the first and the last of them included, on which nothing is swapped."""

    first: dt.date
    last: dt.date

    @classmethod
    def read(cls, line: str) -> Blackout:
        """From text such as `2026-12-24` or `2026-12-24 to 2027-01-02`; raise ValueError with a sentence."""
        match = _BLACKOUT.fullmatch(line.strip())
        wrong = f"“{line}” is no day: write 2026-12-24, or 2026-12-24 to 2027-01-02."
        if match is None:
            raise ValueError(wrong)
        try:
            first = dt.date.fromisoformat(match["first"])
            last = dt.date.fromisoformat(match["last"] or match["first"])
        except ValueError:
            raise ValueError(wrong) from None
        if last < first:
            raise ValueError(f"“{line}” ends before it begins.")
        return cls(first, last)

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"


@dataclass(frozen=True)
class Schedule:
    """When swaps may run, by the clocks of a time zone; no windows at all means at any time."""

    zone: str = "UTC"
    windows: tuple[Window, ...] = ()
    blackouts: tuple[Blackout, ...] = ()

    def open(self, since: dt.datetime, until: dt.datetime) -> list[Span]:
        """All spans between two times, in order; windows that touch are one."""
        zone = ZoneInfo(self.zone)
        first, last = since.astimezone(zone).date() - dt.timedelta(days=1), until.astimezone(zone).date()
        days = [first + dt.timedelta(days=more) for more in range((last - first).days + 1)]
        spans = _merged(span for day in days for span in self._of_day(day, zone)) if self.windows else [
            Span(since, until)
        ]  # fmt: skip
        shut = [
            Span(_at(each.first, 0, zone, late=False), _at(each.last, 24 * 60, zone, late=True))
            for each in self.blackouts
        ]
        return _without(_within(spans, [Span(since, until)]), sorted(shut))

    def _of_day(self, day: dt.date, zone: ZoneInfo) -> Iterator[Span]:
        for window in self.windows:
            if day.weekday() in window.days:
                end = window.end + (24 * 60 if window.end <= window.begin else 0)
                span = Span(_at(day, window.begin, zone, late=True), _at(day, end, zone, late=False))
                if span.begin < span.end:
                    yield span


def next_fit(schedules: Sequence[Schedule], now: dt.datetime, length: dt.timedelta) -> Span | None:
    """The first span, open in all schedules, of which from now on enough is left; None within the next year."""
    spans = [Span(now, now + HORIZON)]
    for schedule in schedules:
        spans = _within(spans, schedule.open(now, now + HORIZON))
    return next((span for span in spans if span.length >= length), None)


def sentence(schedules: Sequence[Schedule], now: dt.datetime, length: dt.timedelta, takes: str) -> str:
    """Why the swap does not begin now, and when it will; `takes` says in words how long it may take."""
    span = next_fit(schedules, now, length)
    if span is None:
        return f"No window within a year is long enough for the swap, which may take up to {takes}."
    zone = ZoneInfo(schedules[0].zone)
    present = next_fit(schedules, now, dt.timedelta(0))
    if present is not None and present.begin <= now:
        why = f"the swap may take up to {takes}, and the present window closes at {_time(present.end, zone)}"
    else:
        why = f"none is open now, and the swap may take up to {takes}"
    return f"It waits for the window on {words(span, now, zone)}: {why}."


def outlook(schedule: Schedule, now: dt.datetime) -> str:
    """Whether swaps may run at this moment, and until or from when."""
    span, zone = next_fit([schedule], now, dt.timedelta(0)), ZoneInfo(schedule.zone)
    if span is None:
        return "shut for the next year"
    if span.begin > now:
        return f"next {words(span, now, zone)}"
    if span.length >= HORIZON:
        return "open"
    near = span.end.astimezone(zone).date() == now.astimezone(zone).date()
    return f"open until {_time(span.end, zone)}" if near else f"open until {span.end.astimezone(zone):%A %H:%M %Z}"


def words(span: Span, now: dt.datetime, zone: ZoneInfo) -> str:
    """A span as people say it, such as Thursday 02:00 to 04:00 UTC, with the date when it is not within a week."""
    begin, end = span.begin.astimezone(zone), span.end.astimezone(zone)
    near = span.begin - now < dt.timedelta(days=6)
    day = f"{begin:%A}" if near else f"{begin:%A} {begin.day} {begin:%B %Y}"
    if end - begin >= dt.timedelta(days=1):
        return f"{day} from {begin:%H:%M %Z} on"
    return f"{day} {begin:%H:%M} to {end:%H:%M %Z}"


def _time(at: dt.datetime, zone: ZoneInfo) -> str:
    return f"{at.astimezone(zone):%H:%M %Z}"


def _day(word: str) -> int:
    try:
        return DAYS.index(word.capitalize())
    except ValueError:
        raise ValueError(f"“{word}” is no day of the week: write {', '.join(DAYS)}.") from None


def _minutes(text: str) -> int:
    hour, minute = map(int, text.split(":"))
    if minute > 59 or hour * 60 + minute > 24 * 60:
        raise ValueError(f"“{text}” is no time of day: write 00:00 to 24:00.")
    return hour * 60 + minute


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _at(day: dt.date, minutes: int, zone: ZoneInfo, *, late: bool) -> dt.datetime:
    """A time of day as a moment. Where clocks are put forward or back there are two: the one that opens less."""
    local = dt.datetime.combine(day, dt.time()) + dt.timedelta(minutes=minutes)
    both = [local.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC) for fold in (0, 1)]
    return max(both) if late else min(both)


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.begin <= merged[-1].end:
            merged[-1] = Span(merged[-1].begin, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


def _within(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What both lists, each in order, have in common."""
    common, left, right = [], 0, 0
    while left < len(spans) and right < len(others):
        one, other = spans[left], others[right]
        if (begin := max(one.begin, other.begin)) < (end := min(one.end, other.end)):
            common.append(Span(begin, end))
        left, right = (left + 1, right) if one.end < other.end else (left, right + 1)
    return common


def _without(spans: Sequence[Span], shut: Sequence[Span]) -> list[Span]:
    for each in shut:
        cut = [
            (Span(span.begin, min(span.end, each.begin)), Span(max(span.begin, each.end), span.end)) for span in spans
        ]
        spans = [part for pair in cut for part in pair if part.begin < part.end]
    return list(spans)
