"""Discovery of a large site: nothing is refused, nothing grows with the site, and nothing falls behind unseen."""

import datetime as dt
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from django.db import DataError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts import tasks, visits
from hosts.models import DataAddress, Hypervisor, Reach
from hosts.network import RELAYS, Member, Networks, Site
from hosts.remote import ssh
from hosts.remote.host import Answer, Unreachable
from hosts.remote.hostctl.facts import RELAY_PORTS
from hosts.remote.hostctl.request import TARGETS_CAP
from jobs.drift import ask_anew
from jobs.web import attention
from tests.factories import viewer
from tests.fleet.discovering import Fleet
from tests.trust.amounts import amount, figure
from volmig.models import QueuedTask

UNHASHABLE = {"address": "127.1.0.2", "port": 111, "state": []}
HYPERVISORS = 500  # of a site whose schedule is played through


@pytest.fixture
def fleet(db, tmp_path, monkeypatch):
    return Fleet(tmp_path).install(monkeypatch)


def refreshed(*rows):
    for row in rows:
        tasks.refresh(row.pk)
        row.refresh_from_db()


# 100 data addresses


def test_discovery_among_100_data_addresses_is_refused_nothing(fleet):
    rows = fleet.register(50)
    refreshed(*rows[: amount(50, 6)])
    for row in rows[: amount(50, 6)]:
        probes = fleet.hosts[row.name].probes()
        assert (row.last_error, row.reach_error) == ("", "")
        assert [len(targets) for targets in probes] == [64, 64, 19], (
            "49 relays with three ports each, in three requests"
        )
        assert max(map(len, probes)) <= TARGETS_CAP
        assert Counter(row.reaches.values_list("state", flat=True)) == {"refused": 147}
        assert row.reaches.values("address").distinct().count() == 49, "of both addresses the one that would be used"
    figure("discovery among 100 data addresses of 50 hypervisors: 3 requests and 147 ports from each, none refused")


def test_a_refresh_costs_as_many_statements_among_100_hypervisors_as_among_10(fleet):
    counts = {}
    for size in (10, 100):
        fleet.register(size - len(fleet.hosts))
        first = Hypervisor.objects.get(name="cmp-000")
        refreshed(first)  # what it has never seen costs a few more
        with CaptureQueriesContext(connection) as queries:
            tasks.refresh(first.pk)
        counts[size] = len(queries)
        assert first.reaches.count() == 3 * min(size - 1, RELAYS)
    assert counts[10] == counts[100], "\n".join(each["sql"][:200] for each in queries)
    figure(f"a refresh costs {counts[100]} statements of SQL among 10 and among 100 hypervisors")


def test_to_ask_for_a_scan_of_all_costs_as_many_statements_for_90_hypervisors_as_for_20(fleet):
    counts, by = [], viewer()
    for more in (10, 10, 70):  # what the first reads of this person's teams is known after it
        fleet.register(more)
        QueuedTask.objects.all().delete()
        with CaptureQueriesContext(connection) as queries:
            assert ask_anew(by) == len(fleet.hosts)
        counts.append(len(queries))
        assert QueuedTask.objects.filter(name="hosts.tasks.scan").count() == len(fleet.hosts)
        assert ask_anew(by) == 0, "they wait already"
    assert counts[1] == counts[2], "\n".join(each["sql"][:200] for each in queries)


def test_an_inventory_that_the_database_does_not_take_is_an_error_of_the_hypervisor(fleet, monkeypatch):
    [row] = fleet.register(1)

    def too_long(hypervisor, inventory):
        raise DataError("value too long for type character varying(38)")

    monkeypatch.setattr(Hypervisor, "record_inventory", too_long)
    refreshed(row)
    assert "a field is missing or malformed (value too long" in row.last_error
    assert row.seen_at is not None, "what was seen before stays"


# Who is probed


def member(key, *roles, **more):
    return Member(key, f"cmp-{key}", f"cmp-{key}", frozenset(roles or ("source", "relay")), **more)


def large(count):
    """A site of one data network, on which each could work with each."""
    networks = Networks((key, f"10.{key // 250}.{key % 250}.1", 8) for key in range(count))
    return Site([member(key) for key in range(count)], networks)


