"""Installs, once per machine and recipe, MariaDB and RabbitMQ from Debian and OpenStack from PyPI."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("VOLMIG_CLOUD_CACHE", "/var/cache/volmig-cloud"))
UNUSED_DAYS = 14
PYTHON = Path(sys.executable).resolve()

# Debian package -> a file that proves it is there. The -core packages hold no service that could start.
PACKAGES = {
    "mariadb-server-core": "/usr/sbin/mariadbd",
    "mariadb-client-core": "/usr/bin/mariadb",
    "rabbitmq-server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
}
GUARD = Path("/usr/sbin/policy-rc.d")


@dataclass(frozen=True)
class Installation:
    """What one recipe installed: OpenStack in `venv`, and beside it the seeded states that were made with it."""

    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def bin(self) -> Path:
        return self.venv / "bin"


def ensure() -> Installation:
    """Return the installation of the present recipe; makes it (about a minute) when the cache has none."""
    require_root()
    CACHE.mkdir(parents=True, exist_ok=True)
    installation = Installation(CACHE / recipe())
    with lock():
        _packages()
        if not installation.folder.exists():
            _install(installation)
        os.utime(installation.folder)
        drop_unused(CACHE.iterdir(), installation.folder)
    return installation


def recipe() -> str:
    """Hash of everything that decides what is installed from PyPI, and for which Python."""
    digest = hashlib.sha256(f"{PYTHON} {sys.version}".encode())
    for name in ("requirements.txt", "constraints.txt"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def require_root() -> None:
    if os.geteuid() != 0 or sys.platform != "linux":
        raise SystemExit("The control plane for tests needs Linux and root: it installs and runs Debian's MariaDB.")


def say(text: str) -> None:
    print(f"cloud: {text}", file=sys.stderr, flush=True)


@contextmanager
def lock() -> Iterator[None]:
    """Keep the cache to oneself."""
    with (CACHE / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def drop_unused(folders: Iterable[Path], used: Path) -> None:
    """Remove the folders of other recipes that nobody has used for a while."""
    for folder in folders:
        age = time.time() - folder.stat().st_mtime
        if folder.is_dir() and folder != used and age > UNUSED_DAYS * 86400:
            shutil.rmtree(folder)


def _packages() -> None:
    missing = [package for package, proof in PACKAGES.items() if not Path(proof).exists()]
    if missing:
        say(f"installing on this machine: {' '.join(missing)}")
        with _nothing_starts():
            _apt(["update", "-qq"])
            _apt(["install", "-y", "-qq", "--no-install-recommends", *missing])


@contextmanager
def _nothing_starts() -> Iterator[None]:
    """Forbid packages to start their services meanwhile: Debian's RabbitMQ would listen on every address."""
    if GUARD.exists():  # the machine's own word on that stands
        yield
        return
    GUARD.write_text("#!/bin/sh\nexit 101\n")
    GUARD.chmod(0o755)
    try:
        yield
    finally:
        GUARD.unlink(missing_ok=True)


def _apt(arguments: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["/usr/bin/apt-get", *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


def _install(installation: Installation) -> None:
    """Install beside the final place; scripts name their interpreter by path, so they are run by it, never by name."""
    began = time.monotonic()
    say("installing OpenStack from PyPI, once: about a minute")
    part = CACHE / f"{installation.folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    subprocess.run([PYTHON, "-m", "venv", part / "venv"], check=True)
    pip = [part / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with (CACHE / "pip.log").open("wb") as log:
        wanted = ["-r", HERE / "requirements.txt", "-c", HERE / "constraints.txt"]
        done = subprocess.run([*pip, *wanted], stdout=log, stderr=log)
    if done.returncode:
        raise SystemExit(f"pip failed; its log is {CACHE / 'pip.log'}")
    part.rename(installation.folder)
    say(f"installed after {time.monotonic() - began:.0f} s in {installation.folder}")
