"""What a web process does when it gets more requests than it can answer: a short wait, then 503 at once.

Requests take a place in a lane: so many are answered at a time, some wait for their turn for a moment, all others get
503 with Retry-After within milliseconds. Health checks have a lane of their own, and logins another: whoever comes to
find out why all is slow gets in, and who guesses passwords takes no page's place. Websockets take no place in any.
Each request that has a place holds one connection to the database at most, so the lanes also bound those.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.defaults import server_error

from volmig import database
from volmig.health import tallies

Message = Any  # ASGI's dictionaries, each with its "type"
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[Any]]

HEALTH = frozenset({"/healthz", "/healthz/live", "/healthz/ready", "/metrics"})
LOGIN = frozenset({"/login/", "/login/code/"})
HEALTH_WIDTH, LOGIN_WIDTH = 2, 2  # at a time; in each web process, and so in volmig.database.BESIDE_REQUESTS
WAITING = 4  # requests that may wait for each one that is answered
PATIENCE = 2.0  # seconds that a request waits for its turn
RETRY_AFTER = 5  # seconds, in the answer
BUFFER = 1024 * 1024  # bytes of a request, and of an answer, for which a slow client keeps no place from others
TRY_AGAIN = 1013  # of RFC 6455's registry of close codes: the server is overloaded

BUSY = "volmig is busy: it gets more requests than it can answer."
NO_DATABASE = "volmig gets no connection to its database."
PAGE = """<!doctype html>
<html lang="en-GB"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Try again in a moment · volmig</title></head>
<body><h1>Try again in a moment</h1><p>{sentence}</p><p>{effect} Reload this page in {seconds} seconds.</p>
</body></html>
"""
NOTHING_DONE = "Your request was not carried out."
MAYBE_DONE = "Check what became of your request before you repeat it."


class Lane:
    """`width` requests at a time; `waiting` more wait for `patience` seconds at most."""

    def __init__(self, width: int, waiting: int, patience: float = PATIENCE) -> None:
        self.places, self.room, self.patience = asyncio.Semaphore(width), waiting, patience
        self.waiting = 0

    async def enter(self) -> bool:
        """Whether there is a place, which the caller has to leave again."""
        if not self.places.locked():
            return await self.places.acquire()  # at once
        if self.waiting >= self.room:
            return False
        self.waiting += 1
        try:
            await asyncio.wait_for(self.places.acquire(), self.patience)
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True

    def leave(self) -> None:
        self.places.release()


class Bounded:
    """An application of which only so many requests are answered at a time; the others get 503."""

    def __init__(self, application: Application, width: int) -> None:
        self.application = application
        self.pages = Lane(width, WAITING * width)
        self.health = Lane(HEALTH_WIDTH, WAITING * HEALTH_WIDTH)
        self.logins = Lane(LOGIN_WIDTH, WAITING * LOGIN_WIDTH)
        self.lanes = dict.fromkeys(HEALTH, self.health) | dict.fromkeys(LOGIN, self.logins)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        lane = self.lanes.get(scope["path"], self.pages)
        request, answer = Request(receive), Answer(send)
        await request.read()  # before it has a place: whoever sends slowly keeps none
        sending = asyncio.create_task(answer.pass_on())
        try:
            if not await lane.enter():
                return await refuse(scope, answer.send)
            try:
                await self.application(scope, request.receive, answer.send)
            finally:
                lane.leave()
        finally:
            await answer.end(sending)


class Request:
    """What a client sends, of which the first part is read before anything else happens."""

    def __init__(self, receive: Receive) -> None:
        self.receive_more, self.read_already = receive, list[Message]()

    async def read(self) -> None:
        size, more = 0, True
        while more and size <= BUFFER:
            message = await self.receive_more()
            self.read_already.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    async def receive(self) -> Message:
        return self.read_already.pop(0) if self.read_already else await self.receive_more()


class Answer:
    """What is sent to a client that may read slowly: the application goes on, until too much of it waits."""

    def __init__(self, send: Send) -> None:
        self.send_now, self.messages = send, asyncio.Queue[Message | None]()
        self.pending, self.less, self.lost = 0, asyncio.Event(), False

    async def send(self, message: Message) -> None:
        if self.lost:
            return
        self.pending += len(message.get("body", b""))
        self.messages.put_nowait(message)
        while self.pending > BUFFER and not self.lost:
            self.less.clear()
            await self.less.wait()

    async def pass_on(self) -> None:
        try:
            while (message := await self.messages.get()) is not None:
                await self.send_now(message)
                self.pending -= len(message.get("body", b""))
                self.less.set()
        finally:
            self.lost = True  # nobody reads it: the application comes to its end without waiting
            self.less.set()

    async def end(self, sending: asyncio.Task[None]) -> None:
        self.messages.put_nowait(None)
        with suppress(OSError):  # the client left
            await sending


def count(reason: str) -> None:
    """For /metrics; in memory, until the next heartbeat of this process."""
    tallies.count("volmig_unavailable_answers", reason=reason)


async def refuse(scope: Any, send: Send) -> None:
    """503, without a thread, a session or the database."""
    count("busy")
    response = unavailable(scope["path"], BUSY, NOTHING_DONE)
    headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})


def unavailable(path: str, sentence: str, effect: str) -> HttpResponse:
    """503 as the caller reads it: a page, or for the API JSON.

    No problem (RFC 9457): those with 503 are of read-only mode, while clients try again after what a proxy could say.
    """
    if path.startswith("/api/"):
        problem = {
            "type": "about:blank",
            "title": "Service unavailable",
            "status": 503,
            "detail": f"{sentence} {effect}",
        }
        response = HttpResponse(json.dumps(problem), status=503, content_type="application/json")
    else:
        page = PAGE.format(sentence=sentence, effect=effect, seconds=RETRY_AFTER)
        response = HttpResponse(page, status=503)
        response["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        response["X-Content-Type-Options"] = "nosniff"
    response["Retry-After"] = str(RETRY_AFTER)
    response["Cache-Control"] = "no-store"
    return response


def fault(request: HttpRequest) -> HttpResponse:
    """In place of 500 where it is the database that is away, full, or busy; else what Django answers."""
    if database.is_away(sys.exc_info()[1]):
        count("database")
        effect = NOTHING_DONE if request.method in ("GET", "HEAD") else MAYBE_DONE
        return unavailable(request.path, NO_DATABASE, effect)
    return server_error(request)


class Sockets:
    """Websockets of one process up to a limit; those beyond it are closed with a code that says to come back later."""

    def __init__(self, application: Application, limit: int) -> None:
        self.application, self.limit, self.open = application, limit, 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if self.open >= self.limit:
            return await self.send_away(receive, send)
        self.open += 1
        try:
            await self.application(scope, receive, send)
        finally:
            self.open -= 1

    async def send_away(self, receive: Receive, send: Send) -> None:
        """A refusal before the handshake ends tells a browser nothing, so it is accepted and closed."""
        count("live-pages")
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": TRY_AGAIN, "reason": "too many live pages"})
