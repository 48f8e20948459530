"""The statuses of a job and the only ways between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TABLE: Final[Mapping[str, Mapping[str, str]]] = {
    "checking": {"passed": "planned", "blocked": "undone", "cancelled": "undone"},
    "planned": {"started": "preparing", "edited": "checking", "stale": "checking", "cancelled": "undone"},
    "preparing": {"staged": "awaiting_approval", "failed": "undoing", "cancelled": "undoing"},
    "awaiting_approval": {
        "approved": "approved",
        "stage_stale": "preparing",
        "rejected": "undoing",
        "cancelled": "undoing",
    },
    "approved": {
        "consumed": "swapping",
        "void": "awaiting_approval",
        "expired": "awaiting_approval",
        "withdrawn": "awaiting_approval",
        "cancelled": "undoing",
    },
    "swapping": {"seen_running": "on_trial", "failed": "rolling_back", "cancelled": "rolling_back"},
    "on_trial": {"confirmed": "done", "rollback_approved": "rolling_back"},
    "rolling_back": {"rolled_back": "rolled_back"},
    "undoing": {"undone": "undone"},
    "done": {"purge_approved": "purging"},
    "rolled_back": {"purge_approved": "purging"},
    "purging": {"purged": "purged"},
    "undone": {},
    "purged": {},
}
STATUSES: Final = tuple(TABLE)
ENDED: Final = frozenset({"done", "undone", "rolled_back", "purging", "purged"})
ACTIVE: Final = frozenset(TABLE) - ENDED
MAY_ACT: Final = ACTIVE | {"purging"}  # may change something on a host without a decision that is still to come
MAY_BE_DOWN: Final = frozenset({"swapping", "rolling_back"})  # while the guest may be shut off for it
CANCELLABLE: Final = frozenset(status for status, ways in TABLE.items() if "cancelled" in ways)
WORKING: Final = frozenset({"checking", "preparing", "approved", "swapping", "rolling_back", "undoing", "purging"})
AT_WORK: Final = WORKING | {"awaiting_approval", "done", "rolled_back"}  # with what waits by itself: facts, a rehearsal


class NotForeseen(ValueError):  # noqa: N818 - the words that callers read
    """The table knows no such way; nothing may be done about it by guessing."""


def next(status: str, event: str) -> str:  # noqa: A001  (read as states.next)
    """The status that `event` leads to; raise NotForeseen when the table has no such way."""
    try:
        return TABLE[status][event]
    except KeyError:
        raise NotForeseen(f"A job that is {status} does not go on by {event}.") from None
