"""1,000 refreshes by a viewer: a migration's tick still starts at once, because nothing shares its queue or workers."""

import datetime as dt
import json
import os
import shutil
import socket
import threading

import pytest
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs.models import Job
from jobs.models.wake import wake
from jobs.worker.watcher import queue_due
from tests.factories import a_hypervisor, operator, viewer
from tests.pages import scenes
from tests.trust.amounts import FULL, amount, figure
from tests.trust.processes import Processes
from volmig import broker, queue
from volmig.accounts.models import Token
from volmig.models import KEPT_FOR_ITS_CLUSTER, TAKEN_LATELY, CausedCall, QueuedTask, QueuedTaskQuerySet
from volmig.refusals import Refused

REQUESTS = amount(1000, 60)
HYPERVISORS = 100
REFRESH, TICK = "hosts.tasks.refresh", "jobs.worker.tick.run"
# A viewer with a browser and a token, against hypervisors that take a connection and never say anything.
PRESS = """
import json, socket, sys
from django.test import Client
from jobs.models import Job
from jobs.models.wake import wake
from jobs.worker.watcher import queue_due
from tests.factories import a_hypervisor, operator, viewer
from tests.pages import scenes
from volmig.accounts.models import Token
asked = json.load(sys.stdin)
hosts = [a_hypervisor(f"cmp-{n:03}", address="127.0.0.1", port=asked["port"]).pk for n in range(asked["hypervisors"])]
page = Client()
page.force_login(viewer())
letters = Token.objects.make(viewer(), "a program", ("view",), 30)[1]
for number in range(asked["requests"]):
    host = hosts[number % len(hosts)]
    if number % 2:
        page.post(f"/hosts/{host}/refresh/")
    else:
        Client().post(f"/api/v1/hypervisors/{host}/refresh", headers={"Authorization": f"Bearer {letters}"})
"""


def press(requests, hosts, letters):
    """What came back, by pages and by the API in turn."""
    page = Client()
    page.force_login(viewer())
    told = []
    for number in range(requests):
        host = hosts[number % len(hosts)].pk
        if number % 2:
            page.post(reverse("hosts:refresh", args=[host]))
        else:
            headers = {"Authorization": f"Bearer {letters}"}
            told.append(Client().post(f"/api/v1/hypervisors/{host}/refresh", headers=headers))
    return told


@pytest.fixture
def letters(db):
    return Token.objects.make(viewer(), "a program", ("view",), 30)[1]


def test_a_thousand_refreshes_leave_a_bounded_number_of_tasks_and_the_tick_comes_first(db, letters, settings):
    settings.TASKS_CAP = {**settings.TASKS_CAP, "background": (30, 20)}
    hosts = [a_hypervisor(f"cmp-{number:03}") for number in range(HYPERVISORS)]
    answers = press(REQUESTS, hosts, letters)
    queue.later(TICK, 7)
    refreshes = QueuedTask.objects.filter(name=REFRESH)
    assert refreshes.count() == 30
    assert refreshes.values("number").distinct().count() == 30
    tick = QueuedTask.objects.take("migrations")
    assert (tick.name, tick.number) == (TICK, 7)
    assert {each.status_code for each in answers} == {202, 429}
    refused = next(each for each in answers if each.status_code == 429)
    assert (refused.json()["code"], refused.headers["Retry-After"]) == ("too-many-requests", "600")
    figure(
        f"{REQUESTS} refreshes by a viewer: {refreshes.count()} tasks queued, tasks in the tick's queue before it: 0"
    )


def test_the_same_refresh_is_queued_once_while_it_waits_while_it_runs_and_just_after(db, letters):
    host = a_hypervisor("cmp-001")
    told = [each.json()["detail"] for each in press(3, [host], letters)]
    assert "already requested and is waiting" in told[1]
    assert QueuedTask.objects.count() == 1
    taken = QueuedTask.objects.take("background")
    assert "is running now" in press(1, [host], letters)[0].json()["detail"]
    QueuedTask.objects.filter(run=taken.run).update(done_at=timezone.now())
    assert "It can be requested again in" in press(1, [host], letters)[0].json()["detail"]
    QueuedTask.objects.update(done_at=timezone.now() - queue.KEEP_FOR)
    assert press(1, [host], letters)[0].json()["detail"].startswith("It is being refreshed")
    assert QueuedTask.objects.count() == 2


def test_the_page_says_that_it_was_requested_already(db):
    host = a_hypervisor("cmp-001")
    page = Client()
    page.force_login(viewer())
    page.post(reverse("hosts:refresh", args=[host.pk]))
    shown = page.post(reverse("hosts:refresh", args=[host.pk]), follow=True).content.decode()
    assert "This was already requested and is waiting for a worker." in shown


