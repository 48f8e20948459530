"""Which volmig this is, and whether it may act: a database that was set back, or copied, changes nothing on any host.

A volmig is one database and the data directories that belong to it. Its incarnation is a random name that both keep.
A session is one start of its workers; each claim of a migration, and each step before it is sent, raises the session's
counter in the database. The data directory keeps the last count and the last audit head that it saw; each hypervisor
keeps the counts of the sessions that acted there. Whoever finds one of them ahead of the database enters read-only
mode: `enter_read_only(reason, code)`. It is kept in the database and in the data directory, and ends only by `adopt`.

`mark_restored(directory, reason)` is for a restore: it makes a data directory that begins in read-only mode.
"""

import datetime as dt
import fcntl
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from volmig import data_dir
from volmig.models import Incarnation, Session
from volmig.notify import announce
from volmig.record import heads
from volmig.record.models import Event, head_now

log = logging.getLogger(__name__)
FILE, SEEN, READ_ONLY = "incarnation", "claims", "read_only"
SESSION = secrets.token_hex(16)  # made by the parent of all workers; those that are forked inherit it
LOCAL = {"directory-missing", "directory-differs", "directory-moved"}  # faults of this data directory alone
WHAT_TO_DO = (
    "An administrator compares each migration with what its hypervisors report and adopts it: "
    "page Adopt, or manage.py adopt."
)

WHERE_ADDED = "If this data directory was added or moved, let it act: manage.py adopt --join --as NAME."


class ReadOnly(Exception):  # noqa: N818 - as Refused is
    """Nothing was sent: volmig is in read-only mode."""


class Unwritable(OSError):  # noqa: N818 - what the data directory is
    """The data directory takes no writes, so this machine must not act: what it does could not be remembered."""


class Fault(NamedTuple):
    """Why this database, or this data directory, must not act; `found` is a clause or sentences without the subject."""

    code: str
    found: str

    @property
    def is_other(self) -> bool:
        """Whether the host belongs to another volmig, so that a person has to take it over by its name."""
        return self.code == "other-incarnation"


