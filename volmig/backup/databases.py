"""The database's own tools make and read the dump: SQLite's online backup, and pg_dump and pg_restore.

A dump in a form of volmig's own would move between the two, but would have to carry over every type, sequence and
trigger without a fault, the signed audit log first of all. These tools do, are kept well, and read one snapshot while
volmig runs.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connections, transaction
from django.db.backends.postgresql.client import DatabaseClient
from django.db.utils import ConnectionHandler, DatabaseError

from volmig import sqlite

Rows = Callable[[str], list[tuple[Any, ...]]]
NAMES = {"sqlite": "database.sqlite3", "postgresql": "database.pgdump"}


class DumpError(Exception):
    """A tool failed, or is missing; the message is its own."""


def dump(directory: Path) -> tuple[str, dict[str, Any]]:
    """Writes the database into the directory; returns the vendor, and what the same snapshot says of itself."""
    connection = connections["default"]
    vendor = connection.vendor
    make = {"sqlite": _dump_sqlite, "postgresql": _dump_postgresql}[vendor]
    return vendor, make(connection, directory / NAMES[vendor])


def _dump_sqlite(connection: Any, path: Path) -> dict[str, Any]:
    source = sqlite.read_only(connection.settings_dict["NAME"], timeout=20)
    with contextlib.closing(source), contextlib.closing(sqlite3.connect(path)) as copy:
        source.backup(copy)  # in one step, hence one snapshot; writers go on in the write-ahead log meanwhile
        copy.execute("PRAGMA journal_mode=DELETE")  # one file
        check_sqlite(copy)
        found = facts(lambda query: copy.execute(query).fetchall())
    path.chmod(0o600)
    return found | {"server": sqlite3.sqlite_version}


def check_sqlite(database: sqlite3.Connection) -> None:
    """Raises DumpError when SQLite finds a fault in it."""
    try:
        said = database.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        raise DumpError(f"SQLite finds the copy damaged: {said.rstrip('.')}.")


def _dump_postgresql(connection: Any, path: Path) -> dict[str, Any]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute("SELECT pg_export_snapshot()")
        snapshot = cursor.fetchone()[0]
        found = facts(lambda query: (cursor.execute(query), cursor.fetchall())[1])
        words, environment = target(connection.settings_dict)
        command = [tool("pg_dump"), "--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
        run([*command, f"--file={path}", *words], environment)
        found["server"] = str(connection.pg_version)
    path.chmod(0o600)
    return found


def facts(rows: Rows) -> dict[str, Any]:
    """What people want to know of a dump before they restore it."""
    migrations: dict[str, list[str]] = {}
    for app, name in rows("SELECT app, name FROM django_migrations ORDER BY app, name"):
        migrations.setdefault(app, []).append(name)
    heads = rows("SELECT seq, hash FROM record_chainhead")
    jobs = rows("SELECT status, count(*) FROM jobs_job GROUP BY status ORDER BY status")
    seq, digest = heads[0] if heads else (0, "")
    return {"migrations": migrations, "events": seq, "head": digest, "jobs": dict(jobs)}


def restore_postgresql(path: Path, settings: dict[str, Any]) -> None:
    """Loads the dump into this database in one transaction: all of it, or nothing; raises DumpError."""
    words, environment = target(settings)
    options = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"]
    run([tool("pg_restore"), *options, f"--dbname={words[-1]}", *words[:-1], str(path)], environment)


def check_postgresql(path: Path) -> None:
    """Raises DumpError when pg_restore cannot read its table of contents."""
    run([tool("pg_restore"), "--list", str(path)], {})


def tables_of(settings: dict[str, Any]) -> int:
    """How many tables, views and sequences the database has; raises DumpError when it cannot be asked."""
    connection = ConnectionHandler({"default": settings})["default"]
    query = (
        "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND nspname !~ '^pg_' AND nspname <> 'information_schema'"
    )
    try:
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(query)
            return int(cursor.fetchone()[0])
    except DatabaseError as error:
        raise DumpError(f"The database cannot be reached: {one_line(str(error))}.") from error


def target(settings: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """How libpq's programs reach it: options that end with the database's name, and the environment (the password)."""
    words, environment = DatabaseClient.settings_to_cmd_args_env({"OPTIONS": {}, **settings}, [])
    return list(words[1:]), dict(environment or {})


def tool(name: str) -> str:
    """The newest of this program on this machine; PostgreSQL's refuse a server that is newer than they are."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    chosen = str(found[-1]) if found else shutil.which(name)
    if chosen is None:
        raise DumpError(f"{name} is not on this machine. Install postgresql-client, as new as the server.")
    return chosen


def run(command: list[str], environment: dict[str, str]) -> None:
    """Runs a tool of PostgreSQL; DumpError with its message when it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        said = one_line(done.stderr) or f"it ended with status {done.returncode}"
        raise DumpError(f"{Path(command[0]).name} failed: {said}.")


def one_line(text: str) -> str:
    """The message of a tool in one line, 2,000 characters at most."""
    return " ".join(text.split())[:2000].rstrip(".")
