"""Which of the relay's addresses the source is to mount from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network

Network = str


def network(address: str, prefix: int) -> Network:
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


def _is_in(address: str, net: Network) -> bool:
    try:
        return ip_address(address) in ip_network(net)
    except ValueError:
        return False  # a host name: which network it is on cannot be told from it
