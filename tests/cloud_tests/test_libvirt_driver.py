"""Nova's own libvirt driver keeps its disks on the lab as at a site, and starts what was exchanged."""

import os

import pytest

from tests.cloud_tests.conftest import actions, settled
from tests.people import approve, ask, confirm, wait_for_consent
from tests.site import Site

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


@pytest.fixture
def volmig(real_cloud, compute, pair, tmp_path):
    """volmig over the lab, in which Nova has the instances: the old one is off, else its volume were in use."""
    stop(compute, pair[0])
    start(compute, pair[1])
    site = Site(real_cloud.lab, tmp_path / "volmig", clouds=real_cloud.clouds_yaml)
    site.prepare()
    site.start()
    yield site
    site.stop()


def test_a_job_in_the_browser_carries_a_disk_from_one_server_to_the_other(real_cloud, compute, pair, volmig, sign_in):
    old, new = pair
    lab, volume = real_cloud.lab, f"/dev/vg_nova0/{old.uuid}_{DISK}"
    digest = put_data(lab.src, volume)
    before = lab.sha256(lab.src, volume)
    olga, pavel = sign_in(volmig, "olga"), sign_in(volmig, "pavel")
    ask(olga, f"{old.uuid}_{DISK}", DISK)
    assert "new" in olga.inner_text("h1")
    wait_for_consent(olga)
    approve(pavel, new.uuid)
    real_cloud.wait_console(new, f"VOLMIG-DATA sha256 {digest}", timeout=300)
    confirm(olga)

    seen = settled(compute, new, "ACTIVE")
    assert not seen.is_locked
    assert actions(compute, new)[:4] == [("unlock", None), ("start", None), ("stop", None), ("lock", None)]
    assert lab.sha256(lab.src, volume) == before
    assert [
        line for line in lab.leftovers() if "disk.old" not in line and "README" not in line and "card" not in line
    ] == []


def put_data(guest, volume):
    """Write random bytes as /data on a volume; returns their SHA-256."""
    guest.write("/root/data", os.urandom(100_000))
    digest = guest.sha256("/root/data")
    guest.run(f"mount {volume} /mnt && mv /root/data /mnt/data && umount /mnt")
    return digest


def test_a_stop_shuts_the_guest_down_and_a_start_boots_it_again(real_cloud, compute, pair):
    server = pair[1]
    start(compute, server)
    real_cloud.wait_console(server, "VOLMIG-READY")
    stop(compute, server)
    assert real_cloud.lab.dst.run(["virsh", "domstate", server.uuid]).strip() == "shut off"
    assert "VOLMIG-SHUTDOWN" in real_cloud.console(server)
