"""A cloud in memory, spoken to over real HTTP: Keystone and Nova as far as volmig asks, which refuse as they do."""

import json
import re
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from hosts.remote.host import Access
from tests.fakes import INSTANCE

PROJECT = "aa11" * 8
VOLMIG = "bb22" * 8  # the user that volmig is
SOMEBODY = "cc33" * 8


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


@dataclass
class Server:
    uuid: str
    name: str
    host: str
    vm_state: str = "active"
    task_state: str | None = None
    project: str = PROJECT
    locked: bool = False
    locked_reason: str | None = None
    ephemeral: int = 1
    address: str = "10.9.0.7"
    image: str = "11111111-2222-4333-8444-555555555555"
    properties: dict[str, str] = field(default_factory=dict)
    actions: list[dict[str, Any]] = field(default_factory=list)
    updated: datetime = field(default_factory=lambda: datetime(2026, 11, 22, 10, 0, tzinfo=UTC))
    fault: str = ""

    @property
    def status(self) -> str:
        if self.task_state in ("rebuilding", "rebuild_spawning"):
            return "REBUILD"
        if self.task_state in ("resize_prep", "resize_migrating"):
            return "RESIZE"
        return {"active": "ACTIVE", "stopped": "SHUTOFF", "resized": "VERIFY_RESIZE"}.get(
            self.vm_state, self.vm_state.upper()
        )

    def document(self, version: tuple[int, int], hosts: dict[str, str]) -> dict[str, Any]:
        image: Any = {"id": self.image, "links": []} if self.image else ""
        return {
            "id": self.uuid,
            "name": self.name,
            "status": self.status,
            "tenant_id": self.project,
            "user_id": SOMEBODY,
            "created": "2026-11-01T08:00:00Z",
            "updated": self.updated.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "addresses": {"lan": [{"version": 4, "addr": self.address, "OS-EXT-IPS:type": "fixed"}]},
            "image": image,
            "flavor": {
                "vcpus": 2,
                "ram": 4096,
                "disk": 10,
                "ephemeral": self.ephemeral,
                "swap": 0,
                "original_name": "m1.data",
                "extra_specs": {},
            },
            "locked": self.locked,
            **({"locked_reason": self.locked_reason} if version >= (2, 73) else {}),
            "host_status": hosts.get(self.host, "UP"),
            "os-extended-volumes:volumes_attached": [],
            "OS-EXT-SRV-ATTR:host": self.host,
            "OS-EXT-SRV-ATTR:hypervisor_hostname": f"{self.host}.example.org",
            "OS-EXT-SRV-ATTR:instance_name": "instance-00000007",
            "OS-EXT-STS:vm_state": self.vm_state,
            "OS-EXT-STS:task_state": self.task_state,
            "OS-EXT-STS:power_state": {"active": 1, "stopped": 4}.get(self.vm_state, 0),
            **({"fault": {"code": 500, "message": self.fault, "created": ""}} if self.fault else {}),
        }


