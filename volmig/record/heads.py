"""The file of published heads: each written whole, read past damage, found without reading all of them."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from volmig import data_dir
from volmig.record import signing
from volmig.record.models import SIGNED, ChainHead, Event, Publisher, head_now, signed_text
from volmig.verify_evidence import Head, Heads, head_line, leaf_of, lines_of, parse_head, path, root

log = logging.getLogger(__name__)
MOST = 1024  # events that one head covers: that many are read to prove that one of them is among them
BLOCK = 64 * 1024
TOLERANCE_SECONDS = 10  # the publisher's turns are some seconds apart, see volmig.record.publisher


def publish_due() -> None:
    """Publishes the head of the audit log unless the last one is newer than AUDIT_HEADS_SECONDS."""
    with suppress(OSError):
        last = newest(Path(settings.AUDIT_HEADS))
        age = (timezone.now() - datetime.fromisoformat(last.at)).total_seconds() if last else 0
        if last and 0 <= age < settings.AUDIT_HEADS_SECONDS - TOLERANCE_SECONDS:
            return
        if last and not known(last):  # volmig goes read-only, see volmig.incarnation; no head is put over the proof
            log.error("The audit log ends at event %s, but event %s was published before.", head_now()[0], last.seq)
            return
    signing.record_key()
    publish()


def publish() -> None:
    """Appends heads that cover the events since the last one; none when there are none.

    Raises OSError when they cannot be written whole; what was written of them is then cancelled.
    """
    seq, digest = head_now()
    if not seq:
        return
    with appending(Path(settings.AUDIT_HEADS)) as file:
        last = file.last()
        if last and last.root and (last.seq, last.hash) == (seq, digest):
            return
        if last and seq <= last.seq and not known(last):
            log.error("The audit log ends at event %s, but event %s was published before.", seq, last.seq)
        key = signing.current()
        previous = last.digest if last else ""
        for value in segments(file.covered(), seq, digest):
            at = max(timezone.now().isoformat(timespec="seconds"), key.since)  # a clock may be set back
            line = head_line(value | {"at": at, "prev": previous}, key.id, key.sign)
            file.append(line)
            previous = parse_head(line).digest
        first = file.first()
    ChainHead.note_published(seq, first.digest if first else "")
    Publisher.note(*this_file(), seq)


def this_file() -> tuple[str, str]:
    """The data directory of this process, and the file to which it would publish."""
    return data_dir.place(settings.DATA), str(Path(settings.AUDIT_HEADS).absolute())


def elsewhere() -> str:
    """Where heads are published, as a sentence, when another machine does so and there is no copy here; else empty."""
    publisher = Publisher.current()
    if publisher is None or publisher.published_by(*this_file()) is not None or Path(settings.AUDIT_HEADS).exists():
        return ""
    last = f", last for event {publisher.seq}" if publisher.seq else ""
    return f"Heads are published by {publisher.host} to {publisher.path}{last}; this machine has no copy of them."


def segments(covered: int, last: int, digest: str) -> Iterator[dict[str, Any]]:
    """What the heads for the events after `covered`, up to `last`, say of them."""
    for first in range(covered + 1, last + 1, MOST):
        until = min(first + MOST - 1, last)
        rows = rows_of(first, until)
        # Of an audit log that was cut off, the end is published as it is; the publisher has logged it.
        found = rows[-1][1] if rows and until < last else digest
        yield {"first": first, "seq": until, "hash": found, "root": root(leaves(rows)).hex()}


def rows_of(first: int, last: int) -> list[tuple[Any, ...]]:
    """What is signed of these events, first and last included."""
    found = Event.objects.filter(seq__gte=first, seq__lte=last).order_by("seq")
    return list(found.values_list("prev_hash", "hash", *SIGNED))


def leaves(rows: Iterable[Sequence[Any]]) -> list[bytes]:
    """The leaves of the tree of these events, RFC 9162."""
    return [leaf_of(before, signed_text(values).encode(), found) for before, found, *values in rows]


def known(head: Head) -> bool:
    """Whether this head's last event is in the database as it was published."""
    return Event.objects.filter(seq=head.seq, hash=head.hash).exists()


