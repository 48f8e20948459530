"""The rig does what it claims: one plane a checkout, nothing outside loopback, faults that end, and a clean slate."""

import subprocess
import sys
import threading

import pytest
from keystoneauth1.exceptions import ConnectFailure
from openstack.exceptions import ConflictException, SDKException

from tests.cloud import processes
from tests.cloud.plane import ControlPlane
from tests.cloud_tests.conftest import settled, until

pytestmark = pytest.mark.cloud


def test_nothing_listens_outside_loopback(cloud):
    ours = set(processes.living(cloud.name))
    listening = subprocess.run(["ss", "-Htlnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    addresses = [line.split()[3] for line in listening if any(f"pid={pid}," in line for pid in ours)]
    assert len(addresses) >= 13  # five APIs, each with its proxy, and RabbitMQ's three
    assert [address for address in addresses if not address.startswith(("127.0.0.1:", "[::1]:"))] == []


def test_two_checkouts_share_neither_name_nor_ports(cloud, tmp_path):
    other = ControlPlane(tmp_path)
    assert other.name != cloud.name
    assert not other.is_up()
    assert processes.living(other.name) == {}


def test_a_session_keeps_the_plane_to_itself(cloud):
    code = "from tests.cloud.plane import ControlPlane\nwith ControlPlane().held(): print('mine')"
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "waiting" in second.stderr.readline()
    second.kill()
    assert second.communicate()[0] == ""


def test_a_plane_that_was_killed_is_cleared_down_to_the_last_process(tmp_path):
    plane = ControlPlane(tmp_path)
    (plane.folder / "log").mkdir(parents=True)
    processes.start(plane.name, "mariadb", ["/bin/sh", "-c", "sleep 600 & sleep 600"], plane.folder)
    until(lambda: len(processes.living(plane.name)) == 3)
    assert not plane.is_up()

    ControlPlane(tmp_path).down()
    assert processes.living(plane.name) == {}
    assert [path.name for path in plane.folder.iterdir()] == ["lock"]


def test_a_plane_without_its_scheduler_is_not_up(cloud, monkeypatch):
    assert cloud.is_up()
    living = processes.living
    monkeypatch.setattr(
        processes,
        "living",
        lambda *names: {pid: service for pid, service in living(*names).items() if service != "nova-scheduler"},
    )
    assert not cloud.is_up()


def test_requests_are_counted_by_what_they_are(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    list(admin.servers(details=False))  # the session has its token now
    with clean_cloud.counted() as calls:
        admin.get_server(server.uuid)
        admin.lock_server(server.uuid)
        admin.unlock_server(server.uuid)
    assert calls.counts() == {
        "compute GET /v2.1/servers/{id}": 1,
        "compute POST /v2.1/servers/{id}/action": 2,
    }
    assert len(calls) == 3


def test_a_fault_meets_only_what_it_is_limited_to(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.compute.answer(503, method="POST", path="/action$", times=1)
    assert admin.get_server(server.uuid).status == "ACTIVE"
    with pytest.raises(SDKException, match="503"):
        admin.stop_server(server.uuid)
    admin.stop_server(server.uuid)
    settled(admin, server, "SHUTOFF")


def test_a_dropped_request_never_reaches_nova(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.compute.drop(method="POST")
    with pytest.raises(ConnectFailure, match="Unable to establish connection"):
        admin.stop_server(server.uuid)
    assert admin.get_server(server.uuid).task_state is None
    assert [action.action for action in admin.server_actions(server.uuid)] == ["create"]


def test_a_lost_answer_is_a_stop_that_happened(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.compute.lose_answers(method="POST", times=1)
    with pytest.raises(ConnectFailure, match="Unable to establish connection"):
        admin.stop_server(server.uuid)
    settled(admin, server, "SHUTOFF")


def test_a_held_request_waits_for_the_test(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    stop = threading.Thread(target=admin.stop_server, args=(server.uuid,))
    with clean_cloud.counted() as calls, clean_cloud.compute.held(method="POST"):
        stop.start()
        until(lambda: any(call.method == "POST" for call in calls.of("compute")))
        assert admin.get_server(server.uuid).task_state is None
    stop.join()
    settled(admin, server, "SHUTOFF")


def test_a_reset_ends_all_trouble_and_leaves_no_server(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.dst.fail("destroy", "never")
    clean_cloud.jump.stop()
    admin.disable_service(next(admin.services(binary="nova-compute", host="src")))
    clean_cloud.compute.answer(500)

    clean_cloud.reset()
    assert list(admin.servers(all_projects=True)) == []
    assert clean_cloud.dst.guest_state(server.uuid) is None
    assert {(found.state, found.status) for found in admin.services()} == {("up", "enabled")}


def test_an_image_may_say_how_long_a_shutdown_takes(clean_cloud):
    server = clean_cloud.server("db", "dst", image_properties={"os_shutdown_timeout": "20"})
    connection = clean_cloud.connection("admin")
    image = connection.image.get_image(connection.compute.get_server(server.uuid).image.id)
    assert image.to_dict()["os_shutdown_timeout"] == 20


def test_a_server_can_be_made_stopped(clean_cloud, admin):
    server = clean_cloud.server("db", "dst", start=False)
    with pytest.raises(ConflictException):
        admin.stop_server(server.uuid)
