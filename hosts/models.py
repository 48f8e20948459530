"""Hypervisors and what was last seen on them; every figure carries the time at which it was seen."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, ClassVar, Self

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.db.models import Count, Exists, F, Max, Min, OuterRef, Prefetch, Q, QuerySet, Subquery, Sum, Value
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.functional import cached_property

from hosts.clouds import Cloud as Cloud
from hosts.clouds import Compute as Compute
from hosts.clouds import Server as Server
from hosts.clouds import difference as difference
from hosts.network import Member, Networks, Site
from hosts.remote import hostctl
from hosts.remote.host import Address, Garbled, HostKeyChanged, HostKeyUnknown
from hosts.remote.hostctl import pack
from hosts.remote.hostctl.leftovers import CAP
from hosts.remote.hostctl.policy import fingerprint
from hosts.rows import keep, write
from volmig import data_dir
from volmig.accounts.models import STANDARD, Team
from volmig.accounts.roles import OwnedQuerySet, is_in_every_team, may, sees_all
from volmig.models import CLOCKS_DIFFER
from volmig.notify import announce
from volmig.outbound import is_metadata
from volmig.queue import ask
from volmig.record.models import Event
from volmig.refusals import Sentence
from volmig.ssh_key import ssh_key_file
from volmig.templatetags.units import spoken

OWN_MOUNTS = ("/mnt/volmig/", "/srv/volmig/")  # what migrations mount meanwhile is no share of instances
# What people tell volmig about a hypervisor, beside its name; everything else is found out.
REGISTRATION = ("address", "port", "user", "shipped", "bastion", "cloud", "nova_host", "team", "rate_limit")
WAY = {"address", "port", "bastion"}  # another one of these may lead to another machine
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
INSTANCE_DISK = rf"({UUID})_(disk(?:\.\w+)?)"  # how Nova names a volume
ANSWERED = ("open", "refused")  # states of a port with nothing in between; a migration starts the NFS server
LISTS = {"volume_groups", "logical_volumes", "mounts", "addresses", "domains"}


def standard_team() -> int:
    """The key of the team that a hypervisor belongs to unless somebody says another."""
    first = Team.objects.order_by("pk").values_list("pk", flat=True).first()  # the key alone: a migration asks too
    return first or Team.objects.create(name=STANDARD, everybody=True).pk


class HostctlVersionQuerySet(models.QuerySet["HostctlVersion"]):
    """Files of hostctl, this version's and those that migrations began with."""

    def keep(self) -> None:
        """Keeps this volmig's own version, before a migration begins with it."""
        if not self.filter(pk=hostctl.source_hash()).exists():
            kept = {"protocol": hostctl.PROTOCOL, "archive": pack.bundle()}
            self.get_or_create(hash=hostctl.source_hash(), defaults=kept)

    def chosen(self, address: Address, version: str) -> Address:
        """The same way with another version of hostctl. One that is not known is from before protocol 2."""
        columns = ("protocol", "archive") if address.shipped else ("protocol",)
        known = self.filter(pk=version).values(*columns).first() or {"protocol": 1}
        return replace(address, hostctl=version, **known)


class HostctlVersion(models.Model):
    """A version of hostctl that migrations have begun with, and its file: an upgraded volmig still ships it.

    In the database, because workers may be on several machines.
    """

    hash = models.CharField(max_length=16, primary_key=True)
    protocol = models.PositiveSmallIntegerField()
    archive = models.BinaryField()
    added_at = models.DateTimeField(default=timezone.now)

    objects = HostctlVersionQuerySet.as_manager()

    def __str__(self) -> str:
        return f"hostctl {self.hash}"


def ahead() -> dt.datetime:
    """What is later was noted before a clock was set back."""
    return timezone.now() + CLOCKS_DIFFER


def late_after() -> dt.timedelta:
    """How long after the last attempt a refresh is late: two periods and a minute."""
    return dt.timedelta(seconds=2 * settings.REFRESH_SECONDS + 60)


@dataclass(frozen=True)
class Lateness:
    """Workers are not keeping up with refreshing hypervisors, so that what pages and checks show gets old.

    `never` of the `count` were never tried; `oldest` is the longest ago that one of the others was, or None.
    """

    count: int
    never: int
    oldest: dt.datetime | None
    reason: ClassVar[str] = "The background workers are not keeping up."
    advice: ClassVar[str] = "Check the Processes page, or raise VOLMIG_BACKGROUND_WORKERS."

    @property
    def sentence(self) -> str:
        """How many hypervisors are late, and the limit that they exceed."""
        many = f"{self.count} hypervisors have" if self.count > 1 else "1 hypervisor has"
        return f"{many} not been refreshed for more than {spoken(late_after().total_seconds())}."


