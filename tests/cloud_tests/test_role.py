"""The role volmig with the policy of docs/clouds.md, at a real Nova: what volmig asks is granted, all else refused."""

import time
from pathlib import Path

import pytest
from openstack.connection import Connection

from hosts import tasks
from hosts.remote.host import Access
from hosts.remote.nova import connect, forget
from tests.cloud.config import PASSWORD, REGION
from tests.cloud_tests.conftest import until

pytestmark = pytest.mark.cloud
FILE = Path(__file__).parents[2] / "docs/nova-policy.yaml"
ROLE = "volmig"


@pytest.fixture
def auth(clean_cloud):
    """A login that has the role and no other, where Nova has the policy; both are gone afterwards."""
    identity, place = clean_cloud.connection("admin").identity, clean_cloud._place()
    role = identity.create_role(name=ROLE)
    project = identity.create_project(name=ROLE, domain_id="default")
    user = identity.create_user(name=ROLE, password=PASSWORD, domain_id="default")
    identity.assign_project_role_to_user(project, user, role)
    policy = place.etc("policy.yaml")
    policy.write_text(FILE.read_text())
    names = {"username": ROLE, "password": PASSWORD, "project_name": ROLE}
    yield {"auth_url": place.url("identity"), **names, "user_domain_id": "default", "project_domain_id": "default"}
    policy.unlink()
    identity.delete_user(user)
    identity.delete_project(project)
    identity.delete_role(role)
    forget()


@pytest.fixture
def nova(auth):
    return connect(Access("role", auth_type="password", auth=tuple(auth.items()), region=REGION))


def statuses(compute, server, calls):
    """The HTTP status of each call; all are well-formed, so that only the policy can refuse them."""
    return {
        (method, path, next(iter(body), "")): compute.request(
            f"{path}".replace("SERVER", server), method, json=body or None, raise_exc=False, microversion="2.90"
        ).status_code
        for method, path, body in calls
    }


def test_every_call_that_volmig_makes_is_granted(nova, clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    seen = until(lambda: next((each for each in nova.servers("", 100) if each["id"] == server.uuid), None))
    assert seen["OS-EXT-SRV-ATTR:host"], "it is told where an instance of another project is"
    said, _ = tasks.looked_at(nova)
    needed = {each["call"]: each["may"] for each in said if each["call"] != "list projects by name"}
    assert set(needed.values()) <= {"yes", "likely"}, said
    action = f"/servers/{server.uuid}/action"
    assert nova.post(action, {"lock": {"locked_reason": "volmig:test"}})[0] == 202
    assert nova.post(action, {"os-stop": None})[0] == 202
    until(lambda: admin.get_server(server.uuid).status == "SHUTOFF")
    assert nova.post(action, {"os-start": None})[0] == 202
    until(lambda: admin.get_server(server.uuid).status == "ACTIVE")
    assert nova.post(action, {"unlock": None})[0] == 202
    assert not admin.get_server(server.uuid).is_locked


REFUSED = [
    ("DELETE", "/servers/SERVER", {}),
    ("PUT", "/servers/SERVER", {"server": {"name": "mine"}}),
    ("GET", "/os-aggregates", {}),
    ("POST", "/os-keypairs", {"keypair": {"name": "k", "type": "ssh", "public_key": "x", "user_id": "1" * 32}}),
    ("POST", "/flavors", {"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}}),
    ("GET", "/servers/SERVER/os-server-password", {}),
    ("POST", "/servers/SERVER/remote-consoles", {"remote_console": {"protocol": "vnc", "type": "novnc"}}),
    (
        "POST",
        "/servers/SERVER/os-volume_attachments",
        {"volumeAttachment": {"volumeId": "1" * 8 + "-1111" * 3 + "-" + "1" * 12}},
    ),
    *[
        ("POST", "/servers/SERVER/action", body)
        for body in (
            {"resize": {"flavorRef": "1"}},
            {"rebuild": {"imageRef": "11111111-1111-4111-8111-111111111111"}},
            {"reboot": {"type": "HARD"}},
            {"forceDelete": None},
            {"os-resetState": {"state": "active"}},
            {"migrate": None},
            {"os-migrateLive": {"host": None, "block_migration": "auto"}},
            {"evacuate": {}},
            {"shelve": None},
            {"pause": None},
            {"suspend": None},
            {"rescue": {}},
            {"createImage": {"name": "loot"}},
            {"os-getConsoleOutput": {}},
        )
    ],
]


def test_every_other_call_is_refused(auth, clean_cloud, admin):
    server = clean_cloud.server("db", "dst")
    thief = Connection(region_name=REGION, auth=auth, auth_type="password").compute
    time.sleep(1)  # oslo.policy looks at the file's time, in whole seconds
    found = statuses(thief, server.uuid, REFUSED)
    assert {call: status for call, status in found.items() if status != 403} == {}
    assert admin.get_server(server.uuid).status == "ACTIVE"
    assert admin.get_server(server.uuid).name == "db"
    flavor = next(iter(admin.flavors())).id
    wanted = [("POST", "/servers", {"server": {"name": "x", "flavorRef": flavor, "networks": "none", "imageRef": "1"}})]
    assert set(statuses(thief, server.uuid, wanted).values()) <= {400, 403}
    assert [each.name for each in admin.servers(all_projects=True)] == ["db"]
