"""What people type and choose: a new migration with reasons for what cannot be chosen, a rate, a decision."""

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django import forms
from django.db.models import Sum
from django.http import HttpRequest
from django.utils import timezone

from hosts.models import ANSWERED, Hypervisor, Instance, LogicalVolume, Mount, Reach, Server, VolumeGroup, names_of
from jobs.engine.endpoints.lv import other_part
from jobs.engine.transports.relay_nfs import relay_size
from jobs.models import Approval, Footprint, Job
from volmig.accounts import factors, step_up
from volmig.accounts.roles import why_not
from volmig.paging import whole

MIB = 1024**2
FOUND = 20  # instances of which a search offers the disks


@dataclass(frozen=True)
class Option:
    """One thing to choose; `why_not` says why it cannot be, and is empty when it can."""

    value: str
    title: str
    chosen: bool
    size: int | None = None
    detail: str = ""
    why_not: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choices:
    """The three columns of a new migration, narrowed by what was chosen in the others.

    Volumes and disks are those of a hypervisor, or those of the instances that `find_from` and `find_to` look for.
    """

    sources: list[Option]
    volumes: list[Option]
    destinations: list[Option]
    disks: list[Option]
    relays: list[Option]
    find_from: str = ""
    find_to: str = ""

    @property
    def source_chosen(self) -> bool:
        """Whether a source hypervisor is chosen."""
        return any(option.chosen for option in self.sources)

    @property
    def destination_chosen(self) -> bool:
        """Whether a destination hypervisor is chosen."""
        return any(option.chosen for option in self.destinations)

    @classmethod
    def of(cls, user: Any, picked: Any) -> "Choices":
        """Read what was discovered and this person sees; `picked` is the form's values as sent, complete or not."""
        hypervisors = list(Hypervisor.objects.visible_to(user).active().select_related("team").order_by("name"))
        for each in hypervisors:
            each.strange = why_not(user, "submit", each.teams())  # type: ignore[attr-defined]
        busy = list(Job.objects.active().only("pk", "lv_uuid", "instance_id"))
        find_from, find_to = (str(picked.get(name) or "").strip()[:200] for name in ("find_from", "find_to"))
        volume = one(LogicalVolume.objects.select_related("volume_group__hypervisor"), picked.get("volume"))
        source, destination = known(hypervisors, picked.get("source")), known(hypervisors, picked.get("destination"))
        machines = {each.pk: each for each in hypervisors}
        if find_from:
            source = machines.get(volume.volume_group.hypervisor_id) if volume else None
        if volume and (not source or volume.volume_group.hypervisor_id != source.pk):
            volume = None
        chosen = str(picked.get("disk") or "")
        instance, disk = split_disk(chosen, user)
        if find_to:
            destination = machines.get(instance.hypervisor_id) if instance else None
        mount = mount_of(instance, disk, destination) if destination else None
        return cls(
            sources=[machine(each, source) for each in hypervisors],
            volumes=volumes(volumes_of(user, source, find_from), machines, volume, busy, bool(find_from)),
            destinations=[machine(each, destination) for each in hypervisors],
            disks=disks(instances_of(user, destination, find_to), machines, chosen, volume, busy, bool(find_to)),
            relays=relays(hypervisors, (source, destination), volume, mount, picked.get("relay")),
            find_from=find_from,
            find_to=find_to,
        )


def found_ids(user: Any, words: str) -> list[str]:
    """The ids of the instances that a search finds, in Nova or in libvirt."""
    told = list(Server.objects.visible_to(user).search(words).values_list("uuid", flat=True)[:FOUND])
    seen = Instance.objects.visible_to(user).filter(hypervisor__retired_at=None).search(words)
    return [*told, *seen.values_list("uuid", flat=True)[:FOUND]]


def volumes_of(user: Any, source: Hypervisor | None, words: str) -> Any:
    """The volumes of a hypervisor, or those of the instances that are looked for."""
    rows = LogicalVolume.objects.select_related("volume_group__hypervisor").order_by("volume_group__name", "name")
    if words:
        here = rows.visible_to(user).filter(volume_group__hypervisor__retired_at=None)
        # An instance that left has its volume under its id, which no search by name finds any more.
        return here.of_instances(found_ids(user, words)) | here.filter(name__icontains=words)
    return rows.filter(volume_group__hypervisor=source) if source else rows.none()


