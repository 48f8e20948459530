"""Log lines, as text or JSON: each has the fields that it is about, and a hostile host can forge none.

`about(migration=7, step="convert")` names what all lines within it are about, in this thread or request alone.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from volmig import database

FIELDS = ("request", "migration", "step", "direction", "attempt", "hypervisor")
KNOWN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
LONGEST = 16384  # characters of a message or a traceback; what is behind them is left out

subject: ContextVar[Mapping[str, Any]] = ContextVar("subject", default={})  # noqa: B039 - never changed in place


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What the lines within are about, beside what those around it are; names are of FIELDS."""
    if strange := fields.keys() - set(FIELDS):
        raise ValueError(f"{', '.join(sorted(strange))}: a line has the fields {', '.join(FIELDS)}")
    token = subject.set({**subject.get(), **fields})
    try:
        yield
    finally:
        subject.reset(token)


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Gives each request an ID, in its log lines and in X-Request-ID: behind a proxy the proxy's, if it sends one."""

    def name(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "") if settings.BEHIND_PROXY else ""
        request_id = given if KNOWN_ID.fullmatch(given) else secrets.token_hex(8)
        request.log_id = request_id  # type: ignore[attr-defined]
        with about(request=request_id):
            response = get_response(request)
        response["X-Request-ID"] = request_id
        return response

    return name


def plain(text: str) -> str:
    """Text in which nothing moves a terminal's cursor or begins a line: control characters are shown as escapes."""
    text = shortened(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class NoTraceback(logging.Filter):
    """A database that is away is one line for each request, and no traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """An outage of the database is one line, without its traceback."""
        if record.exc_info and database.is_away(record.exc_info[1]):
            record.msg, record.args = f"{record.getMessage()}: {database.one_line(record.exc_info[1] or '')}", ()
            record.exc_info = None
        return True


class Line(logging.Formatter):
    """Time, level, logger, [fields]: message. Lines of a traceback follow, each behind a bar."""

    def format(self, record: logging.LogRecord) -> str:
        """One line with the fields, and the traceback indented below it."""
        fields = " ".join(f"{name}={plain(str(value))}" for name, value in fields_of(record).items())
        named = f"{record.name} [{fields}]" if fields else record.name
        first = f"{self.formatTime(record)} {record.levelname} {named}: {plain(record.getMessage())}"
        return "\n".join([first, *(f"  | {plain(line)}" for line in traceback_of(self, record).splitlines())])


class Json(logging.Formatter):
    """One JSON object a line, in ASCII: json.dumps escapes every control character.

    Twenty lines instead of a library: workers, which hold the SSH key, would load it for options that are not needed.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One JSON document a line; times in UTC with milliseconds."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage()),
            "part": os.environ.get("VOLMIG_PART", ""),
            "pid": record.process,
        }
        values |= fields_of(record)
        if trace := traceback_of(self, record):
            values["traceback"] = shortened(trace)
        return json.dumps(values, default=str)


def shortened(text: str) -> str:
    """The first characters of a long text, and how many more there are."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text) - LONGEST} more characters)"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the line is about: `extra` of the call before the context around it."""
    known = subject.get()
    found = {name: getattr(record, name, known.get(name)) for name in FIELDS}
    # Django's own lines bring the request itself along; some are written when all middleware has ended.
    found["request"] = known.get("request") or getattr(found["request"], "log_id", "")
    return {name: value for name, value in found.items() if value not in (None, "")}


def traceback_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Traceback and stack, empty without them."""
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    parts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return "\n".join(parts)
