"""The whole job with Nova in charge of the instance: a real control plane stops and starts a real guest."""

import pytest

from hosts.models import Cloud, Hypervisor
from tests import factories
from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.cloud]

OLD = "3f8df945-7cbd-46e0-8ad1-d51013cf706b"
VOLUME = f"{OLD}_disk.local"


@pytest.fixture
def scene(clean_lab, clean_cloud, register, settings):
    """A volume on src, and a server of Nova's on dst that runs on its old disk."""
    lab, settings.CLOUDS_YAML = clean_lab, str(clean_cloud.clouds_yaml)
    lab.mount_share(acdirmax=1)
    lab.new = lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=1)
    lab.server = clean_cloud.server("db-new", "dst", flavor="data", start=False)
    lab.guest = lab.instance(lab.server.uuid, lab.server.instance_name, disk_bytes=64 * MIB)
    clean_cloud.join(lab)
    lab.nova = clean_cloud.connection("admin").compute
    lab.nova.start_server(lab.server.uuid)
    lab.wait_console(lab.guest, f"VOLMIG-DATA sha256 {lab.guest.sha256}")
    register()
    members = Hypervisor.objects.exclude(name="jump")
    Cloud.objects.get(name="lab").reregister(
        factories.admin(), members, name="lab", control="openstack", entry="appcred"
    )
    return lab


def test_nova_stops_the_guest_and_boots_it_on_the_disk_that_crossed_the_relay(scene, drive):
    lab, device = scene, f"/dev/vg_nova0/{VOLUME}"
    source = lab.sha256(lab.src, device)
    job = drive.submit(VOLUME, lab.guest)
    drive.reach(job, "awaiting_approval")
    drive.approve(job)
    drive.reach(job, "on_trial")
    lab.wait_console(lab.guest, f"VOLMIG-DATA sha256 {lab.new}", timeout=180)
    assert "VOLMIG-SHUTDOWN" in lab.console(lab.guest)
    job.confirm(factories.operator())
    drive.reach(job, "done")

    seen = lab.nova.get_server(lab.server.uuid)
    assert (seen.status, seen.task_state, seen.is_locked) == ("ACTIVE", None, False)
    asked = [action.action for action in lab.nova.server_actions(lab.server.uuid)]
    assert asked[:4] == ["unlock", "start", "stop", "lock"]
    assert lab.sha256(lab.src, device) == source
    kept = [f"filer: share {job.uuid}/{name}" for name in ("README", "card.json", "disk.old")]
    assert sorted(lab.leftovers()) == kept
