"""Sensitive changes need a password typed within the last five minutes, on every page and in every operation."""

import datetime as dt
import time

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tests.api.conftest import Program, code, letters_of
from tests.typed import just_typed
from tests.volmig.test_factors import clock, shown  # noqa: F401
from tests.volmig.test_matrix import MATRIX, arguments, people, things  # noqa: F401
from volmig.accounts import factors, step_up
from volmig.accounts.models import Token
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"
NEEDED, ITSELF, NO = "needed", "asks for the password itself", "not needed"
# What every address that takes something does about it. A new one needs a row: is it about people, trust or secrets?
PAGES = {
    **dict.fromkeys(("change_person", "add_team", "team", "remove_team"), NEEDED),
    **dict.fromkeys(("add_policy", "policy", "remove_policy"), NEEDED),
    **dict.fromkeys(("hosts:add_cloud", "hosts:cloud", "hosts:edit", "hosts:pin"), NEEDED),
    **dict.fromkeys(("hosts:policy", "hosts:seal_key", "adopt_verb"), NEEDED),
    **dict.fromkeys(("account", "add_token", "confirm", "login", "login_code", "jobs:approval"), ITSELF),
    **dict.fromkeys(("factor", "change_factor"), ITSELF),  # and, where there is a factor already, its code
    **dict.fromkeys(("logout", "end_session", "revoke_token"), NO),  # they only take something away from oneself
    **dict.fromkeys(("hosts:register", "hosts:offer", "hosts:refresh", "hosts:retire"), NO),  # nothing is trusted by it
    **dict.fromkeys(("hosts:check_cloud", "hosts:refresh_cloud"), NO),
    **dict.fromkeys(
        ("jobs:new", "jobs:extend", "jobs:verb", "jobs:scan", "jobs:leftover"), NO
    ),  # approvals guard these
}
FRESH_TOKEN = {"api:change", "api:registration", "api:pin", "api:approve", "api:reject", "api:withdraw"}
OTHERS = {
    *("register", "hypervisors", "offer", "retire", "refresh", "check_cloud", "refresh_cloud", "jobs", "submit"),
    *("preflight", "scan", "leftover", "nothing", "start", "cancel", "resume", "try_again", "confirm", "rate"),
    *("rollback", "purge", "rehearse", "extend"),
}


def takes(methods):
    return {"POST", "PUT"} & methods.keys()


def test_every_page_that_takes_something_is_classified():
    pages = {name for name, methods in MATRIX.items() if takes(methods) and not name.startswith("api:")}
    assert pages == set(PAGES)


def test_every_operation_that_takes_something_is_classified():
    operations = {name for name, methods in MATRIX.items() if takes(methods) and name.startswith("api:")}
    assert operations == FRESH_TOKEN | {f"api:{name}" for name in OTHERS}


@pytest.mark.parametrize("name", [name for name, kind in PAGES.items() if kind == NEEDED])
def test_a_password_typed_long_ago_leads_to_the_page_that_asks_for_it(name, people, things):  # noqa: F811
    client = Client()
    client.force_login(people["administrator"])
    address, events = reverse(name, args=arguments(name, things["red"])), Event.objects.count()
    session = client.session
    session["password_at"] = time.time() - step_up.FRESH - 1
    session.save()
    for method in MATRIX[name]:
        response = client.generic(method, address)
        assert response.status_code == 302
        assert response.url.startswith(reverse("confirm")), method
    assert Event.objects.count() == events, "nothing was changed"
    just_typed(client)
    assert not client.post(address).headers.get("Location", "").startswith(reverse("confirm"))


def test_one_confirms_with_the_password_and_goes_on_where_one_wanted_to_go(person):
    client = Client()
    client.force_login(person("ada", "administrator"))
    asked = client.get("/teams/add/").url
    assert asked == "/account/confirm/?next=%2Fteams%2Fadd%2F"
    assert client.post(asked, {"password": "wrong"}).status_code == 422
    assert client.get("/teams/add/").status_code == 302
    assert client.post(asked, {"password": PASSWORD}).url == "/teams/add/"
    assert client.get("/teams/add/").status_code == 200
    assert client.post("/teams/add/", {"name": "new"}).status_code == 302


