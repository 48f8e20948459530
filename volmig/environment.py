"""VOLMIG_ environment variables: what is not understood is refused, so that no setting is silently ignored."""

import difflib
import os
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from psycopg import pq

from volmig import data_dir

YES, NO = {"1", "yes", "true", "on"}, {"0", "no", "false", "off"}
# Read elsewhere: before the settings, by the client, by tests and labs.
READ = {
    *("PART", "KEYS_WEB", "KEYS_WORKER", "DATA", "ADMIN_USER", "ADMIN_PASSWORD", "URL", "TOKEN", "CA_FILE"),
    "KEYS_KEPT",
    *("CLOUD_SERVICE", "CLOUD_PLANE", "LAB_NAME", "LAB_KEEP", "LAB_CACHE", "LAB_MIRROR", "CLOUD_KEEP", "CLOUD_CACHE"),
    *("CLUSTER", "BEAT", "SUPERVISOR"),  # set by `manage.py up`, as PART is
}
# Variables whose value can be in a file that VOLMIG_<NAME>_FILE names: all that `text` reads.
FROM_FILES = {"ADMIN_USER", "ADMIN_PASSWORD"}
values: dict[str, str] = {}  # of all variables that were read, by name, with defaults
# What may differ from machine to machine; everything else should be equal, see volmig.keys.differing_settings.
PER_MACHINE = {
    *("DEBUG", "DB", "ALLOWED_HOSTS", "BEHIND_PROXY", "SECURE", "WORKERS", "BACKGROUND_WORKERS", "AUDIT_HEADS", "LAB"),
    *("FAILPOINT", "SSH_KEY", "CLOUDS_YAML", "LOG_LEVEL", "LOG_FORMAT", "ADMIN_USER", "ADMIN_PASSWORD"),
    *("STATIC", "METRICS_PORT", "METRICS_ADDRESS", "METRICS_TOKEN"),
    *("WEB_PROCESSES", "WEB_REQUESTS", "WEBSOCKETS"),
}
ONLY_WORKERS = {"EMAIL_URL", "EMAIL_FROM", "NOTIFY_EMAILS", "WEBHOOK_URL", "WEBHOOK_SECRET"}  # pages send nothing
# Except these: their _FILE variable names the file of a key, see volmig.data_dir.
NOT_FROM_FILES = {"SSH_KEY"}


def text(name: str, default: str = "") -> str:
    """The value of VOLMIG_<NAME>, or what the file that VOLMIG_<NAME>_FILE names holds, without its last line feed.

    Every variable can, so that no new secret is forgotten. Raises ImproperlyConfigured when both are
    set, and when the file cannot be read or is empty: a setting that falls back to its default could be another
    database.
    """
    READ.add(name)
    value, file = os.environ.get(f"VOLMIG_{name}"), os.environ.get(f"VOLMIG_{name}_FILE", "")
    if file and value is not None:
        raise ImproperlyConfigured(f"VOLMIG_{name} and VOLMIG_{name}_FILE are both set. Remove one of them.")
    if name not in NOT_FROM_FILES:
        FROM_FILES.add(name)
        value = from_file(name, file) if file else value
    values[name] = default if value is None else value
    return values[name]


def from_file(name: str, file: str) -> str:
    """A value from VOLMIG_…_FILE without its last line feed; ImproperlyConfigured when it cannot be read or is
    empty."""
    try:
        value = Path(file).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ImproperlyConfigured(f"VOLMIG_{name}_FILE: {file} cannot be read: {why}.") from None
    if not value:
        raise ImproperlyConfigured(f"VOLMIG_{name}_FILE: {file} is empty.")
    return value


def number(name: str, default: int) -> int:
    """A whole number; ImproperlyConfigured for anything else."""
    typed = text(name).strip()
    try:
        return int(typed or default)
    except ValueError:
        raise ImproperlyConfigured(f"VOLMIG_{name} must be a whole number, not {typed!r}.") from None


def flag(name: str, default: bool) -> bool:
    """yes or no; ImproperlyConfigured for anything else."""
    typed = text(name).strip().lower()
    if typed and typed not in YES | NO:
        raise ImproperlyConfigured(f"VOLMIG_{name} must be yes or no, not {typed!r}.")
    return typed in YES if typed else default


def choice(name: str, *allowed: str) -> str:
    """One of the words that are allowed; the first of them when nothing is set."""
    typed = text(name, allowed[0]).strip().lower() or allowed[0]
    if typed not in allowed:
        raise ImproperlyConfigured(f"VOLMIG_{name} must be {' or '.join(allowed)}, not {typed!r}.")
    return typed


def words(name: str, default: str = "") -> list[str]:
    """A list with commas between; spaces around its words do not belong to them."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def url(name: str, default: str, *schemes: str) -> SplitResult:
    """A web address or the like; one of another scheme, or without a host, is refused. Empty may be allowed."""
    typed = text(name, default)
    parts = urlsplit(typed)
    if typed and (parts.scheme not in schemes or not parts.hostname):
        named = " or ".join(f"{scheme}://" for scheme in schemes)
        raise ImproperlyConfigured(f"VOLMIG_{name} must begin with {named} and name a host.")
    return parts


def unknown() -> list[tuple[str, str]]:
    """VOLMIG_ variables that nothing reads, each with the known one that it resembles; empty when none does."""
    found = sorted(name.removeprefix("VOLMIG_") for name in os.environ if name.startswith("VOLMIG_"))
    known = READ | {f"{name}_FILE" for name in FROM_FILES} | {data_dir.variable(key) for key in data_dir.KEYS}
    return [(name, "".join(difflib.get_close_matches(name, known, 1))) for name in found if name not in known]


# PostgreSQL's addresses, with every parameter that libpq knows

OWN = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}  # Django's names
KEPT_FOR_VOLMIG = {"client_encoding", "replication", "service"}  # a service file would set what is checked here


def postgresql(address: str) -> dict[str, Any]:
    """The database of a libpq URI, as Django has it; a parameter that libpq does not know is refused, not ignored."""
    try:
        parts = urlsplit(address)
        values = {"host": parts.hostname or "", "port": str(parts.port or "")}
    except ValueError:
        raise wrong("several hosts or ports are written as ?host=a,b&port=5432,5433") from None
    if parts.scheme not in ("postgres", "postgresql") or parts.fragment:
        raise wrong("it must look like postgres://user:password@host/name")
    values |= {"user": unquote(parts.username or ""), "password": unquote(parts.password or "")}
    values["dbname"] = unquote(parts.path.removeprefix("/"))
    options = dict(parameters(parts.query))
    for name in OWN.keys() & options.keys():
        if values[name]:
            raise wrong(f"{name} is in it twice")
        values[name] = options.pop(name)
    own = {OWN[name]: value for name, value in values.items()}
    return {"ENGINE": "django.db.backends.postgresql", **own, "OPTIONS": options}


def parameters(query: str) -> list[tuple[str, str]]:
    """Name and value of each parameter after the ? of an address."""
    try:
        found = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise wrong("what follows its ? must be name=value, with & between") from None
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()} - KEPT_FOR_VOLMIG
    names = [name for name, _ in found]
    if strange := sorted(set(names) - known):
        raise wrong(f"{', '.join(strange)} is not a parameter that both PostgreSQL's library and volmig know")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise wrong(f"{', '.join(twice)} is in it twice")
    return found


def wrong(why: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"VOLMIG_DB cannot be used: {why}.")  # without the address: it holds a password
