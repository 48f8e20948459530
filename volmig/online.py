"""Changes of big tables that stop no writer: what migrations use for tables that grow with the history.

PostgreSQL builds and drops these indexes CONCURRENTLY, which no transaction can contain: such a migration has
`atomic = False` and nothing else in it. When it is interrupted it is simply run again: what was done is left, and an
index that PostgreSQL calls invalid is built anew. SQLite has one writer anyway and makes ordinary indexes.
tests/volmig/test_online.py rejects a migration that changes a big table in another way.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.management import call_command
from django.db import NotSupportedError, OperationalError, connection
from django.db.migrations.operations import AddIndex, RemoveIndex
from django.db.migrations.operations.base import Operation
from django.db.models import ForeignKey

from volmig.database import AWAY, is_postgresql

# As (app, model): a row for each migration or event at least. Nothing is ever deleted from them.
BIG = {
    ("jobs", "approval"),
    ("jobs", "archive"),
    ("jobs", "decision"),
    ("jobs", "footprint"),
    ("jobs", "job"),
    ("jobs", "steprun"),
    ("jobs", "word"),
    ("record", "event"),
}
UNFINISHED = """SELECT indexrelid::regclass::text, relname FROM pg_index
  JOIN pg_class ON pg_class.oid = indexrelid
 WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace ORDER BY 2"""
LOCK_NOT_AVAILABLE = "55P03"
NO_LIMIT = "0"  # as PostgreSQL's lock_timeout has it
LOCK_SECONDS = 2  # for which a change of a table may hold up those who come after it
PAUSE_SECONDS = 5  # in which they go on
TEMPORARY = ("_ccnew", "_ccold")  # of REINDEX CONCURRENTLY, perhaps with a number


class AddIndexOnline(AddIndex):
    """AddIndex for a big table."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Builds the index concurrently; an incomplete one of that name is dropped first."""
        refuse_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        valid = validity(schema_editor, model, self.index.name)
        if valid is False:
            drop(schema_editor, self.index.name)
        if not valid:
            online = {"concurrently": True} if is_postgresql() else {}
            with waits_for_locks(NO_LIMIT):
                schema_editor.add_index(model, self.index, **online)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drops the index concurrently."""
        refuse_transaction(schema_editor)
        drop(schema_editor, self.index.name)


class RemoveIndexOnline(RemoveIndex):
    """RemoveIndex for a big table."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drops the index concurrently; it may be gone already."""
        refuse_transaction(schema_editor)
        drop(schema_editor, self.name)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Builds the index again, concurrently."""
        model = to_state.models[app_label, self.model_name_lower]
        AddIndexOnline(self.model_name, model.get_index_by_name(self.name)).database_forwards(
            app_label, schema_editor, from_state, to_state
        )


class RemoveUnlistedIndexOnline(Operation):
    """Removes an index that no model lists: an earlier migration made it in plain SQL, for PostgreSQL alone."""

    reversible = False

    def __init__(self, name: str) -> None:
        self.name = name

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing: Django's models never had this index."""
        pass

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drops the index concurrently; it may be gone already."""
        refuse_transaction(schema_editor)
        drop(schema_editor, self.name)

    def describe(self) -> str:
        """The line that migrate prints."""
        return f"Remove the index {self.name}"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """For Django's writer of migrations."""
        return self.__class__.__name__, [], {"name": self.name}


class AddTriggersOnline(Operation):
    """Triggers on big tables of PostgreSQL; SQLite gets none.

    `make` and `drop` are statements that can be run again. Each is a transaction for itself: a new trigger keeps those
    who write into its table waiting, but for no longer than that one statement takes.
    """

    reversible = True

    def __init__(self, make: list[str], drop: list[str]) -> None:
        self.make, self.drop = make, drop

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Nothing: Django's models do not have triggers."""
        pass

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Creates the triggers, waiting two seconds at most for the table's lock."""
        self._run(schema_editor, self.make)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drops the triggers, waiting two seconds at most for the table's lock."""
        self._run(schema_editor, self.drop)

    def _run(self, schema_editor: Any, statements: list[str]) -> None:
        refuse_transaction(schema_editor)
        for each in statements if is_postgresql() else ():
            schema_editor.execute(each)

    def describe(self) -> str:
        """The line that migrate prints."""
        return "Add triggers"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """For Django's writer of migrations."""
        return self.__class__.__name__, [], {"make": self.make, "drop": self.drop}


