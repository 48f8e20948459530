"""The archive: members with their hashes behind a manifest, in one .tar.gz, encrypted with age for its recipients.

Whoever hands over an archive is not trusted: every member has to be named by the manifest with size and SHA-256, names
are checked, links and devices are refused, and nothing is written outside of the directory that was asked for.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import pyrage

FORMAT = 1
MANIFEST = "manifest.json"
LONGEST_MANIFEST = 8 << 20  # bytes
AGE, GZIP = b"age-encryption.org/v1", b"\x1f\x8b"
PART = r"[A-Za-z0-9_@+:][A-Za-z0-9._@+:-]*"  # never "..", nothing hidden
NAME = re.compile(rf"database\.(sqlite3|pgdump)|audit_heads|settings\.json|data(/{PART})+", re.ASCII)
CHUNK = 1 << 20


class BadArchiveError(Exception):
    """The file is no archive that volmig restores; the message says why, in one sentence."""


@dataclass(frozen=True)
class Member:
    """A file of a backup: its name in the archive, bytes and hash."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an archive holds and of what; `about` is for people and for the check whether it fits this version.

    about: made_at (ISO 8601), versions, vendor ("sqlite" or "postgresql"), migrations (app -> names), events, head,
    jobs (status -> count), left_out (files of the data directory that are not in it, with the reason).
    """

    about: dict[str, Any]
    members: list[Member] = field(default_factory=list)

    def to_json(self) -> bytes:
        """The first member of an archive."""
        return json.dumps({"volmig_backup": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Manifest":
        """The manifest that an archive begins with; BadArchiveError for another format, or one that is malformed."""
        try:
            found = json.loads(text)
            known, about = found["volmig_backup"], dict(found["about"])
            members = [Member(str(row["name"]), int(row["size"]), str(row["sha256"])) for row in found["members"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadArchiveError("volmig did not write its manifest.") from error
        if known != FORMAT:
            raise BadArchiveError(f"It has format {known}; this volmig reads format {FORMAT}.")
        made = cls(about, members)
        made.check_names()
        return made

    def check_names(self) -> None:
        """BadArchiveError for a name outside of what backups have, twice the same, or no database."""
        names = [member.name for member in self.members]
        for name in names:
            if not NAME.fullmatch(name):
                raise BadArchiveError(f"Its manifest names a file that no backup contains: {name!r}.")
        if len(set(names)) != len(names):
            raise BadArchiveError("Its manifest names a file twice.")
        if sum(name.startswith("database.") for name in names) != 1:
            raise BadArchiveError("It contains no database.")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Writing


def write(stage: Path, about: dict[str, Any], target: Path, recipients: list[Any]) -> None:
    """Packs every file below `stage` into `target` (mode 0600), which must not exist; raises FileExistsError."""
    files = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
    manifest = Manifest(about, [Member(name, path.stat().st_size, digest(path)) for name, path in files.items()])
    manifest.check_names()
    with private_file(target) as file:
        if recipients:
            with tempfile.TemporaryFile(dir=stage) as plain:
                _pack(plain, manifest, files)
                plain.seek(0)
                pyrage.encrypt_io(plain, file, recipients)
        else:
            _pack(file, manifest, files)


def _pack(file: IO[bytes], manifest: Manifest, files: dict[str, Path]) -> None:
    text = manifest.to_json()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as tar:
        _add(tar, MANIFEST, io.BytesIO(text), len(text))
        for member in manifest.members:
            with files[member.name].open("rb") as content:
                _add(tar, member.name, content, member.size)


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    tar.addfile(entry, content)


@contextlib.contextmanager
def private_file(target: Path) -> Iterator[IO[bytes]]:
    """A new 0600 file that gets its name only when it is complete and on the disk."""
    if target.exists():
        raise FileExistsError(target)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(name, target)  # unlike rename, it never replaces what another process wrote meanwhile
    finally:
        Path(name).unlink()


# Reading


@contextlib.contextmanager
def opened(path: Path, identities: list[Any]) -> Iterator[IO[bytes]]:
    """The .tar.gz within; raises BadArchiveError when it is none, or cannot be decrypted."""
    with path.open("rb") as file:
        begins = file.read(len(AGE))
        file.seek(0)
        if begins.startswith(GZIP):
            yield file
        elif begins == AGE:
            if not identities:
                raise BadArchiveError("It is encrypted: name the file with the key by --identity.")
            with tempfile.TemporaryFile(dir=path.parent if os.access(path.parent, os.W_OK) else None) as plain:
                try:
                    pyrage.decrypt_io(file, plain, identities)
                except (pyrage.DecryptError, OSError) as error:
                    raise BadArchiveError(f"It cannot be decrypted, or is damaged: {error}.") from error
                plain.seek(0)
                yield plain
        else:
            raise BadArchiveError("It is not a backup of volmig: it is neither a .tar.gz nor encrypted with age.")


def unpack(file: IO[bytes], directory: Path) -> Manifest:
    """Reads the whole archive into this empty directory, and proves every member by the manifest.

    Raises BadArchiveError; what was written by then is the caller's to remove.
    """
    try:
        with gzip.GzipFile(fileobj=file) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as tar:
            manifest = _read(tar, directory)
            while unzipped.read(CHUNK):  # to the end, where the sum of all is
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # this machine's own fault: no space, no permission
        raise BadArchiveError(f"It is damaged or cut off: {error}.") from error
    return manifest


def _read(tar: tarfile.TarFile, directory: Path) -> Manifest:
    entries = iter(tar)
    first = next(entries, None)
    if first is None or first.name != MANIFEST or not is_plain(first) or first.size > LONGEST_MANIFEST:
        raise BadArchiveError("It is not a backup of volmig: it does not begin with a manifest.")
    manifest = Manifest.from_json(_content(tar, first).read())
    awaited = {member.name: member for member in manifest.members}
    for entry in entries:
        member = awaited.pop(entry.name, None)
        if member is None:
            raise BadArchiveError(f"It contains a file that its manifest does not name: {entry.name!r}.")
        if not is_plain(entry) or entry.size != member.size:
            raise BadArchiveError(f"{entry.name} in it is not the file that its manifest names.")
        if _write(_content(tar, entry), directory / member.name) != member.sha256:
            raise BadArchiveError(f"{entry.name} in it was altered: its SHA-256 is not the one in the manifest.")
    if awaited:
        raise BadArchiveError(f"It is not complete: {', '.join(sorted(awaited)[:3])} is missing.")
    return manifest


def is_plain(entry: tarfile.TarInfo) -> bool:
    """Whether it is a file and nothing else: no link, no device, no sparse map."""
    return entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(entry)
    if found is None:
        raise BadArchiveError(f"{entry.name} in it is not a file.")
    return found


def _write(content: IO[bytes], path: Path) -> str:
    """The SHA-256 of what was written to this new 0600 file."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    summed = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(CHUNK):
            summed.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return summed.hexdigest()


# Keys of people


def recipients_of(texts: list[str]) -> list[Any]:
    """age1… or ssh-… public keys; raises ValueError that names the one that is neither."""
    return [_recipient(text.strip()) for text in texts if text.strip()]


def _recipient(text: str) -> Any:
    try:
        return (pyrage.ssh if text.startswith("ssh-") else pyrage.x25519).Recipient.from_str(text)
    except pyrage.RecipientError as error:
        said = "is not a recipient. Give a public key, of age (age1…) or of SSH (ssh-ed25519 …)"
        raise ValueError(f"{text[:60]!r} {said}: {error}") from error


def identities_of(path: Path) -> list[Any]:
    """What this file can decrypt for: an age identity, or an SSH private key without a passphrase."""
    text = path.read_bytes()
    try:
        if b"PRIVATE KEY-----" in text:
            return [pyrage.ssh.Identity.from_buffer(text)]
        lines = [line.strip() for line in text.decode().splitlines()]
        return [pyrage.x25519.Identity.from_str(line) for line in lines if line.startswith("AGE-SECRET-KEY-")]
    except (pyrage.IdentityError, UnicodeError) as error:
        raise ValueError(f"{path} contains no readable key: {error}") from error
