"""Environment variables: what is set is honoured or refused, never ignored."""

import re

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from tests.volmig.test_production import run
from volmig import beats, environment
from volmig.apps import variables_are_known
from volmig.settings import served

SECRET = "pa%20ss%3A"


def test_every_parameter_of_libpq_reaches_it():
    options = environment.postgresql(
        f"postgres://vol%40mig:{SECRET}@db.example.org:5433/vol%2Fmig?sslmode=verify-full&sslrootcert=/etc/ca.pem"
        "&options=-c%20statement_timeout%3D60s&target_session_attrs=read-write&application_name=volmig"
    )
    assert options == {
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


def test_a_server_that_is_gone_without_a_word_is_noticed_unless_the_address_says_otherwise():
    options = served("postgres://volmig@db.example.org/volmig?connect_timeout=3")["OPTIONS"]
    assert options["connect_timeout"] == "3"
    assert int(options["tcp_user_timeout"]) <= 30_000
    assert (
        int(options["keepalives_idle"]) + int(options["keepalives_interval"]) * int(options["keepalives_count"]) <= 30
    )


def test_a_socket_and_several_hosts_are_written_as_libpq_has_them():
    assert environment.postgresql("postgres://volmig@/volmig?host=/run/postgresql")["HOST"] == "/run/postgresql"
    options = environment.postgresql("postgresql:///volmig?host=a,b&port=1,2&user=u&password=p")
    assert (options["HOST"], options["PORT"], options["USER"], options["PASSWORD"]) == ("a,b", "1,2", "u", "p")


@pytest.mark.parametrize(
    ("rest", "why"),
    [
        ("/volmig?sslmod=require", "sslmod is not a parameter"),
        ("/volmig?SSLMODE=require", "SSLMODE is not a parameter"),
        ("/volmig?service=x", "service is not a parameter"),
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
    read = set(re.findall(r'\b(?:text|number|flag|words|url|choice)\("([A-Z_]+)"', source))
    assert len(read) > 30
    assert read - documented <= {"DEBUG"}, "a setting that nobody can find is one that nobody sets"


def test_the_documented_defaults_and_what_is_reckoned_with_them_are_those_of_the_settings():
    page = (settings.BASE_DIR / "docs/configuration.md").read_text()
    source = (settings.BASE_DIR / "volmig/settings.py").read_text()
    default = dict(re.findall(r'number\("(\w+)", (\d+)\)', source))
    documented = dict[str, str]()
    for names, values in re.findall(r"^\| (`VOLMIG_[^|]+) \| ([\d, ]+) \|", page, re.MULTILINE):
        found, each = re.findall(r"VOLMIG_(\w+)", names), values.split(", ")
        documented |= dict(zip(found, each * (len(found) // len(each)), strict=True))
    assert len(documented) > 20
    assert {name: default[name] for name in documented} == documented
    web, workers = 2 * (int(default["WEB_REQUESTS"]) + 11 + 1), int(default["WORKERS"])
    all_workers = 2 * workers + 4 + 2 * int(default["BACKGROUND_WORKERS"]) + 4 + 1
    assert f"= {web} for pages, (2 × {workers} + 4) + " in page
    assert f"= {all_workers} for its workers, and 4 for its watcher: {web + all_workers + 4}." in page
    runbook = (settings.BASE_DIR / "docs/runbook.md").read_text()
    assert f"is {web + all_workers + 4} connections for each" in runbook
    [limit] = map(int, re.findall(r"'max_connections = (\d+)'", runbook))
    assert 2 * (web + all_workers + 4) + 10 <= 0.8 * (limit - 3), "else VolmigDatabaseConnections pages at the budget"


# Values in files, for secrets of Docker, Kubernetes and systemd

SECRETS = {
    "DB": "postgres://volmig:pa%20ss@db.example.org/volmig",
    "EMAIL_URL": "smtp://u:p@mail.example.org",
    "WEBHOOK_URL": "https://hooks.example.org/T0123",
    "WEBHOOK_SECRET": "whsec_" + "QUJD" * 8,
    "ADMIN_PASSWORD": "correct horse battery",
}


def test_every_variable_can_come_from_a_file(tmp_path, monkeypatch):
    """All that is read is, so that a new secret can, too; those of today are tried below as volmig reads them."""
    monkeypatch.setattr(environment, "values", dict(environment.values))
    assert SECRETS.keys() <= environment.FROM_FILES
    assert environment.READ & environment.values.keys() - environment.FROM_FILES == {"SSH_KEY"}
    for name in sorted(environment.FROM_FILES):
        monkeypatch.delenv(f"VOLMIG_{name}", raising=False)
        (tmp_path / name).write_text(f"of {name}\n")
        (tmp_path / name).chmod(0o400)
        monkeypatch.setenv(f"VOLMIG_{name}_FILE", str(tmp_path / name))
        assert environment.text(name, "default") == f"of {name}"
    assert not [name for name, _ in environment.unknown() if name.endswith("_FILE")]
    monkeypatch.setenv("VOLMIG_DATA_FILE", "/x")
    assert ("DATA_FILE", "KEYS_WORKER_FILE") not in environment.unknown()
    assert "DATA_FILE" in dict(environment.unknown()), "nothing reads this one"


def test_what_up_sets_for_its_parts_is_known_to_them():
    assert {beats.VARIABLE, "VOLMIG_PART", "VOLMIG_CLUSTER"} <= {f"VOLMIG_{name}" for name in environment.READ}


def test_nothing_reads_a_secret_but_by_the_function_that_reads_files():
    """A variable that is read from os.environ directly would have no file."""
    direct = {"PART", "DATA", "CLUSTER", "KEYS_KEPT"}  # no secrets; KEYS_… and …_FILE are read by volmig.data_dir
    found = set()
    for top in ("volmig", "hosts", "jobs"):
        for path in (settings.BASE_DIR / top).rglob("*.py"):
            if path.name != "client.py":  # it runs on other machines, without volmig
                found |= set(re.findall(r'environ[^\n]*["\']VOLMIG_([A-Z_]+)["\']', path.read_text()))
    assert found <= direct


PRINTED = """
from django.conf import settings as s
print(s.DATABASES["default"].get("PASSWORD"), s.EMAIL_HOST_PASSWORD, s.WEBHOOK_URL, s.WEBHOOK_SECRETS)
"""


def test_secrets_in_files_reach_the_settings(tmp_path):
    given = {}
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(value + "\n")
        given[f"VOLMIG_{name}_FILE"] = str(tmp_path / name)
    found = run(["-c", PRINTED], tmp_path / "data", **given)
    secret = SECRETS["WEBHOOK_SECRET"]
    assert found.stdout.strip() == f"pa ss p https://hooks.example.org/T0123 ['{secret}']", found.stderr


@pytest.mark.parametrize("name", [*SECRETS, "SSH_KEY"])
def test_a_value_and_a_file_at_once_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv(f"VOLMIG_{name}", "y")
    monkeypatch.setenv(f"VOLMIG_{name}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ImproperlyConfigured, match=f"VOLMIG_{name} and VOLMIG_{name}_FILE are both set"):
        environment.text(name)


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"", "is empty"), (b"\xff", "is not text")])
def test_a_file_that_holds_no_value_is_refused_and_not_taken_for_the_default(tmp_path, monkeypatch, content, why):
    if content is not None:
        (tmp_path / "db").write_bytes(content)
    monkeypatch.setenv("VOLMIG_DB_FILE", str(tmp_path / "db"))
    monkeypatch.delenv("VOLMIG_DB", raising=False)
    with pytest.raises(ImproperlyConfigured, match=why):
        environment.text("DB")