def test_one_persons_requests_do_not_count_against_anothers(db, person, settings):
    settings.TASKS_CAP = {**settings.TASKS_CAP, "background": (1, 1)}
    ann, bob = person("ann", "viewer"), person("bob", "viewer")
    assert queue.ask(REFRESH, 1, by=ann) is None
    with pytest.raises(Refused, match="Your account has made 1 requests"):
        queue.ask(REFRESH, 2, by=ann)
    assert queue.ask(REFRESH, 2, by=bob) is None


def test_actions_on_migrations_are_capped_and_the_one_too_many_changes_nothing(db, person, settings):
    settings.TASKS_CAP = {**settings.TASKS_CAP, "migrations": (2, 2)}
    ann = person("ann", "operator")
    for _ in range(2):
        queue.later(TICK, 1, by=ann)
    with pytest.raises(Refused, match="actions on migrations"):
        queue.later(TICK, 1, by=ann)
    assert (CausedCall.objects.count(), QueuedTask.objects.count()) == (2, 1)


def test_of_equal_tasks_that_wait_a_worker_makes_one_run(db):
    for number in (1, 2, 1, 1):
        queue.later(TICK, number)
    runs = []
    while task := QueuedTask.objects.take("migrations"):
        runs.append(task.number)
    assert runs == [1, 2]


def test_what_is_queued_while_a_task_runs_is_run_after_it(db):
    queue.later(TICK, 1)
    first = QueuedTask.objects.take("migrations")
    queue.later(TICK, 1)
    assert QueuedTask.objects.take("migrations") is None
    QueuedTask.objects.end(first.run)
    assert QueuedTask.objects.take("migrations").number == 1


def test_a_call_waits_once_however_often_it_is_queued(db):
    for _ in range(3):
        queue.later(TICK, 1)
    QueuedTask.objects.queue([queue.call(TICK, 1), queue.call(TICK, 2)])
    assert sorted(QueuedTask.objects.values_list("number", flat=True)) == [1, 2]


def test_a_migration_whose_guest_may_be_down_comes_before_all_others(db):
    for number in (1, 2, 3):
        queue.later(TICK, number, urgent=number == 3)
    queue.later(TICK, 2, urgent=True)  # it waits, and its guest is stopped meanwhile
    assert [QueuedTask.objects.take("migrations").number for _ in range(3)] == [2, 3, 1]


def test_a_call_goes_for_a_moment_to_the_cluster_that_ran_it_last(db):
    """Its workers still have connections to the hypervisors, which know their session."""
    ours, other = "a1" * 8, "b2" * 8

    def again(**columns):
        QueuedTask.objects.filter(done_at=None).update(done_at=timezone.now())
        queue.later(TICK, 1)
        QueuedTask.objects.waiting().update(**columns)

    def taken_by(cluster):
        task = QueuedTask.objects.take("migrations", cluster)
        return task and task.number

    queue.later(TICK, 1)
    assert taken_by(other) == 1, "nobody ran it yet"
    again()
    queue.later(TICK, 2)
    assert [taken_by(ours), taken_by(ours), taken_by(other)] == [2, None, 1]
    again(queued_at=timezone.now() - KEPT_FOR_ITS_CLUSTER)
    assert taken_by(ours) == 1, "the other one is busy, or gone"
    for columns in ({"urgent": True}, {"queued_at": timezone.now() + KEPT_FOR_ITS_CLUSTER}):
        again(**columns)
        assert taken_by(other) == 1
        again()
        assert [taken_by(ours), taken_by(other)] == [None, 1]


@pytest.mark.parametrize("begins", [False, True])
def test_while_a_call_is_at_work_an_equal_one_waits_and_no_third(db, begins):
    queue.later(TICK, 1)
    first = QueuedTask.objects.take("migrations", "a1" * 8)
    assert not begins or QueuedTask.objects.begin(first.run)
    for urgent in (False, True):
        queue.later(TICK, 1, urgent=urgent)
        assert QueuedTask.objects.take("migrations", "a1" * 8) is None
    assert QueuedTask.objects.filter(done_at=None).count() == 2
    queue.later(TICK, 2)
    assert QueuedTask.objects.take("migrations", "a1" * 8).number == 2, "others are not held up"
    QueuedTask.objects.end(first.run)
    assert QueuedTask.objects.take("migrations", "a1" * 8).number == 1


