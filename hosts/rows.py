"""Rows of what was last seen: written in a number of statements that does not grow with the number of rows."""

import datetime as dt
from collections.abc import Iterable
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from django.utils import timezone

from volmig.models import CLOCKS_DIFFER

Row = TypeVar("Row", bound=Model)
BATCH = 500  # rows of one statement; SQLite takes fewer, as many as make 999 values


def write(rows: Iterable[Row], identity: tuple[str, ...]) -> list[Row]:
    """Inserts the rows, or updates the ones that have the same `identity`, a unique constraint's fields; keys stay.

    Of several with one identity the last one counts. Returns the rows that were written, with their keys.
    """
    unique = {_identity(row, identity): row for row in rows}
    # In one order, so that two that write the same rows at a time do not wait for each other.
    wanted = [unique[key] for key in sorted(unique, key=repr)]
    if not wanted:
        return []
    model = type(wanted[0])
    rest = [each.name for each in model._meta.concrete_fields if not each.primary_key and each.name not in identity]
    return model._default_manager.bulk_create(
        wanted, batch_size=BATCH, update_conflicts=True, unique_fields=list(identity), update_fields=rest
    )


def keep(known: QuerySet[Any], rows: Iterable[Row], identity: tuple[str, ...], now: dt.datetime) -> list[Row]:
    """Makes `known` equal to `rows`, all seen at `now`: updates by identity, and deletes what was last seen before."""
    kept = write(rows, identity)
    # Not what another process saw later; but what was seen in the future was seen before a clock was set back.
    known.filter(Q(seen_at__lt=now) | Q(seen_at__gt=timezone.now() + CLOCKS_DIFFER)).delete()
    return kept


def _identity(row: Model, names: tuple[str, ...]) -> tuple[Any, ...]:
    """As the database compares it: an IPv6 address has several spellings."""
    fields = [row._meta.get_field(name) for name in names]
    return tuple(field.get_prep_value(getattr(row, field.attname)) for field in fields)  # type: ignore[union-attr]
