"""The pretended guests of one host, and the trouble that tests want there: two files that driver and test both know."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNNING, PAUSED, SHUTDOWN, CRASHED, SUSPENDED = 1, 3, 4, 6, 7  # Nova's power states


class Files:
    """JSON files in a host's folder; each is changed under a lock and replaced whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> dict[str, Any]:
        """The content; empty where there is no file."""
        try:
            return dict(json.loads((self.folder / name).read_text()))
        except FileNotFoundError:
            return {}

    def change(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Let `change` alter the content in place."""
        with self._lock():
            content = self.read(name)
            change(content)
            part = self.folder / f"{name}.part"
            part.write_text(json.dumps(content, indent=1))
            os.replace(part, self.folder / name)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "files.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
