"""A real sshd on a loopback port whose only command is a small stand-in for hostctl."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hosts.remote import hostctl
from hosts.remote.host import Address
from tests.family import end_all
from tests.rig import free_port

# HOME: the start files of whoever runs the tests are no part of them; one that is killed half way may leave a lock.
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {home}/host_key
PidFile none
AuthorizedKeysFile {home}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
LogLevel INFO
SetEnv HOME={home}
"""
# Notes each request, then answers what the test left in the file "answer".
STAND_IN = """#!{python} -I
import pathlib, sys
home = pathlib.Path({home!r})
request = sys.stdin.buffer.read()
with (home / "requests").open("ab") as log:
    log.write(request + b"\\n")
exec((home / "behaviour").read_text())
sys.stdout.buffer.write((home / "answer").read_bytes())
"""


class Sshd:
    """Start it with `with`; `address` is how to enter it, `requests()` what reached its command."""

    def __init__(self, home: Path, forced: bool = True, user_key: Path | None = None) -> None:
        self.home, self.forced, self.port = home, forced, free_port()
        home.mkdir(parents=True, exist_ok=True)
        self.user_key = user_key or keygen(home / "user_key")
        self.new_host_key()

    def __enter__(self) -> "Sshd":
        self.prepare()
        os.makedirs("/run/sshd", exist_ok=True)
        command = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(self.home / "config")]
        self.process = subprocess.Popen(command, stderr=(self.home / "log").open("ab"), start_new_session=True)
        wait_for_port(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        left = self.sessions
        self.signal(left, signal.SIGCONT)
        end_all([self.process], 10)
        self.signal(left, signal.SIGKILL)

    def prepare(self) -> None:
        script = self.home / "stand_in"
        script.write_text(STAND_IN.format(python=sys.executable, home=str(self.home)))
        script.chmod(0o755)
        options = f'restrict,command="{script}" ' if self.forced else ""
        public = self.user_key.with_suffix(".pub").read_text()
        (self.home / "authorized_keys").write_text(options + public)
        (self.home / "config").write_text(CONFIG.format(port=self.port, home=self.home))
        self.behave("")
        self.answer({"state": "done"})

    def new_host_key(self) -> None:
        keygen(self.home / "host_key")
        kind, body, *_ = (self.home / "host_key.pub").read_text().split()
        self.host_key = f"{kind} {body}"

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port, "root", self.host_key, not self.forced, str(self.user_key))

    def behave(self, code: str) -> None:
        (self.home / "behaviour").write_text(code)

    def answer(self, fields: dict | bytes) -> None:
        whole = {"state": "done", "evidence": {}, "commands": [], "error": None, "unit": "", "boot_id": ""}
        whole["hash"] = hostctl.source_hash()
        raw = fields if isinstance(fields, bytes) else json.dumps(whole | fields).encode()
        (self.home / "answer").write_bytes(raw)

    def requests(self) -> list[dict]:
        log = self.home / "requests"
        return [json.loads(line) for line in log.read_bytes().splitlines()] if log.exists() else []

    @property
    def sessions(self) -> list[int]:
        """Processes of the connections, not the listener."""
        listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listing.splitlines()[1:]]
        family, found = {self.process.pid}, []
        for pid, parent in pairs:
            if parent in family:
                family.add(pid)
                found.append(pid)
        return found

    def freeze(self) -> None:
        self.signal(self.sessions, signal.SIGSTOP)

    def signal(self, pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def keygen(path: Path) -> Path:
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def wait_for_port(port: int) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")
