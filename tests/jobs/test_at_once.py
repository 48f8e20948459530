"""Many at once: one task delivered five times has one effect, and of fifty requests for one disk one is granted."""

import threading
from collections import Counter

import pytest
from django.db import connection

from jobs.models import Footprint, Job, Refused, StepRun
from jobs.worker import tick
from tests.factories import a_volume, an_instance, asked, operator
from tests.fakes import READS, Site

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(act, each_of):
    """Calls act(item) for all items in threads that begin together; what each returned or raised."""
    ready, came = threading.Barrier(len(each_of), timeout=60), []

    def one(item):
        ready.wait()
        try:
            came.append(act(item))
        except Exception as error:
            came.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=(item,)) for item in each_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


def other_instance(wanted, number):
    return {"destination": an_instance(wanted["destination"].hypervisor, f"0c6f2d4e-9b1a-4f57-8a36-{number:012}")}


def other_volume(wanted, number):
    return {"source_volume": a_volume(wanted["source_volume"].volume_group, f"other-{number}", uuid=f"uuid-{number}")}


@pytest.mark.parametrize(
    ("differs", "says"),
    [(other_instance, "already moves this volume"), (other_volume, "already uses this instance")],
    ids=["one volume for fifty instances", "fifty volumes for one instance"],
)
def test_of_fifty_requests_at_once_for_one_disk_one_is_granted_and_the_others_are_told(differs, says):
    olga, wanted = operator(), asked()
    wishes = [{**wanted, **differs(wanted, number)} for number in range(50)]
    came = at_once(lambda wish: Job.objects.submit(olga, **wish), wishes)
    granted = [each for each in came if isinstance(each, Job)]
    refused = [each for each in came if isinstance(each, Refused)]
    assert (len(granted), len(refused)) == (1, 49)
    assert all(f"Migration {granted[0].pk} {says}" in str(each) for each in refused)
    assert list(Job.objects.all()) == granted
    assert not Footprint.objects.exists()


def deliver(trials, monkeypatch, settings):
    """What each of so many jobs, prepared by five workers at once, had its hypervisors do, and how often."""
    settings.LOCK_MARGIN, olga, wanted, done = 0, operator(), asked(), Counter()
    for _ in range(trials):
        site = Site()
        monkeypatch.setattr("hosts.remote.ssh.connect", site.connect)
        job = Job.objects.submit(olga, **{**wanted, "start": True})
        assert at_once(tick.run, [job.pk] * 5) == [None] * 5
        job.refresh_from_db()
        acts = Counter(
            (host.name, request.verb) for host in site.hosts for request in host.requests if request.verb not in READS
        )
        runs = Counter(StepRun.objects.filter(job=job).values_list("step", "direction"))
        assert (job.status, job.halt_reason, set(acts.values()), set(runs.values())) == (
            "awaiting_approval",
            "",
            {1},
            {1},
        )
        assert job.approvals.count() == 1
        done[len(acts)] += 1
        job.put(status="undone")
        job.footprints.update(state="gone")
    return done


def test_a_task_that_is_delivered_five_times_at_once_has_one_effect(monkeypatch, settings):
    assert deliver(10, monkeypatch, settings).total() == 10


@pytest.mark.torture
def test_of_a_thousand_tasks_delivered_five_times_at_once_each_has_one_effect(monkeypatch, settings):
    done = deliver(1000, monkeypatch, settings)
    told = ", ".join(f"{count} with {acts} acts, each once" for acts, count in done.items())
    print(f"\nprepared by five workers at once: {told}")
    assert done.total() == 1000
