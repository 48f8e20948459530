"""A PostgreSQL of its own, from Debian's package, on a socket in a temporary directory; gone when it is not needed."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

FAST = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "listen_addresses=",
    "max_wal_size=4GB",
    "max_connections=200",
)


def programs() -> Path | None:
    """Where the newest PostgreSQL on this machine keeps its programs; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class Server:
    """One in a new directory, not started yet; `more` are settings such as shared_buffers=256MB."""

    def __init__(self, *more: str) -> None:
        where = programs()
        if where is None:
            raise RuntimeError("No PostgreSQL on this machine: apt-get install postgresql")
        self.where, self.directory = where, Path(tempfile.mkdtemp(prefix="volmig-pg-"))
        self.data = self.directory / "data"
        self.options = " ".join(f"-c {each}" for each in (*FAST, f"unix_socket_directories={self.directory}", *more))
        root = os.geteuid() == 0
        self.owner = "postgres" if root else pwd.getpwuid(os.geteuid()).pw_name  # it refuses to run as root
        if root:
            shutil.chown(self.directory, self.owner)
        made = ("-U", "volmig", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8")
        self.run("initdb", "-D", str(self.data), *made)

    @property
    def address(self) -> str:
        """The value for VOLMIG_DB."""
        return f"postgres://volmig@/volmig?host={self.directory}"

    def run(self, program: str, *words: str) -> None:
        command = [self.where / program, *words]
        subprocess.run(command, user=self.owner, cwd=self.directory, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        log = str(self.directory / "log")
        self.run("pg_ctl", "-D", str(self.data), "-w", "-l", log, "-o", self.options, "start")

    def stop(self, how: str = "immediate") -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "-m", how, "stop")


@contextlib.contextmanager
def server(*more: str) -> Iterator[Server]:
    """One that runs, with the database volmig, and is gone afterwards."""
    one = Server(*more)
    try:
        one.start()
        one.run("createdb", "-h", str(one.directory), "-U", "volmig", "volmig")
        yield one
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):  # it may have been stopped
            one.stop()
        shutil.rmtree(one.directory, ignore_errors=True)


@contextlib.contextmanager
def cluster(*more: str) -> Iterator[str]:
    """Starts one and gives the value for VOLMIG_DB."""
    with server(*more) as one:
        yield one.address


def main() -> int:
    """`python -m tests.postgresql tests/jobs …`: these tests on PostgreSQL in place of SQLite."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no PostgreSQL is left running
    with cluster() as address:
        environment = {**os.environ, "VOLMIG_DB": address}
        return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
