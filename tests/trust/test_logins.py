"""10,000 wrong logins from 1,000 addresses for 100 accounts: what of it is checked, recorded and kept."""

import random
import time
from collections import Counter

import pytest
from django.contrib.auth.backends import ModelBackend
from django.db import connection, transaction
from django.test import Client

from tests.trust.amounts import FULL, amount, figure
from volmig.accounts import guessing
from volmig.accounts.throttle import LIMITS, Tries
from volmig.models import Notice
from volmig.record.models import Event

LOGINS, ADDRESSES, ACCOUNTS = amount(10_000, 300), amount(1_000, 30), amount(100, 4)
PASSWORD = "correct horse battery"
CHAIN = ("record_chainhead", "record_event")


class Watch:
    """Sees each SQL statement: which belong to the chain, and for how long its lock is held, until the commit."""

    def __init__(self):
        self.inside, self.by_requests, self.held, self.begun = "", 0, [], None

    def __call__(self, execute, sql, params, many, context):
        ours = any(table in sql for table in CHAIN)
        if ours and self.inside == "request":
            self.by_requests += 1
        if ours and self.begun is None and connection.in_atomic_block:
            self.begun = time.perf_counter()
            transaction.on_commit(self.ended)
        return execute(sql, params, many, context)

    def ended(self):
        self.held.append(time.perf_counter() - self.begun)
        self.begun = None


def address(number):
    """Each in a network of its own."""
    return f"10.{number // 250}.{number % 250}.9"


def log_in(client, name, password, place):
    return client.post("/login/", {"username": name, "password": password}, REMOTE_ADDR=place)


@pytest.mark.django_db(transaction=True)
def test_wrong_logins_by_the_thousand_are_throttled_counted_and_hold_up_nothing(person, monkeypatch):
    people = [person(f"person{number}", "viewer") for number in range(ACCOUNTS)]
    owner = Client()
    log_in(owner, "person0", PASSWORD, "198.51.100.7")
    owner.post("/logout/")
    before, minutes = Event.objects.count(), 0
    checked, statuses, chosen = Counter(), Counter(), random.Random(1)
    watch, client = Watch(), Client()
    with monkeypatch.context() as counted, connection.execute_wrapper(watch):
        counted.setattr(ModelBackend, "authenticate", lambda *_, username, **__: checked.update([username]))
        for number in range(LOGINS):
            watch.inside = "request"
            place = address(chosen.randrange(ADDRESSES))
            response = log_in(client, people[number % ACCOUNTS].username, f"wrong {number}", place)
            statuses[response.status_code] += 1
            watch.inside = ""
            if number % (LOGINS // 5) == LOGINS // 5 - 1:
                guessing.record()
                minutes += 1
    answer = log_in(owner, "person0", PASSWORD, "198.51.100.7")
    assert answer.status_code == 302, "the owner of an account is let in from the browser that they use"
    events = Event.objects.filter(seq__gt=before).exclude(action="person.login")
    assert statuses.keys() <= {200, 429}
    assert sum(checked.values()) <= LIMITS["all"].tries
    assert max(checked.values()) <= LIMITS["loginname"].tries + 10
    assert watch.by_requests == 0
    assert events.count() <= minutes * (guessing.NAMED + 2)
    told = [event.data for event in events]
    assert sum(data["wrong"] for data in told) == sum(checked.values())
    assert sum(data["wrong"] + data["refused"] for data in told) == LOGINS
    assert Notice.objects.filter(kind="guessing").count() <= minutes
    rows = Tries.objects.count()
    assert rows <= sum(checked.values()) + ACCOUNTS + 2 * ADDRESSES + 10, "what is refused adds no row"
    held = max(watch.held)
    if FULL:
        assert held < 0.05
    figure(
        f"{LOGINS} wrong logins from {ADDRESSES} addresses for {ACCOUNTS} accounts: {sum(checked.values())} passwords "
        f"checked (at most {max(checked.values())} of one account), {statuses[429]} refused unchecked; requests that "
        f"touched the chain: {watch.by_requests}; its lock held for at most {held * 1000:.1f} ms; {events.count()} new "
        f"events in {minutes} minutes of recording; {rows} rows kept"
    )
