"""volmig's parts as real processes, each with its host name and data directory, as on a machine."""

import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from tests.family import end_all

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"
SHARED = ("audit_key", "evidence_key", "sealing_keys")  # keys that every machine needs
KEYS = {"secret_key", "factor_key", "seal_key", "worker_key", "ssh_key", *SHARED}
PATIENCE = 120  # seconds until what was asked to stop is killed; `up` allows its children 30
NAMED = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']
CONTAINED = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", *NAMED[2:]]


@cache
def can_have_names() -> bool:
    """Whether a process can be given its own host name, as root can."""
    return subprocess.run(["unshare", "--uts", "true"], capture_output=True).returncode == 0


class Machine:
    """A host name and a data directory; what runs there has the database in common with others.

    A `contained` one has its own process IDs as well, as a container has: its supervisor is process 1.
    """

    def __init__(self, root: Path, name: str, database: str, folder: str = "", contained: bool = False, **more: str):
        self.name, self.data, self.contained = name, root / (folder or name), contained
        self.data.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("VOLMIG_")}
        self.environment = {**kept, "VOLMIG_DATA": str(self.data), "VOLMIG_DB": database, **more}
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *words: str, contained: bool = False) -> list[str]:
        command = [sys.executable, *words]
        return [*(CONTAINED if contained else NAMED), self.name, *command] if can_have_names() else command

    def run(self, *words: str, typed: str = "", status: int = 0) -> str:
        """What Python prints with these arguments."""
        done = subprocess.run(
            self.command(*words), cwd=ROOT, env=self.environment, input=typed, text=True, capture_output=True
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def manage(self, *words: str, typed: str = "", status: int = 0) -> str:
        """What a command prints."""
        return self.run("manage.py", *words, typed=typed, status=status)

    def up(self, part: str, *words: str, **more: str) -> "subprocess.Popen[bytes]":
        with self.log_file(part).open("ab") as log:
            process = subprocess.Popen(
                self.command("manage.py", "up", part, *words, contained=self.contained),
                cwd=ROOT,
                env={**self.environment, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started[part] = process
        return process

    def log_file(self, part: str) -> Path:
        """Beside the data directory: a test that fills its disk still reads what was said of that."""
        return self.data.parent / f"{self.data.name}-{part}.log"

    def log(self, part: str) -> str:
        return self.log_file(part).read_text()

    def refused(self, part: str) -> str:
        """What `up` says of a machine that must not start; it makes nothing but its lock and its directory."""
        before = keys_in(self.data)
        assert self.up(part).wait(120) == 1, self.log(part)
        assert keys_in(self.data) == before
        assert "Traceback" not in self.log(part)
        return self.log(part)

    def stop(self) -> None:
        end_all(self.started.values(), PATIENCE)
        self.started.clear()


def keys_in(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name in KEYS}


def until(condition: Callable[[], Any], seconds: float = 120, what: Callable[[], object] = lambda: "") -> Any:
    """What `condition` returns once that is true; what cannot be reached meanwhile is asked again."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if result := condition():
                return result
        except (OSError, psycopg.OperationalError, psycopg.errors.UndefinedTable) as error:
            last = error
        time.sleep(0.1)
    raise TimeoutError(what()) from last


def rows(address: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(address) as connection:
        return connection.execute(query, values or None).fetchall()


def fetched(port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return int(answer.status)


def logged_in(port: int, name: str = "ada") -> urllib.request.OpenerDirector:
    """A browser of this person; cookies are a host's, whatever its port."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    login = f"http://127.0.0.1:{port}/login/"
    page = browser.open(login, timeout=20).read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]  # type: ignore[index]
    typed = {"username": name, "password": PASSWORD, "csrfmiddlewaretoken": token}
    browser.open(login, urllib.parse.urlencode(typed).encode(), timeout=20).close()
    return browser
