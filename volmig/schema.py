"""The database migrations that this version of volmig comes with, as (app, name)."""

from collections.abc import Iterable
from functools import cache

from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder


@cache
def known() -> frozenset[tuple[str, str]]:
    """They do not change while it runs."""
    return frozenset(MigrationLoader(None).disk_migrations or {})


def unapplied() -> list[tuple[str, str]]:
    """Those that the database lacks, by app and name."""
    return sorted(known() - MigrationRecorder(connection).applied_migrations().keys())


def newer(applied: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the applied migrations that a later version of volmig made, in order."""
    here = known()
    apps = {app for app, _ in here}
    return sorted((app, name) for app, name in set(applied) - here if app in apps)