def instances_of(user: Any, destination: Hypervisor | None, words: str) -> Any:
    """The instances of a hypervisor, or those that are looked for."""
    rows = Instance.objects.select_related("hypervisor")
    if words:
        ids = found_ids(user, words)
        return rows.visible_to(user).filter(uuid__in=ids, hypervisor__retired_at=None)
    return rows.filter(hypervisor=destination) if destination else rows.none()


def one(rows: Any, key: Any) -> Any:
    """The row with this key as it was sent, or None."""
    return rows.filter(pk=whole(key)).first() if whole(key) else None


def known(hypervisors: list[Hypervisor], key: Any) -> Hypervisor | None:
    """The hypervisor with this key among `hypervisors`."""
    return next((each for each in hypervisors if str(each.pk) == key), None)


def closed(hypervisor: Hypervisor) -> list[str]:
    """Why volmig may not enter a hypervisor at all, or not for this person."""
    if strange := getattr(hypervisor, "strange", None):
        return [
            f"{hypervisor.name} belongs to the team {hypervisor.team}, and you are not a member of it" for _ in strange
        ]
    if hypervisor.quarantined_at:
        return [f"{hypervisor.name} is quarantined: {hypervisor.quarantine_reason}"]
    return [] if hypervisor.host_key else [f"the host key of {hypervisor.name} is not pinned yet"]


def machine(hypervisor: Hypervisor, chosen: Hypervisor | None) -> Option:
    """A hypervisor as an entry of a drop-down."""
    return Option(str(hypervisor.pk), hypervisor.name, hypervisor == chosen, why_not=closed(hypervisor))


Machines = dict[int, Hypervisor]


def volumes(
    rows: Any, machines: Machines, chosen: LogicalVolume | None, busy: list[Job], anywhere: bool
) -> list[Option]:
    """Logical volumes; `anywhere` they are called by their instance, and say on which hypervisor they are."""
    taken = {job.lv_uuid: job.pk for job in busy}
    listed = list(rows)
    names = names_of({row.instance for row in listed} - {""}) if anywhere else {}
    offered = []
    for row in listed:
        hypervisor = machines[row.volume_group.hypervisor_id]
        title = f"{names.get(row.instance, row.instance)} {row.disk}" if anywhere and row.disk else row.path
        detail = f"{hypervisor.name} {row.path}" if anywhere else ""
        why = closed(hypervisor) + volume_refusals(row, taken)
        offered.append(Option(str(row.pk), title, row == chosen, row.size, detail, why))
    return offered


def volume_refusals(volume: LogicalVolume, taken: dict[str, int]) -> list[str]:
    """Why a logical volume cannot be the source."""
    return [
        *(["in use: it is open on its hypervisor"] if volume.is_open else []),
        *([f"already in migration {taken[volume.uuid]}"] if volume.uuid in taken else []),
        *why_tagged(volume.tags),
    ]


def why_tagged(tags: list[str]) -> list[str]:
    """What volmig's own tags say: a source volume that a migration has fenced is the customer's, and not volmig's."""
    if any(tag.startswith("volmig.src=") for tag in tags):
        return ["fenced as the source of a migration"]
    return ["a temporary volume of a migration"] if "volmig" in tags else []


def disks(
    rows: Any, machines: Machines, chosen: str, volume: LogicalVolume | None, busy: list[Job], anywhere: bool
) -> list[Option]:
    """The disks, on a share, of instances; those that can be chosen first. `anywhere` they say where they are."""
    taken = {job.instance_id: job.pk for job in busy}
    listed = list(rows)
    names = names_of({each.uuid for each in listed})
    offered = []
    for instance in listed:
        for disk in instance.disks:
            value = f"{instance.pk}/{disk['name']}"
            why = closed(machines[instance.hypervisor_id]) + disk_refusals(instance, disk, volume, taken)
            where = f"{instance.hypervisor.name} {instance.uuid}" if anywhere else instance.uuid
            title = f"{names[instance.uuid]} {disk['name']}"
            offered.append(Option(value, title, value == chosen, None, where, why))
    return sorted(offered, key=lambda option: bool(option.why_not))


def disk_refusals(
    instance: Instance, disk: dict[str, str], volume: LogicalVolume | None, taken: dict[str, int]
) -> list[str]:
    """Why a disk cannot be replaced."""
    part = other_part(volume.name, disk["name"]) if volume else ""
    return [
        *([f"the volume was {part} of its instance"] if part else []),
        *([f"{disk['format']}, not qcow2"] if disk["format"] != "qcow2" else []),
        *([f"its instance is already in migration {taken[instance.uuid]}"] if instance.uuid in taken else []),
    ]


