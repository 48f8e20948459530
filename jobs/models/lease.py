"""Leases by name, so that of several processes only one does what only one may do."""

import datetime as dt
import math
from typing import NamedTuple

from django.db import IntegrityError, models, transaction
from django.db.models import ExpressionWrapper, F, Q
from django.db.models.functions import Now

from volmig.models import CLOCKS_DIFFER

FORGET_AFTER = dt.timedelta(days=1)
LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


def is_over(seconds: float) -> Q:
    """Leases that nobody holds: one that reaches further than any was taken before the clock was set back."""
    return Q(until__lt=Now()) | Q(until__gt=Now() + (dt.timedelta(seconds=seconds) + CLOCKS_DIFFER))


class Held(NamedTuple):
    """What an owner has of the parts now, and what it still had when it renewed them, before it gave any back.

    What it had the last time, and is not among the latter, was taken by another.
    """

    parts: set[int]
    renewed: set[int]


class LeaseQuerySet(models.QuerySet["Lease"]):
    """Leases, taken and renewed by compare-and-swap with the database's clock."""

    def take(self, name: str, owner: str, seconds: float) -> bool:
        """Take or renew the lease for so many seconds of database time; False while another owner has it."""
        until = Now() + dt.timedelta(seconds=seconds)
        if self.filter(name=name).filter(Q(owner=owner) | is_over(seconds)).update(owner=owner, until=until):
            return True
        try:
            with transaction.atomic():
                self.create(name=name, owner=owner, until=until)
        except IntegrityError:
            return False
        return True

    def share(self, what: str, parts: int, owner: str, seconds: float) -> "Held":
        """Take or renew a fair share of the parts, 0 to `parts` - 1, of what several owners do together.

        Each owner says by its own lease that it lives, gives back what it holds beyond its share, and takes what
        nobody holds. The last word of `owner`, after a colon, has to be unique.
        """
        self.take(f"{what} {owner.rpartition(':')[2]}", owner, seconds)
        living = self.filter(name__startswith=f"{what} ")
        living.filter(until__lt=Now() - FORGET_AFTER).delete()
        # Of this owner itself, too, its lease is over where the database has stood still since the line above.
        most = math.ceil(parts / max(1, living.exclude(is_over(seconds)).count()))
        numbers = {f"part {number} of {what}": number for number in range(parts)}
        rows = self.filter(name__in=numbers)
        if rows.count() < parts:
            rows.bulk_create([Lease(name=name, owner="", until=LONG_AGO) for name in numbers], ignore_conflicts=True)
        until = Now() + dt.timedelta(seconds=seconds)
        mine = rows.filter(owner=owner)
        mine.update(until=until)
        held = list(mine.order_by("pk").values_list("name", flat=True))
        mine.filter(name__in=held[most:]).update(owner="", until=LONG_AGO)
        free = rows.filter(is_over(seconds))
        for name in free.values_list("name", flat=True)[: max(0, most - len(held))]:
            free.filter(name=name).update(owner=owner, until=until)  # unless another one was faster
        now = {numbers[name] for name in mine.values_list("name", flat=True)}
        return Held(now, {numbers[name] for name in held})

    def give_back_all(self, owner: str) -> None:
        """Let go of everything that this owner holds, and of the lease by which it lives."""
        self.filter(owner=owner).delete()

    def silent(self, name: str) -> float | None:
        """Seconds since the last lease of this name ran out: 0 while one is held, None when there never was one."""
        over = ExpressionWrapper(Now() - F("until"), output_field=models.DurationField())
        rows = self.filter(name__startswith=name).order_by("-until")
        age: dt.timedelta | None = rows.annotate(over=over).values_list("over", flat=True).first()
        return None if age is None else round(max(0.0, age.total_seconds()), 1)


class Lease(models.Model):
    """The right of one process to a piece of work, until a time of the database's clock."""

    name = models.CharField(max_length=40, unique=True)
    owner = models.CharField(max_length=100)
    until = models.DateTimeField()

    objects = LeaseQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}"
