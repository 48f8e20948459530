"""Guessing at the login page: five wrong passwords close a name from an address for ten minutes."""

import datetime as dt
import threading
import time

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.backends import ModelBackend
from django.db import connection
from django.db.models import F
from django.test import Client

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


def test_the_fifth_wrong_password_closes_the_name_even_for_the_right_one(client, ann):
    assert guess(client) == [200, 200, 200, 200, 429]
    refused = log_in(client)
    assert refused.status_code == 429
    assert "_auth_user_id" not in client.session


def test_the_page_says_in_our_words_when_to_try_again(client, ann):
    guess(client)
    until = AccessAttempt.objects.get().attempt_time + dt.timedelta(minutes=10)
    page = log_in(client)
    assert f'before <strong class="nowrap">{until:%H:%M:%S} UTC' in page.content.decode()
    assert 590 <= int(page["Retry-After"]) <= 600
    assert "wrong 1" not in page.content.decode()


def test_trying_while_it_is_closed_does_not_keep_it_closed(client, ann):
    guess(client)
    said = AccessAttempt.objects.get().attempt_time
    guess(client)
    assert AccessAttempt.objects.get().attempt_time == said


def test_it_opens_by_itself(client, ann):
    guess(client)
    AccessAttempt.objects.update(attempt_time=F("attempt_time") - dt.timedelta(minutes=10, seconds=1))
    assert log_in(client).status_code == 302


def test_other_people_and_other_addresses_are_not_closed(client, ann, person):
    person("bob", "viewer")
    guess(client)
    assert log_in(client, "bob").status_code == 302
    client.logout()
    assert log_in(client, address="192.0.2.8").status_code == 302


def test_the_right_password_forgets_the_wrong_ones(client, ann):
    assert guess(client, 4) == [200] * 4
    assert log_in(client).status_code == 302
    client.logout()
    assert guess(client, 4) == [200] * 4


def test_every_refused_try_is_in_the_record_and_so_is_that_the_name_was_closed(client, ann):
    guess(client)
    log_in(client)
    events = Event.objects.filter(action="person.login_refused", object="ann", address="192.0.2.7").order_by("seq")
    assert [event.data.get("locked", False) for event in events] == [False] * 4 + [True] * 2


def test_names_are_counted_without_being_kept(client):
    assert guess(client, name="hunter2-hunter2")[-1] == 429
    kept = str(list(AccessAttempt.objects.values()))
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
