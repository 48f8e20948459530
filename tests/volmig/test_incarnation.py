"""Which volmig this is: a copy, an older database or another data directory is found out and may not act."""

import json
import os
import secrets
import shutil
import threading
from contextlib import contextmanager

import pytest
from django.db import connection, transaction
from django.urls import reverse

from volmig import data_dir, encryption, incarnation
from volmig.models import Incarnation, Notice, Session
from volmig.record import heads, signing
from volmig.record.models import Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def began(settings):
    """A volmig that has started once, and claimed three times."""
    assert incarnation.check() is None
    for _ in range(3):
        incarnation.remember(incarnation.count())
    return settings.DATA


def published_and_set_back():
    """An event whose head was published; then the database goes back to before it."""
    point = transaction.savepoint()
    Event.append("x")
    heads.publish()
    transaction.savepoint_rollback(point)


def code():
    state = incarnation.check()
    return state and state.code


def test_the_first_start_makes_a_name_for_database_and_directory(settings):
    assert incarnation.check() is None
    kept = json.loads((settings.DATA / "incarnation").read_bytes())
    assert kept["name"] == Incarnation.objects.get().name == incarnation.name()
    assert incarnation.check() is None


@pytest.mark.django_db(transaction=True)
def test_a_check_in_the_middle_of_the_first_start_waits_for_its_end(settings, monkeypatch):
    made, waits, found = threading.Event(), threading.Event(), []
    belong_to, locked = incarnation.belong_to, incarnation._locked

    def slowly(row):
        made.set()
        waits.wait(10)
        return belong_to(row)

    @contextmanager
    def seen():
        if made.is_set():
            waits.set()
        with locked():
            yield

    def check():
        found.append(code())
        connection.close()

    monkeypatch.setattr(incarnation, "belong_to", slowly)
    monkeypatch.setattr(incarnation, "_locked", seen)
    processes = [threading.Thread(target=check) for _ in range(2)]
    processes[0].start()
    assert made.wait(10)
    processes[1].start()
    for each in processes:
        each.join()
    assert found == [None, None]


def test_every_process_of_a_session_counts_on(began):
    assert Session.objects.get(name=incarnation.SESSION).claims == 3
    assert json.loads((began / "claims").read_bytes())["claim"] == 3


def test_a_worker_that_is_slower_does_not_set_the_count_back(began):
    incarnation.remember(2)
    assert json.loads((began / "claims").read_bytes())["claim"] == 3


def test_a_database_that_knows_a_lower_count_is_older(began):
    Session.objects.update(claims=2)
    assert code() == "database-older"


def test_a_database_that_does_not_know_the_session_is_older(began):
    Session.objects.all().delete()
    assert code() == "database-older"


def test_a_database_that_is_ahead_is_the_right_one(began):
    Session.objects.update(claims=9)
    assert incarnation.check() is None


def test_a_published_head_that_the_audit_log_lacks_shows_an_older_database(began, settings):
    published_and_set_back()
    assert code() == "record-older"


def test_a_published_head_that_is_another_event_shows_another_database(began, settings):
    published_and_set_back()
    Event.append("y")
    assert code() == "record-older"


def test_a_head_seen_at_the_last_claim_is_enough(began):
    Event.append("x")
    incarnation.remember(incarnation.count())
    seen = json.loads((began / "claims").read_bytes())
    (began / "claims").write_text(json.dumps(seen | {"seq": seen["seq"] + 1}))
    assert code() == "record-older"


def test_a_new_database_with_an_old_directory_may_not_act(began):
    Incarnation.objects.all().delete()
    assert code() == "database-missing"


def test_a_directory_of_another_volmig_may_not_act(began):
    kept = json.loads((began / "incarnation").read_bytes())
    (began / "incarnation").write_text(json.dumps(kept | {"name": "f" * 32}))
    assert code() == "directory-differs"


def test_a_directory_without_a_name_may_not_act_and_the_database_goes_on_elsewhere(began):
    (began / "incarnation").unlink()
    assert code() == "directory-missing"
    assert Incarnation.objects.get().episode == "", "it concerns this data directory alone"


