"""Discovery: what is asked of a hypervisor, and what becomes of an error."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts import tasks
from hosts.models import Hypervisor
from hosts.remote import hostctl, ssh
from hosts.remote.host import Answer, HostctlDiffers, HostKeyChanged, Unreachable
from hosts.remote.hostctl.facts import RELAY_PORTS
from volmig import incarnation
from volmig.models import Session

pytestmark = pytest.mark.django_db


class Fake:
    """A host that answers as told and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, request, timeout=20):
        self.asked.append((request.verb, request.args))
        answer = self.answers[request.verb]
        return answer if isinstance(answer, Answer) else Answer("done", answer)


@pytest.fixture
def fake(monkeypatch, inventory):
    host = Fake({"hello": {}, "status": {"owner": {}}, "policy": {}, "inventory": inventory, "reach": {"results": []}})
    monkeypatch.setattr(ssh, "connect", lambda address: host)
    return host


def fails(monkeypatch, error):
    def connect(address):
        raise error

    monkeypatch.setattr(ssh, "connect", connect)


def test_a_refresh_takes_over_the_inventory(hypervisor, fake):
    src = hypervisor(last_error="old")
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert [verb for verb, _ in fake.asked] == ["status", "hello", "policy", "inventory"]
    assert src.volume_groups.count() == 1
    assert (src.hostctl_hash, src.last_error) == (hostctl.source_hash(), "")


def test_a_refresh_measures_by_how_much_the_clock_of_a_host_is_off(hypervisor, fake):
    src = hypervisor("src")
    for off in (40.0, -40.0, 0.0):
        fake.answers["hello"] = {"time": timezone.now().timestamp() + off}
        tasks.refresh(src.pk)
        src.refresh_from_db()
        assert abs(src.clock_off - off) < 1
    fake.answers["hello"] = {}
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert src.clock_off == 0, "of a host that does not say nothing is known"


def owner(name, session, claim):
    return {"owner": {"incarnation": name, "session": session, "claims": {session: claim}}}


def test_a_refresh_finds_out_that_the_database_is_older_than_what_was_done_on_a_host(hypervisor, fake):
    src = hypervisor("src")
    assert incarnation.check() is None
    Session.objects.create(name="a" * 32, claims=4)
    fake.answers["status"] = owner(incarnation.name(), "a" * 32, 4)
    tasks.refresh(src.pk)
    assert incarnation.read_only() is None
    fake.answers["status"] = owner(incarnation.name(), "a" * 32, 5)
    tasks.refresh(src.pk)
    state = incarnation.read_only()
    assert (state.code, state.reason.startswith("src: session aaaaaaaa had counted to 5")) == ("other-owner", True)
    assert src.volume_groups.count() == 1, "questions go on"


def test_a_refresh_of_a_host_of_another_volmig_stops_nothing(hypervisor, fake):
    assert incarnation.check() is None
    fake.answers["status"] = owner("e" * 32, "a" * 32, 5)
    tasks.refresh(hypervisor("src").pk)
    assert incarnation.read_only() is None


def test_a_source_is_probed_for_the_addresses_of_possible_relays(hypervisor, fake, inventory):
    src, jump = hypervisor("src"), hypervisor("jump")
    inventory["addresses"][0]["address"] = "10.77.1.12"
    jump.record_inventory(inventory)
    inventory["addresses"][0]["address"] = "10.77.1.11"
    fake.answers["reach"] = {"results": [target("10.77.1.12") | {"state": "open", "ms": 1}] * 2}
    tasks.refresh(src.pk)
    assert fake.asked[-1][1] == {"targets": [target("10.77.1.12", port) for port in RELAY_PORTS]}
    assert list(src.reaches.values_list("port", "state")) == [(2049, "open")]
    src.refresh_from_db()
    assert src.reach_error.startswith("2 of 3 ports were not probed.")


def target(address, port=2049):
    return {"address": address, "port": port}


def test_an_error_is_kept_and_the_figures_stay(hypervisor, fake, monkeypatch):
    src = hypervisor()
    tasks.refresh(src.pk)
    fails(monkeypatch, Unreachable("log in to src", "connection refused"))
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert "connection refused" in src.last_error
    assert src.volume_groups.count() == 1
    assert src.quarantined_at is None


