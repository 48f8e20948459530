"""How a web process learns which migrations changed: on PostgreSQL from its triggers, with SQLite from the file."""

import asyncio
import contextlib
import sqlite3

import pytest
from django.db import connection, transaction
from django.utils import timezone

from jobs import changes
from jobs.models import Job, StepRun
from tests.pages import scenes

SECONDS = 20  # for a busy machine; nothing waits for their end unless something is wrong
on_postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="SQLite has no notifications")
on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL notifies")


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
            await until(lambda: seen.turned | seen.moved)
            found.append(seen.take()[:2])
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
        return seen.take()[2]

    assert asyncio.run(run()), "what came meanwhile was missed"


def cut():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = %s",
            [connection.settings_dict["NAME"]],
        )


@on_sqlite
def test_a_file_is_compared_when_another_connection_has_written(tmp_path, monkeypatch):
    path = tmp_path / "db.sqlite3"
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
                found.append(seen.take()[2])
            return found

        assert asyncio.run(run()) == [True, False, True, False]


def test_a_notification_of_another_release_has_everything_compared():
    async def run():
        seen = changes.Changes()
        seen.take()
        seen.note("turned 17")
        seen.note("moved 18")
        first = seen.take()
        seen.note("something else")
        return first, seen.take()

    assert asyncio.run(run()) == (({17}, {18}, False), (set(), set(), True))
