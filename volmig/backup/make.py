"""Making a backup while volmig runs: what belongs into it, in an order in which every part fits the others."""

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.utils import timezone

from volmig import data_dir
from volmig.backup import archive, databases
from volmig.record.models import Event
from volmig.verify_evidence import parse_head

OLDER = "an older backup"
# Of the data directory everything is kept but these: a key that a later version puts there is in the backup, too.
NOT_KEPT = {
    "the database, which is a separate member": re.compile(r"(db|test)\.sqlite3(-.*)?"),
    "made again at each start": re.compile(r"static(/.*)?|.*\.lock|.*\.log"),
    "a file that is being written": re.compile(r"(.*/)?\.[^/]*"),
    OLDER: re.compile(r".*\.tar\.gz(\.age)?"),
}
SECRET = re.compile(r"SECRET|PASSWORD|TOKEN")
TRIES = 3


class UnsteadyError(Exception):
    """The keys changed each time while the database was read."""


def make(target: Path, recipients: list[Any], versions: dict[str, str]) -> archive.Manifest:
    """Writes one archive (0600) and an event about it; raises DumpError, UnsteadyError, FileExistsError or OSError."""
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=settings.DATA) as name:  # 0700
        stage = Path(name)
        about = collect(stage, versions)
        archive.write(stage, about, target, recipients)
    details = {"sha256": archive.digest(target), "encrypted": bool(recipients), "events": about["events"]}
    Event.append("backup.make", object=target.name, data=details)
    return archive.Manifest(about)


def collect(stage: Path, versions: dict[str, str]) -> dict[str, Any]:
    """Everything into the stage; again when a key changed meanwhile (manage.py rotate_secrets)."""
    for _ in range(TRIES):
        for each in stage.iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        left_out = copy_data(stage / "data")
        known = heads_size()
        vendor, found = databases.dump(stage)
        copy_heads(stage / "audit_heads", known, found["events"])
        if unchanged(stage / "data"):
            break
    else:
        raise UnsteadyError("The keys in the data directory changed while the database was read. Try again.")
    (stage / "settings.json").write_text(json.dumps(environment(), indent=1))
    made = {"made_at": timezone.now().isoformat(), "made_on": platform.node(), "vendor": vendor, "left_out": left_out}
    return {**made, "versions": {"django": django.__version__, **versions}, **found}


def copy_data(target: Path) -> dict[str, str]:
    """The data directory's own files; returns those that are not kept, with the reason."""
    left_out = {}
    for path, name in files():
        if path.is_symlink() or not path.is_file():
            left_out[name] = "no regular file"
        elif why := next((why for why, form in NOT_KEPT.items() if form.fullmatch(name)), None):
            if why == OLDER:
                left_out[name] = why
        elif not archive.NAME.fullmatch(f"data/{name}"):
            left_out[name] = "its name has characters that are not kept"
        else:
            (target / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(path, target / name, follow_symlinks=False)
    return left_out


def files() -> Iterator[tuple[Path, str]]:
    """The data directory's files and, as if they lay there, keys that have a directory of their own."""
    keys = data_dir.own_keys()
    yield from ((path, name) for name, path in keys.items())
    heads = Path(settings.AUDIT_HEADS).absolute()
    for folder, folders, names in os.walk(settings.DATA):
        folders[:] = sorted(each for each in folders if not each.startswith(".") and each != "static")
        for path in (Path(folder) / name for name in sorted(names)):
            if path != heads and path.relative_to(settings.DATA).as_posix() not in keys:
                yield path, path.relative_to(settings.DATA).as_posix()


def heads_size() -> int:
    """Bytes of the file of published heads, 0 when there is none."""
    heads = Path(settings.AUDIT_HEADS)
    return heads.stat().st_size if heads.exists() else 0


def copy_heads(target: Path, known: int, last: int) -> None:
    """The heads that fit the copied database: those of before (`known` bytes), and later ones of events up to `last`.

    The copy of the database may already say that a head was published whose line came after the first look at the
    file; and lines that came while the database was read may be of events that it does not have.
    """
    heads = Path(settings.AUDIT_HEADS)
    content = heads.read_bytes() if heads.exists() else b""
    kept = [content[:known]]
    for line in content[known:].splitlines(keepends=True):
        if line.strip() and not is_head_until(line, last):
            break
        kept.append(line)
    target.write_bytes(b"".join(kept))


def is_head_until(line: bytes, last: int) -> bool:
    """True for a line that is a head of at most this event."""
    try:
        return bool(parse_head(line.strip()).seq <= last)
    except ValueError:
        return False


# Counters that volmig moves on while it runs; any value of them that was read is right.
MOVES_ON = {"claims"}


def unchanged(copied: Path) -> bool:
    """Whether the files of the data directory are still those that were copied."""
    originals = data_dir.own_keys()
    for path in (each for each in copied.rglob("*") if each.is_file()):
        original = originals.get(path.relative_to(copied).as_posix(), settings.DATA / path.relative_to(copied))
        if path.name not in MOVES_ON and (not original.exists() or original.read_bytes() != path.read_bytes()):
            return False
    return True


def environment() -> dict[str, str]:
    """VOLMIG_ variables, so that a new machine can be set up alike; secrets and passwords in addresses are left out."""
    return {name: spoken(name, value) for name, value in sorted(os.environ.items()) if name.startswith("VOLMIG_")}


def spoken(name: str, value: str) -> str:
    """A setting for the backup, without secrets and passwords."""
    if SECRET.search(name) and not name.endswith("_FILE"):
        return "(not in the backup)"
    if "://" in value and (password := urlsplit(value).password):
        value = value.replace(f":{password}@", ":(not in the backup)@")
    return re.sub(r"(password=)[^&]*", r"\1(not in the backup)", value)
