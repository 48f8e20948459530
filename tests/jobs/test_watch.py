"""The watcher: progress reaches the rows, ends wake jobs, and only one of several works."""

import os
import re
import threading
from datetime import timedelta

import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts.remote.host import Garbled, HostKeyChanged, Unreachable
from jobs.models import Job, Lease, StepRun
from jobs.models.lease import Held
from jobs.models.wake import wake
from jobs.worker import tick
from jobs.worker.watcher import PARTS, STALLED, Follower, Speed, Watcher, queue_due, sound, sweep, way_to
from tests.ticks import LONG_AGO
from volmig.models import QueuedTask


@pytest.fixture
def running(drive, site):
    site.source.slow = {"convert"}
    job = drive.submit()
    QueuedTask.objects.all().delete()
    return job


def line(job, **figures):
    run = job.running()
    names = ("step", "direction", "attempt", "unit")
    return {"job": str(job.uuid), **{name: getattr(run, name) for name in names}, **figures}


def test_progress_becomes_columns_of_the_running_step(running, site):
    watcher = Watcher(site.connect)
    for at, done in ((100.0, 1000), (110.0, 51_000)):
        watcher.lines.put(
            (running.source_id, {"progress": line(running, done=done, total=100_000, read=done, written=7, at=at)})
        )
        watcher.write()
    run = running.running()
    assert (run.bytes_done, run.bytes_total, run.bytes_read, run.bytes_written) == (51_000, 100_000, 51_000, 7)
    assert run.rate == 5000
    assert run.seconds_left == pytest.approx(9.8)
    assert running.time_left()[1] > 9.8


def test_only_the_newest_progress_is_written(running, site, django_assert_max_num_queries):
    watcher = Watcher(site.connect)
    for done in range(200):
        watcher.lines.put(
            (running.source_id, {"progress": line(running, done=done, total=200, read=0, written=0, at=done)})
        )
    with django_assert_max_num_queries(6):
        watcher.write()
    assert running.running().bytes_done == 199


@pytest.mark.skipif(
    connection.vendor != "sqlite", reason="PostgreSQL reads a small table as a whole, whatever its indexes"
)
def test_no_query_of_a_watcher_reads_all_runs_there_ever_were(running, site):
    watcher = Watcher(site.connect)
    watcher.lines.put((running.source_id, {"joined": True}))
    watcher.lines.put((running.source_id, {"progress": line(running, done=1, total=2, read=1, written=1, at=1.0)}))
    with CaptureQueriesContext(connection) as queries:
        watcher.take_share()
        watcher.write()
        watcher.follow()
        way_to(running.source)
        sweep()
    watcher.let_go()
    of_runs, steps = [each["sql"] for each in queries if re.match("(SELECT|UPDATE).*jobs_steprun", each["sql"])], []
    with connection.cursor() as cursor:
        for statement in of_runs:
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}")
            steps += [row[-1] for row in cursor.fetchall()]
    assert any("run_open" in step for step in steps), "open runs are asked for"
    assert [step for step in steps if re.match(r"SCAN jobs_steprun\b(?! USING .*INDEX)", step)] == []


def test_an_end_wakes_the_job(running, site):
    watcher = Watcher(site.connect)
    watcher.lines.put((running.source_id, {"ended": line(running, state="done")}))
    watcher.write()
    assert QueuedTask.objects.count() == 1


def test_whoever_joins_late_has_jobs_look_for_themselves(running, site):
    watcher = Watcher(site.connect)
    watcher.lines.put((running.source_id, {"joined": True}))
    watcher.write()
    assert QueuedTask.objects.count() == 1


def test_lines_about_unknown_work_change_nothing(running, site):
    watcher = Watcher(site.connect)
    stranger = {**line(running, done=5, total=9, at=1), "job": "11111111-2222-3333-4444-555555555555"}
    watcher.lines.put((running.source_id, {"progress": stranger}))
    watcher.write()
    assert running.running().bytes_done == 0


