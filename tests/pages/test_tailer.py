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

from jobs.models import Job
from jobs.web import changes, live
from jobs.web.live import marks, still_allowed
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
            tailer.changes.batch = changes.Batch(set(turned or ()), set(moved), turned is None)
            tailer.delivered_at = -60.0  # all the room that there can be
            await tailer.turn()

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
    follower.timetable.due = dict.fromkeys(("conditions", "recheck", "beat"), math.inf)
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


def away(*_):
    raise OperationalError("gone")


def failing(follower):
    """A turn that fails."""
    with pytest.raises(OperationalError):
        asyncio.run(follower.turn())


def test_a_turn_that_failed_leaves_its_changes_and_everything_else_to_the_next(dana, hosts, tailer, monkeypatch):
    job = scenes.job(dana, "preparing")
    follower = tailer(Socket(job.pk))
    follower.changes.batch = changes.Batch(moved={job.pk})
    monkeypatch.setattr(follower.reader, "compare", away)
    failing(follower)
    assert follower.changes.take() == changes.Batch(moved={job.pk}, everything=True)


@pytest.mark.parametrize("what", ["attention.marks", "still_allowed"])
def test_no_page_hears_a_beat_until_all_that_failed_has_succeeded(db, what, tailer, monkeypatch):
    """Else a turn for which nothing is due would say that pages are live, and the log that the database answers."""
    page = Socket(live.LIST)
    follower = tailer(page)
    with monkeypatch.context() as during:
        during.setattr(f"jobs.web.live.{what}", away)
        for _ in range(3):
            failing(follower)
        assert not [text for text in page.sent() if "beat" in text]
        assert follower.idle_seconds() == 0
    turns(follower, ((), ()))
    assert [text for text in page.sent() if "beat" in text]


def test_what_was_compared_is_sent_although_what_a_new_page_needs_cannot_be_read(dana, hosts, tailer, monkeypatch):
    old, new = (Socket(scenes.job(dana, "preparing").pk) for _ in range(2))
    follower = tailer(old)
    turns(follower, (None, ()))
    old.sent()
    follower.sockets.add(new)
    follower.fresh.add(new)
    Job.objects.filter(pk=old.number).update(status="awaiting_approval", version=2)
    read = follower.reader.fragments
    with monkeypatch.context() as during:
        during.setattr(follower.reader, "fragments", lambda numbers: away() if new.number in numbers else read(numbers))
        follower.changes.batch = changes.Batch(turned={old.number})
        failing(follower)
    turns(follower, ((), ()))
    assert any('hx-target="#where"' in text for text in old.sent())
    assert any('hx-target="#where"' in text for text in new.sent())


def test_a_condition_that_changed_is_shown_although_it_could_not_be_read_at_first(dana, hosts, tailer, monkeypatch):
    page, condition = Socket(scenes.job(dana, "preparing").pk), ["as forecast"]
    monkeypatch.setattr(live.attention, "marks", lambda: ({page.number: tuple(condition)}, ()))
    follower = tailer(page)
    turns(follower, (None, ()))
    page.sent()
    condition[:] = ["stalls"]
    follower.timetable.reset()
    with monkeypatch.context() as during:
        during.setattr(follower.reader, "fragments", away)
        follower.changes.batch = changes.Batch()
        failing(follower)
    assert page.sent() == []
    turns(follower, ((), ()))
    assert live.changed(page.number) in page.sent()


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
    follower.timetable.due = dict.fromkeys(("conditions", "recheck", "beat"), math.inf)
    turns(follower, ((), ()))
    assert [len(page.sent()) for page in pages] == [1, 1, 1], "pages of one migration come first"
    assert sum(len(page.sent()) for page in lists) == live.NUDGES - 3
    turns(follower, *[((), ())] * 10)
    assert not follower.nudges, "in the end everybody"


@pytest.mark.parametrize(("many", "few"), [(7, live.LIST), (7, live.INBOX), (live.LIST, 7)])
def test_no_page_waits_for_ever_while_many_others_have_news_again_and_again(many, few, tailer):
    pages, waiting = [Socket(many) for _ in range(250)], [Socket(few) for _ in range(20)]
    follower, delivered = tailer(*pages, *waiting), 0
    follower.nudge(waiting, "changed")
    for _ in range(4):
        follower.nudge(pages, "news")
        follower.delivered_at = -60.0
        follower.deliver()
        delivered += sum(bool(page.sent()) for page in pages)
    assert [page.sent() for page in waiting] == [["changed"]] * 20, "half of the room is for them"
    assert delivered == 4 * live.NUDGES // 2


def test_pages_of_a_kind_are_asked_in_the_order_in_which_they_began_to_wait(tailer):
    pages = [Socket(7) for _ in range(3 * live.NUDGES)]
    follower = tailer(*pages)
    for _ in range(3):
        follower.nudge(pages, "news")
        follower.delivered_at = -60.0
        follower.deliver()
    assert [page.sent() for page in pages] == [["news"]] * len(pages), "nobody twice before all had their turn"


def test_a_page_that_was_closed_meanwhile_takes_nobodys_turn(tailer):
    here, gone = Socket(live.LIST), Socket(live.LIST)
    follower = tailer(here, gone)
    follower.drop(gone)
    follower.nudge([here, gone], "changed")
    assert list(follower.nudges) == [here]


def test_an_event_loop_has_one_tailer_and_no_other_is_made(monkeypatch):
    made = []

    async def ask():
        return live.tailer() is live.tailer()

    monkeypatch.setattr(live, "tailers", {})
    monkeypatch.setattr(live, "Tailer", lambda: made.append(1) or SimpleNamespace())
    assert asyncio.run(ask())
    assert len(made) == 1


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
    assert reader.compare(numbers, numbers)[0].keys() == numbers
    assert reader.compare(numbers, numbers) == ({}, {})
    moving.runs.filter(step="convert").update(bytes_done=moving.source_size)
    whole, parts = reader.compare(numbers, numbers)
    assert (whole, set(parts)) == ({}, {moving.pk}), "a bar that moved is no reason to render everything again"
    assert 'data-percent="100.0"' in parts[moving.pk]


def test_what_nobody_watches_any_more_is_not_kept(dana, hosts):
    job, reader = scenes.job(dana, "preparing"), live.Reader()
    reader.compare({job.pk}, {job.pk})
    reader.compare(set(), set())
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