class HypervisorQuerySet(OwnedQuerySet["Hypervisor"]):
    """Hypervisors, by whether volmig may call them and by what they have."""

    def active(self) -> Self:
        """Those that are not retired."""
        return self.filter(retired_at=None)

    def reachable(self) -> Self:
        """Those that volmig may call: pinned, neither quarantined nor retired."""
        return self.active().filter(quarantined_at=None).exclude(host_key="")

    def with_seen(self) -> Self:
        """With what was last seen on them, as `groups_seen` and `mounts_seen`: of many, a manager for each hypervisor
        costs more than its rows. Of instances, which may be thousands, only how many there are."""
        instances = Instance.objects.filter(hypervisor=OuterRef("pk")).order_by().values("hypervisor")
        counted = Coalesce(Subquery(instances.annotate(count=Count("*")).values("count")), 0)
        groups = Prefetch("volume_groups", VolumeGroup.objects.with_held(), to_attr="groups_seen")
        mounts = Prefetch("mounts", Mount.objects.select_related("share"), to_attr="mounts_seen")
        return self.annotate(instances_seen=counted).defer("facts", "hostctl_versions").prefetch_related(groups, mounts)

    def at(self, address: Address) -> Self:
        """Those reached in this way; behind another bastion, the same address is another machine."""
        rows = self.filter(address=address.host, port=address.port)
        if address.bastion is None:
            return rows.filter(bastion=None)
        return rows.filter(bastion__in=Hypervisor.objects.at(address.bastion))

    def stale(self, before: dt.datetime) -> Self:
        """Those that were not tried since; longest ago first."""
        rows = self.reachable().filter(Q(tried_at=None) | Q(tried_at__lt=before) | Q(tried_at__gt=ahead()))
        return rows.order_by(F("tried_at").asc(nulls_first=True))

    def take_stale(self, before: dt.datetime) -> "Hypervisor | None":
        """One that was not tried since, claimed for the caller: it counts as tried now. None when all were tried."""
        while found := self.stale(before).select_related("bastion").first():
            now = timezone.now()
            if self.filter(pk=found.pk, tried_at=found.tried_at).update(tried_at=now):
                found.tried_at = now
                return found
        return None

    def late(self) -> Self:
        """Those that no worker has tried to refresh for two periods, though it may: workers are not keeping up.

        Whether a hypervisor answers is another matter.
        """
        before = timezone.now() - late_after()
        return self.reachable().filter(Q(tried_at__lt=before) | Q(tried_at=None, pinned_at__lt=before))

    def lateness(self) -> "Lateness | None":
        """What is said of those that are late; None when none is. One query."""
        never = Count("pk", filter=Q(tried_at=None))
        figures = self.late().order_by().aggregate(count=Count("pk"), never=never, oldest=Min("tried_at"))
        found = Lateness(**figures)
        return found if found.count else None

    def unscanned(self, before: dt.datetime) -> Self:
        """Those that were not asked for leftovers since; longest ago first."""
        rows = self.reachable().filter(Q(scan=None) | Q(scan__tried_at__lt=before) | Q(scan__tried_at__gt=ahead()))
        return rows.order_by(F("scan__tried_at").asc(nulls_first=True))


