"""Jobs on the fake site: every tick goes to its hypervisors instead of over SSH."""

import pytest

from jobs import tick
from jobs.models import Job
from tests.factories import approver, asked, operator
from tests.fakes import Site


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
            job.refresh_from_db()
            before = (job.status, job.halt_reason, job.runs.count(), job.runs.filter(ended_at=None).count())
            tick.run(job.pk)
            job.refresh_from_db()
            if before == (job.status, job.halt_reason, job.runs.count(), job.runs.filter(ended_at=None).count()):
                return job
        raise AssertionError(f"{job} never rests: {job.status} {job.waiting_for}")

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
