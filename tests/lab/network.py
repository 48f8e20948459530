"""The lab's network: one namespace, a bridge per VLAN, a tap per guest and VLAN, SSH forwarded from loopback."""

import subprocess
from dataclasses import dataclass

NUMBERS = {"mgmt": 0, "data": 1, "storage": 2}
MACHINES = {"src": 11, "jump": 12, "filer": 13, "dst": 14}


def address(guest: str, net: str) -> str:
    """IPv4 address of a guest on one of the VLANs; each VLAN is a /24."""
    return f"10.77.{NUMBERS[net]}.{MACHINES[guest]}"


def mac(guest: str, net: str) -> str:
    # Explicit: left to itself the kernel has given two guests the same one.
    return f"02:00:00:0{NUMBERS[net]}:00:{MACHINES[guest]}"


def tap(guest: str, net: str) -> str:
    return f"{guest}-{net}"


@dataclass(frozen=True)
class Network:
    """The namespace called `name`; nothing of it is visible outside but the forwards on 127.0.0.1."""

    name: str

    def exists(self) -> bool:
        listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
        return self.name in listed.split()

    def create(self) -> None:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._ip("link", "set", "lo", "up")
        for net in NUMBERS:
            self._ip("link", "add", f"br-{net}", "type", "bridge")
            self._ip("link", "set", f"br-{net}", "up")
        self._ip("addr", "add", "10.77.0.1/24", "dev", "br-mgmt")

    def delete(self) -> None:
        if self.exists():
            subprocess.run(["ip", "netns", "del", self.name], check=True)

    def plug(self, guest: str, net: str) -> None:
        """Make the tap of a guest on a VLAN."""
        self._ip("tuntap", "add", tap(guest, net), "mode", "tap")
        self._ip("link", "set", tap(guest, net), "master", f"br-{net}", "up")

    def link(self, guest: str, net: str, state: str) -> None:
        """Set a guest's cable on one VLAN `up` or `down`, as seen from the switch."""
        self._ip("link", "set", tap(guest, net), state)

    def limit(self, guest: str, net: str, mbit: float | None) -> None:
        """Limit what travels towards the guest (its tap's egress); None lifts the limit."""
        shape = shaping(tap(guest, net), mbit)
        subprocess.run(self.command(*shape), check=mbit is not None, capture_output=True)

    def forwarder(self, guest: str, port: int) -> list[str]:
        """The argv that forwards 127.0.0.1:port to the guest's sshd."""
        target = f"TCP\\:{address(guest, 'mgmt')}\\:22\\,connect-timeout=3"
        return [
            "socat",
            f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay",
            f"EXEC:ip netns exec {self.name} socat STDIO {target}",
        ]

    def command(self, *argv: str) -> list[str]:
        """The argv that runs a command inside the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True, capture_output=True)


def shaping(device: str, mbit: float | None) -> list[str]:
    """The tc command that holds a device's egress at a rate, or lifts that."""
    if mbit is None:
        return ["tc", "qdisc", "del", "dev", device, "root"]
    rate = ["rate", f"{int(mbit * 1000)}kbit", "burst", "256kb", "latency", "100ms"]
    return ["tc", "qdisc", "replace", "dev", device, "root", "tbf", *rate]
