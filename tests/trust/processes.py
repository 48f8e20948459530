"""A volmig whose workers are real processes, on a SQLite file in a directory of its own."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from tests.family import end_all

ROOT = Path(__file__).resolve().parents[2]


class Processes:
    def __init__(self, data: Path) -> None:
        self.data = data
        # Whoever adds to PYTHONPATH what measures coverage would count these processes, too, and slow them down.
        self.environment = {**os.environ, "VOLMIG_DATA": str(data), "DJANGO_SETTINGS_MODULE": "volmig.settings"}
        self.running: list[subprocess.Popen[bytes]] = []

    def manage(self, *words: str) -> None:
        subprocess.run([sys.executable, "manage.py", *words], cwd=ROOT, env=self.environment, check=True)

    def run(self, script: str, sent: str = "") -> str:
        """What a script prints that runs after django.setup()."""
        command = [sys.executable, "-c", f"import django\ndjango.setup()\n{script}"]
        environment = {**self.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, input=sent, text=True, check=True, stdout=subprocess.PIPE
        )
        return done.stdout

    def start_workers(self) -> None:
        """Both clusters under one supervisor, as users run them."""
        with (self.data / "up.log").open("ab") as log:
            command = [sys.executable, "manage.py", "up", "workers"]
            self.running.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(self.data / "db.sqlite3", timeout=20)) as database, database:
            return database.execute(query, values).fetchall()

    def until(self, query: str, *values: object, seconds: float = 60) -> list[tuple[object, ...]]:
        """The rows of this query, once there are any."""
        end = time.monotonic() + seconds
        while not (found := self.rows(query, *values)):
            if time.monotonic() > end or any(each.poll() is not None for each in self.running):
                raise TimeoutError(f"{query}: nothing within {seconds} s\n{(self.data / 'up.log').read_text()}")
            time.sleep(0.05)
        return found

    def stop(self) -> None:
        end_all(self.running, 60)
