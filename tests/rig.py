"""What a checkout starts at most once, a storage lab or a control plane: who holds it, and what it knows of itself."""

import fcntl
import hashlib
import json
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"
KEPT = ("lock", "held")  # in use by others while the rest is cleared


class Rig:
    """`name` comes from the folder's path, so two checkouts do not collide; `what` is it in sentences."""

    def __init__(self, checkout: Path, prefix: str, cache: str, what: str) -> None:
        self.folder, self.what = checkout / ".cache" / cache, what
        self.name = f"{prefix}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:6]}"

    @property
    def number(self) -> int:
        """From 0 to 399, by the checkout's path: where to look first for ports that are free."""
        return int(self.name[-6:], 16) % 400

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it to oneself for a session or a demo; waits, saying so, while another process holds it."""
        with self._file("held") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits = f"another session of this checkout holds the {self.what}; waiting for it to end"
                print(waits, file=sys.stderr, flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    # Within

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """While it is started or ended."""
        with self._file("lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _state(self) -> dict[str, object]:
        """What was remembered since the folder was cleared."""
        try:
            return dict(json.loads((self.folder / "state.json").read_text()))
        except FileNotFoundError:
            return {}

    def _remember(self, **facts: object) -> None:
        part = self.folder / "state.json.part"
        part.write_text(json.dumps({**self._state(), **facts}))
        part.replace(self.folder / "state.json")

    def _clear_folder(self) -> None:
        empty(self.folder, KEPT)

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("w") as handle:
            yield handle.fileno()


def empty(folder: Path, kept: Iterable[str]) -> None:
    """Remove what a folder holds, except some."""
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free(ports: Iterable[int]) -> bool:
    """Whether nothing listens on any of these ports of the loopback address."""
    for port in ports:
        with socket.socket() as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                attempt.bind((LOOPBACK, port))
            except OSError:
                return False
    return True


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as found:
        found.bind((LOOPBACK, 0))
        return int(found.getsockname()[1])
