"""Pages of a team's policies, for administrators."""

import zoneinfo
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from hosts.team_views import dress
from jobs.engine.windows import Blackout, Window
from jobs.models import Policy
from volmig.accounts.models import Team
from volmig.accounts.roles import needs
from volmig.accounts.step_up import fresh
from volmig.posting import posted_from

GIB = 1 << 30


class Lines(forms.CharField):
    """Text of which each line is read by `reader`; gives the lines in their usual form."""

    def __init__(self, reader: Any, **kwargs: Any) -> None:
        super().__init__(required=False, widget=forms.Textarea(attrs={"rows": 3}), **kwargs)
        self.reader = reader

    def prepare_value(self, value: Any) -> Any:
        """One line for each value."""
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> list[str]:
        """A value for each line; ValidationError names the first that cannot be read."""
        try:
            return [str(self.reader(line)) for line in str(super().clean(value)).splitlines() if line.strip()]
        except ValueError as error:
            raise ValidationError(str(error)) from error


class PolicyForm(forms.ModelForm):  # type: ignore[type-arg]
    """One policy of a team; the size is typed in GiB."""

    min_gib = forms.IntegerField(
        label="For disks from (GiB)", min_value=0, max_value=1 << 24, initial=0, help_text="0: all disks."
    )
    windows = Lines(
        Window.read, label="Windows", help_text="One per line, such as Thu 02:00-04:00. Empty: at any time."
    )
    blackouts = Lines(
        Blackout.read, label="Blackout days", help_text="One per line, such as 2026-12-24 or 2026-12-24 to 2027-01-02."
    )

    class Meta:
        model = Policy
        fields = ["approvers", "expiry_hours", "time_zone"]
        labels = {
            "approvers": "Required approvers",
            "expiry_hours": "Approval expires after (hours)",
            "time_zone": "Time zone of windows and blackout days",
        }
        help_texts = {"expiry_hours": "An approval for a future window is valid until that window ends."}

    field_order = ("min_gib", "approvers", "expiry_hours", "windows", "blackouts", "time_zone")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial = dict(self.initial) | {name: getattr(self.instance, name) for name in ("windows", "blackouts")}
        self.initial["min_gib"] = self.instance.min_bytes // GIB
        dress(self)

    def clean_time_zone(self) -> str:
        """ValidationError for what is not in the IANA database."""
        zone = str(self.cleaned_data["time_zone"])
        if zone not in zoneinfo.available_timezones():
            raise ValidationError("No such time zone: write one such as UTC or Europe/Vienna.")
        return zone

    def clean_min_gib(self) -> int:
        """In bytes; ValidationError when the team has a policy of this size."""
        size = int(self.cleaned_data["min_gib"]) * GIB
        same = Policy.objects.of(self.instance.team).filter(min_bytes=size).exclude(pk=self.instance.pk)
        if same.exists():
            raise ValidationError("The team already has a policy from this size.")
        return size

    def told(self) -> dict[str, Any]:
        """The values by the columns of the policy."""
        values = dict(self.cleaned_data)
        return {"min_bytes": values.pop("min_gib"), **values}


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
        messages.success(request, "The policy is in force; the audit log notes it.")
        return redirect("team", pk)
    values = {"form": form, "team": team, "policy": known if policy else None}
    return render(request, "registration/policy.html", values, status=422 if form.errors else 200)


@posted_from("policy", "pk", "policy")
@needs("administer")
@fresh
def remove_policy(request: HttpRequest, pk: int, policy: int) -> HttpResponse:
    get_object_or_404(Policy.objects.filter(team=pk), pk=policy).remove(request.user)
    messages.success(request, "The policy is removed; the audit log notes it.")
    return redirect("team", pk)
