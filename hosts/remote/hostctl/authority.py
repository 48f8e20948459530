"""Seals: the proof, made where the approval was completed, that a destructive verb may be carried out for one job.

A seal is an HMAC-SHA256 over job, verb, the arguments that matter, the digest of what was approved and an expiry. Each
hypervisor has a key of its own, in its policy; the process that sends requests has none.
"""

import hashlib
import hmac
import json
import re
import time
from typing import Any, Dict, Optional, Tuple

from .act import Args
from .policy import PATH, RULES, Objection

SKEW = 300  # seconds by which this host's clock may be ahead of the one that set the expiry
FIELDS = ("job", "verb", "bound", "digest", "expires")
AGAIN = "Press Resume in volmig: if the approval was used, that makes a new seal. Otherwise request approval again."


def canonical(body: Dict[str, Any]) -> bytes:
    """The bytes that are signed: JSON with sorted keys and nothing superfluous."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def sign(key: str, body: Dict[str, Any]) -> str:
    """The MAC of a seal under a key (64 hex digits)."""
    return hmac.new(bytes.fromhex(key), b"volmig seal 1\0" + canonical(body), hashlib.sha256).hexdigest()


def make(key: str, job: str, verb: str, args: Args, digest: str, expires: int) -> Dict[str, Any]:
    """A seal for one verb of one job until `expires` (Unix time); `args` must have what the verb's rule binds."""
    bound = {name: args[name] for name in RULES[verb].bound}
    body = {"job": job, "verb": verb, "bound": bound, "digest": digest, "expires": expires}
    return dict(body, mac=sign(key, body))


def is_seal(value: Any) -> bool:
    """Whether a value has the shape of a seal; an empty one is none, and as good a value."""
    if value == {}:
        return True
    return (
        isinstance(value, dict)
        and set(value) == {"mac", *FIELDS}
        and all(isinstance(value[name], str) and len(value[name]) <= 100 for name in ("job", "verb", "digest", "mac"))
        and re.match(r"[0-9a-f]{64}\Z", value["mac"]) is not None
        and isinstance(value["bound"], dict)
        and type(value["expires"]) is int
    )


def objection(
    keys: Tuple[str, ...], seal: Dict[str, Any], job: str, verb: str, args: Args, now: float
) -> Optional[Objection]:
    """Why this seal does not admit the verb; None when it does. Pure. Without a right MAC nothing else is read."""
    if not keys:
        return Objection(
            "no-seal-key",
            "a seal is needed, and %s has no key to verify one" % PATH,
            "Add the seal key that the hypervisor's page in volmig prints, then resume.",
        )
    if not seal:
        return Objection("no-seal", "the request has no seal of an approval", AGAIN)
    body = {name: seal[name] for name in FIELDS}
    if not any(hmac.compare_digest(sign(key, body), seal["mac"]) for key in keys):
        return Objection(
            "seal-foreign",
            "no key of this hypervisor matches this seal",
            "Compare the fingerprints of the seal key on the hypervisor's page in volmig, then resume.",
        )
    if seal["job"] != job:
        return Objection("seal-other-job", "the seal is for migration %s" % seal["job"], AGAIN)
    if seal["verb"] != verb:
        return Objection("seal-other-verb", "the seal is for %s" % seal["verb"], AGAIN)
    differs = _differences(seal["bound"], args, RULES[verb].bound)
    if differs:
        return Objection("seal-other-arguments", "; ".join(differs)[:500], AGAIN)
    if now > seal["expires"] + SKEW:
        said = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
        found = "the seal expired %d s ago by this hypervisor's clock, which shows %s UTC" % (
            now - seal["expires"],
            said,
        )
        return Objection("seal-expired", found, "If that clock is wrong, set it. " + AGAIN)
    return None


def _differences(bound: Dict[str, Any], args: Args, wanted: Tuple[str, ...]) -> "list[str]":
    """What was approved and what is asked for, where they are not the same; a mapping binds the keys that it names."""
    found = ["%s is not in the seal" % name for name in wanted if name not in bound]
    for name, value in sorted(bound.items()):
        asked = args.get(name)
        if isinstance(value, dict) and value and isinstance(asked, dict):
            asked = {key: asked.get(key) for key in value}
        if asked != value:
            found.append("%s: approved was %.100s, requested is %.100s" % (name, value, asked))
    return found
