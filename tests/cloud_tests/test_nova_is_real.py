"""What volmig relies on of Nova, told by Nova itself: placing, power, locks, refusals, and where failures show."""

import pytest
from openstack.exceptions import ConflictException, ForbiddenException, HttpException, NotFoundException

from tests.cloud_tests.conftest import actions, errors, settled, until

pytestmark = pytest.mark.cloud


def test_a_server_lies_on_the_host_that_was_asked_for(clean_cloud, admin):
    servers = {host: clean_cloud.server(f"on-{host}", host) for host in ("src", "dst")}
    assert {host: admin.get_server(server.uuid).hypervisor_hostname for host, server in servers.items()} == {
        "src": "src", "dst": "dst",
    }  # fmt: skip
    assert servers["dst"].instance_name.startswith("instance-")


def test_a_server_stops_and_starts(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    admin.stop_server(server.uuid)
    assert settled(admin, server, "SHUTOFF").power_state == 4
    admin.start_server(server.uuid)
    assert settled(admin, server, "ACTIVE").power_state == 1
    assert actions(admin, server) == [("start", None), ("stop", None), ("create", None)]


def test_a_second_stop_is_refused(clean_cloud, admin):
    server = clean_cloud.server("db", "dst", start=False)
    with pytest.raises(ConflictException, match="vm_state stopped"):
        admin.stop_server(server.uuid)


def test_a_stop_that_takes_its_time_shows_and_refuses_another(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    with clean_cloud.dst.held("power_off"):
        admin.stop_server(server.uuid)
        until(lambda: admin.get_server(server.uuid).task_state == "powering-off")
        with pytest.raises(ConflictException, match="task_state powering-off"):
            admin.stop_server(server.uuid)
    settled(admin, server, "SHUTOFF")


def test_a_lock_holds_its_owner_back_but_no_administrator(clean_cloud, admin, member):
    server = clean_cloud.server("db", "dst", project="demo")
    admin.lock_server(server.uuid, locked_reason="volmig 7: its disk is being replaced")
    seen = admin.get_server(server.uuid)
    assert (seen.is_locked, seen.locked_reason) == (True, "volmig 7: its disk is being replaced")
    with pytest.raises(ConflictException, match="is locked"):
        member.stop_server(server.uuid)
    admin.stop_server(server.uuid)
    assert settled(admin, server, "SHUTOFF").is_locked


def test_a_failed_start_shows_in_the_server_actions_only(clean_cloud, admin):
    server = clean_cloud.server("db", "dst", start=False)
    clean_cloud.dst.fail("power_on", "no such disk")
    admin.start_server(server.uuid)
    until(lambda: actions(admin, server)[0] == ("start", "Error"))
    seen = settled(admin, server, "SHUTOFF")
    assert seen.fault is None
    assert errors(admin, server, "start") == ["no such disk"]
    assert clean_cloud.dst.guest_state(server.uuid) == 4


def test_a_guest_that_ignores_its_shutdown_is_cut_off_at_the_images_timeout(clean_cloud, admin):
    server = clean_cloud.server("db", "dst", image_properties={"os_shutdown_timeout": "3"})
    clean_cloud.dst.ignore_shutdown(server.uuid)
    with clean_cloud.dst.held("power_off"):
        admin.stop_server(server.uuid)
    settled(admin, server, "SHUTOFF")
    assert clean_cloud.dst.guest_state(server.uuid) == 4


def test_a_guest_that_switched_itself_off_is_noticed(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.dst.set_guest_state(server.uuid, 4)
    settled(admin, server, "SHUTOFF")
    action = next(admin.server_actions(server.uuid))
    assert (action.action, action.user_id) == ("stop", None)


def test_a_host_whose_compute_ended_reads_down_and_works_again_after_its_start(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.dst.stop()
    assert host_states(admin)["dst"] == "down"
    assert admin.get_server(server.uuid).host_status == "UNKNOWN"
    admin.stop_server(server.uuid)
    assert admin.get_server(server.uuid).task_state == "powering-off"
    clean_cloud.dst.start()
    assert host_states(admin) == {"src": "up", "jump": "up", "dst": "up"}
    settled(admin, server, "SHUTOFF")


def host_states(admin):
    return {service.host: service.state for service in admin.services(binary="nova-compute")}


def test_guests_outlive_their_compute(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.dst.stop()
    clean_cloud.dst.start()
    assert clean_cloud.dst.guest_state(server.uuid) == 1
    assert settled(admin, server, "ACTIVE").power_state == 1


def test_an_application_credential_may_do_what_its_administrator_may(clean_cloud):
    compute = clean_cloud.connection("appcred").compute
    server = clean_cloud.server("db", "dst", project="demo")
    compute.lock_server(server.uuid, locked_reason="volmig")
    compute.unlock_server(server.uuid)
    assert [found.id for found in compute.servers(all_projects=True)] == [server.uuid]


def test_a_reader_sees_and_may_not_stop(clean_cloud):
    server = clean_cloud.server("db", "dst", project="demo")
    compute = clean_cloud.connection("reader").compute
    assert compute.get_server(server.uuid).compute_host is None
    with pytest.raises(ForbiddenException):
        compute.stop_server(server.uuid)


def test_another_projects_server_is_not_there_for_a_member(clean_cloud, member):
    server = clean_cloud.server("db", "dst")
    with pytest.raises(NotFoundException):
        member.get_server(server.uuid)


def test_a_revoked_token_is_refused_and_a_client_gets_itself_a_new_one(clean_cloud):
    connection = clean_cloud.connection("appcred")
    token = connection.session.get_token()
    clean_cloud.revoke(token)
    raw = connection.session.get(
        "/servers", endpoint_filter={"service_type": "compute"}, headers={"X-Auth-Token": token},
        authenticated=False, raise_exc=False,
    )  # fmt: skip
    assert raw.status_code == 401
    with clean_cloud.counted() as calls:
        assert list(connection.compute.servers()) == []
    assert "identity POST /v3/auth/tokens" in calls.counts()


def test_a_deleted_server_is_gone(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.delete(server)
    with pytest.raises(NotFoundException):
        admin.get_server(server.uuid)
    assert clean_cloud.dst.guest_state(server.uuid) is None


def test_a_server_that_was_evacuated_loses_what_its_first_host_kept(clean_cloud, admin):
    server = clean_cloud.server("db", "src")
    clean_cloud.src.stop()
    admin.evacuate_server(server.uuid, host="dst")
    until(lambda: admin.get_server(server.uuid).compute_host == "dst")
    settled(admin, server, "SHUTOFF")
    assert clean_cloud.src.guest_state(server.uuid) == 1
    clean_cloud.src.start()
    until(lambda: clean_cloud.src.guest_state(server.uuid) is None)


def test_an_api_that_is_away_answers_503_until_it_is_back(clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    clean_cloud.compute.answer(503)
    with pytest.raises(HttpException) as refused:
        admin.get_server(server.uuid)
    assert refused.value.status_code == 503
    clean_cloud.compute.heal()
    assert admin.get_server(server.uuid).status == "ACTIVE"
