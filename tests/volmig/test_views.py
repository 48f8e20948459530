"""Logging in, security headers, the audit page and the health answer."""

import pytest
from django.urls import reverse

from volmig.record.models import Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def auditor(client, person):
    client.force_login(person("aud", "auditor"))
    return client


def test_logging_in_and_out(client, person):
    person("ann", "viewer")
    wrong = client.post(reverse("login"), {"username": "ann", "password": "wrong"})
    assert "name or the password is wrong" in wrong.content.decode()
    assert client.post(reverse("login"), {"username": "ann", "password": "correct horse battery"}).status_code == 302
    assert client.get(reverse("hosts:list")).status_code == 200
    client.post(reverse("logout"))
    assert client.get(reverse("hosts:list")).status_code == 302


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


def test_an_event_remembers_where_it_came_from(rf, person, client):
    client.force_login(person("ann", "operator"))
    request = rf.get("/", REMOTE_ADDR="192.0.2.7")
    request.user, request.session = person("bob"), client.session
    event = Event.append("login", request=request)
    assert (event.address, event.actor_name, len(event.session)) == ("192.0.2.7", "bob", 16)
    assert client.session.session_key not in event.session


def test_health_is_answered_without_logging_in(client):
    assert client.get("/healthz").json() == {"database": "ok"}
