"""Programs of people: each shows a token."""

import json

import pytest
from django.core.cache import cache
from django.test import Client

from tests.pages import scenes
from volmig.accounts.models import Token

# What a program sends for a migration that nothing on the site of the scenes stands against.
WISH = {
    "source": "cmp-lvm-07",
    "volume": f"vg_nova0/{scenes.OLD}_disk.local",
    "instance": scenes.NEW,
    "disk": "disk.local",
    "relay": "jump-02",
    "relay_vg": "vg_nova0",
    "ticket": "OPS-1",
}
VERBS = ("submit", "approve", "administer", "audit")


class Program:
    """A client of the API; what it sends and gets is JSON."""

    def __init__(self, letters=""):
        self.client, self.letters = Client(), letters

    def ask(self, method, path, sent=None, **headers):
        named = {"Authorization": f"Bearer {self.letters}"} if self.letters else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = {"data": json.dumps(sent), "content_type": "application/json"} if sent is not None else {}
        return self.client.generic(method, f"/api/v1{path}", headers=named, **body)

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, sent=None, **headers):
        return self.ask("POST", path, sent, **headers)


def letters_of(user, *verbs):
    return Token.objects.make(user, "a program", verbs, 30)[1]


@pytest.fixture(autouse=True)
def _nobody_guessed_yet():
    cache.clear()


@pytest.fixture
def program_of(db):
    """A program of a person, with a token for these verbs: all of them unless named."""
    return lambda user, *verbs: Program(letters_of(user, *(verbs or VERBS)))


@pytest.fixture
def hosts(db):
    return scenes.hypervisors()


@pytest.fixture
def dana(person):
    return person("dana", "operator")


@pytest.fixture
def kim(person):
    return person("kim", "approver")


@pytest.fixture
def wish(hosts):
    return WISH


def code(response):
    """The code of a refusal, which has to be told as RFC 9457 has it."""
    assert response.headers["Content-Type"] == "application/problem+json", response.content
    told = response.json()
    assert told["status"] == response.status_code
    assert told["errors"][0]["code"] == told["code"]
    return told["code"]