@dataclass(frozen=True)
class State:
    """Why volmig is read-only, and since when."""

    code: str
    reason: str
    since: dt.datetime
    episode: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this data directory is at fault; the database goes on elsewhere."""
        return self.code in LOCAL

    @property
    def what_to_do(self) -> str:
        """The sentence that ends read-only mode: join a directory, or adopt."""
        return WHERE_ADDED if self.is_local else WHAT_TO_DO


# May it act?


def read_only() -> State | None:
    """Why nothing may be changed; None when volmig may act. One query and one look for a file."""
    return _kept_in_directory() or _kept_in_database()


def check() -> State | None:
    """Compare the database with what is kept outside of it; enters read-only mode when it is behind or a copy.

    A process that may not read or write the data directory must not act either, but the others go on.
    """
    try:
        return _compare()
    except PermissionError as error:
        log.error("This process may not use the data directory: %s", error)
        found = f"This process may not use the data directory {settings.DATA}: {error}. Its files are for its group."
        return State("not-permitted", found, timezone.now())


def _compare() -> State | None:
    row, kept = _both()
    if row is None or kept is None:
        with _locked():  # another process may be in the middle of the first start
            row, kept = _both()
            if row is None and kept is None:
                row, kept = _first_start()
    if row is not None:
        _reconcile(row)
    if known := read_only():
        return known
    fault = _directory_fault(row, kept) or _behind(row)
    return enter_read_only(fault.found, fault.code) if fault else None


def _both() -> tuple[Incarnation | None, dict[str, Any] | None]:
    """What the database and the data directory say of whom they are of."""
    return Incarnation.objects.filter(pk=1).first(), _read(FILE)


def _first_start() -> tuple[Incarnation, dict[str, Any]]:
    row = _row()
    return row, belong_to(row)


def _row() -> Incarnation:
    return Incarnation.objects.get_or_create(pk=1, defaults={"name": secrets.token_hex(16)})[0]


def belong_to(row: Incarnation) -> dict[str, Any]:
    """From now on this data directory, where it is now, belongs to this database."""
    kept = {"name": row.name, "place": _place()}
    _write(FILE, kept)
    return kept


def _directory_fault(row: Incarnation | None, kept: Mapping[str, Any] | None) -> Fault | None:
    """Why data directory and database do not belong together."""
    here = settings.DATA
    if row is None:
        return Fault(
            "database-missing",
            f"The data directory {here} belongs to volmig {str((kept or {}).get('name'))[:8]}, "
            "but the database has never belonged to any: it is new, or not the one of this directory.",
        )
    if kept is None:
        return Fault(
            "directory-missing",
            f"The database belongs to volmig {row.name[:8]}, but the data directory {here} to none. "
            "Either the wrong directory or the wrong database is in use, or this machine was added lately.",
        )
    if kept.get("name") != row.name:
        return Fault(
            "directory-differs",
            f"The data directory {here} belongs to volmig {str(kept.get('name'))[:8]}, "
            f"but the database to volmig {row.name[:8]}.",
        )
    if kept.get("place") != _place():
        return Fault(
            "directory-moved",
            f"The data directory {here} was copied, moved or restored here from another place. "
            "If the original still runs, this copy must not act.",
        )
    return None


def _behind(row: Incarnation | None) -> Fault | None:
    """Whether the data directory has seen more than the database knows."""
    seen = _read(SEEN) or {}
    if row and _is_judged(seen, row.ended or []):
        _forget_what_was_seen()
        seen = {}
    if session := seen.get("session"):
        claims = Session.objects.filter(name=session).values_list("claims", flat=True).first()
        if claims is None or claims < int(seen.get("claim", 0)):
            return Fault(
                "database-older",
                f"The database is older than what was done with it: session {session[:8]} had counted to "
                f"{seen.get('claim')}, and the database knows {'nothing of it' if claims is None else claims}.",
            )
    for seq, digest in [_published(), (int(seen.get("seq", 0)), str(seen.get("hash", "")))]:
        if seq and (fault := _record_fault(seq, digest)):
            return Fault("record-older", fault)
    return None


def _is_judged(seen: Mapping[str, Any], ended: Sequence[str]) -> bool:
    """Whether a read-only episode has begun and ended since: on a machine that was off meanwhile.

    A person then compared everything with the hosts, so that what was seen before does not count any more. A database
    that was set back to before the last episode that this directory knows of has not been judged.
    """
    return "judged" in seen and bool(ended) and seen["judged"] in ["", *ended[:-1]]


def _published() -> tuple[int, str]:
    """The last audit head that was published; it is read before the database, which only ever gets ahead of it."""
    try:
        head = heads.newest(Path(settings.AUDIT_HEADS))
    except OSError as error:
        log.error("The published audit heads cannot be read: %s", error)
        head = None
    return (head.seq, head.hash) if head else (0, "")


def _record_fault(seq: int, digest: str) -> str:
    found = Event.objects.filter(seq=seq).values_list("hash", flat=True).first()
    if found == digest:
        return ""
    end = head_now()[0]
    if found is None:
        return f"The audit log ends at event {end}, but event {seq} was published before: the database is older."
    return f"Event {seq} of the audit log is not the one that was published: this is a different database."


# Entering and leaving


def enter_read_only(reason: str, code: str = "other-owner") -> State:
    """From now on nothing is changed on any host, by any process: kept in the data directory and in the database.

    Returns the state that holds, which is the earlier one when there is one. Call it outside of transactions that may
    be rolled back.
    """
    if known := read_only():
        return known
    state = State(code, reason, timezone.now(), secrets.token_hex(16))
    log.error("volmig is read-only: %s %s", reason, state.what_to_do)
    try:
        if not state.is_local:
            _row()
            _keep_in_database(state)
    finally:
        _keep_in_directory(state)
    if not read_only():
        return state  # a local fault that its directory cannot keep: each check finds it again, and it is logged above
    Event.append("volmig.read_only", data={"code": code, "reason": reason})
    announce("read_only", subject="volmig is read-only", text=f"{reason}\n{state.what_to_do}", url_path="/adopt/")
    return state


def mark_restored(directory: Path, reason: str) -> None:
    """Make a data directory (of a restore) in which volmig starts read-only until a person has adopted everything."""
    state = State("restored", reason, timezone.now(), secrets.token_hex(16))
    data_dir.replace(Path(directory) / READ_ONLY, json.dumps(_document(state)).encode(), shared=True)


def leave_read_only(by: Any = None) -> None:
    """A person has adopted everything: database and data directory belong together as they are now."""
    kept, row = _kept_in_directory(), _row()
    over = {each for each in (row.episode, kept.episode if kept else "") if each}
    with transaction.atomic():
        Event.append("volmig.adopted", actor=by, data={"reason": row.reason or (kept.reason if kept else "")})
        ended = [*(row.ended or []), *sorted(over)]
        Incarnation.objects.filter(pk=1).update(episode="", since=None, code="", reason="", ended=ended)
    belong_to(row)
    _forget_what_was_seen()


def _forget_what_was_seen() -> None:
    """What this data directory knew beyond the database was judged by a person, and does not count any more."""
    (settings.DATA / SEEN).unlink(missing_ok=True)
    if not heads.elsewhere():  # a file that is here must not stay ahead of the database
        heads.publish()
    (settings.DATA / READ_ONLY).unlink(missing_ok=True)


def join(by: Any = None) -> None:
    """This data directory, copied or new, is one more of this database, or the only one at its new place."""
    row = Incarnation.objects.get(pk=1)
    Event.append("volmig.joined", actor=by, data={"directory": str(settings.DATA), "host": data_dir.here()})
    belong_to(row)
    (settings.DATA / READ_ONLY).unlink(missing_ok=True)


def _reconcile(row: Incarnation) -> None:
    """A data directory may have learned of it when this database could not, and may not have heard that it is over."""
    kept = _kept_in_directory()
    if kept and kept.episode in (row.ended or []):
        _forget_what_was_seen()
    elif kept and not kept.is_local and not row.episode:
        _keep_in_database(kept)
    elif not kept and row.episode and (state := _kept_in_database()):
        _keep_in_directory(state)


def _keep_in_directory(state: State) -> None:
    """Say it there as well; where it is full or may not be written to, the database says it and `check` tries again."""
    try:
        _write(READ_ONLY, _document(state))
    except OSError as error:
        log.error("The data directory %s does not say that volmig is read-only: %s", settings.DATA, error)


def _keep_in_database(state: State) -> None:
    values = {"episode": state.episode, "since": state.since, "code": state.code, "reason": state.reason}
    Incarnation.objects.filter(pk=1).update(**values)


def _kept_in_database() -> State | None:
    row = Incarnation.objects.filter(pk=1).exclude(episode="").first()
    return State(row.code, row.reason, row.since or timezone.now(), row.episode) if row else None


def _kept_in_directory() -> State | None:
    if not (settings.DATA / READ_ONLY).exists():
        return None
    try:
        kept = _read(READ_ONLY) or {}  # what cannot be read is no reason to act
    except PermissionError:
        kept = {}
    reason = str(kept.get("reason") or f"{settings.DATA / READ_ONLY} cannot be read.")
    return State(str(kept.get("code") or "unreadable"), reason, _since(kept), str(kept.get("episode") or ""))


def _since(kept: Mapping[str, Any]) -> dt.datetime:
    try:
        since = dt.datetime.fromisoformat(str(kept.get("since")))
    except ValueError:
        return timezone.now()
    return since if since.tzinfo else since.replace(tzinfo=dt.UTC)


def _document(state: State) -> dict[str, str]:
    return {"episode": state.episode, "code": state.code, "reason": state.reason, "since": state.since.isoformat()}


# Counting


def count() -> int:
    """Raise this session's counter as part of the caller's transaction; every request that follows carries it.

    Raises ReadOnly when the database has lost counts that had been committed, as after a failover to a replica that was
    behind; the next `check` then enters read-only mode. While volmig is read-only, adopting may count on from there.
    """
    seen = _read(SEEN) or {}  # read first: it keeps only what had been committed before
    committed = int(seen.get("claim", 0)) if seen.get("session") == SESSION else 0
    mine = Session.objects.filter(name=SESSION)
    if not mine.update(claims=F("claims") + 1):
        try:
            with transaction.atomic():
                Session.objects.create(name=SESSION, claims=1, host=data_dir.here())
        except IntegrityError:  # another worker of this session was first
            mine.update(claims=F("claims") + 1)
    counted = int(mine.values_list("claims", flat=True).get())
    if counted <= committed and not read_only():
        raise ReadOnly(f"The database is older than a moment ago: it counted to {counted - 1}, and {committed} before.")
    return counted


def remember(claim: int) -> None:
    """Keep, outside of the database, how far it has come: call it once the count is committed. Raises Unwritable."""
    seq, digest = head_now()
    ended = Incarnation.objects.filter(pk=1).values_list("ended", flat=True).first() or []
    with _locked():
        seen = _read(SEEN) or {}
        if seen.get("session") == SESSION:
            claim = max(claim, int(seen.get("claim", 0)))
        if int(seen.get("seq", 0)) > seq:
            seq, digest = int(seen["seq"]), str(seen["hash"])
        judged = ended[-1] if ended else ""
        try:
            _write(SEEN, {"session": SESSION, "claim": claim, "seq": seq, "hash": digest, "judged": judged})
        except OSError as error:
            where = f"The data directory {settings.DATA} of {data_dir.here()}"
            raise Unwritable(f"{where} takes no writes ({error.strerror or error}).") from error


def name() -> str:
    """The incarnation's name."""
    return str(Incarnation.objects.filter(pk=1).values_list("name", flat=True).first() or "")


