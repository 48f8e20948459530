"""What the tests of a fleet share: people, sound hypervisors, and heartbeats of a site whose parts all run."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts.models import Hypervisor
from tests.fleet.beats import a_process
from tests.pages import scenes
from volmig.health import ready, tallies


@pytest.fixture(autouse=True)
def _nothing_counted(monkeypatch):
    """Without what other tests have counted in this process, and without the last answer about readiness."""
    tallies.counted.clear()
    monkeypatch.setattr(ready, "last", ready.Round())
    yield
    tallies.counted.clear()


@pytest.fixture
def dana(person):
    return person("dana", "operator")


@pytest.fixture
def ada(person):
    return person("ada", "administrator")


@pytest.fixture
def sound(db):
    """Hypervisors of which nothing bad is known."""
    hosts = scenes.hypervisors()
    Hypervisor.objects.update(quarantined_at=None, quarantine_reason="", last_error="", seen_at=timezone.now())
    return hosts


@pytest.fixture
def site(db):
    """One process of every part, started an hour ago."""
    started = timezone.now() - dt.timedelta(hours=1)
    return {part: a_process(part, started_at=started) for part in ("web", "workers", "background", "watcher")}
