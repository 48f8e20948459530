"""What the tailer reads and whom it still talks to."""

import pytest
from django.contrib.sessions.models import Session
from django.test import Client

from jobs.live import look, marks, still_allowed
from tests.pages import scenes

EASY = "correct horse battery"


@pytest.fixture
def watcher(dana):
    """The session key and the number of a person who logged in."""
    client = Client()
    client.force_login(dana)
    return client.session.session_key, dana.pk


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
    assert still_allowed({(watcher[0], kim.pk)}) == set()


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