class HeadsFile:
    """The file of heads, open for appending and locked against other publishers."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def last(self) -> Head | None:
        """The last intact head."""
        return next(newest_first(self.descriptor), None)

    def first(self) -> Head | None:
        """The first intact head: it tells this file from those of other machines."""
        return next(intact_from(self.descriptor, 0), None)

    def covered(self) -> int:
        """The last event that a signed head covers which agrees with the database."""
        return next((head.seq for head in newest_first(self.descriptor) if head.root and known(head)), 0)

    def append(self, line: bytes) -> None:
        """Writes a line whole or not at all, on a line of its own also when what is there is cut off."""
        end = os.lseek(self.descriptor, 0, os.SEEK_END)
        begin = b"" if not end or os.pread(self.descriptor, 1, end - 1) == b"\n" else b"\n"
        try:
            data_dir.write_all(self.descriptor, begin + line + b"\n")
            os.fsync(self.descriptor)
        except OSError:
            # Refused where the file can only be appended to (chattr +a): the next line then begins with a line feed.
            with suppress(OSError):
                os.ftruncate(self.descriptor, end)
            raise


@contextmanager
def appending(path: Path) -> Iterator[HeadsFile]:
    """Opens the file, made when missing, and waits for other publishers to be done with it.

    Its mode is 0600; in a data directory that a group shares it is for that group, of which pages may be a member.
    """
    made = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if made and path.parent == settings.DATA:
            data_dir.share(path, path.parent)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield HeadsFile(descriptor)
    finally:
        os.close(descriptor)


def read_heads(path: Path) -> Heads:
    """All heads of a file, with their signatures checked; what is wrong with them is named in it. Raises OSError."""
    try:
        keys, why = signing.known_keys(), ""
    except (OSError, ValueError) as error:
        keys, why = None, f"The signatures of the heads were not checked: {error}."
    found = Heads.read(lines_of(path), keys)
    found.faults += [why] if why else []
    return found


def newest(path: Path) -> Head | None:
    """The last intact head of a file; None when it has none. Raises OSError."""
    return searched(path, lambda descriptor: next(newest_first(descriptor), None))


def covering(path: Path, seq: int) -> Head | None:
    """The head that covers an event as it is in the database; None when there is none yet. Raises OSError."""
    return searched(path, lambda descriptor: find(descriptor, seq))


def searched(path: Path, search: Callable[[int], Head | None]) -> Head | None:
    """A head that `search` finds in the file by its size; None without a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return search(descriptor)
    finally:
        os.close(descriptor)


def find(descriptor: int, seq: int) -> Head | None:
    """Bisects the file: heads are in the order of their events, unless an older database was restored meanwhile."""
    if not (last := next(newest_first(descriptor), None)) or last.seq < seq:
        return None
    low, high = 0, os.fstat(descriptor).st_size
    while high - low > BLOCK:
        middle = (low + high) // 2
        head = next(signed_from(descriptor, middle), None)
        low, high = (middle, high) if head and head.seq < seq else (low, middle)
    found = next((head for head in signed_from(descriptor, low) if head.seq >= seq), None)
    if found and covers(found, seq):
        return found
    return next((head for head in newest_first(descriptor) if covers(head, seq)), None)


def covers(head: Head, seq: int) -> bool:
    """True when the head's tree has the event."""
    return bool(head.root) and head.first <= seq <= head.seq and known(head)


def signed_from(descriptor: int, offset: int) -> Iterator[Head]:
    """The signed heads in lines that begin after an offset, or at it when it is 0."""
    return (head for head in intact_from(descriptor, offset) if head.root)


def intact_from(descriptor: int, offset: int) -> Iterator[Head]:
    """The same with heads of earlier versions, which have no signature."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(offset)
        if offset:
            file.readline(BLOCK)
        while line := file.readline(BLOCK):
            if head := intact(line.rstrip(b"\n")):
                yield head


def newest_first(descriptor: int) -> Iterator[Head]:
    """The intact heads from the end of the file backwards."""
    at, rest = os.lseek(descriptor, 0, os.SEEK_END), b""
    while at:
        begin = max(0, at - BLOCK)
        rest, *lines = (os.pread(descriptor, at - begin, begin) + rest).split(b"\n")
        at = begin
        yield from filter(None, map(intact, reversed(lines)))
        rest = rest[-2 * BLOCK :]  # without line feeds for so long, it is no head
    if head := intact(rest):
        yield head


def intact(line: bytes) -> Head | None:
    """The head in a line, None when it is damaged."""
    try:
        return parse_head(line)
    except ValueError:
        return None


def proofs(path: Path, numbers: Sequence[int]) -> tuple[dict[str, Any], list[Head], str]:
    """What proves to anyone that the events with these numbers are those that were published.

    Returns each event's path to the root of its head, those heads, and why heads could not be read (empty: they
    could). An event is left out as long as no readable head covers it.
    """
    proved: dict[str, Any] = {}
    used: list[Head] = []
    tree: list[bytes] = []
    try:
        for seq in numbers:
            if not used or not used[-1].first <= seq <= used[-1].seq:
                if not (head := covering(path, seq)):
                    continue
                used.append(head)
                tree = leaves(rows_of(head.first, head.seq))
            proved[str(seq)] = prove(used[-1], tree, seq)
    except OSError as error:
        return {}, [], f"heads could not be read: {error}"
    except ValueError as error:
        return {}, [], str(error)
    return proved, used, ""


def prove(head: Head, tree: list[bytes], seq: int) -> dict[str, Any]:
    """The hashes from the event to the root; ValueError when the database's events are not those of the head."""
    if root(tree).hex() != head.root:
        raise ValueError(f"the events {head.first} to {head.seq} in its database were not those published at {head.at}")
    return {"head": head.seq, "path": [each.hex() for each in path(seq - head.first, tree)]}
