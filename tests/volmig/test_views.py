"""Logging in, security headers, the audit page and the health answer."""

import datetime as dt
import threading

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.db import DatabaseError
from django.urls import reverse
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.models import Lease
from volmig.accounts import guessing
from volmig.models import QueuedTask
from volmig.record.models import Event
from volmig.record.origin import middleware, origin

pytestmark = pytest.mark.django_db


@pytest.fixture
def auditor(client, person):
    client.force_login(person("aud", "auditor"))
    return client


PASSWORD = "correct horse battery"


def log_in(client, name, password=PASSWORD):
    return client.post(reverse("login"), {"username": name, "password": password})


def test_logging_in_and_out(client, person):
    person("ann", "viewer")
    assert "Wrong username or password" in log_in(client, "ann", "wrong").content.decode()
    assert log_in(client, "ann").status_code == 302
    assert client.get(reverse("hosts:list")).status_code == 200
    client.post(reverse("logout"))
    assert client.get(reverse("hosts:list")).status_code == 302


def test_logins_refused_logins_and_logouts_are_recorded(client, person):
    person("ann", "viewer")
    log_in(client, "ann", "wrong")
    log_in(client, "ann")
    client.post(reverse("logout"))
    guessing.record()
    events = Event.objects.order_by("seq")
    assert [(event.action, event.object, event.actor_name) for event in events] == [
        ("person.login", "ann", "ann"),
        ("person.logout", "ann", "ann"),
        ("person.login_refused", "ann", ""),
    ]
    assert {event.address for event in events[:2]} == {"127.0.0.1"}
    assert events[2].data["addresses"] == {"127.0.0.1": 1}
    assert events[0].session == events[1].session != ""


def test_a_name_that_nobody_has_is_not_kept_for_it_may_be_a_password(client, person):
    log_in(client, "hunter2-hunter2", "x")
    guessing.record()
    event = Event.objects.get()
    assert (event.action, event.object, event.data["wrong"]) == ("person.login_refused", "", 1)
    assert "hunter2" not in str(event.data)


def test_posting_any_password_in_a_session_does_not_count_as_typing_ones_own(client, person):
    client.force_login(person("ann", "approver"))
    assert log_in(client, "ann", "wrong").status_code == 302
    assert "password_at" not in client.session
    assert not Event.objects.exists()


def test_every_page_has_a_strict_content_security_policy(client):
    headers = client.get(reverse("login")).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
    assert headers["Referrer-Policy"] == "same-origin"


def test_pages_have_no_inline_script_or_style(auditor):
    html = auditor.get(reverse("audit")).content.decode() + auditor.get(reverse("hosts:list")).content.decode()
    assert "style=" not in html
    assert "<script>" not in html
    assert " onclick=" not in html


def test_posting_without_the_token_is_refused(person):
    from django.test import Client

    client = Client(enforce_csrf_checks=True)
    assert client.post(reverse("login"), {"username": "ann", "password": "x"}).status_code == 403


@pytest.mark.parametrize(
    ("role", "status"), [("auditor", 200), ("administrator", 200), ("operator", 403), ("viewer", 403)]
)
def test_auditors_and_administrators_read_the_record(client, person, role, status):
    client.force_login(person("ann", role))
    assert client.get(reverse("audit")).status_code == status


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, [3, 2, 1]),
        ({"who": "ANN"}, [3, 1]),
        ({"what": "pin"}, [2]),
        ({"job": 7}, [3]),
        ({"on": "src"}, [2]),
        ({"since": "2100-01-01T00:00"}, []),
        ({"job": "x"}, [3, 2, 1]),
    ],
)
def test_the_record_is_filtered(auditor, person, query, found):
    ann = person("ann", "operator")
    Event.append("login", actor=ann)
    Event.append("hypervisor.pin", object="src")
    Event.append("job.submit", actor=ann, job=7)
    assert [event.seq for event in auditor.get(reverse("audit"), query).context["page"]] == found


def test_an_event_that_a_model_writes_remembers_where_its_request_came_from(client, person):
    client.force_login(person("ann", "administrator"))
    host = Hypervisor.objects.create(name="cmp-1", address="cmp-1")
    client.post(f"/hosts/{host.pk}/retire/", {"name": "cmp-1"}, REMOTE_ADDR="192.0.2.7")
    event = Event.objects.get(action="hypervisor.retire")
    assert (event.address, event.actor_name, len(event.session)) == ("192.0.2.7", "ann", 16)
    assert client.session.session_key not in event.session


def test_an_event_outside_of_a_request_comes_from_nowhere(client, person):
    client.force_login(person("ann", "administrator"))
    client.get("/", REMOTE_ADDR="192.0.2.7")
    event = Event.append("hypervisor.quarantine")
    assert (event.address, event.session) == ("", "")


def test_each_of_two_requests_at_once_is_remembered_for_its_own_events(rf):
    both, found = threading.Barrier(2, timeout=10), {}

    def answer(address):
        request = rf.get("/", REMOTE_ADDR=address)
        request.session = SessionStore()
        middleware(lambda _: (both.wait(), found.setdefault(address, origin())))(request)

    threads = [threading.Thread(target=answer, args=(address,)) for address in ("192.0.2.7", "192.0.2.8")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"192.0.2.7": ("192.0.2.7", ""), "192.0.2.8": ("192.0.2.8", "")}


@pytest.mark.django_db(transaction=True)
def test_health_is_answered_without_logging_in_and_tells_what_was_never_seen(client):
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "database": "ok",
            "watcher": {"state": "not seen", "lease_over_seconds": None},
            "workers": {"state": "not seen", "last_task_seconds": None},
            "background": {"state": "not seen", "last_task_seconds": None},
        },
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("seconds", "state"), [(5, "ok"), (-30, "silent")])
def test_health_tells_whether_a_watcher_has_the_lease(client, seconds, state):
    Lease.objects.create(name="watcher", owner="here:1", until=timezone.now() + dt.timedelta(seconds=seconds))
    found = client.get("/healthz").json()["watcher"]
    assert found["state"] == state
    assert max(0, -seconds) <= found["lease_over_seconds"] < max(0, -seconds) + 5
    assert "here" not in str(found)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("queue", "named"), [("migrations", "workers"), ("background", "background")])
@pytest.mark.parametrize(("seconds", "state"), [(20, "ok"), (600, "silent")])
def test_health_shows_how_long_ago_a_worker_of_each_queue_ended_a_task(client, seconds, state, queue, named):
    at = timezone.now() - dt.timedelta(seconds=seconds)
    QueuedTask.objects.create(queue=queue, name="jobs.worker.watcher.sweep", begun_at=at, done_at=at)
    QueuedTask.objects.create(
        queue=queue, name="jobs.worker.watcher.sweep", done_at=timezone.now()
    )  # closed, by no worker
    answer = client.get("/healthz")
    assert answer.status_code == 200
    found = answer.json()[named]
    assert (found["state"], seconds <= found["last_task_seconds"] < seconds + 5) == (state, True)
    [other] = {"workers", "background"} - {named}
    assert answer.json()[other]["state"] == "not seen"


@pytest.mark.django_db(transaction=True)
def test_without_its_database_volmig_is_not_healthy(client, monkeypatch):
    def fail(*_):
        raise DatabaseError("could not connect to server: password authentication failed")

    monkeypatch.setattr(Lease.objects.__class__, "silent", fail)
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (503, {"database": "failed"})
