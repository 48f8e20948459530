"""A site in memory: three hypervisors that behave, and refuse, as hostctl does; whole jobs run on it without a lab."""

import copy
import hashlib
import queue
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hosts.remote.host import Address, Answer, HostKeyChanged, Request, Unreachable
from hosts.remote.hostctl import acts, authority, policy

MIB = 1 << 20
SHARE = "filer:/vol/nova"
INSTANCES = "/var/lib/nova/instances"
INSTANCE = "0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa"
LIVE = f"{INSTANCES}/{INSTANCE}/disk.local"
SOURCE_LV = f"{INSTANCE}_disk.local"
READS = {"hello", "policy", "inventory", "leftovers", "status", "source_facts", "relay_facts", "destination_facts"} | {
    "instance_state"
}


class Refusal(Exception):  # noqa: N818 - the word that tests read
    def __init__(self, code: str, found: str, state: str = "refused", touched: bool | None = False, **evidence: Any):
        self.answer = Answer(
            state,
            {},
            [],
            {
                "code": code,
                "tried": "do it",
                "found": found,
                "touched": touched,
                "next": "Look at it.",
                "evidence": evidence,
            },
        )
        super().__init__(found)


@dataclass
class File:
    inode: int
    content: str
    size: int = 20 * MIB
    mtime_ns: int = 0

    def identity(self) -> dict[str, int]:
        return {
            "inode": self.inode,
            "file_size": self.size,
            "mtime_ns": self.mtime_ns or 1_000 + self.inode,
            "uid": 64055,
            "gid": 64055,
            "mode": 0o644,
        }


@dataclass
class Volume:
    uuid: str
    size: int
    content: str = ""
    sealed: str = ""  # what its content was when its hash was noted
    tags: set[str] = field(default_factory=set)
    holders: list[str] = field(default_factory=list)
    permission: str = "writeable"
    writes: int = 40
    filesystem: str = ""


class Site:
    """Source, relay and destination, and the files of the share that the last two mount; `live` is the instance's."""

    def __init__(self, size: int = 512 * MIB, instance: str = INSTANCE, source: str = "") -> None:
        self.size, self.live = size, LIVE.replace(INSTANCE, instance)
        self.files = {self.live: File(4711, "old disk")}
        self.inodes = iter(range(4712, 9999))
        self.source, self.relay, self.destination = (FakeHost(self, name) for name in ("src", "jump", "dst"))
        volume = Volume("aaaaaa-bbbb-bbbb-bbbb-bbbb-bbbb-cccccc", size, "new disk")
        self.source.volumes[SOURCE_LV.replace(INSTANCE, source or instance)] = volume
        self.destination.state = "running"
        self.clock = time.time  # what all hosts take for the present; whoever moves volmig's clock moves this one, too
        self.unlocked: list[str] = []  # what was done to the instance's disk while anybody could start it
        self.carry = lambda host, request: host.hear(request)  # what lies between volmig and the hosts; tests break it

    def connect(self, address: Address) -> "FakeHost":
        host = next(host for host in (self.source, self.relay, self.destination) if host.name == address.host)
        if host.another_key:
            raise HostKeyChanged(f"log in to {host.name}", "it offers another key", "Find out why.")
        host.check_reachable()
        return host

    @property
    def hosts(self) -> "tuple[FakeHost, FakeHost, FakeHost]":
        return self.source, self.relay, self.destination

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """What happens within leaves no trace: files and hosts are afterwards as they were before."""
        roles = ("source", "relay", "destination", "carry")
        site, hosts = remembered(self, *roles), [remembered(host, "site", "lines") for host in self.hosts]
        carry = self.carry
        try:
            yield
        finally:
            vars(self).update(site, carry=carry)
            for host, was in zip(self.hosts, hosts, strict=True):
                vars(host).update(was)

    def leftovers(self) -> list[str]:
        """Everything that looks like ours, on any host or on the share."""
        found = [
            f"{host.name} {thing}"
            for host in (self.source, self.relay, self.destination)
            for thing in (*host.mounts, *host.exports, *host.held, *host.marks, *host.kept)
        ]
        tagged = [
            f"{host.name} {name}"
            for host in (self.source, self.relay)
            for name, volume in host.volumes.items()
            if volume.tags
        ]
        return found + tagged + [path for path in self.files if "/.volmig/" in path]


def remembered(thing: Any, *without: str) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in vars(thing).items() if name not in without}