def test_from_each_source_of_a_large_site_the_same_few_relays_are_probed_and_together_all_of_them():
    before, after = large(500), large(501)
    probed = {key: before.relays_of(key) for key in range(500)}
    assert {len(relays) for relays in probed.values()} == {RELAYS}
    times = Counter(relay for relays in probed.values() for relay in relays)
    assert len(times) == 500, "a relay is never probed"
    assert max(times.values()) < 2.5 * RELAYS, "a relay is probed by nearly all"
    changed = sum(len(probed[key].keys() - after.relays_of(key).keys()) for key in range(500))
    assert changed < 500, "one more hypervisor changes whom the others probe"


def test_the_relays_that_migrations_use_are_always_probed():
    site = large(500)
    used = [key for key in range(100, 164) if key not in site.relays_of(0)][:40]
    assert used == [key for key in used if key in site.relays_of(0, first=used)]
    assert len(site.relays_of(0, first=used)) == RELAYS
    assert 900 not in site.relays_of(0, first=[900]), "it is not there any more"


def test_a_pair_that_cannot_work_together_is_not_probed_and_the_page_says_why():
    rows = [(1, "10.1.0.1", 16), (1, "10.9.0.1", 16), (1, "192.0.2.1", 24)]
    rows += [(2, "10.1.0.2", 16), (2, "10.9.0.2", 16), (2, "192.0.2.2", 24), (2, "10.8.0.2", 16), (3, "10.9.0.3", 16)]
    rows += [(4, "10.1.0.4", 16), (5, "10.1.0.5", 16)]
    source = Member(1, "src", "192.0.2.1", frozenset({"source"}))
    others = [member(2, "relay"), member(3, "source"), member(4, "relay", closed="in quarantine"), member(5, "source")]
    site = Site([source, *others], Networks(rows))
    assert site.relays_of(1) == {2: "10.9.0.2"}, "of two networks the one with fewer hypervisors"
    assert site.relays_of(2) == {}, "it is no source"
    asked = [(2, "192.0.2.2"), (2, "10.8.0.2"), (2, "10.1.0.2"), (4, "10.1.0.4"), (5, "10.1.0.5")]
    found = [site.why_not(1, relay, address).short for relay, address in asked]
    assert found == ["management", "other network", "other address", "no relay", "no relay"]
    assert site.why_not(1, 4, "10.1.0.4").sentence == "cmp-4 is in quarantine."
    assert site.why_not(2, 1, "10.9.0.1").short == "no source"


def test_a_hypervisor_whose_policy_lacks_the_role_is_no_relay(fleet):
    rows = fleet.register(3)
    report = rows[1].facts["policy"]
    rows[1].put(facts=rows[1].facts | {"policy": report | {"policy": report["policy"] | {"roles": ["source"]}}})
    refreshed(rows[0])
    assert set(rows[0].reaches.values_list("address", flat=True)) == {"127.1.0.3"}


def test_what_was_known_of_a_relay_that_is_none_any_more_is_deleted(fleet):
    rows = fleet.register(3)
    refreshed(rows[0])
    assert rows[0].reaches.count() == 6
    rows[2].retire(viewer())
    refreshed(rows[0])
    assert set(rows[0].reaches.values_list("address", flat=True)) == {"127.1.0.2"}


# What goes wrong


def refusal(request):
    error = {"code": "policy-peer", "tried": "run this step", "found": "not allowed here", "touched": False, "next": ""}
    return Answer("refused", error=error)


def nth_probe(host, number, answer):
    """Has the nth request to probe answered so; all others go to hostctl."""

    def instead(request):
        return answer(request) if request.verb == "reach" and len(host.probes()) == number else None

    host.instead = instead


def test_a_batch_that_is_refused_loses_neither_the_others_nor_the_inventory(fleet):
    first = fleet.register(50)[0]
    nth_probe(fleet.hosts[first.name], 2, refusal)
    refreshed(first)
    assert first.reaches.count() == 147 - TARGETS_CAP
    assert first.reach_error == "64 of 147 ports were not probed. Tried to test the network: not allowed here."
    assert (first.last_error, first.volume_groups.count()) == ("", 1)
    fleet.hosts[first.name].instead = lambda request: None
    refreshed(first)
    assert (first.reaches.count(), first.reach_error) == (147, "")


