"""The OpenAPI document: what is served keeps to it, whatever is sent, and what is written about it is current."""

import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from tests.api import reference
from tests.api.conftest import VERBS, letters_of
from tests.factories import admin
from tests.pages import scenes
from volmig.api.root import api

SCHEMA = schemathesis.openapi.from_dict(api.get_openapi_schema(path_prefix="/api/v1/"))
pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("unmeasured")]
SCHEMA.app = get_wsgi_application()


def test_the_reference_is_current():
    assert reference.FILE.read_text() == reference.text(), "write it anew: make reference"


@pytest.fixture(scope="module")
def seeded(django_db_setup, django_db_blocker):
    """A site with something of everything, and a token that may everything; gone when the module ends."""
    with django_db_blocker.unblock(), transaction.atomic():
        for signal in (request_started, request_finished):  # the server's own connection is this test's
            signal.disconnect(close_old_connections)
        try:
            hosts = scenes.hypervisors()
            ada = admin()
            scenes.nova(hosts)
            scenes.leftovers(ada)
            for status in ("planned", "preparing", "on_trial", "done"):
                scenes.job(ada, status)
            scenes.kept(scenes.job(ada, "rolled_back"), found="ok")
            scenes.halted(ada)
            asked = scenes.job(ada, "awaiting_approval")
            scenes.approval(asked)
            yield letters_of(ada, *VERBS)
        finally:
            for signal in (request_started, request_finished):
                signal.connect(close_old_connections)
            transaction.set_rollback(True)


@SCHEMA.parametrize()
@settings(
    max_examples=5,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_the_document_says(case, seeded):
    # What is written well may still be about nothing that is there; and tokens have a test of their own.
    excluded = [positive_data_acceptance, ignored_auth]
    case.call_and_validate(headers={"Authorization": f"Bearer {seeded}"}, excluded_checks=excluded)
