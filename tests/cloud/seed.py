"""Makes, once per recipe, the state that every plane begins with: schemas, users, catalogue, flavours, cells, hosts."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openstack
from openstack.connection import Connection

from tests.cloud import processes
from tests.cloud.config import APIS, DATABASES, PASSWORD, REGION, USERS, Place, free_base
from tests.cloud.daemons import Services
from tests.cloud.install import HERE, Installation, drop_unused, lock, say
from tests.rig import empty

FLAVORS = {
    # name -> vcpus, MiB of memory, GiB of root disk, GiB of ephemeral disk
    "small": (1, 128, 1, 0),
    "data": (1, 128, 1, 1),
    "medium": (2, 1024, 10, 20),
}
RAW = {"disk_format": "raw", "container_format": "bare", "visibility": "public", "validate_checksum": False}
IMAGE, NETWORK, PROJECT = "tiny", "lan", "demo"
MEMBER, READER, CREDENTIAL = "member", "reader", "volmig"
KEPT = ("mariadb", "keystone", "glance", "compute", "seed.json")  # of the folder in which the state was made
NAMES = {"identity": "keystone", "placement": "placement", "compute": "nova", "image": "glance", "network": "neutron"}


def ensure(installation: Installation, hosts: tuple[str, ...]) -> Path:
    """Return the folder of the present recipe's state; makes it (about a minute) when the cache has none."""
    folder = installation.folder / f"state-{recipe(hosts)}"
    with lock():
        if not folder.exists():
            _make(folder, installation, hosts)
        os.utime(folder)
        drop_unused(installation.folder.glob("state-*"), folder)
    return folder


def recipe(hosts: tuple[str, ...]) -> str:
    """Hash of everything that decides what the state holds."""
    digest = hashlib.sha256(repr(hosts).encode())
    parts = [HERE / "seed.py", HERE / "config.py", *sorted((HERE / "etc").iterdir())]
    for part in parts:
        digest.update(part.name.encode() + part.read_bytes())
    return digest.hexdigest()[:16]


def lay(state: Path, place: Place) -> None:
    """Copy the state into a plane's folder."""
    for name in (kept for kept in KEPT if (state / kept).exists()):
        subprocess.run(["/bin/cp", "-a", "--sparse=always", str(state / name), str(place.folder / name)], check=True)


def readdress(services: Services) -> None:
    """Have what the databases say about ports and paths be true of this plane."""
    place = services.place
    urls = [(api, public, place.url(api, public)) for api in APIS for public in (True, False)]
    endpoints = "".join(
        f"update keystone.endpoint e join keystone.service s on s.id = e.service_id set e.url = '{url}'"
        f" where s.type = '{api}' and (e.interface = 'public') = {int(public)};"
        for api, public, url in urls
    )
    cells = "".join(
        f"update nova_api.cell_mappings set transport_url = '{transport}', database_connection = '{database}'"
        f" where {which};"
        for which, transport, database in (
            ("uuid = '00000000-0000-0000-0000-000000000000'", "none:///", place.database("nova_cell0")),
            ("name = 'cell1'", place.transport, place.database("nova_cell1")),
        )
    )
    images = f"update glance.image_locations set value = concat('file://{place.folder}/glance/images/', image_id);"
    services.sql(endpoints + cells + images)


def connect(place: Place, user: str, project: str, public: bool = True) -> Connection:
    """A connection of a user; past the proxy when not public."""
    return openstack.connection.Connection(
        auth=login(place, user, project, public), region_name=REGION, interface="public" if public else "internal"
    )


def login(place: Place, user: str, project: str, public: bool = True) -> dict[str, str]:
    return {
        "auth_url": place.url("identity", public),
        "username": user, "password": PASSWORD, "user_domain_name": "Default",
        "project_name": project, "project_domain_name": "Default",
    }  # fmt: skip


def _make(folder: Path, installation: Installation, hosts: tuple[str, ...]) -> None:
    """Make it beside the final place and rename at the end, so that a killed making leaves nothing that looks whole."""
    began = time.monotonic()
    say("making the state that control planes begin with, once: about a minute")
    for stale in installation.folder.glob("*.part"):
        processes.kill(_name(stale))
        shutil.rmtree(stale)
    part = folder.with_suffix(".part")
    part.mkdir()
    place = Place(_name(part), part, free_base(18000), installation, hosts)
    try:
        _furnish(Services(place))
    finally:
        processes.kill(place.name)
        shutil.rmtree(place.run, ignore_errors=True)
    empty(part, KEPT)
    part.rename(folder)
    say(f"state ready after {time.monotonic() - began:.0f} s in {folder}")


def _name(part: Path) -> str:
    return f"vmseed-{hashlib.sha256(str(part).encode()).hexdigest()[:6]}"