def stale(owner: Mapping[str, Any]) -> Fault | None:
    """Why what a host keeps of its owner shows that this database is behind; None when it does not.

    Every session that acted there has to be known here, and to have counted at least as far.
    """
    if not owner:
        return None
    if owner.get("incarnation") != name():
        return Fault("other-incarnation", f"it belongs to another volmig ({str(owner.get('incarnation'))[:8]})")
    claims = {str(key): int(value) for key, value in (owner.get("claims") or {}).items()}
    known = dict(Session.objects.filter(name__in=claims).values_list("name", "claims"))
    for session, claim in claims.items():
        if session not in known:
            return Fault("other-owner", f"session {session[:8]} acted there, which this database does not know")
        if claim > known[session]:
            return Fault(
                "other-owner",
                f"session {session[:8]} had counted to {claim} when it acted there, and this database knows "
                f"only {known[session]}",
            )
    return None


# Files of the data directory


def _place() -> str:
    return data_dir.place(settings.DATA)


def _read(file: str) -> dict[str, Any] | None:
    try:
        value = json.loads((settings.DATA / file).read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError:  # a fault of this process: what the file says is not known
        raise
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(file: str, value: Mapping[str, Any]) -> None:
    data_dir.replace(settings.DATA / file, json.dumps(value).encode(), shared=True)


@contextmanager
def _locked() -> Iterator[None]:
    path = settings.DATA / f"{SEEN}.lock"
    lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        data_dir.share(path, settings.DATA)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