def split_disk(value: str, user: Any) -> tuple[Instance | None, str]:
    """The instance and the disk's name in a value of the form's disk field."""
    key, _, name = value.partition("/")
    return one(Instance.objects.visible_to(user), key), name


def mount_of(instance: Instance | None, disk: str, destination: Hypervisor) -> Mount | None:
    """The mount that a disk lies under on its hypervisor."""
    if instance is None or instance.hypervisor_id != destination.pk:
        return None
    path = next((each["path"] for each in instance.disks if each["name"] == disk), "")
    mounts = [m for m in destination.mounts.select_related("share") if path.startswith(m.path.rstrip("/") + "/")]
    return max(mounts, key=lambda mount: len(mount.path), default=None)


def relays(
    hypervisors: list[Hypervisor],
    ends: tuple[Hypervisor | None, Hypervisor | None],
    volume: LogicalVolume | None,
    mount: Mount | None,
    chosen: Any,
) -> list[Option]:
    """Every volume group that could hold the temporary volume, with what stands against it."""
    source, destination = ends
    names = {each.pk: each for each in hypervisors}
    groups = VolumeGroup.objects.filter(hypervisor__in=names).order_by("hypervisor__name", "name")
    mounting = set(Mount.objects.filter(share=mount.share).values_list("hypervisor", flat=True)) if mount else None
    held, cut = held_in_groups(), cut_off(source)
    offered = []
    for group in groups:
        relay = names[group.hypervisor_id]
        free = group.free - held.get((relay.pk, group.name), 0)
        why = closed(relay)
        if relay in (source, destination):
            why.append("same hypervisor as the source" if relay == source else "same hypervisor as the destination")
        elif relay.pk in cut and source:
            why.append(f"{source.name} cannot reach any of its data addresses")
        if mounting is not None and mount and relay.pk not in mounting:
            why.append(f"does not mount {mount.share.source}")
        if volume and free < relay_size(volume.size, group.extent_size):
            why.append("not enough free space for this volume")
        offered.append(Option(str(group.pk), f"{relay.name} {group.name}", str(group.pk) == chosen, free, why_not=why))
    return offered


def held_in_groups() -> dict[tuple[int, str], int]:
    """Bytes that jobs hold reserved and have not taken yet, by hypervisor and volume group."""
    rows = Footprint.objects.left().filter(kind="space", state="reserved", hypervisor__isnull=False)
    return {
        (row["hypervisor"], row["name"]): row["held"]
        for row in rows.values("hypervisor", "name").annotate(held=Sum("bytes"))
    }


def cut_off(source: Hypervisor | None) -> set[int]:
    """Hypervisors of which a data address was probed from `source` and none answered on any port.

    Those that were not probed are not among them: a migration's checks will say whether it reaches its relay.
    """
    if source is None:
        return set()
    tried = list(Reach.objects.filter(hypervisor=source).values_list("address", "state"))
    answered = {address for address, state in tried if state in ANSWERED}
    owners = Hypervisor.objects.filter(data_addresses__address__in={address for address, _ in tried})
    return set(owners.values_list("pk", flat=True)) - set(
        owners.filter(data_addresses__address__in=answered).values_list("pk", flat=True)
    )


class RateForm(forms.Form):
    """A bandwidth limit in MiB/s; empty for none."""

    rate = forms.DecimalField(
        label="Limit in MiB/s", required=False, min_value=Decimal("0.1"), max_value=Decimal(100_000), decimal_places=1
    )
    rate.widget.attrs.update({"class": "form-control", "inputmode": "decimal", "placeholder": "none"})

    def rate_in_bytes(self) -> int | None:
        """Bytes per second, or None for no limit."""
        rate = self.cleaned_data.get("rate")
        return int(rate * MIB) if rate else None


class ExtendForm(forms.Form):
    """Until the end of which day a disk is kept, and why."""

    day = forms.DateField(label="Keep it until the end of", widget=forms.DateInput(attrs={"type": "date"}))
    reason = forms.CharField(label="Why", max_length=500)
    day.widget.attrs["class"] = reason.widget.attrs["class"] = "form-control"
    reason.widget.attrs["autocomplete"] = "off"

    def until(self) -> dt.datetime:
        """The last moment of that day, in the site's time zone."""
        return timezone.make_aware(dt.datetime.combine(self.cleaned_data["day"], dt.time(23, 59, 59)))


