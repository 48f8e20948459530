"""Big tables are changed without stopping whoever writes into them; what would stop them is rejected here."""

import contextlib
import itertools
import threading
import time
from types import SimpleNamespace

import pytest
from django.core.management.base import CommandError
from django.db import (
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    migrations,
    models,
    transaction,
)
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

from jobs.models import Job
from tests.factories import operator
from volmig import database, online
from volmig.management.commands import up
from volmig.record import apps as record
from volmig.record.models import Event

# The last of each app that was written before this rule; they ran when the tables were small.
BEFORE = {"jobs": "0012", "record": "0005", "hosts": "0009", "accounts": "0006", "volmig": "0006", "health": "0001"}
ONLINE = (
    online.AddIndexOnline,
    online.RemoveIndexOnline,
    online.RemoveKeyIndexOnline,
    online.RemoveUnlistedIndexOnline,
    online.AddTriggersOnline,
)
SMALL = (
    migrations.CreateModel,
    migrations.RemoveConstraint,
    migrations.AlterModelOptions,
    migrations.AlterModelManagers,
)
only_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has one writer in any case")


# The rule


def faults(migration):
    """Why a migration may stop those who write into a big table; empty when it does not."""
    found = [why for operation in in_database(migration.operations) if (why := fault(migration.app_label, operation))]
    among = [isinstance(operation, ONLINE) for operation in migration.operations]
    if any(among) and (migration.atomic or not all(among)):
        found.append("online changes need a migration for themselves with atomic = False, so that it can be run again")
    return found


def in_database(operations):
    for operation in operations:
        if isinstance(operation, migrations.SeparateDatabaseAndState):
            yield from in_database(operation.database_operations)
        else:
            yield operation


def fault(app, operation):
    if isinstance(operation, migrations.RunPython | migrations.RunSQL):
        named = (app, operation.hints.get("model_name"))  # of a small table, of which it says that it changes only that
        small = named in MigrationLoader(None).project_state().models and named not in online.BIG
        background = "rows are changed in the background, some at a time (jobs/worker/archiving.py)"
        return "" if small else f"{background}, or by an online change"
    model = getattr(operation, "model_name", getattr(operation, "name", ""))
    if isinstance(operation, (*ONLINE, *SMALL)) or (app, str(model).lower()) not in online.BIG:
        return ""
    if isinstance(operation, migrations.AddIndex | migrations.RemoveIndex):
        return f"use {type(operation).__name__}Online for {operation.model_name}"
    if isinstance(operation, migrations.AddField):
        return why_no_field(operation.field)
    if isinstance(operation, migrations.RemoveField):
        return ""
    return f"{type(operation).__name__} reads or rewrites the whole table {model}"


def why_no_field(field):
    if field.unique or (field.db_index and not field.is_relation) or (field.is_relation and field.db_index):
        return f"{field.name or 'a field'} brings an index: add it without, and the index online"
    if field.generated or field.has_db_default():
        return "PostgreSQL computes it for every row: add it empty, and fill it in the background"
    return "" if field.null or field.has_default() else "it has no value for rows that are there"


def test_no_migration_stops_those_who_write_into_big_tables():
    found = {
        f"{app}.{name}": why
        for (app, name), migration in MigrationLoader(None).disk_migrations.items()
        if app in BEFORE and name[:4] > BEFORE[app] and (why := faults(migration))
    }
    assert found == {}


def test_every_big_table_is_a_model():
    state = MigrationLoader(None).project_state()
    assert set(state.models) >= online.BIG


