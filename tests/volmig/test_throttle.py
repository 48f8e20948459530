"""Guessing: what closes after how many wrong passwords, codes and tokens, for whom not, and what is recorded of it."""

import datetime as dt
import threading
import time

import pytest
from django.contrib.auth.backends import ModelBackend
from django.db import connection
from django.db.models import F
from django.test import Client

from volmig.accounts import guessing
from volmig.accounts.throttle import LIMITS, Tries, network_of
from volmig.models import Notice
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"


@pytest.fixture
def ann(person):
    return person("ann", "viewer")


def log_in(client, name="ann", password=PASSWORD, address="192.0.2.7"):
    return client.post("/login/", {"username": name, "password": password}, REMOTE_ADDR=address)


def guess(client, times=5, name="ann", address="192.0.2.7"):
    return [log_in(client, name, f"wrong {number}", address).status_code for number in range(times)]


def elsewhere(number):
    """An address in a network of its own."""
    return f"10.{number // 250}.{number % 250}.9"


def later(seconds):
    for name in ("since", "last_at", "closed_until"):
        Tries.objects.update(**{name: F(name) - dt.timedelta(seconds=seconds)})


def test_the_fifth_wrong_password_closes_the_name_even_for_the_right_one(client, ann):
    assert guess(client) == [200, 200, 200, 200, 429]
    refused = log_in(client)
    assert refused.status_code == 429
    assert "_auth_user_id" not in client.session


def test_the_page_says_when_to_try_again(client, ann):
    guess(client)
    until = Tries.objects.get(kind="login").closed_until
    page = log_in(client)
    assert f'until <strong class="nowrap">{until:%H:%M:%S} UTC' in page.content.decode()
    assert 590 <= int(page["Retry-After"]) <= 600
    assert "wrong 1" not in page.content.decode()


def test_trying_while_it_is_closed_does_not_keep_it_closed(client, ann):
    guess(client)
    said = Tries.objects.get(kind="login").closed_until
    guess(client)
    assert Tries.objects.get(kind="login").closed_until == said


def test_it_opens_after_ten_minutes(client, ann):
    guess(client)
    later(601)
    assert log_in(client).status_code == 302


def test_a_clock_that_was_set_back_closes_nothing_for_long(client, ann):
    guess(client)
    later(-7200)  # as if the failures lay two hours ahead
    assert log_in(client).status_code == 302


def test_other_people_and_other_addresses_are_not_closed(client, ann, person):
    person("bob", "viewer")
    guess(client)
    assert log_in(client, "bob").status_code == 302
    assert log_in(Client(), address="192.0.2.8").status_code == 302


def test_the_right_password_forgets_the_wrong_ones(client, ann):
    assert guess(client, 4) == [200] * 4
    assert log_in(client).status_code == 302
    assert guess(Client(), 4) == [200] * 4


@pytest.mark.parametrize("typed", [" ann", "ann\u3000\t", "\uff41nn"], ids=["a space", "other spaces", "full width"])
def test_a_name_is_counted_as_the_form_reads_it(client, ann, typed):
    assert log_in(Client(), typed).status_code == 302, "the form takes it for the same name"
    assert guess(client, 4) == [200] * 4
    assert guess(client, 1, typed) == [429]
    assert log_in(client, typed).status_code == 429
    assert Tries.objects.get(kind="loginname", person=ann).count == LIMITS["login"].tries


def test_one_name_from_many_addresses_waits_longer_after_each_try(ann):
    limit = LIMITS["loginname"].tries
    assert [guess(Client(), 1, address=elsewhere(number)) for number in range(limit - 1)] == [[200]] * (limit - 1)
    delays = []
    for number in range(limit, limit + 9):
        assert guess(Client(), 1, address=elsewhere(number)) == [429]
        assert log_in(Client(), address=elsewhere(999)).status_code == 429, "the right one is not checked either"
        row = Tries.objects.get(kind="loginname")
        delays.append(round((row.closed_until - row.last_at).total_seconds()))
        later(delays[-1] + 1)
    assert delays == [10, 20, 40, 80, 160, 320, 640, 900, 900]
    later(3601)
    assert guess(Client(), 1, address=elsewhere(500)) == [200], "after an hour without a try it starts again"


def test_who_logged_in_from_a_browser_before_is_shut_out_of_it_by_nobody(ann):
    mine = Client()
    log_in(mine)
    mine.post("/logout/")
    for number in range(LIMITS["loginname"].tries):
        guess(Client(), 1, address=elsewhere(number))
    for number in range(LIMITS["address"].tries):
        guess(Client(), 1, name=f"name {number}")
    assert log_in(Client()).status_code == 429
    assert log_in(mine).status_code == 302


