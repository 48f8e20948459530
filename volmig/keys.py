"""All machines of one database have the same keys, or do not start.

The database has a fingerprint of each key and the machine that registered it. A key is made only where none is
registered: at the first start on an empty database, or at the first start of a version that needs a new kind of key.
Every other machine compares its keys before it does anything, and refuses with one sentence that names the machine, the
files and where to copy them from.
"""

import datetime as dt
import fcntl
import hmac
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.utils import timezone

from volmig import data_dir, environment, online
from volmig.data_dir import here
from volmig.database import AWAY, fault, is_postgresql, one_line
from volmig.logs import plain
from volmig.models import Machine, RegisteredKey
from volmig.record import key_file

log = logging.getLogger(__name__)
PURPOSE = b"volmig key fingerprint 1\0"
SEVERAL = "docs/configuration.md, Several machines"
# Keys that the settings hold from the start on; all others are read from their files each time.
SETTINGS = {
    "secret_key": "SECRET_KEY",
    "worker_key": "SECRET_KEY",
    "factor_key": "FACTOR_KEY",
    "audit_key": "AUDIT_KEY",
}
CANNOT_RUN = {"web": "web processes", "worker": "workers and the watcher"}  # without the keys of their kind
RECENT = dt.timedelta(minutes=10)  # a machine that was not seen for longer is off
ENOUGH = 100  # of the newest events one has to be signed with the key of this machine
UNUSABLE = (OSError, ValueError, ImproperlyConfigured)  # what is raised for a file that holds no such key
COMMIT_PATIENCE = "5s"  # for which a command waits for a registration that is under way
confirmed: set[str] = set()  # keys that this process has compared already


class KeysDiffer(Exception):  # noqa: N818 - as ReadOnly is
    """This machine has other keys than its database knows, or lacks some; the message says what to copy."""


def mine() -> list[str]:
    """The keys that this process needs: those that its kind may read."""
    own_ssh_key = not settings.SSH_KEY  # else one that an administrator made, or the agent's: machines may differ
    return [name for name in data_dir.KEYS if data_dir.may_read(name) and (name != "ssh_key" or own_ssh_key)]


def mine_here() -> list[str]:
    """The same for a command, which is of no kind: it leaves out a kind of which this machine has no key at all."""
    left_out = kinds_not_here()
    return [name for name in mine() if data_dir.kind() or data_dir.OWNERS.get(name) not in left_out]


def kinds_not_here() -> set[str]:
    """The kinds of processes, "web" and "worker", of which this machine has no key at all."""
    here = {data_dir.OWNERS[name] for name in data_dir.OWNERS if data_dir.may_read(name) and is_here(name)}
    return set(data_dir.OWNERS.values()) - here


def not_here(registered: Iterable[str]) -> dict[str, list[str]]:
    """Of these registered keys those that a command leaves out, by the kind of processes that cannot run without."""
    known = set(registered)
    named = {
        kind: [name for name in mine() if name in known and data_dir.OWNERS.get(name) == kind] for kind in CANNOT_RUN
    }
    return {kind: names for kind, names in named.items() if names and kind in kinds_not_here()}


def is_here(name: str) -> bool:
    """True when this process can read the key."""
    try:
        return data_dir.key(name) is not None
    except PermissionError:  # of the user of another kind of process
        return False
    except ImproperlyConfigured:  # it should be: `mismatches` says what is wrong with it
        return True


# Fingerprints


def fingerprints(name: str, content: bytes) -> list[str]:
    """The fingerprints of what a key's file holds: of the key in use, then of those before it that it holds, too.

    Raises ValueError where the file holds no such key.
    """
    parts = PARTS.get(name)
    found = parts(content) if parts else [content.strip()]
    if not found or not found[0]:
        raise ValueError(f"{data_dir.key_path(name)} contains no key")
    # An HMAC says nothing of a key as long as those are that volmig makes, or takes (volmig.data_dir.SHORTEST).
    return [hmac.digest(each, PURPOSE + name.encode(), "sha256").hex() for each in found]


def evidence_keys(document: bytes) -> list[bytes]:
    """The public evidence keys, the one in use first; ValueError when the file is damaged."""
    try:
        return [str(key["public"]).encode() for key in reversed(json.loads(document)["keys"])]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{data_dir.key_path(data_dir.EVIDENCE_KEY)} is damaged ({error})") from error


