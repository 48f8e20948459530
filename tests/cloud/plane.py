"""The control plane: real keystone, placement, glance, neutron and nova on loopback; only the guests are pretended.

By hand (as root):      python -m tests.cloud up | status | openstack server list --all-projects | down
In a test:              def test_…(clean_cloud): server = clean_cloud.server("db", "dst") (see fixtures.py)

    plane = ControlPlane(); plane.up()
    openstack.connect(cloud="admin") with OS_CLIENT_CONFIG_FILE=plane.clouds_yaml, or plane.connection("admin")
    server = plane.server("db", "dst")                  # ACTIVE on that host; server.uuid, server.instance_name
    plane.dst.fail("power_on", "no such disk")          # trouble of a host: see host.py
    plane.compute.answer(503)                           # trouble of an API: see api.py
    with plane.counted() as calls: …; print(calls.counts())
    plane.reset()

| cloud   | is                                                         |
|---------|------------------------------------------------------------|
| admin   | administrator, of project admin                            |
| appcred | an application credential of that administrator            |
| member  | member of project demo                                     |
| reader  | reader of project demo                                     |

`with plane.held():` keeps other sessions of the checkout away (the fixtures do). Everything listens on 127.0.0.1 only.
Names and ports come from the checkout's path, so two checkouts do not collide. State lies in .cache/cloud of the
checkout and in /run/<name>, what is installed and the state to begin with in /var/cache/volmig-cloud
(VOLMIG_CLOUD_CACHE). Nothing of a plane outlives down().
"""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openstack
from openstack.connection import Connection

from tests.cloud import install, processes, seed
from tests.cloud.api import Api, Calls
from tests.cloud.config import APIS, PORTS, REGION, Place, free_base
from tests.cloud.daemons import Services
from tests.cloud.host import Host
from tests.cloud.install import Installation, say
from tests.lab.lab import Lab
from tests.rig import CHECKOUT, LOOPBACK, Rig

HOSTS = ("src", "jump", "dst")  # pretended ones


@dataclass(frozen=True)
class Server:
    """A server that was created through the API; `instance_name` is what libvirt would call it."""

    uuid: str
    name: str
    instance_name: str
    host: str


