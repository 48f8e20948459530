"""What volmig keeps outside of its database, so that tests which set a database back can set it back as well."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

FILES = ("incarnation", "claims", "read_only", "audit_heads")


def keep() -> dict[str, bytes]:
    """The files that are there, with their contents."""
    there = [Path(settings.DATA) / name for name in FILES]
    return {path.name: path.read_bytes() for path in there if path.exists()}


def put_back(kept: dict[str, bytes]) -> None:
    for name in FILES:
        path = Path(settings.DATA) / name
        path.unlink(missing_ok=True)
        if name in kept:
            path.write_bytes(kept[name])


@contextmanager
def outside_the_database() -> Iterator[None]:
    """What happens within is set back outside of the database as well."""
    kept = keep()
    try:
        yield
    finally:
        put_back(kept)
