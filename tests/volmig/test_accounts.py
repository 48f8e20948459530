"""One's own account and those of others: sessions end, passwords change, roles are set, and all of it is recorded."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.test import Client

from jobs.web import live
from volmig.accounts import people
from volmig.accounts.models import Login
from volmig.asgi import application
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"
NEW = "staple battery horse"


def browser_of(name, password=PASSWORD, address="192.0.2.7"):
    client = Client(REMOTE_ADDR=address)
    client.post("/login/", {"username": name, "password": password})
    return client


def login_of(client):
    return Login.objects.get(session_key=client.cookies["sessionid"].value)


def logged_in(client):
    return client.get("/account/").status_code == 200


def change(client, old=PASSWORD, new=NEW, again=NEW):
    return client.post("/account/", {"old_password": old, "new_password1": new, "new_password2": again})


@pytest.fixture
def ann(person):
    return person("ann", "viewer")


@pytest.fixture
def here(ann):
    return browser_of("ann")


@pytest.fixture
def there(ann):
    return browser_of("ann", address="192.0.2.8")


@pytest.fixture
def root(person):
    person("root", "administrator")
    return browser_of("root", address="192.0.2.1")


def test_the_account_page_lists_ones_own_sessions_only_and_marks_this_one(here, there, person):
    person("bob", "viewer")
    browser_of("bob", address="192.0.2.99")
    page = here.get("/account/")
    assert {login.address for login in page.context["logins"]} == {"192.0.2.7", "192.0.2.8"}
    html = page.content.decode()
    assert html.count("this one</span>") == 1
    assert 'aria-label="End the session from 192.0.2.7, this one"' in html
    assert "192.0.2.99" not in html


def test_an_ended_session_asks_for_the_password_and_this_one_goes_on(here, there):
    here.post(f"/account/sessions/{login_of(there).pk}/end/")
    assert not logged_in(there)
    assert logged_in(here)
    event = Event.objects.get(action="person.session_end")
    assert (event.actor_name, event.data["address"], event.address) == ("ann", "192.0.2.8", "192.0.2.7")


def test_ending_this_session_logs_out(here):
    assert here.post(f"/account/sessions/{login_of(here).pk}/end/").url == "/login/"
    assert not logged_in(here)


def test_nobody_ends_a_session_of_somebody_else_here(here, root):
    assert root.post(f"/account/sessions/{login_of(here).pk}/end/").status_code == 404
    assert logged_in(here)
    assert not Event.objects.filter(action="person.session_end").exists()


def test_a_new_password_ends_the_other_sessions_and_keeps_this_one(here, there, ann):
    since = login_of(here).since
    assert change(here).status_code == 302
    assert logged_in(here)
    assert not logged_in(there)
    assert login_of(here).since == since
    ann.refresh_from_db()
    assert ann.check_password(NEW)
    event = Event.objects.get(action="person.password")
    assert (event.actor_name, event.data) == ("ann", {"sessions_ended": 1, "tokens_revoked": 0})
    assert NEW not in str(list(Event.objects.values()))


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ({"old": "wrong"}, "old password was entered incorrectly"),
        ({"again": "another one"}, "didn’t match"),
        ({"new": "short", "again": "short"}, "too short"),
    ],
)
def test_a_password_is_not_changed(here, there, ann, typed, sentence):
    answer = change(here, **typed)
    assert (answer.status_code, sentence in answer.content.decode()) == (422, True)
    ann.refresh_from_db()
    assert ann.check_password(PASSWORD)
    assert logged_in(there)


def test_the_form_is_no_way_to_guess_the_password_of_who_left_the_screen(here, ann):
    for number in range(5):
        change(here, old=f"wrong {number}")
    assert "Too many wrong passwords" in here.get(change(here).url).content.decode()
    ann.refresh_from_db()
    assert ann.check_password(PASSWORD)
    assert Event.objects.filter(action="person.password_refused", actor=ann).count() == 5


@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_only_administrators_see_and_change_accounts(ann, person, role):
    person("eve", role)
    eve = browser_of("eve")
    assert eve.get("/accounts/").status_code == 403
    assert eve.get(f"/accounts/{ann.pk}/").status_code == 403
    for verb in ("disable", "enable", "roles", "end-sessions"):
        assert eve.post(f"/accounts/{ann.pk}/{verb}/", {"role": "administrator"}).status_code == 403
    ann.refresh_from_db()
    assert ann.is_active
    assert [group.name for group in ann.groups.all()] == ["viewer"]


def test_the_accounts_page_tells_roles_state_and_sessions(root, here, person):
    person("gone", "operator", "approver", is_active=False)
    page = root.get("/accounts/")
    rows = {row.username: row for row in page.context["persons"]}
    assert {name: row.alive for name, row in rows.items()} == {"ann": 1, "gone": 0, "root": 1}
    assert "approver, operator" in page.content.decode() or "operator, approver" in page.content.decode()
    assert "<strong>disabled</strong>" in page.content.decode()


def test_who_is_disabled_is_logged_out_everywhere_and_cannot_log_in(root, here, there, ann):
    root.post(f"/accounts/{ann.pk}/disable/")
    assert not logged_in(here)
    assert not logged_in(there)
    assert not logged_in(browser_of("ann"))
    event = Event.objects.get(action="person.disable")
    change = {"before": {"active": True}, "after": {"active": False}}
    assert event.data == {**change, "sessions_ended": 2, "tokens_revoked": 0}
    assert (event.actor_name, event.object, event.address) == ("root", "ann", "192.0.2.1")
    root.post(f"/accounts/{ann.pk}/enable/")
    assert logged_in(browser_of("ann"))
    assert Event.objects.filter(action="person.enable").count() == 1


def test_roles_are_set_with_before_and_after_in_the_record(root, ann):
    root.post(f"/accounts/{ann.pk}/roles/", {"role": ["operator", "auditor"]})
    assert {group.name for group in ann.groups.all()} == {"operator", "auditor"}
    event = Event.objects.get(action="person.roles")
    assert event.data == {"before": {"roles": ["viewer"]}, "after": {"roles": ["auditor", "operator"]}}


def test_what_changes_nothing_is_not_recorded(root, ann):
    root.post(f"/accounts/{ann.pk}/roles/", {"role": ["viewer"]})
    root.post(f"/accounts/{ann.pk}/enable/")
    assert not Event.objects.filter(action__in=["person.roles", "person.enable"]).exists()


def test_a_role_that_does_not_exist_is_refused(root, ann):
    assert root.post(f"/accounts/{ann.pk}/roles/", {"role": ["king"]}).status_code == 403
    assert [group.name for group in ann.groups.all()] == ["viewer"]


def test_an_administrator_ends_all_sessions_of_somebody(root, here, there, ann):
    root.post(f"/accounts/{ann.pk}/end-sessions/")
    assert not logged_in(here)
    assert not logged_in(there)
    assert Event.objects.get(action="person.sessions_end").data == {"sessions_ended": 2, "tokens_revoked": 0}


@pytest.mark.parametrize("verb", ["disable", "enable", "roles", "end-sessions"])
def test_nobody_changes_their_own_account_here_so_one_administrator_is_left(root, django_user_model, verb):
    me = django_user_model.objects.get(username="root")
    answer = root.post(f"/accounts/{me.pk}/{verb}/", {"role": ["approver"]})
    assert (answer.status_code, "Another administrator" in answer.content.decode()) == (403, True)
    assert [group.name for group in me.groups.all()] == ["administrator"]
    assert logged_in(root)


@pytest.mark.parametrize("verb", ["disable", "roles", "end-sessions"])
def test_an_administrator_does_not_change_a_superuser(root, person, verb):
    chief = person("chief", is_superuser=True)
    assert root.post(f"/accounts/{chief.pk}/{verb}/", {"role": ["viewer"]}).status_code == 403
    chief.refresh_from_db()
    assert (chief.is_active, chief.groups.count()) == (True, 0)


def test_no_verb_makes_a_superuser(root, ann):
    root.post(f"/accounts/{ann.pk}/roles/", {"role": ["viewer"], "is_superuser": "on"})
    assert root.post(f"/accounts/{ann.pk}/superuser/").status_code == 404
    ann.refresh_from_db()
    assert not ann.is_superuser


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("end", ["revoke", "disable", "password"])
def test_the_open_sockets_of_a_session_that_was_ended_close(person, monkeypatch, end):
    monkeypatch.setattr(live, "RECHECK", 0.1)
    ann, root = person("ann", "viewer"), person("root", "administrator")
    here, there = browser_of("ann"), browser_of("ann", address="192.0.2.8")
    ends = {
        "revoke": lambda: here.post(f"/account/sessions/{login_of(there).pk}/end/"),
        "disable": lambda: people.set_active(ann.pk, False, root),
        "password": lambda: change(here),
    }
    assert async_to_sync(close_code)(there, ends[end]) == live.ENDED


async def close_code(client, end):
    """Opens a socket of this session, ends the session, and waits for the socket's close."""
    cookie = f"sessionid={client.cookies['sessionid'].value}".encode()
    headers = [(b"cookie", cookie), (b"origin", b"http://localhost"), (b"host", b"localhost")]
    scope = {"type": "websocket", "path": "/live/migrations/", "query_string": b"", "headers": headers}
    socket = ApplicationCommunicator(application, {**scope, "subprotocols": []})
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output(timeout=5))["type"] == "websocket.accept"
    await asyncio.sleep(3 * live.PAUSE)  # some checks go by, and it stays open
    while not await socket.receive_nothing(timeout=0.1):
        assert (await socket.receive_output())["type"] == "websocket.send"
    await sync_to_async(end)()
    while (message := await socket.receive_output(timeout=5))["type"] != "websocket.close":
        pass
    return message["code"]
