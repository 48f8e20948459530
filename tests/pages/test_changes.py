"""How a web process learns which migrations changed: on PostgreSQL from its triggers, with SQLite from the file."""

import asyncio
import contextlib
import sqlite3

import pytest
from django.db import connection, transaction
from django.utils import timezone

from jobs.models import Job, StepRun
from jobs.web import changes
from tests.pages import scenes

SECONDS = 20  # for a busy machine; nothing waits for their end unless something is wrong
on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no notifications")


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def heard(*acts):
    """What is heard of each act, one after the other: which migrations turned, and which moved."""

    async def run():
        seen, found = changes.Notified(), []
        following = asyncio.create_task(seen.follow())
        await until(lambda: seen.listening)
        for act in acts:
            seen.take()
            await asyncio.to_thread(apart, act)
            await until(lambda: seen.batch.turned | seen.batch.moved)
            batch = seen.take()
            found.append((batch.turned, batch.moved))
        following.cancel()
        return found

    return asyncio.run(run())


def apart(act):
    try:
        act()
    finally:
        connection.close()


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_postgresql_notifies_of_what_a_page_shows(dana, kim, hosts):
    job = scenes.job(dana, "preparing")
    asked = scenes.approval(job)
    runs, jobs = job.runs.filter(step="convert"), Job.objects.filter(pk=job.pk)
    found = heard(
        lambda: runs.update(bytes_done=7, progress_at=timezone.now()),
        lambda: jobs.update(status="awaiting_approval"),
        lambda: runs.update(result="done", ended_at=timezone.now()),
        lambda: scenes.running(job, "compare"),
        lambda: scenes.decision(asked, kim),
        lambda: job.approvals.update(voided_at=timezone.now()),
        lambda: jobs.update(halt_reason="seen"),
    )
    assert found == [(set(), {job.pk}), *[({job.pk}, set())] * 6]


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_what_no_page_shows_notifies_nobody(dana, hosts):
    job = scenes.job(dana, "preparing")
    jobs = Job.objects.filter(pk=job.pk)

    def quietly():
        jobs.update(lease_until=timezone.now(), wake_at=timezone.now())
        job.runs.filter(step="convert").update(evidence={"any": 1})
        StepRun.objects.bulk_create([StepRun(job=job, step="past", ended_at=timezone.now())])  # as a restore writes it

    def last():
        quietly()
        jobs.update(status="awaiting_approval")

    assert heard(last) == [({job.pk}, set())]


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_notifies_nobody(dana, hosts):
    job, other = scenes.job(dana, "preparing"), scenes.job(dana, "preparing")

    def act():
        with contextlib.suppress(RuntimeError), transaction.atomic():
            Job.objects.filter(pk=job.pk).update(status="awaiting_approval")
            raise RuntimeError
        Job.objects.filter(pk=other.pk).update(status="awaiting_approval")

    assert heard(act) == [({other.pk}, set())]


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_cut_is_made_again_and_everything_is_compared(dana, hosts):
    async def run():
        seen = changes.Notified()
        following = asyncio.create_task(seen.follow())
        await until(lambda: seen.listening)
        seen.take()
        await asyncio.to_thread(apart, cut)
        await until(lambda: not seen.listening)
        assert seen.poll_every() == changes.BLIND_EVERY, "meanwhile it asks"
        await until(lambda: seen.listening)
        following.cancel()
        return seen.take().everything

    assert asyncio.run(run()), "what came meanwhile was missed"


def cut():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = %s",
            [connection.settings_dict["NAME"]],
        )


@pytest.mark.parametrize("directory", ["data", "data #1", "50%", "what?", "a%20b"])
def test_a_file_is_compared_when_another_connection_has_written(directory, tmp_path, monkeypatch):
    path = tmp_path / directory / "db.sqlite3"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute("CREATE TABLE one (number)")
        writer.commit()
        monkeypatch.setitem(connection.settings_dict, "NAME", path)

        async def run():
            seen = changes.Polled()
            found = []
            for act in (None, None, "INSERT INTO one VALUES (1)", None):
                if act:
                    writer.execute(act)
                    writer.commit()
                seen.poll()
                found.append(seen.take().everything)
            seen.file.close()
            return found

        assert asyncio.run(run()) == [True, False, True, False]


def test_while_a_file_cannot_be_read_everything_is_compared_each_second(tmp_path, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "NAME", tmp_path / "none")

    async def run():
        seen, found = changes.Polled(), []
        for _ in range(3):
            seen.poll()
            found.append(seen.take().everything)
        return found, seen.poll_every()

    assert asyncio.run(run()) == ([True, True, True], changes.BLIND_EVERY)


def test_everything_is_compared_now_and_then_although_notifications_never_cease():
    async def run():
        seen, found = changes.Notified(), []
        seen.listening, now = True, asyncio.get_running_loop().time()
        seen.take()
        for polled_at in (now, now - changes.ALL_EVERY, now):
            seen.polled_at = polled_at
            seen.note("moved 17")
            await seen.wait(SECONDS)
            found.append(seen.take())
        return found

    some, everything = changes.Batch(moved={17}), changes.Batch(moved={17}, everything=True)
    assert asyncio.run(run()) == [some, everything, some]


def test_notifications_are_heard_again_after_a_fault_of_any_kind(monkeypatch, caplog):
    tries = []

    async def connect():
        tries.append(1)
        raise ValueError("a fault")

    async def run():
        following = asyncio.create_task(changes.Notified().follow())
        await until(lambda: len(tries) > 2 or following.done())
        ended = following.done()
        following.cancel()
        return ended

    monkeypatch.setattr(changes, "connect", connect)
    monkeypatch.setattr(changes, "AGAIN", 0.0)
    assert not asyncio.run(run())
    assert "No notifications for live pages arrive. Retrying." in caplog.text


def test_a_notification_of_another_release_has_everything_compared():
    async def run():
        seen = changes.Changes()
        seen.take()
        seen.note("turned 17")
        seen.note("moved 18")
        first = seen.take()
        seen.note("something else")
        return first, seen.take()

    assert asyncio.run(run()) == (changes.Batch({17}, {18}), changes.Batch(everything=True))
