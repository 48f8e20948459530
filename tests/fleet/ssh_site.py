"""Fake hypervisors behind real SSH for many migrations at once; each migration has its own site of tests/fakes.py.

Two sources, two relays and two destinations, each on a loopback address. They count what is done, and how often.
"""

import contextlib
import json
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import paramiko

from hosts.remote import hostctl
from hosts.remote.host import Answer, Request
from hosts.remote.hostctl import policy
from tests import fakes, policies
from tests.rig import free_port

# Name, loopback address, data addresses and role of each.
HOSTS = {
    f"{name}-{number}": (f"127.1.{number}.{at}", [f"10.{net}.0.{at + number}" for net in nets], role)
    for number in (1, 2)
    for name, at, nets, role in (
        ("src", 10, (20,), "source"),
        ("jump", 20, (20, 30), "relay"),
        ("dst", 30, (30,), "destination"),
    )
}
SENT = ("state", "evidence", "commands", "error", "unit", "boot_id")  # fields of an answer that hostctl sends
SLOW = ("convert", "seal", "compare", "stage", "stage_verify")
ROLES = {"source_facts": "source", "relay_facts": "relay", "destination_facts": "destination"}
TELL_EVERY = 0.25


def instance(number: int) -> str:
    """The id of the instance of this migration."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"instance-{number}.example.org"))


def volume(number: int) -> str:
    return f"{instance(number)}_disk.local"


def volume_uuid(number: int) -> str:
    letters = uuid.uuid5(uuid.NAMESPACE_DNS, f"volume-{number}.example.org").hex
    return "-".join([letters[:6], *(letters[at : at + 4] for at in range(6, 26, 4)), letters[26:]])


class Host(fakes.FakeHost):
    """One hypervisor as one migration sees it."""

    role = ""

    @property
    def rules(self) -> policy.Reading:
        return policies.reading(self.name, self.role)

    def act(self, request: Request) -> Answer:
        self.site.acts[self.name, request.verb, request.step, request.direction] += 1
        return super().act(request)


class Site(fakes.Site):
    """The three hypervisors of one migration; `acts` counts what was done there."""

    def __init__(self, number: int) -> None:
        super().__init__(instance=instance(number))
        self.acts: Counter[tuple[str, str, str, str]] = Counter()
        for role, name in roles(number).items():
            host: Any = getattr(self, role)
            host.__class__, host.name, host.role = Host, name, role
            host.slow = set(SLOW)
            host.free, host.share_free = 8 << 40, 9 << 40
        (volume,) = self.source.volumes.values()
        volume.uuid = volume_uuid(number)

    @property
    def twice(self) -> dict[tuple[str, str, str, str], int]:
        """What was done more than once; a step that is undone and done again would be here, too."""
        return {act: count for act, count in self.acts.items() if count > 1}


def roles(number: int) -> dict[str, str]:
    """The names of the hypervisors of this migration."""
    return {role: f"{name}-{1 + number % 2}" for name, role in (("src", "source"), ("jump", "relay"))} | {
        "destination": f"dst-{1 + number % 2}"
    }


class Server(paramiko.ServerInterface):
    """Lets every key in, and gives each command to the site."""

    def __init__(self, site: "SshSite", name: str) -> None:
        self.site, self.name = site, name

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.site.command, args=(self.name, channel), daemon=True).start()
        return True


class SshSite:
    """Use it with `with`; migrations are numbered by the test, and `sites` has those that volmig has begun."""

    def __init__(self, known: int, seconds: float = 1.0) -> None:
        self.known, self.seconds = known, seconds  # migrations that there can be; what each slow verb takes
        self.lock = threading.RLock()
        self.sites: dict[int, Site] = {}
        self.numbers = {instance(number): number for number in range(known)}
        self.of_job: dict[str, int] = {}
        self.ends: dict[tuple[int, str, str], float] = {}  # when what runs comes to its end
        self.watching: dict[str, list[paramiko.Channel]] = {name: [] for name in HOSTS}
        self.over = threading.Event()
        self.key = paramiko.ECDSAKey.generate()
        self.port = free_port()
        self.listeners: list[socket.socket] = []

    @property
    def host_key(self) -> str:
        return f"{self.key.get_name()} {self.key.get_base64()}"

    def __enter__(self) -> "SshSite":
        for name, (address, _, _) in HOSTS.items():
            listener = socket.create_server((address, self.port), backlog=64)
            self.listeners.append(listener)
            threading.Thread(target=self.accept, args=(name, listener), daemon=True).start()
        threading.Thread(target=self.work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for listener in self.listeners:
            listener.close()

    def accept(self, name: str, listener: socket.socket) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                transport = paramiko.Transport(listener.accept()[0])
                transport.add_server_key(self.key)
                transport.start_server(event=threading.Event(), server=Server(self, name))

    # What runs there

    def command(self, name: str, channel: paramiko.Channel) -> None:
        """hostctl: one request on its standard input, one answer."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException), channel:
            document = json.loads(channel.makefile("rb").read())
            if document["verb"] == "watch":
                self.watch(name, channel)
            else:
                channel.sendall(json.dumps(self.answered(name, document)).encode())
                channel.send_exit_status(0)

    def answered(self, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """The document that hostctl prints."""
        wanted = {key: value for key, value in document.items() if key in Request.__dataclass_fields__}
        with self.lock:
            answer = self.answer(name, Request(**wanted))
        own = {"hash": hostctl.source_hash(), "protocol": hostctl.PROTOCOL}
        return {key: getattr(answer, key) for key in SENT} | own

    def watch(self, name: str, channel: paramiko.Channel) -> None:
        with self.lock:
            self.watching[name].append(channel)
        try:
            while not self.over.is_set() and not channel.closed:
                channel.sendall(json.dumps({"beat": time.time()}).encode() + b"\n")
                time.sleep(1)
        finally:
            with self.lock:
                self.watching[name].remove(channel)

    def answer(self, name: str, request: Request) -> Answer:
        if request.verb in OF_HOST:
            return Answer("done", OF_HOST[request.verb](self, name, request.args), boot_id=f"boot of {name}")
        number = self.number_of(request)
        if number is None:  # what is about a migration that has done nothing here yet
            site = Site(next(each for each in (0, 1) if roles(each)[HOSTS[name][2]] == name))
        else:
            site = self.sites.setdefault(number, Site(number))
        host = getattr(site, HOSTS[name][2])
        host.boot_id = f"boot of {name}"
        before = set(host.running)
        answer: Answer = host.hear(request)
        for key in set(host.running) - before:
            assert number is not None, f"{request.verb} before any facts were read"
            self.ends[number, host.role, key] = time.monotonic() + self.seconds
        return answer

    def number_of(self, request: Request) -> int | None:
        """Whose migration a request is about; the first facts that are read say it."""
        if request.job not in self.of_job:
            named = str(request.args.get("instance") or str(request.args.get("lv"))[:36])
            if named in self.numbers and request.verb in ROLES:
                self.of_job[request.job] = self.numbers[named]
        return self.of_job.get(request.job)

    def work(self) -> None:
        """Progress of what runs, and its end, as each hypervisor tells its watchers."""
        began = time.monotonic()
        while not self.over.wait(TELL_EVERY):
            lines: dict[str, list[dict[str, Any]]] = {}
            with self.lock:
                for (number, role, key), end in list(self.ends.items()):
                    host, now = getattr(self.sites[number], role), time.monotonic()
                    if now >= end or key not in host.running:
                        del self.ends[number, role, key]
                    lines.setdefault(host.name, []).append(line(host, key, now >= end, int((now - began) * 1e6)))
                followers = {name: list(self.watching[name]) for name in lines}
            for name, channels in followers.items():
                sent = b"".join(json.dumps(each).encode() + b"\n" for each in lines[name] if each)
                for channel in channels:
                    with contextlib.suppress(OSError):
                        channel.sendall(sent)

    # For the test

    def run_twice(self) -> dict[int, dict[tuple[str, str, str, str], int]]:
        """Of each migration, what was done more than once."""
        with self.lock:
            return {number: site.twice for number, site in self.sites.items() if site.twice}

    def channels(self) -> dict[str, int]:
        """How many watchers follow each hypervisor now."""
        with self.lock:
            return {name: len(followers) for name, followers in self.watching.items()}


def line(host: Any, key: str, ended: bool, done: int) -> dict[str, Any]:
    """What a hypervisor tells of one run, which ends when its time is over; nothing of one that was stopped."""
    request = host.running.get(key)
    if request is None:
        return {}
    step, direction, attempt = key.split("-")
    unit = f"volmig-{request.job.replace('-', '')}-{key}"
    head = {"job": request.job, "step": step, "direction": direction, "attempt": int(attempt), "unit": unit}
    if not ended:
        figures = {"done": done, "total": 1 << 40, "read": done, "written": done, "at": time.time()}
        return {"progress": head | figures}
    host.running.pop(key)
    host.kept[request.job][key] = host.act(request)
    return {"ended": {**head, "state": host.kept[request.job][key].state}}


def hello(site: SshSite, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"hostname": name, "boot_id": f"boot of {name}", "time": time.time(), "tools": {}, "features": {}}


def inventory(site: SshSite, name: str, args: dict[str, Any]) -> dict[str, Any]:
    _, addresses, role = HOSTS[name]
    mine = [number for number in range(site.known) if roles(number)[role] == name]
    volumes = [
        {"vg": "vg_nova0", "name": volume(number), "uuid": volume_uuid(number), "size": 512 << 20,
         "attributes": "-wi-a-----", "tags": [], "open": 0}
        for number in mine
    ]  # fmt: skip
    domains = [
        {"uuid": instance(number), "name": f"vm-{number}", "state": "running",
         "disks": [{"source": fakes.LIVE.replace(fakes.INSTANCE, instance(number)), "format": "qcow2"}]}
        for number in mine
    ]  # fmt: skip
    group = {"name": "vg_nova0", "uuid": f"vg-{name}", "size": 20 << 40, "free": 8 << 40, "extent_size": 4 << 20}
    mount = {"source": fakes.SHARE, "target": fakes.INSTANCES, "size": 20 << 40, "free": 9 << 40, "options": "rw"}
    return hello(site, name, args) | {
        "nfs_server": {},
        "volume_groups": [] if role == "destination" else [group],
        "logical_volumes": volumes if role == "source" else [],
        "mounts": [] if role == "source" else [mount],
        "addresses": [{"address": each, "prefix": 24, "interface": "eth1"} for each in addresses],
        "domains": domains if role == "destination" else [],
    }


def reach(site: SshSite, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"results": [target | {"state": "open"} for target in args["targets"]]}


def leftovers(site: SshSite, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"things": [], "more": 0, "missed": [], "shares": [], "time": time.time()}


OF_HOST: dict[str, Callable[[SshSite, str, dict[str, Any]], dict[str, Any]]] = {
    "hello": hello,
    "inventory": inventory,
    "reach": reach,
    "leftovers": leftovers,
    "policy": lambda site, name, args: policy.report(policies.reading(name, HOSTS[name][2])) | {"time": time.time()},
}
