"""Hypervisors by the hundred: a real SSH server for each, on its own loopback address, before fakes that behave.

`python -m tests.fleet.servers FOLDER` serves what FOLDER/servers.json says (see Settings) and writes there:
`hosts.json`, how each is reached, once all listen; `seconds.jsonl`, a line a second of what the servers counted;
`gaps.jsonl`, a line for each step that began after another one had ended. It needs the data directory of a web process
(VOLMIG_DATA), for the keys by which approvals are sealed.

Each hypervisor is the source of one migration, the relay of the one before and the destination of the one before that.
Where the real hostctl would take part in a second what it takes is slept: `call` seconds for each call.
"""

import asyncio
import itertools
import json
import os
import resource
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncssh

from hosts.remote import hostctl
from hosts.remote.host import Answer, Request
from hosts.remote.hostctl import policy
from hosts.remote.hostctl.request import TARGETS_CAP
from hosts.remote.hostctl.transient_units import BEAT
from tests import fakes, policies

SENT = ("state", "evidence", "commands", "error", "unit", "boot_id")  # fields of an answer that hostctl sends
REPORT_EVERY = 0.25  # seconds, as hostctl's watch
TOTAL = 10_000_000  # "bytes" of each conversion, of which a thousand are done in a second: see Unit
NETWORKS = ("10.20.0.0/16", "10.30.0.0/16")
USER = "volmig"


@dataclass
class Settings:
    """`seconds` by verb is how long its unit runs; what is not named ends at once."""

    hypervisors: int
    port: int
    key: str  # the public key that is let in
    call: float = 0.12
    seconds: dict[str, float] = field(default_factory=dict)


def name_of(number: int) -> str:
    return f"cmp-{number:03}"


def address_of(number: int) -> str:
    return f"127.1.{number // 200}.{number % 200 + 1}"


def data_addresses(number: int) -> tuple[str, str]:
    return tuple(f"10.{network}.{number // 200}.{number % 200 + 1}" for network in (20, 30))


def instance(number: int) -> str:
    """The id of the instance of this migration, whose disk is on the hypervisor two further on."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"instance {number}"))


def volume_uuid(number: int) -> str:
    digits = uuid.uuid5(uuid.NAMESPACE_OID, f"volume {number}").hex
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(digits[begin:end] for begin, end in itertools.pairwise(cuts))


class Site(fakes.Site):
    """What one migration is about; its hosts are parts of three hypervisors."""

    def __init__(self, number: int, machines: "list[Machine]") -> None:
        super().__init__(instance=instance(number))
        self.number = number
        name, [volume] = fakes.SOURCE_LV.replace(fakes.INSTANCE, instance(number)), self.source.volumes.values()
        volume.uuid = volume_uuid(number)
        self.source.volumes = {name: volume}
        self.source.facts = {"source_address": data_addresses(number)[0]}
        for further, host in enumerate(self.hosts):
            host.share_free = 9 << 40
            machines[(number + further) % len(machines)].take(host, ROLES[further])


ROLES = ("source", "relay", "destination")


class Part(fakes.FakeHost):
    """What a hypervisor is for one migration; its owner, its policy and its boot ID are the hypervisor's."""

    machine: "Machine"

    @property
    def rules(self) -> policy.Reading:
        return self.machine.rules

    @property
    def owner(self) -> dict[str, Any]:
        return self.machine.owner

    @owner.setter
    def owner(self, owner: dict[str, Any]) -> None:
        self.machine.owner = owner


