"""SQLite's files by their paths, whatever characters those have: in an address `#`, `?` and `%` mean something."""

import sqlite3
from pathlib import Path
from typing import Any


def read_only(path: Path | str, **options: Any) -> sqlite3.Connection:
    """Opens the file `path`, which it neither makes nor changes; `options` are those of sqlite3.connect.

    Raises sqlite3.OperationalError where there is none.
    """
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, **options)
