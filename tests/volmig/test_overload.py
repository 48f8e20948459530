"""More requests than can be answered: a short wait, 503 with a time to come back, and health checks beside all that."""

import asyncio
import json
import logging
import sys

import psycopg
import pytest
from django.db import InterfaceError, OperationalError, connection
from django.test import RequestFactory
from django.urls import reverse

from volmig import database, logs, overload
from volmig.health import tallies

SHORT = 0.05  # seconds of patience, where a test waits for their end


class Client:
    """One request and what it is answered."""

    def __init__(self, path="/", body=(), address="192.0.2.1"):
        self.scope = {"type": "http", "path": path, "client": (address, 0)}
        self.body, self.sent = list(body), []

    async def receive(self):
        if self.body:
            return self.body.pop(0)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"] if self.sent else None

    @property
    def content(self):
        return self.sent[1]["body"].decode()

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])


class Application:
    """Answers when it is let; counts how many requests it has at a time."""

    def __init__(self):
        self.now = self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        await answer(send)


async def answer(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"page"})


async def started(bounded, clients):
    tasks = [asyncio.create_task(bounded(each.scope, each.receive, each.send)) for each in clients]
    for _ in range(20):
        await asyncio.sleep(0)
    return tasks


def test_so_many_are_answered_some_wait_and_the_rest_is_refused_at_once():
    async def run():
        application, clients = Application(), [Client() for _ in range(30)]
        bounded = overload.Bounded(application, 3)
        tasks = await started(bounded, clients)
        refused = [each for each in clients if each.status == 503]
        assert len(refused) == 30 - 3 - 3 * overload.WAITING, "while nothing was answered yet"
        assert {each.headers[b"retry-after"] for each in refused} == {b"5"}
        application.go.set()
        await asyncio.gather(*tasks)
        assert application.most == 3
        assert sum(each.status == 200 for each in clients) == 3 + 3 * overload.WAITING

    asyncio.run(run())


def test_whoever_waits_too_long_is_refused_and_leaves_the_place_to_others():
    async def run():
        application, first, second = Application(), Client(), Client()
        bounded = overload.Bounded(application, 1)
        bounded.pages.patience = SHORT
        tasks = await started(bounded, [first, second])
        await tasks[1]
        assert second.status == 503
        application.go.set()
        await tasks[0]
        third = Client()
        await bounded(third.scope, third.receive, third.send)
        assert (first.status, third.status) == (200, 200)

    asyncio.run(run())


class Stuck(Application):
    """Answers only these paths; all others never, until they are let."""

    def __init__(self, *paths):
        super().__init__()
        self.paths = paths

    async def __call__(self, scope, receive, send):
        if scope["path"] not in self.paths:
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})


@pytest.mark.parametrize("path", [reverse("health_live"), reverse("metrics"), reverse("login"), reverse("login_code")])
def test_health_checks_and_logins_are_answered_while_pages_take_every_place(path):
    async def run():
        application = Stuck(path)
        bounded = overload.Bounded(application, 1)
        pages = [Client() for _ in range(10)]
        tasks = await started(bounded, pages)
        assert 503 in {each.status for each in pages}
        wanted = Client(path)
        await bounded(wanted.scope, wanted.receive, wanted.send)
        assert wanted.status == 200
        application.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/", "/healthz/live"])
def test_a_flood_of_logins_takes_no_place_from_others(path):
    async def run():
        application = Stuck(path)
        bounded = overload.Bounded(application, 1)
        logins = [Client("/login/") for _ in range(50)]
        tasks = await started(bounded, logins)
        assert sum(each.status == 503 for each in logins) == 50 - (1 + overload.WAITING * overload.LOGIN_WIDTH)
        other = Client(path)
        await bounded(other.scope, other.receive, other.send)
        assert other.status == 200
        application.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("flood", "other"),
    [("192.0.2.1", "192.0.2.2"), ("2001:db8::{}", "2001:db8:0:1::1"), ("::ffff:192.0.2.1", "192.0.2.2")],
)
@pytest.mark.parametrize("path", [reverse("login"), reverse("login_code")])
@pytest.mark.parametrize("width", [2, 3])
def test_one_address_that_logs_in_without_end_keeps_no_other_from_logging_in(monkeypatch, width, path, flood, other):
    monkeypatch.setattr(overload, "LOGIN_WIDTH", width)

    async def run():
        application = Application()
        bounded = overload.Bounded(application, 1)
        flooding = [Client(path, address=flood.format(number + 1)) for number in range(50)]
        tasks = await started(bounded, flooding)
        assert application.now == overload.LOGIN_WIDTH - 1
        wanted = Client(path, address=other)
        tasks += await started(bounded, [wanted])
        assert application.now == overload.LOGIN_WIDTH, "it is being answered"
        application.go.set()
        await asyncio.gather(*tasks)
        assert wanted.status == 200
        assert application.most == overload.LOGIN_WIDTH
        return bounded.lanes[path].own

    assert asyncio.run(run()) == {}, "nothing is kept of whoever has left"


