"""Plans and journals of migrations that ended lie in archives, and everything that reads them reads the same."""

import json
import re

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.models import Archive, Job, StepRun
from jobs.models.archive import DamagedArchive, parts
from jobs.web import evidence
from jobs.worker import archiving
from tests.factories import PASSWORD, admin, operator
from tests.ticks import claim_now
from volmig.record.chain import verify

COLUMNS = ("plan", "facts", "checks", "halt_data")


def stored(table, column, **where):
    """What the database itself has in a column, as text."""
    ((name, value),) = where.items()
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT CAST({column} AS text) FROM {table} WHERE {name} = %s ORDER BY id", [value])  # noqa: S608
        return [row[0] for row in cursor.fetchall()]


def bytes_of(job):
    """Letters that the bulky columns of a migration take, archives in bytes."""
    own = sum(len(stored("jobs_job", name, id=job.pk)[0]) for name in COLUMNS)
    runs = sum(len(text) for name in ("args", "commands") for text in stored("jobs_steprun", name, job_id=job.pk))
    return own + runs + sum(len(bytes(each.content)) for each in job.archives.all())


def everything(job):
    """All that anybody reads of it, by every way to read it."""
    fresh = Job.objects.get(pk=job.pk)
    return json.dumps(
        [
            [getattr(fresh, name) for name in COLUMNS],
            list(Job.objects.filter(pk=job.pk).values_list(*COLUMNS)),
            list(Job.objects.filter(pk=job.pk).values("plan")),
            Job.objects.only("pk").get(pk=job.pk).plan,
            list(StepRun.objects.filter(job=job).values_list("pk", "args", "commands", "evidence")),
            [line["text"] for line in fresh.log()],
            [step["name"] for step in fresh.plan["steps"]],
        ]
    )


def test_what_ended_is_archived_by_the_minutes_task_and_reads_the_same(drive):
    job = drive.done()
    before, size = everything(job), bytes_of(job)
    archiving.sweep()
    assert all(text.startswith('"archived:') for text in stored("jobs_job", "plan", id=job.pk))
    assert everything(job) == before
    assert bytes_of(job) < size / 4
    assert Job.objects.get(pk=job.pk).archived_at
    assert verify() == []


def test_a_second_sweep_changes_nothing(drive):
    job = drive.done()
    archiving.sweep()
    at, count = Job.objects.get(pk=job.pk).archived_at, Archive.objects.count()
    archiving.sweep()
    assert (Job.objects.get(pk=job.pk).archived_at, Archive.objects.count()) == (at, count)


def test_archiving_again_leaves_what_lies_in_an_archive(drive):
    job = drive.done()
    archiving.sweep()
    before, columns = everything(job), stored("jobs_steprun", "commands", job_id=job.pk)
    Archive.objects.keep(job.pk)
    assert everything(job) == before
    assert stored("jobs_steprun", "commands", job_id=job.pk) == columns
    assert Archive.objects.count() == 1


def test_a_migration_is_purged_from_its_archived_plan_and_archived_again(drive, site):
    job = drive.done()
    archiving.sweep()
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert (job.status, site.leftovers()) == ("purged", [])
    assert Job.objects.get(pk=job.pk).archived_at is None
    before = everything(job)
    archiving.sweep()
    assert everything(job) == before
    assert Archive.objects.filter(job=job).count() == 2
    assert verify() == []


def test_a_rollback_and_what_follows_it_work_from_the_archive(drive, site):
    job = drive.on_trial()
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    archiving.sweep()
    assert Job.objects.get(pk=job.pk).archived_at
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert (job.status, site.leftovers()) == ("purged", [])


def test_what_is_under_way_is_not_archived(drive):
    job = drive.on_trial()
    archiving.sweep()
    assert not Archive.objects.exists()
    assert stored("jobs_job", "plan", id=job.pk)[0].startswith("{")


def test_what_a_worker_has_is_left_for_the_next_minute(drive):
    job = drive.done()
    assert claim_now(job.pk, "a worker", 60)
    archiving.sweep()
    assert not Archive.objects.exists()
    Job.objects.filter(pk=job.pk).update(lease_until=None)
    archiving.sweep()
    assert Archive.objects.count() == 1


def test_nothing_is_archived_while_volmig_is_read_only(drive, monkeypatch):
    drive.done()
    monkeypatch.setattr("volmig.incarnation.read_only", lambda: True)
    archiving.sweep()
    assert not Archive.objects.exists()


def test_old_ones_are_archived_in_batches(db, monkeypatch):
    """As after an upgrade; one that was never planned is done with, too."""
    monkeypatch.setattr(archiving, "BATCH", 2)
    person, host = operator(), Hypervisor.objects.create(name="src", address="src")
    ended = {"status": "undone", "ended_at": timezone.now(), "source_size": 1, "requester": person}
    ended |= {"last_editor": person, "source": host, "relay": host, "destination": host}
    plan = {"steps": [{"name": "a step", "args": {"size": 1 << 40}} for _ in range(20)]}
    rows = [Job(**ended, plan=plan if number else {}) for number in range(5)]
    Job.objects.bulk_create(rows)
    archiving.sweep()
    assert not Job.objects.unarchived().exists()
    assert Archive.objects.count() == 4
    assert [job.plan for job in Job.objects.order_by("pk")] == [row.plan for row in rows]


def test_pages_and_the_archive_of_evidence_show_the_same(drive):
    job = drive.done()
    client = Client()
    assert client.login(username=admin().username, password=PASSWORD)

    def shown():
        pages = [client.get(f"/migrations/{job.pk}/?part=tab&tab={tab}&questions=1") for tab in ("plan", "log")]
        pages.append(client.get(f"/migrations/{job.pk}/?part=facts"))
        texts = [page.content.decode() for page in pages]
        assert all(step["title"] in texts[0] for step in job.plan["steps"] if step["phase"] == "A")
        assert all(line["text"].split()[0] in texts[1] for line in job.log())
        found = [re.findall(r"<code.*?</code>|<pre.*?</pre>|<summary.*?</summary>", text, re.S) for text in texts]
        return found, evidence.parts(Job.objects.get(pk=job.pk))

    before = shown()
    archiving.sweep()
    assert shown() == before


def test_a_journal_in_an_archive_costs_one_query_more(drive, django_assert_num_queries):
    job = drive.done()
    with django_assert_num_queries(1):
        before = list(StepRun.objects.filter(job=job).values_list("args", "commands"))
    archiving.sweep()
    parts.cache_clear()
    with django_assert_num_queries(2):
        assert list(StepRun.objects.filter(job=job).values_list("args", "commands")) == before


@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_damaged_archive_is_refused_and_nothing_is_made_up(drive, content):
    job = drive.done()
    archiving.sweep()
    parts.cache_clear()
    Archive.objects.update(content=content)
    with pytest.raises(DamagedArchive, match=r"Archive \d+ in the table jobs_archive is damaged.*from a backup"):
        Job.objects.get(pk=job.pk)
    Archive.objects.all().delete()
    with pytest.raises(DamagedArchive, match="is missing"):
        Job.objects.get(pk=job.pk)
    assert Job.objects.defer(*COLUMNS).get(pk=job.pk).status == "done", "the rest of it can be read"
