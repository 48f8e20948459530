"""What the tailer reads and whom it still talks to."""

import asyncio
import datetime as dt
import math
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from jobs import changes, live
from jobs.live import marks, still_allowed
from jobs.models import Job
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


class Socket:
    """A page's connection that keeps what it is sent and how it was closed, or whose browser left without a word."""

    session_key, user_id = "ended", 7

    def __init__(self, number=1, left=False):
        self.number, self.left, self.code = number, left, None
        self.outbox = live.Outbox()

    async def close(self, code):
        if self.left:
            raise OSError("the browser left")
        self.code = code

    def sent(self):
        """What came since this was called last."""
        messages, self.outbox.messages = list(self.outbox.messages.values()), {}
        return messages


@pytest.fixture
def tailer(monkeypatch):
    """One that reads in the test's own thread, whose changes no other connection sees."""

    async def read(self, call, *values):
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)  # within a loop Django would open another connection
        try:
            return call(*values)
        finally:
            asyncio._set_running_loop(loop)

    monkeypatch.setattr(live.Tailer, "read", read)
    monkeypatch.setattr(live, "still_allowed", set)

    def make(*sockets):
        made = live.Tailer()
        made.sockets = set(sockets)
        return made

    return make


def turns(tailer, *changed):
    """Lets the tailer have turns, each with what changed before it: the numbers that turned, and those that moved."""

    async def run():
        for turned, moved in changed:
            seen = changes.Changes()
            seen.all, seen.turned, seen.moved = turned is None, set(turned or ()), set(moved)
            tailer.delivered_at = -60.0  # all the room that there can be
            await tailer.turn(seen)

    asyncio.run(run())


def move(job, share):
    job.runs.filter(step="convert").update(bytes_done=int(job.source_size * share), progress_at=timezone.now())


def test_a_browser_that_left_does_not_keep_others_open_whose_session_ended(db, tailer, monkeypatch):
    monkeypatch.setattr(live, "still_allowed", lambda marked: set())
    open_ones = [Socket(), Socket()]
    asyncio.run(tailer(Socket(left=True), Socket(left=True), *open_ones).close_ended())
    assert [socket.code for socket in open_ones] == [live.ENDED, live.ENDED]


def test_a_browser_that_left_while_it_was_sent_something_is_forgotten(db, monkeypatch):
    async def nothing(self):
        pass

    async def visit(tailer):
        received, said = asyncio.Queue(), []

        async def send(message):
            said.append(message)
            if message.get("text") == "news":
                raise OSError("the browser left")

        await received.put({"type": "websocket.connect"})
        scope = {"type": "websocket", "user": User(pk=7), "session": SimpleNamespace(session_key="any")}
        scope["url_route"] = {"kwargs": {"number": 1}}
        serving = asyncio.create_task(live.JobConsumer()(scope, received.get, send))
        while not tailer.sockets:
            await asyncio.sleep(0)
        tailer.send(tailer.sockets, "whole", "news")
        while tailer.sockets:
            await asyncio.sleep(0)
        await received.put({"type": "websocket.disconnect", "code": 1006})
        await serving
        return said

    tailer = live.Tailer()
    monkeypatch.setattr(live.Tailer, "run", nothing)
    monkeypatch.setattr(live, "tailer", lambda: tailer)
    monkeypatch.setattr(live, "may_watch", lambda user, number: True)
    said = asyncio.run(visit(tailer))
    assert [message.get("text") for message in said] == [None, "news"]


def test_only_what_changed_and_is_watched_is_read(dana, hosts, tailer, django_assert_num_queries):
    watched, other = scenes.job(dana, "preparing"), scenes.job(dana, "preparing")
    page = Socket(watched.pk)
    follower = tailer(page)
    turns(follower, (None, ()))
    page.sent()
    follower.due = dict.fromkeys(("conditions", "recheck", "beat"), math.inf)
    move(other, 0.9)
    with django_assert_num_queries(0):
        turns(follower, ((), {other.pk}), ((), ()))
    assert page.sent() == []
    move(watched, 0.9)
    turns(follower, ((), {watched.pk, other.pk}))
    [bars] = page.sent()
    assert 'data-percent="90.0"' in bars
    assert "#where" not in bars, "only what moved is sent"


