"""A second factor: setting it up, logging in with it, losing it, and that approvers may be made to have one."""

import re
import time
from types import SimpleNamespace

import pytest
from django.test import Client
from django.urls import reverse
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticToken

from jobs.models import Decision
from tests.pages import scenes
from tests.typed import just_typed
from volmig.accounts import factors, guessing
from volmig.accounts.models import Login
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"


@pytest.fixture
def kim(person):
    return person("kim", "approver")


@pytest.fixture
def clock(monkeypatch):
    """A clock that codes go by, to be put forward; a code is good once only."""

    class Clock:
        at = 1_800_000_000.0

        def forward(self, seconds):
            self.at += seconds

    clock = Clock()
    monkeypatch.setattr("django_otp.plugins.otp_totp.models.time", SimpleNamespace(time=lambda: clock.at))
    return clock


def shown(user, clock, *, confirmed=True):
    """What the telephone shows now."""
    generator = TOTP(factors.app_of(user, confirmed=confirmed).bin_key)
    generator.time = clock.at
    return f"{generator.token():06}"


@pytest.fixture
def with_app(kim, clock):
    """Somebody who has set up an app; returns their recovery codes."""
    factors.begin(kim)
    codes = factors.confirm(kim, shown(kim, clock, confirmed=False))
    clock.forward(60)
    return codes


def password_typed(client):
    return client.post(reverse("login"), {"username": "kim", "password": PASSWORD, "next": "/approvals/"})


def is_in(client):
    return client.get(reverse("account")).status_code == 200


def test_without_one_the_password_lets_in(client, kim):
    password_typed(client)
    assert is_in(client)


def test_the_password_alone_lets_nobody_in_who_has_one(client, with_app):
    assert password_typed(client).headers["Location"] == reverse("login_code")
    assert not is_in(client)
    assert not Login.objects.exists()
    assert not Event.objects.filter(action="person.login").exists()


def test_password_and_code_let_in_and_lead_where_one_wanted_to_go(client, kim, with_app, clock):
    password_typed(client)
    response = client.post(reverse("login_code"), {"code": shown(kim, clock)})
    assert response.headers["Location"] == "/approvals/"
    assert is_in(client)
    assert "password_at" in client.session
    assert Event.objects.filter(action="person.login", actor=kim).exists()


def test_a_code_without_the_password_is_not_even_looked_at(client, kim, with_app, clock):
    assert client.post(reverse("login_code"), {"code": shown(kim, clock)}).headers["Location"] == reverse("login")
    assert not is_in(client)


def test_a_wrong_code_is_refused_and_recorded(client, kim, with_app, clock):
    password_typed(client)
    right = shown(kim, clock)
    wrong = f"{(int(right) + 1) % 1_000_000:06}"
    response = client.post(reverse("login_code"), {"code": wrong})
    assert (response.status_code, is_in(client)) == (422, False)
    guessing.record()
    assert Event.objects.get(action="person.code_refused").object == "kim"
    client.post(reverse("login_code"), {"code": right})
    assert not is_in(client), "the next one is not looked at for a while"


@pytest.mark.parametrize("code", ["", " ", "abc", "٠١٢٣٤٥", "-1", "1e5", "9" * 500])
def test_what_is_no_code_is_refused(client, with_app, code):
    password_typed(client)
    assert client.post(reverse("login_code"), {"code": code}).status_code == 422
    assert not is_in(client)


def test_a_code_is_good_once(client, kim, with_app, clock):
    code = shown(kim, clock)
    password_typed(client)
    client.post(reverse("login_code"), {"code": code})
    other = Client()
    password_typed(other)
    other.post(reverse("login_code"), {"code": code})
    assert is_in(client)
    assert not is_in(other)


def test_the_code_has_to_follow_the_password_soon(client, kim, with_app, clock, monkeypatch):
    password_typed(client)
    later = time.time() + 301
    monkeypatch.setattr("volmig.accounts.views.time.time", lambda: later)
    assert client.post(reverse("login_code"), {"code": "123456"}).headers["Location"] == reverse("login")


def test_a_disabled_person_does_not_get_in_by_a_code(client, kim, with_app, clock):
    password_typed(client)
    kim.is_active = False
    kim.save()
    client.post(reverse("login_code"), {"code": shown(kim, clock)})
    assert not is_in(client)


def test_a_recovery_code_lets_in_once_and_one_is_told_how_many_are_left(client, kim, with_app):
    password_typed(client)
    page = client.post(reverse("login_code"), {"code": f" {with_app[0].upper()} "}, follow=True).content.decode()
    assert "9 are left" in page
    other = Client()
    password_typed(other)
    assert other.post(reverse("login_code"), {"code": with_app[0]}).status_code == 422
    assert Event.objects.get(action="person.recovery_code").data == {"left": 9}


def test_neither_keys_nor_codes_can_be_read_in_the_database(kim, with_app):
    app = factors.app_of(kim)
    assert app.bin_key.hex() not in app.key
    assert not set(with_app) & set(StaticToken.objects.values_list("token", flat=True))


def test_a_key_that_was_put_into_another_persons_row_lets_nobody_in(kim, with_app, person, clock):
    lou = person("lou", "approver")
    app = factors.app_of(kim)
    code = shown(kim, clock)
    factors.App.objects.filter(pk=app.pk).update(user=lou)
    assert not factors.is_right(lou, code)


# Setting it up


@pytest.fixture
def inside(client, kim):
    password_typed(client)
    return client


