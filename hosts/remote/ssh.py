"""SSH to hypervisors: one pinned key each, a hostctl of known hash, and no wait without an end."""

import base64
import binascii
import contextlib
import hashlib
import json
import re
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import paramiko

from hosts.remote import hostctl, meter
from hosts.remote.connections import HANDSHAKES, KEPT, Connection
from hosts.remote.host import (
    STATES,
    Address,
    Answer,
    Garbled,
    HostctlDiffers,
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    Request,
    Unreachable,
    fingerprint,
)
from hosts.remote.hostctl import pack
from hosts.remote.hostctl.act import reason
from hosts.remote.phrases import phrase

CONNECT_SECONDS = 10
STALE_SECONDS = 3  # until a kept connection, whose other end may be gone, is given up for a new one
SILENCE_SECONDS = 10
# How often paramiko's thread of a connection wakes up although nothing has arrived: hundreds are open. Its own tenth of
# a second (Transport._active_check_timeout) is for the login, of which it has to notice soon that it takes too long.
IDLE_LOOK_SECONDS = 5.0
CHANNEL_LOOK_SECONDS = 0.02  # between looks whether a machine behind a bastion has said something
LOGINS = 4  # at a time to one bastion: sshd drops connections when ten have not logged in yet (its MaxStartups)
TURN_SECONDS = 20  # that a login waits for its turn there
ANSWER_CAP = 4 * 1024 * 1024
LINE_CAP = 64 * 1024
STDERR_KEPT = 4096
OLDEST = 1  # the oldest protocol of hostctl that volmig still speaks
# How a version gets where it is missing that is not this volmig's own.
BESIDE = (
    "Write its file with manage.py hostctl --version {hash}, and install it there beside the others: install -D "
    "-o root -g root -m 0755 hostctl-{hash} /usr/local/libexec/volmig-hostctl.d/hostctl-{hash}. "
    "volmig then resumes automatically."
)
ADD = "Add the file with manage.py hostctl --add FILE: hostctl-{hash} of the release that began the migration."
SHIPPED_DIRECTORY = "/var/lib/volmig/bin"
# paramiko still offers these; every hypervisor that is alive has better ones.
WEAK = {
    "ciphers": ["aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc"],
    "macs": ["hmac-sha1", "hmac-md5", "hmac-sha1-96", "hmac-md5-96"],
}
ANSWER_TYPES: dict[str, tuple[type, ...]] = {
    "state": (str,),
    "evidence": (dict,),
    "commands": (list,),
    "error": (dict, type(None)),
    "unit": (str,),
    "boot_id": (str,),
    "hash": (str,),
    "protocol": (int,),
}


logins: dict[tuple[str, int], threading.BoundedSemaphore] = {}  # turns, by the address of the bastion
logins_lock = threading.Lock()


def public_text(key: paramiko.PKey) -> str:
    """The public half as in authorized_keys, without a comment."""
    return f"{key.get_name()} {key.get_base64()}"


def offered_key(host: str, port: int, bastion: Address | None = None) -> str:
    """Returns the host key that the machine offers, before anybody trusts it; no login is tried."""
    with contextlib.ExitStack() as stack, told_plainly(f"read the host key of {host}:{port}"):
        sock = stack.enter_context(connect(bastion)).tunnel(host, port) if bastion else dial(host, port)
        transport = paramiko.Transport(sock, disabled_algorithms=WEAK)
        stack.callback(transport.close)
        transport.banner_timeout = CONNECT_SECONDS
        transport.start_client(timeout=CONNECT_SECONDS)
        return public_text(transport.get_remote_server_key())


def dial(host: str, port: int) -> socket.socket:
    """A TCP connection on which nothing waits for an acknowledgement: a call is several small packets in a row, and
    each would wait for the other end's delayed one, 40 ms on Linux (tcp(7), TCP_NODELAY; OpenSSH sets it as well).
    """
    sock = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def await_banner(sock: paramiko.Channel | socket.socket, address: Address, seconds: float) -> None:
    """Waits for the first byte, which stays unread; returns, too, where the connection ends without one.

    A machine that hangs still takes connections, for its kernel does. Raises Unreachable.
    """
    try:
        if isinstance(sock, socket.socket):
            sock.settimeout(seconds)
            sock.recv(1, socket.MSG_PEEK)
            return
        until = time.monotonic() + seconds  # a channel cannot be peeked at
        while not (sock.recv_ready() or sock.eof_received or sock.closed):
            if time.monotonic() > until:
                raise TimeoutError
            time.sleep(CHANNEL_LOOK_SECONDS)
    except TimeoutError as error:
        found = f"it accepted the connection and sent nothing for {seconds:.0f} s"
        next_step = "Check whether it hangs, and that the port is sshd's. Retrying automatically."
        raise Unreachable(f"log in to {address}", found, next_step, False) from error