class Hypervisor(models.Model):
    """A machine reached by SSH; retired, never deleted, because history names it."""

    name = models.CharField(
        max_length=100,
        unique=True,
        validators=[RegexValidator(r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z", "Letters, digits, dot, dash and underscore.")],
    )
    address = models.CharField(
        "management address",
        max_length=255,
        validators=[RegexValidator(r"\A[A-Za-z0-9][A-Za-z0-9.:_-]*\Z", "A host name or an IP address.")],
    )
    port = models.PositiveIntegerField(default=22, validators=[MinValueValidator(1), MaxValueValidator(65535)])
    user = models.CharField(
        max_length=32,
        default="volmig",
        validators=[RegexValidator(r"\A[a-z_][a-z0-9_-]*\Z", "A Linux user name.")],
    )
    shipped = models.BooleanField(default=False)
    bastion = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="behind")
    cloud = models.ForeignKey(Cloud, models.PROTECT, null=True, blank=True, related_name="hypervisors")
    team = models.ForeignKey(Team, models.PROTECT, default=standard_team, related_name="hypervisors")
    nova_host = models.CharField("name in Nova", max_length=255, blank=True)
    rate_limit = models.BigIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    offered_key = models.TextField(blank=True)
    host_key = models.TextField(blank=True)
    pinned_at = models.DateTimeField(null=True, blank=True)
    pinned_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="+")
    quarantined_at = models.DateTimeField(null=True, blank=True)
    quarantine_reason = models.TextField(blank=True)
    facts = models.JSONField(default=dict, blank=True)
    seen_at = models.DateTimeField(null=True, blank=True)
    tried_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)
    clock_off = models.FloatField(default=0)  # by how many seconds its clock was ahead of ours when it was last seen
    reach_error = models.TextField(blank=True)  # why not all was probed that was to be, as sentences
    hostctl_hash = models.CharField(max_length=64, blank=True)
    hostctl_versions = models.JSONField(default=list, blank=True)
    seal_generation = models.PositiveIntegerField(default=1)
    seal_fingerprint = models.CharField(max_length=16, blank=True)  # of the key by which its seals are made
    retired_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    # Of `with_seen` only.
    groups_seen: list["VolumeGroup"]
    mounts_seen: list["Mount"]

    objects = HypervisorQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    def teams(self) -> list[Team]:
        """To whom it belongs."""
        return [self.team]

    def clean(self) -> None:
        """ValidationError for metadata addresses, uploads without root, and a bastion that leads back to itself."""
        if is_metadata(self.address):
            raise ValidationError(
                {"address": "This is a link-local or metadata address; no hypervisor is managed there."}
            )
        if self.shipped != (self.user == "root"):
            raise ValidationError(
                {"shipped": "Automatic upload of hostctl needs a root login, and a root login needs automatic upload."}
            )
        hop = self.bastion
        while hop:
            if hop.pk == self.pk:
                raise ValidationError({"bastion": "A hypervisor cannot be reached through itself."})
            hop = hop.bastion

    def remote(self, version: str = "") -> Address:
        """Returns how to reach it; raises HostKeyUnknown or HostKeyChanged when it must not be entered.

        `version` is the hash of the hostctl to run there; empty for this volmig's own.
        """
        if self.quarantined_at:
            found = f"it is in quarantine: {self.quarantine_reason}"
            raise HostKeyChanged(f"reach {self.name}", found, "An administrator has to pin its key again.")
        if not self.host_key:
            raise HostKeyUnknown(f"reach {self.name}", "its host key is not pinned", "Pin it on the hypervisor's page.")
        bastion = self.bastion.remote() if self.bastion else None
        own = Address(self.address, self.port, self.user, self.host_key, self.shipped, ssh_key_file(), bastion)
        return own if version in ("", hostctl.source_hash()) else HostctlVersion.objects.chosen(own, version)

    def registration(self) -> dict[str, Any]:
        """What an administrator entered, for events of the audit log."""
        told = {name: getattr(self, name) for name in REGISTRATION}
        return told | {name: str(told[name] or "") for name in ("bastion", "cloud", "team")}

    @transaction.atomic
    def reregister(self, by: Any, **told: Any) -> bool:
        """Takes over new values of REGISTRATION; tells whether they may lead to another machine.

        The pinned key stays: whoever cannot show it there is refused and quarantined. A key that was only offered
        came by the old way, and is forgotten.
        """
        before = self.registration()
        self.put(**told)
        change = difference(before, self.registration())
        moved = not WAY.isdisjoint(change["after"])
        if moved:
            self.put(offered_key="", last_error="")
        if change["after"]:
            Event.append("hypervisor.change", actor=by, object=self.name, data=change)
        return moved

    @transaction.atomic
    def pin(self, by: Any, key: str) -> None:
        """Trusts this host key from now on and ends a quarantine."""
        changed = {"host_key": key, "offered_key": "", "pinned_at": timezone.now(), "pinned_by": by}
        self.put(quarantined_at=None, quarantine_reason="", last_error="", **changed)
        Event.append("hypervisor.pin", actor=by, object=self.name, data={"host_key": key})

    @transaction.atomic
    def quarantine(self, reason: str) -> None:
        """Stops every use of it until a person pins a key again, and tells people; may be called again."""
        if self.quarantined_at:
            return
        subject = f"{self.name} is in quarantine"
        announce("quarantined", subject=subject, text=reason, url_path=f"/hosts/{self.pk}/")
        self.put(quarantined_at=timezone.now(), quarantine_reason=reason, last_error=reason)
        Event.append("hypervisor.quarantine", object=self.name, data={"reason": reason})

    @transaction.atomic
    def ask_key(self, by: Any) -> Sentence | None:
        """Has the workers ask for the host key again, before a first or a deliberate new pinning.

        Returns why nothing was queued, or None; raises Refused when this person has asked for too much.
        """
        if said := ask("hosts.tasks.offer_key", self.pk, by=by):
            return said
        self.put(offered_key="", last_error="")
        return None

    def still_needed(self) -> str:
        """Why it cannot be retired yet, as a sentence; empty when it can."""
        if self.footprints.left().exists():  # the ledger of migrations, which stand above
            return f"Migrations still use {self}."
        behind = ", ".join(self.behind.active().values_list("name", flat=True))
        return f"It is the bastion of {behind}." if behind else ""

    @transaction.atomic
    def retire(self, by: Any) -> None:
        """Stops using it; its history stays."""
        self.put(retired_at=timezone.now())
        Event.append("hypervisor.retire", actor=by, object=self.name)

    def seal_key(self) -> str:
        """Returns the key (hex) by which approvals are sealed for it, and keeps its fingerprint for workers.

        Raises NotForThisProcess everywhere but in web processes.
        """
        key = data_dir.seal_key(self.name, self.seal_generation)
        if self.seal_fingerprint != fingerprint(key):
            self.put(seal_fingerprint=fingerprint(key))
        return key

    def seal_keys(self) -> list[str]:
        """Returns the keys for its policy: the one in use, and the one before it, with which older seals were made."""
        before = [data_dir.seal_key(self.name, self.seal_generation - 1)] if self.seal_generation > 1 else []
        return [self.seal_key(), *before]

    def minimal_policy(self) -> dict[str, Any]:
        """Returns the policy that allows what was last seen on it, and nothing else; its keys are secret."""
        data_addresses = self.data_addresses.exclude(address=self.address)
        networks = {str(ip_network(f"{each.address}/{each.prefix}", strict=False)) for each in data_addresses}
        return {
            "roles": self.role_hints,
            "volume_groups": sorted(self.volume_groups.values_list("name", flat=True)),
            "shares": sorted(set(self.mounts.values_list("share__source", flat=True))),
            "directories": sorted(set(self.mounts.values_list("path", flat=True))),
            "networks": sorted(networks),
            "stop_guests": "destination" in self.role_hints,
            "seal_keys": self.seal_keys(),
        }

    @transaction.atomic
    def show_policy(self, by: Any) -> dict[str, Any]:
        """Returns the policy to install, and keeps who was shown the key in it."""
        found = self.minimal_policy()
        Event.append("hypervisor.policy", actor=by, object=self.name, data={"key": self.seal_fingerprint})
        return found

    @transaction.atomic
    def replace_seal_key(self, by: Any) -> None:
        """Makes seals with another key from now on; its policy needs that one, and for a while the one before too."""
        before = self.seal_fingerprint
        self.put(seal_generation=self.seal_generation + 1)
        self.seal_key()
        data = {"before": before, "after": self.seal_fingerprint}
        Event.append("hypervisor.seal_key", actor=by, object=self.name, data=data)

    def put(self, **values: Any) -> None:
        """Writes only these columns, so that a refresh and a person never undo each other."""
        for name, value in values.items():
            setattr(self, name, value)
        self.save(update_fields=list(values))

    def names_in_nova(self, believed: bool | None = None) -> set[str]:
        """What Nova may call it: what a person said, else its name here and, when `believed`, the one it gives itself.

        A hypervisor says what it likes: with several teams it could take the name of another team's, and volmig's
        credential would lock and stop instances there. None: believed while there is one team.
        """
        if self.nova_host:
            return {self.nova_host}
        itself = str(self.facts.get("hostname") or "")
        if not itself or itself == self.name:
            return {self.name}
        return {self.name, itself} if (Team.objects.is_single() if believed is None else believed) else {self.name}

    @property
    def instance_count(self) -> int:
        """How many instances were last seen on it; `with_seen` annotates it."""
        seen: int | None = getattr(self, "instances_seen", None)
        return self.instances.count() if seen is None else seen

    @property
    def role_hints(self) -> list[str]:
        """What it looks fit for: source, relay or destination."""
        seen = vars(self)
        volumes = bool(seen["groups_seen"]) if "groups_seen" in seen else self.volume_groups.exists()
        shares = bool(seen["mounts_seen"]) if "mounts_seen" in seen else self.mounts.exists()
        hints = {"source": volumes, "relay": volumes and shares, "destination": self.instance_count > 0}
        return [hint for hint, holds in hints.items() if holds]

    @transaction.atomic
    def record_inventory(self, inventory: dict[str, Any]) -> None:
        """Stores what the inventory verb answered; rows of what is gone are deleted."""
        now = timezone.now()
        facts = {name: value for name, value in inventory.items() if name not in LISTS}
        self.put(facts=facts, seen_at=now, last_error="")
        addresses = [
            DataAddress(
                hypervisor=self,
                address=row["address"],
                prefix=row["prefix"],
                interface=row["interface"],
                seen_at=now,
            )
            for row in inventory["addresses"]
        ]
        keep(self.data_addresses.all(), addresses, ("hypervisor", "address"), now)
        self.record_volumes(inventory, now)
        self.record_mounts(inventory["mounts"], now)
        self.record_instances(inventory["domains"], now)

    def record_volumes(self, inventory: dict[str, Any], now: dt.datetime) -> None:
        """Stores volume groups and volumes of an inventory, and deletes those that it no longer has; sizes in bytes."""
        names = ("name", "uuid", "size", "free", "extent_size")
        found = [
            VolumeGroup(hypervisor=self, seen_at=now, **{name: row[name] for name in names})
            for row in inventory["volume_groups"]
        ]
        groups = {group.name: group for group in keep(self.volume_groups.all(), found, ("hypervisor", "name"), now)}
        volumes = [
            LogicalVolume(volume_group=groups[row["vg"]], **volume_row(row, now))
            for row in inventory["logical_volumes"]
            if row["vg"] in groups
        ]
        known = LogicalVolume.objects.filter(volume_group__hypervisor=self)
        keep(known, volumes, ("volume_group", "uuid"), now)

    def record_mounts(self, mounts: list[dict[str, Any]], now: dt.datetime) -> None:
        """Stores NFS mounts of an inventory; volmig's own mounts are left out."""
        seen = [row for row in mounts if not row["target"].startswith(OWN_MOUNTS)]
        shares = Share.objects.known_as({row["source"] for row in seen})
        found = [
            Mount(
                hypervisor=self,
                share=shares[row["source"]],
                path=row["target"],
                seen_at=now,
                **{name: row[name] for name in ("size", "free", "options")},
            )
            for row in seen
        ]
        keep(self.mounts.all(), found, ("hypervisor", "path"), now)
        Share.objects.forget_unmounted()

    def record_instances(self, domains: list[dict[str, Any]], now: dt.datetime) -> None:
        """Stores domains of an inventory with those of their disks that are on a share."""
        paths = [PurePosixPath(path) for path in self.mounts.values_list("path", flat=True)]
        found = [
            Instance(
                hypervisor=self,
                disks=[disk_row(disk) for disk in row["disks"] if lies_under(disk["source"], paths)],
                seen_at=now,
                **{name: row[name] for name in ("uuid", "name", "state")},
            )
            for row in domains
        ]
        keep(self.instances.all(), found, ("hypervisor", "uuid"), now)

    def relays_used(self) -> list[int]:
        """The relays of its migrations as a source, the one of the newest first."""
        used = self.jobs_from.order_by().values("relay").annotate(last=Max("pk"))  # migrations: an app above this one
        return list(used.order_by("-last").values_list("relay", flat=True))

    @transaction.atomic
    def record_reach(self, results: list[dict[str, Any]], addresses: Collection[str], error: str) -> None:
        """Stores what was found out about these addresses; what was known of others is deleted.

        What was to be probed and was not stays as it was last seen, and `error` says why.
        """
        now = timezone.now()
        names = ("address", "port", "state")
        found = [Reach(hypervisor=self, seen_at=now, **{name: row[name] for name in names}) for row in results]
        write(found, ("hypervisor", "address", "port"))
        self.reaches.exclude(address__in=addresses).delete()
        self.put(reach_error=error)


