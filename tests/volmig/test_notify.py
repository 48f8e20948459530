"""Notification: e-mail and one signed webhook, and never an error for the caller."""

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from django.conf import settings
from django.core import mail
from django.db import DatabaseError, transaction
from django.utils import timezone
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from volmig import notify, outbound
from volmig.apps import webhook_is_signed
from volmig.models import Notice

pytestmark = pytest.mark.django_db
NEW = f"whsec_{base64.b64encode(b'n' * 32).decode()}"
OLD = f"whsec_{base64.b64encode(b'o' * 24).decode()}"


class Got(list):
    """What was posted, and what is answered."""

    status, headers = 204, {}


@pytest.fixture
def hook(settings):
    """A web server that keeps what is posted to it."""
    got = Got()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(
                (
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers["Content-Length"])),
                )
            )
            self.send_response(got.status)
            for name, value in got.headers.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - what follows a redirect

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRETS = f"http://127.0.0.1:{server.server_port}/", [NEW]
    yield got
    server.shutdown()
    server.server_close()


def announce():
    notify.announce("halted", subject="Migration 7 is halted", text="A foreign mount.", url_path="/migrations/7/")


def test_the_webhook_is_signed_as_the_reference_library_verifies_it(hook, drain):
    announce()
    drain()
    [(headers, body)] = hook
    document = Webhook(NEW).verify(body, headers)
    assert (document["kind"], document["url"]) == ("halted", "http://127.0.0.1:8000/migrations/7/")
    assert Notice.objects.get().posted_at


@pytest.mark.parametrize("change", ["body", "webhook-id", "webhook-timestamp", "webhook-signature", "secret"])
def test_the_reference_library_refuses_what_was_changed(hook, drain, change):
    announce()
    drain()
    [(headers, body)] = hook
    if change == "body":
        body = body.replace(b"halted", b"healed")
    elif change == "webhook-timestamp":
        headers[change] = str(int(headers[change]) + 1)
    elif change != "secret":
        headers[change] = headers[change][:-3] + "x1="
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD if change == "secret" else NEW).verify(body, headers)


def test_while_a_secret_is_replaced_both_verify(hook, drain, settings):
    settings.WEBHOOK_SECRETS = [NEW, OLD]
    announce()
    drain()
    [(headers, body)] = hook
    assert Webhook(NEW).verify(body, headers) == Webhook(OLD).verify(body, headers)


def test_the_verification_in_the_docs_agrees_with_the_reference_library(hook, drain):
    text = (settings.BASE_DIR / "docs/configuration.md").read_text()
    namespace = {}
    exec(text.partition("```python\n")[2].partition("```")[0], namespace)  # noqa: S102 - our own docs
    announce()
    drain()
    [(headers, body)] = hook
    lower = {name.lower(): value for name, value in headers.items()}
    assert namespace["is_genuine"](NEW, lower, body)
    assert not namespace["is_genuine"](OLD, lower, body)
    assert not namespace["is_genuine"](NEW, lower, body + b" ")
    assert not namespace["is_genuine"](NEW, lower | {"webhook-timestamp": "1"}, body)


def test_the_header_of_earlier_releases_is_still_there(hook, drain):
    announce()
    drain()
    [(headers, body)] = hook
    assert headers["x-volmig-signature"] == "sha256=" + hmac.new(NEW.encode(), body, hashlib.sha256).hexdigest()


def test_the_id_stays_when_a_notice_is_sent_again(hook, drain):
    hook.status = 500
    announce()
    drain()
    hook.status = 204
    notify.send_again()
    drain()
    first, second = (headers["webhook-id"] for headers, _ in hook)
    assert first == second
    assert Notice.objects.get().posted_at


def test_no_redirect_is_followed(hook, drain, settings):
    hook.status, hook.headers = 307, {"Location": settings.WEBHOOK_URL + "elsewhere"}
    announce()
    drain()
    assert len(hook) == 1
    assert "307" in Notice.objects.get().error


def test_nothing_is_sent_to_a_metadata_address(hook, drain, monkeypatch):
    monkeypatch.setattr(outbound, "METADATA", [ipaddress.ip_network("127.0.0.0/8")])
    announce()
    drain()
    assert "metadata address" in Notice.objects.get().error
    assert not hook


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("192.0.2.1", False),
        ("example.org", False),
    ],
)
def test_metadata_addresses(address, refused):
    assert outbound.is_metadata(address) == refused


@pytest.mark.parametrize(
    ("secrets", "why"),
    [
        ([], "empty key"),
        (["whsec_???"], "not base64"),
        (["whsec_c2hvcnQ="], "5 bytes"),
        ([NEW, OLD, NEW], "3 secrets"),
    ],
)
def test_secrets_that_sign_nothing_are_refused_at_start_and_when_sending(hook, drain, settings, secrets, why):
    settings.WEBHOOK_SECRETS = secrets
    assert any(why in error.msg and error.id == "volmig.W1" for error in webhook_is_signed())
    announce()
    drain()
    assert why in Notice.objects.get().error
    assert not hook


def test_a_secret_of_earlier_releases_still_signs_with_a_warning(hook, drain, settings):
    settings.WEBHOOK_SECRETS = ["s3cret"]
    assert [each.id for each in webhook_is_signed()] == ["volmig.W2"]
    announce()
    drain()
    [(headers, body)] = hook
    assert Webhook(b"s3cret").verify(body, headers)
    assert headers["x-volmig-signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()


def test_the_mail_names_what_and_where(settings, drain):
    settings.NOTIFY_EMAILS = ["ops@example.org"]
    announce()
    drain()
    [message] = mail.outbox
    assert message.subject == "[volmig] Migration 7 is halted"
    assert message.body.endswith("http://127.0.0.1:8000/migrations/7/")


def test_a_webhook_that_fails_stays_on_the_row_and_hurts_nobody(settings, drain):
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRETS = "http://127.0.0.1:1/", [NEW]
    settings.NOTIFY_EMAILS = ["ops@example.org"]
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
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRETS = "http://127.0.0.1:1/", [NEW]
    announce()
    drain()
    Notice.objects.update(created_at=timezone.now() - dt.timedelta(days=1, minutes=1))
    notify.send_again()
    assert drain() == []
    assert "post:" in Notice.objects.get().error


def test_the_caller_never_notices_trouble(monkeypatch):
    def fail(*_, **__):
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
    settings.WEBHOOK_URL, settings.WEBHOOK_SECRETS = "file:///etc/passwd", [NEW]
    announce()
    drain()
    assert "must begin with https://" in Notice.objects.get().error
