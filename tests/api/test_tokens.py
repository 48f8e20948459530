"""Tokens: who may make one, what it opens, and everything that ends it."""

import datetime as dt

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from tests.api.conftest import Program, code, letters_of
from tests.pages import scenes
from tests.typed import just_typed
from volmig.accounts import factors, people
from volmig.accounts.models import Token
from volmig.record.models import Event

PASSWORD = "correct horse battery"
pytestmark = pytest.mark.django_db


def page_of(user):
    client = Client()
    client.force_login(user)
    return just_typed(client)


def made_on_the_page(user, **sent):
    told = {"name": "nightly", "days": "30", "password": PASSWORD, **sent}
    return page_of(user).post(reverse("add_token"), told)


def test_a_token_is_made_with_the_password_shown_once_and_kept_as_a_hash(dana):
    page = made_on_the_page(dana, verbs=["submit"])
    letters = page.context["letters"]
    assert letters in page.content.decode()
    assert page.headers["Cache-Control"] == "no-store"
    token = Token.objects.get()
    assert letters not in (token.digest, token.name)
    assert (token.scope, token.person) == (["submit", "view"], dana)
    assert letters not in page_of(dana).get(reverse("account")).content.decode()
    assert Event.objects.filter(action="token.make", actor=dana).exists()
    assert letters not in str(list(Event.objects.values()))


NOT_MADE = {
    "a wrong password": {"password": "wrong"},
    "no password": {"password": ""},
    "a verb of no role of theirs": {"verbs": ["approve"]},
    "what is no verb": {"verbs": ["sudo"]},
    "no days": {"days": "0"},
    "too many days": {"days": "400"},
}


@pytest.mark.parametrize("sent", NOT_MADE.values(), ids=NOT_MADE)
def test_no_token_is_made_for(dana, sent):
    assert made_on_the_page(dana, **sent).status_code == 422
    assert not Token.objects.exists()


def test_one_that_may_approve_ends_after_fifteen_minutes_whatever_was_typed(kim):
    made_on_the_page(kim, verbs=["approve"], days="300")
    assert Token.objects.get().expires_at <= timezone.now() + dt.timedelta(minutes=15)


def test_a_token_opens_the_api_and_the_account_page_tells_its_last_use(dana):
    letters = letters_of(dana, "submit")
    told = Program(letters).get("/me").json()
    assert (told["person"], told["scope"]) == ("dana", ["submit", "view"])
    assert "127.0.0.1" in page_of(dana).get(reverse("account")).content.decode()


def test_a_token_opens_no_page(dana, hosts):
    headers = {"Authorization": f"Bearer {letters_of(dana)}"}
    assert Client().get(reverse("overview"), headers=headers).status_code == 302


def test_a_session_opens_no_operation(dana, hosts):
    response = page_of(dana).get("/api/v1/hypervisors")
    assert (response.status_code, code(response)) == (401, "no-token")
    assert response.headers["WWW-Authenticate"] == "Bearer"


OTHER = "another battery staple"
ENDS = {
    "it is revoked": ("token-revoked", lambda token: people.revoke_token(token, token.person)),
    "it expired": ("token-expired", lambda token: Token.objects.update(expires_at=timezone.now())),
    "its person is disabled": ("account-disabled", lambda token: User.objects.update(is_active=False)),
    "an administrator disables": ("token-revoked", lambda token: people.set_active(token.person_id, False, ada())),
    "an administrator ends sessions": ("token-revoked", lambda token: people.end_sessions(token.person_id, ada())),
    "its person is made anew": ("token-revoked", lambda token: people.make_person("dana", OTHER, ["operator"])),
}


def ada():
    user = User.objects.create_user("ada", password=PASSWORD)
    user.groups.set(Group.objects.filter(name="administrator"))
    return user


@pytest.mark.parametrize("how", ENDS)
def test_a_token_is_dead_when(how, dana):
    program = Program(letters_of(dana))
    assert program.get("/me").status_code == 200
    says, end = ENDS[how]
    end(Token.objects.get())
    response = program.get("/me")
    assert (response.status_code, code(response)) == (401, says)


def test_a_token_that_was_dead_stays_dead_when_its_person_is_enabled_again(dana):
    program = Program(letters_of(dana))
    people.set_active(dana.pk, False, boss := ada())
    people.set_active(dana.pk, True, boss)
    assert program.get("/me").status_code == 401


