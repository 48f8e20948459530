"""Archives: plans, facts, checks and the commands of the journal of migrations that ended, compressed.

They are four fifths of what a migration takes in the database, and nothing searches in them. A column whose value was
archived holds a reference instead, `"archived:ID:CHECK:PART"`, and ArchivedJSONField reads through it, so nobody who
reads the column sees a difference. Archives are only ever added, so a reference stays valid.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from django.apps import apps
from django.db import models
from django.db.models.functions import Cast
from django.utils import timezone

REFERENCE = "archived:"
SMALLEST = 100  # letters of JSON; a shorter value stays, for a reference is hardly shorter
OF_JOB = ("plan", "facts", "checks", "halt_data")
OF_RUN = ("args", "commands")
KEY = ("step", "direction", "attempt")  # of a run, within its migration


class DamagedArchive(ValueError):  # noqa: N818 - an archive, as the sentence says
    """What the database holds in an archive is not what was put there."""


class ArchivedJSONField(models.JSONField):
    """JSON that may lie in an archive; reading it is the same, and costs a query when it does."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """The document, read from its archive where the column only refers to one."""
        found = super().from_db_value(value, expression, connection)
        if isinstance(found, str) and found.startswith(REFERENCE):
            number, check, name = found.removeprefix(REFERENCE).split(":")
            return json.loads(parts(connection.alias, int(number), check)[name])
        return found


@lru_cache(maxsize=32)  # the journal's 25 rows lie in one archive; what its number and check name never changes
def parts(alias: str, number: int, check: str) -> dict[str, str]:
    """The values in an archive as JSON, by their names. Raises DamagedArchive."""
    row = Archive.objects.using(alias).filter(pk=number).values_list("content", flat=True).first()
    content = bytes(row or b"")
    if check_of(content) != check:
        said = "is missing" if row is None else "is damaged"
        raise DamagedArchive(
            f"Archive {number} in the table jobs_archive {said}: its plan or journal cannot be shown. "
            "Restore that row from a backup."
        )
    return unpacked(content)


def packed(values: dict[str, str]) -> bytes:
    """Documents by name, compressed (zlib)."""
    return zlib.compress(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode(), 9)


def unpacked(content: bytes) -> dict[str, str]:
    """The documents of an archive by name; zlib.error when it is damaged."""
    found: dict[str, str] = json.loads(zlib.decompress(content))
    return found


def check_of(content: bytes) -> str:
    """The beginning of the archive's SHA-256; each reference has it."""
    return hashlib.sha256(content).hexdigest()[:16]


class ArchiveQuerySet(models.QuerySet["Archive"]):
    """Archives of plans and journals of ended migrations."""

    def keep(self, job: int) -> None:
        """Archives what the migration with this key has in its own columns, in the caller's transaction, which has
        locked it; again is harmless."""
        jobs, runs = (apps.get_model("jobs", name)._default_manager for name in ("Job", "StepRun"))
        ended = list(runs.filter(job=job).exclude(ended_at=None).annotate(**raw(OF_RUN)).only(*KEY))
        own = jobs.filter(pk=job).annotate(**raw(OF_JOB)).only("pk").get()
        there = {name: getattr(own, f"raw_{name}") for name in OF_JOB}
        there |= {part(run, name): getattr(run, f"raw_{name}") for run in ended for name in OF_RUN}
        kept = self._add(job, {name: compact(value) for name, value in there.items() if is_bulky(value)})
        jobs.filter(pk=job).update(**{name: kept[name] for name in OF_JOB if name in kept}, archived_at=timezone.now())
        for run in ended:
            if mine := {name: kept[key] for name in OF_RUN if (key := part(run, name)) in kept}:
                runs.filter(pk=run.pk).update(**mine)

    def _add(self, job: int, values: dict[str, str]) -> dict[str, str]:
        """Adds an archive; returns the references by the names of its values. None is added for nothing."""
        if not values:
            return {}
        content = packed(values)
        row = self.create(job_id=job, content=content)
        return {name: f"{REFERENCE}{row.pk}:{check_of(content)}:{name}" for name in values}


class Archive(models.Model):
    """Values of one migration, by name, as JSON, in one JSON object, compressed by zlib.

    A name is a column of the migration (`plan`), or an attempt of its journal and a column (`convert.do.1.commands`).
    """

    job = models.ForeignKey("jobs.Job", models.PROTECT, related_name="archives", db_index=False)
    content = models.BinaryField()
    made_at = models.DateTimeField(default=timezone.now)

    objects = ArchiveQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"archive {self.pk} of migration {self.job_id}"


def part(run: Any, column: str) -> str:
    """The name of a document of the journal in the archive."""
    return ".".join(str(each) for each in (*run.key, column))


def raw(names: Iterable[str]) -> dict[str, Any]:
    """Annotations that give columns as they are stored, as text."""
    return {f"raw_{name}": Cast(name, models.TextField()) for name in names}


def is_bulky(value: str | None) -> bool:
    """False for what is too small to gain anything, and for what is archived already."""
    return value is not None and len(value) > SMALLEST and not value.startswith(f'"{REFERENCE}')


def compact(value: str) -> str:
    """The same JSON without spaces."""
    return json.dumps(json.loads(value), ensure_ascii=False, separators=(",", ":"))