class RemoveKeyIndexOnline(Operation):
    """Removes the index that Django makes for a foreign key, where another index begins with the same column."""

    reduces_to_sql = True
    reversible = True

    def __init__(self, model_name: str, name: str) -> None:
        self.model_name, self.name = model_name, name

    def state_forwards(self, app_label: str, state: Any) -> None:
        """The foreign key without the index that Django gives it."""
        key = (app_label, self.model_name.lower())
        field = state.models[key].fields[self.name].clone()
        field.db_index = False
        state.alter_field(*key, self.name, field, preserve_default=True)

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Drops the key's index concurrently; the constraint stays."""
        refuse_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        for name in self._names(schema_editor, model):
            drop(schema_editor, name)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Builds the key's index again, concurrently."""
        refuse_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self._names(schema_editor, model):
            field = model._meta.get_field(self.name)
            online = {"concurrently": True} if is_postgresql() else {}
            with waits_for_locks(NO_LIMIT):
                schema_editor.execute(schema_editor._create_index_sql(model, fields=[field], **online))

    def _names(self, schema_editor: Any, model: Any) -> list[str]:
        """Indexes of this column alone that no constraint needs."""
        field: ForeignKey[Any, Any] = model._meta.get_field(self.name)
        return sorted(
            name
            for name, each in constraints(schema_editor, model).items()
            if each["columns"] == [field.column] and each["index"] and not each["unique"]
            if name not in {index.name for index in model._meta.indexes}
        )

    def describe(self) -> str:
        return f"Remove the index of {self.name} alone from {self.model_name}"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return self.__class__.__name__, [], {"model_name": self.model_name, "name": self.name}


def refuse_transaction(schema_editor: Any) -> None:
    """NotSupportedError in a transaction: PostgreSQL builds no index concurrently there."""
    if schema_editor.connection.in_atomic_block and is_postgresql():
        raise NotSupportedError("A big table is changed outside of transactions: set atomic = False.")


def constraints(schema_editor: Any, model: Any) -> dict[str, dict[str, Any]]:
    with schema_editor.connection.cursor() as cursor:
        found: dict[str, dict[str, Any]] = schema_editor.connection.introspection.get_constraints(
            cursor, model._meta.db_table
        )
    return found


def validity(schema_editor: Any, model: Any, name: str) -> bool | None:
    """Whether the index is there and complete; None when it is not there."""
    if not is_postgresql():
        return True if name in constraints(schema_editor, model) else None
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [name])
        row = cursor.fetchone()
    return row and bool(row[0])


def drop(schema_editor: Any, name: str) -> None:
    """Drops an index without blocking writers, if it is there."""
    online = "CONCURRENTLY " if is_postgresql() else ""
    with waits_for_locks(NO_LIMIT):
        schema_editor.execute(f"DROP INDEX {online}IF EXISTS {schema_editor.quote_name(name)}")


@contextmanager
def waits_for_locks(longest: str) -> Iterator[None]:
    """Within it, a statement on PostgreSQL waits for a lock for so long at most; afterwards for as long as before.

    What is built or dropped online holds nobody up, and has to wait for every transaction that goes on: NO_LIMIT.
    """
    if not is_postgresql():
        yield
        return
    before = set_lock_timeout(longest)
    try:
        yield
    finally:
        with suppress(*AWAY):  # with the connection the limit is gone, too; what ended it is raised already
            set_lock_timeout(before)


def set_lock_timeout(value: str) -> str:
    """Sets it for this connection; returns what it was."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout')")
        before: str = cursor.fetchone()[0]
        cursor.execute("SELECT set_config('lock_timeout', %s, false)", [value])
    return before


def migrate(say: Callable[[str], None]) -> None:
    """Brings the tables up to date. A change that waits for a lock on a table, behind a backup or a long query, makes
    all who come after it wait, too: it gives up after a moment, lets them pass, and is tried again.

    Says which indexes an interruption had left unfinished, whether their migration or `rebuild_unfinished` mends them:
    either may take long.
    """
    for _, name in unfinished():
        say(f"The index {name} is incomplete: it will be rebuilt, or dropped if another replaces it.")
    while True:
        try:
            with waits_for_locks(f"{LOCK_SECONDS}s"):
                call_command("migrate", interactive=False, verbosity=0)
            rebuild_unfinished()
            return
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", "") != LOCK_NOT_AVAILABLE:
                raise
            say("A long transaction uses a table that has to be changed. Retrying.")
            time.sleep(PAUSE_SECONDS)


def unfinished() -> list[tuple[str, str]]:
    """Indexes whose building was interrupted, as SQL names them and by their names. PostgreSQL alone leaves such: they
    cost at each write and are used by no query."""
    if not is_postgresql():
        return []
    with connection.cursor() as cursor:
        cursor.execute(UNFINISHED)
        found: list[tuple[str, str]] = cursor.fetchall()
    return found


def rebuild_unfinished() -> list[str]:
    """Builds them anew, or removes them where another takes their place; returns their names."""
    found = unfinished()
    with waits_for_locks(NO_LIMIT), connection.cursor() as cursor:
        for quoted, name in found:
            is_temporary = any(part in name for part in TEMPORARY)
            cursor.execute(f"{'DROP' if is_temporary else 'REINDEX'} INDEX CONCURRENTLY {quoted}")
    return [name for _, name in found]