def test_many_addresses_that_log_in_at_once_wait_within_the_bound_of_all_and_leave_nothing():
    async def run():
        application = Application()
        bounded = overload.Bounded(application, 1)
        logins = [Client("/login/", address=f"192.0.2.{number % 40}") for number in range(200)]
        tasks = await started(bounded, logins)
        inside = sum(each.status is None for each in logins)
        room = overload.WAITING * overload.LOGIN_WIDTH
        assert inside <= (overload.LOGIN_WIDTH + room) * (1 + room)
        assert 503 in {each.status for each in logins}
        application.go.set()
        await asyncio.gather(*tasks)
        assert application.most == overload.LOGIN_WIDTH
        return bounded.lanes["/login/"].own

    assert asyncio.run(run()) == {}


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(tallies, "counted", {})
    return lambda: {json.loads(labels)["reason"]: number for (_, labels, _), number in tallies.counted.items()}


def test_every_answer_of_503_is_counted_by_its_reason(counted):
    async def run():
        application = Application()
        bounded, sockets = overload.Bounded(application, 1), overload.Sockets(application, 0)
        tasks = await started(bounded, [Client() for _ in range(1 + overload.WAITING + 3)])
        await sockets(Client().scope, Client().receive, Client().send)
        application.go.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    raised(OperationalError("database is locked" if connection.vendor == "sqlite" else "the server is away"))
    assert counted() == {"busy": 3, "live-pages": 1, "database": 1}
    assert counted().keys() == {*tallies.UNAVAILABLE}


def test_the_pool_of_connections_has_one_for_each_place_beside_requests():
    assert database.BESIDE_REQUESTS >= overload.HEALTH_WIDTH + overload.LOGIN_WIDTH + 6  # what its comment lists


def test_liveness_waits_for_nothing_else_not_even_for_other_health_checks():
    """They ask the database, which may hang; a process whose liveness fails is restarted."""

    async def run():
        over = asyncio.Event()

        async def application(scope, receive, send):
            if scope["path"] != overload.LIVE:
                await over.wait()
            await answer(send)

        bounded = overload.Bounded(application, 1)
        hanging = [Client(path) for path in ("/", *overload.HEALTH) for _ in range(20)]
        tasks = await started(bounded, hanging)
        probe = Client(overload.LIVE)
        await bounded(probe.scope, probe.receive, probe.send)
        over.set()
        await asyncio.gather(*tasks)
        return probe.status

    assert asyncio.run(run()) == 200


def test_liveness_does_not_ask_the_database_for_the_session_of_a_cookie():
    async def run():
        came = {}

        async def application(scope, receive, send):
            came[scope["path"]] = scope["headers"]
            await answer(send)

        bounded, headers = overload.Bounded(application, 1), [(b"host", b"volmig"), (b"cookie", b"sessionid=any")]
        for path in ("/", overload.LIVE):
            client = Client(path)
            await bounded({**client.scope, "headers": headers}, client.receive, client.send)
        return came

    assert asyncio.run(run()) == {
        "/": [(b"host", b"volmig"), (b"cookie", b"sessionid=any")],
        overload.LIVE: [(b"host", b"volmig")],
    }


class Trickling(Client):
    """Sends more than volmig takes, and then nothing, but never an end."""

    def __init__(self, path="/"):
        super().__init__(path, [{"type": "http.request", "body": bytes(overload.BUFFER + 1), "more_body": True}])

    async def receive(self):
        return self.body.pop(0) if self.body else await asyncio.Event().wait()


def test_what_is_larger_than_any_request_may_be_is_refused_before_its_end_and_takes_no_place():
    async def run():
        async def application(scope, receive, send):
            while (await receive()).get("more_body"):
                pass
            await answer(send)

        bounded, large, quick = overload.Bounded(application, 2), [Trickling() for _ in range(8)], Client()
        tasks = await started(bounded, [*large, api := Trickling("/api/v1/jobs"), quick])
        found = [each.status for each in large], quick.status, large[0].content, api.content
        for task in tasks:
            task.cancel()
        return found

    refused, quick, page, api = asyncio.run(run())
    assert (refused, quick) == ([413] * 8, 200)
    assert "volmig accepts requests of at most 256 KiB. Your request was not carried out." in page
    assert json.loads(api)["status"] == 413


