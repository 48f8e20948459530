"""Of which parts no process runs anywhere, by their heartbeats: for the overview, and for whoever has queued something.

It imports no models but heartbeats and queued tasks, so that all pages may ask.
"""

import datetime as dt
from collections.abc import Callable, Iterable

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from volmig.health.models import Process
from volmig.parts import PARTS, how_to_start, of_queue
from volmig.queue import last_done, requested

STARTING = dt.timedelta(seconds=60)  # after the first part has started, in which the others may still be missing


def parts(rows: Iterable[Process]) -> dict[str, dt.datetime | None]:
    """The parts without a process whose heartbeat is recent, each with the last one, None when there is none.

    Empty while volmig is only just starting, and where nothing sends heartbeats: then nothing is known. `rows` have
    their age.
    """
    rows = list(rows)
    alive = [row for row in rows if not row.late]
    if not any(row.beaten_at - row.started_at >= STARTING for row in alive):
        return {}
    there = {row.part for row in alive}
    return {
        part: max((row.beaten_at for row in rows if row.part == part), default=None)
        for part in PARTS
        if part not in there
    }


def no_worker(queue: str) -> str:
    """That no worker of this queue runs, and since when, as sentences; empty when one does, or nothing is known."""
    part, gone = of_queue(queue), parts(Process.objects.with_age())
    if part.name not in gone:
        return ""
    # Those that stopped in an orderly way left no heartbeat, but perhaps a task that they ended.
    since = gone[part.name] or last_done(queue)
    have = f"have run since {timezone.localtime(since):%Y-%m-%d %H:%M:%S %Z}" if since else "are running"
    waits = f"Your request stays queued until they are started: {how_to_start(part.group)}."
    return f"No {part.called} {have}. {waits}"


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Tells whoever requests something on a page when no worker runs that would do it, whichever view queues it."""

    def answer(request: HttpRequest) -> HttpResponse:
        queues = set[str]()
        token = requested.set(queues)
        try:
            response = get_response(request)
        finally:
            requested.reset(token)
        # A page that is shown already, or was refused, requested nothing; programs read no messages.
        if response.status_code == 302 and not request.path_info.startswith("/api/"):
            for waits in filter(None, map(no_worker, sorted(queues))):
                messages.warning(request, waits)
        return response

    return answer