def test_one_follower_for_each_hypervisor_with_work(running, site):
    watcher = Watcher(site.connect)
    watcher.take_share()
    watcher.follow()
    watcher.follow()
    follower = watcher.followers[running.source_id]
    assert list(watcher.followers) == [running.source_id]
    site.source.lines.put({"progress": line(running, done=3, total=9, read=3, written=3, at=1.0)})
    heard = [watcher.lines.get(timeout=5)[1] for _ in range(2)]
    assert [next(iter(each)) for each in heard] == ["joined", "progress"]
    watcher.let_go()
    site.source.lines.put(None)
    follower.join(timeout=5)
    assert not follower.is_alive()


@pytest.fixture
def followed(running, site):
    """A watcher, the hypervisor that it follows, and the follower there."""
    watcher, source = Watcher(site.connect), running.source
    watcher.take_share()
    watcher.followers[source.pk] = Follower(source.pk, source.remote(), site.connect, watcher.lines)
    return watcher, source, watcher.followers[source.pk]


def lose(watcher, hypervisor, error):
    watcher.lines.put((hypervisor.pk, error))
    watcher.write()


def test_a_follower_that_lost_its_connection_tries_again_until_the_address_is_another(followed):
    watcher, source, follower = followed
    lose(watcher, source, Unreachable("watch src", "no answer"))
    assert not follower.over.is_set()
    source.put(address="10.77.0.99")
    lose(watcher, source, Unreachable("watch src", "no answer"))
    assert follower.over.is_set()
    assert not watcher.followers


def test_nobody_follows_a_hypervisor_that_was_just_put_into_quarantine(followed):
    watcher, source, follower = followed
    error = HostKeyChanged("watch src", "it offered another key")
    error.address = source.remote()
    lose(watcher, source, error)
    assert follower.over.is_set()
    watcher.follow()
    assert not watcher.followers


def test_a_hypervisor_is_followed_by_a_version_of_hostctl_that_runs_work_there(running, site):
    assert way_to(running.source).hostctl == "", "this volmig's own"
    running.put(hostctl="0123456789abcdef")
    assert way_to(running.source).hostctl == "0123456789abcdef"
    running.runs.open().update(unread=True, result="")
    assert way_to(running.source).hostctl == "", "what was refused unread shows that the version is not there"


def test_watchers_share_the_hypervisors_and_take_over_from_one_that_is_gone(db):
    first, second, third = (Watcher() for _ in range(3))
    first.take_share()
    assert len(first.parts) == PARTS
    for _ in range(2):  # who has too much gives it back, and the others take it
        for watcher in (first, second, third):
            watcher.take_share()
    shares = [first.parts, second.parts, third.parts]
    assert sorted(map(len, shares)) == [10, 11, 11]
    assert frozenset().union(*shares) == frozenset(range(PARTS))
    Lease.objects.filter(owner=second.owner).update(until=LONG_AGO)  # it was killed
    for _ in range(2):
        for watcher in (first, third):
            watcher.take_share()
    assert first.parts | third.parts == frozenset(range(PARTS))
    assert not first.parts & third.parts
    Lease.objects.give_back_all(first.owner)
    third.take_share()
    assert len(third.parts) == PARTS


def test_every_lease_that_another_watcher_took_is_counted_and_none_that_was_given_back(db, monkeypatch):
    lost = []
    monkeypatch.setattr("volmig.health.tallies.count", lost.append)
    first, second = Watcher(), Watcher()
    first.take_share()
    for watcher in (second, first, second, first):
        watcher.take_share()
    assert (len(first.parts), len(second.parts), lost) == (16, 16, []), "it made room"
    taken = Lease.objects.filter(owner=first.owner, name__startswith="part ").order_by("pk")[:3]
    Lease.objects.filter(pk__in=[each.pk for each in taken]).update(owner=second.owner)
    first.take_share()
    assert lost == ["volmig_watcher_leases_lost"] * 3


def test_watchers_in_containers_of_one_name_and_one_process_id_are_two(db, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "volmig-watcher")
    first, second = Watcher(), Watcher()
    for _ in range(2):
        first.take_share()
        second.take_share()
    assert not first.parts & second.parts


def test_a_hypervisor_of_another_watchers_share_is_not_followed(running, site):
    watcher = Watcher(site.connect)
    watcher.take_share()
    watcher.follow()
    assert running.source_id in watcher.followers
    watcher.parts -= {running.source_id % PARTS}
    watcher.follow()
    assert running.source_id not in watcher.followers
    watcher.let_go()