def test_a_fragment_is_rendered_once_for_all_sockets_that_show_it(dana, hosts, tailer, monkeypatch):
    job, rendered = scenes.job(dana, "preparing"), []
    pages = [Socket(job.pk) for _ in range(5)]
    follower = tailer(*pages)
    turns(follower, (None, ()))
    assert {len(page.sent()) for page in pages} == {3}, "the fragment, what to fetch, and a beat"
    monkeypatch.setattr(live, "bars", lambda job: rendered.append(job.pk) or "bars")
    move(job, 0.7)
    turns(follower, ((), {job.pk}))
    assert ([page.sent() for page in pages], rendered) == ([["bars"]] * 5, [job.pk])


def test_a_job_that_turned_is_sent_whole_and_its_pages_fetch_the_rest(dana, hosts, tailer):
    job = scenes.job(dana, "preparing")
    page = Socket(job.pk)
    follower = tailer(page)
    turns(follower, (None, ()))
    page.sent()
    Job.objects.filter(pk=job.pk).update(status="awaiting_approval", version=2)
    turns(follower, ({job.pk}, ()))
    whole, fetch = page.sent()
    assert 'hx-target="#where"' in whole
    assert fetch == live.changed(job.pk)


def test_bars_show_a_lease_and_a_wait_as_they_are_now(dana, hosts, tailer):
    """A page that was read an hour ago must not say that nobody takes care of a migration."""
    job = scenes.job(dana, "preparing")
    long_ago = timezone.now() - dt.timedelta(hours=1)
    Job.objects.filter(pk=job.pk).update(wake_at=long_ago)
    page = Socket(job.pk)
    follower = tailer(page)
    turns(follower, (None, ()))
    assert "No worker has taken up this migration" in "".join(page.sent())
    Job.objects.filter(pk=job.pk).update(wake_at=None)
    move(job, 0.8)
    turns(follower, ((), {job.pk}))
    [bars] = page.sent()
    assert "No worker" not in bars


def test_a_new_socket_is_sent_what_the_others_have_already(dana, hosts, tailer):
    job = scenes.job(dana, "preparing")
    old, new = Socket(job.pk), Socket(job.pk)
    follower = tailer(old)
    turns(follower, (None, ()))
    old.sent()
    follower.sockets.add(new)
    follower.fresh.add(new)
    turns(follower, ((), ()))
    assert [live.changed(job.pk)] == [text for text in new.sent() if text.startswith("{")]
    assert old.sent() == []


def test_a_list_is_nudged_when_a_job_turns_and_seldom_while_bars_move(dana, hosts, tailer):
    job, page = scenes.job(dana, "preparing"), Socket(live.LIST)
    follower = tailer(page)
    turns(follower, (None, ()))
    page.sent()
    turns(follower, ({job.pk}, ()))
    assert live.changed(live.LIST) in page.sent()
    turns(follower, ((), {job.pk}), ((), {job.pk}))
    assert live.changed(live.LIST) not in page.sent(), "two seconds have not passed"
    follower.listed_at -= live.LIST_EVERY
    turns(follower, ((), ()))
    assert live.changed(live.LIST) in page.sent(), "and it is not forgotten"


def test_what_was_missed_is_found_by_the_next_full_poll(dana, hosts, tailer):
    job = scenes.job(dana, "preparing")
    page, list_page = Socket(job.pk), Socket(live.LIST)
    follower = tailer(page, list_page)
    turns(follower, (None, ()))
    page.sent(), list_page.sent()
    Job.objects.filter(pk=job.pk).update(status="awaiting_approval", version=2)
    turns(follower, ((), ()))
    assert (page.sent(), list_page.sent()) == ([], []), "nobody said so"
    turns(follower, (None, ()))
    assert live.changed(job.pk) in page.sent()
    assert live.changed(live.LIST) in list_page.sent()


