"""Health that is true: each answer is bad when what it is about is bad, and what is wrong is on the overview."""

import asyncio
import contextlib
import datetime as dt
import errno
import io
import json
import os
import sqlite3
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.db import OperationalError, ProgrammingError, connection, connections
from django.db.migrations.recorder import MigrationRecorder
from django.utils import timezone
from psycopg_pool import PoolTimeout

from hosts.models import Hypervisor
from hosts.remote.host import skew as clock_skew
from jobs.web import attention
from tests.fleet.beats import GIB, a_process
from volmig import database, incarnation, keys
from volmig.health import alive, heart, models, ready
from volmig.health.models import Incident, Process
from volmig.models import QueuedTask, RegisteredKey

SQLITE = connection.vendor == "sqlite"


def listed(user):
    found = attention.items(user, incarnation.read_only())
    return [(item.subject, item.kind) for item in found if item.kind == "clock" or item.kind.startswith("process-")]


# For load balancers and orchestrators


def test_live_is_answered_without_the_database(client):
    """pytest refuses every query of a test that does not ask for a database."""
    answer = client.get("/healthz/live")
    assert (answer.status_code, answer.json()) == (200, {"live": True})


@pytest.mark.django_db(transaction=True)
def test_a_machine_that_can_serve_is_ready(client):
    assert (client.get("/healthz/ready").json(), client.get("/healthz").status_code) == (
        {"ready": True, "reasons": []},
        200,
    )


def not_ready(client):
    """The reasons that ready gives; healthz is no better."""
    answer, old = client.get("/healthz/ready"), client.get("/healthz")
    assert (answer.status_code, old.status_code) == (503, 503)
    assert answer.json()["ready"] is False
    assert answer.json()["reasons"] == old.json()["reasons"]
    return answer.json()["reasons"]


@pytest.mark.django_db(transaction=True)
def test_a_database_without_the_newest_migration_is_not_ready(client):
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("health", "0001_initial")
    try:
        assert not_ready(client) == ["1 database migration is not applied: run manage.py prepare."]
    finally:
        recorder.record_applied("health", "0001_initial")


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(not SQLITE, reason="the lock is that of a file")
def test_a_database_that_takes_no_writes_is_not_ready(client, monkeypatch):
    monkeypatch.setattr(ready, "WRITE_SECONDS", 0)
    other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert not_ready(client) == [ready.NO_WRITE]
        assert client.get("/healthz").json()["database"] == "failed"
    finally:
        other.close()


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(SQLITE, reason="SQLite has no roles")
def test_a_standby_is_not_ready(client, monkeypatch):
    options = connections.settings["default"]["OPTIONS"]
    monkeypatch.setitem(options, "options", "-c default_transaction_read_only=on")
    assert not_ready(client) == [ready.NO_WRITE]


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_not_ready_and_nothing_of_it_is_disclosed(client, monkeypatch):
    monkeypatch.setitem(connections.settings["default"], "NAME", "/nowhere/secret" if SQLITE else "secret")
    monkeypatch.setattr(keys, "mine_here", lambda: ["audit_key"])  # as where keys are: their fingerprints are asked for
    [reason] = not_ready(client)
    assert reason == ready.NO_ANSWER
    assert "secret" not in client.get("/healthz/ready").content.decode()


@pytest.fixture
def full_server(transactional_db, monkeypatch):
    """PostgreSQL has no connection free for whoever comes."""
    if SQLITE:
        pytest.skip("SQLite has no connections to count")
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE one_of_many LOGIN CONNECTION LIMIT 0")
    with monkeypatch.context() as patched:
        patched.setitem(connections.settings["default"], "USER", "one_of_many")
        yield
    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE one_of_many")


def test_a_web_process_says_that_the_database_is_full_although_its_pool_does_not(client, full_server, monkeypatch):
    own, small = connections.settings["default"], {"max_size": 1, "min_size": 1, "timeout": 0.2}
    with monkeypatch.context() as pooled:
        pooled.setitem(own, "CONN_MAX_AGE", 0)  # as a pool needs
        pooled.setitem(own, "OPTIONS", {**own["OPTIONS"], "pool": small})
        assert not_ready(client) == [ready.NO_CONNECTION]


def from_the_pool():
    """What a web process gets whose pool had no connection for it in time."""
    error = OperationalError("couldn't get a connection after 2.00 sec")
    error.__cause__ = PoolTimeout(str(error))
    return error


