"""Words by which migrations are found: what people remember of one, in small letters, in an index of any database."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.db import models

if TYPE_CHECKING:
    from jobs.models.job import Job

LONGEST = 120  # bytes of a word that count
HOST, PERSON = "\x01", "\x02"  # what nobody types: words that are looked for as a whole
PARTS = re.compile(r"[-_./: ]+")


class WordQuerySet(models.QuerySet["Word"]):
    """Words by which migrations are found."""

    def beginning(self, typed: str) -> models.QuerySet[Word]:
        """Those that begin with what somebody typed."""
        first = plain(typed)
        return self.filter(text__gte=first, text__lt=first + b"\xff")

    def exactly(self, text: str) -> models.QuerySet[Word]:
        """Those that are this text."""
        return self.filter(text=plain(text))

    def keep(self, job: int, words: Iterable[str]) -> None:
        """Lets the job be found by these words, too."""
        rows = [Word(job_id=job, text=text) for text in sorted(set(map(plain, words)) - {b""})]
        self.bulk_create(rows, ignore_conflicts=True)


class Word(models.Model):
    """One word of one job. Bytes, because these sort alike everywhere, and a beginning is a range of them."""

    job = models.ForeignKey("jobs.Job", models.CASCADE, related_name="found_by", db_index=False)
    text = models.BinaryField(max_length=LONGEST)

    objects = WordQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "text"], name="one_word")]
        indexes = [models.Index(fields=["text", "-job"], name="word_text")]

    def __str__(self) -> str:
        return bytes(self.text).decode(errors="replace")


def plain(typed: str) -> bytes:
    """A word as it is stored: small letters, UTF-8, cut at LONGEST bytes."""
    return typed.strip(" \t\r\n").lower().encode()[:LONGEST]


def host(pk: Any) -> str:
    """The word of a hypervisor's migrations."""
    return f"{HOST}{pk}"


def person(name: str) -> str:
    """The word of a requester's migrations."""
    return f"{PERSON}{name}"


def of_job(job: Job) -> Iterator[str]:
    """Names as wholes, and what stands in them after a dash, an underscore, a dot or a slash."""
    for name in (job.instance_name, job.ticket):
        yield from tails(name)
    yield from (job.instance_id, job.lv_uuid, job.source_lv, f"{job.source_vg}/{job.source_lv}")
    yield from map(host, {job.source_id, job.relay_id, job.destination_id})
    yield person(job.requester.username)


def tails(name: str) -> list[str]:
    """A name from each of its parts on, so that a search finds it by any of them."""
    return [name, *(name[match.end() :] for match in PARTS.finditer(name))]
