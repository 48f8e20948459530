"""The way back: an archive is read and proved as a whole before anything of it comes to stand anywhere."""

import contextlib
import datetime as dt
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.utils import timezone

from volmig import incarnation, schema, sqlite
from volmig.backup import archive, databases


class RestoreError(Exception):
    """Nothing was written; the message says why."""


@dataclass(frozen=True)
class Proved:
    """An archive that was read to its end and is what its manifest says, unpacked in a directory of its own."""

    manifest: archive.Manifest
    directory: Path

    @property
    def about(self) -> dict[str, Any]:
        """When and where it was made, its migrations of the database, and its active migrations."""
        return self.manifest.about

    @property
    def vendor(self) -> str:
        """sqlite or postgresql."""
        return "sqlite" if (self.directory / "database.sqlite3").exists() else "postgresql"

    def age(self) -> dt.timedelta:
        """How long ago it was made, by this machine's clock."""
        return timezone.now() - dt.datetime.fromisoformat(self.about["made_at"])

    def newer(self) -> list[str]:
        """Migrations of its database that this version does not have: a later version of volmig made it."""
        return [".".join(key) for key in schema.newer(self.migrations())]

    def pending(self) -> list[str]:
        """Migrations that this version will apply when it starts on it."""
        return sorted(".".join(key) for key in schema.known() - self.migrations())

    def migrations(self) -> set[tuple[str, str]]:
        """Those that its database has, as (app, name)."""
        return {(app, name) for app, names in self.about["migrations"].items() for name in names}


@contextlib.contextmanager
def proved(path: Path, identities: list[Any], beside: Path | None = None) -> Iterator[Proved]:
    """Unpacks into a 0700 directory that goes again (`beside` the target when given); raises RestoreError."""
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=beside) as name:
        try:
            with archive.opened(path, identities) as file:
                found = Proved(archive.unpack(file, Path(name)), Path(name))
            check_database(found)
            check_about(found)
        except archive.BadArchiveError as error:
            raise RestoreError(f"{path} cannot be restored. {error}") from error
        except databases.DumpError as error:
            raise RestoreError(f"{path} cannot be restored. {error}") from error
        yield found


def check_database(found: Proved) -> None:
    """RestoreError or DumpError when the copy of the database is damaged."""
    if found.vendor == "postgresql":
        return databases.check_postgresql(found.directory / "database.pgdump")
    with contextlib.closing(sqlite.read_only(found.directory / "database.sqlite3")) as copy:
        return databases.check_sqlite(copy)


def check_about(found: Proved) -> None:
    """RestoreError when the manifest lacks a field or names another kind of database."""
    try:
        found.age()
        migrations, jobs = found.about["migrations"], found.about["jobs"]
        sound = all(isinstance(name, str) for names in migrations.values() for name in names)
        sound = sound and all(isinstance(count, int) for count in jobs.values())
        sound = sound and isinstance(found.about["events"], int) and isinstance(found.about["head"], str)
        sound = sound and isinstance(found.about["made_on"], str)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise archive.BadArchiveError("Its manifest lacks fields of a backup's manifest.") from error
    if not sound:
        raise archive.BadArchiveError("Its manifest lacks fields of a backup's manifest.")
    if found.about.get("vendor") != found.vendor:
        raise archive.BadArchiveError("Its manifest names a different kind of database than the backup contains.")


def into(path: Path, identities: list[Any], directory: Path, database: dict[str, Any] | None) -> Proved:
    """Makes `directory` a data directory, and fills `database` (settings) when the archive is PostgreSQL's.

    Raises RestoreError with nothing written. What was restored starts in read-only mode.
    """
    refuse_used(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with proved(path, identities, beside=directory.parent) as found:
        refuse_unfit(found, database)
        made = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))  # 0700
        try:
            lay_out(found, made)
            incarnation.mark_restored(
                made, f"It was restored from a backup of {found.about['made_at'][:19]} UTC, {path.name}."
            )
            if database is not None:
                databases.restore_postgresql(found.directory / "database.pgdump", database)
            made.replace(directory)  # over an empty directory, or none
        except databases.DumpError as error:
            raise RestoreError(f"The database was not restored. {error}") from error
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return found


def refuse_used(directory: Path) -> None:
    """RestoreError unless the directory is new or empty."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise RestoreError(f"{directory} is not a directory.")
    if directory.is_dir() and any(directory.iterdir()):
        raise RestoreError(f"{directory} is not empty. Restore into a new directory; nothing is ever written over.")


def refuse_unfit(found: Proved, database: dict[str, Any] | None) -> None:
    """RestoreError for a backup of a later version, or without the right place for its database."""
    if newer := found.newer():
        said = f"{newer[0]} and {len(newer) - 1} more" if len(newer) > 1 else newer[0]
        raise RestoreError(f"A later version of volmig made this backup ({said}). Install that version, then restore.")
    if found.vendor == "postgresql" and database is None:
        raise RestoreError(
            "It is a backup of PostgreSQL: name an empty database as well (--into DIRECTORY postgres://…)."
        )
    if found.vendor == "sqlite" and database is not None:
        raise RestoreError("It is a backup of SQLite, which is a file in the data directory: name only the directory.")
    try:
        if database is not None and (count := databases.tables_of(database)):
            raise RestoreError(
                f"That database is not empty: it has {count} tables, views and sequences. Create a new one."
            )
    except databases.DumpError as error:
        raise RestoreError(str(error)) from error


def lay_out(found: Proved, made: Path) -> None:
    """The proved files where volmig expects them."""
    if (found.directory / "data").is_dir():
        shutil.copytree(found.directory / "data", made, dirs_exist_ok=True)
    if found.vendor == "sqlite":
        shutil.copyfile(found.directory / "database.sqlite3", made / "db.sqlite3")
    for name, kept in (("audit_heads", "audit_heads"), ("settings.json", "restored-settings.json")):
        if (found.directory / name).exists():
            shutil.copyfile(found.directory / name, made / kept)
    for path in made.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
