"""The database migrations that this version of volmig comes with, as (app, name)."""

from collections.abc import Iterable

from django.db.migrations.loader import MigrationLoader


def known() -> set[tuple[str, str]]:
    return set(MigrationLoader(None).disk_migrations or {})


def newer(applied: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the applied migrations that a later version of volmig made, in order."""
    here = known()
    apps = {app for app, _ in here}
    return sorted((app, name) for app, name in set(applied) - here if app in apps)