class Cloud:
    """`slow` asks stay under way until `finish`; `fails` maps an ask to why it fails on the compute, once.

    `site` is the fake site whose destination really runs the instance: what Nova does there is seen by its libvirt.
    """

    def __init__(self, site: Any = None, host: str = "dst") -> None:
        self.site = site
        self.servers = {INSTANCE: Server(INSTANCE, "db7", host)}
        self.services = {name: {"state": "up", "status": "enabled", "forced_down": False} for name in ("src", "dst")}
        self.migrations: list[dict[str, Any]] = []
        self.down = self.keystone_down = False
        self.newest = (2, 98)
        self.roles = ["admin", "member"]
        self.tokens: set[str] = set()
        self.slow: set[str] = set()
        self.refuses: dict[str, str] = {}
        self.fails: dict[str, str] = {}
        self.denies: set[str] = set()
        self.loses: set[str] = set()  # asks that are carried out although their answer is a 503
        self.calls: list[tuple[str, str, int]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"cloud": self}))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def access(self, name: str = "test cloud") -> Access:
        auth = (
            ("auth_url", f"{self.url}/identity/v3"),
            ("application_credential_id", "id"),
            ("application_credential_secret", "right"),
        )
        return Access(name, auth_type="v3applicationcredential", auth=auth)

    # What tests read

    @property
    def server(self) -> Server:
        return self.servers[INSTANCE]

    def asked(self, what: str) -> int:
        """How often a change was asked for and answered."""
        return sum(path.endswith(f"#{what}") for _, path, _ in self.calls)

    def counted(self) -> Counter[str]:
        """Calls to Nova by kind, without logging in and asking for versions."""
        kinds: Counter[str] = Counter()
        for method, path, _ in self.calls:
            if path.startswith("/compute/v2.1/") and path != "/compute/v2.1/":
                kinds[f"{method} {re.sub(r'[0-9a-f-]{36}', 'ID', path.removeprefix('/compute/v2.1'))}"] += 1
        return kinds

    # What tests do to it

    def expire(self) -> None:
        """Every token is worthless from now on."""
        self.tokens.clear()

    def finish(self) -> None:
        """What is under way comes to its end."""
        for server in self.servers.values():
            if server.task_state in ("powering-off", "powering-on"):
                row = next(row for row in server.actions if row["action"] in ("stop", "start"))
                self.carry_out(server, row["action"], row)

    def user_does(self, what: str, user: str = SOMEBODY, **changes: Any) -> None:
        """Somebody else has Nova do this to the instance, at once."""
        self.record(self.server, what, user)
        for name, value in changes.items():
            setattr(self.server, name, value)
        if self.site is not None and "vm_state" in changes:
            self.site.destination.state = {"active": "running", "stopped": "shut off"}[changes["vm_state"]]

    def delete(self) -> None:
        self.record(self.server, "delete", SOMEBODY)
        del self.servers[INSTANCE]

    # Nova

    def record(self, server: Server, what: str, user: str) -> dict[str, Any]:
        server.updated += timedelta(seconds=1)
        row = {
            "action": what,
            "request_id": f"req-{uuid.uuid4()}",
            "instance_uuid": server.uuid,
            "start_time": (at := datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")),
            "updated_at": at,
            "user_id": user,
            "project_id": server.project,
            "message": None,
            "events": [],
        }
        server.actions.insert(0, row)
        return row

    def act(self, server: Server, body: dict[str, Any]) -> str:
        what = next(iter(body))
        if what in self.denies:
            raise Refusal(403, f"Policy doesn't allow os_compute_api:servers:{what} to be performed.")
        if what in self.refuses:
            raise Refusal(409, self.refuses[what])
        if what in ("lock", "unlock"):
            server.locked = what == "lock"
            server.locked_reason = (body["lock"] or {}).get("locked_reason") if what == "lock" else None
            return self.record(server, what, VOLMIG)["request_id"]
        name = what.removeprefix("os-")
        if server.locked and "admin" not in self.roles:
            raise Refusal(409, f"Instance {server.uuid} is locked")
        needed = {"stop": "active", "start": "stopped"}[name]
        if server.task_state:
            raise Refusal(409, f"Cannot '{name}' instance {server.uuid} while it is in task_state {server.task_state}")
        if server.vm_state != needed:
            raise Refusal(409, f"Cannot '{name}' instance {server.uuid} while it is in vm_state {server.vm_state}")
        row = self.record(server, name, VOLMIG)
        server.task_state = f"powering-{'off' if name == 'stop' else 'on'}"
        if what not in self.slow:
            self.carry_out(server, name, row)
        return row["request_id"]

    def carry_out(self, server: Server, name: str, row: dict[str, Any]) -> None:
        server.task_state = None
        if why := self.fails.pop(f"os-{name}", ""):
            row["message"] = "Error"
            row["events"] = [{"event": f"compute_{name}_instance", "result": "Error", "details": why}]
            return
        row["events"] = [{"event": f"compute_{name}_instance", "result": "Success", "details": None}]
        server.vm_state = "stopped" if name == "stop" else "active"
        if self.site is not None and server.uuid == INSTANCE:
            self.site.destination.turn(name == "start")

    def answer(self, method: str, path: str, query: dict[str, str], body: Any, version: tuple[int, int]) -> Any:
        """The document for a request to Nova; raises Refusal."""
        if path in ("", "/"):
            return self.versions()
        if method == "POST" and (found := re.fullmatch(r"/servers/([0-9a-f-]{36})/action", path)):
            self.need_admin(False)
            return self.act(self.known(found[1]), body)
        if path == "/servers/detail":
            self.need_admin(query.get("all_tenants") == "1")
            return {"servers": [each.document(version, {}) for each in self.page(query)]}
        if found := re.fullmatch(r"/servers/([0-9a-f-]{36})", path):
            return {"server": self.known(found[1]).document(version, {})}
        if found := re.fullmatch(r"/servers/([0-9a-f-]{36})/os-instance-actions", path):
            rows = self.known(found[1]).actions[: int(query.get("limit", 1000))]
            return {"instanceActions": [{key: row[key] for key in row if key != "events"} for row in rows]}
        if found := re.fullmatch(r"/servers/([0-9a-f-]{36})/os-instance-actions/(req-[0-9a-f-]{36})", path):
            rows = [row for row in self.known(found[1]).actions if row["request_id"] == found[2]]
            if not rows:
                raise Refusal(404, f"Action for request_id {found[2]} on instance {found[1]} not found")
            return {"instanceAction": rows[0]}
        return self.around(path, query)

    def around(self, path: str, query: dict[str, str]) -> Any:
        if path == "/os-services":
            self.need_admin()
            rows = [
                {"host": name, "binary": "nova-compute", "disabled_reason": None, **row}
                for name, row in self.services.items()
            ]
            return {"services": rows}
        if path == "/os-hypervisors/detail":
            self.need_admin()
            return {"hypervisors": self.hypervisors(query)}
        if path == "/os-migrations":
            self.need_admin()
            return {"migrations": [row for row in self.migrations if row["instance_uuid"] == query["instance_uuid"]]}
        raise Refusal(404, "The resource could not be found.")

    def known(self, wanted: str) -> Server:
        if wanted not in self.servers:
            raise Refusal(404, f"Instance {wanted} could not be found.")
        return self.servers[wanted]

    def page(self, query: dict[str, str]) -> list[Server]:
        rows = sorted(self.servers.values(), key=lambda each: each.uuid)
        after = [each for each in rows if each.uuid > query.get("marker", "")]
        return after[: int(query.get("limit", 1000))]

    def hypervisors(self, query: dict[str, str]) -> list[dict[str, Any]]:
        rows = [
            {
                "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
                "hypervisor_hostname": f"{name}.example.org",
                "hypervisor_type": "QEMU",
                "state": row["state"],
                "status": row["status"],
                "service": {"host": name, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "disabled_reason": None},
            }
            for name, row in self.services.items()
        ]
        rows.sort(key=lambda row: row["id"])
        after = [row for row in rows if row["id"] > query.get("marker", "")]
        return after[: int(query.get("limit", 1000))]

    def need_admin(self, needed: bool = True) -> None:
        if needed and "admin" not in self.roles:
            raise Refusal(403, "Policy doesn't allow this to be performed.")

    def versions(self) -> dict[str, Any]:
        return {
            "version": {
                "id": "v2.1",
                "status": "CURRENT",
                "version": f"2.{self.newest[1]}",
                "min_version": "2.1",
                "updated": "2013-07-23T11:33:21Z",
                "links": [{"rel": "self", "href": f"{self.url}/compute/v2.1/"}],
            }
        }

    # Keystone

    def log_in(self, body: Any) -> tuple[str, dict[str, Any]]:
        identity = body["auth"]["identity"]
        secret = identity.get("application_credential", {}).get("secret") or identity.get("password", {}).get(
            "user", {}
        ).get("password")
        if secret != "right":
            raise Refusal(401, "The request you have made requires authentication.")
        token = uuid.uuid4().hex
        self.tokens.add(token)
        soon = datetime.now(UTC) + timedelta(hours=1)
        return token, {
            "token": {
                "methods": ["application_credential"],
                "user": {"id": VOLMIG, "name": "volmig", "domain": {"id": "default", "name": "Default"}},
                "project": {"id": PROJECT, "name": "service", "domain": {"id": "default", "name": "Default"}},
                "roles": [{"id": name, "name": name} for name in self.roles],
                "expires_at": soon.strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
                "issued_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z"),
                "catalog": [
                    self.service("compute", "nova", "/compute/v2.1"),
                    self.service("identity", "keystone", "/identity/v3"),
                    self.service("image", "glance", "/image"),
                ],
            }
        }

    def service(self, kind: str, name: str, path: str) -> dict[str, Any]:
        point = {"id": kind, "interface": "public", "region": "one", "region_id": "one", "url": self.url + path}
        return {"id": name, "type": kind, "name": name, "endpoints": [point]}


