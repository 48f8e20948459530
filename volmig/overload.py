"""What a web process does when it gets more requests than it can answer: a short wait, then 503 at once.

Requests take a place in a lane: so many are answered at a time, some wait for their turn for a moment, all others get
503 with Retry-After within milliseconds. Health checks have a lane of their own, the one for liveness another, and
logins a third: whoever comes to find out why all is slow gets in, and who guesses passwords takes no page's place.
One address takes not all of those for logins.
Websockets take no place in any. A request that is larger than any that volmig takes gets 413 before all of it has come.
Each request that has a place holds one connection to the database at most, so the lanes also bound those.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.defaults import server_error

from volmig import database
from volmig.health import tallies

Message = Any  # ASGI's dictionaries, each with its "type"
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[Any]]

LIVE = "/healthz/live"  # waits for nothing, and so must not wait for those that ask the database
HEALTH = frozenset({"/healthz", "/healthz/ready", "/metrics"})
LOGIN = frozenset({"/login/", "/login/code/"})
HEALTH_WIDTH, LOGIN_WIDTH = 2, 2  # at a time; in each web process, and so in volmig.database.BESIDE_REQUESTS
WAITING = 4  # requests that may wait for each one that is answered
PATIENCE = 2.0  # seconds that a request waits for its turn
RETRY_AFTER = 5  # seconds, in the answer
BUFFER = 1024 * 1024  # bytes that a request may have, and those of an answer for which a slow client keeps no place
TRY_AGAIN = 1013  # of RFC 6455's registry of close codes: the server is overloaded

BUSY = "volmig is busy: it receives more requests than it can handle."
NO_DATABASE = "volmig cannot connect to its database."
PAGE = """<!doctype html>
<html lang="en-GB"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title} · volmig</title></head>
<body><h1>{title}</h1><p>{detail}</p><p>{advice}</p>
</body></html>
"""
NOTHING_DONE = "Your request was not carried out."
MAYBE_DONE = "Your request may have been carried out. Check before you repeat it."


class Lane:
    """`width` requests at a time; `waiting` more wait for `patience` seconds at most."""

    def __init__(self, width: int, waiting: int, patience: float = PATIENCE) -> None:
        self.places, self.room, self.patience = asyncio.Semaphore(width), waiting, patience
        self.waiting = self.inside = 0

    async def enter(self, who: str = "") -> bool:
        """Whether there is a place, which the caller has to leave again. All are equal here, whoever they are."""
        if not self.places.locked():
            self.inside += 1
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
        self.inside += 1
        return True

    def leave(self, who: str = "") -> None:
        """Gives the place to the next one who waits."""
        self.inside -= 1
        self.places.release()

    @property
    def is_empty(self) -> bool:
        """True when nobody waits or is inside."""
        return not (self.waiting or self.inside)


class FairLane(Lane):
    """A lane in which each client has all places but one at most; its other requests wait among themselves.

    So one that asks without end cannot keep all others out. Of clients that wait there are never more than the lane has
    room for, and so there is a bound for all requests that do.
    """

    def __init__(self, width: int, waiting: int, patience: float = PATIENCE) -> None:
        super().__init__(width, waiting, patience)
        self.share, self.own = width - 1, dict[str, Lane]()

    async def enter(self, who: str = "") -> bool:
        """Waits for a place of one's own share first; False when there is none in time."""
        own, entered = self.own.setdefault(who, Lane(self.share, self.room, self.patience)), False
        try:
            if await own.enter():
                try:
                    entered = await super().enter()
                finally:
                    if not entered:
                        own.leave()
        finally:
            self.forget(who)
        return entered

    def leave(self, who: str = "") -> None:
        """Gives both places back."""
        super().leave()
        self.own[who].leave()
        self.forget(who)

    def forget(self, who: str) -> None:
        """Keeps nothing of a client of whom nothing is here any more."""
        if who in self.own and self.own[who].is_empty:
            del self.own[who]


