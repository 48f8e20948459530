"""Live connections are opened by volmig's own pages: the same scheme, name and port."""

import asyncio

import pytest
from asgiref.testing import ApplicationCommunicator

from volmig.same_origin import SameOrigin


async def accept(scope, receive, send):
    await send({"type": "websocket.accept"})


def answer(origin, host="volmig.example.org:8000", scheme="ws"):
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin is not None else [])

    async def opened():
        scope = {"type": "websocket", "path": "/", "scheme": scheme, "headers": headers, "subprotocols": []}
        connection = ApplicationCommunicator(SameOrigin(accept), scope)
        await connection.send_input({"type": "websocket.connect"})
        return (await connection.receive_output(60))["type"]

    return asyncio.run(opened()) == "websocket.accept"


@pytest.fixture(autouse=True)
def _site(settings):
    settings.ALLOWED_HOSTS = ["volmig.example.org", "127.0.0.1", "[::1]"]


@pytest.mark.parametrize(
    ("origin", "host", "scheme"),
    [
        ("http://volmig.example.org:8000", "volmig.example.org:8000", "ws"),
        ("http://volmig.example.org", "volmig.example.org", "ws"),
        ("http://volmig.example.org:80", "volmig.example.org", "ws"),
        ("https://volmig.example.org", "volmig.example.org", "wss"),
        ("http://127.0.0.1:8123", "127.0.0.1:8123", "ws"),
        ("http://[::1]:8123", "[::1]:8123", "ws"),
    ],
)
def test_a_page_of_volmig_opens_one(origin, host, scheme):
    assert answer(origin, host, scheme)


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "",
        "null",
        "http://volmig.example.org:9999",
        "http://volmig.example.org",
        "https://volmig.example.org:8000",
        "http://volmig.example.org.evil.example:8000",
        "http://evil.example:8000",
        "http://127.0.0.1:8000",
        "http://volmig.example.org:port",
        "http://volmig.example.org:99999",
        "volmig.example.org:8000",
    ],
)
def test_no_other_page_does(origin):
    assert not answer(origin)


@pytest.mark.parametrize("host", ["evil.example", ".example.org", "", "volmig.example.org:8000@evil.example"])
def test_a_host_that_is_not_volmigs_has_no_pages(host):
    assert not answer(f"http://{host}", host)


def test_the_public_address_counts_where_a_proxy_renames_the_host(settings):
    settings.CSRF_TRUSTED_ORIGINS = ["https://public.example.org"]
    assert answer("https://public.example.org")
    assert not answer("http://public.example.org")
    assert not answer("https://public.example.org:444")
