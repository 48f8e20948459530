"""The file of the keys that sign evidence: what is in it, and the first of them."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.utils import timezone

from volmig.verify_evidence import ROTATION, canonical, key_id


@dataclass(frozen=True)
class Signer:
    """A key's ID, since when it is valid (ISO 8601), and what signs with it."""

    id: str
    since: str
    sign: Callable[[bytes], bytes]


def entry(private: Ed25519PrivateKey, since: str, signer: Signer | None = None) -> dict[str, Any]:
    """A public key as it is published; signed by the key before it when there is one."""
    public = private.public_key().public_bytes_raw()
    body = {"id": key_id(public), "public": text(public), "from": since, "signed_by": signer.id if signer else ""}
    signature = text(signer.sign(ROTATION + canonical(body))) if signer else ""
    return body | {"until": "", "signature": signature}


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def document(private: Ed25519PrivateKey, entries: list[dict[str, Any]]) -> bytes:
    """The file of evidence keys: the private one, and all public ones, oldest first."""
    return json.dumps({"private": text(private.private_bytes_raw()), "keys": entries}, indent=1).encode() + b"\n"


def now() -> str:
    return timezone.now().isoformat(timespec="seconds")


def first() -> bytes:
    """What the file of keys holds at first."""
    private = Ed25519PrivateKey.generate()
    return document(private, [entry(private, now())])
