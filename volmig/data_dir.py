"""The data directory: where it is, and the keys kept in it.

Reading a key never makes one: the database decides whether this machine may, see volmig.keys.
"""

import errno
import hashlib
import os
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.core.exceptions import ImproperlyConfigured

AUDIT_KEY, EVIDENCE_KEY, SEALING_KEYS = "audit_key", "evidence_key", "sealing_keys"
SHORTEST = 32  # characters of a key that volmig did not make, so that nobody guesses it from its fingerprint
# Which processes may read a key: those that serve pages, or those that reach out to hypervisors. All others may be read
# by both. A process that is neither (a command typed by a person) reads them all.
OWNERS = {
    "secret_key": "web",  # signs sessions
    "factor_key": "web",  # under which second factors are kept
    "seal_key": "web",  # approvals are sealed with keys derived from it
    "worker_key": "worker",  # Django's SECRET_KEY where no session is
    "ssh_key": "worker",
}
KEYS = (*OWNERS, AUDIT_KEY, EVIDENCE_KEY, SEALING_KEYS)
PUBLIC_SSH_KEY = "ssh_key.pub"
# Keys that did not exist when the settings were read: in memory only, until volmig.keys stores or replaces them.
provisional: dict[str, str] = {}


class NotForThisProcess(RuntimeError):  # noqa: N818 - the word that callers read
    """A process of another kind has this key."""


def kind() -> str:
    """Returns what this process is (VOLMIG_PART, set by `manage.py up`): web, worker, or neither ("")."""
    part = os.environ.get("VOLMIG_PART", "")
    return part if part in ("", "web") else "worker"


def may_read(name: str) -> bool:
    """False for a key of the other kind of process (VOLMIG_PART)."""
    return not kind() or OWNERS.get(name, kind()) == kind()


def key_path(name: str) -> Path:
    """Returns where a key is kept; raises NotForThisProcess where the processes of another kind have it.

    Keys of one kind can be in a separate directory (VOLMIG_KEYS_WEB, VOLMIG_KEYS_WORKER), which another user owns, and
    each key can be a separate file, which volmig only reads (VOLMIG_AUDIT_KEY_FILE and so on).
    """
    if not may_read(name):
        raise NotForThisProcess(f"{name} is not for the process {os.environ['VOLMIG_PART']}, which must not read it.")
    if given := os.environ.get(f"VOLMIG_{variable(name)}", ""):
        return Path(given).absolute()
    own = os.environ.get(f"VOLMIG_KEYS_{OWNERS[name].upper()}", "") if name in OWNERS else ""
    return Path(own).absolute() / name if own else directory() / name


def kept_at(name: str) -> Path:
    """Returns where people keep a key: a unit has a copy of it for as long as it runs (systemd's LoadCredential=)."""
    path, kept = key_path(name), os.environ.get("VOLMIG_KEYS_KEPT", "")
    is_copy = str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(kept) / name if kept and is_copy else path


def variable(name: str) -> str:
    """Returns the name, without VOLMIG_, of the variable that names the file of a key."""
    return f"{name.upper()}_FILE"


def variables_of(owner: str) -> list[str]:
    """Returns the variables that say where the keys of one kind of process are."""
    return [f"VOLMIG_KEYS_{owner.upper()}", *(f"VOLMIG_{variable(name)}" for name, of in OWNERS.items() if of == owner)]


def is_given(name: str) -> bool:
    """Whether a variable names this key's file, which volmig then never writes."""
    return bool(os.environ.get(f"VOLMIG_{variable(name)}", ""))


def own_keys() -> dict[str, Path]:
    """Returns the keys, by name, that are outside the data directory."""
    named = {name: key_path(name) for name in KEYS if may_read(name)}
    # Resolved, for Kubernetes has links in place of the files of secrets.
    return {name: path.resolve() for name, path in named.items() if path != directory() / name and path.exists()}


def directory() -> Path:
    """Returns the data directory (VOLMIG_DATA, default ./var), made with mode 0700 when missing."""
    path = Path(os.environ.get("VOLMIG_DATA", "var")).absolute()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def here() -> str:
    """What this machine is called: at most 64 characters, as Linux has it, on which columns rely."""
    return socket.gethostname()[:64]


def place(where: Path) -> str:
    """Names a directory by where it is: a copy of it, on this machine or another, is in another place."""
    here = Path(where).resolve()
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return hashlib.sha256(f"{machine}\n{here}\n{here.stat().st_ino}".encode()).hexdigest()[:32]


def provisional_file(path: Path, content: bytes) -> Path:
    """Writes a 0600 file beside `path`, to be put in its place in one step."""
    provisional = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    write_whole(provisional, content)
    return provisional


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file (0600) that must not exist; one that cannot be written whole is removed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Writes everything: os.write() may write less, as where a disk is full for a moment. Raises OSError."""
    view = memoryview(content)
    while view:
        if not (written := os.write(descriptor, view)):
            raise OSError(errno.EIO, "the disk is full")
        view = view[written:]


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk: a file may otherwise be gone after a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(path: Path, directory: Path) -> None:
    """Lets the group of a directory do with a file what it may do with the directory: web and workers may be two."""
    of = directory.stat()
    with suppress(PermissionError):  # a group that this user is not in, or a file of another user
        os.chown(path, -1, of.st_gid)
        path.chmod(0o600 | of.st_mode & 0o060)


def replace(path: Path, content: bytes, shared: bool = False) -> None:
    """Puts a new file in the place of an old one; readers see the old or the new, never a part.

    It is readable for whom the old one was, its owner (0600) where there was none: a group that shares keys keeps them.
    A `shared` file is for the group of its directory.
    """
    provisional = provisional_file(path, content)
    if shared:
        share(provisional, path.parent)
    else:
        keep_readers(path, provisional)
    provisional.replace(path)
    sync_directory(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Writes a file (0600) that must not exist, so that it is there after a power cut, too."""
    write_whole(path, content)
    sync_directory(path.absolute().parent)


