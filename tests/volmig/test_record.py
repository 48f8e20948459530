"""The record is append-only, chained, and shows what was changed behind its back."""

import threading

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import F

from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.models import ChainHead, Event, verify

pytestmark = pytest.mark.django_db


@pytest.fixture
def three(person):
    ann = person("ann", "operator", "viewer")
    return [Event.append("job.submit", actor=ann, job=number, object="x", data={"n": number}) for number in (1, 2, 3)]


def behind_its_back(change):
    drop_triggers()
    change()
    make_triggers()


def test_events_follow_from_one_another(three):
    assert [event.seq for event in three] == [1, 2, 3]
    assert [event.prev_hash for event in three] == ["", three[0].hash, three[1].hash]
    assert verify() == []


def test_an_event_says_who_and_with_which_role(three):
    assert (three[0].actor_name, three[0].role) == ("ann", "operator, viewer")


@pytest.mark.parametrize(
    "change",
    [
        lambda: Event.objects.update(action="other"),
        lambda: Event.objects.filter(seq=2).delete(),
        lambda: connection.cursor().execute("DELETE FROM record_event"),
    ],
)
def test_the_database_refuses_to_change_or_delete_events(three, change):
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        change()
    assert verify() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: Event.objects.filter(seq=2).update(object="y"), "Event 2 was changed"),
        (lambda: Event.objects.filter(seq=2).delete(), "Events 2 to 2 are missing"),
        (lambda: Event.objects.filter(seq=3).delete(), "ends at event 2, but 3 were written"),
        (lambda: ChainHead.objects.all().delete(), "head of the chain is missing"),
        (lambda: Event.objects.filter(seq=3).update(data={"n": 4}), "Event 3 was changed"),
        (lambda: Event.objects.filter(seq=1).update(job=F("job") + 7), "Event 1 was changed"),
    ],
)
def test_what_was_changed_behind_its_back_is_found(three, change, sentence):
    behind_its_back(change)
    assert sentence in " ".join(verify())


def test_another_key_does_not_verify(three, settings):
    settings.AUDIT_KEY = "another"
    assert len(verify()) == 3


def test_an_event_of_a_rolled_back_transaction_leaves_no_gap(three):
    with transaction.atomic():
        Event.append("job.submit")
        transaction.set_rollback(True)
    assert Event.append("job.submit").seq == 4
    assert verify() == []


@pytest.mark.django_db(transaction=True)
def test_triggers_come_back_with_every_migrate(three):
    drop_triggers()
    call_command("migrate", verbosity=0)
    with pytest.raises(DatabaseError, match="append-only"):
        Event.objects.update(action="other")


@pytest.mark.django_db(transaction=True)
def test_events_appended_at_once_still_form_one_chain():
    def append(number):
        try:
            for _ in range(10):
                Event.append("step", job=number)
        finally:
            connection.close()

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Event.objects.count() == 40
    assert verify() == []
