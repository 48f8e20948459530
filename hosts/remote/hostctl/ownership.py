"""Which volmig this host belongs to: the last process that changed something here, and how far each of them had come.

A volmig is one database. Its incarnation is a random id that the database and its data directory keep. A session is one
start of its workers; its claim is a counter that is raised in the database before anything is sent. So a database that
was set back to an older state, or copied, knows less than its hosts do, and cannot change that by counting on.
"""

import contextlib
import os
from typing import Any, Dict, Iterator

from .act import Refused
from .store import STATE, flock, read_json, write_json

SESSIONS = 32  # of so many the claims are kept, the latest ones


class Ownership:
    """The file owner.json: incarnation, session (the one that acted last) and claims, the highest of each session."""

    def __init__(self, state: str = STATE) -> None:
        self.state, self.path = state, os.path.join(state, "owner.json")

    def read(self) -> Dict[str, Any]:
        """Who owns this host; empty when nobody does yet."""
        return read_json(self.path) or {}

    @contextlib.contextmanager
    def locked(self, wait: float) -> Iterator[bool]:
        """One request at a time is admitted, whatever job it is for; False when the lock was not free in time."""
        os.makedirs(self.state, 0o700, exist_ok=True)
        fd = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield flock(fd, wait)
        finally:
            os.close(fd)

    def check(self, incarnation: str, session: str, after: str) -> None:
        """Refuse whoever is neither the owner nor knows the owner: `after` is the session that volmig knows it by."""
        owner = self.read()
        if not owner:
            return
        if owner["incarnation"] != incarnation:
            raise Refused(
                "other-incarnation",
                "act for volmig %s" % (incarnation[:8] or "(unnamed)"),
                "this host belongs to volmig %s" % owner["incarnation"][:8],
                "Find out which volmig manages this host. An administrator can take the host over.",
                owner=owner,
            )
        if owner["session"] not in (session, after):
            raise Refused(
                "other-owner",
                "act for session %s" % session[:8],
                "session %s acted here last" % owner["session"][:8],
                "Nothing to do: volmig compares it with its database.",
                owner=owner,
            )

    def check_claim(self, session: str, claim: int, seen: int) -> None:
        """Refuse a session that counts from further back than when it last acted for the same job, at `seen`.

        Its database was set back while the same workers ran on. Workers of one session overtake each other, but never
        on one job. Claims that a person had this host forget (`take` afresh) do not count.
        """
        owner = self.read()
        if claim < seen <= int((owner.get("claims") or {}).get(session, 0)):
            raise Refused(
                "other-owner",
                "act for session %s at count %d" % (session[:8], claim),
                "it had counted to %d when it last acted for this migration" % seen,
                "Nothing to do: volmig compares it with its database.",
                owner=owner,
            )

    def take(self, incarnation: str, session: str, claim: int, afresh: bool = False) -> None:
        """Remember who acts; `afresh` forgets the claims of all others, whom a person has judged."""
        if not session:
            return
        owner = self.read()
        claims = {} if afresh else dict(owner.get("claims") or {})
        highest = max(claim, claims.pop(session, 0))
        claims = dict(list(claims.items())[-(SESSIONS - 1) :])
        claims[session] = highest
        made = {"incarnation": incarnation, "session": session, "claims": claims}
        if made != owner:
            write_json(self.path, made, sync=True)
