"""SQLite's files by their paths, whatever characters those have: in an address `#`, `?` and `%` mean something."""

import sqlite3
from pathlib import Path


def read_only(path: Path | str, timeout: float = 5.0) -> sqlite3.Connection:
    """Opens the file `path`, which it neither makes nor changes; waits `timeout` seconds for a lock.

    Raises sqlite3.OperationalError where there is none.
    """
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=timeout)