def kinds_after(error):
    outage = database.Outage("heartbeat of web")
    outage.failed(error)
    outage.over()
    return list(Incident.objects.values_list("kind", flat=True))


def test_an_outage_that_the_pool_reports_is_what_postgresql_says_of_it(full_server):
    assert kinds_after(from_the_pool()) == ["slots"]


@pytest.mark.django_db(transaction=True)
def test_a_pool_whose_connections_are_all_in_use_is_no_outage_of_the_database():
    assert kinds_after(from_the_pool()) == []


def test_of_many_that_get_no_connection_from_the_pool_one_at_a_time_opens_its_own(monkeypatch):
    """They are beside the pool, and a server without room has none for them either."""
    under_way, most, all_at_once = [], [], threading.Barrier(3)

    class Own:
        def ensure_connection(self):
            under_way.append(1)
            most.append(len(under_way))
            with contextlib.suppress(threading.BrokenBarrierError):
                all_at_once.wait(0.5)

        def close(self):
            under_way.pop()

    monkeypatch.setattr(database, "unpooled", Own)
    threads = [threading.Thread(target=database.in_its_words, args=[from_the_pool()]) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert most == [1, 1, 1]


@pytest.mark.django_db(transaction=True)
def test_a_check_that_hangs_is_not_waited_for(client, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(ready, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(ready, "CHECKS", [lambda: ["The first is bad."], over.wait])
    try:
        assert not_ready(client) == ["The first is bad.", ready.NO_ANSWER]
    finally:
        over.set()


@pytest.mark.django_db(transaction=True)
def test_while_a_round_hangs_no_further_one_begins(client, monkeypatch):
    """Each has a thread and a connection of the database, and load balancers ask for hours."""
    over, rounds = threading.Event(), []
    monkeypatch.setattr(ready, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(ready, "FRESH", 0)
    monkeypatch.setattr(ready, "CHECKS", [lambda: rounds.append(1) or [], over.wait])
    try:
        for _ in range(5):
            assert not_ready(client) == [ready.NO_ANSWER]
        assert len(rounds) == 1
    finally:
        over.set()
        ready.last.run.end.exception(20)
    monkeypatch.setattr(ready, "CHECKS", [])
    assert client.get("/healthz/ready").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_a_disk_that_hangs_is_not_reported_as_a_database_that_does(client, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(ready, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(ready, "CHECKS", [ready.disk])
    monkeypatch.setattr(heart, "disk", lambda: over.wait() and {"disk_free": GIB})
    try:
        assert not_ready(client) == ["The data directory is not responding."]
    finally:
        over.set()
        ready.last.run.end.result(20)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [ValueError("a secret"), OSError("a path")])
def test_a_check_that_fails_itself_is_a_reason_and_no_error_page(client, monkeypatch, error):
    def fails():
        raise error

    monkeypatch.setattr(ready, "CHECKS", [fails])
    assert not_ready(client) == [ready.FAILED]


@pytest.mark.django_db(transaction=True)
def test_a_database_of_a_release_without_fingerprints_of_keys_is_not_ready_and_says_why(client, monkeypatch):
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("volmig", "0005_keys")
    monkeypatch.setattr(RegisteredKey._meta, "db_table", "volmig_of_tomorrow")
    try:
        assert not_ready(client) == ["1 database migration is not applied: run manage.py prepare."]
    finally:
        recorder.record_applied("volmig", "0005_keys")


@pytest.mark.django_db(transaction=True)
def test_many_who_ask_at_once_cause_one_round(client, monkeypatch):
    rounds = []
    monkeypatch.setattr(ready, "CHECKS", [lambda: rounds.append(1) or []])
    for _ in range(20):
        client.get("/healthz/ready")
    assert len(rounds) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", tmp_path], check=False).returncode
    ):
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.django_db(transaction=True)
def test_a_full_data_directory_is_not_ready_and_is_on_the_overview(client, ada, small_disk, settings):
    a_process("web", started_at=timezone.now(), pid_space=heart.pid_space())
    settings.DATA = small_disk
    (small_disk / "rest").write_bytes(bytes(3 << 20))
    assert not_ready(client) == ["The disk of the data directory is full: 0 MiB free."]
    Process.objects.update(pid_space=heart.pid_space())
    [item] = [item for item in attention.items(ada, None) if item.kind == "process-disk"]
    assert (item.subject, item.sentence, item.bad) == ("m1", "The disk of the data directory is full.", True)


@pytest.fixture
def failing_disk(monkeypatch):
    """The disk of the data directory answers with an error."""

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(heart.shutil, "disk_usage", fail)


@pytest.mark.django_db(transaction=True)
def test_a_data_directory_that_cannot_be_read_is_not_ready_takes_no_page_away_and_is_listed(
    client, ada, failing_disk, beating, monkeypatch
):
    beating("web")[1]()
    assert not_ready(client) == ["The data directory cannot be read."]
    assert heart.disk_is_full(), "no task is taken there"
    [item] = [item for item in attention.items(ada, None) if item.kind == "process-disk"]
    assert (item.sentence, item.bad) == ("The data directory cannot be read.", True)
    client.force_login(ada)
    assert "The data directory cannot be read." in client.get("/processes/").content.decode()
    before = attention.marks()
    monkeypatch.setattr(heart.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * GIB, total=100 * GIB))
    assert attention.marks() != before, "open pages are updated on"


# Heartbeats


@pytest.fixture
def beating():
    """Makes a heart that beats when the test wants it, in a thread as in a process of volmig."""
    made = []

    def make(part="workers", patience=None):
        one = heart.Heart(part, patience)
        made.append(one)
        return one, lambda: ready.within(20, one.beat)

    return make


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_says_who_where_and_how_much_room_there_is(beating, monkeypatch):
    monkeypatch.setattr(heart, "gauges", {"websockets": lambda: 3})
    one, beat = beating("web")
    beat()
    row = Process.objects.with_age().get()
    assert (row.part, row.pid_space, row.pid, row.late) == ("web", heart.pid_space(), os.getpid(), False)
    assert 0 < row.disk_free <= row.disk_size
    assert (row.figures, abs(row.skew) < 1) == ({"websockets": 3.0}, True)
    Process.objects.update(beaten_at=timezone.now() - dt.timedelta(seconds=60))
    beat()
    assert not Process.objects.with_age().get().late, "the same row again"
    ready.within(20, one.stop)
    assert not Process.objects.exists(), "it stopped in an orderly way"


@pytest.mark.django_db(transaction=True)
def test_a_loop_that_hangs_sends_no_heartbeat_although_its_thread_lives(beating):
    one, beat = beating(patience=5.0)
    beat()
    Process.objects.update(beaten_at=timezone.now() - dt.timedelta(seconds=60))
    one.turned -= 6
    beat()
    assert Process.objects.with_age().get().late
    one.turn()
    beat()
    row = Process.objects.with_age().get()
    assert not row.late
    assert row.figures["turn_seconds"] >= 6


@pytest.mark.django_db(transaction=True)
def test_a_web_process_whose_event_loop_hangs_sends_no_heartbeat(monkeypatch):
    monkeypatch.setenv("VOLMIG_PART", "web")
    monkeypatch.setattr(heart, "hearts", {})
    monkeypatch.setattr(heart, "TURN_EVERY", 0.01)
    monkeypatch.setattr(heart.Heart, "start", lambda self: None)  # it beats when the test wants it
    messages, rows = iter(["startup", "shutdown"]), []

    def beaten(one):
        one.beat()
        return Process.objects.count()

    async def serve():
        while not heart.hearts:
            await asyncio.sleep(0)
        [one] = heart.hearts.values()
        one.turned -= 1 + heart.LOOP_PATIENCE
        turned = one.turned
        rows.append(ready.within(20, lambda: beaten(one)))  # meanwhile the loop does nothing else
        while one.turned == turned:
            await asyncio.sleep(0)
        rows.append(ready.within(20, lambda: beaten(one)))

    async def receive():
        if (kind := next(messages)) == "shutdown":
            await asyncio.wait_for(serve(), 20)
        return {"type": f"lifespan.{kind}"}

    async def send(message):
        rows.append(message["type"])

    asyncio.run(heart.lifespan({"type": "lifespan"}, receive, send))
    assert rows == ["lifespan.startup.complete", 0, 1, "lifespan.shutdown.complete"]
    assert not Process.objects.exists(), "it stopped in an orderly way"


@pytest.mark.django_db(transaction=True)
def test_a_heart_goes_on_after_an_error_that_nobody_expected(monkeypatch, caplog):
    monkeypatch.setattr(heart, "EVERY", 0)
    monkeypatch.setattr(heart.util, "Finalize", lambda *_, **__: None)
    one, reads = heart.Heart("watcher", None), []

    def read():
        reads.append(1)
        if len(reads) == 1:
            raise ZeroDivisionError
        one.over.set()
        return 3

    monkeypatch.setattr(heart, "gauges", {"streaming": read})
    ready.within(20, one.run)
    assert Process.objects.get().figures == {"streaming": 3.0}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_process_takes_the_place_of_the_one_that_was_killed_there_and_of_no_other(beating):
    killed = a_process("workers", age=300, pid_space=heart.pid_space())
    others = [
        a_process("background", age=300, pid_space=heart.pid_space()),
        a_process("workers", "m2", age=300),
        a_process("workers", age=1, pid_space=heart.pid_space(), pid=os.getpid()),
    ]
    crashed = a_process("workers", age=1, pid_space=heart.pid_space(), pid=4_000_000)
    ancient = a_process("workers", "m3", age=90000)
    beating()[1]()
    there = {*Process.objects.values_list("name", flat=True)}
    assert there >= {each.name for each in others}
    assert not there & {killed.name, crashed.name, ancient.name}


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_stops_no_heart(beating, monkeypatch):
    one, beat = beating()
    with monkeypatch.context() as away:
        away.setitem(connections.settings["default"], "NAME", "/nowhere/at/all" if SQLITE else "nowhere")
        beat()
        beat()
    beat()
    assert (Process.objects.count(), one.failing) == (1, False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(SQLITE, reason="in a file there is one clock")
def test_a_clock_that_is_40_s_ahead_of_the_databases_is_measured(beating, monkeypatch, ada):
    now = time.time
    monkeypatch.setattr(heart.time, "time", lambda: now() + 40)
    beating("watcher")[1]()
    assert 39 < Process.objects.get().skew < 41
    assert [kind for _, kind in listed(ada)] == ["process-clock"]


def test_a_loop_of_a_process_that_belongs_to_no_part_has_no_heart(monkeypatch):
    monkeypatch.delenv("VOLMIG_PART", raising=False)
    before = dict(heart.hearts)
    heart.turn("workers", 5.0)
    assert heart.hearts == before


@pytest.mark.parametrize("part", ["web", "workers"])
def test_a_heart_that_cannot_start_is_logged_once_and_starts_as_soon_as_it_can(
    part, monkeypatch, settings, tmp_path, caplog
):
    monkeypatch.setenv("VOLMIG_PART", part)
    monkeypatch.setattr(heart, "hearts", {})
    monkeypatch.setattr(heart, "unstarted", set())
    monkeypatch.setattr(heart.Heart, "start", lambda self: None)
    settings.DATA = tmp_path / "away"
    for _ in range(3):
        heart.turn(part, 5.0)
    assert (caplog.text.count("No heartbeat from this process"), heart.hearts) == (1, {})
    settings.DATA.mkdir()
    heart.turn(part, 5.0)
    assert len(heart.hearts) == 1


# For exec probes


def probe(part):
    """Exit code and sentences of `manage.py health`."""
    said, code = io.StringIO(), 0
    try:
        call_command("health", part, stdout=said)
    except SystemExit as ended:
        code = ended.code
    return code, said.getvalue().splitlines()


@pytest.mark.django_db(transaction=True)
def test_a_probe_fails_by_its_own_heartbeat_alone():
    a_process("workers", "m2")
    code, said = probe("workers")
    assert (code, said[0]) == (1, "No heartbeat from the workers of this machine.")
    here = {"pid_space": heart.pid_space()}
    workers, background = a_process("workers", **here), a_process("background", **here)
    a_process("watcher", age=300, **here)
    assert probe("workers") == (0, ["All heartbeats of this part are recent."])
    Process.objects.filter(pk=background.pk).update(beaten_at=timezone.now() - dt.timedelta(seconds=80))
    code, [said] = probe("workers")
    assert code == 1
    assert said.startswith("The last heartbeat from the background workers of this machine was 1 min 2")
    assert probe("watcher")[0] == 1
    Process.objects.exclude(pk=workers.pk).delete()
    assert probe("workers") == (1, ["No heartbeat from the background workers of this machine."])


@pytest.mark.django_db(transaction=True)
def test_a_probe_sees_that_one_of_two_web_processes_hangs_and_leaves_one_that_ended_to_its_supervisor(
    monkeypatch,
):
    here = {"pid_space": heart.pid_space()}
    monkeypatch.setattr(models, "running_for", {os.getpid(): 1000.0}.get)
    hangs = a_process("web", age=80, pid=os.getpid(), **here)
    a_process("web", pid=os.getpid(), **here)
    code, [said] = probe("web")
    assert (code, said[:49]) == (1, "The last heartbeat from the web process of this m")
    Process.objects.filter(pk=hangs.pk).update(pid=4_000_000)
    assert probe("web") == (0, ["All heartbeats of this part are recent."])


@pytest.fixture
def used_again():
    """The PIDs of a process and of a thread that have just begun, and may have been others' a moment ago."""
    over, child = threading.Event(), subprocess.Popen(["sleep", "600"])
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield [child.pid, thread.native_id]
    over.set()
    child.kill()
    child.wait()
    thread.join()


@pytest.mark.django_db(transaction=True)
def test_a_process_that_was_killed_has_ended_although_its_pid_is_used_again(used_again, beating):
    """A container that is restarted at once has the same PIDs."""
    here = {"pid_space": heart.pid_space()}
    for pid in used_again:
        a_process("web", age=80, pid=pid, **here)
        a_process("workers", age=30, pid=pid, **here)
    a_process("web", pid=used_again[0], **here)
    assert probe("web") == (0, ["All heartbeats of this part are recent."])
    beating("workers")[1]()
    assert [each.pid for each in Process.objects.filter(part="workers")] == [os.getpid()]
    assert Incident.objects.filter(kind="process", part="workers").count() == len(used_again)


def test_a_process_runs_since_before_its_heartbeats_and_one_that_is_none_does_not():
    assert models.running_for(os.getpid()) > 0
    assert models.running_for(1) > models.running_for(os.getpid())
    assert models.running_for(4_000_001) is None


@pytest.mark.django_db(transaction=True)
def test_a_database_that_is_away_is_no_reason_to_restart_anything(monkeypatch):
    monkeypatch.setitem(connections.settings["default"], "NAME", "/nowhere/at/all" if SQLITE else "nowhere")
    assert probe("workers") == (0, ["The database does not respond, so the heartbeats cannot be read."])


# On the overview


def test_a_probe_of_a_database_that_was_not_prepared_says_so(monkeypatch):
    def no_table(part):
        raise ProgrammingError("relation health_process does not exist")

    monkeypatch.setattr(alive, "faults", no_table)
    out = io.StringIO()
    call_command("health", "web", stdout=out)
    assert "is not prepared" in out.getvalue()


def test_parts_that_run_nowhere_need_the_attention_of_administrators(ada, dana, site):
    assert listed(ada) == []
    before = attention.marks()
    Process.objects.exclude(part="web").delete()
    assert [kind for _, kind in listed(ada)] == ["process-missing"] * 3
    sentences = [item.sentence for item in attention.items(ada, None)]
    assert sorted(sentences) == [
        "No background workers are running.",
        "No watcher is running.",
        "No workers are running.",
    ]
    assert listed(dana) == [], "only for those who can do something about it"
    assert attention.marks() != before, "open pages are updated"


def test_where_no_process_has_sent_a_heartbeat_nothing_is_missing(ada):
    assert listed(ada) == []


def test_while_volmig_starts_nothing_is_missing_yet(ada):
    a_process("web", started_at=timezone.now() - dt.timedelta(seconds=20))
    assert listed(ada) == []


def test_a_process_that_was_lost_is_listed_until_another_takes_its_place(ada, site):
    a_process("workers", "m2", age=300)
    assert listed(ada) == [("m2", "process-late")]
    a_process("workers", "m2")
    assert listed(ada) == []


def test_disks_and_clocks_are_listed_once_for_each_machine(ada, site):
    for part in ("workers", "background"):
        a_process(part, "m2", disk_free=GIB // 2, disk_size=100 * GIB, skew=-40.0)
        a_process(part, "m3", disk_free=GIB // 2, disk_size=GIB, skew=4.0)
    assert sorted(listed(ada)) == [("m2", "process-clock"), ("m2", "process-disk")]
    [clock] = [item for item in attention.items(ada, None) if item.kind == "process-clock"]
    assert (clock.sentence, clock.detail) == ("Its clock is behind the database's.", "By 40.0 s.")


def test_a_disk_is_almost_full_when_both_its_share_and_its_rest_are_small():
    assert alive.low_disk("m", 2 * GIB, 1000 * GIB) is None
    assert alive.low_disk("m", GIB // 2, 2 * GIB) is None
    assert alive.low_disk("m", GIB // 2, 100 * GIB).part == "low"
    assert alive.low_disk("m", 1 << 20, 4 << 20).part == "full", "too little for anything, whatever its share"
    assert alive.low_disk("m", 0, 4 << 20).part == "full"


def test_a_hypervisor_whose_clock_is_wrong_is_listed_for_those_who_may_see_it(dana, sound):
    before = attention.marks()
    Hypervisor.objects.filter(name="jump-02").update(clock_off=-6.5)
    [item] = [item for item in attention.items(dana, None) if item.kind == "clock"]
    assert (item.subject, item.detail) == ("jump-02", "By 6.5 s when it was last refreshed.")
    assert attention.marks() != before


def test_a_clock_is_off_only_beyond_the_call_in_which_it_was_read():
    assert clock_skew(105.0, 100.0, 110.0) == 0
    assert clock_skew(95.0, 100.0, 110.0) == -5
    assert clock_skew(150.0, 100.0, 110.0) == 40
    assert clock_skew(None, 100.0, 110.0) == 0


@pytest.mark.parametrize("said", ["1e999", "-1e999", "9" * 400, "1e308"])
def test_a_clock_that_says_what_no_clock_can_is_off_by_a_number_that_a_page_and_a_column_can_hold(said):
    assert 1e9 < abs(clock_skew(json.loads(said), 100.0, 110.0)) < 1e11


def test_the_page_of_processes_shows_who_lives_and_what_is_wrong(client, ada, dana, site):
    a_process("workers", "m2", age=300)
    client.force_login(ada)
    page = client.get("/processes/").content.decode()
    assert page.count("<tr><td>m1</td>") == 4
    assert "No heartbeat from the workers" in page
    client.force_login(dana)
    assert client.get("/processes/").status_code == 403


# Whoever requests something learns that nobody does it


@pytest.fixture
def page(client, ada):
    """A browser of ada's that has just typed the password."""
    client.force_login(ada)
    session = client.session
    session["password_at"] = time.time()
    session.save()
    return lambda path, method="get": getattr(client, method)(path, follow=True).content.decode()


def test_a_comparison_that_waits_for_a_worker_says_that_none_runs_and_since_when(page, site, sound):
    incarnation.enter_read_only("src: another session acted there")
    lost = timezone.now() - dt.timedelta(seconds=300)
    Process.objects.filter(part="background").update(beaten_at=lost)
    shown = page("/adopt/compare/", "post")
    said = f"No background workers have run since {timezone.localtime(lost):%Y-%m-%d %H:%M:%S %Z}."
    assert said in shown
    assert "stays queued until they are started: systemctl restart volmig-workers (containers: " in shown
    assert "ago</time>: queued." in shown
    assert said in page("/adopt/"), "also without the message"
    Process.objects.filter(part="background").delete()  # they were stopped
    assert "No background workers are running." in page("/adopt/")
    step = page("/adopt/compare/")
    assert "use the button on this page" in step
    assert "No background workers are running." in step, "whatever other message is shown"
    a_process("background", started_at=timezone.now())
    shown = page("/adopt/")
    assert "background workers" not in shown
    assert "ago</time>: queued." in shown
    QueuedTask.objects.filter(name="jobs.worker.adopting.compare").update(taken_at=timezone.now())
    assert "ago</time>: running." in page("/adopt/")
    QueuedTask.objects.update(done_at=timezone.now())
    assert "Requested" not in page("/adopt/")


@pytest.mark.parametrize("path", ["/hosts/{}/refresh/", "/hosts/{}/offer/", "/leftovers/scan"])
def test_what_a_page_requests_of_workers_says_so_as_well(page, site, sound, path):
    path = path.format(sound["cmp-lvm-07"].pk)
    assert "No background workers" not in page(path, "post")
    QueuedTask.objects.all().delete()
    site["background"].delete()
    assert "No background workers are running." in page(path, "post")
