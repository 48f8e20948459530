"""Policies: how many people consent to a team's swaps of a size, for how long that counts, and when swaps may run."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from django.apps import apps
from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.utils import timezone

from hosts.models import difference
from jobs.engine.windows import Blackout, Schedule, Window, outlook
from jobs.models import sealing
from jobs.models.wake import wake
from volmig.accounts.models import Team
from volmig.record.models import Event

if TYPE_CHECKING:
    from jobs.models.job import Job

TOLD = ("min_bytes", "approvers", "expiry_hours", "time_zone", "windows", "blackouts")


@dataclass(frozen=True)
class Terms:
    """What holds for one job: where several teams' policies do, the strictest of each."""

    approvers: int
    expiry: dt.timedelta
    schedules: tuple[Schedule, ...] = ()


class PolicyQuerySet(models.QuerySet["Policy"]):
    """Policies of teams, and what they require of a migration."""

    def terms(self, job: Job) -> Terms:
        """Of each team of the job the policy for its size; a team without one goes by the settings."""
        found: dict[int, Policy | None] = {team.pk: None for team in job.teams()}
        for policy in self.filter(team__in=found, min_bytes__lte=job.source_size).order_by("min_bytes"):
            found[policy.team_id] = policy
        named = [policy for policy in found.values() if policy]
        alone = [] if named and all(found.values()) else [(settings.APPROVERS, settings.APPROVAL_HOURS)]
        rules = [(policy.approvers, policy.expiry_hours) for policy in named] + alone
        schedules = tuple(policy.schedule() for policy in named if policy.windows or policy.blackouts)
        hours = min(hours for _, hours in rules)
        return Terms(max(needed for needed, _ in rules), dt.timedelta(hours=hours), schedules)

    def of(self, team: Team) -> Self:
        """Those of one team."""
        return self.filter(team=team)

    def with_windows(self, hypervisors: Any) -> Self:
        """Those of the teams of these hypervisors that say when swaps may run."""
        timed = self.exclude(windows=[], blackouts=[]).filter(team__hypervisors__in=hypervisors)
        return timed.select_related("team").distinct()


class Policy(models.Model):
    """For a team's jobs from `min_bytes` on; windows and blackouts are lines as jobs.engine.windows reads them."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="policies")
    min_bytes = models.BigIntegerField(default=0, validators=[MinValueValidator(0)])
    approvers = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(10)])
    expiry_hours = models.PositiveSmallIntegerField(
        default=24, validators=[MinValueValidator(1), MaxValueValidator(24 * 31)]
    )
    time_zone = models.CharField(max_length=64, default="UTC")
    windows = models.JSONField(default=list, blank=True)
    blackouts = models.JSONField(default=list, blank=True)

    objects = PolicyQuerySet.as_manager()

    class Meta:
        ordering = ["team", "min_bytes"]
        constraints = [models.UniqueConstraint(fields=["team", "min_bytes"], name="one_policy")]

    def __str__(self) -> str:
        return f"{self.team} from {self.min_bytes} bytes"

    def schedule(self) -> Schedule:
        """Its windows and blackout days, in its time zone."""
        windows, blackouts = map(Window.read, self.windows), map(Blackout.read, self.blackouts)
        return Schedule(self.time_zone, tuple(windows), tuple(blackouts))

    def outlook(self) -> str:
        """Whether its swaps may run now, and until or from when."""
        return outlook(self.schedule(), timezone.now())

    def told(self) -> dict[str, Any]:
        """Its values, for events of the audit log."""
        return {name: getattr(self, name) for name in TOLD}

    @transaction.atomic
    def change(self, by: Any, **told: Any) -> None:
        """Makes or changes it; requests that are open go by it from now on."""
        before, action = (type(self).objects.get(pk=self.pk).told(), "change") if self.pk else ({}, "add")
        for name, value in told.items():
            setattr(self, name, value)
        self.save()
        Event.append(f"policy.{action}", actor=by, object=str(self.team), data=difference(before, self.told()))
        recount(self.team)

    @transaction.atomic
    def remove(self, by: Any) -> None:
        """Deletes it; open requests of the team are counted again by the other policies."""
        Event.append("policy.remove", actor=by, object=str(self.team), data={"before": self.told()})
        team = self.team
        self.delete()
        recount(team)


def recount(team: Team) -> None:
    """Open requests want as many consents as the policies now say, and their jobs look at the clock again."""
    approvals = apps.get_model("jobs", "Approval").objects.open().filter(granted_by=None)
    mine = models.Q()
    for role in ("source", "relay", "destination"):
        mine |= models.Q(**{f"job__{role}__team": team})
    for approval in approvals.filter(mine).select_related("job").order_by("job"):
        approvals.filter(pk=approval.pk).update(approvers=Policy.objects.terms(approval.job).approvers)
        sealing.renew(approval.job)  # fewer may be enough now
        wake(approval.job_id)
