"""Sessions end when they were idle or lasted for too long, and whenever somebody ends them."""

import datetime as dt

import pytest
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.db.models import F
from django.test import Client

from hosts.models import Cloud
from jobs.web.live import LIST, still_allowed
from volmig.accounts.models import Login, sweep

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"


@pytest.fixture
def ann(person):
    return person("ann", "viewer")


@pytest.fixture
def browser(ann):
    """Ann's browser, after its login."""
    client = Client()
    client.post("/login/", {"username": "ann", "password": PASSWORD})
    return client


def ago(field, **time):
    """Moves the only login into the past."""
    Login.objects.update(**{field: F(field) - dt.timedelta(**time)})


def watched(client, user):
    """Whether a socket of this session would stay open at its next check."""
    return bool(still_allowed({(client.cookies["sessionid"].value, user.pk, LIST)}))


def test_a_session_in_use_goes_on_and_its_use_is_noted(browser):
    ago("seen_at", minutes=29)
    before = Login.objects.get().seen_at
    assert browser.get("/").status_code == 200
    assert Login.objects.get().seen_at - before > dt.timedelta(minutes=28)


def test_half_an_hour_without_a_page_ends_it_and_the_login_page_says_so(browser, ann):
    ago("seen_at", minutes=30, seconds=1)
    answer = browser.get("/hosts/", follow=True)
    assert answer.redirect_chain == [("/login/?next=/hosts/", 302)]
    assert "after 30 minutes without activity" in answer.content.decode()
    assert not Session.objects.filter(session_data__isnull=False, pk=browser.cookies["sessionid"].value).exists()


def test_a_clock_that_is_set_back_makes_no_session_last_for_longer(browser, ann):
    ago("seen_at", hours=-5)
    answer = browser.get("/hosts/", follow=True)
    assert answer.redirect_chain == [("/login/?next=/hosts/", 302)]
    assert "clock was set back" in answer.content.decode()
    browser.post("/login/", {"username": "ann", "password": PASSWORD})
    ago("seen_at", seconds=-20)
    assert browser.get("/hosts/").status_code == 200, "clocks of two machines differ a little"
    ago("seen_at", hours=-5)
    sweep()
    assert not Login.objects.exists()


def test_a_working_day_ends_it_however_busy_it_was(browser):
    ago("since", hours=8, seconds=1)
    assert "limit of 8 hours" in browser.get("/", follow=True).content.decode()


def test_the_times_are_settings(browser, settings):
    settings.IDLE_MINUTES = 5
    ago("seen_at", minutes=6)
    assert browser.get("/").status_code == 302


def test_what_an_open_page_fetches_by_itself_keeps_nobody_logged_in(browser):
    ago("seen_at", minutes=29)
    before = Login.objects.get().seen_at
    assert browser.get("/", headers={"HX-Request": "true"}).status_code == 200
    assert Login.objects.get().seen_at == before


def test_a_part_fetched_after_the_end_sends_the_whole_page_to_the_login(browser):
    ago("seen_at", minutes=31)
    answer = browser.get("/", headers={"HX-Request": "true"})
    assert (answer.status_code, answer["HX-Refresh"], answer.content) == (401, "true", b"")


def test_a_post_that_comes_too_late_changes_nothing(ann, browser):
    ann.groups.set(Group.objects.filter(name="administrator"))
    cloud = {"name": "eu-1", "control": "libvirt"}
    ago("seen_at", minutes=31)
    assert browser.post("/hosts/clouds/add/", cloud).status_code == 302
    assert not Cloud.objects.exists()
    browser.post("/login/", {"username": "ann", "password": PASSWORD})
    browser.post("/hosts/clouds/add/", cloud)
    assert Cloud.objects.exists()


def test_the_sweep_ends_what_nobody_asks_for_any_more_so_its_sockets_close(browser, ann):
    assert watched(browser, ann)
    ago("seen_at", minutes=31)
    sweep()
    assert not watched(browser, ann)
    assert not Login.objects.exists()


def test_the_sweep_leaves_sessions_in_use_alone(browser, ann):
    sweep()
    assert watched(browser, ann)
    assert Login.objects.count() == 1


def test_the_sweep_forgets_logins_whose_session_is_gone(browser):
    browser.post("/logout/")
    sweep()
    assert not Login.objects.exists()


def test_a_session_from_before_this_was_counted_is_counted_from_its_first_request(client, ann):
    client.force_login(ann)
    client.get("/", REMOTE_ADDR="192.0.2.7")
    assert Login.objects.get().address == "192.0.2.7"


def test_an_ended_session_is_not_revived_by_a_request_that_still_runs(browser, ann):
    Login.objects.end()
    assert browser.get("/").status_code == 302
    assert not watched(browser, ann)