def test_a_hypervisor_that_cannot_be_probed_is_not_called_faulty_and_what_was_known_stays(fleet):
    first = fleet.register(50)[0]
    refreshed(first)
    before = Reach.objects.filter(hypervisor=first).values_list("seen_at", flat=True).first()
    fleet.hosts[first.name].instead = lambda request: refusal(request) if request.verb == "reach" else None
    refreshed(first)
    assert first.reach_error.startswith("147 of 147 ports were not probed.")
    assert (first.last_error, first.reaches.filter(seen_at=before).count()) == ("", 147)
    assert attention.items(viewer(), None) == []


def test_a_connection_that_is_lost_while_probing_keeps_what_was_found_and_ends_the_rest(fleet):
    first = fleet.register(50)[0]

    def cut(request):
        raise Unreachable("test the network", "the connection was cut", "Retrying automatically.")

    host = fleet.hosts[first.name]
    nth_probe(host, 2, cut)
    refreshed(first)
    assert (first.reaches.count(), len(host.probes()), first.last_error) == (TARGETS_CAP, 2, "")
    assert "83 of 147 ports were not probed. Tried to test the network: the connection was cut." in first.reach_error


def test_when_time_is_over_the_rest_is_left_and_reported(fleet, monkeypatch):
    first = fleet.register(50)[0]
    host, clock = fleet.hosts[first.name], {"now": 0.0}
    monkeypatch.setattr(tasks, "time", SimpleNamespace(monotonic=lambda: clock["now"], time=time.time))

    def slow(request):
        clock["now"] += tasks.PROBE_SECONDS * 0.6 if request.verb == "reach" else 0

    host.instead = slow
    refreshed(first)
    assert (len(host.probes()), first.reaches.count()) == (2, 2 * TARGETS_CAP)
    assert first.reach_error == f"19 of 147 ports were not probed. {tasks.OUT_OF_TIME}"


def test_what_hostctl_could_not_try_in_time_is_missing_and_an_answer_about_others_counts_for_nothing(fleet):
    first = fleet.register(3)[0]
    stranger = {"address": "192.0.2.9", "port": 2049, "state": "open"}
    wrong = {"address": "127.1.0.2", "port": 2049, "state": "<b>"}

    def partial(request):
        one, *rest = request.args["targets"]
        return Answer("done", {"results": [one | {"state": "open"}, stranger, wrong], "untried": rest})

    nth_probe(fleet.hosts[first.name], 1, partial)
    refreshed(first)
    assert list(first.reaches.values_list("address", "port", "state")) == [("127.1.0.2", 111, "open")]
    assert first.reach_error == f"5 of 6 ports were not probed. {tasks.OUT_OF_TIME}"


@pytest.mark.parametrize(
    "evidence", [{}, {"results": None}, {"results": [{"address": "127.1.0.2"}]}, {"results": [UNHASHABLE]}]
)
def test_a_malformed_answer_is_reported_as_an_error_of_the_probing(fleet, evidence):
    first = fleet.register(3)[0]
    nth_probe(fleet.hosts[first.name], 1, lambda request: Answer("done", evidence))
    refreshed(first)
    assert "a field is missing or malformed" in first.reach_error
    assert first.last_error == ""


# Within the period


def a_minute(drain, work):
    """What workers do in one minute of a site, whose clock is then a minute further."""
    tasks.refresh_stale()
    if work:
        drain()
    Hypervisor.objects.update(tried_at=F("tried_at") - dt.timedelta(seconds=60))


def oldest():
    return (timezone.now() - Hypervisor.objects.order_by("tried_at").first().tried_at).total_seconds()