def ssh_key(pem: bytes) -> bytes:
    """The public half, which is the same in every format; the file itself where it has a passphrase."""
    try:
        private = serialization.load_ssh_private_key(pem, password=None)
    except (TypeError, ValueError):
        return pem.strip()
    return private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


# How the keys are found in a file; every other file holds one, as text.
PARTS: Mapping[str, Callable[[bytes], list[bytes]]] = {
    data_dir.SEALING_KEYS: lambda lines: lines.split(),
    data_dir.EVIDENCE_KEY: evidence_keys,
    "ssh_key": lambda pem: [ssh_key(pem)],
}


def in_use(name: str) -> bytes | None:
    """The key that this process works with; None where there is none but a provisional one."""
    if name in data_dir.provisional:
        return take_up(name)
    in_settings = SETTINGS.get(name)
    if in_settings and not (name == "worker_key" and data_dir.kind() != "worker"):
        return str(getattr(settings, in_settings)).encode()
    return data_dir.key(name)


def take_up(name: str) -> bytes | None:
    """What is in the file of a key that was not there when the settings were read; it is theirs from then on."""
    if (content := data_dir.key(name)) is not None:
        del data_dir.provisional[name]
        setattr(settings, SETTINGS[name], content.decode().strip())
    return content


# Comparing


def mismatches(names: Iterable[str] | None = None) -> list[str]:
    """Why the keys of this process are not those of its database, in sentences; empty when they match.

    A key that nobody has registered yet matches. Raises DatabaseError while the database cannot be asked.
    """
    wanted = list(mine_here() if names is None else names)
    rows = {row.name: row for row in RegisteredKey.objects.filter(name__in=wanted)}
    wrong: dict[tuple[str, str], dict[str, list[str]]] = {}
    found = []
    for name in (each for each in wanted if each in rows):
        row = rows[name]
        try:
            how = difference(name, row)
        except UNUSABLE as error:
            found.append(unusable(name, error))
            continue
        if how == "began":
            found.append(f"Machine {here()}: this process still uses the old {name}. Restart it.")
        elif how:
            wrong.setdefault((row.host, str(Path(row.path).parent)), {}).setdefault(how, []).append(name)
    return found + [sentence(host, rows, by) for (host, _), by in wrong.items()]


def difference(name: str, row: RegisteredKey) -> str:
    """How a key differs from the registered one: "" (it does not), "has no", "has another", or "began" for a
    process that has not read the file since it was replaced."""
    content = in_use(name)
    marks = fingerprints(name, content) if content is not None else []
    if row.fingerprint in marks:
        return ""
    if name in SETTINGS and (kept := data_dir.key(name)) and row.fingerprint in fingerprints(name, kept):
        return "began"
    return "has another" if marks else "has no"


def sentence(host: str, rows: Mapping[str, RegisteredKey], by: Mapping[str, list[str]]) -> str:
    """One sentence on keys that one machine registered: what is wrong, and what to copy from where to where."""
    names = [name for group in by.values() for name in group]
    wrong = " and ".join(f"{how} {', '.join(group)}" for how, group in sorted(by.items()))
    on = max(rows[name].registered_at for name in names)
    there, at = ", ".join(rows[name].path for name in names), ", ".join(str(data_dir.kept_at(name)) for name in names)
    which = "the one that" if len(names) == 1 else "those that"
    those = which if by.keys() == {"has no"} else f"not {which}"
    said = f"Machine {here()} {wrong} ({those} machine {host} registered on {on:%Y-%m-%d %H:%M} UTC): "
    if waiting := [name for name in names if waits_registered(name)]:
        return plain(f"{said}the replacement of {', '.join(waiting)} was interrupted. {how_to_settle(waiting[0])}")
    if host == here() and there == at:
        said += f"put {at} back from a backup, or, if it was replaced on purpose, run manage.py keys --register"
    else:
        said += f"copy {there} of {host} to {at} of {here()}, then start it again"
    return plain(f"{said} ({SEVERAL}).")


