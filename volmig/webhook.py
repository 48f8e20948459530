"""Signatures of the webhook, by the specification of Standard Webhooks (https://www.standardwebhooks.com).

Own code, for it is ten lines of HMAC; the reference library is what tests compare it with.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Sequence

PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a secret, as the specification recommends
MOST = 2  # the one in use, and the one that it replaces


def key_of(secret: str) -> bytes:
    """The bytes that sign; raises ValueError when a whsec_ secret is not base64.

    A secret without the prefix, as releases before this one had it, signs with its characters.
    """
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a secret is not base64 behind whsec_") from error


def faults(secrets: Sequence[str]) -> Iterator[str]:
    """Why notices cannot be signed with these, as sentences."""
    if not secrets:
        yield "VOLMIG_WEBHOOK_URL is set without VOLMIG_WEBHOOK_SECRET: notices would be signed with an empty key"
    if len(secrets) > MOST:
        yield f"VOLMIG_WEBHOOK_SECRET has {len(secrets)} secrets: the new and the old one are enough"
    for secret in secrets:
        try:
            key = key_of(secret)
        except ValueError as error:
            yield f"VOLMIG_WEBHOOK_SECRET: {error}"
            continue
        if secret.startswith(PREFIX) and not SHORTEST <= len(key) <= LONGEST:
            yield f"VOLMIG_WEBHOOK_SECRET: a secret has {len(key)} bytes; {SHORTEST} to {LONGEST} are needed"


def headers(secrets: Sequence[str], name: str, body: bytes, now: int) -> dict[str, str]:
    """The headers of one message; `name` is its id, `now` in seconds. Raises ValueError when `faults` finds any."""
    if why := "; ".join(faults(secrets)):
        raise ValueError(why)
    signed = b".".join([name.encode(), str(now).encode(), body])
    digests = [hmac.digest(key_of(secret), signed, "sha256") for secret in secrets]
    old = hmac.new(secrets[0].encode(), body, hashlib.sha256).hexdigest()
    return {
        "webhook-id": name,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        "X-Volmig-Signature": f"sha256={old}",  # of releases before this one; it goes with the next
    }