def test_a_site_of_500_is_refreshed_within_its_period_and_makes_up_for_minutes_that_were_lost(
    drain, settings, monkeypatch
):
    settings.REFRESH_SECONDS = 300
    monkeypatch.setattr(tasks, "visit", lambda hypervisor: iter(()))
    now = timezone.now()
    Hypervisor.objects.bulk_create(
        Hypervisor(name=f"cmp-{number:03}", address="x", host_key="k", tried_at=now - dt.timedelta(seconds=number))
        for number in range(amount(HYPERVISORS, 250))
    )
    ages = []
    for _ in range(7):
        a_minute(drain, work=True)
        ages.append(oldest())
    assert max(ages[5:]) < 300 + 5
    for _ in range(9):
        a_minute(drain, work=False)
    waiting = QueuedTask.objects.waiting().values("name", "number").distinct().count()  # of equal ones one is run
    assert waiting <= 2 * amount(100, 50) / tasks.SHARE, "what waits is queued again and again"
    assert Hypervisor.objects.late().exists(), "it fell behind, and that is not seen"
    for _ in range(3):
        a_minute(drain, work=True)
    assert not Hypervisor.objects.late().exists()
    figure(f"{Hypervisor.objects.count()} hypervisors: the oldest last try is {max(ages[5:]):.0f} s ago, of 300 s")


def test_no_hypervisor_counts_as_tried_before_a_worker_tries_it_and_none_is_taken_twice(db):
    now = timezone.now()
    for number in range(3):
        Hypervisor.objects.create(name=f"cmp-{number}", address="x", host_key="k", tried_at=now - dt.timedelta(hours=1))
    tasks.refresh_stale()
    assert Hypervisor.objects.stale(tasks.outdated()).count() == 3
    taken = [Hypervisor.objects.take_stale(tasks.outdated()) for _ in range(4)]
    assert [each and each.name for each in taken] == ["cmp-0", "cmp-1", "cmp-2", None]


def test_two_workers_that_find_the_same_one_do_not_both_take_it(db, monkeypatch):
    """The other takes it between this one's reading and its claim."""
    Hypervisor.objects.create(name="cmp-0", address="x", host_key="k")
    queryset, before = type(Hypervisor.objects.all()), timezone.now() - dt.timedelta(hours=1)
    update, others = queryset.update, []

    def raced(self, **values):
        if not others:
            others.append(update(Hypervisor.objects.all(), tried_at=timezone.now()))
        return update(self, **values)

    monkeypatch.setattr(queryset, "update", raced)
    assert Hypervisor.objects.take_stale(before) is None
    assert others == [1]


# Many at a time


def visit(call, outcome):
    outcome.append((yield call))


def test_visits_wait_for_their_hypervisors_at_the_same_time():
    together = threading.Barrier(tasks.AT_ONCE)
    ended = []
    made = visits.together((visit(lambda: together.wait(20), ended) for _ in range(tasks.AT_ONCE)), tasks.AT_ONCE, 60)
    assert (made, len(ended)) == (tasks.AT_ONCE, tasks.AT_ONCE)


def test_one_that_does_not_answer_keeps_no_other_waiting():
    """It answers only when all others have, through the one place that it leaves them."""
    others, ended = threading.Semaphore(0), []

    def slow():
        return all(others.acquire(timeout=20) for _ in range(40))

    rest = [visit(lambda: others.release(), ended) for _ in range(40)]
    visits.together(iter([visit(slow, ended), *rest]), 2, 60)
    assert (ended.count(True), len(ended)) == (1, 41)


def test_no_more_are_under_way_than_is_said_and_none_begins_when_the_turn_is_over(monkeypatch):
    begun, clock = [], {"now": 0.0}
    monkeypatch.setattr(visits, "time", SimpleNamespace(monotonic=lambda: clock["now"], time=time.time))

    def one(number):
        begun.append(number)
        yield lambda: None
        clock["now"] += 10

    assert visits.together(map(one, range(100)), 2, 30) == len(begun)
    assert 3 <= len(begun) <= 4


def test_a_visit_that_fails_is_logged_and_the_others_are_made(caplog):
    def broken():
        yield lambda: None
        raise RuntimeError("out of order")

    def refused():
        yield lambda: 1 / 0

    ended = []
    visits.together(iter([broken(), refused(), visit(lambda: "well", ended)]), 1, 60)
    assert ended == ["well"]
    assert caplog.text.count("a visit to a hypervisor failed") == 2
    with pytest.raises(ZeroDivisionError):
        visits.alone(refused())


