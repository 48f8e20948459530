"""Nova's own libvirt driver keeps its disks on the lab as at a site, and starts what was exchanged."""

import os

import pytest

from tests.cloud_tests.conftest import settled

pytestmark = pytest.mark.real
DISK = "disk.eph0"


@pytest.fixture(scope="module")
def pair(real_cloud):
    """A server with raw volumes on src and one with qcow2 files on dst, both booted."""
    real_cloud.reset()
    servers = [real_cloud.server("old", "src"), real_cloud.server("new", "dst")]
    for server in servers:
        real_cloud.wait_console(server, "VOLMIG-READY")
    return servers


@pytest.fixture
def compute(real_cloud):
    return real_cloud.connection("admin").compute


def stop(compute, server):
    """Have it be stopped; tests come in any order."""
    if compute.get_server(server.uuid).status != "SHUTOFF":
        compute.stop_server(server.uuid)
    settled(compute, server, "SHUTOFF", seconds=180)


def start(compute, server):
    if compute.get_server(server.uuid).status != "ACTIVE":
        compute.start_server(server.uuid)
    settled(compute, server, "ACTIVE", seconds=180)


def test_a_server_on_src_has_raw_volumes(real_cloud, pair):
    volumes = real_cloud.lab.src.run("lvs --noheadings -o lv_name vg_nova0").split()
    assert set(volumes) == {f"{pair[0].uuid}_disk", f"{pair[0].uuid}_{DISK}"}


def test_a_server_on_dst_has_qcow2_files_of_novas_on_the_share(real_cloud, pair):
    path = f"/vol/nova/{pair[1].uuid}/{DISK}"
    assert real_cloud.lab.filer.run(["stat", "-c", "%U", path]) == "nova\n"
    assert '"qcow2"' in real_cloud.lab.filer.run(f"cat /vol/nova/{pair[1].uuid}/disk.info")


def test_a_volume_of_one_is_the_disk_of_the_other(real_cloud, compute, pair):
    old, new = pair
    lab, data = real_cloud.lab, os.urandom(100_000)
    for server in pair:
        stop(compute, server)
    volume, disk = f"/dev/vg_nova0/{old.uuid}_{DISK}", f"/var/lib/nova/instances/{new.uuid}/{DISK}"
    lab.src.write("/root/data", data)
    digest = lab.src.sha256("/root/data")
    lab.src.run(f"mount {volume} /mnt && mv /root/data /mnt/data && umount /mnt")
    lab.src.run(f"qemu-img convert -f raw -O qcow2 {volume} /root/image")
    lab.dst.run(f"cat >{disk}", stdin=lab.src.read("/root/image"))
    lab.src.run("rm /root/image")

    start(compute, new)
    real_cloud.wait_console(new, f"VOLMIG-DATA sha256 {digest}")


def test_a_stop_shuts_the_guest_down_and_a_start_boots_it_again(real_cloud, compute, pair):
    server = pair[1]
    start(compute, server)
    real_cloud.wait_console(server, "VOLMIG-READY")
    stop(compute, server)
    assert real_cloud.lab.dst.run(["virsh", "domstate", server.uuid]).strip() == "shut off"
    assert "VOLMIG-SHUTDOWN" in real_cloud.console(server)
