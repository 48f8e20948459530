"""Jobs on the fake site: every tick goes to its hypervisors instead of over SSH."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts.remote import nova
from jobs.models import Job
from tests.factories import approver, asked, in_cloud, operator
from tests.fakenova import Cloud
from tests.fakes import Site
from tests.jobs.lives import Clock, Life
from tests.machines import Site as Machines
from tests.machines import install
from tests.ticks import tick_now


@pytest.fixture
def site(db, monkeypatch, settings):
    """The three hypervisors in memory; the lock's margin is nothing, so that no test waits for caches."""
    settings.LOCK_MARGIN = 0
    fake = Site()
    monkeypatch.setattr("hosts.remote.ssh.connect", fake.connect)
    return fake


class Drive:
    """Brings a job forward as workers and people would."""

    def __init__(self, site):
        self.site = site

    def submit(self, **changed):
        return self.go(Job.objects.submit(operator(), **{**asked(), "start": True, **changed}))

    def go(self, job):
        """Tick until a tick changes nothing any more."""
        for _ in range(50):
            before = self.where(job)
            tick_now(job.pk)
            if before == self.where(job):
                return job
        raise AssertionError(f"{job} never rests: {job.status} {job.waiting_for}")

    def where(self, job):
        """How far a job has come, and what its work under way has measured."""
        job.refresh_from_db()
        under_way = list(job.runs.filter(ended_at=None).values_list("pk", "evidence"))
        return job.status, job.halt_reason, job.runs.count(), under_way

    def due(self, job):
        """Tick as often as the job's alarm goes off within the next seconds, as the watcher would."""
        job.refresh_from_db()
        while job.wake_at and job.wake_at < timezone.now() + dt.timedelta(seconds=5):
            tick_now(job.pk)
            job.refresh_from_db()
        return job

    def approve(self, job, kind="swap"):
        approval = job.approvals.open().get(kind=kind)
        approval.approve(approver(), approval.digest, "as agreed")
        return self.go(job)

    def on_trial(self, **changed):
        return self.approve(self.submit(**changed))

    def done(self):
        job = self.on_trial()
        job.confirm(operator())
        return self.go(job)


@pytest.fixture
def drive(site):
    return Drive(site)


@pytest.fixture
def a_life(site, monkeypatch):
    """Makes a migration that lives by itself: a_life("rolled_back"). Time is its own."""
    clock = Clock(monkeypatch)
    site.clock = lambda: clock.now.timestamp()
    return lambda *wish: Life(site, clock, monkeypatch, *wish)


@pytest.fixture
def machines(db, tmp_path, monkeypatch, settings):
    """The three hypervisors with the real hostctl on them."""
    settings.LOCK_MARGIN = 0
    (tmp_path / "site").mkdir()
    there = install(Machines(tmp_path / "site"), monkeypatch)
    monkeypatch.setattr("hosts.remote.ssh.connect", there.connect)
    return there


@pytest.fixture
def real_life(machines, monkeypatch):
    """The same as `a_life`, with the real hostctl."""
    clock = Clock(monkeypatch)
    return lambda *wish: Life(machines, clock, monkeypatch, *wish)


@pytest.fixture
def nova_of_machines(machines, monkeypatch):
    """A Nova that locks, stops and starts the instance of the machines."""
    fake = Cloud(machines)
    machines.locked_in_nova = lambda: fake.server.locked
    monkeypatch.setattr("hosts.remote.nova.PAUSES", (0.01, 0.01))
    monkeypatch.setattr("hosts.remote.nova_control.AGAIN", 0.01)
    yield fake
    fake.close()
    nova.forget()


@pytest.fixture
def cloud(site):
    """A cloud whose Nova controls the instance of the fake site; registered, with both hypervisors in it."""
    fake = Cloud(site)
    yield fake
    fake.close()


@pytest.fixture
def nova_drive(site, cloud, settings, monkeypatch):
    """The same as `drive`, with the instance in a cloud that is entered through Nova."""
    settings.NOTICE_SECONDS = 0
    monkeypatch.setattr("hosts.remote.nova.PAUSES", (0.01, 0.01))
    monkeypatch.setattr("hosts.remote.nova_control.AGAIN", 0.01)
    in_cloud(cloud)
    yield Drive(site)
    nova.forget()
