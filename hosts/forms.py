"""Forms about hypervisors."""

from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.db import transaction

from hosts.clouds import VALUES, entries, sent_to
from hosts.models import Cloud, Hypervisor
from volmig.accounts.models import Team
from volmig.outbound import is_metadata
from volmig.queue import later
from volmig.record.models import Event

MIB = 1024**2
TYPED = 8


def look_of(widget: forms.Widget) -> str:
    """Bootstrap's class for a field of this kind."""
    if isinstance(widget, forms.CheckboxInput | forms.CheckboxSelectMultiple):
        return "form-check-input"
    return "form-select" if isinstance(widget, forms.Select) else "form-control"


def dress(form: forms.BaseForm) -> None:
    """Gives all fields of a form Bootstrap's classes."""
    for field in form.fields.values():
        field.widget.attrs["class"] = look_of(field.widget)


class RegisterForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's own class takes no argument
    """What volmig has to be told; everything else it finds out."""

    limit_mib = forms.IntegerField(
        label="Bandwidth limit as relay (MiB/s)", required=False, min_value=1, help_text="Empty: no limit."
    )

    class Meta:
        model = Hypervisor
        fields = ["name", "address", "port", "user", "shipped", "bastion", "cloud", "nova_host", "team"]
        labels = {"shipped": "Upload hostctl automatically (root logins only)", "user": "SSH user", "cloud": "Cloud"}
        help_texts = {
            "name": "The name that volmig shows everywhere.",
            "address": "Where SSH listens. NFS traffic uses other addresses, which volmig discovers.",
            "user": "volmig, with the forced command; or root, when hostctl is uploaded automatically.",
            "team": "Its members see the hypervisor and its migrations.",
            "bastion": "A registered hypervisor through which this one is reached.",
            "nova_host": "Only if Nova's name differs from the name here and from its host name.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ways = Hypervisor.objects.reachable() | Hypervisor.objects.filter(pk=self.instance.bastion_id)
        if Team.objects.is_single():  # nothing to choose
            del self.fields["team"]
        self.fields["bastion"].queryset = ways.exclude(pk=self.instance.pk)  # type: ignore[attr-defined]
        dress(self)

    def told(self) -> dict[str, Any]:
        """The values of the model's columns that were typed; the limit in bytes."""
        limit = self.cleaned_data["limit_mib"]
        typed = {name: self.cleaned_data[name] for name in self.Meta.fields if name in self.fields}
        return typed | {"rate_limit": limit and limit * MIB}

    @transaction.atomic
    def register(self, by: Any) -> Hypervisor:
        """Registers it, and has the workers ask for its host key."""
        host = self.save()
        host.seal_key()  # so that workers know by which key its seals are made
        later("hosts.tasks.offer_key", host.pk)
        Event.append("hypervisor.register", actor=by, object=host.name, data=host.registration())
        return host

    def save(self, commit: bool = True) -> Hypervisor:
        """Saves the hypervisor; the limit goes from MiB/s to bytes per second."""
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

    @transaction.atomic
    def change(self, host: Hypervisor, by: Any) -> bool:
        """Takes what was typed over into `host` (the form's own instance has it already), and has it looked at.

        Tells whether it may lead to another machine now.
        """
        moved = host.reregister(by, **self.told())
        later("hosts.tasks.refresh" if host.host_key else "hosts.tasks.offer_key", host.pk)
        return moved


class Members(forms.ModelMultipleChoiceField):  # type: ignore[type-arg]
    """Hypervisors with the cloud that each belongs to now."""

    widget = forms.CheckboxSelectMultiple

    def label_from_instance(self, obj: Any) -> str:
        """The hypervisor's name, and the cloud that it would leave."""
        return f"{obj.name} (in {obj.cloud.name})" if obj.cloud else str(obj.name)


class CloudForm(forms.ModelForm):  # type: ignore[type-arg]
    """A cloud, which hypervisors belong to it, and how Nova is entered: by a clouds.yaml, or by what is entered here.

    The secret is never shown again: an empty field keeps it, as long as the rest of the credential stays.
    """

    hypervisors = Members(Hypervisor.objects.active().select_related("cloud"), required=False)
    entry = forms.ChoiceField(
        label="Name in clouds.yaml",
        required=False,
        help_text="An entry of the workers' clouds.yaml, with any credential that openstacksdk supports. "
        "Leave empty to enter it below.",
    )
    auth_url = forms.URLField(label="Identity service (Keystone)", required=False, assume_scheme="https")
    application_credential_id = forms.CharField(label="ID of the application credential", required=False)
    username = forms.CharField(label="User", required=False)
    user_domain_name = forms.CharField(label="Domain of the user", required=False)
    project_name = forms.CharField(label="Project", required=False)
    project_domain_name = forms.CharField(label="Domain of the project", required=False)
    secret = forms.CharField(
        label="Secret or password",
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Stored encrypted and never shown again.",
    )

    class Meta:
        model = Cloud
        fields = ["name", "control", "entry", "auth_type", "region", "ca_file", "verify"]
        labels = {
            "control": "Control of instances",
            "auth_type": "Kind of credential",
            "ca_file": "CA file on the workers, if the cloud's certificate needs one",
            "verify": "Verify the cloud's certificate",
        }

    credential = ("auth_url", *dict.fromkeys(name for names in VALUES.values() for name in names if name != "auth_url"))
    entered = ("auth_type", *credential, "secret", "region", "ca_file")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = self.instance.sent_to() if self.instance.pk else None  # before the form writes into it
        self.initial["hypervisors"] = self.instance.hypervisors.all() if self.instance.pk else []
        self.initial.update({name: value for name, value in self.instance.auth.items() if name in self.fields})
        self.initial.setdefault("auth_type", "")
        names = dict.fromkeys([*entries(), *([self.instance.entry] if self.instance.entry else [])])
        choices = [("", "entered below"), *((name, name) for name in names)]
        self.fields["entry"].choices = choices  # type: ignore[attr-defined]
        if not self.initial["auth_type"]:
            self.initial["auth_type"] = "v3applicationcredential"
        dress(self)

    def clean_auth_url(self) -> str:
        """Refuses schemes other than http(s), and metadata addresses: the secret would be sent there."""
        url = str(self.cleaned_data["auth_url"])
        if url and not url.startswith(("https://", "http://")):
            raise forms.ValidationError("It has to begin with https:// or http://.")
        if is_metadata(urlsplit(url).hostname or ""):
            raise forms.ValidationError("This is a link-local or metadata address; no credential is sent there.")
        return url

    def clean(self) -> dict[str, Any]:
        """Checks that the credential is complete, and asks for the secret again when its destination changes."""
        values: dict[str, Any] = super().clean() or {}
        kind = values.get("auth_type") or ""
        if values.get("control") != "openstack" or values.get("entry"):
            return values
        wanted = VALUES.get(kind, ())
        if not wanted:
            self.add_error("auth_type", "Choose the kind of credential, or a name in clouds.yaml.")
        for name in wanted:
            if not values.get(name) and name not in self.errors:
                self.add_error(name, "Required to log in.")
        if not values.get("secret") and (
            sent_to({**values, "auth": self._auth(values)}) != self.before or not self.instance.secret
        ):
            self.add_error(
                "secret",
                "Enter the secret: the credential is new, or its address or verification has changed.",
            )
        return values

    def _auth(self, values: dict[str, Any]) -> dict[str, str]:
        return {name: values.get(name, "") for name in VALUES.get(values.get("auth_type") or "", ())}

    def told(self) -> dict[str, Any]:
        """What the model's verb takes; of a cloud without Nova, or from a clouds.yaml, no credential is kept."""
        values = self.cleaned_data
        nova = values["control"] == "openstack"
        here = nova and not values["entry"]
        return {
            **{name: values[name] for name in ("name", "control", "hypervisors")},
            "entry": values["entry"] if nova else "",
            "region": values["region"] if nova else "",
            "auth_type": values["auth_type"] if here else "",
            "auth": self._auth(values) if here else {},
            "secret": values["secret"] if here else "",
            "ca_file": values["ca_file"] if here else "",
            "verify": values["verify"] if here else True,
        }


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
        """Refuses (`other-key`) when the hypervisor has offered another key since the page was shown."""
        if self.cleaned_data["shown"] != self.offered:
            said = "The hypervisor has offered another key since this page was loaded. Compare it again."
            raise forms.ValidationError(said, code="other-key")
        return str(self.cleaned_data["shown"])

    def clean_typed(self) -> str:
        """Refuses (`other-fingerprint`) what does not match the end of the fingerprint."""
        if self.cleaned_data["typed"].strip() != self.offered[-TYPED:]:
            said = "These are not the last characters of the fingerprint that the hypervisor offers."
            raise forms.ValidationError(said, code="other-fingerprint")
        return str(self.cleaned_data["typed"])

    @transaction.atomic
    def pin(self, host: Hypervisor, by: Any) -> None:
        """Trusts the key that was compared, and has the first inventory made."""
        host.pin(by, host.offered_key)
        later("hosts.tasks.refresh", host.pk)


class RetireForm(forms.Form):
    """The name, typed once more: nobody retires the neighbour by mistake."""

    name = forms.CharField(required=False)

    def __init__(self, data: Any, host: Hypervisor) -> None:
        super().__init__(data)
        self.host = host

    def clean_name(self) -> str:
        """Refuses another name, and a hypervisor that migrations or others still need."""
        if self.cleaned_data["name"] != self.host.name:
            raise forms.ValidationError(f"Type {self.host.name} to retire it.", code="name-not-typed")
        if why := self.host.still_needed():
            raise forms.ValidationError(why, code="still-needed")
        return self.host.name