def test_it_is_set_up_with_what_the_app_shows_and_the_password(inside, kim, clock):
    page = inside.get(reverse("factor")).content.decode()
    assert "<svg" in page
    assert "style=" not in page
    assert factors.app_of(kim, confirmed=False).letters() in page
    told = {"code": shown(kim, clock, confirmed=False), "password": PASSWORD}
    page = inside.post(reverse("factor"), told).content.decode()
    codes = re.findall(r"<li>([a-z2-9]{5}-[a-z2-9]{5})</li>", page)
    assert (len(codes), factors.has(kim)) == (10, True)
    assert Event.objects.filter(action="person.factor_add", actor=kim).exists()
    assert codes[0] not in inside.get(reverse("account")).content.decode()


@pytest.mark.parametrize(("code", "password"), [("000000", PASSWORD), (None, "wrong"), (None, "")])
def test_it_is_not_set_up_without_both(inside, kim, clock, code, password):
    factors.begin(kim)
    told = {"code": code or shown(kim, clock, confirmed=False), "password": password}
    assert inside.post(reverse("factor"), told).status_code == 422
    assert not factors.has(kim)


def test_setting_it_up_ends_other_sessions_that_began_without_it(inside, kim, clock):
    other = Client()
    password_typed(other)
    factors.begin(kim)
    inside.post(reverse("factor"), {"code": shown(kim, clock, confirmed=False), "password": PASSWORD})
    assert (is_in(inside), is_in(other)) == (True, False)


def test_loading_the_page_changes_nothing_for_who_has_one(client, kim, with_app, clock):
    client.force_login(kim)
    just_typed(client)
    client.get(reverse("factor"))
    assert factors.is_right(kim, shown(kim, clock)) == "app"


def test_wrong_passwords_are_counted_with_those_of_other_pages(inside, kim):
    factors.begin(kim)
    for _ in range(5):
        inside.post(reverse("factor"), {"code": "1", "password": "wrong"})
    page = inside.post(reverse("factor"), {"code": "1", "password": PASSWORD}).content.decode()
    assert "Too many wrong passwords" in page


@pytest.mark.parametrize(("verb", "left"), [("remove", 0), ("new-codes", 10)])
def test_it_is_changed_with_the_password_only(client, kim, with_app, verb, left):
    client.force_login(kim)
    just_typed(client)
    address = reverse("change_factor", args=[verb])
    assert client.post(address, {"password": "wrong"}).status_code == 422
    assert factors.has(kim)
    client.post(address, {"password": PASSWORD})
    assert factors.codes_left(kim) == left
    assert factors.has(kim) == (verb == "new-codes")


def test_new_recovery_codes_make_the_old_ones_worthless(client, kim, with_app):
    factors.new_codes(kim)
    assert not factors.is_right(kim, with_app[0])


def test_an_administrator_takes_it_away_from_who_lost_it(client, person, kim, with_app):
    client.force_login(person("ada", "administrator"))
    just_typed(client)
    assert "Remove second factor" in client.get(f"/accounts/{kim.pk}/").content.decode()
    client.post(f"/accounts/{kim.pk}/remove-factor/")
    assert not factors.has(kim)
    assert Event.objects.filter(action="person.factor_remove", object="kim").exists()


# Approvers


@pytest.fixture
def asked(person):
    scenes.hypervisors()
    return scenes.approval(scenes.job(person("dana", "operator"), "awaiting_approval"))


def decide(client, asked):
    told = {"reason": "Agreed.", "tail": asked.job.instance_id[-6:], "digest": asked.digest, "password": PASSWORD}
    return client.post(f"/approvals/{asked.pk}/", {**told, "verdict": "approve"})


def test_an_approver_without_one_is_told_how_to_get_it_and_cannot_decide(client, kim, asked, settings):
    settings.APPROVERS_NEED_TOTP = True
    client.force_login(kim)
    just_typed(client)
    page = client.get(f"/approvals/{asked.pk}/").content.decode()
    assert "You need a second factor to decide" in page
    assert f'href="{reverse("factor")}"' in page
    assert "Approve</button>" not in page
    assert decide(client, asked).status_code == 422
    assert not Decision.objects.exists()
    assert "You cannot approve or reject without one" in client.get(reverse("account")).content.decode()


def test_an_approver_with_one_decides(client, kim, asked, with_app, settings):
    settings.APPROVERS_NEED_TOTP = True
    client.force_login(kim)
    just_typed(client)
    decide(client, asked)
    assert Decision.objects.get().person == kim


def test_without_the_setting_nobody_needs_one(client, kim, asked):
    client.force_login(kim)
    just_typed(client)
    decide(client, asked)
    assert Decision.objects.exists()


def test_a_decision_on_an_approval_needs_the_code_of_whoever_has_a_factor(kim, with_app, clock, asked):
    """As every other sensitive change: with the password alone nobody decides, and nothing else is open afterwards."""
    client = Client()
    client.force_login(kim)
    address = f"/approvals/{asked.pk}/"
    form = {"verdict": "approve", "reason": "As agreed.", "tail": asked.job.instance_id[-6:], "digest": asked.digest}
    assert 'name="code"' in client.get(address).content.decode()
    for code in ("", "000000"):
        refused = client.post(address, form | {"password": PASSWORD, "code": code})
        assert refused.status_code == 422
        assert "Wrong code" in refused.content.decode()
        assert "password_at" not in client.session
    assert not Decision.objects.exists()
    event = Event.objects.filter(action="approval.password_refused").first()
    assert (event.job, event.data) == (asked.job_id, {"approval": asked.pk, "code": True})
    factors.app_of(kim).throttle_reset()  # after wrong ones the next has to wait
    code = shown(kim, clock)
    assert client.post(address, form | {"password": PASSWORD, "code": code, "tail": "xxxxxx"}).status_code == 422
    assert client.post(address, form | {"password": PASSWORD, "code": code}).status_code == 302, "it was not used up"
    assert Decision.objects.get().person == kim
