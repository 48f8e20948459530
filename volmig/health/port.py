"""A port that serves /metrics and nothing else, in whichever process of the machine binds it first."""

import errno
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from prometheus_client.exposition import ThreadingWSGIServer

log = logging.getLogger(__name__)
metrics = import_module(settings.METRICS)
Start = Callable[[str, list[tuple[str, str]]], Any]


class Quiet(WSGIRequestHandler):
    """Without a line for each request; gives up on a client that sends nothing."""

    timeout = 10

    def log_message(self, *_: Any) -> None:
        """Nothing: Prometheus asks every few seconds."""
        return


class Server6(ThreadingWSGIServer):
    """The same server on IPv6."""

    address_family = socket.AF_INET6


def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """WSGI (PEP 3333): /metrics and nothing else."""
    status, kind, body = answer(environ)
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def answer(environ: dict[str, Any]) -> tuple[str, str, bytes]:
    """Status line, content type and body for a request of Prometheus; 401 without the token."""
    if environ.get("PATH_INFO") != "/metrics" or environ.get("REQUEST_METHOD") != "GET":
        return "404 Not Found", "text/plain", b"/metrics is here, and nothing else.\n"
    if not metrics.may_read(environ.get("HTTP_AUTHORIZATION", "")):
        return "401 Unauthorized", "text/plain", b"A token is required.\n"
    try:
        return "200 OK", metrics.CONTENT_TYPE, metrics.exposition()
    except (DatabaseError, InterfaceError):
        return "503 Service Unavailable", "text/plain", b"The database does not respond.\n"
    finally:
        connection.close()


def serve(address: str, port: int) -> ThreadingWSGIServer | None:
    """Serve in a thread; None when the port is taken, as by another process of this machine, or cannot be used."""
    try:
        kind = Server6 if ":" in address else ThreadingWSGIServer
        server: ThreadingWSGIServer = make_server(address, port, application, kind, Quiet)
    except OSError as error:
        level = logging.DEBUG if error.errno == errno.EADDRINUSE else logging.ERROR
        log.log(level, "The metrics port %s of %s could not be opened: %s", port, address, error)
        return None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("Metrics are on http://%s:%s/metrics", address, server.server_port)
    return server
