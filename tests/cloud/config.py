"""Where one control plane lives: its folder, its ports, and the configuration files that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tests.cloud.install import Installation
from tests.rig import LOOPBACK, free

ETC = Path(__file__).parent / "etc"
PASSWORD = "volmig"
REGION = "RegionOne"
# What clients reach through the proxy (public) and services directly (internal), in the order of their ports.
APIS = {"identity": "/v3", "placement": "", "compute": "/v2.1", "image": "", "network": ""}
DATABASES = ("keystone", "placement", "glance", "neutron", "nova_api", "nova_cell0", "nova_cell1")
USERS = ("placement", "glance", "neutron", "nova")
PORTS = 20  # a plane's block


@dataclass(frozen=True)
class Place:
    """One plane's folder and ports. `name` is short: it is part of sockets' paths, whose length is limited.

    Clients reach the proxy on loopback. The services themselves are at `address`, which may lie in a network namespace.
    """

    name: str
    folder: Path
    base: int
    installation: Installation
    hosts: tuple[str, ...]
    address: str = LOOPBACK
    namespace: str = ""

    @property
    def run(self) -> Path:
        return Path("/run") / self.name

    @property
    def socket(self) -> Path:
        """The database's; it listens on no port."""
        return self.run / "db"

    @property
    def rabbit(self) -> int:
        return self.base + 2 * len(APIS)

    @property
    def distribution(self) -> int:
        """The port on which Erlang nodes would speak to this one."""
        return self.rabbit + 1

    @property
    def epmd(self) -> int:
        return self.rabbit + 2

    @property
    def transport(self) -> str:
        return f"rabbit://volmig:volmig@{self.address}:{self.rabbit}/"

    def public(self, api: str) -> int:
        """The port on which the proxy stands for an API."""
        return self.base + list(APIS).index(api)

    def internal(self, api: str) -> int:
        """The port of the API itself."""
        return self.public(api) + len(APIS)

    def url(self, api: str, public: bool = True) -> str:
        """The endpoint as the catalogue has it."""
        address = f"{LOOPBACK}:{self.public(api)}" if public else f"{self.address}:{self.internal(api)}"
        return f"http://{address}{APIS[api]}"

    def database(self, name: str) -> str:
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={self.socket}&charset=utf8mb4"

    def etc(self, name: str) -> Path:
        return self.folder / "etc" / name

    def prepare(self) -> None:
        """Make the folders that services expect, and write every configuration file."""
        folders = ["etc", "log", "rabbit", "nova", "neutron", "glance/images", "glance/staging", "glance/tasks"]
        for folder in (*folders, *(f"compute/{host}" for host in self.hosts)):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        facts = self._facts()
        for name in ("keystone", "placement", "glance-api", "neutron", "nova", "nova-db", "rabbitmq"):
            self._write(f"{name}.conf", f"{name}.conf", facts)
        for host in self.hosts:
            self._write("compute.conf", f"compute-{host}.conf", {**facts, "host": host})
        for empty in ("rabbitmq-env.conf", "rabbitmq-plugins"):
            self.etc(empty).write_text("")
        self.etc("api-paste.ini").unlink(missing_ok=True)
        self.etc("api-paste.ini").symlink_to(self.installation.venv / "etc/nova/api-paste.ini")

    def _facts(self) -> dict[str, object]:
        own = {"folder": self.folder, "venv": self.installation.venv, "address": self.address}
        reach = {"transport": self.transport, "rabbit": self.rabbit}
        databases = {f"db_{name}": self.database(name) for name in DATABASES}
        return {**own, **reach, **databases, **{f"as_{user}": self._login(user) for user in USERS}}

    def _login(self, user: str) -> str:
        """The lines by which a service logs in at keystone."""
        login = {
            "auth_type": "password", "auth_url": self.url("identity", public=False), "username": user,
            "password": PASSWORD, "user_domain_name": "Default", "project_name": "service",
            "project_domain_name": "Default", "region_name": REGION, "service_token_roles": "service",
            "service_token_roles_required": "true",
        }  # fmt: skip
        return "\n".join(f"{key} = {value}" for key, value in login.items())

    def _write(self, template: str, name: str, facts: Mapping[str, object]) -> None:
        self.etc(name).write_text(Template((ETC / template).read_text()).substitute(facts))


def free_base(first: int) -> int:
    """The first block of ports from `first` on of which none is in use."""
    return next(base for base in range(first, 20000, PORTS) if free(range(base, base + PORTS)))
