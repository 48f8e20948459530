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


@contextlib.contextmanager
def cluster(*more: str) -> Iterator[str]:
    """Starts one and gives the value for VOLMIG_DB; `more` are settings such as shared_buffers=256MB."""
    where = programs()
    if where is None:
        raise RuntimeError("No PostgreSQL on this machine: apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="volmig-pg-"))
    data = directory / "data"
    owner = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name  # it refuses to run as root
    if os.geteuid() == 0:
        shutil.chown(directory, owner)

    def run(program: str, *words: str) -> None:
        subprocess.run([where / program, *words], user=owner, cwd=directory, check=True, stdout=subprocess.DEVNULL)

    options = " ".join(f"-c {each}" for each in (*FAST, f"unix_socket_directories={directory}", *more))
    run("initdb", "-D", str(data), "-U", "volmig", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8")
    run("pg_ctl", "-D", str(data), "-w", "-l", str(directory / "log"), "-o", options, "start")
    try:
        run("createdb", "-h", str(directory), "-U", "volmig", "volmig")
        yield f"postgres://volmig@/volmig?host={directory}"
    finally:
        run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """`python -m tests.postgresql tests/jobs …`: these tests on PostgreSQL in place of SQLite."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no PostgreSQL is left running
    with cluster() as address:
        environment = {**os.environ, "VOLMIG_DB": address}
        return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
