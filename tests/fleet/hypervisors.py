"""Three hypervisors behind a real sshd whose forced command answers as hostctl does, from the site of tests/fakes.py.

`python -m tests.fleet.hypervisors FOLDER` serves them on a socket in that folder; FORWARD is the forced command, which
passes one request on, with the address at which it arrived. It finds the seal keys where VOLMIG_KEYS_WEB says.
"""

import json
import os
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any

from hosts.remote import hostctl
from hosts.remote.host import Request
from hosts.remote.hostctl import policy
from tests import fakes, policies

INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SOURCE_INSTANCE = "3f8df945-7cbd-46e0-8ad1-d51013cf706b"
BEAT = 1.0
SENT = ("state", "evidence", "commands", "error", "unit", "boot_id")  # fields of an answer that hostctl sends
# name, address at which SSH reaches it, data addresses, role: the relay has one in each of the others' networks
HOSTS = {
    "jump-02": ("10.0.0.2", ("10.20.0.2", "10.30.0.2"), "relay"),
    "cmp-lvm-07": ("10.0.0.7", ("10.20.0.1",), "source"),
    "cmp-qcow-03": ("10.0.0.3", ("10.30.0.4",), "destination"),
}
# An account without a password is not locked for PAM, as on a hypervisor.
SSHD = """
ListenAddress 10.0.0.2
ListenAddress 10.0.0.3
ListenAddress 10.0.0.7
HostKey %(folder)s/host_key
PidFile none
AuthorizedKeysFile %(folder)s/authorized_keys
StrictModes no
UsePAM yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
"""
FORWARD = """#!/usr/bin/python3 -I
import os, socket, sys
here = socket.socket(socket.AF_UNIX)
here.connect(%(folder)r + "/socket")
here.sendall(os.environ["SSH_CONNECTION"].split()[2].encode() + b"\\n" + sys.stdin.buffer.read())
here.shutdown(socket.SHUT_WR)
while part := here.recv(65536):
    sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()
"""


class Hypervisor(fakes.FakeHost):
    """A host of the fake site under the name of the runbook, which also says what is on it."""

    role = ""

    @property
    def rules(self) -> policy.Reading:
        return policies.reading(self.name, self.role)

    def inventory(self, args: dict[str, Any]) -> dict[str, Any]:
        now = self.site.clock()
        volumes = [
            {
                "vg": "vg_nova0", "name": name, "uuid": each.uuid, "size": each.size, "attributes": "-wi-a-----",
                "tags": sorted(each.tags), "open": len(each.holders),
            }
            for name, each in self.volumes.items()
        ]  # fmt: skip
        group = {"name": "vg_nova0", "uuid": f"vg-{self.name}", "size": 20 << 30, "free": self.free}
        mount = {"source": fakes.SHARE, "target": fakes.INSTANCES, "size": 20 << 30, "free": self.share_free}
        disk = {"source": self.site.live, "format": "qcow2"}
        domain = {"uuid": INSTANCE, "name": "db-new", "state": self.state, "disks": [disk]}
        _, addresses, role = HOSTS[self.name]
        return {
            "hostname": self.name, "boot_id": self.boot_id, "time": now, "tools": {}, "features": {}, "nfs_server": {},
            "volume_groups": [] if role == "destination" else [group | {"extent_size": 4 << 20}],
            "logical_volumes": volumes,
            "mounts": [] if role == "source" else [mount | {"options": "rw"}],
            "addresses": [{"address": each, "prefix": 24, "interface": "eth1"} for each in addresses],
            "domains": [domain] if role == "destination" else [],
        }  # fmt: skip

    def reach(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"results": [target | {"state": "open"} for target in args["targets"]]}


fakes.READS.add("reach")


class Site(fakes.Site):
    def __init__(self) -> None:
        super().__init__(instance=INSTANCE, source=SOURCE_INSTANCE)
        self.at: dict[str, Hypervisor] = {}
        for name, (address, _, role) in HOSTS.items():
            host: Any = getattr(self, role)
            host.__class__, host.name, host.role = Hypervisor, name, role
            self.at[address] = host


class Answers(socketserver.StreamRequestHandler):
    """One call of hostctl."""

    site = Site()
    one_at_a_time = threading.Lock()

    def handle(self) -> None:
        host = self.site.at[self.rfile.readline().decode().strip()]
        document = json.loads(self.rfile.read())
        if document["verb"] == "watch":
            return self.watch()
        wanted = {name: value for name, value in document.items() if name in Request.__dataclass_fields__}
        with self.one_at_a_time:
            answer = host.hear(Request(**wanted))
        whole = {name: getattr(answer, name) for name in SENT}
        whole |= {"hash": hostctl.source_hash(), "protocol": hostctl.PROTOCOL}
        self.wfile.write(json.dumps(whole).encode())
        return None

    def watch(self) -> None:
        while True:  # until nobody reads
            try:
                self.wfile.write(json.dumps({"beat": time.time()}).encode() + b"\n")
            except OSError:
                return
            time.sleep(BEAT)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    path = Path(sys.argv[1]) / "socket"
    with Server(str(path), Answers) as server:
        os.chmod(path, 0o666)  # noqa: S103 - whoever comes through sshd
        server.serve_forever()


if __name__ == "__main__":
    main()
