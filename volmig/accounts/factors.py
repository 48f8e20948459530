"""Second factors: one-time codes of an app on a person's telephone, and recovery codes for the day it is lost.

django-otp keeps and checks them. allauth's mfa would have been the alternative: it lives inside allauth's own login
pages and stages, which would have replaced the login, its throttle and its record here.
"""

import base64
import hashlib
import io
import secrets
from typing import Any
from urllib.parse import quote, urlencode

import segno
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils.crypto import salted_hmac
from django.utils.safestring import SafeString, mark_safe
from django_otp.plugins.otp_static.models import StaticDevice
from django_otp.plugins.otp_totp.models import TOTPDevice

CODES = 10
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another


class App(TOTPDevice):  # type: ignore[misc]
    """A telephone's app; its key is kept under a key that is not in the database."""

    class Meta:
        app_label = "accounts"
        proxy = True

    def __str__(self) -> str:
        return f"app of {self.user}"

    @property
    def bin_key(self) -> bytes:
        """The key that app and volmig share; raises InvalidTag when it is not the one that was kept for this person."""
        return cipher().decrypt(bytes.fromhex(self.key), [str(self.user_id).encode()])

    def address(self) -> str:
        """What the app reads from the picture."""
        name = quote(f"volmig:{self.user.get_username()}")
        told = {"secret": base64.b32encode(self.bin_key).decode(), "issuer": "volmig", "digits": 6, "period": 30}
        return f"otpauth://totp/{name}?{urlencode(told)}"

    def letters(self) -> str:
        """The key for people who type it, in groups of four."""
        typed = base64.b32encode(self.bin_key).decode()
        return " ".join(typed[at : at + 4] for at in range(0, len(typed), 4))

    def picture(self) -> SafeString:
        """The address as a QR code, an SVG without styles."""
        file = io.BytesIO()
        code = segno.make(self.address(), error="m")
        code.save(file, kind="svg", scale=5, border=3, light="#fff", xmldecl=False, svgns=False, nl=False)
        return mark_safe(file.getvalue().decode())  # noqa: S308 - segno draws paths, nothing that anybody typed


def cipher() -> AESSIV:
    """Encrypts TOTP secrets: AES-SIV (RFC 5297) with a key derived from factor_key."""
    return AESSIV(hashlib.sha256(settings.FACTOR_KEY.encode()).digest())


def app_of(user: Any, *, confirmed: bool = True) -> App | None:
    """The person's app; with confirmed=False the one that is being set up."""
    found: App | None = App.objects.filter(user=user, confirmed=confirmed).first()
    return found


def has(user: Any) -> bool:
    """Whether the person gives a code when they log in."""
    return app_of(user) is not None


def is_missing(user: Any) -> bool:
    """Whether the person would need one to decide about approvals and has none."""
    return settings.APPROVERS_NEED_TOTP and not has(user)


def begin(user: Any) -> App:
    """The app that is being set up; the same until it is confirmed, so that the page may be loaded again."""
    if known := app_of(user, confirmed=False):
        return known
    kept = cipher().encrypt(secrets.token_bytes(20), [str(user.pk).encode()]).hex()
    made: App = App.objects.create(user=user, name="app", key=kept, confirmed=False)
    return made


@transaction.atomic
def confirm(user: Any, code: str) -> list[str]:
    """Takes the app into use when its code is right; returns the recovery codes, which are not shown again."""
    app = App.objects.select_for_update().filter(user=user, confirmed=False).first()
    if app is None or not verified(app, code):
        return []
    App.objects.filter(user=user, confirmed=True).delete()
    App.objects.filter(pk=app.pk).update(confirmed=True)
    return new_codes(user)


@transaction.atomic
def new_codes(user: Any) -> list[str]:
    """Ten recovery codes, each good for one login; earlier ones are good for none any more."""
    StaticDevice.objects.filter(user=user).delete()
    codes = ["-".join("".join(secrets.choice(LETTERS) for _ in range(5)) for _ in range(2)) for _ in range(CODES)]
    device = StaticDevice.objects.create(user=user, name="recovery codes")
    device.token_set.bulk_create([device.token_set.model(device=device, token=kept(user, code)) for code in codes])
    return codes


def codes_left(user: Any) -> int:
    """How many recovery codes a person has not used yet."""
    return sum(device.token_set.count() for device in StaticDevice.objects.filter(user=user))


def kept(user: Any, code: str) -> str:
    """How a recovery code is kept: its 16 first hexadecimal digits under volmig's secret key."""
    plain = f"{user.pk} {code.strip().lower()}"
    return salted_hmac("volmig.accounts.factors", plain, algorithm="sha256").hexdigest()[:16]


@transaction.atomic
def is_right(user: Any, code: str) -> str:
    """Whether it is the app's present code or an unused recovery code: says which, and uses it up; empty when not.

    After each wrong one the next is not looked at for a while, twice as long each time.
    """
    get_user_model().objects.select_for_update().get(pk=user.pk)  # one guess at a time
    app = app_of(user)
    if app is not None and verified(app, code):
        return "app"
    device = StaticDevice.objects.filter(user=user, confirmed=True).first()
    return "recovery code" if device and device.verify_token(kept(user, code)) else ""


def verified(app: App, code: str) -> bool:
    """True for the current code of the app, with or without spaces; False also when its secret cannot be decrypted."""
    digits = code.replace(" ", "")
    try:
        return digits.isascii() and digits.isdecimal() and bool(app.verify_token(digits))
    except (InvalidTag, ValueError):
        return False


@transaction.atomic
def remove(user: Any) -> bool:
    """Takes all factors away; tells whether there was one."""
    StaticDevice.objects.filter(user=user).delete()
    found, _ = App.objects.filter(user=user).delete()
    return bool(found)