INDEX = models.Index(fields=["ticket"], name="job_probe")
UNIQUE = models.UniqueConstraint(fields=["ticket"], name="one_ticket")


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (migrations.AddIndex("job", INDEX), "AddIndexOnline"),
        (migrations.RemoveIndex("job", "job_status"), "RemoveIndexOnline"),
        (migrations.AddConstraint("job", UNIQUE), "whole table"),
        (migrations.AlterField("job", "ticket", models.TextField()), "whole table"),
        (migrations.AddField("job", "x", models.CharField(max_length=9, default="", db_index=True)), "brings an index"),
        (migrations.AddField("job", "x", models.CharField(max_length=9, default="", unique=True)), "brings an index"),
        (
            migrations.AddField("job", "x", models.ForeignKey("jobs.Lease", models.PROTECT, null=True)),
            "brings an index",
        ),
        (migrations.AddField("job", "x", models.IntegerField(db_default=1)), "computes it"),
        (migrations.AddField("job", "x", models.IntegerField()), "no value"),
        (migrations.RunPython(migrations.RunPython.noop), "background"),
        (migrations.RunPython(migrations.RunPython.noop, hints={"model_name": "job"}), "background"),
        (migrations.RunPython(migrations.RunPython.noop, hints={"model_name": "jobs"}), "background"),
        (migrations.RunSQL("UPDATE jobs_job SET lap = 1"), "background"),
        (migrations.SeparateDatabaseAndState([migrations.AddIndex("job", INDEX)]), "AddIndexOnline"),
        (online.AddIndexOnline("job", INDEX), "atomic = False"),
    ],
)
def test_a_change_that_stops_writers_is_rejected(operation, why):
    migration = SimpleNamespace(app_label="jobs", atomic=True, operations=[operation])
    assert [each for each in faults(migration) if why in each]


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddIndex("lease", models.Index(fields=["owner"], name="lease_owner")),
        migrations.AddField("job", "x", models.DateTimeField(null=True)),
        migrations.AddField("job", "x", models.CharField(max_length=9, default="")),
        migrations.RemoveField("job", "ticket"),
        migrations.RunPython(migrations.RunPython.noop, hints={"model_name": "lease"}),
    ],
)
def test_a_change_that_stops_nobody_is_not(operation):
    assert faults(SimpleNamespace(app_label="jobs", atomic=True, operations=[operation])) == []


# What it does


@pytest.fixture
def tables(transactional_db):
    """Removes what a test has built."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX IF EXISTS job_probe")


def states(*operations):
    before = MigrationLoader(None).project_state()
    after = before.clone()
    for operation in operations:
        operation.state_forwards("jobs", after)
    return before, after


def run(operation, backwards=False):
    before, after = states(operation)
    with connection.schema_editor(atomic=False) as editor:
        if backwards:
            operation.database_backwards("jobs", editor, after, before)
        else:
            operation.database_forwards("jobs", editor, before, after)


def valid(name="job_probe"):
    """Whether the index is there and usable; None when it is not there."""
    with connection.schema_editor(atomic=False) as editor:
        return online.validity(editor, Job, name)


def test_an_index_is_built_and_removed_and_doing_it_again_is_harmless(tables):
    add = online.AddIndexOnline("job", INDEX)
    run(add)
    run(add)  # as after an interruption between this one and the note that it was done
    assert valid()
    run(add, backwards=True)
    assert valid() is None


def test_a_listed_index_is_removed_and_comes_back(tables):
    remove = online.RemoveIndexOnline("job", "job_halted")
    run(remove)
    run(remove)
    assert valid("job_halted") is None
    before, after = states(remove)
    with connection.schema_editor(atomic=False) as editor:
        remove.database_backwards("jobs", editor, after, before)
    assert valid("job_halted")


def test_the_index_of_a_key_alone_is_removed_and_no_other(tables):
    def names():
        with connection.schema_editor(atomic=False) as editor:
            return {name for name, each in online.constraints(editor, Job).items() if each["index"]}

    before, remove = names(), online.RemoveKeyIndexOnline("job", "destination")
    run(remove)
    (gone,) = before - names()
    assert "destination" in gone
    run(remove, backwards=True)
    assert names() == before


@only_postgresql
def test_an_online_change_in_a_transaction_is_refused(tables):
    with transaction.atomic(), pytest.raises(NotSupportedError, match="atomic = False"):
        run(online.AddIndexOnline("job", INDEX))


# On PostgreSQL, among others


class Other:
    """Another connection, which has a transaction open."""

    def __init__(self, *statements):
        self.database = connection.copy()
        self.cursor = self.database.cursor()
        self.cursor.execute("BEGIN")
        for statement in statements:
            self.cursor.execute(statement)

    def end(self):
        self.cursor.execute("COMMIT")
        self.database.close()


class Behind:
    """A call in a thread with its own connection, which is known by its process number."""

    def __init__(self, act):
        self.act, self.error, self.pid, self.known = act, None, 0, threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.known.wait(30)

    def _run(self):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                (self.pid,) = cursor.fetchone()
            self.known.set()
            self.act()
        except Exception as error:
            self.error = error
        finally:
            connections.close_all()

    def until_it_waits(self):
        """Until it waits for a lock; returns what it waits for and the locks that it has on the table of migrations."""
        locks = "SELECT locktype, mode, granted, relation = 'jobs_job'::regclass FROM pg_locks WHERE pid = %s"
        for _ in polls():
            with connection.cursor() as cursor:
                cursor.execute(locks, [self.pid])
                rows = cursor.fetchall()
            if waits := [(kind, mode) for kind, mode, granted, _ in rows if not granted]:
                return waits, {mode for _, mode, granted, on_job in rows if granted and on_job}
        return None

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        return self.error


def polls(seconds=60):
    until = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > until:
            raise AssertionError("it did not happen")
        if number:
            threading.Event().wait(0.02)
        yield number


def writes():
    """Writes a row as anybody does; raises OperationalError at once if a lock is in the way."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '200ms'")
        cursor.execute("UPDATE jobs_lease SET owner = owner")
        cursor.execute("LOCK TABLE jobs_job IN ROW EXCLUSIVE MODE")  # the lock of INSERT, UPDATE and DELETE