class Handler(BaseHTTPRequestHandler):
    """Every request to one cloud, which is an attribute of a subclass."""

    cloud: Cloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go apart: else each answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        self.serve(None)

    def do_POST(self) -> None:
        self.serve(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null"))

    def serve(self, body: Any) -> None:
        parts = urlsplit(self.path)
        what = f"{parts.path}#{next(iter(body))}" if parts.path.endswith("/action") and body else parts.path
        status, document, headers = self.outcome(parts.path, dict(parse_qsl(parts.query)), body)
        self.cloud.calls.append((self.command, what, status))
        self.reply(status, document, headers)

    def outcome(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any, dict[str, str]]:
        try:
            if path.startswith("/identity"):
                return self.keystone(path, body)
            if path.startswith("/image"):
                return self.glance(path)
            return self.nova(path.removeprefix("/compute/v2.1"), query, body)
        except Refusal as refusal:
            name = {404: "itemNotFound", 403: "forbidden", 409: "conflictingRequest"}.get(refusal.status, "error")
            return refusal.status, {name: {"code": refusal.status, "message": refusal.message}}, {}

    def keystone(self, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        if self.cloud.keystone_down:
            raise Refusal(503, "Service Unavailable")
        if path.rstrip("/") == "/identity/v3":
            link = {"rel": "self", "href": f"{self.cloud.url}/identity/v3/"}
            return 200, {"version": {"id": "v3.14", "status": "stable", "links": [link]}}, {}
        if path == "/identity/v3/projects":
            self.known_token()
            self.cloud.need_admin()
            return 200, {"projects": [{"id": PROJECT, "name": "databases"}]}, {}
        token, document = self.cloud.log_in(body)
        return 201, document, {"X-Subject-Token": token}

    def glance(self, path: str) -> tuple[int, Any, dict[str, str]]:
        self.known_token()
        found = re.fullmatch(r"/image/v2/images/([0-9a-f-]{36})", path)
        if found is None:
            return (
                200,
                {
                    "versions": [
                        {
                            "id": "v2.9",
                            "status": "CURRENT",
                            "links": [{"rel": "self", "href": f"{self.cloud.url}/image/v2/"}],
                        }
                    ]
                },
                {},
            )
        for server in self.cloud.servers.values():
            if server.image == found[1]:
                return 200, {"id": server.image, "name": "cirros", **server.properties}, {}
        raise Refusal(404, "No image found")

    def nova(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any, dict[str, str]]:
        if self.cloud.down:
            raise Refusal(503, "Service Unavailable")
        if path not in ("", "/"):
            self.known_token()
        version = tuple(
            int(part) for part in self.headers.get("OpenStack-API-Version", "compute 2.1").split()[1].split(".")
        )
        if version > self.cloud.newest:
            raise Refusal(406, f"Version {version} is not supported by the API.")
        found = self.cloud.answer(self.command, path, query, body, version)
        if self.command == "POST":
            if next(iter(body)) in self.cloud.loses:
                self.cloud.loses.discard(next(iter(body)))
                raise Refusal(503, "the proxy lost the answer")
            return 202, None, {"x-openstack-request-id": found}
        return 200, found, {}

    def known_token(self) -> None:
        if self.headers.get("X-Auth-Token") not in self.cloud.tokens:
            raise Refusal(401, "The request you have made requires authentication.")

    def reply(self, status: int, document: Any, headers: dict[str, str]) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
