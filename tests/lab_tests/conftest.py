"""Migrations on the lab, driven by the test itself: its ticks, its watcher and its people are all in this process."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts.models import (
    Cloud,
    DataAddress,
    Hypervisor,
    Instance,
    LogicalVolume,
    Mount,
    Reach,
    Share,
    VolumeGroup,
)
from hosts.remote import ssh
from hosts.remote.host import Request
from hosts.remote.hostctl.pack import bundle
from jobs.models import Job
from jobs.worker import tick
from jobs.worker.watcher import Watcher
from tests import factories, policies
from tests.site import Site

MIB = 1 << 20
SEEN = (Cloud, Hypervisor, DataAddress, VolumeGroup, LogicalVolume, Share, Mount, Instance, Reach)
PEOPLE = {"olga": "operator", "pavel": "approver", "ada": "administrator"}


class Driver:
    """volmig over the lab, one step at a time.

    `moments` maps (verb, direction) to what the test does just before that verb is sent for the first time.
    """

    def __init__(self, lab):
        self.lab, self.moments, self.watcher = lab, {}, None

    def interposed(self, call):
        """The way to hypervisors, with the test's moments in it."""

        def ask(host, request, timeout=20):
            if moment := self.moments.pop((request.verb, request.direction), None):
                moment()
            return call(host, request, timeout)

        return ask

    def submit(self, source, instance, **changed):
        """Ask for a volume of `source`'s vg_nova0 to become the disk of `instance`, and look at it once."""
        job = Job.objects.submit(factories.operator(), **{**self.asked(source, instance), "start": True, **changed})
        self.step()
        job.refresh_from_db()
        return job

    def asked(self, volume, instance, source="src", relay="jump"):
        """What a page would send, from what was seen when it was loaded."""
        volumes = Hypervisor.objects.get(name=source).volume_groups.get(name="vg_nova0").logical_volumes
        return {
            "source_volume": volumes.get(name=volume),
            "destination": Hypervisor.objects.get(name="dst").instances.get(uuid=instance.uuid),
            "disk": "disk.local",
            "relay": Hypervisor.objects.get(name=relay),
            "relay_vg": "vg_nova0",
        }

    def until(self, holds, *jobs, seconds=180):
        """Step until `holds()`; a job that halts, or nothing of the kind in time, is a failure that tells why."""
        deadline = time.monotonic() + seconds
        while not holds():
            self.step()
            for job in jobs:
                job.refresh_from_db()
                assert not job.halt_reason, job.halt_reason
            told = [(job.status, job.outcome_reason or job.waiting_for) for job in jobs]
            assert time.monotonic() < deadline, f"still {told} after {seconds} s"
            time.sleep(0.05)

    def reach(self, job, *statuses, seconds=180):
        self.until(lambda: job.status in (*statuses, "undone"), job, seconds=seconds)
        assert job.status in statuses, (job.status, job.outcome_reason)

    def step(self):
        """What watcher and workers would do just now; what a test's own moment met is met by its tick, and told."""
        self.watcher.take_share()
        self.watcher.turn()
        for pk in list(Job.objects.due().values_list("pk", flat=True)):
            tick.run(pk)
        faults = Job.objects.filter(waiting_for__startswith="Internal error")
        assert [job.waiting_for for job in faults] == []

    def approve(self, job, kind="swap"):
        approval = job.approvals.open().get(kind=kind)
        approval.approve(factories.approver(), approval.digest, "as agreed")
        job.refresh_from_db()
        return approval


@pytest.fixture
def drive(lab, db, settings, monkeypatch):
    """A driver whose volmig enters the lab as the user that hostctl is installed for; it knows no hypervisor yet."""
    settings.SSH_KEY, settings.LOCK_MARGIN = str(lab.key), 0
    # Nobody else could take a job over, and the test's transaction would keep a beating heart from writing.
    settings.LEASE_SECONDS = 600
    monkeypatch.setattr("jobs.worker.tick.BEAT_EVERY", 600)
    driver = Driver(lab)
    monkeypatch.setattr("hosts.remote.ssh.SSHHost.call", driver.interposed(ssh.SSHHost.call))
    driver.watcher = Watcher()
    yield driver
    driver.watcher.let_go()


@pytest.fixture
def register(lab, drive):
    """Has volmig know the three hypervisors as they are now."""

    def look():
        names = ("src", "jump", "dst")
        admit(lab, names)
        rows = [register_one(lab, name) for name in names]
        with ThreadPoolExecutor() as pool:
            seen = list(pool.map(inventory, [row.remote() for row in rows]))
        for row, answer in zip(rows, seen, strict=True):
            row.record_inventory(answer)

    return look


def register_one(lab, name):
    guest, cloud = lab.guests[name], Cloud.objects.get_or_create(name="lab")[0]
    return Hypervisor.objects.create(
        name=name, address="127.0.0.1", port=guest.port, host_key=guest.host_key, cloud=cloud
    )


def inventory(address):
    with ssh.connect(address) as host:
        return host.call(Request("inventory"), 60).evidence


@pytest.fixture(scope="module")
def inventories():
    """What was seen when a module's tests began; looking costs seconds."""
    return {}


@pytest.fixture
def look_once(register, inventories):
    """Register src, jump and dst as they were at the first call in this module."""

    def look():
        if not inventories:
            register()
            inventories.update({table: list(table.objects.all()) for table in SEEN})
            return
        for table, rows in inventories.items():
            table.objects.bulk_create(rows)

    return look


def admit(lab, names):
    """Install hostctl as its documentation says, for the lab's own key."""
    program, public = bundle(), lab.key.with_suffix(".pub").read_text()

    def one(name):
        lab.guests[name].install_hostctl(program, public)
        lab.guests[name].install_policy(policies.content(name, **policies.LAB))

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, names))


@pytest.fixture
def site(clean_lab, tmp_path):
    """Starts a volmig over the lab; a test says how hostctl gets there and which parts have their own supervisor."""
    started = []

    def start(shipped, *parts, **environment):
        site = Site(clean_lab, tmp_path / "volmig", shipped=shipped)
        site.more = environment
        started.append(site)
        site.prepare()
        site.start(*parts)
        return site

    yield start
    for site in started:
        site.stop()
