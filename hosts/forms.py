"""Forms about hypervisors."""

from typing import Any

from django import forms

from hosts.models import Cloud, Hypervisor
from volmig.accounts.models import Team

MIB = 1024**2
TYPED = 8


def look_of(widget: forms.Widget) -> str:
    if isinstance(widget, forms.CheckboxInput | forms.CheckboxSelectMultiple):
        return "form-check-input"
    return "form-select" if isinstance(widget, forms.Select) else "form-control"


def dress(form: forms.BaseForm) -> None:
    for field in form.fields.values():
        field.widget.attrs["class"] = look_of(field.widget)


class RegisterForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's own class takes no argument
    """What volmig has to be told; everything else it finds out."""

    limit_mib = forms.IntegerField(
        label="Bandwidth limit as relay (MiB/s)", required=False, min_value=1, help_text="Empty: no limit."
    )

    class Meta:
        model = Hypervisor
        fields = ["name", "address", "port", "user", "shipped", "bastion", "cloud", "team"]
        labels = {"shipped": "hostctl is shipped (root logins only)", "user": "SSH user", "cloud": "Cloud"}
        help_texts = {
            "name": "As people call it; shown everywhere.",
            "address": "Where SSH listens. NFS traffic uses other addresses, which volmig finds by itself.",
            "user": "volmig, with the forced command; or root, when hostctl is shipped.",
            "team": "Its members see it, and the migrations over it.",
            "bastion": "A registered hypervisor through which this one is reached.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ways = Hypervisor.objects.reachable() | Hypervisor.objects.filter(pk=self.instance.bastion_id)
        if Team.objects.count() < 2:  # a site with one team has nothing to choose
            del self.fields["team"]
        self.fields["bastion"].queryset = ways.exclude(pk=self.instance.pk)  # type: ignore[attr-defined]
        dress(self)

    def told(self) -> dict[str, Any]:
        """The values of the model's columns that were typed; the limit in bytes."""
        limit = self.cleaned_data["limit_mib"]
        typed = {name: self.cleaned_data[name] for name in self.Meta.fields if name in self.fields}
        return typed | {"rate_limit": limit and limit * MIB}

    def save(self, commit: bool = True) -> Hypervisor:
        self.instance.rate_limit = self.told()["rate_limit"]
        saved: Hypervisor = super().save(commit)
        return saved


class EditForm(RegisterForm):
    """What may be told anew; the name stays, because history calls the hypervisor by it."""

    class Meta(RegisterForm.Meta):
        fields = RegisterForm.Meta.fields[1:]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["limit_mib"] = self.instance.rate_limit and self.instance.rate_limit // MIB


class Members(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Hypervisors with the cloud that each belongs to now."""

    widget = forms.CheckboxSelectMultiple

    def label_from_instance(self, obj: Any) -> str:
        return f"{obj.name} (in {obj.cloud.name})" if obj.cloud else str(obj.name)


class CloudForm(forms.ModelForm):  # type: ignore[type-arg]
    """A cloud, and which hypervisors belong to it."""

    hypervisors = Members(Hypervisor.objects.active().select_related("cloud"), required=False)

    class Meta:
        model = Cloud
        fields = ["name", "control"]
        labels = {"control": "How its instances are stopped and started"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["hypervisors"] = self.instance.hypervisors.all() if self.instance.pk else []
        dress(self)


class PinForm(forms.Form):
    """The last characters of the fingerprint, which only somebody who read it on the machine's console knows."""

    shown = forms.CharField(widget=forms.HiddenInput)  # the fingerprint that the page showed
    typed = forms.CharField(
        label=f"Last {TYPED} characters of the fingerprint, as read on the machine itself",
        widget=forms.TextInput(
            attrs={"class": "form-control font-monospace", "autocomplete": "off", "maxlength": TYPED}
        ),
    )

    def __init__(self, *args: Any, offered: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.offered = offered

    def clean_shown(self) -> str:
        if self.cleaned_data["shown"] != self.offered:
            raise forms.ValidationError("The host offered another key since this page was loaded. Look again.")
        return str(self.cleaned_data["shown"])

    def clean_typed(self) -> str:
        if self.cleaned_data["typed"].strip() != self.offered[-TYPED:]:
            raise forms.ValidationError("These are not the last characters of the fingerprint that the host offers.")
        return str(self.cleaned_data["typed"])
