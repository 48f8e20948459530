"""The data directory: where it is, and the secrets kept in it that are made on first use."""

import errno
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

EVIDENCE_KEY = "evidence_key"


def directory() -> Path:
    """Returns the data directory (VOLMIG_DATA, default ./var), made with mode 0700 when missing."""
    path = Path(os.environ.get("VOLMIG_DATA", "var")).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def provisional_file(path: Path, content: bytes) -> Path:
    """Writes a 0600 file beside `path`, to be put in its place in one step."""
    provisional = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(provisional, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError:
        provisional.unlink()
        raise
    finally:
        os.close(descriptor)
    return provisional


def write_all(descriptor: int, content: bytes) -> None:
    """Writes everything: os.write() may write less, as where a disk is full for a moment. Raises OSError."""
    view = memoryview(content)
    while view:
        if not (written := os.write(descriptor, view)):
            raise OSError(errno.EIO, "the disk takes no more")
        view = view[written:]


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk: a file may otherwise be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Puts a new 0600 file in the place of an old one; readers see the old or the new, never a part."""
    provisional_file(path, content).replace(path)
    sync_directory(path.parent)


def write_once(path: Path, content: bytes) -> bytes:
    """Writes a 0600 file unless it exists; returns what the file holds, whoever won the race."""
    provisional = provisional_file(path, content)
    try:
        os.link(provisional, path)  # unlike rename, link never replaces what another process wrote first
        sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        provisional.unlink()
    return path.read_bytes()


def evidence_key(first: Callable[[], bytes]) -> bytes:
    """Returns what the file of the keys for evidence holds; `first` makes its content on first use.

    Only the processes that publish read it: workers, which publish heads, and the web process, which makes archives.
    """
    path = directory() / EVIDENCE_KEY
    return path.read_bytes() if path.exists() else write_once(path, first())


def secret(name: str) -> str:
    """Returns the secret kept under this name, made on first use."""
    path = directory() / name
    content = path.read_bytes() if path.exists() else write_once(path, secrets.token_urlsafe(48).encode())
    return content.decode().strip()


def seal_key(hypervisor: str, generation: int) -> str:
    """Returns the key (64 hex digits) under which approvals are sealed for this hypervisor.

    It is derived from one secret by the hypervisor's name; another generation is another key.
    """
    purpose = f"volmig seal key {generation} of {hypervisor}".encode()
    return HKDF(hashes.SHA256(), 32, None, purpose).derive(secret("seal_key").encode()).hex()


def ssh_key() -> Path:
    """Returns the path of volmig's own private SSH key, made on first use."""
    path = directory() / "ssh_key"
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        write_once(
            path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            ),
        )
    return path


def ssh_public_key(path: Path) -> str:
    """Returns the public half as one authorized_keys line; raises ValueError when the key has a passphrase."""
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except TypeError as error:
        raise ValueError(f"{path} is protected by a passphrase") from error
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode()} volmig"