def networks() -> Networks:
    """The data addresses of all hypervisors that are not retired."""
    rows = DataAddress.objects.filter(hypervisor__retired_at=None)
    return Networks(rows.values_list("hypervisor_id", "address", "prefix"))


def site() -> Site:
    """Everything by which pairs are decided, in two queries."""
    there = OuterRef("pk")
    rows = Hypervisor.objects.active().annotate(
        volumes=Exists(VolumeGroup.objects.filter(hypervisor=there)),
        shares=Exists(Mount.objects.filter(hypervisor=there)),
    )
    allowed = "facts__policy__policy__roles"
    found = rows.order_by().values_list(
        "pk", "name", "address", "quarantined_at", "host_key", "volumes", "shares", allowed
    )
    return Site([member(*row) for row in found], networks())


def member(
    key: int, name: str, management: str, quarantined: Any, pinned: str, volumes: bool, shares: bool, allowed: Any
) -> Member:
    """A hypervisor as pairs are decided; `allowed` are the roles of its policy, or None where none is in force."""
    fit = {"source": volumes, "relay": volumes and shares}
    roles = {role for role, holds in fit.items() if holds and (not isinstance(allowed, list) or role in allowed)}
    closed = "in quarantine" if quarantined else "" if pinned else "not pinned yet"
    return Member(key, name, management, frozenset(roles), closed)