def test_a_call_whose_worker_was_lost_holds_up_an_equal_one_no_longer_than_a_tick_may_take(db):
    """As in an outage of the database; what comes afterwards makes no third row."""
    queue.later(TICK, 1)
    lost = QueuedTask.objects.take("migrations", "a1" * 8)
    QueuedTask.objects.update(taken_at=timezone.now() - TAKEN_LATELY)
    queue.later(TICK, 1)
    QueuedTask.objects.waiting().update(queued_at=timezone.now() - KEPT_FOR_ITS_CLUSTER)
    taken = QueuedTask.objects.take("migrations", "b2" * 8)
    assert taken.number == 1
    queue.later(TICK, 1)
    assert QueuedTask.objects.filter(done_at=None).count() == 2
    assert not QueuedTask.objects.begin(lost.run), "it stands for the one that was lost"
    assert QueuedTask.objects.begin(taken.run)


def test_a_call_that_was_given_back_and_an_equal_one_that_waits_are_one_row_once_taken(db):
    queue.later(TICK, 1)
    QueuedTask.objects.take("migrations", "a1" * 8)
    queue.later(TICK, 1)
    QueuedTask.objects.give_back("a1" * 8)
    taken = QueuedTask.objects.take("migrations", "b2" * 8)
    queue.later(TICK, 1)
    assert QueuedTask.objects.filter(done_at=None).count() == 2
    assert QueuedTask.objects.begin(taken.run)


def test_who_read_a_status_of_before_does_not_make_a_call_wait_that_became_urgent(db, monkeypatch):
    """The sweep, and whoever wakes a migration, read its status first and queue afterwards."""
    calm, swapping = (scenes.job(operator(), "approved") for _ in range(2))
    Job.objects.update(wake_at=timezone.now(), lease_until=None)
    QueuedTask.objects.all().delete()
    queue.later(TICK, calm.pk)
    queue_now, meanwhile = QueuedTaskQuerySet.queue, []

    def queue_after_another(self, tasks):
        if not meanwhile:
            meanwhile.append(True)
            Job.objects.filter(pk=swapping.pk).update(status="swapping")
            queue_now(self, [queue.call(TICK, swapping.pk, urgent=True)])
        return queue_now(self, tasks)

    for by in (queue_due, lambda: wake(swapping.pk)):
        QueuedTask.objects.filter(number=swapping.pk).delete()
        Job.objects.filter(pk=swapping.pk).update(status="approved")
        meanwhile.clear()
        with monkeypatch.context() as patched:
            patched.setattr(QueuedTaskQuerySet, "queue", queue_after_another)
            by()
        assert meanwhile
        assert QueuedTask.objects.get(number=swapping.pk).urgent
    assert QueuedTask.objects.take("migrations").number == swapping.pk


@pytest.mark.django_db(transaction=True)
def test_no_worker_takes_a_call_that_a_transaction_queues_again_until_it_is_committed():
    """A tick that began before would not see what the transaction writes, and nothing would wait any more."""
    queue.later(TICK, 1)
    queued, go_on, taken = threading.Event(), threading.Event(), []

    def press():
        with transaction.atomic():
            queue.later(TICK, 1)
            queued.set()
            assert go_on.wait(10)
        connection.close()

    def work():
        taken.append(QueuedTask.objects.take("migrations"))
        connection.close()

    person, worker = threading.Thread(target=press), threading.Thread(target=work)
    person.start()
    assert queued.wait(10)
    worker.start()
    if connection.vendor == "postgresql":  # with SQLite the worker waits for the whole database
        worker.join()
        assert taken == [None]
    go_on.set()
    person.join()
    worker.join()
    assert QueuedTask.objects.take("migrations") or taken[0]
    assert QueuedTask.objects.count() == 1


def test_a_task_that_its_worker_lost_is_taken_again(db, settings):
    queue.later(TICK, 1)
    QueuedTask.objects.take("migrations")
    assert QueuedTask.objects.take("migrations") is None
    settings.TASK_RETRY = -1
    assert QueuedTask.objects.take("migrations").number == 1


def lost(number, **seconds):
    """A task that a cluster took, and a worker began, so many seconds ago."""
    queue.later(REFRESH, number)
    task = QueuedTask.objects.take("background")
    times = {name: timezone.now() - dt.timedelta(seconds=ago) for name, ago in seconds.items()}
    QueuedTask.objects.filter(pk=task.pk).update(**times)
    return task.run


@pytest.mark.parametrize(
    ("seconds", "again"),
    [
        pytest.param({"taken_at": 380, "begun_at": 130}, False, id="its worker may be ending it just now"),
        pytest.param({"taken_at": 140, "begun_at": 136}, True, id="its worker was killed at the limit"),
        pytest.param({"taken_at": 390}, False, id="it waits in its cluster"),
        pytest.param({"taken_at": 401}, True, id="its cluster is gone"),
        pytest.param({"taken_at": -30}, False, id="clocks of two machines differ a little"),
        pytest.param({"taken_at": -3600}, True, id="the clock was set back"),
    ],
)
def test_a_task_is_taken_again_as_soon_as_its_worker_can_not_be_at_it_any_more(db, seconds, again):
    run = lost(1, **seconds)
    assert bool(QueuedTask.objects.take("background")) is again
    assert QueuedTask.objects.begin(run) is not again, "and then the first run does not begin"