def test_a_changed_key_quarantines_the_machine_that_offered_it(hypervisor, monkeypatch):
    bastion = hypervisor("bastion")
    src = hypervisor("src", bastion=bastion)
    error = HostKeyChanged("log in", "it offered another key")
    error.address = bastion.remote()
    fails(monkeypatch, error)
    tasks.refresh(src.pk)
    assert set(Hypervisor.objects.exclude(quarantined_at=None)) == {bastion}


def test_the_same_address_behind_another_bastion_is_another_machine(hypervisor, monkeypatch):
    east, west = hypervisor("east"), hypervisor("west")
    near, far = (hypervisor(f"src-{hop}", bastion=hop, address="10.0.0.5", port=22) for hop in (east, west))
    open_one = hypervisor("src-open", address="10.0.0.5", port=22)
    error = HostKeyChanged("log in", "it offered another key")
    error.address = near.remote()
    fails(monkeypatch, error)
    tasks.refresh(near.pk)
    assert set(Hypervisor.objects.exclude(quarantined_at=None)) == {near}
    assert {far, open_one} <= set(Hypervisor.objects.reachable())


def test_a_quarantined_hypervisor_is_not_asked(hypervisor, fake):
    src = hypervisor()
    src.quarantine("it offered another key")
    tasks.refresh(src.pk)
    assert fake.asked == []


def test_another_hostctl_is_forgotten_and_said(hypervisor, fake, monkeypatch):
    src = hypervisor(hostctl_hash="old")
    fails(monkeypatch, HostctlDiffers("call hello", "the host's hostctl is another"))
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert (src.hostctl_hash, "another" in src.last_error) == ("", True)


def test_an_inventory_that_lacks_something_is_an_error_not_a_crash(hypervisor, fake):
    src = hypervisor()
    del fake.answers["inventory"]["domains"]
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert "inventory" in src.last_error
    assert not src.volume_groups.exists()


def test_a_refusal_is_said_in_hostctls_words(hypervisor, fake):
    error = {"code": "no-lvm", "tried": "vgs", "found": "no lvm here", "touched": False, "next": "Install lvm2."}
    fake.answers["inventory"] = Answer("refused", error=error)
    src = hypervisor()
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert "no lvm here. Install lvm2." in src.last_error


def test_only_stale_hypervisors_are_queued(hypervisor, drain, fake, settings):
    now = timezone.now()
    hypervisor("never")
    hypervisor("old", tried_at=now - dt.timedelta(seconds=settings.REFRESH_SECONDS + 1))
    hypervisor("fresh", tried_at=now)
    hypervisor("retired", retired_at=now)
    hypervisor("unpinned", host_key="")
    settings.REFRESH_SECONDS = 60
    tasks.refresh_stale()
    tasks.refresh_stale()  # while the workers are busy with others
    assert drain() == ["hosts.tasks.refresh_due"]
    assert Hypervisor.objects.filter(seen_at__gte=now).count() == 2


def test_hypervisors_that_were_refreshed_before_the_clock_was_set_back_are_refreshed_again(hypervisor):
    now = timezone.now()
    hypervisor("ahead", tried_at=now + dt.timedelta(hours=5))
    hypervisor("a little ahead", tried_at=now + dt.timedelta(seconds=20))
    assert [host.name for host in Hypervisor.objects.stale(now - dt.timedelta(hours=1))] == ["ahead"]


def test_many_hypervisors_are_refreshed_in_turn_the_longest_untried_first(hypervisor, drain, fake, monkeypatch):
    monkeypatch.setattr(tasks, "SHARE", 2)
    now = timezone.now()
    for number in range(10):
        hypervisor(f"h{number}", tried_at=now - dt.timedelta(hours=1 + number))
    tasks.refresh_stale()
    assert drain() == ["hosts.tasks.refresh_due"] * 2, "twice as many as keep them fresh"
    assert {host.name for host in Hypervisor.objects.filter(tried_at__gte=now)} == {"h6", "h7", "h8", "h9"}


def test_the_offered_key_is_kept_but_not_trusted(hypervisor, monkeypatch):
    src = hypervisor(host_key="")
    monkeypatch.setattr(ssh, "offered_key", lambda *_: "ssh-ed25519 BBBB")
    tasks.offer_key(src.pk)
    src.refresh_from_db()
    assert (src.offered_key, src.host_key) == ("ssh-ed25519 BBBB", "")