class ControlPlane(Rig):
    """The plane of one checkout. Making the object starts nothing and attaches to what runs."""

    prefix, cache, hosts = "vmcloud", "cloud", HOSTS

    def __init__(self, checkout: Path = CHECKOUT) -> None:
        super().__init__(checkout, self.prefix, self.cache, "control plane")
        self._connections: dict[str, Connection] = {}

    src = property(lambda self: self.host("src"))
    jump = property(lambda self: self.host("jump"))
    dst = property(lambda self: self.host("dst"))
    identity = property(lambda self: Api("identity", self.folder))
    compute = property(lambda self: Api("compute", self.folder))
    image = property(lambda self: Api("image", self.folder))

    # Life

    def up(self) -> None:
        """Start the plane unless it is up; what a killed one left behind is cleared first. Takes half a minute."""
        installation = install.ensure()
        state = seed.ensure(installation, self.hosts)
        with self._lock():
            if self.is_up() and self._state()["seed"] == str(state):
                return
            self._clear()
            began = time.monotonic()
            self._prepare(installation, state)
            self._start()
            self._remember(ready=True)
            say(f"up after {time.monotonic() - began:.0f} s")

    def down(self) -> None:
        """End the plane: no process and no state of it is left when this returns."""
        with self._lock():
            self._clear()

    def is_up(self) -> bool:
        """Whether the plane was started completely, and everything but a stopped nova-compute runs."""
        if not self._state().get("ready"):
            return False
        return self._essential() <= set(processes.living(self.name).values())

    def reset(self) -> None:
        """Return to no trouble, no servers and every host up, in a few seconds."""
        (self.folder / "faults.json").unlink(missing_ok=True)
        hosts = [self.host(name) for name in self.hosts]
        for host in hosts:
            host.heal()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: host.runs or host.start(), hosts))
        self._delete_all()
        self._forget(hosts)

    # Contents

    @property
    def clouds_yaml(self) -> Path:
        return self.folder / "clouds.yaml"

    @property
    def auth_url(self) -> str:
        return self._place().url("identity")

    @property
    def installation(self) -> Installation:
        return self._place().installation

    def connection(self, cloud: str = "admin") -> Connection:
        """A connection of openstacksdk, made once for each cloud."""
        if cloud not in self._connections:
            config = openstack.config.OpenStackConfig(config_files=[str(self.clouds_yaml)], secure_files=[])
            self._connections[cloud] = Connection(config=config.get_one(cloud))
        return self._connections[cloud]

    def host(self, name: str) -> Host:
        return Host(name, Services(self._place()))

    def server(
        self,
        name: str,
        host: str,
        *,
        flavor: str = "small",
        image_properties: dict[str, str] | None = None,
        start: bool = True,
        project: str = "admin",
    ) -> Server:
        """Create a server on a host, without a network: ACTIVE, or SHUTOFF without `start`.

        flavor: small, data (1 GiB of ephemeral disk) or medium. image_properties: such as os_shutdown_timeout.
        project: admin or demo, that of the clouds member and reader.
        """
        compute = self._maker(project).compute
        image = self._image(tuple(sorted((image_properties or {}).items())))
        asked = {"name": name, "image_id": image, "networks": "none", "availability_zone": f"nova:{host}"}
        made = compute.create_server(flavor_id=compute.find_flavor(flavor, ignore_missing=False).id, **asked)
        made = compute.wait_for_server(made, interval=0.2, wait=180)
        if not start:
            compute.stop_server(made)
            compute.wait_for_server(compute.get_server(made.id), status="SHUTOFF", interval=0.2, wait=180)
        return Server(made.id, made.name, made.instance_name, made.compute_host)

    def delete(self, server: Server) -> None:
        """Delete a server; returns when Nova has none of that id."""
        compute = self._maker("admin").compute
        compute.delete_server(server.uuid, ignore_missing=True, force=True)
        self._wait_deleted(server.uuid)

    def revoke(self, token: str) -> None:
        """Have keystone refuse a token from now on."""
        headers = {"X-Subject-Token": token}
        self._maker("admin").identity.delete("/auth/tokens", headers=headers).raise_for_status()

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """Note the requests that clients send while the block runs."""
        calls = Calls(self.folder)
        try:
            yield calls
        finally:
            calls.finish()

    def join(self, lab: Lab, *hosts: str) -> None:
        """Have Nova drive the domains of the storage lab that bear a server's uuid, on dst or the hosts named.

        Until the next reset. The domain is defined by the test: lab.instance(server.uuid, server.instance_name, …).
        """
        for name in hosts or ("dst",):
            self.host(name).join(lab.guests[name])

    # Within

    def _place(self) -> Place:
        state = self._state()
        if not state:
            raise RuntimeError(f"there is no control plane in {self.folder}; python -m tests.cloud up")
        installation = Installation(Path(str(state["installed"])))
        return Place(self.name, self.folder, int(str(state["base"])), installation, self.hosts, *self._network())

    def _network(self) -> tuple[str, ...]:
        """The services' address, and the network namespace that it is in."""
        return (LOOPBACK,)

    def _prepare(self, installation: Installation, state: Path) -> None:
        base = free_base(10000 + self.number * PORTS)
        self._remember(name=self.name, base=base, installed=str(installation.folder), seed=str(state))
        place = self._place()
        seed.lay(state, place)
        place.prepare()
        clouds = json.dumps({"clouds": self._clouds(place)}, indent=2)  # which is YAML, too
        self.clouds_yaml.write_text(clouds + "\n")

    def _clouds(self, place: Place) -> dict[str, object]:
        credential = json.loads((self.folder / "seed.json").read_text())
        by_credential = {"auth_type": "v3applicationcredential", "region_name": REGION}
        people = {"admin": "admin", seed.MEMBER: seed.PROJECT, seed.READER: seed.PROJECT}
        return {
            **{user: {"region_name": REGION, "auth": seed.login(place, user, of)} for user, of in people.items()},
            "appcred": {**by_credential, "auth": {"auth_url": place.url("identity"), **credential}},
        }

    def _start(self) -> None:
        services = Services(self._place())
        services.start_stores()
        seed.readdress(services)
        services.forget_reports()
        services.start_keystone()
        services.start_placement()
        services.start_other_apis()
        for service, api in (("keystone", "identity"), ("placement", "placement")):
            services.wait_api(service, api)
        services.wait_rabbit()
        services.start_nova()
        for service, api in (("nova-api", "compute"), ("glance", "image"), ("neutron", "network")):
            services.wait_api(service, api)
        services.wait_nova()

    def _essential(self) -> set[str]:
        """The services without which there is no plane; a nova-compute may be stopped by a test."""
        apis = {seed.NAMES[api] for api in APIS} - {"nova"} | {"nova-api"}
        return apis | {"mariadb", "rabbitmq", "proxy", "nova-conductor", "nova-scheduler"}

    def _clear(self) -> None:
        processes.kill(self.name)
        shutil.rmtree(Path("/run") / self.name, ignore_errors=True)
        self._connections = {}
        self._clear_folder()

    def _maker(self, project: str) -> Connection:
        """The tests' own way in: past the proxy, so that it is not counted and meets no fault."""
        key = f"past the proxy, {project}"
        if key not in self._connections:
            self._connections[key] = seed.connect(self._place(), "admin", project, public=bool(self._place().namespace))
        return self._connections[key]

    def _image(self, properties: tuple[tuple[str, str], ...]) -> str:
        """The id of an image with these properties, made when there is none."""
        image = self._maker("admin").image
        name = seed.IMAGE + "".join(f" {key}={value}" for key, value in properties)
        found = image.find_image(name)
        return str((found or image.create_image(name=name, data=bytes(1024), **seed.RAW, **dict(properties))).id)

    def _delete_all(self) -> None:
        compute = self._maker("admin").compute
        found = [server.id for server in compute.servers(details=False, all_projects=True)]
        for uuid in found:
            compute.delete_server(uuid, ignore_missing=True, force=True)
        self._wait_deleted(*found)

    def _forget(self, hosts: list[Host]) -> None:
        """Undo what a test did to hosts, and drop the records of moves: later tests would take them for their own."""
        compute = self._maker("admin").compute
        for service in compute.services(binary="nova-compute"):
            if service.is_forced_down:
                compute.update_service_forced_down(service, forced=False)
            if service.status != "enabled":
                compute.enable_service(service)
        Services(self._place()).sql("delete from nova_cell1.migrations")
        for host in hosts:
            host.part()

    def _wait_deleted(self, *uuids: str) -> None:
        compute = self._maker("admin").compute
        deadline = time.monotonic() + 120
        while left := {server.id for server in compute.servers(details=False, all_projects=True)} & set(uuids):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Nova does not delete {left}")
            time.sleep(0.1)