def test_a_change_of_password_ends_all_tokens(dana):
    program = Program(letters_of(dana))
    new = {
        "old_password": PASSWORD,
        "new_password1": "another battery staple",
        "new_password2": "another battery staple",
    }
    page_of(dana).post(reverse("account"), new)
    assert code(program.get("/me")) == "token-revoked"


def test_a_change_of_the_second_factor_ends_all_tokens(dana):
    factors.begin(dana)
    factors.App.objects.update(confirmed=True)
    program = Program(letters_of(dana))
    page_of(dana).post(reverse("change_factor", args=["remove"]), {"password": PASSWORD})
    assert not factors.has(dana)
    assert code(program.get("/me")) == "token-revoked"


def test_one_revokes_ones_own_tokens_and_nobody_elses(dana, kim):
    mine, _ = Token.objects.make(dana, "mine", [], 1)
    hers, _ = Token.objects.make(kim, "hers", [], 1)
    page = page_of(dana)
    assert page.post(reverse("revoke_token", args=[hers.pk])).status_code == 404
    page.post(reverse("revoke_token", args=[mine.pk]))
    assert list(Token.objects.alive()) == [hers]
    assert Event.objects.filter(action="token.revoke", actor=dana).count() == 1


def test_a_token_can_do_no_more_than_it_was_made_for(dana, hosts):
    job = scenes.job(dana, "planned")
    response = Program(letters_of(dana)).post(f"/jobs/{job.pk}/cancel")
    assert (response.status_code, code(response)) == (403, "token-scope")
    job.refresh_from_db()
    assert job.cancel_requested_at is None


def test_a_token_can_do_no_more_than_its_person_can_now(dana, hosts):
    job = scenes.job(dana, "planned")
    program = Program(letters_of(dana, "submit"))
    dana.groups.set(Group.objects.filter(name="viewer"))
    assert code(program.post(f"/jobs/{job.pk}/cancel")) == "no-role"


def test_a_superusers_token_is_held_to_its_scope_too(person, hosts):
    root = person("root", is_superuser=True)
    job = scenes.job(root, "planned")
    assert code(Program(letters_of(root)).post(f"/jobs/{job.pk}/cancel")) == "token-scope"


def test_an_approving_token_that_somebody_made_to_last_approves_no_more_after_fifteen_minutes(dana, kim, hosts):
    job = scenes.job(dana, "awaiting_approval")
    asked = scenes.approval(job)
    program = Program(letters_of(kim, "approve"))
    earlier = timezone.now() - dt.timedelta(minutes=16)
    Token.objects.update(created_at=earlier, expires_at=timezone.now() + dt.timedelta(days=9))
    sent = {"digest": asked.digest, "instance": job.instance_id[-6:], "reason": "fine"}
    assert code(program.post(f"/jobs/{job.pk}/approve", sent)) == "token-scope"
    assert not asked.decisions.exists()


def test_the_record_names_the_token_that_acted(dana, hosts):
    job = scenes.job(dana, "planned")
    Program(letters_of(dana, "submit")).post(f"/jobs/{job.pk}/cancel")
    event = Event.objects.get(action="job.cancel")
    assert (event.actor, event.session) == (dana, f"token {Token.objects.get().pk}")


def test_wrong_tokens_close_the_api_to_wrong_tokens_and_not_to_right_ones(dana):
    wrong = Program("volmig_" + "x" * 43)
    assert {code(wrong.get("/me")) for _ in range(20)} == {"token-unknown"}
    response = wrong.get("/me")
    assert (response.status_code, code(response)) == (429, "too-many")
    assert int(response.headers["Retry-After"]) > 0
    assert Program(letters_of(dana)).get("/me").status_code == 200


def test_a_token_makes_so_many_requests_in_a_minute(dana, settings, monkeypatch):
    settings.API_PER_MINUTE = 3
    monkeypatch.setattr("volmig.api.auth.time.time", lambda: 1_800_000_000)
    program, other = Program(letters_of(dana)), Program(letters_of(dana))
    assert [program.get("/me").status_code for _ in range(3)] == [200] * 3
    response = program.get("/me")
    assert (response.status_code, code(response), response.headers["Retry-After"]) == (429, "too-fast", "60")
    assert other.get("/me").status_code == 200
    monkeypatch.setattr("volmig.api.auth.time.time", lambda: 1_800_000_060)
    assert program.get("/me").status_code == 200