def keep_readers(path: Path, new: Path) -> None:
    """Makes a new file readable for the group that may read the one in whose place it will be."""
    with suppress(FileNotFoundError):
        before = path.stat()
        with suppress(PermissionError):  # of a group that this user is not in
            os.chown(new, -1, before.st_gid)
            new.chmod(stat.S_IMODE(before.st_mode) & 0o660)


def next_to(path: Path) -> Path:
    """Where the file waits that will take the place of this one.

    By a name that no person gives a file: what waits there unregistered is removed, and a key that an operator has just
    made as ssh_key.new is theirs.
    """
    return path.with_name(f"{path.name}.volmig-replacement")


def write_next_to(path: Path, content: bytes) -> None:
    """Writes the file that will take the place of `path`, whole or not at all."""
    provisional = provisional_file(path, content)
    keep_readers(path, provisional)
    provisional.replace(next_to(path))
    sync_directory(path.parent)


def put_in_place(path: Path) -> None:
    """Lets the file that waits next to `path` take its place, in one step."""
    next_to(path).replace(path)
    sync_directory(path.parent)


def write_once(path: Path, content: bytes, shared: bool = False) -> bytes:
    """Writes a file unless it exists; returns what the file holds, whoever won the race.

    Its mode is 0600; a `shared` file is for the group of its directory, unless everybody may enter that: its group may
    then be that of all people of this machine.
    """
    provisional = provisional_file(path, content)
    try:
        if shared and not path.parent.stat().st_mode & 0o007:
            share(provisional, path.parent)
        os.link(provisional, path)  # unlike rename, link never replaces what another process wrote first
        sync_directory(path.parent)
    except FileExistsError:
        pass
    finally:
        provisional.unlink()
    return path.read_bytes()


def key(name: str) -> bytes | None:
    """Returns what the file of a key holds; None without one. Raises OSError, and ImproperlyConfigured for a file that
    an operator named and that holds no key."""
    path = key_path(name)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if is_given(name):
            raise ImproperlyConfigured(f"VOLMIG_{variable(name)}: {path} does not exist.") from None
        return None
    if is_given(name) and len(content.strip()) < SHORTEST:
        found = f"{path} has {len(content.strip())} characters; a key has at least {SHORTEST}"
        raise ImproperlyConfigured(f"VOLMIG_{variable(name)}: {found}.")
    return content


def make(name: str, content: bytes = b"") -> bytes:
    """Makes a key unless its file exists; returns what the file then holds, whichever process made it.

    A key that both kinds of processes need is readable for their group, where the data directory belongs to one.
    """
    first = content or provisional.get(name, "").encode() or new(name)
    return write_once(key_path(name), first, shared=name not in OWNERS)


def new(name: str) -> bytes:
    """A new key; that for evidence is made in volmig.record.signing."""
    if name == SEALING_KEYS:
        return Fernet.generate_key() + b"\n"
    if name == "ssh_key":
        return Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    return secrets.token_urlsafe(48).encode()


def secret(name: str) -> str:
    """Returns the secret kept under this name. Raises FileNotFoundError where there is none."""
    content = key(name)
    if content is None:
        raise FileNotFoundError(errno.ENOENT, "this machine has no such key; run manage.py keys", str(key_path(name)))
    return content.decode().strip()


def secret_or_provisional(name: str) -> str:
    """For the settings, which are read before the database is available: without a file a new secret, in memory."""
    try:
        content = key(name)
        if content is not None:
            return content.decode().strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ImproperlyConfigured(f"The key {name} in {key_path(name)} cannot be read: {why}.") from None
    return provisional.setdefault(name, new(name).decode())


def seal_key(hypervisor: str, generation: int) -> str:
    """Returns the key (64 hex digits) under which approvals are sealed for this hypervisor.

    It is derived from one secret by the hypervisor's name; another generation is another key.
    """
    purpose = f"volmig seal key {generation} of {hypervisor}".encode()
    return HKDF(hashes.SHA256(), 32, None, purpose).derive(secret("seal_key").encode()).hex()


def ssh_key() -> Path:
    """Returns the path of volmig's own private SSH key; pages show the public half, which is kept beside it.

    Raises FileNotFoundError where there is none.
    """
    path = key_path("ssh_key")
    secret("ssh_key")
    publish_ssh_key(path)
    return path


def publish_ssh_key(path: Path) -> None:
    """Keeps the public half of a private key where pages find it, who must not read the private one."""
    public = directory() / PUBLIC_SSH_KEY
    try:
        line = ssh_public_key(path)
    except (ValueError, OSError):
        return  # with a passphrase, or not there: an administrator gives the public half out
    if not public.exists() or public.read_text().strip() != line:
        replace(public, line.encode() + b"\n", shared=True)


def published_ssh_key() -> str:
    """Returns the public half as one authorized_keys line; empty while no worker has started yet."""
    try:
        return (directory() / PUBLIC_SSH_KEY).read_text().strip()
    except OSError:
        return ""


def ssh_public_key(path: Path) -> str:
    """Returns the public half as one authorized_keys line; raises ValueError when the key has a passphrase."""
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except TypeError as error:
        raise ValueError(f"{path} is protected by a passphrase") from error
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode()} volmig"
