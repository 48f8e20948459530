"""People and their browsers for the tests of the pages."""

import pytest
from django.test import Client

from tests.pages import scenes


@pytest.fixture
def dana(person):
    return person("dana", "operator")


@pytest.fixture
def kim(person):
    return person("kim", "approver")


@pytest.fixture
def browser_of():
    """A logged-in client of a person."""

    def make(user):
        client = Client()
        client.force_login(user)
        return client

    return make


@pytest.fixture
def hosts(db):
    return scenes.hypervisors()