def test_a_run_whose_task_was_given_to_another_does_nothing(db, monkeypatch):
    began = []
    monkeypatch.setattr("hosts.tasks.refresh", began.append)
    first = lost(1, taken_at=401)
    second = QueuedTask.objects.take("background").run
    broker.run(REFRESH, 1, first.hex)
    assert began == []
    broker.run(REFRESH, 1, second.hex)
    assert began == [1]
    QueuedTask.objects.filter(run=second).update(done_at=timezone.now())
    broker.run(REFRESH, 1, second.hex)
    assert began == [1], "nor does one that has ended"


def test_the_minutes_work_is_queued_once_a_minute_and_not_while_it_waits(db, settings):
    for _ in range(3):
        queue.queue_minute()
    names = QueuedTask.objects.values_list("name", flat=True)
    assert sorted(names) == sorted(settings.EVERY_MINUTE)
    while QueuedTask.objects.take("background") or QueuedTask.objects.take("migrations"):
        pass
    queue.queue_minute()
    assert QueuedTask.objects.count() == len(settings.EVERY_MINUTE)
    QueuedTask.objects.update(queued_at=timezone.now() - queue.KEEP_FOR, done_at=timezone.now())
    queue.queue_minute()
    assert QueuedTask.objects.count() == 2 * len(settings.EVERY_MINUTE)


def test_a_clock_that_was_set_back_does_not_stop_the_minutes_work(db, settings):
    queue.queue_minute()
    QueuedTask.objects.update(queued_at=timezone.now() + queue.KEEP_FOR, waits=None, done_at=timezone.now())
    queue.queue_minute()
    assert QueuedTask.objects.count() == 2 * len(settings.EVERY_MINUTE)


def test_old_calls_are_deleted_and_what_waits_stays(db):
    QueuedTask.objects.create(queue="background", name=REFRESH, done_at=timezone.now() - 2 * queue.KEEP_FOR)
    QueuedTask.objects.create(queue="background", name=REFRESH, done_at=timezone.now())
    QueuedTask.objects.create(queue="background", name=REFRESH, queued_at=timezone.now() - 2 * queue.KEEP_FOR)
    queue.sweep()
    assert QueuedTask.objects.count() == 2


@pytest.mark.skipif(not FULL, reason="real workers and a wall clock: make trust")
@pytest.mark.skipif("VOLMIG_DB" in os.environ, reason="these processes have a file of their own")
def test_with_real_workers_and_dead_hypervisors_a_tick_starts_within_two_seconds(tmp_path, migrated):
    processes = Processes(shutil.copytree(migrated, tmp_path / "data"))
    processes.environment["VOLMIG_REQUESTS_PER_PERSON"] = processes.environment["VOLMIG_REQUESTS_PER_TOKEN"] = "100000"
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        asked = {"port": silent.getsockname()[1], "hypervisors": HYPERVISORS, "requests": REQUESTS}
        pressing = threading.Thread(target=processes.run, args=[PRESS, json.dumps(asked)])
        pressing.start()
        processes.start_workers()
        try:
            busy = "SELECT id FROM volmig_queuedtask WHERE name = ? AND taken_at IS NOT NULL AND done_at IS NULL"
            processes.until(busy, REFRESH)
            delays = []
            for number in range(20):
                insert = (
                    "INSERT INTO volmig_queuedtask (queue, name, number, queued_at) "
                    "VALUES ('migrations', ?, ?, strftime('%Y-%m-%d %H:%M:%f', 'now'))"
                )
                processes.rows(insert, TICK, 1_000_000 + number)
                started = (
                    "SELECT (julianday(taken_at) - julianday(queued_at)) * 86400 FROM volmig_queuedtask "
                    "WHERE name = ? AND number = ? AND done_at IS NOT NULL"
                )
                delays.append(processes.until(started, TICK, 1_000_000 + number)[0][0])
            waiting = processes.rows(
                "SELECT count(*) FROM volmig_queuedtask WHERE name = ? AND done_at IS NULL", REFRESH
            )
        finally:
            pressing.join()
            processes.stop()
    figure(
        f"{REQUESTS} refreshes by a viewer of {HYPERVISORS} dead hypervisors, {waiting[0][0]} still waiting: "
        f"ticks started after {max(delays):.2f} s at most ({len(delays)} ticks)"
    )
    assert waiting[0][0] > 0
    assert max(delays) < 2
