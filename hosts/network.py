"""Which hypervisors could work together, and on which of the relay's addresses; plain decisions, no database.

In a migration the source mounts the relay's export, and nothing else passes between two hypervisors: relay and
destination both mount the share from its own server. So a pair is a source and a relay, with the one address that a
migration of theirs would use.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network

Network = str
RELAYS = 64  # that one source is probed for at most; see Site.relays_of


@lru_cache(maxsize=1 << 14)
def network(address: str, prefix: int) -> Network:
    """The network of an address, 10.0.0.9 and 24 give 10.0.0.0/24; cached, a large site has many pairs."""
    return str(ip_interface(f"{address}/{prefix}").network)


def data_address(
    source: Iterable[Network],
    relay: Sequence[tuple[str, Network]],
    management: Iterable[str],
    crowd: Mapping[Network, int],
) -> str:
    """The relay's address on a network that the source is on too; empty when there is none.

    `management` are the addresses by which volmig enters the two; their networks never carry NFS. `crowd` counts the
    hypervisors on each network: where volmig enters through a forwarder, management is the one that everybody is on.
    """
    shared = set(source)
    usable = [(address, net) for address, net in relay if net in shared and not _manages(net, management)]
    return min(usable, key=lambda each: crowd.get(each[1], 0), default=("", ""))[0]


def _manages(net: Network, management: Iterable[str]) -> bool:
    return any(_is_in(address, net) for address in management)


@lru_cache(maxsize=1 << 14)
def _is_in(address: str, net: Network) -> bool:
    try:
        return ip_address(address) in ip_network(net)
    except ValueError:
        return False  # a host name: it does not say which network it is on


class Networks:
    """The data addresses of all hypervisors by their keys, each with its network; from (key, address, prefix)."""

    def __init__(self, rows: Iterable[tuple[int, str, int]]) -> None:
        self.addresses: dict[int, list[tuple[str, Network]]] = defaultdict(list)
        for key, address, prefix in rows:
            self.addresses[key].append((address, network(address, prefix)))
        self.crowd = Counter(net for on in self.addresses.values() for net in {net for _, net in on})

    def of(self, key: int) -> list[tuple[str, Network]]:
        """Data addresses of a hypervisor with their networks; none when it was not refreshed yet."""
        return self.addresses.get(key, [])

    def data_address(self, source: int, relay: int, management: Iterable[str]) -> str:
        """The relay's address that the source mounts from; empty when they share no data network."""
        return data_address([net for _, net in self.of(source)], self.of(relay), management, self.crowd)


@dataclass(frozen=True)
class Member:
    """A hypervisor as pairs are decided.

    `management` is the address by which volmig enters it. `roles` are those that it is fit for and that its policy
    allows. `closed` says why volmig may not enter it ("in quarantine"), and is empty when it may.
    """

    key: int
    name: str
    management: str
    roles: frozenset[str]
    closed: str = ""


@dataclass(frozen=True)
class WhyNot:
    """Why a hypervisor is not probed for an address: briefly, for a cell, and as a sentence."""

    short: str
    sentence: str


class Site:
    """All hypervisors that are not retired, with their data addresses."""

    def __init__(self, members: Iterable[Member], networks: Networks) -> None:
        self.members, self.networks = {each.key: each for each in members}, networks

    def relays_of(self, source: int, first: Iterable[int] = ()) -> dict[int, str]:
        """The relays that a source is probed for, each with the address that a migration would use.

        At most RELAYS: `first` those that are named, then a sample that is another one for each source and stays the
        same while hypervisors come and go, so that the cost of a source does not grow with the site and every relay
        is probed from some sources.
        """
        pairs = self._possible(source)
        if len(pairs) > RELAYS:
            wanted = {key: number for number, key in reversed(list(enumerate(first)))}
            order = sorted(pairs, key=lambda relay: (wanted.get(relay, len(wanted)), _lot(source, relay)))
            pairs = {relay: pairs[relay] for relay in order[:RELAYS]}
        return pairs

    def _possible(self, source: int) -> dict[int, str]:
        here = self.members.get(source)
        if here is None or _cannot(here, "source"):
            return {}
        found = {
            each.key: self._address(here, each)
            for each in self.members.values()
            if each.key != source and not _cannot(each, "relay")
        }
        return {relay: address for relay, address in found.items() if address}

    def _address(self, source: Member, relay: Member) -> str:
        return self.networks.data_address(source.key, relay.key, (source.management, relay.management))

    def why_not(self, source: int, relay: int, address: str) -> WhyNot:
        """Why `source` is not probed for this address of `relay`, which is another hypervisor."""
        here, there = self.members[source], self.members[relay]
        if why := _cannot(here, "source"):
            return WhyNot("no source", why)
        if why := _cannot(there, "relay"):
            return WhyNot("no relay", why)
        net = next((net for each, net in self.networks.of(relay) if each == address), "")
        if net not in {each for _, each in self.networks.of(source)}:
            return WhyNot("other network", f"{here.name} has no address in {net}.")
        if _manages(net, (here.management, there.management)):
            return WhyNot("management", f"{net} is a management network, which volmig never uses for NFS.")
        used = self._address(here, there)
        if used != address:
            return WhyNot("other address", f"A migration would use {used}.")
        if relay in self._possible(source):
            return WhyNot("not in the sample", f"At most {RELAYS} relays are probed from each source.")
        return WhyNot("not probed", "")


def _cannot(member: Member, role: str) -> str:
    """Why a hypervisor cannot have a role in a migration, as a sentence; empty when it can."""
    if member.closed:
        return f"{member.name} is {member.closed}."
    if role in member.roles:
        return ""
    needs = {"source": "a volume group", "relay": "a volume group and a mounted share"}[role]
    return f"{member.name} cannot be a {role}: it needs {needs}, and a policy that allows the role."


def _lot(source: int, relay: int) -> bytes:
    return hashlib.blake2b(f"{source} {relay}".encode(), digest_size=8).digest()