WRITES = "LOCK TABLE jobs_job IN ROW EXCLUSIVE MODE"


@only_postgresql
def test_while_an_index_is_built_everybody_writes(tables):
    other = Other(WRITES)
    building = Behind(lambda: run(online.AddIndexOnline("job", INDEX)))
    waits, held = building.until_it_waits()
    assert {kind for kind, _ in waits} == {"virtualxid"}, "it waits for a transaction, not for the table"
    assert held == {"ShareUpdateExclusiveLock"}, "the lock that conflicts with no writer"
    writes()
    other.end()
    assert building.end() is None
    assert valid()


@only_postgresql
def test_an_ordinary_index_stops_them_so_the_test_above_can_fail(tables):
    other = Other(WRITES)
    building = Behind(lambda: run(migrations.AddIndex("job", INDEX)))
    assert building.until_it_waits()[0] == [("relation", "ShareLock")]
    with pytest.raises(OperationalError, match="lock timeout"):
        writes()
    other.end()
    assert building.end() is None


def interrupted():
    """Ends the building of the index amid its work."""
    other = Other(WRITES)
    building = Behind(lambda: run(online.AddIndexOnline("job", INDEX)))
    building.until_it_waits()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [building.pid])
    assert isinstance(building.end(), OperationalError)
    other.end()
    assert valid() is False


@only_postgresql
def test_an_interrupted_index_is_built_anew_when_the_migration_is_run_again(tables):
    interrupted()
    run(online.AddIndexOnline("job", INDEX))
    assert valid()


@only_postgresql
def test_preparing_builds_an_unfinished_index_anew_and_says_so(tables):
    interrupted()
    said = []
    online.migrate(said.append)
    assert said == ["The index job_probe is incomplete: it will be rebuilt, or dropped if another replaces it."]
    assert valid()
    said.clear()
    online.migrate(said.append)
    assert said == []


@only_postgresql
def test_preparing_says_so_also_where_the_migration_itself_builds_it_anew(tables, monkeypatch):
    interrupted()
    said, before = [], []

    def migrates(*args, **more):
        before.extend(said)
        run(online.AddIndexOnline("job", INDEX))

    monkeypatch.setattr(online, "call_command", migrates)
    online.migrate(said.append)
    assert before == said, "before it begins, for it may take long"
    assert [line for line in said if "job_probe is incomplete" in line]
    assert valid()


@only_postgresql
def test_what_an_interrupted_reindex_left_is_removed(tables):
    run(online.AddIndexOnline("job", INDEX))

    def reindex():
        with connection.cursor() as cursor:
            cursor.execute("REINDEX INDEX CONCURRENTLY job_probe")

    other = Other(WRITES)
    building = Behind(reindex)
    building.until_it_waits()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [building.pid])
    building.end()
    other.end()
    assert valid("job_probe_ccnew") is False
    assert online.rebuild_unfinished() == ["job_probe_ccnew"]
    assert (valid("job_probe_ccnew"), valid()) == (None, True)


