"""Forms about hypervisors."""

from typing import Any

from django import forms

from hosts.models import Hypervisor

MIB = 1024**2
TYPED = 8


def look_of(widget: forms.Widget) -> str:
    if isinstance(widget, forms.CheckboxInput):
        return "form-check-input"
    return "form-select" if isinstance(widget, forms.Select) else "form-control"


class RegisterForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's own class takes no argument
    """What volmig has to be told; everything else it finds out."""

    limit_mib = forms.IntegerField(
        label="Bandwidth limit as relay (MiB/s)", required=False, min_value=1, help_text="Empty: no limit."
    )

    class Meta:
        model = Hypervisor
        fields = ["name", "address", "port", "user", "shipped", "bastion", "cloud"]
        labels = {"shipped": "hostctl is shipped (root logins only)", "user": "SSH user", "cloud": "Cloud"}
        help_texts = {
            "name": "As people call it; shown everywhere.",
            "address": "Where SSH listens. NFS traffic uses other addresses, which volmig finds by itself.",
            "user": "volmig, with the forced command below; or root, when hostctl is shipped.",
            "bastion": "A registered hypervisor through which this one is reached.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["bastion"].queryset = Hypervisor.objects.reachable()  # type: ignore[attr-defined]
        for field in self.fields.values():
            field.widget.attrs["class"] = look_of(field.widget)

    def save(self, commit: bool = True) -> Hypervisor:
        limit = self.cleaned_data["limit_mib"]
        self.instance.rate_limit = limit * MIB if limit else None
        saved: Hypervisor = super().save(commit)
        return saved


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
