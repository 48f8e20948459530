"""Requests that volmig itself sends to addresses that people configured."""

import http.client
import ipaddress
import socket
import urllib.request
from typing import Any

# Where clouds answer their own instances with credentials: link-local addresses, and what AWS and Alibaba use besides.
METADATA = [
    ipaddress.ip_network(each) for each in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32")
]


class Forbidden(OSError):  # noqa: N818 - a refusal
    """The address is one to which volmig sends nothing."""


def is_metadata(address: str) -> bool:
    """Whether an IP address is link-local or a metadata service; False for a name."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    known = getattr(known, "ipv4_mapped", None) or known
    return any(known.version == network.version and known in network for network in METADATA)


def require_allowed(sock: socket.socket) -> None:
    """Closes a connection to a metadata address before anything is sent; the name was resolved for this connection."""
    address = str(sock.getpeername()[0])
    if is_metadata(address):
        sock.close()
        raise Forbidden(f"{address} is a link-local or metadata address: volmig sends nothing there.")


class PlainConnection(http.client.HTTPConnection):
    """HTTP that checks the address it is connected to, after resolving the name."""

    def connect(self) -> None:
        """Raises OSError for a metadata or link-local address."""
        super().connect()
        require_allowed(self.sock)


class TLSConnection(http.client.HTTPSConnection):
    """HTTPS that checks the address it is connected to, after resolving the name."""

    def connect(self) -> None:
        """Raises OSError for a metadata or link-local address."""
        super().connect()
        require_allowed(self.sock)


class Plain(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(PlainConnection, req)


class TLS(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(TLSConnection, req)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: what was signed for one address is for no other."""

    def redirect_request(self, *_: Any) -> None:
        """Follows none: it could lead to an address that was not checked."""
        return


def post(url: str, body: bytes, headers: dict[str, str], seconds: float) -> None:
    """Posts `body`; raises OSError for everything but a 2xx answer, ValueError for what is no web address."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url} must begin with https:// or http://")
    request = urllib.request.Request(url, data=body, headers=headers)  # noqa: S310 - checked above
    with urllib.request.build_opener(Plain, TLS, NoRedirects).open(request, timeout=seconds):
        pass
