"""Filters that print quantities in an operator's units, with the exact figure on hover."""

import datetime as dt
import json
from typing import Any

from django import template
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()
TIB, GIB, MIB = 1024**4, 1024**3, 1024**2
UNITS = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1024, "KiB"), (0, "B"))


def spoken(seconds: float) -> str:
    """Returns a length of time in its two largest units: 4 s, 3 min 12 s, 5 h 2 min, 2 d 3 h."""
    seconds = max(0, round(seconds))
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((index for index, (_, length) in enumerate(units) if seconds >= length), 3)
    parts: list[str] = []
    for name, length in units[first : first + 2]:
        count, seconds = divmod(seconds, length)
        parts.append(f"{count} {name}" if count or not parts else "")
    return " ".join(part for part in parts if part)


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds as people say them, a dash for None."""
    return "–" if seconds is None else spoken(seconds)


@register.filter
def age(at: dt.datetime | None) -> str:
    """How long ago, with the absolute time and its zone on hover."""
    if at is None:
        return format_html('<span class="text-secondary">{}</span>', "never")
    local = timezone.localtime(at)
    ago = spoken((timezone.now() - at).total_seconds())
    full = local.strftime("%Y-%m-%d %H:%M:%S %Z")
    # Nothing in it is anybody's text, and pages have hundreds: to escape it took longer than all the rest.
    return SafeString(f'<time datetime="{local.isoformat()}" title="{full}">{ago} ago</time>')


@register.filter
def size(count: int | None) -> str:
    """Bytes as TiB, GiB or MiB, with the exact bytes on hover."""
    if count is None:
        return "–"
    length, unit = next(each for each in UNITS if count >= each[0] or each[1] == "B")
    amount = f"{count} B" if unit == "B" else f"{count / length:.1f} {unit}"
    exact = f"{int(count):,}".replace(",", "\u202f")
    return SafeString(f'<span title="{exact} bytes">{amount}</span>')  # numbers alone


@register.filter
def rate(bytes_per_second: float | None) -> str:
    """MiB/s with one decimal, a dash for None."""
    return "–" if bytes_per_second is None else f"{bytes_per_second / MIB:.1f} MiB/s"


@register.filter
def pretty(data: Any) -> str:
    """Data as indented JSON."""
    return json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True)