def test_a_known_browser_has_five_tries_too_and_is_known_for_its_own_name_only(ann, person):
    person("bob", "viewer")
    mine = Client()
    log_in(mine)
    mine.post("/logout/")
    assert guess(mine) == [200, 200, 200, 200, 429]
    assert guess(mine, 1, name="bob") == [200]
    assert Tries.objects.filter(kind="loginname", count=1).count() == 1, "bob's count is that of a stranger"


def test_a_forged_browser_cookie_is_none(ann):
    forged = Client()
    log_in(forged)
    forged.post("/logout/")
    value = forged.cookies["device"].value
    forged.cookies["device"] = value[:-1] + ("A" if value[-1] != "A" else "B")
    guess(Client(), 5)
    assert log_in(forged).status_code == 429


@pytest.mark.parametrize(("address", "network"), [("192.0.2.77", "192.0.2.0/24"), ("2001:db8::1:2", "2001:db8::/64")])
def test_networks(address, network):
    assert network_of(address) == network


def test_many_names_from_one_address_and_then_from_its_network_are_closed(ann):
    tries = LIMITS["address"].tries
    codes = [guess(Client(), 1, name=f"name {number}")[0] for number in range(tries + 1)]
    assert codes == [200] * (tries - 1) + [429] * 2
    used = 1
    while guess(Client(), 1, name=f"other {used}", address=f"192.0.2.{100 + used % 50}") == [200]:
        used += 1
    assert tries + used == LIMITS["network"].tries
    assert log_in(Client(), address="192.0.2.250").status_code == 429
    assert log_in(Client(), address="192.0.3.250").status_code == 302


def test_refused_logins_are_one_event_a_minute_with_counts(client, ann):
    guess(client)
    log_in(client)
    guess(client, 2, address="192.0.2.8")
    assert not Event.objects.exists(), "no request without a login writes to the chain"
    guessing.record()
    guessing.record()
    event = Event.objects.get()
    assert (event.action, event.object) == ("person.login_refused", "ann")
    places = {"192.0.2.7": 6, "192.0.2.8": 2}
    assert event.data == {"wrong": 7, "refused": 1, "addresses": places, "of_addresses": 2}


def test_more_accounts_than_are_named_share_an_event(person):
    for number in range(guessing.NAMED + 5):
        person(f"p{number}")
        guess(Client(), 1, name=f"p{number}", address=elsewhere(number))
    guess(Client(), 1, name="nobody")
    guessing.record()
    events = list(Event.objects.values_list("object", "data__wrong", "data__accounts"))
    assert len(events) == guessing.NAMED + 2
    assert ("", 5, 5) in events
    assert sum(wrong for _, wrong, _ in events) == guessing.NAMED + 6


def test_people_are_notified_once_of_guesses_for_an_account(ann):
    for number in range(LIMITS["loginname"].tries + 3):
        guess(Client(), 1, address=elsewhere(number))
        later(11)
    guessing.record()
    guessing.record()
    notice = Notice.objects.get(kind="guessing")
    assert "for: ann." in notice.text


def test_whose_password_was_guessed_at_is_warned_at_the_next_login(ann):
    guess(Client(), 3, address="192.0.2.8")
    guess(Client(), 3, address="198.51.100.8")
    guessing.record()
    client = Client()
    assert "6 wrong passwords were entered for your name" in client.get(log_in(client).url).content.decode()
    client = Client()
    assert "wrong passwords" not in client.get(log_in(client).url).content.decode()


def test_rows_are_forgotten_an_hour_after_the_last_try_but_not_before_they_are_recorded(client, ann):
    guess(client)
    later(3601)
    guessing.record()
    assert not Tries.objects.exists()
    assert Event.objects.get().data["wrong"] == 5


def test_names_are_counted_without_being_kept(client):
    assert guess(client, name="hunter2-hunter2")[-1] == 429
    kept = str(list(Tries.objects.values()))
    assert "hunter2" not in kept
    assert "wrong 1" not in kept


@pytest.mark.django_db(transaction=True)
def test_guesses_at_once_are_no_more_than_guesses_in_turn(person, monkeypatch):
    person("ann", "viewer")
    looked_at, look = [], ModelBackend.authenticate

    def slowly(self, request, **credentials):
        looked_at.append(credentials["password"])
        time.sleep(0.05)  # as long as a real password takes
        return look(self, request, **credentials)

    def one(number):
        try:
            Client().post("/login/", {"username": "ann", "password": f"wrong {number}"})
        finally:
            connection.close()

    monkeypatch.setattr(ModelBackend, "authenticate", slowly)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looked_at) == 5
