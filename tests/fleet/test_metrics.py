"""/metrics: who may read it, that it is true at a bounded cost, and that sums survive the processes."""

import json
import multiprocessing
import re
import socket
import urllib.error
import urllib.request

import pytest
from django.core.checks import run_checks
from django.db import DatabaseError, connection, transaction
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from hosts.remote import meter
from hosts.remote.host import HostError, HostKeyChanged, Unreachable
from jobs.models import Job, StepRun
from jobs.web import metrics
from jobs.worker import tick
from tests.fleet.beats import a_process
from tests.fleet.test_alerts import ago, scrape, shut_off
from tests.pages import scenes
from volmig.health import port, tallies
from volmig.health.models import Tally
from volmig.models import Notice, QueuedTask
from volmig.record.models import Event

TOKEN = "a-token-that-nobody-guesses"
# Of these a site has few, whatever its size; a hypervisor, a migration or a person is never a label.
LABELS = {"machine", "part", "queue", "state", "status", "outcome", "reason", "condition", "version", "le"}


def with_token(token):
    return {"Authorization": f"Bearer {token}"}


# Who may read it


def test_without_a_token_there_is_no_such_path(client, db, settings):
    assert client.get("/metrics").status_code == 404
    assert client.get("/metrics", headers=with_token("")).status_code == 404


