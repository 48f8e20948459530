"""Pages of teams, for administrators: who is in them and what belongs to them."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from hosts import teams as hosts_teams
from hosts.models import Hypervisor
from volmig.accounts.models import Team
from volmig.accounts.roles import needs
from volmig.accounts.step_up import fresh
from volmig.posting import posted_from


def dress(form: forms.BaseForm) -> None:
    for field in form.fields.values():
        ticks = isinstance(field.widget, forms.CheckboxInput | forms.CheckboxSelectMultiple)
        field.widget.attrs["class"] = "form-check-input" if ticks else "form-control"


class TeamForm(forms.ModelForm):  # type: ignore[type-arg]
    """A team, who is a member of it, and which hypervisors belong to it."""

    hypervisors = forms.ModelMultipleChoiceField(
        Hypervisor.objects.select_related("team"), required=False, widget=forms.CheckboxSelectMultiple
    )

    class Meta:
        model = Team
        fields = ["name", "everybody", "members"]
        widgets = {"members": forms.CheckboxSelectMultiple}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["hypervisors"] = self.instance.hypervisors.all() if self.instance.pk else []
        named: Any = self.fields["hypervisors"]
        named.label_from_instance = lambda host: f"{host.name} (in {host.team.name})"
        members: Any = self.fields["members"]
        members.queryset = get_user_model().objects.order_by("username")
        dress(self)


@require_GET
@needs("administer")
def teams(request: HttpRequest) -> HttpResponse:
    """All teams: who is in them and what belongs to them."""
    known = Team.objects.prefetch_related("members", "hypervisors", "policies")
    return render(request, "registration/teams.html", {"teams": known})


@require_http_methods(["GET", "POST"])
@needs("administer")
@fresh
def team(request: HttpRequest, pk: int | None = None) -> HttpResponse:
    """Adds a team, or changes the one of this key."""
    known = get_object_or_404(Team, pk=pk) if pk else None
    form = TeamForm(request.POST or None, instance=known)
    if request.method == "POST" and form.is_valid():
        changed = get_object_or_404(Team, pk=pk) if pk else Team()
        hosts_teams.set_team(changed, form.cleaned_data, request.user)
        messages.success(request, f"{changed.name} is {'changed' if pk else 'added'}; the audit log notes it.")
        return redirect("team", changed.pk)
    values = {"form": form, "team": known, "name": form.initial.get("name")}
    return render(request, "registration/team.html", values, status=422 if form.errors else 200)


@posted_from("team", "pk")
@needs("administer")
@fresh
def remove_team(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        hosts_teams.remove_team(pk, request.user)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("team", pk)
    messages.success(request, "The team is removed; the audit log notes it.")
    return redirect("teams")