def _furnish(services: Services) -> None:
    place = services.place
    place.prepare()
    services.create_databases()
    services.start_stores()
    services.sql("".join(f"create database {name} character set utf8mb3;" for name in DATABASES))
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(make, services) for make in (_nova_schemas, _keystone, _other_schemas)]
    for schema in made:
        schema.result()
    services.start_keystone()
    services.start_placement()
    services.wait_api("keystone", "identity")
    _identity(place, connect(place, "admin", "admin", public=False))
    services.start_other_apis()
    services.wait_rabbit()
    for api in ("placement", "image", "network", "compute"):
        services.wait_api(NAMES[api], api)
    services.start_nova()
    _contents(services, connect(place, "admin", "admin", public=False))  # whose catalogue is the whole one
    _hosts(services)
    services.stop_stores()


def _nova_schemas(services: Services) -> None:
    cell0 = services.place.database("nova_cell0")
    services.manage_nova("api_db", "sync")
    services.manage_nova("cell_v2", "map_cell0", "--database_connection", cell0)
    services.manage_nova("db", "sync")
    services.manage_nova("cell_v2", "create_cell", "--name", "cell1")


def _keystone(services: Services) -> None:
    place = services.place
    file = ("--config-file", str(place.etc("keystone.conf")))
    services.manage("keystone-manage", *file, "db_sync")
    for kind in ("fernet", "credential"):
        (place.folder / "keystone" / kind).mkdir(parents=True, mode=0o700)
        owner = ("--keystone-user", "root", "--keystone-group", "root")
        services.manage("keystone-manage", *file, f"{kind}_setup", *owner)
    urls = {"public": True, "internal": False, "admin": False}
    ways = {f"--bootstrap-{kind}-url": place.url("identity", public) for kind, public in urls.items()}
    words = [word for way in ways.items() for word in way]
    first = ("--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION)
    services.manage("keystone-manage", *file, "bootstrap", *first, *words)


def _other_schemas(services: Services) -> None:
    place = services.place
    services.manage("placement-manage", "--config-file", str(place.etc("placement.conf")), "db", "sync")
    services.manage("glance-manage", "--config-file", str(place.etc("glance-api.conf")), "db_sync")
    services.manage("neutron-db-manage", "--config-file", str(place.etc("neutron.conf")), "upgrade", "heads")


def _identity(place: Place, admin: Connection) -> None:
    """Users, projects and the catalogue; the rest of the services logs in with these."""
    identity = admin.identity
    roles = {role.name: role for role in identity.roles()}
    roles["service"] = roles.get("service") or identity.create_role(name="service")
    projects = {name: identity.create_project(name=name, domain_id="default") for name in ("service", PROJECT)}
    wanted = [(user, "service", ("admin", "service")) for user in USERS]
    wanted += [(MEMBER, PROJECT, ("member",)), (READER, PROJECT, ("reader",))]
    for name, project, names in wanted:
        user = identity.create_user(name=name, password=PASSWORD, domain_id="default")
        for role in names:
            identity.assign_project_role_to_user(projects[project], user, roles[role])
    identity.assign_project_role_to_user(projects[PROJECT], admin.current_user_id, roles["admin"])
    for api in set(APIS) - {"identity"}:
        service = identity.create_service(type=api, name=NAMES[api])
        for kind, public in {"public": True, "internal": False}.items():
            url = place.url(api, public)
            identity.create_endpoint(service_id=service.id, interface=kind, region_id=REGION, url=url)
    _credential(place, admin)


def _credential(place: Place, admin: Connection) -> None:
    made = admin.identity.create_application_credential(admin.current_user_id, CREDENTIAL)
    facts = {"application_credential_id": made.id, "application_credential_secret": made.secret}
    (place.folder / "seed.json").write_text(json.dumps(facts))


def _contents(services: Services, admin: Connection) -> None:
    for name, (vcpus, ram, disk, ephemeral) in FLAVORS.items():
        admin.compute.create_flavor(name=name, vcpus=vcpus, ram=ram, disk=disk, ephemeral=ephemeral)
    admin.image.create_image(name=IMAGE, data=bytes(1024), **RAW)
    network = admin.network.create_network(name=NETWORK, shared=True)
    admin.network.create_subnet(network_id=network.id, ip_version=4, cidr="10.78.0.0/24", enable_dhcp=False)
    # Without an agent on its host no port can be bound. None runs here, so each host has a row of one.
    bridge = '{"bridge_mappings": {}, "tunnel_types": []}'
    for host in services.place.hosts:
        services.sql(
            "insert into neutron.agents (id, agent_type, `binary`, topic, host, admin_state_up, created_at, started_at,"
            " heartbeat_timestamp, configurations, `load`) values (uuid(), 'Open vSwitch agent', 'none-runs-here',"
            f" 'N/A', '{host}', 1, now(), now(), '2037-01-01', '{bridge}', 0)"
        )


def _hosts(services: Services) -> None:
    services.wait_nova()
    services.discover_hosts()
    mapped = {row[0] for row in services.sql("select host from nova_api.host_mappings")}
    if mapped != set(services.place.hosts):
        raise RuntimeError(f"only {sorted(mapped)} of {services.place.hosts} are mapped to their cell")