def volume_row(row: dict[str, Any], now: dt.datetime) -> dict[str, Any]:
    """The columns of a volume from a row of the inventory."""
    names = ("name", "uuid", "size", "attributes", "tags")
    return {name: row[name] for name in names} | {"is_open": bool(row["open"]), "seen_at": now}


def disk_row(disk: dict[str, Any]) -> dict[str, Any]:
    """Name, path and format of a disk from a domain's definition."""
    return {"name": PurePosixPath(disk["source"]).name, "path": disk["source"], "format": disk["format"]}


def lies_under(source: str | None, paths: list[PurePosixPath]) -> bool:
    """True for a path below one of these mounts."""
    return bool(source) and any(PurePosixPath(str(source)).is_relative_to(path) for path in paths)


class Scan(models.Model):
    """What one hypervisor last told of everything that carries volmig's marker there, whoever made it.

    `things` of the hypervisor and those `on_shares` are as the verb `leftovers` gives them, each with `first_seen`, and
    `listed` is how many they are. Every hypervisor that mounts a share lists what is there, and one of them is read.
    `shares` are those that were asked, `missed` the kinds that could not be, `more` how many things were beyond its
    cap. `began_at`: what changed since then is not in it; None while it never told anything. `error` is why it did not
    tell when it was last asked.
    """

    hypervisor = models.OneToOneField(Hypervisor, models.CASCADE, related_name="scan")
    tried_at = models.DateTimeField()
    began_at = models.DateTimeField(null=True, blank=True)
    things = models.JSONField(default=list, blank=True)
    on_shares = models.JSONField(default=list, blank=True)
    listed = models.PositiveIntegerField(default=0)
    shares = models.JSONField(default=list, blank=True)
    missed = models.JSONField(default=list, blank=True)
    more = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True)

    def __str__(self) -> str:
        return f"leftovers on {self.hypervisor}"

    def record(self, told: dict[str, Any], began: dt.datetime) -> None:
        """Takes over what the verb answered; raises Garbled when it is not as agreed."""
        try:
            things = [thing_row(row) for row in told["things"]]
            shares = [{"source": str(row["source"]), "answered": bool(row["answered"])} for row in told["shares"]]
            missed, more = [str(kind) for kind in told["missed"]], max(int(told["more"]), hidden(things))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            tried = f"read what {self.hypervisor} has of volmig"
            raise Garbled(tried, f"a field is missing or malformed ({error})") from error
        known = {THING(row): row.get("first_seen") for row in (*self.things, *self.on_shares)}
        for row in things:
            row["first_seen"] = known.get(THING(row)) or began.isoformat()
        told_later = Scan.objects.filter(pk=self.pk, began_at__gte=began)
        if not told_later.exists():  # else a slow answer would put an older truth over a newer one
            self.lists(things)
            self.shares, self.missed, self.more = shares, missed, more
            self.began_at, self.error = began, ""
            self.save()

    def lists(self, things: list[dict[str, Any]]) -> None:
        """Sets what it found."""
        self.things = [row for row in things if not row["share"]]
        self.on_shares = [row for row in things if row["share"]]
        self.listed = len(things)

    def told(self, kind: str, place: str) -> bool:
        """Whether all things of a kind at a place (this hypervisor, by its name, or a share) are in it."""
        if self.more or self.began_at is None:
            return False
        if place == self.hypervisor.name:
            return kind not in self.missed
        return any(share["source"] == place and share["answered"] for share in self.shares)


