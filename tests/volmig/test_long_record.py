"""A record of 10,000 events: what is flipped, deleted, moved or cut off is found, and the first bad event is named."""

import datetime as dt
import random

import pytest
from django.db.models import F

from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.chain import verify
from volmig.record.heads import publish, read_heads
from volmig.record.models import SIGNED, ChainHead, Event, sign

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unmeasured")]
LONG = 10_000
BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CHANCE = random.Random(7)


@pytest.fixture
def long_record(settings, tmp_path):
    """Ten thousand events, whose head is published; the database no longer refuses to change them."""
    settings.AUDIT_HEADS = tmp_path / "heads"
    rows, before = [], ""
    for seq in range(1, LONG + 1):
        event = Event(
            seq=seq,
            at=BEGAN + dt.timedelta(seconds=seq),
            action="step.done",
            actor_name="ann",
            role="operator",
            session="s",
            address="192.0.2.1",
            job=seq % 97,
            object=f"Migration {seq}",
            data={"n": seq},
            prev_hash=before,
        )
        event.hash = before = sign(before, [getattr(event, name) for name in SIGNED])
        rows.append(event)
    Event.objects.bulk_create(rows, batch_size=500)
    ChainHead.objects.create(pk=1, seq=LONG, hash=before)
    publish()
    drop_triggers()
    yield read_heads(settings.AUDIT_HEADS)
    make_triggers()


FLIPS = {
    "at": lambda event: event.at + dt.timedelta(microseconds=1),
    "actor_name": lambda event: "ann ",
    "role": lambda event: "approver",
    "session": lambda event: "t",
    "address": lambda event: "192.0.2.2",
    "action": lambda event: "step.failed",
    "job": lambda event: event.job + 1,
    "object": lambda event: event.object + "\u200b",
    "data": lambda event: {"n": str(event.data["n"])},
    "prev_hash": lambda event: ("0" if event.prev_hash[:1] != "0" else "1") + event.prev_hash[1:],
    "hash": lambda event: event.hash[:-1] + ("0" if event.hash[-1] != "0" else "1"),
}


def test_a_flip_of_any_field_is_found_and_named_wherever_it_is(long_record):
    assert verify(long_record) == []
    places = [1, LONG, *CHANCE.sample(range(2, LONG), len(FLIPS) - 2)]
    CHANCE.shuffle(places)
    for seq, field in zip(places, FLIPS, strict=True):
        event = Event.objects.get(seq=seq)
        Event.objects.filter(seq=seq).update(**{field: FLIPS[field](event)})
        assert f"Event {seq} " in verify(long_record)[0], (seq, field)
        Event.objects.filter(seq=seq).update(**{field: getattr(event, field)})


def test_a_deleted_event_is_found_and_named_wherever_it_was(long_record):
    for seq in (1, CHANCE.randrange(2, LONG - 1), LONG - 1):
        event = Event.objects.get(seq=seq)
        Event.objects.filter(seq=seq).delete()
        assert verify(long_record)[0] == f"Events {seq} to {seq} are missing."
        event.save(force_insert=True)


def test_a_deletion_that_is_closed_up_again_is_found(long_record):
    """The numbers are moved down and the head with them: only the signatures tell, and the head that was published."""
    seq = 5000
    Event.objects.filter(seq=seq).delete()
    Event.objects.filter(seq__gt=seq).update(seq=1 - F("seq"))
    Event.objects.filter(seq__lt=0).update(seq=-F("seq"))
    ChainHead.objects.update(seq=LONG - 1)
    assert verify(long_record)[0] == f"Event {seq} does not follow from the one before it."


def test_events_that_changed_places_are_found_and_the_first_is_named(long_record):
    for one, other in ((1, 2), (17, 9999), (LONG - 1, LONG)):
        swap(one, other)
        assert f"Event {one} " in verify(long_record)[0]
        swap(one, other)


def swap(one, other):
    Event.objects.filter(seq=one).update(seq=-1)
    Event.objects.filter(seq=other).update(seq=one)
    Event.objects.filter(seq=-1).update(seq=other)


def test_a_record_that_was_cut_off_is_found_even_when_its_head_was_rewound(long_record):
    Event.objects.filter(seq__gt=LONG - 3).delete()
    assert verify()[0] == f"The audit log ends at event {LONG - 3}, but {LONG} were written."
    for last in (LONG - 3, 4999, 1):
        Event.objects.filter(seq__gt=last).delete()
        ChainHead.objects.update(seq=last, hash=Event.objects.get(seq=last).hash)
        assert verify(long_record)[0].startswith(f"The audit log ends at event {last}, but event {LONG} was published")
    Event.objects.all().delete()
    ChainHead.objects.all().delete()
    assert f"event {LONG} was published" in verify(long_record)[0]


def test_a_record_written_anew_with_another_key_is_found(long_record, settings):
    right, settings.AUDIT_KEY = settings.AUDIT_KEY, "a key of somebody who has only the database"
    before = ""
    for event in Event.objects.order_by("seq")[:50]:
        event.prev_hash, event.object = before, "nothing happened"
        event.hash = before = event.signature()
        event.save()
    settings.AUDIT_KEY = right
    assert verify(long_record)[0] == "Event 1 was changed after it was written."