@pytest.mark.django_db(transaction=True)
def test_many_are_refreshed_together_the_dead_ones_too_and_one_thread_uses_the_database(
    tmp_path, monkeypatch, settings
):
    fleet = Fleet(tmp_path).install(monkeypatch)
    rows = fleet.register(20)
    for row in rows[::4]:
        fleet.hosts[row.name].dead = True
    threads, connect = set(), BaseDatabaseWrapper.ensure_connection
    callers, reach = set(), fleet.connect

    def used(wrapper):
        threads.add(threading.get_ident())
        connect(wrapper)

    def called(address):
        callers.add(threading.get_ident())
        return reach(address)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", used)
    monkeypatch.setattr("hosts.remote.ssh.connect", called)
    tasks.refresh_due(0)
    assert threads == {threading.get_ident()}
    assert threads.isdisjoint(callers), "they were called one after the other"
    dead, well = Hypervisor.objects.exclude(last_error=""), Hypervisor.objects.filter(last_error="")
    assert [row.name for row in dead] == [row.name for row in rows[::4]]
    assert {row.reaches.count() for row in well} == {3 * 19}
    assert not Hypervisor.objects.stale(tasks.outdated()).exists()


def test_a_visit_ends_before_a_task_comes_to_its_limit(settings):
    logins = ssh.TURN_SECONDS + 2 * 3 * 10  # TCP, banner and authentication of a bastion and of what is behind it
    last_calls = 5 + -(-RELAYS * len(RELAY_PORTS) // TARGETS_CAP)  # a second each, once time is over
    assert tasks.TURN_OF_VISITS + max(tasks.VISIT_SECONDS, logins) + last_calls < settings.TASK_SECONDS


# That workers do not keep up is shown


def test_late_refreshes_need_attention_and_are_shown_with_their_age(db, client, settings):
    settings.REFRESH_SECONDS = 300
    now = timezone.now()
    pinned = {"address": "x", "host_key": "k", "pinned_at": now - dt.timedelta(days=1)}
    for number, minutes in enumerate((4, 9, 12, 31)):
        Hypervisor.objects.create(name=f"cmp-{number}", tried_at=now - dt.timedelta(minutes=minutes), **pinned)
    Hypervisor.objects.create(name="new", address="x", host_key="k", pinned_at=now)
    vera = viewer()
    (item,) = attention.items(vera, None)
    assert item.sentence == "2 hypervisors have not been refreshed for more than 11 min."
    assert "VOLMIG_BACKGROUND_WORKERS" in item.advice
    assert item.since == now - dt.timedelta(minutes=31)
    client.force_login(vera)
    page = client.get("/hosts/").content.decode()
    assert f"{item.sentence} {item.detail} {item.advice}" in page, "one wording wherever it is said"
    assert "31 min" in page
    Hypervisor.objects.filter(name="cmp-2").update(tried_at=now)
    assert "It was last tried <time" in client.get("/hosts/").content.decode()
    Hypervisor.objects.filter(name="cmp-3").update(tried_at=None)
    assert "It was never tried." in client.get("/hosts/").content.decode()
    Hypervisor.objects.update(tried_at=now)
    assert attention.items(vera, None) == []
    assert "not been refreshed" not in client.get("/hosts/").content.decode()


# The page


@pytest.mark.parametrize(("hypervisors", "addresses"), [(26, 2), (26, 1), (14, 2)])
def test_the_page_of_a_large_site_counts_and_names_no_pair(fleet, client, hypervisors, addresses):
    rows = fleet.register(hypervisors)
    refreshed(*rows[:2])
    Reach.objects.filter(hypervisor=rows[0], address="127.1.0.2").update(state="filtered")
    DataAddress.objects.filter(address__startswith="127.2." if addresses == 1 else "none").delete()
    DataAddress.objects.filter(hypervisor__in=rows[20:] if addresses == 1 else ()).delete()
    client.force_login(viewer())
    page = client.get("/hosts/").content.decode()
    part = page[page.index('id="h-reach"') :]
    assert f"{hypervisors - 2} of {hypervisors - 1}" in part
    assert f"{hypervisors - 1} of {hypervisors - 1}" in part
    assert part.count("<tr>") == 3, "those from which nothing was probed are not listed"
    assert "127.1.0.2" not in part