class FakeHost:
    """One hypervisor. `slow` verbs stay running until `finish`; `faults` are raised instead of the act, once each."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.reachable, self.another_key = True, False
        self.changes: dict[str, Any] = {}  # of its policy
        self.boot_id = uuid.uuid4().hex
        self.volumes: dict[str, Volume] = {}
        self.free = 8 << 30
        self.share_free = 9 << 30
        self.mounts: dict[str, str] = {}
        self.exports: dict[str, str] = {}
        self.held: set[str] = set()
        self.marks: dict[str, str] = {}
        self.state = "shut off"
        self.kept: dict[str, dict[str, Answer]] = {}
        self.fences: dict[str, int] = {}
        self.owner: dict[str, Any] = {}
        self.running: dict[str, Request] = {}
        self.slow: set[str] = set()
        self.faults: dict[str, Refusal] = {}
        self.facts: dict[str, Any] = {}
        self.runs: list[dict[str, Any]] = []  # when libvirt started the instance, and how each run ended
        self.requests: list[Request] = []
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()

    # The Host protocol

    def call(self, request: Request, timeout: float = 20) -> Answer:
        self.check_reachable()
        return self.site.carry(self, request)

    def hear(self, request: Request) -> Answer:
        self.requests.append(request)
        try:
            self.admit(request)
            if request.verb in READS:
                return self.answer("done", getattr(self, request.verb)(request.args | {"job": request.job}))
            if request.verb == "fence":
                return self.shut_out(request)
            return self.submit(request)
        except Refusal as refusal:
            return refusal.answer

    def watch(self):
        while (line := self.lines.get()) is not None:
            yield line
        raise Unreachable(f"watch {self.name}", "the stream ended")

    def close(self) -> None:
        pass

    def __enter__(self) -> "FakeHost":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    # What tests do to it

    def check_reachable(self) -> None:
        if not self.reachable:
            raise Unreachable(f"reach {self.name}", "connection refused")

    def finish(self) -> None:
        """Let what runs come to its end."""
        for key, request in list(self.running.items()):
            self.running.pop(key)
            self.kept[request.job][key] = self.act(request)

    def kill(self) -> None:
        """What runs dies without a result."""
        for key, request in list(self.running.items()):
            self.running.pop(key)
            lost = {"code": "lost", "tried": "run", "found": "it ended without a result", "touched": None, "next": ""}
            self.kept[request.job][key] = self.answer("lost", error=lost)

    def reboot(self) -> None:
        self.boot_id = uuid.uuid4().hex
        self.kill()
        self.mounts.clear()
        self.exports.clear()
        self.held.clear()

    def asked(self, verb: str) -> list[Request]:
        return [request for request in self.requests if request.verb == verb]

    # Mutating verbs: fence, one stored result for each attempt, then the act

    def submit(self, request: Request) -> Answer:
        if request.verb == "forget":
            return self.forget(request)
        self.raise_fence(request)
        results, key = self.kept.setdefault(request.job, {}), f"{request.step}-{request.direction}-{request.attempt}"
        if key in results:
            return results[key]
        unit = f"volmig-{request.job.replace('-', '')}-{key}"
        if key in self.running:
            return self.answer("running", unit=unit)
        if request.stops:
            self.running.pop(request.stops.split("-", 2)[2], None)
        if self.running:
            return self.answer("busy")
        if request.verb in self.slow:
            self.running[key] = request
            return self.answer("running", unit=unit)
        results[key] = self.act(request)
        return results[key]

    def admit(self, request: Request) -> None:
        """By this host's policy, as hostctl does; what was begun before is answered all the same."""
        key = f"{request.step}-{request.direction}-{request.attempt}"
        if request.step and key in {**self.kept.get(request.job, {}), **self.running}:
            return
        found = policy.objections(self.rules, request.verb, request.args, request.verb in READS | {"fence"})
        if not found and policy.RULES[request.verb].sealed:
            keys, args = self.rules.policy.seal_keys, request.args
            unsealed = authority.objection(keys, request.seal, request.job, request.verb, args, self.site.clock())
            found = [unsealed] if unsealed else []
        if found:
            raise Refusal(found[0].code, "; ".join(each.found for each in found))

    @property
    def rules(self) -> policy.Reading:
        from tests import policies  # which takes its names from here

        return policies.reading(self.name, **self.changes)

    def shut_out(self, request: Request) -> Answer:
        self.raise_fence(request)
        return self.answer("busy" if self.running else "done", {"running": list(self.running)})

    def raise_fence(self, request: Request) -> None:
        owner = self.owner
        if owner and owner["incarnation"] != request.incarnation:
            raise Refusal("other-incarnation", "it belongs to another volmig", owner=owner)
        if owner and owner["session"] not in (request.session, request.after):
            raise Refusal("other-owner", "another session acted here last", owner=owner)
        if request.fence < self.fences.get(request.job, 0):
            raise Refusal("stale-fence", "a newer owner was here")
        self.fences[request.job] = request.fence
        if request.session:
            highest = max(request.claim, owner.get("claims", {}).get(request.session, 0))
            claims = {**owner.get("claims", {}), request.session: highest}
            self.owner = {"incarnation": request.incarnation, "session": request.session, "claims": claims}

    def act(self, request: Request) -> Answer:
        try:
            if request.verb in self.faults:
                raise self.faults.pop(request.verb)
            evidence = getattr(self, request.verb)(request.args, request.job)
        except Refusal as refusal:
            return refusal.answer
        return self.answer("done", evidence, executed(request))

    def answer(
        self,
        state: str,
        evidence: dict[str, Any] | None = None,
        commands: list[dict[str, Any]] | None = None,
        error: dict[str, Any] | None = None,
        unit: str = "",
    ) -> Answer:
        return Answer(state, evidence or {}, commands or [], error, unit, self.boot_id)

    def forget(self, request: Request) -> Answer:
        """Of a job that is forgotten the fence stays."""
        if request.job in self.kept:
            self.raise_fence(request)
        if self.running:
            raise Refusal("still-running", ", ".join(self.running))
        self.kept.pop(request.job, None)
        return self.answer("done", {"left": [*self.mounts, *self.exports, *self.held]}, executed(request))

    # Facts

    def hello(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"hostname": self.name, "boot_id": self.boot_id, "time": self.site.clock(), "tools": {}, "features": {}}

    def policy(self, args: dict[str, Any]) -> dict[str, Any]:
        return policy.report(self.rules) | {"time": self.site.clock()}

    def status(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"fence": self.fences.get(args["job"], 0), "steps": [], "owner": self.owner}

    def inventory(self, args: dict[str, Any]) -> dict[str, Any]:
        raise Refusal("no-inventory", "rows of this site come from the factories")

    def leftovers(self, args: dict[str, Any]) -> dict[str, Any]:
        """Everything here that carries a marker, as hostctl tells it; the share is mounted by all but the source."""
        mounted = self is not self.site.source
        things = [*self.marked(), *(self.on_share() if mounted else ())]
        shares = [{"source": SHARE, "answered": True}] if mounted else []
        return {"things": things, "more": 0, "missed": [], "shares": shares, "time": self.site.clock()}

    def marked(self):
        for name, volume in self.volumes.items():
            for job in volume.tags:
                yield thing("lv" if name.startswith("volmig_") else "fence", f"vg_nova0/{name}", job, volume.uuid)
        for path, what in self.mounts.items():
            mine = self.volumes.get(what)
            kind, identity = ("filesystem", mine.filesystem) if mine else ("mount", f"10.20.0.2:{what}")
            yield thing(kind, path, dashed(path), identity)
        for path, client in self.exports.items():
            yield thing("export", path, dashed(path), client)
        for held in self.held:
            job = held.removeprefix("holder of ")
            yield thing("unit", unit := f"volmig-{job.replace('-', '')}-holder", job, unit)
        for key, request in self.running.items():
            yield thing("unit", unit := f"volmig-{request.job.replace('-', '')}-{key}", request.job, unit)
        for job in self.kept:
            yield thing("memory", path := f"/var/lib/volmig/{job}", job, path)

    def on_share(self):
        for path, file in self.site.files.items():
            if "/.volmig/" in path:
                name = path.removeprefix(f"{INSTANCES}/")
                kind = "stage" if name.endswith("disk.new") else "backup"
                found = thing(kind, name, name.split("/")[1], str(file.inode), file.size)
                yield found | {"share": SHARE, "path": path}

    def share(self) -> dict[str, Any]:
        return {
            "source": SHARE,
            "target": INSTANCES,
            "options": "rw,vers=3,hard",
            "size": 20 << 30,
            "free": self.share_free,
            "owner_uid": 64055,
            "owner_gid": 64055,
            "squashes_root": True,
        }

    def source_facts(self, args: dict[str, Any]) -> dict[str, Any]:
        volume = self.volumes.get(args["lv"])
        seen = volume and {
            "vg": args["vg"],
            "lv": args["lv"],
            "uuid": volume.uuid,
            "size": volume.size,
            "attributes": "-wi-a-----",
            "active": True,
            "open": bool(volume.holders),
            "holders": volume.holders,
            "tags": sorted(volume.tags),
            "major": 253,
            "minor": 0,
            "permission": volume.permission,
            "writes": volume.writes,
            "sectors_written": volume.writes * 8,
            "crypt": False,
        }
        reach = [{"address": args["relay_address"], "port": port, "state": "open"} for port in (111, 2049, 20048)]
        return {
            "volume": seen,
            "contents": None,
            "source_address": "10.20.0.1",
            "reach": reach,
            "instance_running": None,
            "time": self.site.clock(),
        } | self.facts

    def relay_facts(self, args: dict[str, Any]) -> dict[str, Any]:
        left = [name for name in self.volumes if name == args["relay_lv"]]
        return {
            "vg": {"name": args["vg"], "size": 20 << 30, "free": self.free, "extent_size": 4 * MIB},
            "leftovers": left,
            "share": self.share(),
            "nfs_server": {"nfs-server": "inactive", "rpcbind": "active"},
            "ports": {"111": True, "2049": False, "20048": False},
            "time": self.site.clock(),
        } | self.facts

    def destination_facts(self, args: dict[str, Any]) -> dict[str, Any]:
        live, stage = self.site.files.get(self.site.live), self.site.files.get(self.beside(args["job"], "disk.new"))
        disk = live and {
            "path": self.site.live,
            "device": 1,
            "format": "qcow2",
            "virtual_size": self.site.size,
            "allocated": 1,
            "label": None,
            "nlink": 1,
            "backing": [],
            **live.identity(),
        }
        domain = {
            "uuid": args["instance"],
            "name": "db7",
            "state": self.state,
            "driver": "qcow2",
            "source": self.site.live,
            "max_bytes": None,
        }
        return {
            "share": self.share(),
            "instances": INSTANCES,
            "disk": disk,
            "disk_info": {self.site.live: "qcow2"},
            "domain": domain,
            "contents": None,
            "leftovers": sorted({path.rsplit("/", 1)[0] for path in self.site.files if "/.volmig/" in path}),
            "stage": stage and stage.identity(),
            "acdirmax": 0,
            "time": self.site.clock(),
        } | self.facts

    def instance_state(self, args: dict[str, Any]) -> dict[str, Any]:
        live = self.site.files.get(self.site.live)
        return {
            "state": self.state,
            "disks": [{"target": "vdb", "source": self.site.live, "format": "qcow2"}],
            "live": live and {**live.identity(), "path": self.site.live},
            "runs": self.runs,
            "time": self.site.clock(),
        }

    def turn(self, on: bool) -> None:
        """What another one than volmig has libvirt do here, as nova-compute does."""
        self.state = "running" if on else "shut off"
        if on:
            self.runs.append({"at": self.site.clock(), "ended": ""})
        elif self.runs:
            self.runs[-1]["ended"] = "shutdown"

    # Acts on the relay and the source

    def lv_create(self, args, job):
        found = self.volumes.get(args["lv"])
        if found and (job not in found.tags or found.size != args["size"]):
            raise Refusal("foreign-volume", f"{args['lv']} is there already")
        if found:
            return {"lv_uuid": found.uuid, "size": found.size, "major": 253, "minor": 9, "already": True}
        self.free -= args["size"]
        self.volumes[args["lv"]] = Volume(f"relay-{job}", args["size"], tags={job})
        return {"lv_uuid": f"relay-{job}", "size": args["size"], "major": 253, "minor": 9}

    def lv_remove(self, args, job):
        volume = self.volumes.get(args["lv"])
        if volume and volume.uuid != args.get("made", {}).get("lv_uuid", volume.uuid):
            raise Refusal("foreign-volume", f"{args['lv']} has another UUID")
        if volume and (job not in volume.tags or any(args["lv"] == at for at in self.mounts.values())):
            raise Refusal("unknown-volume", f"{args['lv']} is not ours or is mounted")
        if self.volumes.pop(args["lv"], None):
            self.free += args["size"]
        return {"erased_bytes": args["size"]}

    def fs_create(self, args, job):
        volume = self.volumes.get(args["lv"])
        if volume is None or volume.uuid != args["lv_uuid"]:
            raise Refusal("unknown-volume", f"{args['lv']} is not the volume that was made")
        volume.filesystem = args["fs_uuid"]
        self.mounts[args["mountpoint"]] = args["lv"]
        return {"fs_uuid": args["fs_uuid"], "free": args["size"]}

    def fs_remove(self, args, job):
        if args["mountpoint"] in self.exports:
            raise Refusal("still-exported", "unexport first")
        self.mounts.pop(args["mountpoint"], None)
        return {}

    def export(self, args, job):
        if args["mountpoint"] not in self.mounts:
            raise Refusal("not-mounted", "nothing is mounted there")
        self.exports[args["mountpoint"]] = args["client"]
        return {"client": args["client"], "options": "rw", "started": args["start"]}

    def unexport(self, args, job):
        self.exports.pop(args["mountpoint"], None)
        return {}

    def nfs_mount(self, args, job):
        if args["export"] not in self.site.relay.exports:
            raise Refusal("not-exported", "access denied by server")
        self.mounts[args["mountpoint"]] = args["export"]
        return {"options": "rw,vers=3,hard"}

    def nfs_unmount(self, args, job):
        self.mounts.pop(args["mountpoint"], None)
        return {}

    def lv_fence(self, args, job):
        volume = self.volumes[args["lv"]]
        if volume.holders:
            raise Refusal("volume-open", f"open by {volume.holders[0]}")
        volume.permission, volume.tags = "read-only", {job}
        self.held.add(f"holder of {job}")
        return {
            "was": "writeable",
            "writes": volume.writes,
            "sectors_written": volume.writes * 8,
            "holder_unit": f"volmig-{job.replace('-', '')}-holder",
        }

    def lv_unfence(self, args, job):
        volume = self.volumes[args["lv"]]
        volume.permission, volume.tags = args["made"].get("was", "writeable"), set()
        self.held.discard(f"holder of {job}")
        return {}

    def copy(self) -> Volume:
        """The relay's temporary volume, through which the copy goes."""
        return next(volume for name, volume in self.site.relay.volumes.items() if name.startswith("volmig_"))

    def check_served(self, args) -> None:
        """What is mounted from the relay works as long as the relay mounts and exports it."""
        export = self.mounts.get(args["mountpoint"])
        if export not in self.site.relay.exports or export not in self.site.relay.mounts:
            raise Refusal("io-error", "Stale file handle", "failed", None)

    def convert(self, args, job):
        if args["mountpoint"] not in self.mounts or self.volumes[args["lv"]].permission != "read-only":
            raise Refusal("not-fenced", "the source is not fenced, or nothing is mounted")
        self.check_served(args)
        self.copy().content = self.volumes[args["lv"]].content
        return {"file_size": 30 * MIB, "bytes_read": args["size"], "bytes_written": 30 * MIB, "seconds": 1.0}

    def seal(self, args, job):
        self.copy().sealed = self.copy().content
        return {"sha256": "ab" * 32, "file_size": 30 * MIB}

    def compare(self, args, job):
        self.check_served(args)
        source = self.volumes[args["lv"]]
        if source.writes != args["writes"]:
            raise Refusal("tripwire", "the source was written to", "failed", None)
        if self.copy().content != source.content:
            raise Refusal("differs", "the copy differs", "failed", None)
        return {"virtual_size": args["size"], "file_size": 30 * MIB, "check": 0, "compare": 0, "writes": source.writes}

    def discard_copy(self, args, job):
        return {}

    # Acts on the share and the instance

    def stage(self, args, job):
        if args["mountpoint"] not in self.mounts:
            raise Refusal("not-mounted", "nothing is mounted there")
        if self.copy().content != self.copy().sealed:
            raise Refusal("wrong-bytes", "the copy is not what it was before it was compared", "failed", None)
        new = File(next(self.site.inodes), self.copy().content, 30 * MIB)
        self.site.files[self.beside(job, "disk.new")] = new
        return {"sha256": "ab" * 32, "file_size": new.size, "inode": new.inode}

    def unstage(self, args, job):
        there = self.site.files.get(self.beside(job, "disk.new"))
        if there and there.inode != args.get("expect_inode", there.inode):
            raise Refusal("foreign-file", "another file took the name")
        self.site.files.pop(self.beside(job, "disk.new"), None)
        return {}

    def stage_verify(self, args, job):
        new = self.site.files[self.beside(job, "disk.new")]
        seen = new.identity()
        return {key: seen[key] for key in ("inode", "mtime_ns", "file_size")} | {"sha256": args["sha256"]}

    def instance_lock(self, args, job):
        self.marks[args["instance"]] = args["reason"]
        return {}

    def instance_unlock(self, args, job):
        self.marks.pop(args["instance"], None)
        return {}

    def instance_stop(self, args, job):
        was, self.state = self.state, "shut off"
        return {"was": was, "stopped_at": self.site.clock(), "live": self.site.files[self.site.live].identity()}

    def instance_start(self, args, job):
        if args.get("made", {}).get("was") == "shut off":
            return {"state": self.state}
        live = self.site.files[self.site.live]
        if args.get("expect_inode", live.inode) != live.inode:
            raise Refusal("unknown-inode", f"inode {live.inode}")
        self.state = "running"
        return {"started_at": self.site.clock(), "state": "running"}

    def note_lock(self, verb: str, args: dict[str, Any]) -> None:
        if args["instance"] not in self.marks:
            self.site.unlocked.append(verb)

    def swap(self, args, job):
        self.note_lock("swap", args)
        old, new = self.site.files[self.site.live], self.site.files.get(self.beside(job, "disk.new"))
        aside = self.site.files.get(self.beside(job, "disk.old"))
        if aside and (old.inode, aside.inode, new) == (args["stage"]["inode"], args["live"]["inode"], None):
            return self.swapped(old, aside, job) | {"already": True}
        if self.state != "shut off":
            raise Refusal("not-shut-off", "the instance runs")
        if new is None or new.inode != args["stage"]["inode"] or old.inode != args["live"]["inode"]:
            raise Refusal("unknown-file", "not the files that were recorded")
        self.site.files |= {self.beside(job, "disk.old"): old, self.site.live: new}
        del self.site.files[self.beside(job, "disk.new")]
        return self.swapped(new, old, job)

    def swapped(self, new, old, job):
        return {
            "live_inode": new.inode,
            "backup_inode": old.inode,
            "backup_path": self.beside(job, "disk.old"),
            "backup_bytes": old.size,
            "swapped_at": self.site.clock(),
        }

    def swap_back(self, args, job):
        self.note_lock("swap_back", args)
        old = self.site.files.get(self.beside(job, "disk.old"))
        if old is None:
            rejected = self.site.files.get(self.beside(job, "disk.rejected"))
            aside = {"rejected_inode": rejected.inode} if rejected else {}
            return {"live_inode": self.site.files[self.site.live].inode, "already": True, **aside}
        if self.state != "shut off":
            raise Refusal("not-shut-off", "the instance runs")
        new = self.site.files[self.site.live]
        self.site.files |= {self.beside(job, "disk.rejected"): new, self.site.live: old}
        del self.site.files[self.beside(job, "disk.old")]
        return {"live_inode": old.inode, "rejected_inode": new.inode, "rejected_bytes": new.size}

    def rehearse(self, args, job):
        kept = self.site.files.get(args["backup_path"])
        if kept is None:
            return {"verdict": "unreadable", "findings": [f"there is no {args['backup_path']}"]}
        seen = kept.identity() | {"sha256": hashlib.sha256(kept.content.encode()).hexdigest()}
        wrong = [
            f"its {name} is {seen[name]}, recorded {was}" for name, was in args["recorded"].items() if seen[name] != was
        ]
        return {**seen, "verdict": "differs" if wrong else "ok", "findings": wrong, "allocated": kept.size, "leaks": 0}

    def purge(self, args, job):
        kept = [path for path in self.site.files if f"/.volmig/{job}/" in path]
        wrong = [path for path in kept if self.site.files[path].inode != args["backup_inode"]]
        if wrong or self.site.files[self.site.live].inode != args["live_inode"]:
            raise Refusal("unknown-files", "not the recorded backup")
        for path in kept:
            del self.site.files[path]
        return {"purged": kept}

    def beside(self, job: str, name: str) -> str:
        return f"{INSTANCES}/.volmig/{job}/{name}"


def thing(kind: str, name: str, job: str, identity: str, size: int = 0) -> dict[str, Any]:
    """One thing as the verb leftovers tells it."""
    said = {"kind": kind, "name": name, "job": job, "identity": identity, "size": size}
    return said | {"since": None, "share": "", "path": name}


def dashed(path: str) -> str:
    return str(uuid.UUID(path[-32:]))


def executed(request: Request) -> list[dict[str, Any]]:
    """The commands of a verb as hostctl reports them when all went well."""
    return [
        {
            "kind": act.kind,
            "text": act.text,
            "argv": list(act.argv),
            "probe": False,
            "exit": 0,
            "seconds": 0.01,
            "at": "2026-01-01T00:00:00+00:00",
            "stdout": "",
            "stderr": "",
        }
        for act in acts(request.verb, request.args, request.job)
    ]
