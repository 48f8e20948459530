"""volmig as a real web server over the tests' database, and a headless Chromium that looks at it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client

from tests.family import end_all
from tests.pages import scenes
from tests.rig import free_port
from tests.typed import just_typed

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def site(tmp_path_factory, django_db_setup, django_db_blocker):
    """The address of a uvicorn whose database is the file that the tests write to."""
    with django_db_blocker.unblock():
        database = Path(connection.settings_dict["NAME"]).absolute()
    with served(tmp_path_factory.mktemp("site"), database) as address:
        yield address


@contextmanager
def served(data, database, **settings_of_its_own):
    """A uvicorn on this database, with some of volmig's settings of its own; its address."""
    ours = Path(settings.DATA)
    (data / "db.sqlite3").symlink_to(database)
    for name in ("secret_key", "audit_key", "factor_key"):
        (data / name).symlink_to(ours / name)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "volmig.asgi:application", "--port", str(port), "--lifespan", "off"]
    environment = {**os.environ, "VOLMIG_DATA": str(data), "DJANGO_SETTINGS_MODULE": "volmig.settings"}
    environment |= settings_of_its_own
    with (data / "log").open("w") as log:
        server = subprocess.Popen([*command, "--log-level", "info"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        answering(f"http://127.0.0.1:{port}", data / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        end_all([server], 10)


def answering(address, log):
    """Wait until the server answers."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=2)  # noqa: S310 - our own address
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError(f"no answer from {address}: {log.read_text()}")


@pytest.fixture
def logged_in(chromium, site, transactional_db, person):
    """A page of a person: logged_in("dana", "operator", color_scheme="dark"); `typed`: their password just now."""
    contexts, troubles = [], []

    def open_page(name, *roles, typed=False, **options):
        user = User.objects.filter(username=name).first() or person(name, *roles)
        user.groups.set(Group.objects.filter(name__in=roles))
        client = Client()
        client.force_login(user)
        if typed or "administrator" in roles:  # approvers are asked for the password on the page that tests are about
            just_typed(client)
        context = chromium.new_context(base_url=site, viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(20_000)
        cookie = client.cookies[settings.SESSION_COOKIE_NAME]
        context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": site}])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        return page

    open_page.troubles = troubles
    yield open_page
    for context in contexts:
        context.close()
    assert troubles == [], "the browser complained"


@pytest.fixture
def hosts(transactional_db):
    return scenes.hypervisors()
