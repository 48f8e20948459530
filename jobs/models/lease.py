"""Leases by name, so that of several processes only one does what only one may do."""

import datetime as dt

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from volmig.models import CLOCKS_DIFFER


class LeaseQuerySet(models.QuerySet["Lease"]):
    def take(self, name: str, owner: str, seconds: float) -> bool:
        """Take or renew the lease for so many seconds of database time; False while another owner has it."""
        until = Now() + dt.timedelta(seconds=seconds)
        # One that reaches further than any was taken before the clock was set back.
        over = Q(until__lt=Now()) | Q(until__gt=Now() + (dt.timedelta(seconds=seconds) + CLOCKS_DIFFER))
        if self.filter(name=name).filter(Q(owner=owner) | over).update(owner=owner, until=until):
            return True
        try:
            with transaction.atomic():
                self.create(name=name, owner=owner, until=until)
        except IntegrityError:
            return False
        return True

    def silent(self, name: str) -> float | None:
        """Seconds since the lease ran out: 0 while somebody has it, None when nobody has taken it."""
        until = self.filter(name=name).values_list("until", flat=True).first()
        return None if until is None else round(max(0.0, (timezone.now() - until).total_seconds()), 1)

    def give_back(self, name: str, owner: str) -> None:
        self.filter(name=name, owner=owner).delete()


class Lease(models.Model):
    name = models.CharField(max_length=40, unique=True)
    owner = models.CharField(max_length=100)
    until = models.DateTimeField()

    objects = LeaseQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}"