def unusable(name: str, error: Exception) -> str:
    """The sentence for a key that cannot be used here."""
    return f"Machine {here()} cannot use its {name}: {str(error).rstrip('.')}."


# Making and registering


def ensure(names: Iterable[str] | None = None) -> None:
    """Compares the keys of this process with the database, and makes and registers those that nobody has yet.

    Raises KeysDiffer, with nothing made, where they differ.
    """
    wanted = list(mine() if names is None else names)
    if found := mismatches(wanted):
        raise KeysDiffer("\n".join(found))
    rows = {row.name: row for row in RegisteredKey.objects.filter(name__in=wanted)}
    if data_dir.AUDIT_KEY not in rows and data_dir.AUDIT_KEY in wanted and (why := why_foreign()):
        raise KeysDiffer(why)
    for name in wanted:
        try:
            with transaction.atomic():
                if name not in rows:
                    register_first(name)
                elif fingerprints(name, in_use(name) or b"")[0] != rows[name].fingerprint:
                    register(name)  # rotated since this database was backed up
        except UNUSABLE as error:
            raise KeysDiffer(unusable(name, error)) from error
    confirmed.update(wanted)


def why_foreign() -> str:
    """Why this data directory does not belong to a database that a version without fingerprints used; else empty.

    The audit key shows it: its signatures are in the audit log.
    """
    newest = apps.get_model("record", "Event").objects.order_by("-seq")[:ENOUGH]
    if not newest:
        return ""
    path = data_dir.key_path(data_dir.AUDIT_KEY)
    copy = (
        f"copy the keys of the machine that ran volmig before to {path.parent}, or set VOLMIG_DATA to its data "
        f"directory, then start it again ({SEVERAL})."
    )
    if in_use(data_dir.AUDIT_KEY) is None:
        return f"Machine {here()} has no audit_key ({path}), and the database has an audit log already: {copy}"
    if not any(event.is_signed() for event in newest):
        return f"Machine {here()} has another audit_key ({path}) than the one that signed the audit log: {copy}"
    return ""


def register_first(name: str) -> None:
    """Makes a key unless it is here, and registers it; where another machine was first, removes what it made."""
    path, content = data_dir.key_path(name), in_use(name)
    was_there = content is not None
    if content is None:
        content = data_dir.make(name, key_file.first() if name == data_dir.EVIDENCE_KEY else b"")
    mark = fingerprints(name, content)[0]
    defaults = {"fingerprint": mark, "host": here(), "path": str(data_dir.kept_at(name))}
    row, _ = RegisteredKey.objects.get_or_create(name=name, defaults=defaults)
    if row.fingerprint != mark:
        if not was_there:
            path.unlink(missing_ok=True)  # another process of this machine may have removed it already
        raise KeysDiffer("\n".join(mismatches([name])))
    if name in data_dir.provisional:
        take_up(name)


def register(name: str, content: bytes | None = None) -> tuple[str, str]:
    """Makes the key of this machine, or one that is about to be, the registered one; returns the fingerprints before
    and now. Raises ValueError."""
    content = data_dir.key(name) if content is None else content
    if content is None:
        raise ValueError(f"There is no {data_dir.key_path(name)}")
    mark = fingerprints(name, content)[0]
    before = RegisteredKey.objects.filter(name=name).values_list("fingerprint", flat=True).first() or ""
    values = {"fingerprint": mark, "host": here(), "path": str(data_dir.kept_at(name)), "registered_at": timezone.now()}
    RegisteredKey.objects.update_or_create(name=name, defaults=values)
    return before, mark


# Replacing


class Unsettled(Exception):  # noqa: N818 - as KeysDiffer is
    """A key was replaced halfway; the message says what is where and what finishes it."""


