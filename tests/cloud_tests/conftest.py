"""What the tests of the control plane share: clients, and waiting for what Nova does by itself."""

import time
from contextlib import suppress

import pytest

from hosts.remote import nova
from tests.cloud_tests.migration import Migration, PoweredByNova, in_real_cloud
from tests.fakes import Site


@pytest.fixture
def admin(clean_cloud):
    """Nova as the administrator sees it."""
    return clean_cloud.connection("admin").compute


@pytest.fixture
def member(clean_cloud):
    """Nova as a member of the project demo sees it."""
    return clean_cloud.connection("member").compute


@pytest.fixture
def make(db, clean_cloud, settings, monkeypatch):
    """Makes an instance on a real Nova and everything around it: make(image_properties={…}, start=False, …).

    With `source`, a server too, the volume that is carried over is a disk of that one.
    """
    settings.LOCK_MARGIN, settings.CLOUDS_YAML = 0, str(clean_cloud.clouds_yaml)
    monkeypatch.setattr("hosts.remote.nova_control.AGAIN", 0.2)

    def made(source=None, **wanted):
        server = clean_cloud.server("db7", "dst", flavor="data", **wanted)
        site = Site(instance=server.uuid, source=source.uuid if source else "")
        site.destination = PoweredByNova(site, "dst")
        site.destination.guest = clean_cloud.dst, server.uuid
        monkeypatch.setattr("hosts.remote.ssh.connect", site.connect)
        in_real_cloud()
        return Migration(clean_cloud, site, server, source)

    yield made
    nova.forget()
    with suppress(Exception):
        clean_cloud.compute.heal()


@pytest.fixture
def migration(make):
    return make()


def until(holds, seconds=60):
    """Return what `holds()` gives once that is true; polls Nova, which tells nobody of its changes."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in {seconds} s"
        time.sleep(0.1)
    return found


def settled(compute, server, status, seconds=60):
    """The server once it has that status and nothing is under way."""

    def look():
        seen = compute.get_server(server.uuid)
        return seen if (seen.status, seen.task_state) == (status, None) else None

    return until(look, seconds)


def actions(compute, server):
    """What was done to a server, newest first: (action, message)."""
    return [(action.action, action.message) for action in compute.server_actions(server.uuid)]


def errors(compute, server, action):
    """What the events of the newest such action say went wrong."""
    newest = next(found for found in compute.server_actions(server.uuid) if found.action == action)
    events = compute.get_server_action(newest.request_id, server.uuid).events
    return [event.details for event in events if event.result == "Error"]