def test_one_of_the_watchers_sweeps(running, site):
    Job.objects.filter(pk=running.pk).update(wake_at=LONG_AGO)
    for parts, waiting in ((range(1, PARTS), 0), (range(PARTS), 1)):
        watcher = Watcher(site.connect)
        watcher.follow = lambda: None
        watcher.parts = frozenset(parts)
        watcher.turn()
        assert QueuedTask.objects.count() == waiting


def test_a_share_that_cannot_be_renewed_is_kept_while_the_database_is_away(db, monkeypatch):
    watcher, stop = Watcher(), threading.Event()
    watcher.take_share()

    def away(*_):
        stop.set()
        raise DatabaseError("the server is away")

    monkeypatch.setattr(Lease.objects.__class__, "share", away)
    monkeypatch.setattr("jobs.worker.watcher.connection.close", lambda: None)  # the test's own
    watcher.keep_share(stop)
    assert len(watcher.parts) == PARTS


@pytest.mark.parametrize("error", [InterfaceError("connection already closed"), ZeroDivisionError(), MemoryError()])
def test_nothing_ends_the_thread_that_renews_leases(db, monkeypatch, error):
    """Its watcher would go on for ever with hypervisors that others have taken over."""
    watcher, stop, turns = Watcher(), threading.Event(), []
    monkeypatch.setattr("jobs.worker.watcher.LEASE_EVERY", 0)
    monkeypatch.setattr("jobs.worker.watcher.connection.close", lambda: None)  # the test's own

    def share(*_):
        turns.append(1)
        if len(turns) == 2:
            stop.set()
            return Held({7}, {7})
        raise error

    monkeypatch.setattr(Lease.objects.__class__, "share", share)
    watcher.keep_share(stop)
    assert watcher.parts == {7}


def test_a_database_that_stood_still_while_leases_were_renewed_ends_no_watcher(db):
    """The watcher's own lease is over before its share is counted."""
    assert Lease.objects.share("watcher", PARTS, "host:1:a", -1).parts == set(range(PARTS))


def test_the_share_of_a_watcher_that_was_killed_before_the_clock_was_set_back_is_taken_over(db):
    Lease.objects.share("watcher", PARTS, "host:1:a", 10)
    Lease.objects.update(until=timezone.now() + timedelta(hours=1))
    assert Lease.objects.share("watcher", PARTS, "host:2:b", 10).parts == set(range(PARTS))


