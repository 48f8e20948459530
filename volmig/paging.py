"""Pages of long lists that go on from a row and not from a count: as quick at the end as at the start, and unmoved by
what is added meanwhile."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import Q, QuerySet
from django.http import QueryDict


@dataclass(frozen=True)
class Page:
    """Some rows in order; `earlier` and `later` are the parameters of the pages before and after, or empty."""

    rows: list[Any]
    first: str
    earlier: str
    later: str

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def whole(sent: Any) -> int | None:
    """A positive whole number as it was sent, as far as a column can hold it."""
    digits = str(sent or "")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 19 else None


def page(rows: QuerySet[Any], order: str, sent: QueryDict, size: int, key: str = "pk") -> Page:
    """The page that `after=KEY` or `before=KEY` in the address asks for, or the first one.

    `order` is a column, with - for the highest first; rows equal in it are in the order of `key`, which is unique.
    """
    after, before = whole(sent.get("after")), whole(sent.get("before"))
    back, edge = before is not None, before if before is not None else after
    down = order.startswith("-") != back
    column = order.lstrip("-")
    if edge is not None:
        rows = beyond(rows, column, key, edge, down)
    sign = "-" if down else ""
    found = list(rows.order_by(f"{sign}{column}", *([] if column == key else [f"{sign}{key}"]))[: size + 1])
    more, found = len(found) > size, found[:size]
    if back:
        found.reverse()
    # Who came from the other side goes back there; beyond an end there is nothing.
    has_earlier, has_later = (more, True) if back else (edge is not None, more)
    ends = [getattr(row, key) for row in found[:1] + found[-1:]] or [None, None]
    return Page(
        found,
        address(sent),
        address(sent, before=ends[0]) if has_earlier and ends[0] is not None else "",
        address(sent, after=ends[1]) if has_later and ends[1] is not None else "",
    )


def beyond(rows: QuerySet[Any], column: str, key: str, edge: int, down: bool) -> QuerySet[Any]:
    """The rows that come after the one whose key is `edge`."""
    past = "lt" if down else "gt"
    if column == key:
        return rows.filter(**{f"{key}__{past}": edge})
    value = rows.model._default_manager.filter(**{key: edge}).values_list(column, flat=True).first()
    if value is None:
        return rows
    # The first condition is one that an index knows, the second sorts out those that are equal.
    rest = Q(**{f"{column}__{past}": value}) | Q(**{f"{key}__{past}": edge})
    return rows.filter(rest, **{f"{column}__{past}e": value})


def address(sent: QueryDict, **edge: Any) -> str:
    """The parameters as they were sent, with another edge."""
    kept = sent.copy()
    for name in ("after", "before"):
        kept.pop(name, None)
    kept.update({name: str(value) for name, value in edge.items()})
    return kept.urlencode()
