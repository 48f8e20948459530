"""Stands before the APIs as clients see them: passes requests on, counts them, and fails as a test commands.

    python proxy.py FOLDER NAMESPACE API:PORT:ADDRESS:PORT…

It listens on loopback where it was started, and finds the APIs in the network namespace, if one is named.

FOLDER/faults.json is read at each request: a list of objects, of which the first that fits is obeyed.

| key                   | meaning                                                                                  |
|-----------------------|------------------------------------------------------------------------------------------|
| id                    | a name that is used once                                                                 |
| api, method, path     | what it is about; path is a regular expression to be found in path and query; all optional |
| times                 | after so many requests it is over; without it, it lasts until it is removed              |
| status                | answer that status without asking the API                                                |
| drop                  | "request": close the connection unasked; "answer": ask, then close without passing it on |
| seconds               | be that slow before passing the request on                                               |
| hold                  | pass the request on only when the fault has been removed                                 |

FOLDER/calls.jsonl gets a line for each request when it arrives.
"""

import ctypes
import json
import os
import re
import sys
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}


class Faults:
    """What the test commands at present."""

    def __init__(self, file: Path) -> None:
        self.file, self.used, self.lock = file, dict[str, int](), threading.Lock()

    def now(self) -> list[dict]:
        try:
            return json.loads(self.file.read_text())
        except FileNotFoundError:
            return []

    def take(self, api: str, method: str, path: str) -> dict:
        """The fault that this request meets; an empty one if none."""
        with self.lock:
            for fault in self.now():
                fits = fault.get("api", api) == api and fault.get("method", method) == method
                used = self.used.get(fault["id"], 0)
                if fits and re.search(fault.get("path", ""), path) and used < fault.get("times", used + 1):
                    self.used[fault["id"]] = used + 1
                    return fault
        return {}

    def stands(self, fault: dict) -> bool:
        return any(other["id"] == fault["id"] for other in self.now())


class Handler(BaseHTTPRequestHandler):
    """One connection of a client; `server` knows the API that it stands for."""

    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True

    def relay(self) -> None:
        body = self.body()
        self.server.note(self.command, self.path)
        fault = self.server.faults.take(self.server.api, self.command, self.path)
        if fault.get("drop") == "request":
            self.close_connection = True
        elif "status" in fault:
            self.answer(fault["status"], [("Content-Type", "text/plain")], b"as the test commands\n")
        else:
            self.delay(fault)
            status, headers, content = self.ask(body)
            if fault.get("drop") == "answer":
                self.close_connection = True
            else:
                self.answer(status, headers, content)

    def body(self) -> bytes:
        """What the client sends, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # what may follow the last chunk
            pass
        return b"".join(chunks)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = relay  # noqa: N815

    def delay(self, fault: dict) -> None:
        time.sleep(fault.get("seconds", 0))
        while fault.get("hold") and self.server.faults.stands(fault):
            time.sleep(0.02)

    def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        api = HTTPConnection(*self.server.target, timeout=300)
        try:
            # The client's Host stays: from it the APIs make the links that they hand out.
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            api.request(self.command, self.path, body or None, headers)
            answer = api.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, HTTPException) as error:
            return 502, [("Content-Type", "text/plain")], f"{self.server.api} is not there: {error}\n".encode()
        finally:
            api.close()

    def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
        for name, value in headers:
            if name.lower() not in HOP | {"content-length"}:
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """The public port of one API."""

    daemon_threads = True

    def __init__(self, api: str, port: int, target: tuple[str, int], faults: Faults, calls: int) -> None:
        self.api, self.target, self.faults, self.calls = api, target, faults, calls
        super().__init__(("127.0.0.1", port), Handler)

    def note(self, method: str, path: str) -> None:
        line = json.dumps({"at": time.time(), "api": self.api, "method": method, "path": path}) + "\n"
        os.write(self.calls, line.encode())  # one write: lines of several threads do not mix

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no news."""


def enter(namespace: str) -> None:
    """Have this thread, and those that it starts from now on, connect within a network namespace."""
    with open(f"/run/netns/{namespace}") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def main(folder: Path, namespace: str, ways: list[str]) -> None:
    calls = os.open(folder / "calls.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    faults = Faults(folder / "faults.json")
    servers = []
    for way in ways:
        api, port, address, target = way.split(":")
        servers.append(Server(api, int(port), (address, int(target)), faults, calls))
    if namespace:
        enter(namespace)
    for server in servers:
        threading.Thread(target=server.serve_forever).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