GOOD = {"job": "j", "step": "convert", "direction": "do", "attempt": 1, "done": 1, "total": 9, "at": 1.0}
HOSTILE = [
    {"progress": 5},
    {"progress": {}},
    {"ended": []},
    {"ended": {**GOOD, "attempt": "x"}},
    {"progress": {**GOOD, "job": None}},
    {"progress": {**GOOD, "done": 1 << 63}},
    {"progress": {**GOOD, "total": -1}},
    {"progress": {**GOOD, "done": float("inf")}},
    {"progress": {**GOOD, "read": "1"}},
    {"progress": {**GOOD, "at": 1e300}},
    {"progress": {name: GOOD[name] for name in ("job", "step", "direction", "attempt")}},
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_a_malformed_line_is_refused(hostile):
    with pytest.raises(Garbled, match="malformed"):
        sound(hostile, None)


def test_what_hostctl_sends_is_accepted():
    for line in ({"beat": 1}, {"progress": GOOD}, {"ended": {**GOOD, "unit": "u", "state": "done"}}):
        assert sound(line, None) == line


def test_a_malformed_line_is_an_error_of_its_hypervisor_and_ends_no_watcher(followed, site):
    watcher, source, follower = followed
    site.source.lines.put({"progress": {}})
    site.source.lines.put(None)
    follower.start()
    heard = [watcher.lines.get(timeout=30)[1] for _ in range(2)]
    follower.end()
    assert heard[0] == {"joined": True}
    lose(watcher, source, heard[1])
    source.refresh_from_db()
    assert "malformed" in source.last_error


def test_a_hypervisor_has_nothing_to_say_of_work_on_another_one(running, site):
    watcher = Watcher(site.connect)
    for said in ({"progress": line(running, done=5, total=9, at=1)}, {"ended": line(running, state="done")}):
        watcher.lines.put((running.destination_id, said))
        watcher.write()
    assert running.running().bytes_done == 0
    assert not QueuedTask.objects.exists()


def test_a_hypervisor_that_sends_without_a_pause_keeps_the_watcher_from_nothing(running, site):
    watcher = Watcher(site.connect)
    more = {"progress": line(running, done=1, total=9, at=1)}
    for _ in range(2):
        watcher.lines.put((running.source_id, more))
    for heard, _ in enumerate(watcher._heard()):  # and for each line that is taken out comes another
        watcher.lines.put((running.source_id, more))
        assert heard < 2
    assert watcher.lines.maxsize


def test_of_a_migration_that_is_due_one_tick_waits_however_often_anyone_finds_out(running, site):
    Job.objects.filter(pk=running.pk).update(wake_at=LONG_AGO)
    for _ in range(3):
        queue_due()
        sweep()
        wake(running.pk)
    assert QueuedTask.objects.count() == 1


def test_a_tick_that_a_cluster_took_and_never_began_is_queued_once_more(running, site):
    Job.objects.filter(pk=running.pk).update(wake_at=LONG_AGO)
    queue_due()
    QueuedTask.objects.take("migrations")
    for _ in range(3):
        queue_due()
    assert QueuedTask.objects.count() == 1, "it was taken just now"
    QueuedTask.objects.update(taken_at=timezone.now() - timedelta(seconds=16))
    for _ in range(3):
        queue_due()
    assert QueuedTask.objects.count() == 2, "a tick at hand and one that waits: never more"


def test_a_second_delivery_of_a_tick_reaches_no_host(running, site, monkeypatch):
    site.source.finish()
    Job.objects.filter(pk=running.pk).update(wake_at=LONG_AGO)
    tick.run(running.pk)
    running.refresh_from_db()
    Job.objects.filter(pk=running.pk).update(wake_at=timezone.now() + timedelta(minutes=1))
    monkeypatch.setattr("hosts.remote.ssh.connect", None)
    fence = running.fence
    tick.run(running.pk)
    running.refresh_from_db()
    assert running.fence == fence


def test_a_watcher_finds_alarms_between_two_sweeps(running, site):
    watcher = Watcher(site.connect)
    watcher.follow = lambda: None
    watcher.take_share()
    watcher.turn()
    QueuedTask.objects.all().delete()
    Job.objects.filter(pk=running.pk).update(wake_at=LONG_AGO)
    watcher.timetable.due.pop("alarms", None)
    watcher.turn()
    assert QueuedTask.objects.count() == 1


def test_the_rate_is_of_the_last_half_minute():
    speed = Speed()
    speed.add(0, 0)
    assert speed.add(10, 1000) == 100
    assert speed.add(45, 1000) == 0
    assert speed.add(50, 2000) == 200


def test_a_run_without_a_rate_has_no_time_left():
    assert StepRun(bytes_total=100).seconds_left is None


def test_progress_of_a_run_that_was_heard_of_before_is_written_without_reading_it(running, site):
    watcher = Watcher(site.connect)
    for done in (1, 2):
        watcher.lines.put(
            (running.source_id, {"progress": line(running, done=done, total=9, read=0, written=0, at=done)})
        )
        with CaptureQueriesContext(connection) as queries:
            watcher.write()
    assert not [query["sql"] for query in queries if "SELECT" in query["sql"]]
    assert running.running().bytes_done == 2


def test_progress_that_comes_after_the_end_of_a_run_changes_nothing(running, site):
    watcher, late = Watcher(site.connect), line(running, done=5, total=9, read=5, written=5, at=1)
    watcher.lines.put((running.source_id, {"progress": late | {"done": 4}}))
    watcher.write()
    pk = running.running().pk
    StepRun.objects.filter(pk=pk).update(ended_at=timezone.now(), result="done")
    watcher.lines.put((running.source_id, {"progress": late}))
    watcher.write()
    assert StepRun.objects.get(pk=pk).bytes_done == 4


def test_a_run_that_is_not_heard_of_any_more_is_forgotten(running, site, monkeypatch):
    watcher = Watcher(site.connect)
    watcher.lines.put((running.source_id, {"progress": line(running, done=5, total=9, read=5, written=5, at=1)}))
    watcher.write()
    assert len(watcher.runs) == 1
    monkeypatch.setattr("jobs.worker.watcher.LINGER", -1)
    other = {"ended": line(running, state="done", step="nonesuch")}
    watcher.lines.put((running.source_id, other))
    watcher.write()
    [following] = watcher.runs.values()  # its job has not been woken yet, which sleeps for long while its work moves
    following.moved_at -= STALLED
    watcher.turn()
    watcher.lines.put((running.source_id, other))
    watcher.write()
    assert not watcher.runs


def test_what_a_hypervisor_calls_a_migration_goes_into_no_query(running, site):
    watcher = Watcher(site.connect)
    watcher.lines.put((running.source_id, {"progress": line(running, done=5, total=9, at=1) | {"job": "no UUID"}}))
    watcher.write()
    assert running.running().bytes_done == 0


def test_work_that_stops_moving_wakes_its_job_once_until_it_moves_again(running, site):
    watcher = Watcher(site.connect)

    def turn(done, stalls=False):
        """How many ticks are queued after a turn in which so many bytes were reported."""
        QueuedTask.objects.all().delete()
        progress = line(running, done=done, total=900, read=done, written=done, at=float(done))
        watcher.lines.put((running.source_id, {"progress": progress}))
        if stalls:
            [following] = watcher.runs.values()
            following.moved_at -= STALLED
        watcher.timetable.due.clear()
        watcher.turn()
        return QueuedTask.objects.count()

    assert turn(1) == 0
    assert [turn(1, stalls=True), turn(1, stalls=True)] == [1, 0], "the same bytes, again and again"
    assert turn(2) == 0
    assert turn(3, stalls=True) == 0, "it has moved since"
    assert turn(3, stalls=True) == 1


def test_an_end_and_a_stall_that_could_not_be_written_wake_the_job_later(running, site, monkeypatch):
    watcher = Watcher(site.connect)
    moving = line(running, done=1, total=9, read=1, written=1, at=1.0)
    watcher.lines.put((running.source_id, {"progress": moving}))
    watcher.turn()
    with monkeypatch.context() as away:
        away.setattr("jobs.worker.watcher.wake", refused)
        watcher.lines.put((running.source_id, {"ended": line(running, state="done")}))  # it is said once
        with pytest.raises(InterfaceError):
            watcher.write()
        [following] = watcher.runs.values()
        following.moved_at -= STALLED
        watcher.timetable.due.clear()
        with pytest.raises(InterfaceError):
            watcher.turn()
        assert not QueuedTask.objects.exists()
    watcher.timetable.due.clear()
    watcher.turn()
    assert QueuedTask.objects.get().number == running.pk


def refused(*_):
    raise InterfaceError("the connection is closed")


@pytest.mark.skipif("VOLMIG_DB" not in os.environ, reason="SQLite has one writer at a time")
@pytest.mark.django_db(transaction=True)
def test_the_end_of_work_and_who_works_on_its_migration_do_not_wait_for_each_other(running, site):
    """A tick locks its migration first and then a run of it; the watcher has both to write."""
    watcher, run = Watcher(site.connect), running.running()
    watcher.lines.put((running.source_id, {"progress": line(running, done=5, total=9, read=5, written=5, at=1)}))
    watcher.lines.put((running.source_id, {"ended": line(running)}))
    writing = threading.Thread(target=lambda: (watcher.write(), connection.close()))
    Job.objects.filter(pk=running.pk).update(wake_at=timezone.now() + timedelta(hours=1))
    with transaction.atomic():
        Job.objects.filter(pk=running.pk).update(waiting_for="")
        writing.start()
        with connection.cursor() as cursor:
            locked = 0
            while writing.is_alive() and not locked:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                (locked,) = cursor.fetchone()
        StepRun.objects.filter(pk=run.pk).update(unread=False)
    writing.join()
    assert StepRun.objects.get(pk=run.pk).bytes_done == 5
    assert QueuedTask.objects.filter(number=running.pk).exists()
