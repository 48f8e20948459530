"""volmig with the settings of production: Django's own deployment check is content, cookies and headers are strict."""

import os
import re
import subprocess
import sys

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from tests.volmig.test_matrix import MATRIX

PRODUCTION = {"VOLMIG_ALLOWED_HOSTS": "volmig.example.org", "VOLMIG_PUBLIC_URL": "https://volmig.example.org"}


def run(script, data, **more):
    """Runs Python in the settings of production, and gives what it prints."""
    environment = {"VOLMIG_DATA": str(data), "DJANGO_SETTINGS_MODULE": "volmig.settings", **PRODUCTION, **more}
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, *script]
    return subprocess.run(command, cwd=settings.BASE_DIR, env={**kept, **environment}, capture_output=True, text=True)


def test_djangos_check_for_deployment_finds_nothing(tmp_path):
    found = run(["manage.py", "check", "--deploy", "--fail-level", "WARNING"], tmp_path)
    assert found.returncode == 0, found.stderr
    assert "no issues" in found.stdout


PAGE = """
import django; django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.test import Client
import re
client = Client(headers={"host": "volmig.example.org"})
page = client.get("/login/", secure=True).content.decode()
for address in re.findall('(?:href|src)="(/static/[^"]+)"', page):
    answer = client.get(address, secure=True)
    print(address, answer.status_code, answer.headers["Cache-Control"])
"""


def test_collected_files_are_served_under_names_with_their_hash_and_kept_for_ever(tmp_path):
    static = {"VOLMIG_STATIC": str(tmp_path / "static")}
    refused = run(["manage.py", "check"], tmp_path / "data", **static)
    assert "no files have been collected" in refused.stderr
    collected = run(["manage.py", "collectstatic", "--noinput", "--verbosity", "0"], tmp_path / "data", **static)
    assert collected.returncode == 0, collected.stderr
    assert run(["manage.py", "check"], tmp_path / "data", **static).returncode == 0
    served = [line.split(" ", 2) for line in run(["-c", PAGE], tmp_path / "data", **static).stdout.splitlines()]
    assert len(served) > 3
    for address, status, kept in served:
        assert re.search(r"\.[0-9a-f]{12}\.\w+$", address), address
        assert (status, "immutable" in kept) == ("200", True)


SERVED = """
import gc, sys
import volmig.asgi
print("jobs.web.migrations" in sys.modules, len(gc.get_objects()), gc.get_freeze_count())
"""


def test_what_the_web_server_loaded_is_not_looked_through_amid_pages(tmp_path):
    views, for_the_collector, passed_over = run(["-c", SERVED], tmp_path).stdout.split()
    assert views == "True"
    assert int(for_the_collector) * 100 < int(passed_over)


ASK = """
import django; django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.test import Client
from django.contrib.auth.models import User
User.objects.create_user("ann", password="correct horse battery")
client = Client(headers={"host": "volmig.example.org"})
plain = client.get("/login/")
print("plain", plain.status_code, plain.get("Location"))
page = client.get("/login/", secure=True)
client.post("/login/", {"username": "ann", "password": "correct horse battery"}, secure=True)
for name in ("Strict-Transport-Security", "Content-Security-Policy", "X-Frame-Options", "X-Content-Type-Options",
             "Referrer-Policy", "Cross-Origin-Opener-Policy"):
    print(name, page.headers.get(name))
for cookie in client.cookies.values():
    print("cookie", cookie.OutputString())
print("other", Client(headers={"host": "evil.example.org"}).get("/login/", secure=True).status_code)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    said = run(["-c", ASK], tmp_path_factory.mktemp("production"))
    assert said.returncode == 0, said.stderr
    return said.stdout.splitlines()


def told(answers, name):
    return next(line.removeprefix(f"{name} ") for line in answers if line.startswith(f"{name} "))


def test_http_is_sent_on_to_https_and_stays_there(answers):
    assert told(answers, "plain") == "301 https://volmig.example.org/login/"
    assert told(answers, "Strict-Transport-Security") == "max-age=31536000; includeSubDomains; preload"


def test_headers_allow_nothing_from_elsewhere_and_nothing_inline(answers):
    policy = dict(part.strip().split(" ", 1) for part in told(answers, "Content-Security-Policy").split(";"))
    assert policy == {
        "default-src": "'self'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "object-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
    }
    assert told(answers, "X-Frame-Options") == "DENY"
    assert told(answers, "X-Content-Type-Options") == "nosniff"
    assert told(answers, "Referrer-Policy") == "same-origin"
    assert told(answers, "Cross-Origin-Opener-Policy") == "same-origin"


def test_cookies_are_of_this_host_only_and_out_of_reach_of_scripts_and_plain_http(answers):
    cookies = [line.removeprefix("cookie ") for line in answers if line.startswith("cookie ")]
    assert {cookie.split("=")[0] for cookie in cookies} >= {"__Host-sessionid", "__Host-csrftoken"}
    for cookie in cookies:
        if cookie.startswith("__Host-"):
            parts = {part.strip().split("=")[0].lower() for part in cookie.split(";")}
            assert {"secure", "httponly", "samesite", "path"} <= parts, cookie
            assert "domain" not in parts


def test_other_host_names_are_refused(answers):
    assert told(answers, "other") == "400"


@pytest.mark.django_db
def test_every_page_that_takes_something_refuses_it_without_the_forms_token(person):
    browser = Client(enforce_csrf_checks=True)
    root = person("root", is_superuser=True)
    browser.force_login(root)
    numbers = {"jobs:verb": [1, "start"], "change_person": [1, "disable"], "change_factor": ["remove"]}
    numbers |= {"policy": [1, 1], "remove_policy": [1, 1]}
    for name, methods in MATRIX.items():
        if "POST" in methods and not name.startswith("api:"):
            for arguments in (numbers.get(name, []), [1]):
                try:
                    address = reverse(name, args=arguments)
                except Exception:  # noqa: S112 - it takes a number
                    continue
                assert browser.post(address).status_code == 403, address
                break


@pytest.mark.django_db
def test_a_login_is_no_token_so_that_no_other_site_can_use_the_api_through_a_browser(person):
    browser = Client()
    browser.force_login(person("root", is_superuser=True))
    assert browser.post("/api/v1/hypervisors", {}, content_type="application/json").status_code == 401
    assert browser.get("/api/v1/jobs").status_code == 401
