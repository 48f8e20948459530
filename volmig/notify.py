"""Notification by e-mail and by one signed webhook; a broken mail server never disturbs a migration."""

import datetime as dt
import json
import logging
from collections.abc import Callable
from urllib.parse import urljoin

from django.conf import settings
from django.core.mail import send_mail
from django.db import DatabaseError, transaction
from django.db.models import Q
from django.utils import timezone

from volmig import outbound, webhook
from volmig.models import Notice
from volmig.queue import later

KINDS = {
    "approval_waiting",
    "halted",
    "swap_done",
    "rolled_back",
    "quarantined",
    "unanswered",
    "backup_due",
    "backup_bad",
    "guessing",
    "read_only",
}
AT_A_TIME = 3
LOST_AFTER = dt.timedelta(minutes=20)  # longer than a task that was lost takes to be delivered again
log = logging.getLogger(__name__)


def announce(kind: str, *, subject: str, text: str, url_path: str = "") -> None:
    """Queues a notice of one of KINDS; never raises into the caller, whose work matters more."""
    if kind not in KINDS:
        log.error("unknown notice %s", kind)
    try:
        with transaction.atomic():
            notice = Notice.objects.create(kind=kind, subject=subject[:200], text=text, url_path=url_path)
            later("volmig.notify.send", notice.pk, is_request=False)
    except DatabaseError:
        log.exception("notice %s could not be queued: %s", kind, subject)


def send_again() -> None:
    """Task, once a minute: tries again what failed in the last day, and sends what a lost task left unsent.

    A few at a time, for each may take a while.
    """
    now = timezone.now()
    lost = Q(created_at__lt=now - LOST_AFTER) & unsent()
    failed = Notice.objects.filter(created_at__gt=now - dt.timedelta(days=1)).filter(~Q(error="") | lost)
    for pk in failed.order_by("?").values_list("pk", flat=True)[:AT_A_TIME]:  # by chance, so that none waits for ever
        later("volmig.notify.send", pk, is_request=False)


def unsent() -> Q:
    """Notices that one of the configured ways has not taken yet."""
    return (Q(emailed_at=None) if settings.NOTIFY_EMAILS else Q(pk__in=[])) | (
        Q(posted_at=None) if settings.WEBHOOK_URL else Q(pk__in=[])
    )


def send(notice_id: int) -> None:
    """Task: sends one notice by every way that is configured; what failed stays on the row."""
    notice = Notice.objects.get(pk=notice_id)
    Notice.objects.filter(pk=notice_id).update(error="")
    ways: list[tuple[str, bool, Callable[[Notice], None]]] = [
        ("emailed_at", bool(settings.NOTIFY_EMAILS), email),
        ("posted_at", bool(settings.WEBHOOK_URL), post),
    ]
    for column, wanted, way in ways:
        if wanted and getattr(notice, column) is None:
            attempt(notice, column, way)


def attempt(notice: Notice, column: str, way: Callable[[Notice], None]) -> None:
    """Sends one way and notes the time; a failure is logged and tried again later."""
    try:
        way(notice)
    except (OSError, ValueError) as error:
        log.warning("notice %s was not sent: %s", notice.pk, error)
        Notice.objects.filter(pk=notice.pk).update(error=f"{way.__name__}: {error}")
    else:
        Notice.objects.filter(pk=notice.pk).update(**{column: timezone.now()})


def link(notice: Notice) -> str:
    """The address of the page that a notice is about; empty without one."""
    return urljoin(settings.PUBLIC_URL, notice.url_path) if notice.url_path else ""


def email(notice: Notice) -> None:
    """Sends it to VOLMIG_NOTIFY_EMAILS."""
    body = f"{notice.text}\n\n{link(notice)}".strip()
    send_mail(f"[volmig] {notice.subject}", body, settings.DEFAULT_FROM_EMAIL, settings.NOTIFY_EMAILS)


def post(notice: Notice) -> None:
    """Posts the notice as JSON, signed as Standard Webhooks has it; its id is the same each time it is sent again."""
    body = json.dumps(
        {
            "id": notice.pk,
            "kind": notice.kind,
            "subject": notice.subject,
            "text": notice.text,
            "url": link(notice),
            "at": notice.created_at.isoformat(),
        }
    ).encode()
    name = f"notice_{notice.pk}_{notice.created_at.timestamp():.0f}"  # a restored database gives numbers again
    headers = webhook.headers(settings.WEBHOOK_SECRETS, name, body, now=int(timezone.now().timestamp()))
    outbound.post(settings.WEBHOOK_URL, body, {"Content-Type": "application/json", **headers}, seconds=10)
