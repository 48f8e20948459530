"""The key that signs published heads and archives of evidence, and the public keys that did so before it.

One file of the data directory holds both, so that a rotation changes them in one step.
"""

import base64
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from volmig import data_dir, keys
from volmig.record.key_file import Signer, document, entry, now
from volmig.record.models import Event
from volmig.verify_evidence import Keys, read_keys

MADE, ROTATED = "evidence.key", "evidence.key-rotated"


def kept() -> dict[str, Any]:
    """The file of keys, made where no machine has one yet. Raises OSError, or ValueError when it is damaged."""
    try:
        found = json.loads(keys.key(data_dir.EVIDENCE_KEY))
        Ed25519PrivateKey.from_private_bytes(base64.b64decode(found["private"], validate=True))
        if not found["keys"]:
            raise ValueError("it names no key")
    except keys.KeysDiffer as error:
        raise ValueError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file evidence_key in the data directory is damaged ({error})") from error
    return found  # type: ignore[no-any-return]


def current() -> Signer:
    """The key that signs now. Raises OSError, and ValueError also where another machine has replaced it since."""
    found = kept()
    if why := keys.why_outdated(data_dir.EVIDENCE_KEY):
        raise ValueError(why)
    return signer(found)


def signer(found: dict[str, Any]) -> Signer:
    """The key in use."""
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(found["private"]))
    return Signer(found["keys"][-1]["id"], found["keys"][-1]["from"], private.sign)


def published() -> dict[str, Any]:
    """All public keys, the oldest first, as keys.json has them. Raises OSError, ValueError."""
    return {"keys": kept()["keys"]}


def known_keys() -> Keys:
    """The keys by which volmig checks its own signatures."""
    known = Keys()
    for fault in read_keys(published(), known):
        raise ValueError(fault)
    return known


def record_key() -> None:
    """Has the audit log name the key that signs, once: whoever has the log knows which keys were in use, and when."""
    newest = published()["keys"][-1]
    if not Event.objects.filter(action__in=(MADE, ROTATED), object=newest["id"]).exists():
        Event.append(MADE, object=newest["id"], data={"public": newest["public"], "from": newest["from"]})


def rotate(output: Path | None = None) -> dict[str, Any]:
    """Replaces the key by a new one that the old one signs; the old private key is gone. Returns the new entry.

    With `output` the new file of keys is written there, to be copied to every machine; until then they sign nothing.
    Raises OSError, ValueError, keys.Unsettled, or a database's error.
    """
    if data_dir.is_given(data_dir.EVIDENCE_KEY) and output is None:
        path = data_dir.key_path(data_dir.EVIDENCE_KEY)
        raise ValueError(
            f"{path} is a file that volmig does not write (VOLMIG_EVIDENCE_KEY_FILE): "
            "name a new file with --output, then put it in that place on each machine"
        )
    new: dict[str, Any] = {}

    def make() -> bytes:
        signs = current()
        record_key()
        found = kept()
        at = max(now(), found["keys"][-1]["from"])
        private = Ed25519PrivateKey.generate()
        new.update(entry(private, at, signs))
        return document(private, [*found["keys"][:-1], found["keys"][-1] | {"until": at}, new])

    def note(before: str, after: str) -> None:
        of_event = {name: new[name] for name in ("public", "from", "signed_by", "signature")}
        Event.append(ROTATED, object=new["id"], data=of_event)

    keys.replace(data_dir.EVIDENCE_KEY, make, note, output)
    return new