class Machine:
    """One hypervisor: which of its parts a request is about is seen by its migration, and of a new one by its verb."""

    def __init__(self, number: int) -> None:
        self.number, self.name, self.owner = number, name_of(number), {}
        self.boot_id = uuid.uuid4().hex
        self.parts: dict[str, Part] = {}
        self.jobs: dict[str, Part] = {}
        self.readers: set[asyncio.Queue[dict[str, Any]]] = set()

    def take(self, host: Any, role: str) -> None:
        host.__class__, host.machine, host.name, host.boot_id = Part, self, self.name, self.boot_id
        host.owner = {}
        self.parts[role] = host

    @cached_property
    def rules(self) -> policy.Reading:
        allowed = {"roles": list(policy.ROLES), "networks": list(NETWORKS), "volume_groups": [policies.GROUP]}
        shares = {"shares": [fakes.SHARE], "directories": [fakes.INSTANCES]}
        return policies.reading(self.name, **allowed, **shares)

    def part(self, request: Request) -> Part:
        for role in ROLES:
            if request.verb == f"{role}_facts" and request.job:
                self.jobs[request.job] = self.parts[role]
        return self.jobs.get(request.job) or self.parts["source"]

    def hear(self, request: Request) -> Answer:
        if request.verb == "inventory":
            return self.parts["source"].answer("done", self.inventory())
        if request.verb == "reach":
            return self.reach(request)
        if request.verb == "leftovers":
            return self.leftovers(request)
        return self.part(request).hear(request)

    def inventory(self) -> dict[str, Any]:
        source, relay, destination = (self.parts[role] for role in ROLES)
        volumes = [(name, each) for part in (source, relay) for name, each in part.volumes.items()]
        disk = {"source": destination.site.live, "format": "qcow2"}
        number = destination.site.number
        group = {"name": policies.GROUP, "uuid": f"vg-{self.name}", "size": 20 << 30, "free": relay.free}
        mount = {"source": fakes.SHARE, "target": fakes.INSTANCES, "size": 20 << 40, "free": 9 << 40}
        return {
            "hostname": self.name, "boot_id": self.boot_id, "time": time.time(), "tools": {}, "features": {},
            "nfs_server": {}, "warnings": [],
            "volume_groups": [group | {"extent_size": 4 << 20}],
            "logical_volumes": [
                {"vg": policies.GROUP, "name": name, "uuid": each.uuid[:38],
                 "size": each.size, "attributes": "-wi-a-----",
                 "tags": sorted(each.tags), "open": len(each.holders)}
                for name, each in volumes
            ],
            "mounts": [mount | {"options": "rw"}],
            "addresses": [
                {"address": each, "prefix": 16, "interface": f"eth{at}"}
                for at, each in enumerate(data_addresses(self.number), 1)
            ],
            "domains": [
                {"uuid": instance(number), "name": f"vm-{number}", "state": destination.state, "disks": [disk]}
            ],
        }  # fmt: skip

    def reach(self, request: Request) -> Answer:
        """Refused beyond what hostctl takes in one request."""
        if faults := policy.objections(self.rules, "reach", request.args, True):
            return fakes.Refusal(faults[0].code, faults[0].found).answer
        if len(request.args["targets"]) > TARGETS_CAP:
            return fakes.Refusal("bad-request", "too many targets").answer
        results = [target | {"state": "open"} for target in request.args["targets"]]
        return self.parts["source"].answer("done", {"results": results})

    def leftovers(self, request: Request) -> Answer:
        said = [part.leftovers({}) for part in self.parts.values()]
        return self.parts["source"].answer(
            "done", said[-1] | {"things": [each for one in said for each in one["things"]]}
        )

    def tell(self, line: dict[str, Any]) -> None:
        for reader in self.readers:
            reader.put_nowait(line)


class Unit:
    """One step under way. What is done of it are the milliseconds since the servers started, of TOTAL.

    So whoever sees the figures knows when they were reported.
    """

    def __init__(self, fleet: "Fleet", part: Part, key: str, request: Request) -> None:
        self.fleet, self.part, self.key, self.request = fleet, part, key, request
        step, direction, attempt = key.split("-")
        unit = f"volmig-{request.job.replace('-', '')}-{key}"
        self.head = {
            "job": request.job, "step": step, "direction": direction, "attempt": int(attempt), "unit": unit
        }  # fmt: skip

    async def run(self) -> None:
        until = time.time() + self.fleet.settings.seconds[self.request.verb]
        while time.time() < until and self.key in self.part.running:
            await asyncio.sleep(REPORT_EVERY)
            now = time.time()
            done = min(TOTAL, int((now - self.fleet.began) * 1000))
            figures = {"done": done, "total": TOTAL, "read": done, "written": done, "at": now}
            self.part.machine.tell({"progress": self.head | figures})
        if self.part.running.pop(self.key, None):
            answer = self.part.kept[self.request.job][self.key] = self.part.act(self.request)
            self.fleet.ended[self.request.job] = (self.head["step"], time.time())
            self.part.machine.tell({"ended": self.head | {"state": answer.state}})


