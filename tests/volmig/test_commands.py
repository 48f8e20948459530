"""Server commands: first administrator, hostctl, verify_audit."""

import subprocess
import sys

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command

from hosts.remote import hostctl
from volmig.accounts.people import first_administrator
from volmig.accounts.roles import may
from volmig.management.commands import up
from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
PASSWORD = "battery staple horse"


def known(name):
    """The person, if the password is theirs."""
    user = get_user_model().objects.get(username=name)
    return user if user.check_password(PASSWORD) else None


def test_the_first_administrator_comes_from_the_environment_once(monkeypatch):
    monkeypatch.setenv("VOLMIG_ADMIN_USER", "ann")
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", PASSWORD)
    assert first_administrator() == ""
    monkeypatch.setenv("VOLMIG_ADMIN_USER", "bob")
    assert first_administrator() == "VOLMIG_ADMIN_USER=bob is ignored: there are accounts already."
    monkeypatch.delenv("VOLMIG_ADMIN_USER")
    assert first_administrator() == ""
    assert [user.username for user in get_user_model().objects.all()] == ["ann"]
    assert may(known("ann"), "administer")


def test_a_first_administrator_who_cannot_be_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setenv("VOLMIG_ADMIN_USER", "ann")
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", "short")
    with pytest.raises(CommandError, match="VOLMIG_ADMIN_PASSWORD: This password is too short"):
        up.prepare()
    assert not get_user_model().objects.exists()


def test_without_a_terminal_it_says_what_is_still_to_do(monkeypatch):
    monkeypatch.delenv("VOLMIG_ADMIN_USER", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert "manage.py admin" in first_administrator()


def test_admin_makes_people_with_roles(monkeypatch, capsys):
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", PASSWORD)
    call_command("admin", "ann", role=["operator", "viewer"])
    ann = known("ann")
    assert (may(ann, "submit"), may(ann, "approve"), ann.is_superuser) == (True, False, False)
    call_command("admin", "ann", role=["approver"])
    assert not may(get_user_model().objects.get(), "submit")


def test_admin_without_a_terminal_says_how_to_give_the_password(monkeypatch):
    def ends(prompt):
        raise EOFError

    monkeypatch.delenv("VOLMIG_ADMIN_PASSWORD", raising=False)
    monkeypatch.setattr("getpass.getpass", ends)
    with pytest.raises(CommandError, match="or set VOLMIG_ADMIN_PASSWORD"):
        call_command("admin", "ann")
    assert not get_user_model().objects.exists()


def test_a_new_password_from_the_command_line_ends_the_sessions(monkeypatch, client, person):
    client.force_login(person("ann", "viewer"))
    client.get("/account/")
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", PASSWORD)
    call_command("admin", "ann", role=["viewer"])
    assert client.get("/account/").status_code == 302
    assert not Session.objects.exists()


@pytest.mark.parametrize(("behind", "option"), [(False, "--no-proxy-headers"), (True, "--proxy-headers")])
def test_only_behind_a_proxy_is_anybody_believed_who_says_where_a_request_came_from(settings, behind, option):
    settings.BEHIND_PROXY = behind
    assert option in up.commands("127.0.0.1:8000")["web"]


def test_admin_refuses_a_password_that_anybody_would_try(monkeypatch):
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", "password123")
    with pytest.raises(CommandError, match="too common"):
        call_command("admin", "ann")
    assert not get_user_model().objects.exists()


def test_admin_refuses_a_password_like_the_name_and_leaves_nobody(monkeypatch):
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", "annabelle-lee")
    with pytest.raises(CommandError, match="too similar"):
        call_command("admin", "annabelle-lee")
    assert not get_user_model().objects.exists()


def test_admin_refuses_a_name_that_nobody_can_have_and_leaves_nobody(monkeypatch):
    monkeypatch.setenv("VOLMIG_ADMIN_PASSWORD", PASSWORD)
    with pytest.raises(CommandError, match="valid username"):
        call_command("admin", "two words")
    assert not get_user_model().objects.exists()


def test_hostctl_is_written_as_one_program_that_runs(tmp_path, capsys):
    call_command("hostctl", output=tmp_path / "hostctl")
    assert hostctl.source_hash() in capsys.readouterr().out
    assert (tmp_path / "hostctl").stat().st_mode & 0o777 == 0o755
    answer = subprocess.run([sys.executable, "-I", str(tmp_path / "hostctl")], input=b"{}", capture_output=True)
    assert b"Traceback" not in answer.stderr


def test_verify_audit_says_whole_or_names_the_first_fault(capsys):
    Event.append("a")
    Event.append("b")
    call_command("verify_audit")
    assert "intact: 2 events" in capsys.readouterr().out
    drop_triggers()
    Event.objects.filter(seq=1).update(action="c")
    make_triggers()
    with pytest.raises(CommandError, match="Event 1 was changed"):
        call_command("verify_audit")
