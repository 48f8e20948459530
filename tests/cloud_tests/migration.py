"""Migrations of instances of a real Nova; its guests are pretended, and so are the hypervisors with their disks."""

import datetime as dt
import time

from django.utils import timezone

from hosts.models import Cloud, Hypervisor
from jobs.models import Job, StepRun
from tests.cloud.host import RUNNING
from tests.factories import a_hypervisor, admin, approver, asked, operator
from tests.fakes import FakeHost
from tests.ticks import tick_now

LONGEST = 120  # seconds; a busy machine is slow


class PoweredByNova(FakeHost):
    """A hypervisor whose libvirt tells of the guest what Nova's driver made of it."""

    guest = None

    @property
    def state(self):
        if self.guest is None:
            return "shut off"
        host, uuid = self.guest
        return {RUNNING: "running", None: "absent"}.get(host.guest_state(uuid), "shut off")

    @state.setter
    def state(self, value):
        """Nova alone changes it."""


class Migration:
    """One instance of a real Nova and the job that gives it another disk, brought on as workers and people would."""

    def __init__(self, plane, site, server, source):
        self.plane, self.site, self.server, self.source = plane, site, server, source
        self.admin = plane.connection("admin").compute
        self.job = None

    def submit(self, until="awaiting_approval"):
        source = self.source.uuid if self.source else ""
        self.job = Job.objects.submit(operator(), **asked(self.server.uuid, source), start=True)
        self.until(until, "undone")
        assert self.job.status == until, self.job.outcome_reason
        return self.job

    def approve(self, kind="swap"):
        approval = self.job.approvals.open().get(kind=kind)
        approval.approve(approver(), approval.digest, "as agreed")
        return self

    def until(self, *statuses):
        """Tick when the job's alarm goes off, until it is in one of these statuses, or halted."""
        return self.wait(lambda job: job.status in statuses or job.halt_reason)

    def wait(self, holds):
        end = time.monotonic() + LONGEST
        self.job.refresh_from_db()
        while not holds(self.job):
            assert time.monotonic() < end, f"{self.job.status}: {self.job.waiting_for}"
            if self.job.wake_at and self.job.wake_at <= timezone.now():
                tick_now(self.job.pk)
            else:
                time.sleep(0.02)
            self.job.refresh_from_db()
        return self.job

    def at(self, step):
        """Until this step is under way."""
        return self.wait(lambda job: job.halt_reason or ((run := job.running()) and run.step == step and run.evidence))

    def age(self, step, seconds):
        """Let a step that is under way have been asked for so long ago."""
        run = self.job.runs.filter(step=step, ended_at=None).latest("pk")
        asked_at = timezone.now() - dt.timedelta(seconds=seconds)
        known = {**run.evidence, "asked_at": asked_at.timestamp()} if run.evidence else {}
        StepRun.objects.filter(pk=run.pk).update(started_at=asked_at, evidence=known)
        self.wake()

    def wake(self):
        Job.objects.filter(pk=self.job.pk).update(wake_at=timezone.now())

    def resume(self, cancel=False):
        """Go on from a halt, or by taking back."""
        if cancel:
            self.job.cancel(operator())
        else:
            self.job.resume(operator())
        return self

    def on_trial(self):
        self.submit()
        return self.approve().until("on_trial")

    @property
    def world(self):
        """What users have: which disk, whether it runs by Nova and by libvirt, and whether they may use it."""
        seen = self.admin.get_server(self.server.uuid)
        return self.site.files[self.site.live].content, self.site.destination.state, seen.vm_state, seen.is_locked

    def settled(self, **options):
        """The server once Nova does nothing with it any more."""
        return self.admin.wait_for_server(self.admin.get_server(self.server.uuid), interval=0.1, wait=60, **options)


OLD = ("old disk", "running", "active", False)
NEW = ("new disk", "running", "active", False)


def in_real_cloud(entry="appcred"):
    """The cloud of the clouds.yaml, with both hypervisors in it."""
    cloud = Cloud.objects.filter(name="real").first() or Cloud()
    members = [a_hypervisor(name).pk for name in ("src", "dst")]
    told = {"name": "real", "control": "openstack", "entry": entry}
    cloud.reregister(admin(), Hypervisor.objects.filter(pk__in=members), **told)
    return cloud
