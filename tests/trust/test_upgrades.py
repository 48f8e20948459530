"""volmig and its hypervisors are upgraded at every step of a migration: nothing halts, and no guest is left down.

The hypervisors run two real versions of hostctl over the fake tools. What lies between them and volmig is the code of
hosts/remote/ssh.py without its sockets.
"""

import datetime as dt
import json
import random
from collections import Counter
from functools import partial

import pytest
from django.utils import timezone

from hosts.models import HostctlVersion, Hypervisor
from hosts.remote import ssh
from tests.factories import operator
from tests.jobs import lives
from tests.jobs.lives import WAYS, begin, check_the_world
from tests.trust import versions
from tests.trust.amounts import FULL, amount, figure
from volmig.record.models import Event

TODAY = versions.current()
STRIDE = amount(3, 40)  # begins anywhere, so that in time every call has its turn
EVERY = amount(1, 40)  # of what strands most
AWAY = dt.timedelta(minutes=5)


class Way:
    """A connection to a machine as a version of hostctl, as the one that a request names is found there."""

    def __init__(self, machine, address):
        self.machine, self.address = machine, address

    def __getattr__(self, name):
        return getattr(self.machine, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, request, timeout=20):
        return self.machine.site.carry(self, request)

    def hear(self, request):
        transport, there = ssh.SSHHost(self.address, None), self.machine.site.carry.at(self.machine.name)
        if self.address.shipped and transport.hash not in there.versions:
            self.ship(transport, there)
        answers = transport.hash if transport.hash in there.versions else there.current
        with self.machine.at_work(answers) as desk:
            said = desk.handle(transport.document(request))
        return transport.answer(f"call {request.verb} on {self.name}", json.dumps(said).encode(), "")

    def ship(self, transport, there):
        archive = TODAY.archive if transport.hash == TODAY.hash else self.address.archive
        if not archive:
            raise transport.differs(f"send hostctl to {self.name}", "volmig does not have it", "")
        assert versions.hash_of(archive) == transport.hash
        there.versions.add(transport.hash)


class Installed:
    """What is installed on a machine, and which of it answers when what is asked for is not."""

    def __init__(self, *found):
        self.versions, self.current = set(found), found[0] if found else ""


class Upgrade:
    """Lies between volmig and the hypervisors; with the `nth` call begins an upgrade of the kind `begin`."""

    def __init__(self, nth, former, kind=None):
        self.nth, self.former, self.kind = nth, former, kind
        self.count, self.hit, self.begun, self.waits = 0, None, None, 0
        self.release = former.hash
        self.hosts = {name: Installed(former.hash) for name in ("src", "jump", "dst")}

    def lay(self, site):
        site.carry = self

    def at(self, name):
        return self.hosts[name]

    def __call__(self, way, request):
        self.count += 1
        if self.count == self.nth:
            self.hit, self.begun = (way.name, request.verb), timezone.now()
            self.kind(self)
        if self.begun and timezone.now() - self.begun > AWAY:
            for there in self.hosts.values():
                there.versions |= {self.former.hash, TODAY.hash}
        try:
            return way.hear(request)
        except ssh.HostctlDiffers:
            self.waits += 1
            raise

    # Kinds

    def beside(self):
        """As it is documented: the new version is installed beside the former one, then volmig is upgraded."""
        for there in self.hosts.values():
            there.versions.add(TODAY.hash)
            there.current = TODAY.hash
        self.release = TODAY.hash

    def volmig_first(self):
        """volmig is upgraded, and the hypervisors get their version five minutes later."""
        self.release = TODAY.hash

    def replaced(self):
        """Somebody replaces the file everywhere; five minutes later the former version is installed beside it."""
        self.hosts = {name: Installed(TODAY.hash) for name in self.hosts}
        self.release = TODAY.hash

    def replaced_on_one(self):
        """The same on one hypervisor of the three."""
        self.hosts[random.choice(sorted(self.hosts))] = Installed(TODAY.hash)
        self.release = TODAY.hash

    def wiped(self):
        """volmig is upgraded, and what was shipped is gone from the hypervisors."""
        self.hosts = {name: Installed() for name in self.hosts}
        self.release = TODAY.hash


INSTALLED = [Upgrade.beside, Upgrade.volmig_first, Upgrade.replaced, Upgrade.replaced_on_one]
SHIPPED = [Upgrade.volmig_first, Upgrade.wiped]
ALL_WAYS = sorted(WAYS) if FULL else [random.choice(sorted(WAYS))]


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return versions.rebuilt(tmp_path_factory.mktemp("sources"))


@pytest.fixture(params=["the release before", "another source tree"] if FULL else ["either"])
def former(request, another):
    """The version with which volmig began the migration."""
    former = {"the release before": versions.former(), "another source tree": another}
    return former.get(request.param) or random.choice([*former.values()])


@pytest.fixture
def upgraded(machines, monkeypatch, tmp_path, former):
    """The site with both versions; which release volmig is, and what is installed, the call's carrier says."""
    versions.install(former, machines, monkeypatch, tmp_path / "former")
    monkeypatch.setattr(
        "hosts.remote.ssh.connect",
        lambda address: Way(next(host for host in machines.hosts if host.name == address.host), address),
    )
    monkeypatch.setattr("jobs.models.job.source_hash", lambda: machines.carry.release)
    Upgrade(0, former).lay(machines)
    HostctlVersion.objects.create(hash=former.hash, protocol=former.protocol, archive=former.archive)
    return machines


