"""Hypervisors: trust, quarantine and what was last seen."""

import datetime as dt

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts.models import DataAddress, Hypervisor, Instance, LogicalVolume, Share
from hosts.remote.host import HostKeyChanged, HostKeyUnknown
from hosts.rows import write
from tests.factories import a_job
from tests.hosts.conftest import INSTANCE, KEY
from volmig.models import Notice
from volmig.record.models import Event

pytestmark = pytest.mark.django_db


def test_an_inventory_becomes_rows_with_the_time_at_which_it_was_seen(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    volume = LogicalVolume.objects.get()
    assert (volume.path, volume.size, volume.is_open) == (f"vg_nova0/{INSTANCE}_disk.local", 2 * 1024**3, False)
    assert volume.seen_at == src.seen_at == volume.volume_group.seen_at
    assert src.facts["tools"]["qemu_img"] == "7.2.0"
    assert "logical_volumes" not in src.facts
    assert [str(address) for address in src.data_addresses.all()] == ["10.77.1.11/24"]


def test_only_disks_under_a_mounted_share_belong_to_an_instance(hypervisor, inventory):
    hypervisor().record_inventory(inventory)
    path = f"/var/lib/nova/instances/{INSTANCE}/disk.local"
    assert Instance.objects.get().disks == [{"name": "disk.local", "path": path, "format": "qcow2"}]


def test_what_is_gone_is_deleted_and_what_stays_keeps_its_key(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    group = src.volume_groups.get()
    inventory["logical_volumes"], inventory["domains"], inventory["mounts"] = [], [], []
    src.record_inventory(inventory)
    assert not LogicalVolume.objects.exists()
    assert not src.instances.exists()
    assert not src.mounts.exists()
    assert src.volume_groups.get().pk == group.pk


def test_two_hypervisors_see_one_share(hypervisor, inventory):
    hypervisor("a").record_inventory(inventory)
    hypervisor("b").record_inventory(inventory)
    assert Share.objects.get().mounts.count() == 2


def test_a_share_that_nobody_mounts_any_more_is_forgotten(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    inventory["mounts"] = []
    src.record_inventory(inventory)
    assert not Share.objects.exists()


def test_what_a_migration_mounts_meanwhile_is_no_share(hypervisor, inventory):
    inventory["mounts"][0]["target"] = "/mnt/volmig/0123"
    hypervisor().record_inventory(inventory)
    assert not Share.objects.exists()


def test_an_inventory_that_fails_half_way_changes_nothing(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    before = src.seen_at
    del inventory["logical_volumes"][0]["size"]
    with pytest.raises(KeyError):
        src.record_inventory(inventory)
    src.refresh_from_db()
    assert src.seen_at == before
    assert LogicalVolume.objects.count() == 1


def test_without_a_pinned_key_there_is_no_way_in(hypervisor):
    with pytest.raises(HostKeyUnknown):
        hypervisor(host_key="").remote()


def test_in_quarantine_there_is_no_way_in_until_a_key_is_pinned_again(hypervisor, person):
    src = hypervisor()
    src.quarantine("it offered another key")
    with pytest.raises(HostKeyChanged, match="another key"):
        src.remote()
    assert src not in Hypervisor.objects.reachable()
    src.pin(person("ann", "administrator"), KEY)
    assert src.remote().host_key == KEY
    assert [event.action for event in Event.objects.order_by("seq")] == ["hypervisor.quarantine", "hypervisor.pin"]


def test_a_quarantine_is_told_once(hypervisor):
    src = hypervisor()
    src.quarantine("it offered another key")
    src.quarantine("it offered another key")
    assert [notice.kind for notice in Notice.objects.all()] == ["quarantined"]


def test_a_hypervisor_behind_a_quarantined_bastion_is_not_entered(hypervisor):
    bastion = hypervisor("bastion")
    src = hypervisor("src", bastion=bastion)
    assert src.remote().bastion.port == bastion.port
    bastion.quarantine("it offered another key")
    with pytest.raises(HostKeyChanged) as caught:
        src.remote()
    assert caught.value.address is None


@pytest.mark.parametrize(("user", "shipped"), [("root", False), ("volmig", True)])
def test_hostctl_is_shipped_to_root_logins_and_to_no_others(hypervisor, user, shipped):
    with pytest.raises(ValidationError, match="root login needs automatic upload"):
        hypervisor(user=user, shipped=shipped).full_clean()


def test_a_bastion_cannot_be_reached_through_itself(hypervisor):
    first = hypervisor("first")
    second = hypervisor("second", bastion=first)
    first.bastion = second
    with pytest.raises(ValidationError, match="through itself"):
        first.full_clean()


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "ü"])
def test_names_that_could_mean_something_else_are_refused(hypervisor, name):
    with pytest.raises(ValidationError):
        hypervisor(name).full_clean()


def test_roles_are_hinted_by_what_was_seen(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    assert src.role_hints == ["source", "relay", "destination"]
    inventory["domains"], inventory["mounts"] = [], []
    src.record_inventory(inventory)
    assert src.role_hints == ["source"]


# Rows of what was seen


def test_an_inventory_costs_as_many_statements_for_40_volumes_as_for_4(hypervisor, inventory):
    counts = []
    for many in (4, 40):
        src = hypervisor(f"src-{many}")
        volume, domain, mount = (inventory[name][0] for name in ("logical_volumes", "domains", "mounts"))
        more = inventory | {
            "logical_volumes": [volume | {"uuid": f"lv-{number}", "name": f"v{number}"} for number in range(many)],
            "domains": [domain | {"uuid": f"{number:036}"} for number in range(many)],
            "mounts": [
                mount | {"source": f"filer:/{number}", "target": f"/srv/nova/{number}"} for number in range(many)
            ],
            "addresses": [{"interface": "eth1", "address": f"10.77.1.{n + 1}", "prefix": 24} for n in range(many)],
        }
        for _ in range(2):  # what was known is updated
            with CaptureQueriesContext(connection) as queries:
                src.record_inventory(more)
        counts.append(len(queries))
        assert {src.instances.count(), src.mounts.count(), src.data_addresses.count()} == {many}
        assert LogicalVolume.objects.filter(volume_group__hypervisor=src).count() == many
    assert counts[0] == counts[1]


def test_of_two_rows_with_one_identity_the_last_one_counts(hypervisor, inventory):
    src = hypervisor()
    mount = inventory["mounts"][0]
    inventory["mounts"] = [mount, mount | {"source": "filer:/on-top"}]
    address = inventory["addresses"][0]
    spelled = [address | {"address": spelling} for spelling in ("FD00:0:0::1", "fd00::1", "::ffff:10.0.0.1")]
    inventory["addresses"] = [*spelled, address | {"interface": "vip"}, address]
    seen = [DataAddress(hypervisor=src, seen_at=timezone.now(), **row) for row in inventory["addresses"]]
    assert len(write(seen, ("hypervisor", "address"))) == 3, "PostgreSQL refuses two with one identity"
    src.record_inventory(inventory)
    src.record_inventory(inventory)
    assert src.mounts.get().share.source == "filer:/on-top"
    assert sorted(src.data_addresses.values_list("address", "interface")) == [
        ("10.77.1.11", "eth1"),
        ("::ffff:10.0.0.1", "eth1"),
        ("fd00::1", "eth1"),
    ]


def test_what_another_worker_saw_later_is_not_deleted_and_what_was_seen_in_the_future_is(hypervisor, inventory):
    src, now = hypervisor(), timezone.now()
    src.record_inventory(inventory)
    known = {"prefix": 24, "interface": "eth9"}
    src.data_addresses.create(address="10.0.0.1", seen_at=now + dt.timedelta(seconds=5), **known)
    src.data_addresses.create(address="10.0.0.2", seen_at=now + dt.timedelta(hours=5), **known)
    src.data_addresses.create(address="10.0.0.3", seen_at=now - dt.timedelta(hours=5), **known)
    src.record_inventory(inventory)
    assert sorted(src.data_addresses.values_list("address", flat=True)) == ["10.0.0.1", "10.77.1.11"]


def test_a_share_that_nobody_mounts_goes_unless_a_migration_still_names_it(hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    migration = a_job()
    kept = Share.objects.create(source="filer:/kept")
    migration.footprints.create(kind="backup", name="x", share=kept)
    inventory["mounts"] = []
    src.record_inventory(inventory)
    assert not Share.objects.filter(source="filer:/nova").exists()
    assert Share.objects.filter(pk=kept.pk).exists()


def test_a_volume_of_a_group_that_is_not_listed_is_left_out(hypervisor, inventory):
    src, volume = hypervisor(), inventory["logical_volumes"][0]
    inventory["logical_volumes"] = [volume, volume | {"vg": "gone", "uuid": "lv-2"}]
    src.record_inventory(inventory)
    assert [each.uuid for each in LogicalVolume.objects.all()] == ["lv-1"]