def test_a_copy_of_the_directory_may_not_act_although_nothing_was_done_meanwhile(began, settings, tmp_path):
    shutil.copytree(began, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sqlite3*", "static"))
    settings.DATA = tmp_path / "copy"
    assert code() == "directory-moved"
    settings.DATA = began
    assert incarnation.check() is None, "the original goes on"


def test_an_unreadable_file_is_no_reason_to_act(began):
    (began / "read_only").write_bytes(b"\0")
    assert code() == "unreadable"


@pytest.mark.parametrize("since", ["yesterday", "2026-11-30T08:00:00", None, 5])
def test_a_file_with_a_damaged_time_still_says_why(began, since):
    (began / "read_only").write_text(json.dumps({"code": "restored", "reason": "It was restored.", "since": since}))
    found = incarnation.read_only()
    assert (found.code, found.reason, found.since.tzinfo is None) == ("restored", "It was restored.", False)


# Read-only mode


def test_it_is_kept_in_database_and_directory_said_once_recorded_and_announced(began, caplog):
    first = incarnation.enter_read_only("src: somebody else acted there")
    assert incarnation.enter_read_only("again", "stale-fence") == incarnation.read_only() == first
    assert Incarnation.objects.get().reason == first.reason
    assert json.loads((began / "read_only").read_bytes())["reason"] == first.reason
    assert caplog.text.count("volmig is read-only") == 1
    assert Event.objects.filter(action="volmig.read_only").count() == 1
    assert Notice.objects.get().kind == "read_only"


def test_a_restored_database_cannot_forget_it(began):
    state = incarnation.enter_read_only("src: somebody else acted there")
    Incarnation.objects.update(episode="", since=None, code="", reason="")
    assert incarnation.read_only().episode == state.episode
    incarnation.check()
    assert Incarnation.objects.get().episode == state.episode


def test_another_directory_of_the_same_database_hears_of_it_and_of_its_end(began, settings, tmp_path):
    state = incarnation.enter_read_only("src: somebody else acted there")
    (tmp_path / "second").mkdir()
    settings.DATA = tmp_path / "second"
    assert incarnation.check().episode == state.episode
    assert (settings.DATA / "read_only").exists()
    incarnation.belong_to(Incarnation.objects.get())
    settings.DATA = began
    incarnation.leave_read_only()
    settings.DATA = tmp_path / "second"
    assert incarnation.check() is None
    assert not (settings.DATA / "read_only").exists()


def test_what_a_restore_made_begins_read_only(began):
    incarnation.mark_restored(began, "Restored from the backup of yesterday.")
    assert code() == "restored"
    assert Incarnation.objects.get().code == "restored"


def test_after_the_end_the_database_as_it_is_now_is_the_right_one(began, settings):
    published_and_set_back()
    assert code() == "record-older"
    incarnation.leave_read_only()
    assert incarnation.check() is None
    assert Event.objects.filter(action="volmig.adopted").exists()


def test_a_stale_head_is_not_published_over_the_proof(began, settings):
    published_and_set_back()
    before = settings.AUDIT_HEADS.read_bytes()
    settings.AUDIT_HEADS_SECONDS = 0
    heads.publish_due()
    assert settings.AUDIT_HEADS.read_bytes() == before


def test_a_machine_that_was_added_joins(began):
    (began / "incarnation").unlink()
    assert code() == "directory-missing"
    incarnation.join()
    assert incarnation.check() is None


# What hosts say


def owner(**claims):
    return {"incarnation": incarnation.name(), "session": next(iter(claims)), "claims": claims}


def test_hosts_that_know_no_more_than_the_database_are_ours(began):
    assert incarnation.stale({}) is None
    assert incarnation.stale(owner(**{incarnation.SESSION: 3})) is None


def test_hosts_that_know_more_show_a_stale_database(began):
    assert incarnation.stale(owner(**{incarnation.SESSION: 4}))[0] == "other-owner"
    assert incarnation.stale(owner(**{incarnation.SESSION: 3, "e" * 32: 1}))[0] == "other-owner"
    assert incarnation.stale(owner(**{incarnation.SESSION: 3}) | {"incarnation": "e" * 32})[0] == "other-incarnation"


# Pages


def test_every_page_says_why_and_nothing_that_changes_something_is_let_through(began, client, person):
    client.force_login(person("ann", "operator"))
    incarnation.enter_read_only("src: somebody else acted there")
    page = client.get(reverse("overview")).content.decode()
    assert "volmig is read-only since" in page
    assert "src: somebody else acted there" in page
    refused = client.post(reverse("jobs:scan"))
    assert (refused.status_code, "Nothing was changed" in refused.content.decode()) == (503, True)
    assert client.post(reverse("logout")).status_code == 302


def test_whoever_is_not_logged_in_learns_no_name_of_a_host(began, client):
    incarnation.enter_read_only("src: somebody else acted there")
    page = client.get(reverse("login")).content.decode()
    assert "volmig is read-only since" in page
    assert "somebody else acted there" not in page


def test_the_api_answers_with_a_problem(began, client):
    incarnation.enter_read_only("src: somebody else acted there")
    answer = client.post("/api/v1/migrations", data="{}", content_type="application/json")
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert answer.json()["code"] == "read-only"
    assert "somebody else" not in answer.content.decode()


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_no_address_is_let_through_but_login_logout_and_adopt(began, client, person, method):
    client.force_login(person("ada", "administrator"))
    incarnation.enter_read_only("src: somebody else acted there")
    for address in (
        "/hosts/add/",
        "/migrations/new/",
        "/teams/add/",
        "/account/",
        "/api/v1/approvals/1/approve",
        "/x/",
    ):
        assert getattr(client, method)(address).status_code == 503, address


def test_a_claim_costs_little(began, django_assert_max_num_queries):
    with django_assert_max_num_queries(8):
        assert incarnation.check() is None
    assert os.stat(began / "claims").st_size < 300


# A directory that is full, of two machines, of two users


@pytest.mark.parametrize("number", [28, 30])
def test_a_directory_that_takes_nothing_does_not_keep_volmig_from_becoming_read_only(
    began, monkeypatch, caplog, number
):
    replace = data_dir.replace

    def full(path, *content, **how):
        if path.name == "read_only":
            raise OSError(number, os.strerror(number))
        replace(path, *content, **how)

    monkeypatch.setattr(data_dir, "replace", full)
    state = incarnation.enter_read_only("src: another session acted there")
    assert incarnation.read_only().episode == incarnation.check().episode == state.episode
    assert Event.objects.filter(action="volmig.read_only").count() == 1
    assert Notice.objects.get().kind == "read_only"
    assert os.strerror(number) in caplog.text
    monkeypatch.setattr(data_dir, "replace", replace)
    incarnation.check()
    assert json.loads((began / "read_only").read_bytes())["episode"] == state.episode


def test_a_database_that_fails_does_not_keep_the_directory_from_saying_it(began, monkeypatch):
    def fails(state):
        raise OSError("the database is gone")

    monkeypatch.setattr(incarnation, "_keep_in_database", fails)
    with pytest.raises(OSError, match="gone"):
        incarnation.enter_read_only("src: another session acted there")
    assert json.loads((began / "read_only").read_bytes())["code"] == "other-owner"


class Machines:
    """Two machines of one database, each with its own data directory, heads and session."""

    def __init__(self, settings, root, monkeypatch):
        self.settings, self.monkeypatch = settings, monkeypatch
        self.places = {name: (root / name, secrets.token_hex(16)) for name in ("a", "b")}
        for name, (directory, _) in self.places.items():
            directory.mkdir()
            self.on(name)
            if name == "b":
                assert incarnation.check().code == "directory-missing"
                incarnation.join()
            assert incarnation.check() is None

    def on(self, name):
        self.settings.DATA, session = self.places[name]
        self.settings.AUDIT_HEADS = self.settings.DATA / "audit_heads"
        self.monkeypatch.setattr(incarnation, "SESSION", session)

    def work(self):
        for name in self.places:
            self.on(name)
            Event.append("x")
            heads.publish()
            incarnation.remember(incarnation.count())

    def set_back(self):
        """The database goes back to before the work that follows."""
        point = transaction.savepoint()
        self.work()
        transaction.savepoint_rollback(point)


@pytest.fixture
def two(settings, tmp_path, monkeypatch):
    return Machines(settings, tmp_path, monkeypatch)


def test_what_one_machine_adopted_is_not_undone_by_another_that_had_seen_more(two):
    two.work()
    two.set_back()
    for name in two.places:
        two.on(name)
        assert incarnation.check().code == "database-older"
    two.on("a")
    incarnation.leave_read_only()
    for name in ("a", "b", "a", "b"):
        two.on(name)
        assert incarnation.check() is None, name
        incarnation.remember(incarnation.count())


@pytest.mark.parametrize("episodes", [1, 2])
def test_a_machine_that_was_off_through_read_only_mode_does_not_begin_it_again(two, episodes):
    two.work()
    two.set_back()
    for _ in range(episodes):
        two.on("a")
        incarnation.enter_read_only("src: another session acted there")
        incarnation.leave_read_only()
    said = Event.objects.filter(action="volmig.read_only").count()
    two.on("b")
    assert incarnation.check() is None
    incarnation.remember(incarnation.count())
    assert incarnation.check() is None
    assert Event.objects.filter(action="volmig.read_only").count() == said


def test_a_database_set_back_to_before_the_end_of_read_only_mode_was_not_judged_by_it(two):
    two.work()
    for _ in range(2):
        two.on("a")
        incarnation.enter_read_only("src: another session acted there")
        incarnation.leave_read_only()
    ended = Incarnation.objects.get().ended
    two.set_back()  # both know the second end
    for older in ([], ended[:1], ["f" * 32]):
        two.on("b")
        Incarnation.objects.update(ended=older)
        assert incarnation.check().code == "database-older", older
        Incarnation.objects.update(episode="", since=None, code="", reason="")
        (two.settings.DATA / "read_only").unlink()


@contextmanager
def user(number, group=60000):
    os.setegid(group)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def shared(settings, tmp_path):
    """A data directory of two users, who have one group in common."""
    if os.geteuid():
        pytest.skip("only root becomes other users")
    place = tmp_path / "shared"
    place.mkdir()
    os.chown(place, 0, 60000)
    place.chmod(0o2770)
    for above in place.parents:
        above.chmod(above.stat().st_mode | 0o011)
    settings.DATA, settings.AUDIT_HEADS = place, place / "audit_heads"
    return place


def test_web_and_workers_may_be_two_users_of_one_group(shared):
    with user(60001):
        assert incarnation.check() is None
        incarnation.remember(incarnation.count())
    with user(60002):
        assert incarnation.check() is None
        incarnation.remember(incarnation.count())
        state = incarnation.enter_read_only("src: another session acted there")
    with user(60001):
        assert (incarnation.check(), incarnation.read_only().reason) == (state, state.reason)
    assert {path.stat().st_mode & 0o777 for path in shared.iterdir()} == {0o660}


def test_keys_and_heads_that_both_need_are_for_the_group_and_the_others_are_not(shared, monkeypatch):
    monkeypatch.setenv("VOLMIG_DATA", str(shared))
    with user(60001):
        for name in ("ssh_key", "audit_key", "sealing_keys"):
            data_dir.make(name)
        data_dir.ssh_key()
        kept = data_dir.secret("audit_key"), encryption.sealing_keys(), signing.published()
        Event.append("test")
        heads.publish()
    with user(60002):
        assert (data_dir.secret("audit_key"), encryption.sealing_keys(), signing.published()) == kept
        assert data_dir.published_ssh_key().startswith("ssh-ed25519 ")
        assert heads.read_heads(shared / "audit_heads").heads
        with pytest.raises(PermissionError):
            (shared / "ssh_key").read_bytes()


@pytest.mark.parametrize("name", ["incarnation", "claims"])
def test_a_process_that_may_not_read_the_directory_does_not_act_and_the_others_go_on(shared, name):
    with user(60001):
        assert incarnation.check() is None
        incarnation.remember(incarnation.count())
    (shared / name).chmod(0o600)
    with user(60002):
        assert code() == "not-permitted"
    with user(60001):
        assert incarnation.check() is None
    assert not Event.objects.filter(action="volmig.read_only").exists()
    assert incarnation.read_only() is None
