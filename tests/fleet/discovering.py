"""Hypervisors of a large site: each has the real hostctl in this process, on loopback addresses that refuse at once."""

import json
import threading
from pathlib import Path
from typing import Any

from django.utils import timezone

from hosts.models import Hypervisor
from hosts.remote import hostctl
from hosts.remote.host import Address, Answer, Request, Unreachable
from hosts.remote.hostctl import facts, policy, question, verbs
from hosts.remote.hostctl.request import Desk
from tests import policies
from tests.factories import KEY

GIB = 1 << 30
NETWORKS = ("127.1.0.0/16", "127.2.0.0/16")  # both for data; all of 127.0.0.0/8 is this machine


def inventory(name: str, *addresses: str) -> dict[str, Any]:
    """An answer of the inventory verb, of a hypervisor that could be a source as well as a relay."""
    mount = {"source": "filer:/nova", "target": "/var/lib/nova/instances", "fstype": "nfs4", "options": "rw"}
    group = {"name": "vg_nova0", "uuid": f"vg-{name}", "size": 8 * GIB, "free": 6 * GIB, "extent_size": 4 << 20}
    return {
        **{"hostname": name, "tools": {}, "features": {}, "warnings": [], "nfs_server": {}, "domains": []},
        "volume_groups": [group],
        "logical_volumes": [],
        "mounts": [mount | {"size": 100 * GIB, "free": 60 * GIB}],
        "addresses": [
            {"interface": f"eth{number}", "address": address, "prefix": 16} for number, address in enumerate(addresses)
        ],
    }


class Fleet:
    """Hypervisors by name, with the ways to them; `install` puts their hostctl in place of what would ask a machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts, self.here = folder, {}, threading.local()

    def install(self, monkeypatch: Any) -> "Fleet":
        monkeypatch.setattr("hosts.remote.ssh.connect", self.connect)
        monkeypatch.setattr(question, "answered", lambda run, work, *how: run(work))
        monkeypatch.setattr(facts, "_tools", lambda work: {})
        asked = verbs.VERBS["inventory"]._replace(run=lambda work: self.here.host.inventory)
        monkeypatch.setitem(verbs.VERBS, "inventory", asked)
        return self

    def register(self, count: int) -> list[Hypervisor]:
        """So many more, seen once: each with an address on both data networks, and a policy that allows them."""
        made = []
        for number in range(len(self.hosts), len(self.hosts) + count):
            name, ends = f"cmp-{number:03}", f"{number // 200}.{number % 200 + 1}"
            row = Hypervisor.objects.create(name=name, address=name, host_key=KEY, pinned_at=timezone.now())
            host = self.hosts[name] = Machine(self, name, f"127.1.{ends}", f"127.2.{ends}")
            row.record_inventory(host.inventory | {"policy": policy.report(host.rules)})
            made.append(row)
        return made

    def connect(self, address: Address) -> "Machine":
        host = self.hosts[address.host]
        if host.dead:
            raise Unreachable(f"log in to {address}", "no response within 10 s")
        return host


class Machine:
    """A way to call one hypervisor's hostctl. `instead` answers a request in its place, unless it returns None."""

    def __init__(self, fleet: Fleet, name: str, *addresses: str) -> None:
        self.fleet, self.inventory, self.dead = fleet, inventory(name, *addresses), False
        self.rules = policies.reading(name, "source", "relay", networks=list(NETWORKS))
        self.desk = Desk(None, str(fleet.folder / name), str(fleet.folder / f"{name}.run"), 0.2, lambda: self.rules)
        self.requests: list[Request] = []
        self.instead = lambda request: None

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, request: Request, timeout: float = 20) -> Answer:
        self.requests.append(request)
        if answer := self.instead(request):
            return answer
        self.fleet.here.host = self
        said = self.desk.handle(json.dumps(request.document() | {"hash": hostctl.source_hash()}).encode())
        said = json.loads(json.dumps(said))
        return Answer(**{name: value for name, value in said.items() if name not in ("hash", "protocol")})

    def probes(self) -> list[list[dict[str, Any]]]:
        """The targets of each request to probe."""
        return [request.args["targets"] for request in self.requests if request.verb == "reach"]