THING = itemgetter("kind", "share", "name", "job", "identity")


def hidden(things: Iterable[dict[str, Any]]) -> int:
    """At least how many things may be on shares beyond those that an answer has; earlier versions of hostctl did not
    count what they left out of a share."""
    on = Counter(row["share"] for row in things if row["share"])
    return sum(count >= CAP for count in on.values())


def thing_row(row: dict[str, Any]) -> dict[str, Any]:
    """One thing of an answer, every column of its type and length; raises ValueError for one that is not."""
    texts = {name: row[name] for name in ("kind", "name", "job", "identity", "share", "path")}
    if not all(isinstance(text, str) and len(text) <= 900 and text.isprintable() for text in texts.values()):
        raise ValueError("an object has an invalid name")
    if texts["job"] and not re.fullmatch(UUID, texts["job"]):
        raise ValueError("an object has an invalid migration")
    since = row["since"]
    return texts | {"size": max(0, int(row["size"])), "since": float(since) if since is not None else None}


class DataAddress(models.Model):
    """An address on a network that NFS traffic may use; never the management address's job."""

    hypervisor = models.ForeignKey(Hypervisor, models.CASCADE, related_name="data_addresses")
    address = models.GenericIPAddressField()
    prefix = models.PositiveSmallIntegerField()
    interface = models.CharField(max_length=32)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["interface", "address"]
        constraints = [models.UniqueConstraint(fields=["hypervisor", "address"], name="one_data_address")]

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


RESERVED = {"kind": "space", "state": "reserved"}  # rows of the ledger of migrations, which stand above
KEPT = {"kind": "backup", "state": "present"}  # disks that swaps left over, until their purge


def held(**of: Any) -> Coalesce:
    """The bytes that migrations keep free for what is not there yet, by the rows of their ledger that fit `of`."""
    return of_ledger(Sum("bytes"), **RESERVED, **of)


def kept(**of: Any) -> Coalesce:
    """The bytes that such disks hold."""
    return of_ledger(Sum("bytes"), **KEPT, **of)


def kept_count(**of: Any) -> Coalesce:
    """The number of kept disks, as an expression for a query."""
    return of_ledger(Count("*"), **KEPT, **of)


def of_ledger(figure: Any, **of: Any) -> Coalesce:
    """A figure of what still stands, as a query for each row: joined with the ledger, a database would read all that
    ever stood on a hypervisor, which after years is millions of rows."""
    one = ledger_left().filter(**of).order_by().annotate(one=Value(1)).values("one")  # grouped by no column
    return Coalesce(Subquery(one.annotate(figure=figure).values("figure")), 0)