def replace(
    name: str, make: Callable[[], bytes], note: Callable[[str, str], object], output: Path | None = None
) -> None:
    """Makes what `make` returns the key of this volmig; `note` gets the fingerprints before and after, in the
    transaction that registers it. `make` is called when no other command replaces a key here: what it reads of the old
    file is what the new one takes the place of.

    The new file is first written next to the old one, then registered, and only then takes the old one's place: at any
    moment one of the two has the registered key, and `settle` says which. With `output` it is written there, and a
    person puts it in its place. Raises OSError, ValueError or a database's error with nothing changed; Unsettled.
    """
    path = data_dir.key_path(name)
    with alone(path.parent):
        settle(name)
        content = make()
        mark = fingerprints(name, content)[0]
        waits = output or data_dir.next_to(path)
        if output:
            data_dir.write_new(output, content)
        else:
            data_dir.write_next_to(path, content)
        try:
            with transaction.atomic():
                note(*register(name, content))
        except BaseException as error:  # also of Ctrl-C; a commit whose answer was lost may have happened
            known = is_registered(name, mark)
            # Where the connection was lost the commit may still be under way, and then the new key is needed.
            if known is None or (not known and isinstance(error, AWAY)):
                said = f"It is not known whether the database has registered the new {name}, which is in {waits}"
                raise Unsettled(f"{said}: {one_line(error)}. {how_to_settle(name, output)}") from error
            if not known:
                waits.unlink(missing_ok=True)
                raise
        if output is None:
            put_in_place(name, mark)


def put_in_place(name: str, mark: str) -> None:
    """The registered key takes the place of the one before, and is read back. Raises Unsettled."""
    path = data_dir.key_path(name)
    try:
        data_dir.put_in_place(path)
        found = fingerprints(name, data_dir.key(name) or b"")[0]
    except UNUSABLE as error:
        said = f"The new {name} is registered, but could not take its place: {error}. It is in {data_dir.next_to(path)}"
        raise Unsettled(f"{said}. {how_to_settle(name)}") from error
    if found != mark:
        raise Unsettled(f"{path} does not contain the {name} just written there. Is another program changing it?")


def how_to_settle(name: str, output: Path | None = None) -> str:
    """The sentence that tells an operator how to complete an interrupted replacement."""
    if output:
        differs = (
            f"if it says that this machine has another {name}, put {output} in its place, otherwise delete {output}"
        )
        return f"Run manage.py keys on machine {here()}: {differs}."
    what = f"puts the new {name} in its place if the database has registered it, otherwise deletes it"
    return f"Run manage.py keys on machine {here()}: it {what}."


def is_registered(name: str, mark: str) -> bool | None:
    """Whether this is the fingerprint of the registered key; None while the database does not say."""
    try:
        return None if fault() else RegisteredKey.objects.filter(name=name, fingerprint=mark).exists()
    except (DatabaseError, InterfaceError):
        return None


def is_registered_by_now(name: str, mark: str) -> bool:
    """The same once nobody is registering a key: a commit whose answer was lost may be under way for as long as its
    database waits for a standby, and what it registers is not visible until then. Raises Unsettled meanwhile."""
    table = connection.ops.quote_name(RegisteredKey._meta.db_table)
    try:
        with online.waits_for_locks(COMMIT_PATIENCE), transaction.atomic():
            if is_postgresql():
                with connection.cursor() as cursor:
                    cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")  # waits for all who have written to it
            return RegisteredKey.objects.filter(name=name, fingerprint=mark).exists()
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != online.LOCK_NOT_AVAILABLE:
            raise
        near = data_dir.next_to(data_dir.key_path(name))
        said = f"The database is still registering a key, perhaps the {name} in {near}"
        advice = "Nothing was changed. Check that its standby responds, then run manage.py keys again."
        raise Unsettled(f"{said}. {advice}") from error


def waits_registered(name: str) -> bool:
    """Whether the registered key waits next to the file that it should be in: its replacement was interrupted."""
    try:
        mark = fingerprints(name, data_dir.next_to(data_dir.key_path(name)).read_bytes())[0]
    except UNUSABLE:
        return False
    return bool(is_registered(name, mark))