class MigrationForm(RateForm):
    """A new migration; whether it may be is for the model's verb to say."""

    rollback_minutes = forms.IntegerField(
        label="Pre-approved rollback window (minutes)", required=False, min_value=0, max_value=24 * 60
    )
    rollback_minutes.widget.attrs.update({"class": "form-control", "inputmode": "numeric", "placeholder": "none"})
    source = forms.CharField(required=False)
    destination = forms.CharField(required=False)
    find_from = forms.CharField(required=False)
    find_to = forms.CharField(required=False)
    volume = forms.ModelChoiceField(
        LogicalVolume.objects.select_related("volume_group__hypervisor"),
        error_messages={
            "required": "Select a source volume.",
            "invalid_choice": "The volume no longer exists. Select another one.",
        },
    )
    disk = forms.CharField(error_messages={"required": "Select the disk to replace."})
    relay = forms.ModelChoiceField(
        VolumeGroup.objects.select_related("hypervisor"),
        error_messages={
            "required": "Select a relay and its volume group.",
            "invalid_choice": "The relay's volume group no longer exists. Select another one.",
        },
    )
    ticket = forms.CharField(label="Ticket", max_length=100, required=False)
    ticket.widget.attrs.update({"class": "form-control", "placeholder": "OPS-5519"})

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        for name in ("volume", "relay"):
            self.fields[name].queryset = self.fields[name].queryset.visible_to(user)  # type: ignore[attr-defined]

    def clean_disk(self) -> tuple[Instance, str]:
        """Return the instance and the name of its disk."""
        instance, name = split_disk(self.cleaned_data["disk"], self.user)
        if instance is None or name not in {disk["name"] for disk in instance.disks}:
            said = "The disk no longer exists. Select another one."
            raise forms.ValidationError(said, code="invalid_choice")
        return instance, name

    def wanted(self) -> dict[str, Any]:
        """What the model's verb takes."""
        values = self.cleaned_data
        return {
            "source_volume": values["volume"],
            "destination": values["disk"][0],
            "disk": values["disk"][1],
            "relay": values["relay"].hypervisor,
            "relay_vg": values["relay"].name,
            "ticket": values["ticket"],
            "rate": self.rate_in_bytes(),
            "rollback_minutes": values["rollback_minutes"] or 0,
        }


class ConsentForm(forms.Form):
    """A person's yes or no: the reason, and a sign that they mean this instance."""

    reason = forms.CharField(label="Reason", widget=forms.Textarea(attrs={"rows": 3, "class": "form-control"}))
    tail = forms.CharField(label="Last six characters of the instance id", required=False, max_length=40)
    digest = forms.CharField(widget=forms.HiddenInput)

    tail.widget.attrs.update({"class": "form-control mono", "autocomplete": "off", "spellcheck": "false"})

    def __init__(self, data: Any, asked: Approval, verdict: str) -> None:
        super().__init__(data, initial={"digest": asked.digest})
        self.asked, self.verdict = asked, verdict

    def clean_tail(self) -> str:
        """Only a yes needs it: a no takes nothing away from anybody."""
        tail = str(self.cleaned_data["tail"]).strip().lower()
        if self.verdict == "approve" and tail != self.asked.job.instance_id[-6:].lower():
            said = "These are not the last six characters of the instance id shown here."
            raise forms.ValidationError(said, code="other-instance")
        return tail


class DecisionForm(ConsentForm):
    """The same on a page, with proof that they are who is logged in: the password, and the code of a second factor."""

    password = forms.CharField(
        label="Your password",
        required=False,
        widget=forms.PasswordInput(attrs={"class": "form-control", "autocomplete": "current-password"}),
    )
    code = forms.CharField(
        label="Six-digit code from your app, or a recovery code",
        required=False,
        max_length=20,
        widget=forms.TextInput(attrs={"class": "form-control", "autocomplete": "one-time-code"}),
    )

    def __init__(self, request: HttpRequest, asked: Approval) -> None:
        super().__init__(request.POST or None, asked, request.POST.get("verdict", ""))
        self.request = request
        fresh = step_up.is_fresh(request)
        if fresh:
            del self.fields["password"]
        if fresh or not factors.has(request.user):
            del self.fields["code"]

    def clean(self) -> dict[str, Any]:
        """Nobody decides at a screen that was left open. Proof is taken last: a code can be used only once."""
        typed = dict(super().clean() or {})
        if self.errors or "password" not in self.fields:
            return typed
        if why := step_up.proved(self.request, typed["password"], typed.get("code", ""), self.asked):
            self.add_error("password", why)
        return typed