def ledger_left() -> QuerySet[Any]:
    """What of the ledger of migrations still stands."""
    found: QuerySet[Any] = apps.get_model("jobs", "Footprint")._default_manager.left()
    return found


def to_hypervisors_of(user: Any) -> dict[str, Any]:
    """The filter of the ledger for those who do not see all: each row's migration is read for it."""
    every = may(user, "view") and (sees_all(user) or is_in_every_team(user))
    return {} if every else {"job__destination__in": seen_by(user)}


def seen_by(user: Any) -> HypervisorQuerySet:
    """The hypervisors of the person's teams."""
    return Hypervisor.objects.visible_to(user)


class VolumeGroupQuerySet(models.QuerySet["VolumeGroup"]):
    """Volume groups, with what migrations have reserved in them."""

    def visible_to(self, user: Any) -> Self:
        """Those on hypervisors of the person's teams."""
        return self.filter(hypervisor__in=seen_by(user))

    def with_held(self) -> Self:
        return self.annotate(held=held(hypervisor=OuterRef("hypervisor"), name=OuterRef("name")))


class VolumeGroup(models.Model):
    """A volume group of a hypervisor, as last reported by vgs(8); sizes in bytes."""

    hypervisor = models.ForeignKey(Hypervisor, models.CASCADE, related_name="volume_groups")
    name = models.CharField(max_length=128)
    uuid = models.CharField(max_length=38)
    size = models.BigIntegerField()
    free = models.BigIntegerField()
    extent_size = models.BigIntegerField()
    seen_at = models.DateTimeField()

    objects = VolumeGroupQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["hypervisor", "name"], name="one_volume_group")]

    def __str__(self) -> str:
        return self.name

    @property
    def used(self) -> int:
        """Bytes that volumes take."""
        return self.size - self.free


class LogicalVolumeQuerySet(models.QuerySet["LogicalVolume"]):
    """Logical volumes, by hypervisor and by the instance in their name."""

    def visible_to(self, user: Any) -> Self:
        """Those on hypervisors of the person's teams."""
        return self.filter(volume_group__hypervisor__in=seen_by(user))

    def of_instances(self, uuids: Iterable[str]) -> Self:
        """The disks of instances that are volumes: Nova names them by the instance's id and the disk."""
        named = Q(pk__in=())
        for uuid in uuids:
            named |= Q(name__startswith=f"{uuid}_disk")
        return self.filter(named).select_related("volume_group__hypervisor")


class LogicalVolume(models.Model):
    """A logical volume, as last reported by lvs(8); `size` in bytes, `attributes` are lv_attr."""

    volume_group = models.ForeignKey(VolumeGroup, models.CASCADE, related_name="logical_volumes")
    name = models.CharField(max_length=128)
    uuid = models.CharField(max_length=38)
    size = models.BigIntegerField()
    attributes = models.CharField(max_length=16)
    is_open = models.BooleanField()
    tags = models.JSONField(default=list)
    seen_at = models.DateTimeField()

    objects = LogicalVolumeQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["volume_group", "uuid"], name="one_logical_volume")]

    def __str__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """VG/LV, as LVM writes it."""
        return f"{self.volume_group.name}/{self.name}"

    @property
    def instance(self) -> str:
        """The id of the instance whose disk it was made as; empty for other volumes."""
        found = re.fullmatch(INSTANCE_DISK, self.name)
        return found[1] if found else ""

    @property
    def disk(self) -> str:
        """Which disk of that instance; empty for other volumes."""
        found = re.fullmatch(INSTANCE_DISK, self.name)
        return found[2] if found else ""


