"""Nova drives a real guest: with the storage lab joined, its stop and start are those of a libvirt domain."""

import pytest

from tests.cloud_tests.conftest import errors, settled, until

pytestmark = [pytest.mark.cloud, pytest.mark.lab, pytest.mark.torture]


@pytest.fixture
def booted(clean_lab, clean_cloud, admin):
    """A server on dst that Nova started, and its instance in the lab, up and ready."""
    server = clean_cloud.server("db", "dst", start=False)
    instance = clean_lab.instance(server.uuid, server.instance_name, disk_bytes=64 << 20)
    clean_cloud.join(clean_lab)
    admin.start_server(server.uuid)
    clean_lab.wait_console(instance, "VOLMIG-READY", timeout=180)
    settled(admin, server, "ACTIVE")
    return server, instance


def domstate(lab, server):
    return lab.dst.run(["virsh", "domstate", server.uuid]).strip()


def test_novas_start_boots_the_guest_and_its_stop_shuts_it_down(clean_lab, admin, booted):
    server, instance = booted
    assert f"VOLMIG-DATA sha256 {instance.sha256}" in clean_lab.console(instance)
    assert domstate(clean_lab, server) == "running"

    admin.stop_server(server.uuid)
    assert settled(admin, server, "SHUTOFF", seconds=120).power_state == 4
    assert domstate(clean_lab, server) == "shut off"
    assert "VOLMIG-SHUTDOWN" in clean_lab.console(instance)


def test_a_start_that_libvirt_refuses_fails_as_at_a_site(clean_lab, clean_cloud, admin):
    server = clean_cloud.server("db", "dst", start=False)
    instance = clean_lab.instance(server.uuid, server.instance_name, disk_bytes=64 << 20)
    clean_cloud.join(clean_lab)
    clean_lab.dst.run(["rm", instance.disk])
    admin.start_server(server.uuid)
    until(lambda: "disk.local" in "".join(errors(admin, server, "start")))
    assert settled(admin, server, "SHUTOFF").fault is None
    assert domstate(clean_lab, server) == "shut off"


def test_a_guest_that_was_cut_off_in_the_lab_is_noticed_by_nova(clean_lab, admin, booted):
    server, _ = booted
    clean_lab.dst.run(["virsh", "destroy", server.uuid])
    settled(admin, server, "SHUTOFF")


def test_a_deleted_server_takes_its_domain_and_its_disks_along(clean_lab, clean_cloud, booted):
    server, instance = booted
    clean_cloud.delete(server)
    assert server.uuid not in clean_lab.dst.run("virsh list --all --uuid").split()
    assert clean_lab.dst.run(f"ls {instance.disk}", check=False) == ""