def test_a_turn_that_failed_leaves_its_changes_to_the_next(dana, hosts, tailer, monkeypatch):
    job = scenes.job(dana, "preparing")
    follower, seen = tailer(Socket(job.pk)), changes.Changes()
    seen.all, seen.moved = False, {job.pk}

    def away(*_):
        raise OperationalError("gone")

    monkeypatch.setattr(follower.reader, "look", away)
    with pytest.raises(OperationalError):
        asyncio.run(follower.turn(seen))
    assert seen.take() == (set(), {job.pk}, False)


def test_no_more_pages_are_asked_to_fetch_at_a_time_than_can_be_answered(dana, hosts, tailer):
    job = scenes.job(dana, "preparing")
    lists, pages = [Socket(live.LIST) for _ in range(100)], [Socket(job.pk) for _ in range(3)]
    follower = tailer(*lists, *pages)
    turns(follower, (None, ()))
    for page in (*lists, *pages):
        page.sent()
    follower.nudges.clear()
    follower.nudge(lists, live.changed(live.LIST))
    follower.nudge(pages, live.changed(job.pk))
    follower.due = dict.fromkeys(("conditions", "recheck", "beat"), math.inf)
    turns(follower, ((), ()))
    assert [len(page.sent()) for page in pages] == [1, 1, 1], "pages of one migration come first"
    assert sum(len(page.sent()) for page in lists) == live.NUDGES - 3
    turns(follower, *[((), ())] * 10)
    assert not follower.nudges, "in the end everybody"


def test_a_browser_that_reads_slowly_holds_the_newest_of_each_kind_only():
    outbox = live.Outbox()
    for number in range(1000):
        outbox.put("bars", f"bars {number}")
        outbox.put("beat", f"beat {number}")
    outbox.put("whole", "whole")
    assert asyncio.run(outbox.take()) == ["beat 999", "whole"]


def test_only_jobs_that_moved_are_rendered(dana, hosts):
    still, moving = scenes.job(dana, "preparing"), scenes.job(dana, "preparing")
    numbers, reader = {still.pk, moving.pk}, live.Reader()
    assert reader.look(numbers, numbers)[0].keys() == numbers
    assert reader.look(numbers, numbers) == ({}, {})
    moving.runs.filter(step="convert").update(bytes_done=moving.source_size)
    whole, parts = reader.look(numbers, numbers)
    assert (whole, set(parts)) == ({}, {moving.pk}), "a bar that moved is no reason to render everything again"
    assert 'data-percent="100.0"' in parts[moving.pk]


def test_what_nobody_watches_any_more_is_not_kept(dana, hosts):
    job, reader = scenes.job(dana, "preparing"), live.Reader()
    reader.look({job.pk}, {job.pk})
    reader.look(set(), set())
    assert (reader.jobs, reader.marks) == ({}, {})


def test_a_decision_turns_what_depends_on_who_looks(dana, kim, hosts):
    job = scenes.job(dana, "awaiting_approval")
    asked = scenes.approval(job)
    before = marks({job.pk})
    scenes.decision(asked, kim)
    assert marks({job.pk})[job.pk][0] != before[job.pk][0]


def test_the_fragment_is_the_same_for_everybody_and_holds_no_form(dana, hosts):
    job = scenes.job(dana, "preparing")
    fragment = live.Reader().fragments({job.pk})[job.pk]
    assert "<form" not in fragment
    assert "csrf" not in fragment


@pytest.mark.parametrize("status", scenes.REACHED)
def test_a_fragment_can_be_made_in_every_status(status, dana, hosts):
    job = scenes.job(dana, status)
    assert 'hx-target="#where"' in live.Reader().fragments({job.pk})[job.pk]


def test_logging_in_counts_as_having_typed_the_password(client, kim, dana, hosts):
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    client.post("/login/", {"username": "kim", "password": EASY})
    assert 'name="password"' not in client.get(f"/approvals/{asked.pk}/").content.decode()
