"""App configuration of the record, and the database triggers that refuse to change it."""

from typing import Any

from django.apps import AppConfig
from django.db import connections
from django.db.models.signals import post_migrate

NAMES = ("record_event_no_update", "record_event_no_delete")
SQLITE = """CREATE TRIGGER IF NOT EXISTS {name} BEFORE {act} ON record_event
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"""
FUNCTION = """CREATE OR REPLACE FUNCTION record_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"""
POSTGRESQL = """
DROP TRIGGER IF EXISTS record_event_no_update ON record_event;
DROP TRIGGER IF EXISTS record_event_no_delete ON record_event;
CREATE TRIGGER record_event_no_update BEFORE UPDATE OR DELETE ON record_event
  FOR EACH ROW EXECUTE FUNCTION record_refuse();
CREATE TRIGGER record_event_no_delete BEFORE TRUNCATE ON record_event
  FOR EACH STATEMENT EXECUTE FUNCTION record_refuse()
"""
THERE = (
    "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'record_event'::regclass AND tgname = ANY(%s) AND tgenabled = 'O'"
)


class RecordConfig(AppConfig):
    """The audit log; its table refuses changes by triggers."""

    name = "volmig.record"

    def ready(self) -> None:
        """Renews the triggers after every migration of the database."""
        # After every migration, because SQLite's table rebuild (any AlterField) silently drops triggers.
        post_migrate.connect(make_triggers, sender=self)


def make_triggers(using: str = "default", **_: Any) -> None:
    """Makes the triggers that refuse UPDATE, DELETE and (PostgreSQL) TRUNCATE of events; may be called again."""
    connection = connections[using]
    if "record_event" not in connection.introspection.table_names():
        return
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(FUNCTION)
            cursor.execute(THERE, [list(NAMES)])
            # Making one waits until nobody reads the table, and holds all writers up until then.
            if cursor.fetchone()[0] < len(NAMES):
                cursor.execute(POSTGRESQL)
            return
        for name, act in zip(NAMES, ("UPDATE", "DELETE"), strict=True):
            cursor.execute(SQLITE.format(name=name, act=act))


def drop_triggers(using: str = "default") -> None:
    """Removes the triggers; only for tests, which empty tables between themselves."""
    connection = connections[using]
    table = " ON record_event" if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        for name in NAMES:
            cursor.execute(f"DROP TRIGGER IF EXISTS {name}{table}")