def test_a_form_sent_too_late_changes_nothing_and_leads_back_to_it(person):
    client = Client()
    client.force_login(person("ada", "administrator"))
    ann = person("ann", "viewer")
    sent = client.post(f"/accounts/{ann.pk}/disable/", headers={"Referer": f"http://testserver/accounts/{ann.pk}/"})
    assert sent.url == f"/account/confirm/?next=%2Faccounts%2F{ann.pk}%2F"
    assert "Nothing was changed yet" in client.get(sent.url).content.decode()
    ann.refresh_from_db()
    assert ann.is_active


@pytest.mark.parametrize("following", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", ""])
def test_it_leads_to_no_other_site(person, following):
    client = Client()
    client.force_login(person("ada", "administrator"))
    assert client.post("/account/confirm/", {"password": PASSWORD, "next": following}).url == "/"


def test_who_has_a_second_factor_needs_its_code_too(person, clock):  # noqa: F811
    ada, client = person("ada", "administrator"), Client()
    factors.begin(ada)
    factors.confirm(ada, shown(ada, clock, confirmed=False))
    clock.forward(60)
    client.force_login(ada)
    assert client.post("/account/confirm/", {"password": PASSWORD}).status_code == 422
    assert "password_at" not in client.session
    assert client.post("/account/confirm/", {"password": PASSWORD, "code": shown(ada, clock)}).status_code == 302
    assert client.get("/teams/add/").status_code == 200
    other = Client()
    other.force_login(ada)
    clock.forward(60)
    wrong = f"{(int(shown(ada, clock)) + 1) % 1_000_000:06}"
    assert other.post("/account/confirm/", {"password": PASSWORD, "code": wrong}).status_code == 422
    assert "password_at" not in other.session


@pytest.mark.parametrize("address", ["/account/factor/", "/account/factor/remove/", "/account/factor/new-codes/"])
def test_a_second_factor_is_not_replaced_nor_removed_with_the_password_alone(person, clock, address):  # noqa: F811
    ada, client = person("ada", "administrator"), Client()
    factors.begin(ada)
    factors.confirm(ada, shown(ada, clock, confirmed=False))
    client.force_login(ada)
    assert client.post(address, {"password": PASSWORD}).url.startswith("/account/confirm/")
    assert factors.has(ada)


def test_the_page_is_no_way_to_guess_a_password(person):
    client = Client()
    client.force_login(person("ada", "administrator"))
    for number in range(step_up.TRIES):
        client.post("/account/confirm/", {"password": f"wrong {number}"})
    assert "Too many wrong passwords" in client.post("/account/confirm/", {"password": PASSWORD}).content.decode()
    assert "password_at" not in client.session


@pytest.mark.parametrize(("method", "rest"), [("PUT", "registration"), ("POST", "pin")])
def test_a_token_changes_what_volmig_trusts_for_fifteen_minutes_only(person, things, method, rest):  # noqa: F811
    ada = User.objects.get(username="administrator")
    ada.groups.set(Group.objects.all())
    program = Program(letters_of(ada, "administer"))
    address = f"/hypervisors/{things['red']['hosts']}/{rest}"
    sent = {"fingerprint": "SHA256:x"} if rest == "pin" else {"address": "192.0.2.99"}
    assert code(program.ask(method, address, sent)) != "token-old"
    Token.objects.update(created_at=timezone.now() - timezone.timedelta(minutes=16))
    response = program.ask(method, address, sent)
    assert (response.status_code, code(response)) == (403, "token-old")


def test_a_password_typed_in_the_future_before_a_clock_was_set_back_does_not_count(person):
    client = Client()
    client.force_login(person("ada", "administrator"))
    for ahead, counts in ((5, True), (3600, False)):
        session = client.session
        session["password_at"] = time.time() + ahead
        session.save()
        assert (client.get("/teams/add/").status_code == 200) is counts, ahead


def test_a_clock_that_was_set_back_keeps_nobody_from_confirming_for_hours(person, monkeypatch):
    ada = person("ada", "administrator")
    client = Client()
    client.force_login(ada)
    for _ in range(step_up.TRIES):
        client.post("/account/confirm/", {"password": "wrong"})
    assert step_up.closed_until(ada) is not None
    now = timezone.now()
    monkeypatch.setattr(step_up.timezone, "now", lambda: now - dt.timedelta(hours=5))
    assert step_up.closed_until(ada) is None
