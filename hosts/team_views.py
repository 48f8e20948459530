"""Pages of teams, for administrators: who is in them, what belongs to them, and the policies of their migrations."""

import zoneinfo
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from hosts.models import Hypervisor
from jobs.engine.windows import Blackout, Window
from jobs.models import Policy
from volmig.accounts import people
from volmig.accounts.models import Team
from volmig.accounts.roles import needs
from volmig.accounts.step_up import fresh
from volmig.posting import posted_from

GIB = 1 << 30


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


class Lines(forms.CharField):
    """Text of which each line is read by `reader`; gives the lines in their usual form."""

    def __init__(self, reader: Any, **kwargs: Any) -> None:
        super().__init__(required=False, widget=forms.Textarea(attrs={"rows": 3}), **kwargs)
        self.reader = reader

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> list[str]:
        try:
            return [str(self.reader(line)) for line in str(super().clean(value)).splitlines() if line.strip()]
        except ValueError as error:
            raise ValidationError(str(error)) from error


class PolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """One policy of a team; the size is typed in GiB."""

    min_gib = forms.IntegerField(
        label="For disks from (GiB)", min_value=0, max_value=1 << 24, initial=0, help_text="0: for all of them."
    )
    windows = Lines(Window.read, label="Windows", help_text="One a line, such as Thu 02:00-04:00. None: at any time.")
    blackouts = Lines(
        Blackout.read, label="Blackout days", help_text="One a line, such as 2026-12-24 or 2026-12-24 to 2027-01-02."
    )

    class Meta:
        model = Policy
        fields = ["approvers", "expiry_hours", "time_zone"]
        labels = {
            "approvers": "People who have to approve",
            "expiry_hours": "A request and its consents count for (hours)",
            "time_zone": "Time zone of windows and blackout days",
        }
        help_texts = {"expiry_hours": "A consent for a window that is still to come counts until that window ends."}

    field_order = ("min_gib", "approvers", "expiry_hours", "windows", "blackouts", "time_zone")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial = dict(self.initial) | {name: getattr(self.instance, name) for name in ("windows", "blackouts")}
        self.initial["min_gib"] = self.instance.min_bytes // GIB
        dress(self)

    def clean_time_zone(self) -> str:
        zone = str(self.cleaned_data["time_zone"])
        if zone not in zoneinfo.available_timezones():
            raise ValidationError("No such time zone: write one such as UTC or Europe/Vienna.")
        return zone

    def clean_min_gib(self) -> int:
        size = int(self.cleaned_data["min_gib"]) * GIB
        same = Policy.objects.of(self.instance.team).filter(min_bytes=size).exclude(pk=self.instance.pk)
        if same.exists():
            raise ValidationError("The team has a policy from this size on already.")
        return size

    def told(self) -> dict[str, Any]:
        values = dict(self.cleaned_data)
        return {"min_bytes": values.pop("min_gib"), **values}


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
        people.set_team(changed, form.cleaned_data, request.user)
        messages.success(request, f"{changed.name} is {'changed' if pk else 'added'}, and that is recorded.")
        return redirect("team", changed.pk)
    values = {"form": form, "team": known, "name": form.initial.get("name")}
    return render(request, "registration/team.html", values, status=422 if form.errors else 200)


@posted_from("team", "pk")
@needs("administer")
@fresh
def remove_team(request: HttpRequest, pk: int) -> HttpResponse:
    try:
        people.remove_team(pk, request.user)
    except ValidationError as error:
        messages.error(request, " ".join(error.messages))
        return redirect("team", pk)
    messages.success(request, "The team is removed, and that is recorded.")
    return redirect("teams")


@require_http_methods(["GET", "POST"])
@needs("administer")
@fresh
def policy(request: HttpRequest, pk: int, policy: int | None = None) -> HttpResponse:
    """Adds a policy of a team, or changes the one of this key."""
    team = get_object_or_404(Team, pk=pk)
    known = get_object_or_404(Policy.objects.of(team), pk=policy) if policy else Policy(team=team)
    form = PolicyForm(request.POST or None, instance=known)
    if request.method == "POST" and form.is_valid():
        known.change(request.user, **form.told())
        messages.success(request, "The policy holds from now on, and that is recorded.")
        return redirect("team", pk)
    values = {"form": form, "team": team, "policy": known if policy else None}
    return render(request, "registration/policy.html", values, status=422 if form.errors else 200)


@posted_from("policy", "pk", "policy")
@needs("administer")
@fresh
def remove_policy(request: HttpRequest, pk: int, policy: int) -> HttpResponse:
    get_object_or_404(Policy.objects.filter(team=pk), pk=policy).remove(request.user)
    messages.success(request, "The policy is removed, and that is recorded.")
    return redirect("team", pk)
