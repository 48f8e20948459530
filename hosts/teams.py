"""What is changed of teams: who is in them, and which hypervisors belong to them."""

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.shortcuts import get_object_or_404

from hosts.models import Hypervisor, difference
from volmig.accounts.models import Team
from volmig.record.models import Event


def described(team: Team) -> dict[str, Any]:
    """What the record says of a team."""
    members = list(team.members.order_by("username").values_list("username", flat=True)) if team.pk else []
    hypervisors = list(team.hypervisors.order_by("name").values_list("name", flat=True)) if team.pk else []
    return {"name": team.name, "everybody": team.everybody, "members": members, "hypervisors": hypervisors}


@transaction.atomic
def set_team(team: Team, told: dict[str, Any], by: Any) -> None:
    """Makes or changes a team: its name, whether everybody is a member, its members and its hypervisors.

    A hypervisor always belongs to some team: named here it leaves the one that it was in.
    """
    before, action = (described(Team.objects.get(pk=team.pk)), "team.change") if team.pk else ({}, "team.add")
    team.name, team.everybody = told["name"], told["everybody"]
    team.save()
    team.members.set(told["members"])
    Hypervisor.objects.filter(pk__in=told["hypervisors"]).update(team=team)
    change = difference(before, described(team))
    if change["after"]:
        Event.append(action, actor=by, object=team.name, data=change)


@transaction.atomic
def remove_team(pk: int, by: Any) -> None:
    """Removes a team that owns nothing; raises ValidationError when it owns something or is the only one."""
    team = get_object_or_404(Team.objects.select_for_update(), pk=pk)
    if names := ", ".join(team.hypervisors.values_list("name", flat=True)):
        raise ValidationError(f"Hypervisors still belong to it: {names}. Move them to another team first.")
    if Team.objects.is_single():
        raise ValidationError("It is the only team, and every hypervisor has to belong to one.")
    Event.append("team.remove", actor=by, object=team.name, data={"before": described(team)})
    team.delete()