@only_postgresql
def test_a_machine_that_waits_to_prepare_does_not_hold_up_the_index(tables):
    """It would in a statement that waits for the lock: PostgreSQL then ends one of the two as a deadlock."""
    tries, asked = threading.Event(), up.try_lock

    def try_lock(cursor):
        got = asked(cursor)
        if not got:
            tries.set()
        return got

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(up, "try_lock", try_lock)
        with up.alone():
            waiting = Behind(lambda: contextlib.ExitStack().enter_context(up.alone()))
            assert tries.wait(30)
            run(online.AddIndexOnline("job", INDEX))
        assert waiting.end() is None
    assert valid()


def in_turn(act):
    """A thread that does this when nobody else prepares the database."""

    def run():
        try:
            with up.alone():
                act()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_whoever_waits_until_another_has_prepared_the_database_says_so_once(transactional_db, capsys):
    done, said = threading.Event(), ""
    with up.alone():
        other = in_turn(done.set)
        for _ in polls():
            if said := said + capsys.readouterr().out:
                break
        assert not done.is_set()
    other.join(60)
    assert done.is_set()
    said += capsys.readouterr().out
    assert said == "Another process is preparing the database or creating its first administrator. Waiting.\n"


def test_whoever_fails_while_preparing_holds_up_nobody_afterwards(transactional_db):
    with pytest.raises(CommandError), up.alone():
        raise CommandError("no administrator")
    done = threading.Event()
    in_turn(done.set).join(60)
    assert done.is_set()


@only_postgresql
def test_a_server_that_restarts_while_it_is_prepared_is_waited_for_although_it_is_back_at_once(transactional_db):
    tries = []

    def act():
        tries.append(1)
        if len(tries) == 1:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    up.when_possible("prepare", act)
    assert len(tries) == 2


@only_postgresql
def test_a_statement_that_fails_on_a_server_that_is_there_is_not_tried_again(transactional_db):
    tries = []

    def act():
        tries.append(1)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = 1")
            cursor.execute("SELECT pg_sleep(5)")

    with pytest.raises(OperationalError):
        up.when_possible("prepare", act)
    assert len(tries) == 1


@pytest.mark.parametrize(("away", "ends"), [(False, True), (True, False)])
def test_a_disk_that_stays_full_ends_the_start_and_an_outage_does_not(monkeypatch, away, ends):
    """The server lets everyone in, and refuses the same each time."""
    now, tries = [0.0], []

    class FullError(Exception):
        sqlstate = "53100"

    def act():
        tries.append(1)
        if len(tries) == 60:
            raise CommandError("it is tried for ever")
        error = OperationalError(f'database or disk is full: could not extend file "base/1/{len(tries)}"')
        error.__cause__ = FullError()
        raise error

    def pause(seconds):
        now[0] += seconds

    faults = iter([OperationalError("the server is away"), None] * 60)  # at each look, and back a moment later
    monkeypatch.setattr(up, "alone", contextlib.nullcontext)
    monkeypatch.setattr(up, "connection", SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(up, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pause))
    monkeypatch.setattr(database, "wait", lambda who: None)
    monkeypatch.setattr(database, "fault", lambda: next(faults) if away else None)
    with pytest.raises(database.Unusable if ends else CommandError, match="disk is full" if ends else "for ever"):
        up.when_possible("up all", act)
    assert (now[0] > database.PATIENCE, len(tries) < 60) == (True, ends)


