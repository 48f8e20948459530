"""The proof of the audit log: walking its chain, and comparing it with the heads that were published."""

import datetime as dt
import hmac
import json
from collections.abc import Iterable, Iterator
from typing import Any

from volmig.record.models import SIGNED, ChainHead, Event, head_now, sign
from volmig.verify_evidence import Heads


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
        raise ValueError(f"Line {number} is not an event of an audit log.") from error


def why_not_ours(prev_hash: str, found: str, values: list[Any]) -> str:
    """Why an event is not as this record wrote it; empty when it is."""
    seq = values[0]
    if not hmac.compare_digest(found, sign(prev_hash, values)):
        return f"Event {seq} was changed."
    kept = Event.objects.filter(seq=seq).values_list("hash", flat=True).first()
    return "" if kept == found else f"Event {seq} is not in this audit log."


def verify(published: Heads | None = None, end: int | None = None) -> list[str]:
    """Walks the whole chain; returns a sentence for each fault, the first bad event first; none when whole.

    With published heads, events have to be those that they name, and the heads themselves in order, up to the event
    `end` or, where that is not known, up to the last one published to their file.
    """
    if published is None:
        return list(walk({}))
    first_of: dict[int, tuple[str, str]] = {}
    for head in published.heads:
        first_of.setdefault(head.seq, (head.hash, head.at))
    return [*walk(first_of), *damage(published, end)]


def damage(published: Heads, end: int | None = None) -> list[str]:
    """What is wrong with the file of heads itself, whatever the audit log is like."""
    return [*published.faults, *cut_heads(published, end)]


def cut_heads(published: Heads, end: int | None = None) -> Iterator[str]:
    """Whether the end of the file of heads is the end that was written."""
    first = published.heads[0].digest if published.heads else ""
    noted = ChainHead.published_to(first) if end is None else end
    if noted > (last := max((head.seq for head in published.heads), default=0)):
        ends = f"ends at event {last}" if last else "has no readable head"
        yield f"The heads file {ends}, but a head for event {noted} was published: lines at its end are missing."


def walk(heads: dict[int, tuple[str, str]]) -> Iterator[str]:
    """Yields each fault of the chain and of the heads, in the order of events."""
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
            yield f"Event {seq} is not the one that was published as the head at {at}."
        last_seq, last_hash = seq, found
    yield from cut(last_seq, last_hash, written)
    if (seq := max(heads, default=0)) > last_seq:
        yield f"The audit log ends at event {last_seq}, but event {seq} was published as its head at {heads[seq][1]}."


def cut(last_seq: int, last_hash: str, written: int) -> Iterator[str]:
    """Whether the end of the record is the end that was written."""
    head_seq, head_hash = head_now()
    if last_seq and not head_seq:
        yield "The head of the chain is missing."
    elif last_seq < written:
        yield f"The audit log ends at event {last_seq}, but {written} were written."
    elif last_seq > head_seq or (last_seq == head_seq and last_hash != head_hash):
        yield f"The head of the chain is not event {last_seq}, the last event of the audit log."