class Fleet:
    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder, self.began = settings, folder, time.time()
        self.machines = [Machine(number) for number in range(settings.hypervisors)]
        self.sites = [Site(number, self.machines) for number in range(settings.hypervisors)]
        for machine in self.machines:
            for part in machine.parts.values():
                part.slow = set(settings.seconds)
        self.counted: Counter[str] = Counter()
        self.ended: dict[str, tuple[str, float]] = {}  # by migration: the unit that ended last, and when
        self.gaps = (folder / "gaps.jsonl").open("w", buffering=1)
        self.units: set[asyncio.Task[None]] = set()
        self.allowed = asyncssh.import_public_key(settings.key)

    async def serve(self) -> None:
        hosts = {}
        for machine in self.machines:
            key = asyncssh.generate_private_key("ssh-ed25519")
            await asyncssh.create_server(
                lambda machine=machine: Server(self, machine), address_of(machine.number), self.settings.port,
                server_host_keys=[key], encoding=None, login_timeout=60, backlog=100, compression_algs=None,
            )  # fmt: skip
            public = " ".join(key.export_public_key().decode().split()[:2])
            hosts[machine.name] = {"address": address_of(machine.number), "host_key": public}
        written(self.folder / "hosts.json", {"began": self.began, "hosts": hosts})
        with (self.folder / "seconds.jsonl").open("w", buffering=1) as seconds:
            while True:
                await asyncio.sleep(1)
                seconds.write(json.dumps({"at": time.time(), **self.counted}) + "\n")

    def answer(self, machine: Machine, request: Request) -> Answer:
        part = machine.part(request)
        self.note_gap(part, request)
        before = set(part.running)
        answer = machine.hear(request)
        for key in set(part.running) - before:
            task = asyncio.get_running_loop().create_task(Unit(self, part, key, part.running[key]).run())
            self.units.add(task)
            task.add_done_callback(self.units.discard)
        if answer.state in ("refused", "failed", "lost"):
            self.counted[f"{answer.state} {answer.code} {request.verb}"] += 1
        return answer

    def note_gap(self, part: Part, request: Request) -> None:
        """From the end of a unit to the first request for the next step of its migration."""
        key = f"{request.step}-{request.direction}-{request.attempt}"
        if not request.step or request.job not in self.ended or key in part.kept.get(request.job, {}):
            return
        step, at = self.ended.pop(request.job)
        gap = {"job": request.job, "after": step, "before": request.step, "at": at, "seconds": time.time() - at}
        self.gaps.write(json.dumps(gap) + "\n")


class Server(asyncssh.SSHServer):
    """Counts logins and open connections; lets in the one key for the one user."""

    def __init__(self, fleet: Fleet, machine: Machine) -> None:
        self.fleet, self.machine = fleet, machine

    def connection_made(self, conn: Any) -> None:
        self.fleet.counted["handshakes"] += 1
        self.fleet.counted["open"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.fleet.counted["open"] -= 1

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        is_ours = username == USER and key == self.fleet.allowed
        self.fleet.counted["offers" if is_ours else "refused logins"] += 1
        return is_ours

    def auth_completed(self) -> None:
        self.fleet.counted["logins"] += 1

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return Session(self.fleet, self.machine)


class Session(asyncssh.SSHServerSession[bytes]):
    """One run of the forced command: a call of hostctl, or its watch."""

    def __init__(self, fleet: Fleet, machine: Machine) -> None:
        self.fleet, self.machine, self.heard = fleet, machine, b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, chan: Any) -> None:
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def data_received(self, data: bytes, datatype: Any) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.task = asyncio.get_running_loop().create_task(self.run(json.loads(self.heard)))
        self.task.add_done_callback(self.ended)
        return True

    def ended(self, task: "asyncio.Task[None]") -> None:
        """What fails here is a fault of the fakes, and in the log."""
        if not task.cancelled() and (error := task.exception()):
            traceback.print_exception(error)
            self.channel.exit(1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.task:
            self.task.cancel()

    async def run(self, document: dict[str, Any]) -> None:
        self.fleet.counted[f"calls of {document['verb']}"] += 1
        if document["verb"] == "watch":
            return await self.watch()
        await asyncio.sleep(self.fleet.settings.call)
        wanted = {name: value for name, value in document.items() if name in Request.__dataclass_fields__}
        answer = self.fleet.answer(self.machine, Request(**wanted))
        whole = {name: getattr(answer, name) for name in SENT}
        whole |= {"hash": hostctl.source_hash(), "protocol": hostctl.PROTOCOL}
        with suppress(OSError):  # whoever asked has gone
            self.channel.write(json.dumps(whole).encode())
            self.channel.exit(0)
        return None

    async def watch(self) -> None:
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.machine.readers.add(lines)
        self.fleet.counted["watches"] += 1
        beat = 0.0
        try:
            while not self.channel.is_closing():
                await asyncio.sleep(REPORT_EVERY)
                said = list(drained(lines))
                if time.monotonic() - beat >= BEAT:
                    beat = time.monotonic()
                    said.append({"beat": time.time()})
                if said:
                    self.channel.write(b"".join(json.dumps(line).encode() + b"\n" for line in said))
        except OSError:
            return
        finally:
            self.machine.readers.discard(lines)
            self.fleet.counted["watches"] -= 1


def drained(lines: "asyncio.Queue[dict[str, Any]]") -> Iterator[dict[str, Any]]:
    while not lines.empty():
        yield lines.get_nowait()


def written(path: Path, document: dict[str, Any]) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document))
    part.replace(path)


def main() -> None:
    folder = Path(sys.argv[1])
    settings = Settings(**json.loads((folder / "servers.json").read_text()))
    files = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")
    asyncio.run(Fleet(settings, folder).serve())


if __name__ == "__main__":
    main()