def test_with_one_only_who_shows_it_reads_it(client, db, settings):
    settings.METRICS_TOKEN = TOKEN
    for headers in ({}, with_token(""), with_token(TOKEN[:-1]), with_token(f"{TOKEN}x"), {"Authorization": TOKEN}):
        answer = client.get("/metrics", headers=headers)
        assert (answer.status_code, b"volmig_" in answer.content) == (401, False)
    answer = client.get("/metrics", headers=with_token(TOKEN))
    assert (answer.status_code, answer["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert b"volmig_build_info" in answer.content


def test_a_token_that_could_be_guessed_is_refused_at_start(settings):
    settings.METRICS_TOKEN = "short"
    assert [each.id for each in run_checks() if each.id.startswith("volmig.M")] == ["volmig.M1"]
    settings.METRICS_TOKEN = TOKEN
    assert not [each for each in run_checks() if each.id.startswith("volmig.M")]


@pytest.fixture
def served(transactional_db):
    server = port.serve("127.0.0.1", 0)
    yield server.server_port
    server.shutdown()
    server.server_close()


def fetch(number, path="/metrics", headers=None):
    asked = urllib.request.Request(f"http://127.0.0.1:{number}{path}", headers=headers or {})
    with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310 - our own port
        return answer.read().decode()


def test_a_separate_port_serves_metrics_and_nothing_else(served, settings):
    assert "volmig_queue_tasks" in fetch(served)
    for path in ("/", "/login/", "/metrics/", "/healthz"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(served, path)
    settings.METRICS_TOKEN = TOKEN
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(served)
    assert "volmig_queue_tasks" in fetch(served, headers=with_token(TOKEN))


def test_the_second_process_of_a_machine_leaves_the_port_to_the_first(served):
    assert port.serve("127.0.0.1", served) is None
    assert "volmig_queue_tasks" in fetch(served)


def test_a_client_that_sends_nothing_holds_nobody_up(served):
    with socket.create_connection(("127.0.0.1", served)):
        assert "volmig_queue_tasks" in fetch(served)


# What it reports


def test_no_label_grows_with_the_site(dana, sound, site):
    scenes.halted(dana)
    tallies.record("volmig_tick_seconds", 0.3, status="preparing")
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    assert {name for family in families for sample in family.samples for name in sample.labels} <= LABELS
    assert not [name for name in sound if name in metrics.exposition().decode()]


def test_instances_that_are_shut_off_are_counted_by_condition(dana, sound):
    shut_off(dana, "swapping", halt_reason="Another inode lies there.")
    shut_off(dana, "swapping")
    stalled = shut_off(dana, "rolling_back")
    StepRun.objects.create(job=stalled, step="start", direction="undo", started_at=ago(500), hypervisor=stalled.source)
    recent = shut_off(dana, "swapping")
    evidence = {"was": "running", "stopped_at": ago(5).timestamp()}
    StepRun.objects.filter(job=recent, step="stop").update(evidence=evidence, started_at=ago(8), ended_at=ago(4))
    found = scrape()
    kinds = {kind: found[f'volmig_instances_down{{condition="{kind}"}}'] for kind in metrics.DOWN}
    assert kinds == {"expected": 1, "late": 1, "stalled": 1, "halted": 1}


def test_tasks_are_counted_by_queue_with_those_that_equal_another(db):
    QueuedTask.objects.create(queue="migrations", name="jobs.worker.tick.run", number=1, queued_at=ago(90))
    for _ in range(3):
        QueuedTask.objects.create(queue="migrations", name="jobs.worker.tick.run", number=2, queued_at=ago(30))
    QueuedTask.objects.create(
        queue="background", name="hosts.tasks.refresh", number=2, taken_at=ago(1), begun_at=ago(1)
    )
    found = scrape()
    assert found['volmig_queue_tasks{queue="migrations",state="waiting"}'] == 4
    assert found['volmig_queue_tasks{queue="background",state="waiting"}'] == 0
    assert found['volmig_queue_tasks{queue="background",state="running"}'] == 1
    assert found['volmig_queue_duplicate_tasks{queue="migrations"}'] == 2
    assert 90 <= found['volmig_queue_oldest_seconds{queue="migrations"}'] < 120
    assert found['volmig_queue_oldest_seconds{queue="background"}'] == 0


def test_a_port_that_another_process_has_is_no_fault_and_an_address_of_another_machine_is_one(served, caplog):
    caplog.set_level("INFO")
    assert port.serve("127.0.0.1", served) is None
    assert caplog.records == []
    assert port.serve("192.0.2.1", 0) is None
    assert "The metrics port 0 of 192.0.2.1 could not be opened" in caplog.text


def test_a_lost_process_is_not_among_those_that_run(db):
    a_process("watcher", figures={"streaming": 3, "turn_seconds": 0.4})
    a_process("watcher", "m2", age=300, figures={"streaming": 5})
    found = scrape()
    assert found['volmig_processes{part="watcher"}'] == 1
    assert found['volmig_hypervisors_streaming{machine="m1"}'] == 3
    assert 'volmig_hypervisors_streaming{machine="m2"}' not in found
    assert found['volmig_process_heartbeat_age_seconds{machine="m2",part="watcher"}'] >= 299


def test_a_database_that_fails_fails_the_scrape(client, db, settings, monkeypatch):
    def fail():
        raise DatabaseError("server closed the connection: password")

    settings.METRICS_TOKEN = TOKEN
    monkeypatch.setattr(metrics, "FAMILIES", (*metrics.FAMILIES, fail))
    answer = client.get("/metrics", headers=with_token(TOKEN))
    assert (answer.status_code, b"password" in answer.content) == (503, False)


# Its cost


def crowd(dana, number):
    for each in range(number):
        scenes.job(dana, "preparing", instance_name=f"p{each}")
        shut_off(dana, "swapping", instance_name=f"s{each}")
        scenes.halted(dana)
        scenes.job(dana, "done", instance_name=f"d{each}")
        a_process("workers", f"w{each}")
        QueuedTask.objects.create(queue="migrations", name="jobs.worker.tick.run", number=each, queued_at=ago(90))
        Notice.objects.create(kind="halted", subject="s", text="t", error="post: refused")
        tallies.record("volmig_tick_seconds", 0.3 * each, status="preparing")
        Event.append("test.event")


def test_a_scrape_costs_as_many_queries_however_much_is_in_the_database(dana, sound, site):
    counts = []
    for more in (1, 8):
        crowd(dana, more)
        with CaptureQueriesContext(connection) as queries:
            metrics.exposition()
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 24


BIG = (
    "jobs_job",
    "jobs_steprun",
    "jobs_approval",
    "jobs_footprint",
    "record_event",
    "volmig_notice",
    "volmig_queuedtask",
)


@pytest.mark.skipif(
    connection.vendor != "sqlite", reason="PostgreSQL reads a small table as a whole, whatever its indexes"
)
def test_no_query_of_a_scrape_reads_a_table_that_grows_as_a_whole(dana, sound, site):
    crowd(dana, 3)
    with CaptureQueriesContext(connection) as queries:
        metrics.exposition()
    read_whole = []
    with connection.cursor() as cursor:
        for query in queries:
            cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
            steps = [row[-1] for row in cursor.fetchall()]
            pattern = re.compile(rf"SCAN ({'|'.join(BIG)})\b(?! USING .*INDEX)")
            read_whole += [(step, query["sql"]) for step in steps if pattern.match(step)]
    assert read_whole == []


# Sums


def rows():
    return {(row.name, row.labels, row.bound): row.value for row in Tally.objects.all()}


def test_what_is_counted_is_added_to_what_others_have_counted(db):
    tallies.count("volmig_ssh_connects", outcome="ok")
    tallies.count("volmig_ssh_connects", outcome="ok")
    tallies.count("volmig_ssh_connects", outcome="refused")
    assert rows() == {}, "only from time to time"
    tallies.flush()
    tallies.count("volmig_ssh_connects", outcome="ok")
    tallies.flush()
    tallies.flush()
    found = scrape()
    assert found['volmig_ssh_connects_total{outcome="ok"}'] == 3
    assert found['volmig_ssh_connects_total{outcome="refused"}'] == 1
    assert found['volmig_ssh_connects_total{outcome="host-key"}'] == 0


def test_a_histogram_counts_each_value_in_every_bucket_above_it(db):
    for seconds in (0.04, 0.05, 0.3, 99.0):
        tallies.observe("volmig_tick_seconds", seconds, status="preparing")
    tallies.flush()
    found = scrape()
    least, most = (f'volmig_tick_seconds_bucket{{le="{le}",status="preparing"}}' for le in ("0.05", "+Inf"))
    assert (found[least], found['volmig_tick_seconds_bucket{le="0.5",status="preparing"}'], found[most]) == (2, 3, 4)
    assert found['volmig_tick_seconds_count{status="preparing"}'] == 4
    assert found['volmig_tick_seconds_sum{status="preparing"}'] == pytest.approx(99.39)


@pytest.mark.django_db(transaction=True)
def test_what_could_not_be_written_is_written_later(monkeypatch):
    tallies.count("volmig_ssh_connects", outcome="ok")
    with monkeypatch.context() as broken:
        broken.setattr(Tally._meta, "db_table", "no_such_table")
        tallies.flush()
    assert rows() == {}
    tallies.flush()
    assert list(rows().values()) == [1.0]


def test_what_is_rare_goes_with_the_transaction_that_it_belongs_to(db):
    with transaction.atomic():
        tallies.record("volmig_downtime_seconds", 12.0)
        assert len(rows()) == 2
        transaction.set_rollback(True)
    assert rows() == {}


@pytest.mark.parametrize("labels", [{}, {"outcome": "ok", "host": "hv1"}, {"host": "hv1"}])
def test_a_label_that_was_not_declared_is_refused(labels):
    with pytest.raises(ValueError, match="has the labels"):
        tallies.count("volmig_ssh_connects", **labels)


def counted_by_child(pipe):
    pipe.send(len(tallies.counted))
    pipe.close()


def test_a_child_does_not_write_again_what_its_parent_counted():
    tallies.count("volmig_ssh_connects", outcome="ok")
    mine, its = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=counted_by_child, args=(its,))
    child.start()
    assert mine.recv() == 0
    child.join()
    assert len(tallies.counted) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (Unreachable("log in", "no answer"), "unreachable"),
        (HostKeyChanged("log in", "another key"), "host-key"),
        (HostError("log in", "the login was refused"), "refused"),
        (RuntimeError("a fault"), "failed"),
    ],
)
def test_every_end_of_an_ssh_login_is_counted(error, outcome):
    def log_in():
        with meter.connecting():
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            log_in()
    else:
        log_in()
    key = ("volmig_ssh_connects", json.dumps({"outcome": outcome}), "")
    assert tallies.counted[key] == 1
    timed = [key for key in tallies.counted if key[0] == "volmig_ssh_connect_seconds"]
    assert bool(timed) == (error is None)


def test_a_migration_that_ends_and_its_downtime_are_counted_once(dana, sound):
    job = scenes.job(dana, "on_trial", outcome="")
    job.go("confirmed", outcome="done")
    assert scrape()['volmig_migrations_ended_total{outcome="done"}'] == 1
    Job.objects.filter(pk=job.pk).update(status="purging")
    Job.objects.get(pk=job.pk).go("purged")
    assert scrape()['volmig_migrations_ended_total{outcome="done"}'] == 1


def test_the_time_of_a_tick_is_counted_under_the_status_that_it_led_to(dana, sound, monkeypatch):
    monkeypatch.setattr(tick, "Work", lambda job, hands: type("Quick", (), {"go_on": lambda self: None})())
    tick.go_on(scenes.job(dana, "planned"), None)
    assert {json.loads(labels)["status"] for name, labels, _ in tallies.counted if name == "volmig_tick_seconds"} == {
        "planned"
    }


@pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no connections to count")
def test_connections_are_reported_with_their_limit(db):
    found = scrape()
    assert 1 <= found["volmig_database_connections"] < found["volmig_database_connections_limit"]
