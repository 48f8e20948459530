"""Adoptions: what hosts reported of a migration, or of themselves, while volmig is read-only, and who took it over."""

from django.conf import settings
from django.db import models
from django.utils import timezone

from hosts.models import Hypervisor


class Adoption(models.Model):
    """One migration, or one hypervisor, in one read-only episode; exactly one of `job` and `hypervisor` is set.

    `seen` is what was reported: of a migration by role (known, fence, owner, runs, or silent with the reason), of a
    hypervisor its owner and the migrations that it knows. `digest` names exactly this. `status` and `words` are what
    the migration goes on from; `trouble` is why it cannot be adopted now. `seals` are made when a person confirms that
    the old disk comes back.
    """

    episode = models.CharField(max_length=32)
    job = models.ForeignKey("jobs.Job", models.PROTECT, null=True, related_name="adoptions")
    hypervisor = models.ForeignKey(Hypervisor, models.PROTECT, null=True, related_name="+")
    seen = models.JSONField(default=dict)
    digest = models.CharField(max_length=64, blank=True)
    status = models.CharField(max_length=20, blank=True)
    words = models.TextField(blank=True)
    trouble = models.TextField(blank=True)
    seals = models.JSONField(default=dict)
    compared_at = models.DateTimeField(default=timezone.now)
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")
    wanted_at = models.DateTimeField(null=True, blank=True)
    adopted_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["episode", "job"], name="one_adoption_of_a_job"),
            models.UniqueConstraint(fields=["episode", "hypervisor"], name="one_adoption_of_a_hypervisor"),
        ]

    def __str__(self) -> str:
        return f"adoption of {self.job or self.hypervisor}"
