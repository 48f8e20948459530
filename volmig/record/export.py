"""The record as JSON lines or CSV, streamed: it may be longer than memory."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC
from typing import Any

from asgiref.sync import sync_to_async

from volmig.record.models import SIGNED, EventQuerySet

COLUMNS = (*SIGNED, "prev_hash", "hash")  # all that is signed: whoever has the key can check an export
CHUNK = 2000
FORMULA = ("=", "+", "-", "@", "\t", "\r")
Write = Callable[[Sequence[Any]], str]


async def stream(events: EventQuerySet, header: str, write: Write) -> AsyncIterator[str]:
    """Yields the events from the oldest on; each chunk is a query of its own, so no transaction lasts a download."""
    yield header
    last = 0
    while rows := await sync_to_async(chunk)(events, last):
        yield "".join(map(write, rows))
        last = rows[-1][0]


def chunk(events: EventQuerySet, after: int) -> list[tuple[Any, ...]]:
    """The next rows of an export after event `after`."""
    return list(events.filter(seq__gt=after).order_by("seq").values_list(*COLUMNS)[:CHUNK])


def plain(row: Sequence[Any]) -> dict[str, Any]:
    """A row by its columns; times in UTC."""
    values = dict(zip(COLUMNS, row, strict=True))
    return values | {"at": values["at"].astimezone(UTC).isoformat(timespec="microseconds")}


def json_line(row: Sequence[Any]) -> str:
    """An event as a line of JSON."""
    return json.dumps(plain(row), ensure_ascii=False) + "\n"


def csv_line(row: Sequence[Any]) -> str:
    """An event as a line of CSV, RFC 4180."""
    values = plain(row)
    return cells((values | {"data": json.dumps(values["data"], ensure_ascii=False)}).values())


def cells(values: Any) -> str:
    """Cells as a line of CSV; none begins like a formula."""
    line = io.StringIO()
    csv.writer(line).writerow([harmless(value) for value in values])
    return line.getvalue()


def harmless(value: Any) -> Any:
    """A spreadsheet takes such text for a formula, and an LV's name or a reason may be anything."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


FORMATS: dict[str, tuple[str, str, Write]] = {
    "jsonl": ("application/x-ndjson", "", json_line),
    "csv": ("text/csv; charset=utf-8", cells(COLUMNS), csv_line),
}
