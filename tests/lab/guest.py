"""One guest of the lab, as a test sees it: run commands in it, read its disks, install hostctl on it."""

import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import network

HOSTCTL = "/usr/local/libexec/volmig-hostctl"
POLICY = "/etc/volmig/hostctl.json"
SUDOERS = f"""Defaults:volmig !use_pty
volmig ALL=(root) NOPASSWD: {HOSTCTL} ""
"""
SCRIPTS = Path(__file__).parent / "scripts"


class CommandError(Exception):
    """A command in a guest ended with a status other than 0; the message holds its last words."""


@dataclass(frozen=True)
class Guest:
    """A booted machine. `port` is its SSH port on 127.0.0.1, `key` the private key that lets root in."""

    name: str
    nets: tuple[str, ...]
    memory: str
    port: int
    key: Path
    sockets: Path  # where the shared SSH connection's socket lies; short, for a socket's path has a length limit

    def address(self, net: str) -> str:
        """IPv4 address on mgmt, data or storage."""
        return network.address(self.name, net)

    @property
    def host_key(self) -> str:
        """The guest's public host key, `ssh-ed25519 AAAA…`."""
        return " ".join(self.run("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[:2])

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        stdin: bytes | str = b"",
        timeout: float = 120,
        user: str = "root",
    ) -> str:
        """Run a shell command or an argv in the guest; returns its standard output.

        Raises CommandError on another status than 0 (unless check is false), TimeoutExpired after `timeout` seconds.
        """
        text = command if isinstance(command, str) else shlex.join(command)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        shared = self._shared() if user == "root" else ["-o", "ControlPath=none"]
        done = subprocess.run(
            [*self._ssh(user), *shared, "--", text], input=given, capture_output=True, timeout=timeout
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise CommandError(f"{self.name}: status {done.returncode} from: {text}\n{said[-2000:]}")
        return done.stdout.decode(errors="replace")

    def script(self, name: str, /, *, check: bool = True, timeout: float = 120, **variables: str) -> str:
        """Run tests/lab/scripts/<name>.sh in the guest with the given variables set."""
        heading = "".join(f"{key}={shlex.quote(value)}\n" for key, value in variables.items())
        body = (SCRIPTS / f"{name}.sh").read_text()
        return self.run("sh -s", stdin=heading + body, check=check, timeout=timeout)

    def write(self, path: str, content: bytes | str, mode: str = "0644") -> None:
        """Write a root-owned file."""
        quoted = shlex.quote(path)
        self.run(f"install -D -m {mode} -o root -g root /dev/stdin {quoted}", stdin=content)

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return subprocess.run(
            [*self._ssh("root"), *self._shared(), "--", shlex.join(["cat", "--", path])],
            check=True, capture_output=True, timeout=120,
        ).stdout  # fmt: skip

    def sha256(self, path: str) -> str:
        """SHA-256 in hex of a file's or a device's bytes."""
        return self.run(["sha256sum", "--", path], timeout=600).split()[0]

    def install_hostctl(self, bundle: bytes, public_key: str) -> None:
        """Install hostctl as administrators do for the user `volmig`: forced command, sudo without arguments."""
        self.write("/root/hostctl", bundle, "0700")
        self.run("/usr/bin/python3 -I /root/hostctl install && rm /root/hostctl")
        self.write("/etc/sudoers.d/volmig", SUDOERS, "0440")
        line = f'restrict,command="sudo -n {HOSTCTL}" {public_key.strip()}\n'
        self.write("/home/volmig/.ssh/authorized_keys", line, "0600")
        self.run("chown -R volmig: /home/volmig/.ssh")

    def install_policy(self, content: bytes) -> None:
        """Put a policy file where hostctl reads it, as administrators do."""
        self.run("install -d -m 0755 -o root -g root /etc/volmig")
        self.write(POLICY, content, "0600")

    def wait_ssh(self, seconds: float = 120) -> None:
        """Return when sshd answers; raises TimeoutError otherwise."""
        deadline = time.monotonic() + seconds
        while not self._banner():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} does not answer on SSH after {seconds:.0f} s; see its log")
            time.sleep(0.3)

    def wait(self, command: str, seconds: float = 60) -> None:
        """Return when a command in the guest succeeds; raises CommandError otherwise."""
        self.run(
            f"for i in $(seq {int(seconds * 5)}); do {command} && exit; sleep 0.2; done; exit 1", timeout=seconds + 30
        )

    def disconnect(self) -> None:
        """Drop the shared SSH connection; the next command makes a new one."""
        if self._socket.exists():
            subprocess.run([*self._ssh("root"), "-S", str(self._socket), "-O", "exit"], capture_output=True)
            self._socket.unlink(missing_ok=True)

    def interactive(self, words: Sequence[str]) -> int:
        """An SSH session on this terminal; returns its exit status."""
        return subprocess.run([*self._ssh("root"), *words]).returncode

    def way_in(self, sockets: Path) -> list[str]:
        """The argv by which another program runs commands as root: followed by one, its words unquoted.

        It keeps a connection of its own in the folder `sockets`.
        """
        shared = ["ControlMaster=auto", f"ControlPath={sockets / self.name}.ssh", "ControlPersist=60"]
        return [*self._ssh("root"), *(word for option in shared for word in ("-o", option)), "--"]

    @property
    def _socket(self) -> Path:
        return self.sockets / f"{self.name}.ssh"

    def _ssh(self, user: str) -> list[str]:
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += ["ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=6", "IdentitiesOnly=yes"]
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), *flags, f"{user}@127.0.0.1"]

    def _shared(self) -> list[str]:
        """Options for the connection that all commands share: a new one costs 0.3 s, a shared one 0.03 s."""
        if not self._socket.exists():
            master = ["-f", "-N", "-M", "-S", str(self._socket), "-o", "ControlPersist=yes"]
            quiet = subprocess.DEVNULL
            subprocess.run(
                [*self._ssh("root"), *master], check=False, stdin=quiet, stdout=quiet, stderr=quiet, timeout=60
            )
        return ["-S", str(self._socket)]

    def _banner(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=4) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False
