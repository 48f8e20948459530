"""What the tailer reads and whom it still talks to."""

import asyncio
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client

from jobs import live
from jobs.live import look, marks, still_allowed
from tests.pages import scenes

EASY = "correct horse battery"


@pytest.fixture
def watcher(dana):
    """The session key and the number of a person who logged in, and that they watch the list."""
    client = Client()
    client.force_login(dana)
    return client.session.session_key, dana.pk, live.LIST


def test_whoever_is_logged_in_and_may_look_is_told(watcher):
    assert still_allowed({watcher}) == {watcher}


def test_disabled_people_are_told_nothing(watcher, dana):
    dana.is_active = False
    dana.save()
    assert still_allowed({watcher}) == set()


def test_people_who_lost_their_roles_are_told_nothing(watcher, dana):
    dana.groups.clear()
    assert still_allowed({watcher}) == set()


def test_ended_sessions_are_told_nothing(watcher):
    Session.objects.all().delete()
    assert still_allowed({watcher}) == set()


def test_sessions_from_before_a_changed_password_are_told_nothing(watcher, dana):
    dana.set_password("another horse battery")
    dana.save()
    assert still_allowed({watcher}) == set()


def test_a_session_does_not_speak_for_somebody_else(watcher, kim):
    assert still_allowed({(watcher[0], kim.pk, live.LIST)}) == set()


class Watching:
    """A socket of a page that shows one migration."""

    def __init__(self, number):
        self.number = number


class Socket:
    """A connection that remembers how it was closed, or whose browser left without a word."""

    session_key, user_id, number = "ended", 7, 1

    def __init__(self, left=False):
        self.left, self.code = left, None

    async def close(self, code):
        if self.left:
            raise OSError("the browser left")
        self.code = code


def test_a_browser_that_left_does_not_keep_others_open_whose_session_ended(db, monkeypatch):
    monkeypatch.setattr(live, "still_allowed", lambda marked: set())
    open_ones, tailer = [Socket(), Socket()], live.Tailer()
    tailer.sockets = {Socket(left=True), Socket(left=True), *open_ones}
    asyncio.run(tailer.close_ended())
    assert [socket.code for socket in open_ones] == [live.ENDED, live.ENDED]


def test_a_browser_that_left_while_it_was_told_something_is_forgotten(db, monkeypatch):
    async def nothing(self):
        pass

    async def visit(tailer):
        told, said = asyncio.Queue(), []

        async def send(message):
            said.append(message)
            if message.get("text") == "news":
                raise OSError("the browser left")

        await told.put({"type": "websocket.connect"})
        scope = {"type": "websocket", "user": User(pk=7), "session": SimpleNamespace(session_key="any")}
        scope["url_route"] = {"kwargs": {"number": 1}}
        serving = asyncio.create_task(live.JobConsumer()(scope, told.get, send))
        while not tailer.sockets:
            await asyncio.sleep(0)
        await live.send(1, "news")
        with pytest.raises(OSError, match="left"):
            await serving
        return said

    tailer = live.Tailer()
    monkeypatch.setattr(live.Tailer, "run", nothing)
    monkeypatch.setattr(live, "tailer", lambda: tailer)
    monkeypatch.setattr(live, "first_look", lambda user, number: (True, "fragment"))
    said = asyncio.run(visit(tailer))
    assert [message.get("text") for message in said] == [None, "fragment", "news"]
    assert not tailer.sockets


def test_only_jobs_that_moved_are_rendered(dana, hosts):
    still, moving = scenes.job(dana, "preparing"), scenes.job(dana, "preparing")
    numbers = {still.pk, moving.pk}
    before, first = look(numbers, {})
    assert set(first) == numbers
    assert look(numbers, before)[1] == {}
    moving.runs.filter(step="convert").update(bytes_done=moving.source_size)
    now, fragments = look(numbers, before)
    assert set(fragments) == {moving.pk}
    assert 'data-percent="100.0"' in fragments[moving.pk]
    assert now[moving.pk][0] == before[moving.pk][0], "a bar that moved is no reason to fetch anything again"


def test_what_moved_between_a_page_and_the_first_look_is_told(dana, hosts, monkeypatch):
    job, told = scenes.job(dana, "preparing"), []
    first = look({job.pk}, {})
    second = look({job.pk}, first[0])

    async def send(number, text):
        told.append(text)

    async def looks(tailer):
        before = await tailer.follow_jobs({})
        await tailer.follow_jobs(before)

    answers = [first, second]
    monkeypatch.setattr(live, "look", lambda numbers, before: answers.pop(0))
    monkeypatch.setattr(live, "send", send)
    tailer = live.Tailer()
    tailer.sockets = {Watching(job.pk)}
    asyncio.run(looks(tailer))
    assert told == [first[1][job.pk], live.changed(job.pk)]


def test_a_decision_turns_what_depends_on_who_looks(dana, kim, hosts):
    job = scenes.job(dana, "awaiting_approval")
    asked = scenes.approval(job)
    before = marks({job.pk})
    scenes.decision(asked, kim)
    assert marks({job.pk})[job.pk][0] != before[job.pk][0]


def test_the_fragment_is_the_same_for_everybody_and_holds_no_form(dana, hosts):
    job = scenes.job(dana, "preparing")
    fragment = look({job.pk}, {})[1][job.pk]
    assert "<form" not in fragment
    assert "csrf" not in fragment


@pytest.mark.parametrize("status", scenes.REACHED)
def test_a_fragment_can_be_made_in_every_status(status, dana, hosts):
    job = scenes.job(dana, status)
    assert 'hx-target="#where"' in look({job.pk}, {})[1][job.pk]


def test_logging_in_counts_as_having_typed_the_password(client, kim, dana, hosts):
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    client.post("/login/", {"username": "kim", "password": EASY})
    assert 'name="password"' not in client.get(f"/approvals/{asked.pk}/").content.decode()