@pytest.fixture
def shipped(upgraded, monkeypatch):
    """The same, with root logins to which hostctl is sent."""
    installed = Hypervisor.remote

    def remote(hypervisor, version=""):
        hypervisor.shipped = True
        return installed(hypervisor, version)

    monkeypatch.setattr(Hypervisor, "remote", remote)
    return upgraded


def finished(site, free, waits, life):
    """It went its way by itself, and the guest runs."""
    assert life.said == [], "a person had to resume it"
    check_the_world(site, life.job, free)
    waits[site.carry.waits > 0] += 1


def upgrade_at_every_call(real_life, site, former, kind, way):
    free, life, waits = site.relay.free, begin(real_life, site, way), Counter()
    fault, check = partial(Upgrade, former=former, kind=kind), partial(finished, site, free, waits)
    ends = lives.every_nth(life, fault, EVERY if kind is Upgrade.replaced else STRIDE, check)
    told, what = ", ".join(f"{count} {end}" for end, count in ends.most_common()), kind.__doc__.strip().splitlines()[0]
    halts = sum(count for end, count in ends.items() if "halted" in end)
    figure(
        f"{way}, begun with {former.hash} (protocol {former.protocol}). {what} {ends.total()} upgrades, each at "
        f"another call: {told}; {waits[True]} waited, {halts} halts, 0 guests left down"
    )
    assert ends.total()
    assert halts == 0


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("kind", INSTALLED)
def test_an_upgrade_at_any_call_halts_nothing_and_leaves_no_guest_down(real_life, upgraded, former, kind, way):
    upgrade_at_every_call(real_life, upgraded, former, kind, way)


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("kind", SHIPPED)
def test_the_same_where_hostctl_is_shipped(real_life, shipped, former, kind, way):
    upgrade_at_every_call(real_life, shipped, former, kind, way)


# One by one


def waits_before(life, verb):
    """The migration, with the former version gone from its destination at the very call of this verb."""
    site = life.site

    class Amid(Upgrade):
        def __call__(self, way, request):
            if request.verb == verb and not self.begun:
                self.begun, self.hit = timezone.now() + dt.timedelta(days=1), (way.name, verb)
                self.hosts["dst"] = Installed(TODAY.hash)
            return super().__call__(way, request)

    Amid(0, site.carry.former).lay(site)
    while not site.carry.waits:
        life.job.refresh_from_db()
        life._step()
    life.job.refresh_from_db()
    return life.job


def comes_back(site):
    for there in site.carry.hosts.values():
        there.versions |= {site.carry.former.hash, TODAY.hash}


def test_no_instance_is_stopped_while_a_hypervisor_lacks_the_version(real_life, upgraded):
    life = begin(real_life, upgraded, "done")
    life.live("awaiting_approval")
    upgraded.carry.hosts["jump"] = Installed(TODAY.hash)
    for _ in range(5):
        life._step()
        life.job.refresh_from_db()
    assert (life.job.status, life.job.halt_reason) == ("approved", "")
    assert life.job.waiting_for.startswith("Before the instance is stopped: jump has hostctl")
    assert (upgraded.destination.state, upgraded.destination.marks) == ("running", {})
    comes_back(upgraded)
    assert life.live() == "done"


def test_with_the_guest_down_people_are_alerted_after_90_seconds_and_it_resumes_automatically(real_life, upgraded):
    life, former = begin(real_life, upgraded, "done"), upgraded.carry.former
    job = waits_before(life, "swap")
    assert (job.status, upgraded.destination.state) == ("swapping", "shut off")
    while not Event.objects.filter(action="job.unanswered").exists():
        life._step()
        job.refresh_from_db()
    assert not job.halt_reason
    said = Event.objects.get(action="job.unanswered").data["waiting_for"]
    assert f"dst has hostctl {TODAY.hash}, this migration needs {former.hash}. Write its file with" in said
    comes_back(upgraded)
    assert life.live() == "done"


def test_between_swap_and_start_it_can_be_cancelled_when_the_start_was_refused_unread(real_life, upgraded):
    life, free = begin(real_life, upgraded, "done"), upgraded.relay.free
    job = waits_before(life, "instance_start")
    assert job.why_no_cancel() == ""
    job.cancel(operator())
    comes_back(upgraded)
    life.wish = "rolled_back"
    assert life.live() == "rolled_back"
    assert upgraded.destination.state == "running"
    check_the_world(upgraded, job, free)


def test_what_is_done_after_the_end_is_done_with_this_volmigs_version(real_life, upgraded, former):
    life = begin(real_life, upgraded, "purged")
    life.live("done")
    assert life.job.hostctl == former.hash
    upgraded.carry.hosts = {name: Installed(TODAY.hash) for name in upgraded.carry.hosts}
    upgraded.carry.release = TODAY.hash
    assert life.live() == "purged"
    assert life.job.hostctl == TODAY.hash


def test_volmig_keeps_the_file_of_the_version_that_a_migration_begins_with(real_life, machines):
    life = real_life("done")
    life.submit()
    life.live("awaiting_approval")
    kept = HostctlVersion.objects.get()
    assert (life.job.hostctl, kept.pk, kept.protocol) == (TODAY.hash, TODAY.hash, TODAY.protocol)
    assert versions.hash_of(bytes(kept.archive)) == TODAY.hash