def connect(address: Address) -> "SSHHost":
    """Enters a hypervisor; raises HostKeyUnknown or HostKeyChanged before any login is tried.

    A connection that this process kept from its last call there is used again.
    """
    kept = KEPT.take(address)
    return SSHHost(address, kept or log_in(address), is_kept=kept is not None)


def log_in(address: Address) -> Connection:
    """A new connection, through the bastion if there is one; Unreachable, Denied, HostKeyUnknown or HostKeyChanged."""
    pinned = pinned_key(address)  # without one nothing is dialled, not even the bastion
    bastion = connect_bastion(address.bastion) if address.bastion else None
    connection = Connection(paramiko.SSHClient(), bastion)
    try:
        with meter.connecting(), told_plainly(f"log in to {address}"):
            # Only who speaks takes a slot: many machines that are away, or stuck, must not keep others waiting.
            sock = bastion.tunnel(address.host, address.port) if bastion else dial(address.host, address.port)
            await_banner(sock, address, CONNECT_SECONDS)
            with HANDSHAKES.slot():
                enter(connection.client, address, pinned, sock)
            sock.settimeout(IDLE_LOOK_SECONDS)
    except BaseException as error:
        if isinstance(error, HostKeyChanged):
            error.address = address
        connection.close()
        raise
    return connection


def connect_bastion(address: Address) -> "SSHHost":
    """The same for one that many hypervisors are behind: a few threads of this process log in there at a time."""
    with logins_lock:
        turn = logins.setdefault((address.host, address.port), threading.BoundedSemaphore(LOGINS))
    if not turn.acquire(timeout=TURN_SECONDS):
        found = f"{LOGINS} other logins have been under way there for {TURN_SECONDS} s"
        raise Unreachable(f"log in to {address}", found, "Retrying automatically.")
    try:
        return connect(address)
    finally:
        turn.release()


def enter(
    client: paramiko.SSHClient, address: Address, pinned: paramiko.PKey, sock: paramiko.Channel | socket.socket
) -> None:
    """Logs in with the pinned key only: no agent, no keys of the user, no known_hosts."""
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
    client.get_host_keys().add(name, pinned.get_name(), pinned)
    client.connect(
        address.host,
        port=address.port,
        username=address.user,
        key_filename=address.key_file or None,
        allow_agent=not address.key_file,
        look_for_keys=False,
        sock=sock,
        timeout=CONNECT_SECONDS,
        banner_timeout=CONNECT_SECONDS,
        auth_timeout=CONNECT_SECONDS,
        channel_timeout=CONNECT_SECONDS,
        disabled_algorithms=WEAK,
    )