class Bounded:
    """An application of which only so many requests are answered at a time; the others get 503."""

    def __init__(self, application: Application, width: int) -> None:
        self.application = application
        self.pages = Lane(width, WAITING * width)
        health, live = (Lane(HEALTH_WIDTH, WAITING * HEALTH_WIDTH) for _ in range(2))
        logins = FairLane(LOGIN_WIDTH, WAITING * LOGIN_WIDTH)  # no account is needed to ask for one
        self.lanes = {**dict.fromkeys(HEALTH, health), LIVE: live, **dict.fromkeys(LOGIN, logins)}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        lane = self.lanes.get(scope["path"], self.pages)
        if scope["path"] == LIVE:
            scope = without_cookies(scope)
        request, answer = Request(receive), Answer(send)
        fits = await request.read()  # before it has a place: whoever sends slowly keeps none
        sending = asyncio.create_task(answer.pass_on())
        try:
            if not fits:
                return await respond(too_large(scope["path"]), answer.send)
            who = client_of(scope)
            if not await lane.enter(who):
                return await refuse(scope, answer.send)
            try:
                await self.application(scope, request.receive, answer.send)
            finally:
                lane.leave(who)
        finally:
            await answer.end(sending)


def client_of(scope: Any) -> str:
    """An address, or for IPv6 the first half of one: whoever has one of those has all that begin with it."""
    address, *_ = scope.get("client") or ("",)
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return str(address)
    mapped = getattr(known, "ipv4_mapped", None)
    known = mapped or known
    return str(known) if known.version == 4 else str(ipaddress.ip_network(f"{known}/64", strict=False))


def without_cookies(scope: Any) -> Any:
    """Nobody is logged in: the session of a cookie would be read from the database."""
    return {**scope, "headers": [header for header in scope.get("headers", ()) if header[0] != b"cookie"]}


class Request:
    """What a client sends, which is read before anything else happens."""

    def __init__(self, receive: Receive) -> None:
        self.receive_more, self.read_already = receive, list[Message]()

    async def read(self) -> bool:
        """Whether it fits; of one that does not the rest is not waited for."""
        size, more = 0, True
        while more and size <= BUFFER:
            message = await self.receive_more()
            self.read_already.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
        return size <= BUFFER

    async def receive(self) -> Message:
        """The messages of ASGI that were read already, then those that follow."""
        return self.read_already.pop(0) if self.read_already else await self.receive_more()


class Answer:
    """What is sent to a client that may read slowly: the application goes on, until too much of it waits."""

    def __init__(self, send: Send) -> None:
        self.send_now, self.messages = send, asyncio.Queue[Message | None]()
        self.pending, self.less, self.lost = 0, asyncio.Event(), False

    async def send(self, message: Message) -> None:
        """Queues a message of ASGI; nothing more once the client has left."""
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
        """Waits until everything is sent."""
        self.messages.put_nowait(None)
        with suppress(OSError):  # the client left
            await sending


def count(reason: str) -> None:
    """For /metrics; in memory, until the next heartbeat of this process."""
    tallies.count("volmig_unavailable_answers", reason=reason)


async def refuse(scope: Any, send: Send) -> None:
    """Sends 503 and counts it."""
    count("busy")
    await respond(unavailable(scope["path"], BUSY, NOTHING_DONE), send)


async def respond(response: HttpResponse, send: Send) -> None:
    """Sends it without a thread, a session or the database."""
    headers = [(name.lower().encode(), value.encode()) for name, value in response.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})


def unavailable(path: str, sentence: str, effect: str) -> HttpResponse:
    """503, with a time to come back."""
    again = f"Reload this page in {RETRY_AFTER} seconds."
    response = plain(path, 503, "Try again in a moment", f"{sentence} {effect}", again)
    response["Retry-After"] = str(RETRY_AFTER)
    return response


def too_large(path: str) -> HttpResponse:
    """413. What is a little smaller than BUFFER, and larger than this says, is for Django to refuse."""
    most = f"volmig accepts requests of at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE // 1024} KiB."
    return plain(path, 413, "The request is too large", f"{most} {NOTHING_DONE}", "Go back and shorten it.")


def plain(path: str, status: int, title: str, detail: str, advice: str) -> HttpResponse:
    """An answer as the caller reads it: a page without anything else, or for the API JSON.

    No problem (RFC 9457): those with 503 are of read-only mode, while clients try again after what a proxy could say.
    """
    if path.startswith("/api/"):
        content = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
        response = HttpResponse(json.dumps(content), status=status, content_type="application/json")
    else:
        page = PAGE.format(title=title, detail=detail, advice=advice)
        response = HttpResponse(page, status=status)
        response["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
        response["X-Content-Type-Options"] = "nosniff"
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
