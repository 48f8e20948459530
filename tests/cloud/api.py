"""One API as clients reach it, through the proxy: its requests counted, its failures as a test commands them."""

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """A request that arrived at the proxy; `at` in seconds since 1970, `path` with its query."""

    at: float
    api: str
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.api} {self.method} {self.path}"


class Api:
    """One of identity, placement, compute, image and network.

    Each fault may be limited to a method, to a path (a regular expression, found in path and query) and to a number
    of requests (times); else all requests meet it until `heal`.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def answer(self, status: int, **limits: Any) -> None:
        """Answer with a status of our own, without asking the API."""
        self._fault(status=status, **limits)

    def drop(self, **limits: Any) -> None:
        """Close connections without a word; the API hears nothing."""
        self._fault(drop="request", **limits)

    def lose_answers(self, **limits: Any) -> None:
        """Let the API act, and close the connection instead of passing its answer on."""
        self._fault(drop="answer", **limits)

    def slow(self, seconds: float, **limits: Any) -> None:
        """Take so many seconds longer."""
        self._fault(seconds=seconds, **limits)

    @contextlib.contextmanager
    def held(self, **limits: Any) -> Iterator[None]:
        """Keep requests waiting until the block ends."""
        mine = self._fault(hold=True, **limits)
        try:
            yield
        finally:
            self._write([fault for fault in self._read() if fault["id"] != mine])

    def heal(self) -> None:
        """End this API's faults."""
        self._write([fault for fault in self._read() if fault["api"] != self.name])

    def _fault(self, **fault: Any) -> str:
        own = str(uuid.uuid4())
        self._write([*self._read(), {"id": own, "api": self.name, **fault}])
        return own

    def _read(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.folder / "faults.json").read_text()))
        except FileNotFoundError:
            return []

    def _write(self, faults: list[dict[str, Any]]) -> None:
        part = self.folder / "faults.json.part"
        part.write_text(json.dumps(faults))
        part.replace(self.folder / "faults.json")


class Calls:
    """The requests that arrive at the proxy while a block runs: `with plane.counted() as calls: …; len(calls)`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "calls.jsonl"
        self.begin, self.end = self._size(), 0

    def finish(self) -> None:
        self.end = self._size()

    def __iter__(self) -> Iterator[Call]:
        with self.file.open("rb") as file:
            file.seek(self.begin)
            lines = file.read((self.end or self._size()) - self.begin).splitlines()
        return (Call(**json.loads(line)) for line in lines)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def of(self, *apis: str) -> list[Call]:
        """Those that went to certain APIs."""
        return [call for call in self if call.api in apis]

    def counts(self) -> Counter[str]:
        """How many of each kind, `compute POST /v2.1/servers/{id}/action`."""
        return Counter(f"{call.api} {call.method} {_general(call.path)}" for call in self)

    def _size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0


def _general(path: str) -> str:
    """A path without what tells one server from another."""
    words = path.partition("?")[0].split("/")
    return "/".join("{id}" if len(word) >= 32 and set(word) <= set("0123456789abcdef-") else word for word in words)
