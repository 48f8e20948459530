"""The record is append-only, chained, and shows what was changed behind its back."""

import json
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.db.models import F

from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.chain import verify
from volmig.record.heads import publish, read_heads
from volmig.record.models import ChainHead, Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def three(person):
    ann = person("ann", "operator", "viewer")
    return [Event.append("job.submit", actor=ann, job=number, object="x", data={"n": number}) for number in (1, 2, 3)]


def behind_its_back(change):
    drop_triggers()
    change()
    make_triggers()


def swap(one, other):
    """Lets two events change places."""
    Event.objects.filter(seq=one).update(seq=-1)
    Event.objects.filter(seq=other).update(seq=one)
    Event.objects.filter(seq=-1).update(seq=other)


def cut_off(seq):
    """Forgets all events from this one on and rewinds the head: without its published heads the record looks whole."""
    last = Event.objects.get(seq=seq - 1)
    Event.objects.filter(seq__gte=seq).delete()
    ChainHead.objects.update(seq=last.seq, hash=last.hash)


@pytest.fixture
def heads(tmp_path, settings):
    settings.AUDIT_HEADS = tmp_path / "heads"
    return settings.AUDIT_HEADS


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
        (lambda: Event.objects.filter(seq=2).update(prev_hash="0" * 64), "Event 2 does not follow"),
        (lambda: swap(1, 2), "Event 1 does not follow"),
        (lambda: ChainHead.objects.update(seq=2), "not event 3, the last event of the audit log"),
        (lambda: ChainHead.objects.update(hash="0" * 64), "not event 3, the last event of the audit log"),
    ],
)
def test_what_was_changed_behind_its_back_is_found(three, change, sentence):
    behind_its_back(change)
    assert verify()[0].find(sentence) >= 0, "the first bad event is named first"


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


def test_published_heads_are_seq_hash_and_time(three, heads):
    publish()
    assert {head.seq: head.hash for head in read_heads(heads).heads} == {3: three[2].hash}
    assert heads.stat().st_mode & 0o777 == 0o600
    assert verify(read_heads(heads)) == []


def test_a_head_is_published_once_and_every_new_one_is_added(three, heads):
    publish()
    publish()
    Event.append("job.submit")
    publish()
    assert [json.loads(line)["seq"] for line in heads.read_text().splitlines()] == [3, 4]


def test_nothing_is_published_of_an_empty_record(heads):
    publish()
    assert not heads.exists()


def test_a_record_that_was_cut_off_looks_whole_until_held_against_its_heads(three, heads):
    publish()
    behind_its_back(lambda: cut_off(3))
    assert verify() == []
    (found,) = verify(read_heads(heads))
    assert "ends at event 2, but event 3 was published" in found


def test_a_record_that_grew_again_after_it_was_cut_off_is_named(three, heads):
    publish()
    behind_its_back(lambda: cut_off(2))
    Event.append("other")
    Event.append("other")
    assert verify() == []
    assert "Event 3 is not the one that was published" in verify(read_heads(heads))[0]


def test_the_publisher_says_at_once_that_the_record_was_cut_off(three, heads, caplog):
    publish()
    behind_its_back(lambda: cut_off(3))
    publish()
    assert "ends at event 2, but event 3 was published before" in caplog.text
    assert "ends at event 2, but event 3 was published" in verify(read_heads(heads))[0]


def test_the_command_finds_what_was_cut_off(three, heads):
    publish()
    behind_its_back(lambda: cut_off(3))
    for options in ({"heads": heads}, {}):
        with pytest.raises(CommandError, match="ends at event 2, but event 3 was published"):
            call_command("verify_audit", **options)


def test_a_published_event_that_is_missing_in_the_middle_is_no_cut_end(three, heads):
    publish()
    Event.append("other")
    behind_its_back(lambda: Event.objects.filter(seq=3).delete())
    assert verify(read_heads(heads)) == [
        "Events 3 to 3 are missing.",
        "Event 4 does not follow from the one before it.",
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("no head", "is cut off or damaged: it is not JSON"),
        ('{"seq": 3}', "is not a published head"),
        ("[]", "is not a published head"),
    ],
)
def test_the_command_names_each_line_that_is_no_head_and_goes_on(three, heads, text, wrong):
    heads.write_text(f"{text}\n")
    with pytest.raises(CommandError) as error:
        call_command("verify_audit", heads=heads)
    assert str(error.value).startswith(f"Line 1 of the heads file (byte 0) {wrong}.\nThe audit log is intact: 3 events")


def test_the_command_refuses_a_file_that_is_not_there(three, tmp_path):
    with pytest.raises(CommandError, match="No such file"):
        call_command("verify_audit", heads=tmp_path / "heads")


def test_the_command_names_the_first_bad_event_and_not_all_of_a_long_record(three, settings):
    for number in range(20):
        Event.append("step", job=number)
    settings.AUDIT_KEY = "another"
    with pytest.raises(CommandError, match=r"^Event 1 was changed(.|\n)*… and 13 more\.$"):
        call_command("verify_audit")


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