@only_postgresql
def test_a_change_of_a_table_that_is_in_use_lets_the_others_pass_and_is_tried_again(tables, monkeypatch):
    """A column needs the table for a moment. Behind a long transaction all who come later would wait, too."""
    monkeypatch.setattr(online, "LOCK_SECONDS", 1)
    other, said, paused = Other(WRITES), [], threading.Event()

    def migrate(*_, **__):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE jobs_job IN ACCESS EXCLUSIVE MODE")  # as ALTER TABLE does

    def pause(_):
        paused.set()
        resumed.wait(30)

    resumed = threading.Event()
    monkeypatch.setattr(online, "call_command", migrate)
    monkeypatch.setattr(online, "time", SimpleNamespace(sleep=pause))
    preparing = Behind(lambda: online.migrate(said.append))
    assert paused.wait(60), "it gave up"
    writes()
    other.end()
    resumed.set()
    assert preparing.end() is None
    assert said == ["A long transaction uses a table that has to be changed. Retrying."] * len(said)
    assert said


ENABLE = "ALTER TABLE jobs_job ENABLE TRIGGER USER"  # a change that needs the table for a moment


@only_postgresql
def test_a_change_after_an_online_one_lets_the_others_pass_as_well(tables, monkeypatch):
    """As 0015 of jobs, in whose upgrade 0014 comes first and waits for everybody without a limit."""
    monkeypatch.setattr(online, "LOCK_SECONDS", 1)
    built, held, paused, resumed, said = *(threading.Event() for _ in range(4)), []

    def migrate(*_, **__):
        run(online.AddIndexOnline("job", INDEX))
        built.set()
        held.wait(30)
        run(online.AddTriggersOnline([ENABLE], []))

    def pause(_):
        paused.set()
        resumed.wait(30)

    monkeypatch.setattr(online, "call_command", migrate)
    monkeypatch.setattr(online, "time", SimpleNamespace(sleep=pause))
    preparing = Behind(lambda: online.migrate(said.append))
    assert built.wait(60)
    other = Other(WRITES)
    held.set()
    try:
        assert paused.wait(15), "it waits without a limit, and all writers wait behind it"
        writes()
    finally:
        other.end()
        resumed.set()
        assert preparing.end() is None
    assert said == ["A long transaction uses a table that has to be changed. Retrying."] * len(said)


def lock_timeout():
    with connection.cursor() as cursor:
        cursor.execute("SHOW lock_timeout")
        return cursor.fetchone()[0]


@only_postgresql
@pytest.mark.parametrize(
    "change",
    [
        lambda: run(online.AddIndexOnline("job", INDEX)),
        lambda: run(online.AddIndexOnline("job", INDEX), backwards=True),
        lambda: run(online.RemoveUnlistedIndexOnline("job_probe")),
        online.rebuild_unfinished,
        lambda: online.migrate(print),
    ],
)
def test_whoever_waits_without_a_limit_puts_the_limit_back(tables, monkeypatch, change):
    monkeypatch.setattr(online, "call_command", lambda *_, **__: None)
    online.set_lock_timeout("1234ms")
    try:
        change()
        assert lock_timeout() == "1234ms"
    finally:
        online.set_lock_timeout("0")


def test_an_error_that_is_no_lock_is_not_tried_again(tables, monkeypatch):
    def migrate(*_, **__):
        raise OperationalError("no such column")

    monkeypatch.setattr(online, "call_command", migrate)
    with pytest.raises(OperationalError, match="no such column"):
        online.migrate(print)


@only_postgresql
def test_triggers_that_are_there_are_left_alone(transactional_db):
    """Each start of a part makes them where they lack; making them would wait for everybody who reads events."""
    record.make_triggers()
    other = Other("SELECT 1 FROM record_event")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '200ms'")
        record.make_triggers()
    other.end()
    record.drop_triggers()


@only_postgresql
@pytest.mark.parametrize("change", ["DISABLE TRIGGER record_event_no_update", "DISABLE TRIGGER ALL"])
def test_triggers_that_somebody_disabled_are_made_anew(transactional_db, change):
    record.make_triggers()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE record_event {change}")
    record.make_triggers()
    Event.append("a test", actor=operator())
    with pytest.raises((ProgrammingError, OperationalError, Exception), match="append-only"), transaction.atomic():
        Event.objects.update(action="another")
    record.drop_triggers()


def test_state_knows_that_a_key_lost_its_index():
    state = ProjectState()
    state.models = MigrationLoader(None).project_state().models
    online.RemoveKeyIndexOnline("job", "destination").state_forwards("jobs", state)
    assert state.models["jobs", "job"].fields["destination"].db_index is False
