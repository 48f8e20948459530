"""The policy on a hypervisor's page: what it reports, the one to install, and the key for seals."""

import html
import json
import re

import pytest

from hosts.models import Hypervisor
from hosts.remote.hostctl import policy
from tests import policies
from tests.factories import admin, viewer
from tests.typed import just_typed
from volmig import data_dir
from volmig.record.models import Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def seen(hypervisor, inventory):
    src = hypervisor("src", address="192.0.2.1")
    src.record_inventory(inventory)
    return src


def printed(response):
    """The policy in the script that the page prints."""
    script = html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", response.content.decode(), re.S).group(1))
    return re.search(r"END'\n(.*?)\nEND", script, re.S).group(1).encode()


def test_the_printed_policy_is_valid_and_allows_what_was_seen_and_no_more(client, seen):
    client.force_login(admin())
    just_typed(client)
    found = policy.understood(printed(client.post(f"/hosts/{seen.pk}/policy/")))
    assert found.fault is None
    assert found.policy.volume_groups == tuple(seen.volume_groups.values_list("name", flat=True))
    assert found.policy.shares == tuple(seen.mounts.values_list("share__source", flat=True))
    assert found.policy.roles == ("source", "relay", "destination")
    assert found.policy.seal_keys == (data_dir.seal_key("src", 1),)
    for network in found.policy.networks:
        assert network.endswith(("/24", "/64")), network


def test_a_policy_that_allows_nothing_because_nothing_was_seen_says_so(client, hypervisor, seen):
    client.force_login(admin())
    just_typed(client)
    assert b"Do not install this" in client.post(f"/hosts/{hypervisor('dst', address='192.0.2.2').pk}/policy/").content
    assert b"Do not install this" not in client.post(f"/hosts/{seen.pk}/policy/").content


def test_who_was_shown_the_key_is_kept_and_the_key_is_not(client, seen):
    client.force_login(admin())
    just_typed(client)
    client.post(f"/hosts/{seen.pk}/policy/")
    event = Event.objects.get(action="hypervisor.policy")
    assert event.data == {"key": policy.fingerprint(data_dir.seal_key("src", 1))}
    assert data_dir.seal_key("src", 1) not in client.get(f"/hosts/{seen.pk}/").content.decode()


def test_the_page_shows_what_is_in_force_and_whether_seals_are_accepted(client, seen, inventory):
    client.force_login(viewer())
    page = f"/hosts/{seen.pk}/"
    assert b"Not reported yet" in client.get(page).content
    seen.seal_key()
    for report, says in (
        (policy.report(policies.reading("src")), b"Accepted"),
        (policy.report(policies.reading("src", seal_keys=["ab" * 32])), b"Not accepted"),
        (policy.report(policies.reading("src", seal_keys=[])), b"no seal key"),
        (policy.report(policy.Reading(None, policy.missing())), b"hostctl only reads"),
    ):
        seen.record_inventory({**inventory, "policy": report})
        shown = client.get(page).content
        assert says in shown
        assert report["hash"].encode() in shown


def test_a_new_key_is_another_and_the_policy_has_both(client, seen):
    client.force_login(admin())
    just_typed(client)
    before = seen.seal_key()
    client.post(f"/hosts/{seen.pk}/seal-key/")
    found = policy.understood(printed(client.post(f"/hosts/{seen.pk}/policy/"))).policy
    assert found.seal_keys == (data_dir.seal_key("src", 2), before)
    assert Hypervisor.objects.get(pk=seen.pk).seal_fingerprint == policy.fingerprint(data_dir.seal_key("src", 2))
    assert Event.objects.filter(action="hypervisor.seal_key").count() == 1


def test_each_hypervisor_has_a_key_of_its_own():
    keys = {data_dir.seal_key(name, generation) for name in ("a", "b", "a1") for generation in (1, 2, 11)}
    assert len(keys) == 9
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)


def test_a_policy_for_hosts_and_the_report_of_it_are_the_same(seen):
    found = policy.understood(json.dumps(seen.minimal_policy()).encode())
    assert policy.reported(policy.report(found)).policy == found.policy._replace(seal_keys=())


def test_the_key_is_shown_only_to_an_administrator_who_typed_the_password_lately(client, seen):
    for enter in (viewer(), admin()):
        client.force_login(enter)
        for place in ("policy", "seal-key"):
            response = client.post(f"/hosts/{seen.pk}/{place}/")
            assert response.status_code in (302, 403)
            assert data_dir.seal_key("src", 1) not in response.content.decode()
    seen.refresh_from_db()
    assert seen.seal_generation == 1
    assert not Event.objects.filter(action__in=("hypervisor.policy", "hypervisor.seal_key")).exists()