def pinned_key(address: Address) -> paramiko.PKey:
    """The key that an administrator pinned; HostKeyUnknown without a usable one."""
    try:
        kind, body = address.host_key.split()[:2]
        return paramiko.PKey.from_type_string(kind, base64.b64decode(body, validate=True))
    except (ValueError, binascii.Error, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise HostKeyUnknown(f"log in to {address}", "no usable host key is pinned", "Pin its host key.") from error


@contextlib.contextmanager
def told_plainly(tried: str, touched: bool | None = False) -> Iterator[None]:
    """Turns what paramiko and sockets raise into HostError with a sentence for people."""
    try:
        yield
    except paramiko.BadHostKeyException as error:
        offered, pinned = fingerprint(public_text(error.key)), fingerprint(public_text(error.expected_key))
        found = f"it offered the host key {offered}, but {pinned} is pinned"
        raise HostKeyChanged(tried, found, "Find out why before you pin the new key.") from error
    except paramiko.AuthenticationException as error:
        if not was_refused(error):
            found = f"the login got no response ({plain(error)})"
            raise Unreachable(tried, found, "It may be overloaded. Retrying automatically.", touched) from error
        found = f"the login was refused ({plain(error)})"
        raise HostError(tried, found, "Check the user, and that volmig's key is in its authorized_keys.") from error
    except (TimeoutError, paramiko.SSHException, OSError, EOFError) as error:
        found = plain(error)
        raise Unreachable(tried, found, "Retrying automatically.", touched) from error


def was_refused(error: paramiko.AuthenticationException) -> bool:
    """Whether the other end rejected the login. An overloaded one does not answer in time, or closes the connection.

    paramiko raises the same class for all three (AuthHandler.wait_for_response).
    """
    said = str(error)
    return not ("timeout" in said or "transport shut down" in said)


def plain(error: Exception) -> str:
    """What a socket or paramiko met, as a clause: no error number, no class, no full stop."""
    if isinstance(error, TimeoutError) or "timeout" in str(error).lower():
        return f"no response within {CONNECT_SECONDS} s"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.strerror:
        return reason(error)
    said = " ".join(str(error).split()).rstrip(". ")
    return re.sub(r"\[Errno -?\d+\] ", "", said) or "the connection was cut"


class SSHHost:
    """A hypervisor that was entered; one caller at a time, like the channel that it stands for."""

    def __init__(self, address: Address, connection: Connection | None, is_kept: bool = False) -> None:
        self.address, self.connection = address, connection
        self.is_kept = is_kept  # from an earlier call: its other end may have gone since
        self.is_streaming = False
        self.hash = address.hostctl or hostctl.source_hash()

    def __enter__(self) -> "SSHHost":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keeps the connection for the next call; one that streams is ended."""
        connection, self.connection = self.connection, None
        if connection and self.is_streaming:
            connection.close()
        elif connection:
            KEPT.keep(self.address, connection)

    def tunnel(self, host: str, port: int) -> paramiko.Channel:
        """Opens a direct-tcpip channel to a machine behind this one."""
        return self.transport().open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=CONNECT_SECONDS)

    def transport(self) -> paramiko.Transport:
        """The open transport; EOFError when the connection is closed."""
        transport = self.connection.client.get_transport() if self.connection else None
        if transport is None:
            raise EOFError("the connection is closed")
        return transport

    def call(self, request: Request, timeout: float = 20) -> Answer:
        """Calls a hostctl verb and returns its answer; `timeout` seconds bound the whole call."""
        output = self.ask(request, timeout)
        if self.address.shipped and output.says_missing():
            self.ship(timeout)
            output = self.ask(request, timeout)
        return self.understood(request, output)

    def ask(self, request: Request, timeout: float) -> "Output":
        """Sends one request to hostctl; what it wrote and its exit status."""
        document = self.document(request)
        return self.run(f"{phrase(request.verb)} on {self.address}", self.command(), document, timeout)

    def document(self, request: Request) -> bytes:
        """The request as one line of JSON, in the protocol of the version that it names."""
        return json.dumps(request.document(self.address.protocol) | {"hash": self.hash}).encode()

    def command(self) -> str:
        """The string for sshd; an installed hostctl is a forced command, which ignores it."""
        return f"/usr/bin/python3 -I {self.shipped_path()}" if self.address.shipped else "hostctl"

    def shipped_path(self) -> str:
        """Where an uploaded hostctl is, by its hash."""
        return f"{SHIPPED_DIRECTORY}/hostctl-{self.hash}"

    def ship(self, timeout: float) -> None:
        """Puts the version that is needed on the host, under a name with its hash, whole or not at all."""
        content = pack.bundle() if self.hash == hostctl.source_hash() else self.address.archive
        path, digest = self.shipped_path(), hashlib.sha256(content).hexdigest()
        part = f"{path}.{secrets.token_hex(4)}"
        script = (
            f"set -e; umask 077; mkdir -p {SHIPPED_DIRECTORY}; cat > {part}; "
            f"echo '{digest}  {part}' | sha256sum -c --status; sync {part}; mv -f {part} {path}"
        )
        tried = f"send hostctl {self.hash} to {self.address}"
        if not content:
            raise self.differs(tried, "volmig does not have the file of this version", ADD.format(hash=self.hash))
        output = self.run(tried, f"/bin/sh -c {shlex.quote(script)}", content, timeout)
        if output.status != 0:
            raise self.differs(tried, output.complaint(), "Check that /var/lib/volmig can be written by root.")

    def run(self, tried: str, command: str, stdin: bytes, timeout: float) -> "Output":
        """Runs a command; a kept connection that turns out dead is replaced once, if nothing was sent yet."""
        if self.is_kept:
            try:
                return self.run_once(tried, command, stdin, timeout, STALE_SECONDS)
            except Unreachable as error:
                if error.touched is not False:
                    raise
            if self.connection:
                self.connection.close()
            self.connection = log_in(self.address)
            self.is_kept = False  # not before: when this login fails, the next call tries one, too
        return self.run_once(tried, command, stdin, timeout, CONNECT_SECONDS)

    def run_once(self, tried: str, command: str, stdin: bytes, timeout: float, to_open: float) -> "Output":
        """The same without another try; `to_open` seconds for the channel, `timeout` for all of it."""
        output, sent = Output(), False
        with told_plainly(tried), self.deadline(timeout) as expired:
            channel = self.transport().open_session(timeout=min(timeout, to_open))
            channel.settimeout(timeout)
            channel.exec_command(command)
            with told_plainly(tried, touched=None):
                sent = True
                channel.sendall(stdin)
                channel.shutdown_write()
                output.drain(channel)
        # A connection that was cut looks like the end of the output; only an exit status proves a whole answer.
        if expired.is_set() or output.status == -1:
            found = f"no answer within {timeout:g} s" if expired.is_set() else "the connection was cut"
            raise Unreachable(tried, found, "Retrying automatically.", None if sent else False)
        return output

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Closes the connection when the time is over: some of paramiko's waits know no time-out."""
        expired, connection = threading.Event(), self.connection

        def expire() -> None:
            expired.set()
            if connection:
                connection.client.close()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()

    def understood(self, request: Request, output: "Output") -> Answer:
        """The response of hostctl; HostctlDiffers when it is missing or of another version, Garbled when it is not
        hostctl's."""
        tried = f"{phrase(request.verb)} on {self.address}"
        if output.says_missing():
            found = f"hostctl is not there ({output.complaint()})"
            raise self.differs(tried, found, "Install it as the hypervisor's page shows.")
        if output.overflowed:
            raise Garbled(tried, f"more than {ANSWER_CAP} bytes of response", "Check the hypervisor.", None)
        return self.answer(tried, output.stdout, output.complaint())

    def answer(self, tried: str, text: bytes, complaint: str) -> Answer:
        """The response, checked field by field; Garbled names those that are wrong."""
        document = parsed(text)
        if document is None:
            self.garbled(tried, f"{excerpt(text)} {complaint}".strip())
        self.same_hostctl(tried, document)
        document.setdefault("protocol", 1)  # versions before protocol 2 do not mention it
        faults = [name for name, types in ANSWER_TYPES.items() if not isinstance(document.get(name), types)]
        faults += sorted(set(document) - set(ANSWER_TYPES))
        if not faults and document["state"] not in STATES:
            faults = ["state"]
        if not faults and not all(isinstance(command, dict) for command in document["commands"]):
            faults = ["commands"]
        if faults:
            self.garbled(tried, f"wrong or unknown fields: {', '.join(faults)}")
        return Answer(**{name: value for name, value in document.items() if name not in ("hash", "protocol")})

    def same_hostctl(self, tried: str, document: dict[str, Any]) -> None:
        """Refuses (HostctlDiffers) a response of another version, with the way to install the right one."""
        found = document.get("hash")
        if not isinstance(found, str) or found == self.hash:
            return
        evidence, protocol = document.get("evidence"), document.get("protocol", 1)
        versions = evidence.get("versions") if isinstance(evidence, dict) else None
        error = self.differs(tried, f"it has hostctl {found[:16]}, volmig needs {self.hash}", self.way_out(protocol))
        error.has, error.protocol = found[:16], protocol if isinstance(protocol, int) else 0
        error.versions = tuple(str(each)[:16] for each in versions) if isinstance(versions, list) else (error.has,)
        # Another version refuses a request that names this one. Whatever else it says, it may have acted.
        error.touched = False if document.get("state") == "refused" else None
        raise error

    def differs(self, tried: str, found: str, next_step: str) -> HostctlDiffers:
        """The error with the version that the migration needs."""
        error = HostctlDiffers(tried, found, next_step)
        error.needs = self.hash
        return error

    def way_out(self, protocol: Any) -> str:
        """What to install, by the protocol of the other version."""
        if isinstance(protocol, int) and protocol > hostctl.PROTOCOL:
            speaks = f"This volmig speaks protocol {OLDEST} to {hostctl.PROTOCOL}; that hostctl speaks {protocol}"
            beside = f"Install version {self.hash} beside it, or upgrade this volmig."
            return f"{speaks}: it was installed by a newer volmig. {beside}"
        if self.hash == hostctl.source_hash():
            return "Install it as the hypervisor's page shows; volmig then resumes automatically."
        return BESIDE.format(hash=self.hash)

    def garbled(self, tried: str, found: str) -> NoReturn:
        """Raises Garbled: it is unknown whether anything was changed."""
        next_step = "Look for a banner or a shell start-up file that prints something."
        raise Garbled(tried, f"the response is not hostctl's: {found}", next_step, None)

    def watch(self) -> Iterator[dict[str, Any]]:
        """Yields progress, ended and beat lines; raises Unreachable after 10 s of silence."""
        tried, self.is_streaming = f"follow the progress on {self.address}", True
        with told_plainly(tried):
            with self.deadline(CONNECT_SECONDS):
                channel = self.transport().open_session(timeout=CONNECT_SECONDS)
                channel.settimeout(SILENCE_SECONDS)
                channel.exec_command(self.command())
                channel.sendall(self.document(Request("watch")))
                channel.shutdown_write()
            with contextlib.closing(channel):
                for line in lines(channel):
                    yield self.watched(tried, line)
        raise Unreachable(tried, "the watch ended", "Retrying automatically.")

    def watched(self, tried: str, line: bytes) -> dict[str, Any]:
        document = parsed(line)
        if document is None or len(line) > LINE_CAP:
            self.garbled(tried, excerpt(line))
        if len(document) != 1 or not set(document) <= {"progress", "ended", "beat"}:
            self.answer(tried, line, "")  # a refusal, or a hostctl of another hash
            self.garbled(tried, excerpt(line))
        return document


def lines(channel: paramiko.Channel) -> Iterator[bytes]:
    buffer = b""
    while chunk := channel.recv(65536):
        while channel.recv_stderr_ready():  # unread, it would use up the window that both streams share
            channel.recv_stderr(65536)
        *whole, buffer = (buffer + chunk).split(b"\n")
        yield from (line for line in whole if line)
        if len(buffer) > LINE_CAP:
            yield buffer


class Output:
    """What a command printed, within caps, and its exit status (-1: none came)."""

    def __init__(self) -> None:
        self.stdout, self.stderr, self.status, self.overflowed = b"", b"", -1, False

    def drain(self, channel: paramiko.Channel) -> None:
        """Reads both streams to their end, then the status: the other order hangs on large outputs."""
        parts, size, limit = [], 0, time.monotonic() + (channel.gettimeout() or 0)
        channel.settimeout(0.2)  # both streams share a window, so neither may be waited for alone
        while not self.overflowed:
            while channel.recv_stderr_ready():
                self.stderr = (self.stderr + channel.recv_stderr(65536))[-STDERR_KEPT:]
            try:
                chunk = channel.recv(65536)
            except TimeoutError:
                if time.monotonic() > limit:
                    raise
                continue
            if not chunk:
                break
            parts.append(chunk)
            size += len(chunk)
            self.overflowed = size > ANSWER_CAP
        self.stdout = b"".join(parts)
        self.finish(channel, limit)

    def finish(self, channel: paramiko.Channel, limit: float) -> None:
        if not self.overflowed and channel.status_event.wait(max(0.0, limit - time.monotonic())):
            self.status = channel.recv_exit_status()
            while channel.recv_stderr_ready():
                self.stderr = (self.stderr + channel.recv_stderr(65536))[-STDERR_KEPT:]
        if self.overflowed:
            self.status = 0
        channel.close()

    def says_missing(self) -> bool:
        signs = (b"can't open file", b"command not found", b"No such file or directory", b"not found")
        return not self.stdout and self.status != 0 and any(sign in self.stderr for sign in signs)

    def complaint(self) -> str:
        return f"{excerpt(self.stderr)} (exit {self.status})" if self.stderr else f"(exit {self.status})"


def excerpt(text: bytes) -> str:
    shown = text[:200].decode(errors="replace")
    return repr("".join(letter if letter.isprintable() else " " for letter in shown).strip())


def parsed(text: bytes) -> dict[str, Any] | None:
    """Returns the one JSON object that the text is, or None."""
    try:
        document = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
