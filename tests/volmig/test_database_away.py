"""A database that is away: one line for each outage, growing pauses, and an end where waiting does not help."""

import logging
from types import SimpleNamespace

import pytest
from django.db import DataError, IntegrityError, OperationalError, ProgrammingError

from jobs.worker import watcher as watch
from volmig import database

REFUSED = 'connection failed: connection to server at "::1", port 5432 failed: Connection refused'


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(database, "monotonic", lambda: clock.now)
    return clock


class Server:
    """One that answers with these errors, one after the other, and lets people in then."""

    def __init__(self, monkeypatch, clock, *errors, vendor="postgresql"):
        self.errors, self.clock, self.pauses = list(errors), clock, []
        monkeypatch.setattr(database, "fault", self.fault)
        monkeypatch.setattr(database, "connection", SimpleNamespace(vendor=vendor, settings_dict={"NAME": "volmig"}))

    def fault(self):
        return OperationalError(self.errors.pop(0)) if self.errors else None

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.clock.now += seconds


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "volmig.database"]


def test_a_server_that_is_away_is_waited_for_with_growing_pauses_and_few_lines(monkeypatch, clock, caplog):
    server = Server(monkeypatch, clock, *[REFUSED] * 20)
    database.wait("up web", server.sleep)
    assert server.pauses[:6] == [0.5, 1, 2, 4, 8, 15]
    assert set(server.pauses[6:]) == {15}
    said = lines(caplog)
    assert said[0] == f"up web: waiting for the database: {REFUSED}"
    assert said[-1] == f"up web: the database responds again after {sum(server.pauses):.0f} s."
    assert len(said) <= 2 + sum(server.pauses) / database.SAY_AGAIN


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "volmig"',
        'FATAL:  database "volmik" does not exist',
        'FATAL:  role "volmik" does not exist',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "volmig", database "volmig", no encryption',
        "fe_sendauth: no password supplied",
    ],
)
def test_an_address_that_is_wrong_is_reported_and_ends_the_wait_after_a_minute(monkeypatch, clock, caplog, said):
    server = Server(monkeypatch, clock, *[said] * 100)
    with pytest.raises(database.Unusable, match="VOLMIG_DB is wrong"):
        database.wait("up web", server.sleep)
    assert said.replace("  ", " ") in lines(caplog)[0]
    assert database.PATIENCE < sum(server.pauses) < 2 * database.PATIENCE


@pytest.mark.parametrize(
    "said", ["FATAL:  the database system is starting up", "FATAL:  sorry, too many clients already", REFUSED]
)
def test_a_server_that_is_starting_or_full_is_waited_for_without_end(monkeypatch, clock, said):
    server = Server(monkeypatch, clock, *[said] * 500)
    database.wait("up web", server.sleep)
    assert len(server.pauses) == 500


def test_a_role_that_is_made_meanwhile_is_let_in(monkeypatch, clock):
    server = Server(monkeypatch, clock, 'FATAL:  database "volmig" does not exist')
    database.wait("up web", server.sleep)
    assert server.pauses == [0.5]


def test_a_file_that_cannot_be_opened_is_not_waited_for(monkeypatch, clock):
    server = Server(monkeypatch, clock, "unable to open database file", vendor="sqlite")
    with pytest.raises(database.Unusable, match="volmig cannot be opened: unable to open database file"):
        database.wait("up web", server.sleep)


def test_a_process_that_is_asked_to_stop_does_not_wait_on(monkeypatch, clock):
    Server(monkeypatch, clock, *[REFUSED] * 20)
    database.wait("watcher", lambda seconds: True)


@pytest.mark.django_db
def test_an_outage_is_one_line_and_other_faults_keep_their_traceback(clock, caplog):
    outage = database.Outage("watcher")
    for _ in range(80):  # 20 s of a quarter of a second each
        assert outage.failed(OperationalError(REFUSED)) <= database.LONGEST
        clock.now += 0.25
    outage.over()
    outage.over()
    assert len(lines(caplog)) == 2
    outage.failed(IntegrityError("duplicate"))
    assert caplog.records[-1].exc_info


@pytest.mark.django_db
def test_a_statement_that_is_refused_again_and_again_is_said_once_a_minute(clock, caplog):
    outage = database.Outage("watcher")
    for _ in range(2):
        caplog.clear()
        for number in range(240):
            assert outage.failed(IntegrityError(f"Key (id)=({number}) already exists.")) <= database.LONGEST
            clock.now += 0.5
        outage.failed(ProgrammingError("no such column"))  # another fault
        said = [record.exc_info[0] for record in caplog.records if record.exc_info]
        assert said == [IntegrityError, IntegrityError, ProgrammingError]
        outage.over()


class RefusalError(IntegrityError):
    def __init__(self, table):
        super().__init__("already exists")
        self.__cause__ = CauseError(table)


class CauseError(Exception):
    sqlstate = "23505"

    def __init__(self, table):
        super().__init__(table)
        self.diag = SimpleNamespace(table_name=table, constraint_name=f"{table}_key", column_name=None)


@pytest.mark.django_db
def test_what_is_refused_in_each_turn_hides_no_refusal_of_another_table_or_place(clock, caplog):
    outage = database.Outage("watcher")

    def here():
        raise DataError("value too long")

    def there():
        raise DataError("value too long")

    for _ in range(3):
        for table in ("jobs_job", "jobs_steprun"):
            outage.failed(RefusalError(table))
        for place in (here, there):
            with pytest.raises(DataError) as caught:
                place()
            outage.failed(caught.value)
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        RefusalError, RefusalError, DataError, DataError,
    ]  # fmt: skip


class Stopping:
    """A stop signal that comes after so many waits."""

    def __init__(self, clock, turns):
        self.clock, self.turns, self.pauses = clock, turns, []

    def wait(self, seconds):
        self.pauses.append(seconds)
        self.clock.now += seconds
        self.turns -= 1
        return self.turns < 0


@pytest.mark.django_db
def test_a_watcher_whose_database_is_away_says_so_once_and_goes_on(monkeypatch, clock, caplog):
    caplog.set_level(logging.WARNING)
    watcher, turns = watch.Watcher(), []

    def turn():
        turns.append(1)
        if len(turns) <= 20:
            raise OperationalError(REFUSED)

    monkeypatch.setattr(watcher, "turn", turn)
    monkeypatch.setattr(watch, "close_old_connections", lambda: None)  # that of the test
    stop = Stopping(clock, 30)
    watcher.run(stop)
    assert len(turns) == 30
    assert lines(caplog)[0] == f"watcher: waiting for the database: {REFUSED}"
    assert "responds again" in lines(caplog)[-1]
    assert len(lines(caplog)) <= 4
    assert "Traceback" not in caplog.text
    assert stop.pauses[-1] == watch.WRITE_EVERY
