"""Notification: e-mail and one signed webhook, and never an error for the caller."""

import datetime as dt
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.core import mail
from django.db import DatabaseError, transaction
from django.utils import timezone

from volmig import notify
from volmig.models import Notice

pytestmark = pytest.mark.django_db


@pytest.fixture
def hook(settings):
    """A web server that keeps what is posted to it."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRET = f"http://127.0.0.1:{server.server_port}/", "s3cret"
    yield got
    server.shutdown()
    server.server_close()


def announce():
    notify.announce("halted", subject="Migration 7 is halted", text="A foreign mount.", url_path="/migrations/7/")


def test_the_webhook_is_signed_over_its_whole_body(hook, drain):
    announce()
    drain()
    [(headers, body)] = hook
    assert headers["X-Volmig-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    document = json.loads(body)
    assert (document["kind"], document["url"]) == ("halted", "http://127.0.0.1:8000/migrations/7/")
    assert Notice.objects.get().posted_at


def test_the_mail_names_what_and_where(settings, drain):
    settings.NOTIFY_EMAILS = ["ops@example.org"]
    announce()
    drain()
    [message] = mail.outbox
    assert message.subject == "[volmig] Migration 7 is halted"
    assert message.body.endswith("http://127.0.0.1:8000/migrations/7/")


def test_a_webhook_that_fails_stays_on_the_row_and_hurts_nobody(settings, drain):
    settings.WEBHOOK_URL, settings.NOTIFY_EMAILS = "http://127.0.0.1:1/", ["ops@example.org"]
    announce()
    drain()
    notice = Notice.objects.get()
    assert (notice.posted_at, "post:" in notice.error) == (None, True)
    assert len(mail.outbox) == 1


def test_what_was_sent_is_not_sent_again(hook, drain):
    announce()
    drain()
    notify.send(Notice.objects.get().pk)
    assert len(hook) == 1


def test_what_failed_is_sent_again_by_the_way_that_failed_and_then_left_alone(settings, drain, hook):
    works, settings.WEBHOOK_URL = settings.WEBHOOK_URL, "http://127.0.0.1:1/"
    settings.NOTIFY_EMAILS = ["ops@example.org"]
    announce()
    drain()
    settings.WEBHOOK_URL = works
    notify.send_again()
    assert drain() == ["volmig.notify.send"]
    notice = Notice.objects.get()
    assert (len(hook), len(mail.outbox), notice.error) == (1, 1, "")
    notify.send_again()
    assert drain() == []


def test_what_failed_for_a_day_is_given_up(settings, drain):
    settings.WEBHOOK_URL = "http://127.0.0.1:1/"
    announce()
    drain()
    Notice.objects.update(created_at=timezone.now() - dt.timedelta(days=1, minutes=1))
    notify.send_again()
    assert drain() == []
    assert "post:" in Notice.objects.get().error


def test_the_caller_never_notices_trouble(monkeypatch):
    def fail(*_):
        raise DatabaseError("locked")

    monkeypatch.setattr(notify, "later", fail)
    with transaction.atomic():
        announce()
    assert not Notice.objects.exists()


def test_nothing_is_told_when_the_callers_transaction_is_rolled_back(drain):
    with transaction.atomic():
        announce()
        transaction.set_rollback(True)
    assert drain() == []


def test_a_webhook_address_that_is_no_web_address_is_refused(settings, drain):
    settings.WEBHOOK_URL = "file:///etc/passwd"
    announce()
    drain()
    assert "must begin with https://" in Notice.objects.get().error