class ShareQuerySet(models.QuerySet["Share"]):
    """NFS shares, with what migrations have reserved and keep on them."""

    def known_as(self, sources: set[str]) -> dict[str, "Share"]:
        """The shares with these sources, by source; those that are new are added."""
        known = {share.source: share for share in self.filter(source__in=sources)}
        if missing := sorted(sources - known.keys()):
            # Another hypervisor's refresh may add the same one meanwhile.
            self.bulk_create([Share(source=source) for source in missing], ignore_conflicts=True)
            known |= {share.source: share for share in self.filter(source__in=missing)}
        return known

    def forget_unmounted(self) -> None:
        """Deletes those that nobody mounts and of which the ledger knows nothing."""
        ledger = apps.get_model("jobs", "Footprint")._default_manager
        for share in self.filter(mounts=None):  # few: asked for each, for a join reads the whole ledger
            if not ledger.filter(share=share).exists():
                share.delete()

    def visible_to(self, user: Any) -> Self:
        """Those that a hypervisor of the person's mounts."""
        return self.filter(pk__in=Mount.objects.filter(hypervisor__in=seen_by(user).active()).values("share"))

    def with_figures(self, user: Any) -> Self:
        """What hypervisors of the person's report of them, and what migrations to these hypervisors hold there.

        One hypervisor may say anything: it changes no figure that people of other teams see. Where several differ, the
        least is taken, and `mounts` has all of them.
        """
        seen = seen_by(user)
        mine = Mount.objects.filter(hypervisor__in=seen.active())
        here = mine.filter(share=OuterRef("pk")).order_by().values("share")
        figures = {
            name: Subquery(here.annotate(least=Min(name)).values("least")) for name in ("size", "free", "seen_at")
        }
        own = {"share": OuterRef("pk"), **to_hypervisors_of(user)}
        ledger = {"held": held(**own), "kept": kept(**own), "backups": kept_count(**own)}
        shown = mine.select_related("hypervisor").only("share", "path", "size", "free", "seen_at", "hypervisor__name")
        mounts = Prefetch("mounts", shown.order_by("hypervisor__name", "path"))
        return self.annotate(**figures, **ledger).prefetch_related(mounts)

    def with_backups(self, user: Any) -> Self:
        """Those on which migrations to the person's hypervisors left disks that wait for their purge."""
        there = ledger_left().filter(share=OuterRef("pk"), **KEPT, **to_hypervisors_of(user))
        return self.with_figures(user).filter(Exists(there))


class Share(models.Model):
    """An NFS export that holds instances; hypervisors mount it each at a path of their own, and report its figures."""

    source = models.CharField(max_length=255, unique=True)

    objects = ShareQuerySet.as_manager()

    class Meta:
        ordering = ["source"]

    def __str__(self) -> str:
        return self.source

    def disagree(self) -> bool:
        """Whether its hypervisors report different sizes, or free bytes that differ by more than a tenth of it."""
        mounts = list(self.mounts.all())
        sizes, free = {each.size for each in mounts}, [each.free for each in mounts]
        return len(sizes) > 1 or (bool(mounts) and max(free) - min(free) > max(sizes) // 10)


class Mount(models.Model):
    """A share as one hypervisor mounts it, statvfs(3) in bytes."""

    hypervisor = models.ForeignKey(Hypervisor, models.CASCADE, related_name="mounts")
    share = models.ForeignKey(Share, models.CASCADE, related_name="mounts")
    path = models.CharField(max_length=255)
    options = models.TextField(blank=True)
    size = models.BigIntegerField(default=0)  # bytes of the share, as this hypervisor reports them
    free = models.BigIntegerField(default=0)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["path"]
        constraints = [models.UniqueConstraint(fields=["hypervisor", "path"], name="one_mount")]

    def __str__(self) -> str:
        return f"{self.share.source} on {self.path}"


class InstanceQuerySet(models.QuerySet["Instance"]):
    """Domains of libvirt, as last reported."""

    def visible_to(self, user: Any) -> Self:
        """Those on hypervisors of the person's teams."""
        return self.filter(hypervisor__in=seen_by(user))

    def search(self, words: str) -> Self:
        """Those in which every word occurs, in name or id."""
        wanted = Q()
        for word in words.lower().split()[:8]:
            wanted &= Q(name__icontains=word) | Q(uuid__contains=word)
        return self.filter(wanted)


class Instance(models.Model):
    """An instance seen on a hypervisor, with those of its disks that lie on a mounted share."""

    hypervisor = models.ForeignKey(Hypervisor, models.CASCADE, related_name="instances")
    uuid = models.CharField(max_length=36)
    name = models.CharField(max_length=255)
    state = models.CharField(max_length=40)
    disks = models.JSONField(default=list)  # [{"name": "disk.local", "path": …, "format": …}]
    seen_at = models.DateTimeField()

    objects = InstanceQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["hypervisor", "uuid"], name="one_instance")]

    def __str__(self) -> str:
        return self.name

    @cached_property
    def called(self) -> str:
        """The name that its users know."""
        return names_of({self.uuid}).get(self.uuid, self.name)


def names_of(uuids: set[str]) -> dict[str, str]:
    """What instances are called: in Nova where a cloud has them, else in libvirt, whose name for them is a number."""
    seen = dict(Instance.objects.filter(uuid__in=uuids).values_list("uuid", "name"))
    return seen | dict(Server.objects.filter(uuid__in=uuids).values_list("uuid", "name"))


class Reach(models.Model):
    """Whether this hypervisor, as a source, reaches a relay's data address on a port, when it was last probed."""

    hypervisor = models.ForeignKey(Hypervisor, models.CASCADE, related_name="reaches")
    address = models.GenericIPAddressField()
    port = models.PositiveIntegerField()
    state = models.CharField(max_length=20)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["address", "port"]
        constraints = [models.UniqueConstraint(fields=["hypervisor", "address", "port"], name="one_reach")]

    def __str__(self) -> str:
        return f"{self.address}:{self.port} {self.state}"
