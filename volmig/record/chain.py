"""The chain's proof: walking it, and publishing its head outside of the database, so that a cut end shows."""

import datetime as dt
import hmac
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from volmig.record.models import SIGNED, ChainHead, Event, sign

log = logging.getLogger(__name__)
Heads = dict[int, tuple[str, str]]  # seq -> (hash, when it was published)


def publish() -> None:
    """Appends the chain's head to the file of heads, unless it is the last one there; called every minute."""
    path, (seq, digest) = Path(settings.AUDIT_HEADS), head_now()
    last_seq, last_hash = last_published(path)
    if not seq or (seq, digest) == (last_seq, last_hash):
        return
    if seq <= last_seq:
        log.error("The record ends at event %s, but event %s was published before.", seq, last_seq)
    line = json.dumps({"seq": seq, "hash": digest, "at": timezone.now().isoformat(timespec="seconds")})
    write(path, f"{line}\n".encode())


def write(path: Path, line: bytes) -> None:
    """Appends in one write, so that two workers at once do not mix their lines, and waits until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def last_published(path: Path) -> tuple[int, str]:
    """The newest head in the file; (0, "") when there is none that can be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            head = json.loads(file.read().splitlines()[-1])
            return int(head["seq"]), str(head["hash"])
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        return 0, ""


def read_heads(path: Path) -> Heads:
    """The published heads; raises ValueError that names the line which is none."""
    heads: Heads = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            head = json.loads(line)
            heads.setdefault(int(head["seq"]), (str(head["hash"]), str(head["at"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a published head.") from error
    return heads


def verify_lines(lines: Iterable[str]) -> list[str]:
    """Checks events of an export or a bundle: their signatures, and that they are the rows of this record.

    Raises ValueError that names the line which is no event.
    """
    return [fault for number, line in enumerate(lines, 1) if (fault := why_not_ours(*parsed(number, line)))]


def parsed(number: int, line: str) -> tuple[str, str, list[Any]]:
    """An event's prev_hash, its hash and the values of its SIGNED fields."""
    try:
        event = json.loads(line)
        values = [event[name] for name in SIGNED]
        values[SIGNED.index("at")] = dt.datetime.fromisoformat(event["at"])
        return str(event["prev_hash"]), str(event["hash"]), values
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"Line {number} is no event of a record.") from error


def why_not_ours(prev_hash: str, found: str, values: list[Any]) -> str:
    """Why an event is not as this record wrote it; empty when it is."""
    seq = values[0]
    if not hmac.compare_digest(found, sign(prev_hash, values)):
        return f"Event {seq} is not as it was written."
    kept = Event.objects.filter(seq=seq).values_list("hash", flat=True).first()
    return "" if kept == found else f"Event {seq} is not in this record."


def verify(heads: Heads | None = None) -> list[str]:
    """Walks the whole chain; returns a sentence for each fault, the first bad event first; none when whole."""
    return list(walk(dict(heads or {})))


def walk(heads: Heads) -> Iterator[str]:
    written = head_now()[0]  # before the walk: what is appended meanwhile is no fault
    last_seq, last_hash = 0, ""
    # Plain values: making model instances would take longer than checking the signatures.
    rows = Event.objects.order_by("seq").values_list("prev_hash", "hash", *SIGNED)
    for prev_hash, found, *values in rows.iterator(chunk_size=2000):
        seq = values[0]
        if seq != last_seq + 1:
            yield f"Events {last_seq + 1} to {seq - 1} are missing."
        if prev_hash != last_hash:
            yield f"Event {seq} does not follow from the one before it."
        if not hmac.compare_digest(found, sign(prev_hash, values)):
            yield f"Event {seq} was changed after it was written."
        published, at = heads.pop(seq, (found, ""))
        if published != found:
            yield f"Event {seq} is another than the one that was published as the head at {at}."
        last_seq, last_hash = seq, found
    yield from cut(last_seq, last_hash, written)
    if (seq := max(heads, default=0)) > last_seq:
        yield f"The record ends at event {last_seq}, but event {seq} was published as its head at {heads[seq][1]}."


def cut(last_seq: int, last_hash: str, written: int) -> Iterator[str]:
    """Whether the end of the record is the end that was written."""
    head_seq, head_hash = head_now()
    if last_seq and not head_seq:
        yield "The head of the chain is missing."
    elif last_seq < written:
        yield f"The record ends at event {last_seq}, but {written} were written."
    elif last_seq > head_seq or (last_seq == head_seq and last_hash != head_hash):
        yield f"The head of the chain is not event {last_seq}, with which the record ends."


def head_now() -> tuple[int, str]:
    return ChainHead.objects.filter(pk=1).values_list("seq", "hash").first() or (0, "")