def test_a_client_that_sends_slowly_takes_no_place():
    async def run():
        application, slow, quick = Application(), Client(), Client()
        application.go.set()
        bounded = overload.Bounded(application, 1)
        never = asyncio.Event()
        slow.receive = never.wait
        tasks = await started(bounded, [slow])
        await bounded(quick.scope, quick.receive, quick.send)
        assert quick.status == 200
        tasks[0].cancel()

    asyncio.run(run())


def test_a_client_that_reads_slowly_takes_no_place():
    async def run():
        application, slow, quick = Application(), Client(), Client()
        application.go.set()
        bounded = overload.Bounded(application, 1)
        reads = asyncio.Event()

        async def send(message):
            await reads.wait()
            slow.sent.append(message)

        slow.send = send
        tasks = await started(bounded, [slow])
        await bounded(quick.scope, quick.receive, quick.send)
        assert (slow.status, quick.status) == (None, 200)
        reads.set()
        await tasks[0]
        assert slow.status == 200

    asyncio.run(run())


def test_what_a_client_sent_in_pieces_arrives_whole():
    async def run():
        pieces = [{"type": "http.request", "body": bytes([n]) * 10, "more_body": n < 4} for n in range(5)]
        client, got = Client(body=pieces), b""

        async def application(scope, receive, send):
            nonlocal got
            more = True
            while more:
                message = await receive()
                got, more = got + message["body"], message["more_body"]
            await answer(send)

        await overload.Bounded(application, 1)(client.scope, client.receive, client.send)
        return got

    assert asyncio.run(run()) == b"".join(bytes([n]) * 10 for n in range(5))


def test_an_application_that_fails_gives_its_place_back():
    async def run():
        async def broken(scope, receive, send):
            raise RuntimeError("broken")

        bounded = overload.Bounded(broken, 1)
        for _ in range(3):
            client = Client()
            with pytest.raises(RuntimeError, match="broken"):
                await bounded(client.scope, client.receive, client.send)

    asyncio.run(run())


def test_websockets_beyond_the_limit_are_accepted_and_closed_with_a_code_that_says_to_come_back():
    async def run():
        over = asyncio.Event()

        async def stays(scope, receive, send):
            await over.wait()

        sockets = overload.Sockets(stays, 2)
        tasks = await started(sockets, [Client(), Client()])
        third = Client()
        await sockets(third.scope, third.receive, third.send)
        over.set()
        await asyncio.gather(*tasks)
        fourth = Client()
        await sockets(fourth.scope, fourth.receive, fourth.send)
        return third.sent, fourth.sent

    third, fourth = asyncio.run(run())
    assert [message["type"] for message in third] == ["websocket.accept", "websocket.close"]
    assert (third[1]["code"], fourth) == (1013, [])


def full():
    error = OperationalError("FATAL: sorry, too many clients already")
    error.__cause__ = psycopg.errors.TooManyConnections()
    return error


def raised(error, path="/", method="GET"):
    try:
        raise error
    except type(error):
        return overload.fault(getattr(RequestFactory(), method.lower())(path))


@pytest.mark.skipif(connection.vendor != "postgresql", reason="as PostgreSQL says it")
@pytest.mark.parametrize(
    "error", [full(), OperationalError("couldn't get a connection after 2.00 sec"), InterfaceError()]
)
def test_a_database_that_is_away_or_full_is_503_and_says_so(error):
    answer = raised(error)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert "volmig cannot connect to its database" in answer.content.decode()
    assert "Your request may have been carried out" in raised(error, method="POST").content.decode()
    assert raised(error, "/api/v1/jobs")["Content-Type"] == "application/json", "the client tries again"


@pytest.mark.skipif(connection.vendor != "sqlite", reason="as SQLite says it")
def test_a_file_that_another_process_writes_is_503():
    assert raised(OperationalError("database is locked")).status_code == 503


@pytest.mark.parametrize("error", [ValueError("a fault"), psycopg.OperationalError("not Django's")])
def test_every_other_fault_stays_500(error):
    assert raised(error).status_code == 500


def test_a_statement_that_is_wrong_is_a_fault_and_not_an_outage():
    wrong = OperationalError("no such column: nonesuch")
    wrong.__cause__ = psycopg.errors.UndefinedColumn()
    assert not database.is_away(wrong)


def test_an_outage_is_one_line_without_a_traceback():
    try:
        raise OperationalError("database is locked" if connection.vendor == "sqlite" else "connection refused")
    except OperationalError:
        record = logging.LogRecord("django.request", logging.ERROR, "", 1, "Error: %s", ("/",), sys.exc_info())
    logs.NoTraceback().filter(record)
    assert record.exc_info is None
    assert record.getMessage().startswith("Error: /: ")
