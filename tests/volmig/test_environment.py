"""Environment variables: what is set is honoured or refused, never ignored."""

import re

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from tests.volmig.test_production import run
from volmig import environment
from volmig.apps import variables_are_known

SECRET = "pa%20ss%3A"


def test_every_parameter_of_libpq_reaches_it():
    told = environment.postgresql(
        f"postgres://vol%40mig:{SECRET}@db.example.org:5433/vol%2Fmig?sslmode=verify-full&sslrootcert=/etc/ca.pem"
        "&options=-c%20statement_timeout%3D60s&target_session_attrs=read-write&application_name=volmig"
    )
    assert told == {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "vol/mig",
        "USER": "vol@mig",
        "PASSWORD": "pa ss:",
        "HOST": "db.example.org",
        "PORT": "5433",
        "OPTIONS": {
            "sslmode": "verify-full",
            "sslrootcert": "/etc/ca.pem",
            "options": "-c statement_timeout=60s",
            "target_session_attrs": "read-write",
            "application_name": "volmig",
        },
    }


def test_a_socket_and_several_hosts_are_written_as_libpq_has_them():
    assert environment.postgresql("postgres://volmig@/volmig?host=/run/postgresql")["HOST"] == "/run/postgresql"
    told = environment.postgresql("postgresql:///volmig?host=a,b&port=1,2&user=u&password=p")
    assert (told["HOST"], told["PORT"], told["USER"], told["PASSWORD"]) == ("a,b", "1,2", "u", "p")


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("/volmig?sslmod=require", "sslmod is no parameter"),
        ("/volmig?SSLMODE=require", "SSLMODE is no parameter"),
        ("/volmig?service=x", "service is no parameter"),
        ("/volmig?sslmode=require&sslmode=disable", "sslmode is in it twice"),
        ("/volmig?host=other", "host is in it twice"),
        ("/volmig?sslmode", "name=value"),
        ("/volmig#x", "must look like"),
        (":1,b:2/volmig", "several hosts"),
        (":port/volmig", "several hosts"),
    ],
)
def test_what_is_not_understood_is_refused_without_showing_the_password(rest, why):
    with pytest.raises(ImproperlyConfigured, match=re.escape(why)) as error:
        environment.postgresql(f"postgres://volmig:{SECRET}@db.example.org{rest}")
    assert SECRET not in str(error.value)
    assert "pa ss" not in str(error.value)


REFUSED = {
    "SECURE": "ture",
    "WORKERS": "three",
    "PUBLIC_URL": "volmig.example.org",
    "WEBHOOK_URL": "ftp://x/",
    "EMAIL_URL": "mail.example.org",
    "DB": "mysql://x/y",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_is_not_understood_stops_volmig(tmp_path, name):
    found = run(["manage.py", "check"], tmp_path, **{f"VOLMIG_{name}": REFUSED[name]})
    assert found.returncode != 0
    assert f"VOLMIG_{name}" in found.stderr


def test_a_variable_that_nothing_reads_is_warned_of(monkeypatch):
    monkeypatch.setenv("VOLMIG_APPROVERS_NEEDS_TOTP", "yes")
    monkeypatch.setenv("VOLMIG_QQQ", "1")
    monkeypatch.setenv("VOLMIG_WORKERS", "3")
    found = {warning.msg.split()[0]: warning.hint for warning in variables_are_known()}
    assert "VOLMIG_WORKERS" not in found
    assert found["VOLMIG_QQQ"] is None
    assert found["VOLMIG_APPROVERS_NEEDS_TOTP"] == "Did you mean VOLMIG_APPROVERS_NEED_TOTP?"


def test_every_variable_that_the_settings_read_is_documented():
    documented = set(re.findall(r"VOLMIG_([A-Z_]+)", (settings.BASE_DIR / "docs/configuration.md").read_text()))
    source = (settings.BASE_DIR / "volmig/settings.py").read_text()
    read = set(re.findall(r'\b(?:text|number|flag|words|url)\("([A-Z_]+)"', source))
    assert len(read) > 30
    assert read - documented <= {"DEBUG"}, "a setting that nobody can find is one that nobody sets"