def settle(name: str) -> str:
    """Ends a replacement of this machine's key that was interrupted; returns what was done, as a sentence, or nothing.

    The caller makes sure that no other process is in the middle of one: see `alone`. Raises DatabaseError, OSError,
    Unsettled.
    """
    path = data_dir.key_path(name)
    waits = data_dir.next_to(path)
    if data_dir.is_given(name) or not waits.exists():
        return ""
    try:
        mark = fingerprints(name, waits.read_bytes())[0]
    except ValueError:
        mark = ""
    if is_registered_by_now(name, mark):
        put_in_place(name, mark)
        return f"The replacement of {name} was interrupted and is now complete: copy {path} to every other machine."
    waits.unlink()
    before = f"The replacement of {name} was interrupted before it was registered"
    return f"{before}. The old key is still in use; deleted {waits}."


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One command at a time replaces keys of this directory."""
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def confirm(name: str) -> None:
    """Compares one key before anything is signed with it, once in each process. Raises KeysDiffer."""
    if name not in confirmed:
        ensure([name])


def key(name: str) -> bytes:
    """What the file of a key holds; it is made where none is registered. Raises KeysDiffer, OSError, ValueError."""
    if (content := data_dir.key(name)) is None:
        ensure([name])
        content = data_dir.key(name)
    return content or b""


def why_outdated(name: str) -> str:
    """Why what is signed with this key now would not verify elsewhere, as a sentence; empty when it would.

    For a key that is replaced while processes of other machines run on with the one before it.
    """
    row = RegisteredKey.objects.filter(name=name).first()
    if row is None or ((content := data_dir.key(name)) and fingerprints(name, content)[0] == row.fingerprint):
        return ""
    return sentence(row.host, {name: row}, {"has another" if content else "has no": [name]})


def are_kept() -> bool:
    """Whether this database has the table of fingerprints; that of an earlier version lacks it."""
    return RegisteredKey._meta.db_table in connection.introspection.table_names()


def at_start() -> None:
    """Compares in each process, because one may be started without `manage.py up`. Raises SystemExit with the sentence.

    While the database is away, or has no tables yet, nothing is compared; `confirm` does so before the first event.
    """
    try:
        if are_kept():
            ensure()
    except KeysDiffer as error:
        raise SystemExit(f"Not started. {error}") from error
    except AWAY as error:
        log.warning("keys were not compared: %s", one_line(error))
    finally:
        connection.close()


# Settings, which should be equal on all machines as well


def note_settings() -> None:
    """Stores this machine's settings for the others to compare."""
    values = {"host": here(), "settings": setting_fingerprints(), "seen_at": timezone.now()}
    Machine.objects.update_or_create(place=data_dir.place(settings.DATA), kind=data_dir.kind(), defaults=values)
    Machine.objects.filter(seen_at__lt=timezone.now() - dt.timedelta(days=1)).delete()


def setting_fingerprints() -> dict[str, str]:
    """Fingerprints under the audit key, which is not in the database: a password in a setting may be a weak one."""
    found = {name: repr(value) for name, value in environment.values.items() if name not in environment.PER_MACHINE}
    if data_dir.kind() != "web":  # which must not read the credentials of clouds
        with suppress(OSError):
            found["CLOUDS_YAML"] = repr(Path(settings.CLOUDS_YAML).read_bytes() if settings.CLOUDS_YAML else b"")
        found["SSH_KEY"] = ssh_key_setting()
    under = settings.AUDIT_KEY.encode()
    return {
        name: hmac.digest(under, f"volmig setting {name}\0{value}".encode(), "sha256").hex()[:32]
        for name, value in found.items()
    }


def ssh_key_setting() -> str:
    """The SSH key to compare between machines, or `agent`."""
    if settings.SSH_KEY in ("", "agent"):
        return str(settings.SSH_KEY)
    try:
        return ssh_key(Path(settings.SSH_KEY).read_bytes()).decode(errors="replace")
    except OSError:
        return "unreadable"


def differing_settings() -> list[str]:
    """The settings in which this machine differs from others that run, as sentences; empty when it does not."""
    others = Machine.objects.filter(seen_at__gt=timezone.now() - RECENT).exclude(place=data_dir.place(settings.DATA))
    own = setting_fingerprints()
    found = []
    for other in others.order_by("host", "place", "kind"):
        names = sorted(name for name in own.keys() & other.settings.keys() if own[name] != other.settings[name])
        if data_dir.kind() and other.kind and data_dir.kind() != other.kind:
            names = [name for name in names if name not in environment.ONLY_WORKERS]
        if names:
            listed = ", ".join(f"VOLMIG_{name}" for name in names)
            found.append(f"Machines {here()} and {plain(other.host)} differ in {listed}: set them alike ({SEVERAL}).")
    return found
