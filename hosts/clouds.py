"""Clouds, and what Nova last told about them: computes and instances of all projects, each figure with its age."""

import datetime as dt
from pathlib import Path
from typing import Any, Self

import yaml
from django.apps import apps
from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from hosts.remote.host import Access, HostError
from hosts.rows import keep, write
from volmig import encryption, keys
from volmig.accounts.models import Team
from volmig.accounts.roles import may, sees_all
from volmig.queue import later
from volmig.record.models import Event

CONTROLS = [("libvirt", "libvirt on each hypervisor"), ("openstack", "Nova, through OpenStack's API")]
AUTH_TYPES = [("v3applicationcredential", "application credential"), ("v3password", "user and password")]
SECRETS = {"v3applicationcredential": "application_credential_secret", "v3password": "password"}
# Which of Keystone's values belong to which kind of credential; the secret is kept apart.
VALUES = {
    "v3applicationcredential": ("auth_url", "application_credential_id"),
    "v3password": ("auth_url", "username", "user_domain_name", "project_name", "project_domain_name"),
}
TOLD = ("name", "control", "entry", "auth_type", "auth", "region", "ca_file", "verify")
SENT_TO: dict[str, Any] = {"auth_type": "", "auth": {}, "region": "", "ca_file": "", "verify": True}
PLACES = (Path("clouds.yaml"), Path("~/.config/openstack/clouds.yaml"), Path("/etc/openstack/clouds.yaml"))
FOUND = 100  # rows of a search


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an event says about a change: the values that differ, as they were and as they are."""
    changed = [name for name in after if before.get(name) != after[name]]
    return {"before": {name: before.get(name) for name in changed}, "after": {name: after[name] for name in changed}}


def entries() -> list[str]:
    """The names in the clouds.yaml that workers read; empty when there is none that can be read."""
    for path in [Path(settings.CLOUDS_YAML)] if settings.CLOUDS_YAML else PLACES:
        try:
            with path.expanduser().open() as file:
                return sorted(str(name) for name in yaml.safe_load(file)["clouds"])
        except (OSError, yaml.YAMLError, KeyError, TypeError):
            continue
    return []


def sent_to(values: dict[str, Any]) -> tuple[Any, ...]:
    """Compared before a secret is kept: with another region, CA or no verification it would be shown to others."""
    return tuple(values.get(name, default) for name, default in SENT_TO.items())


class CloudQuerySet(models.QuerySet["Cloud"]):
    """Clouds, by how their instances are controlled."""

    def with_nova(self) -> Self:
        """Those whose instances Nova stops and starts."""
        return self.filter(control="openstack")


class Cloud(models.Model):
    """Hypervisors whose instances are stopped and started in the same way; `secret` is sealed."""

    name = models.CharField(max_length=100, unique=True)
    control = models.CharField(max_length=20, choices=CONTROLS, default="libvirt")
    entry = models.CharField("name in clouds.yaml", max_length=100, blank=True)
    auth_type = models.CharField(max_length=40, choices=AUTH_TYPES, blank=True)
    auth = models.JSONField(default=dict, blank=True)
    secret = models.TextField(blank=True)
    region = models.CharField(max_length=100, blank=True)
    ca_file = models.CharField("CA file", max_length=255, blank=True)
    verify = models.BooleanField("verify its certificate", default=True)
    checked_at = models.DateTimeField(null=True, blank=True)
    calls = models.JSONField(default=list, blank=True)  # [{"call", "may": yes|no|likely|unknown, "sentence"}]
    version = models.CharField(max_length=10, blank=True)
    seen_at = models.DateTimeField(null=True, blank=True)
    tried_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)
    marker = models.CharField(max_length=36, blank=True)  # how far the reading of instances has come
    round_at = models.DateTimeField(null=True, blank=True)  # when that reading began; empty when none is under way

    objects = CloudQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def through_nova(self) -> bool:
        """True when Nova stops and starts its instances, False for libvirt."""
        return self.control == "openstack"

    def registration(self) -> dict[str, Any]:
        """What a record may know: everything but the secret."""
        members = self.hypervisors.active().values_list("name", flat=True) if self.pk else []
        return {name: getattr(self, name) for name in TOLD} | {"hypervisors": list(members)}

    @transaction.atomic
    def reregister(self, by: Any, hypervisors: Any, secret: str = "", **told: Any) -> None:
        """Adds or changes it; exactly these hypervisors belong to it then, of those that are not retired.

        An empty `secret` keeps the one that is there, as long as it is sent to the same place in the same way.
        """
        before, action = (self.registration(), "cloud.change") if self.pk else ({}, "cloud.add")
        same = self.sent_to() == sent_to(told)
        self.secret = encryption.seal(secret) if secret else self.secret if same else ""
        for name, value in told.items():
            setattr(self, name, value)
        self.checked_at, self.calls = None, []
        self.save()
        everybody = self.hypervisors.model.objects.active()
        self.hypervisors.active().exclude(pk__in=hypervisors).update(cloud=None)
        everybody.filter(pk__in=hypervisors).update(cloud=self)
        changed = difference(before, self.registration())
        Event.append(action, actor=by, object=self.name, data=changed | ({"secret": "entered"} if secret else {}))
        if self.through_nova:
            later("hosts.tasks.check_cloud", self.pk)
            later("hosts.tasks.refresh_cloud", self.pk)

    def sent_to(self) -> tuple[Any, ...]:
        """What the secret is for, and to whom it is shown."""
        return sent_to({name: getattr(self, name) for name in SENT_TO})

    def access(self) -> Access:
        """How workers enter it; raises HostError when the secret cannot be opened."""
        if self.entry:
            return Access(self.name, self.entry, settings.CLOUDS_YAML, region=self.region)
        try:
            secret = encryption.unseal(self.secret) if self.secret else ""
        except encryption.Unopened as error:
            raise HostError(
                f"log in to {self.name}",
                "its secret cannot be decrypted with this site's key",
                keys.why_outdated(encryption.KEYS) or "Enter the credential again on the cloud's page.",
            ) from error
        values = {**self.auth, SECRETS.get(self.auth_type, "password"): secret}
        auth = tuple(sorted((name, str(value)) for name, value in values.items()))
        return Access(
            self.name,
            auth_type=self.auth_type,
            auth=auth,
            region=self.region,
            ca_file=self.ca_file,
            verify=self.verify,
        )

    def put(self, **values: Any) -> None:
        """Writes only these columns."""
        for name, value in values.items():
            setattr(self, name, value)
        self.save(update_fields=list(values))

    # What was read of it

    @transaction.atomic
    def record_computes(self, hypervisors: list[dict[str, Any]], services: list[dict[str, Any]]) -> None:
        """Takes over Nova's computes; rows of what is gone are deleted."""
        now, by_host = timezone.now(), {str(row.get("host")): row for row in services}
        found = [Compute(cloud=self, **compute_row(row, by_host, now)) for row in hypervisors]
        keep(self.computes.all(), found, ("cloud", "name"), now)

    @transaction.atomic
    def record_servers(self, rows: list[dict[str, Any]]) -> None:
        """Takes over one page of instances."""
        write([Server(cloud=self, **row) for row in rows], ("cloud", "uuid"))

    def matched(self) -> dict[int, list["Compute"]]:
        """Which computes each of its hypervisors is, by the hypervisor's key: exactly one when all is well."""
        computes, believed = list(self.computes.all()), Team.objects.is_single()
        return {
            each.pk: [row for row in computes if {row.name, row.host} & each.names_in_nova(believed)]
            for each in self.hypervisors.active()
        }

    def unmatched(self) -> list["Compute"]:
        """Computes that no registered hypervisor is."""
        known = {row.pk for rows in self.matched().values() for row in rows}
        return [row for row in self.computes.all() if row.pk not in known]


def compute_row(row: dict[str, Any], services: dict[str, dict[str, Any]], now: dt.datetime) -> dict[str, Any]:
    """The columns of a Compute, from a hypervisor and the service that it belongs to."""
    mine = row.get("service") or {}
    service = services.get(str(mine.get("host"))) or {}
    return {
        "name": str(row["hypervisor_hostname"])[:255],
        "host": str(mine.get("host") or "")[:255],
        "kind": str(row.get("hypervisor_type") or "")[:40],
        "state": str(service.get("state") or row.get("state") or "")[:20],
        "status": str(service.get("status") or row.get("status") or "")[:20],
        "forced_down": bool(service.get("forced_down")),
        "reason": str(service.get("disabled_reason") or mine.get("disabled_reason") or "")[:255],
        "seen_at": now,
    }


class Compute(models.Model):
    """A hypervisor as Nova knows it, with its compute service."""

    cloud = models.ForeignKey(Cloud, models.CASCADE, related_name="computes")
    name = models.CharField(max_length=255)  # Nova's hypervisor_hostname
    host = models.CharField(max_length=255)
    kind = models.CharField(max_length=40, blank=True)
    state = models.CharField(max_length=20, blank=True)
    status = models.CharField(max_length=20, blank=True)
    forced_down = models.BooleanField(default=False)
    reason = models.CharField(max_length=255, blank=True)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]
        constraints = [models.UniqueConstraint(fields=["cloud", "name"], name="one_compute")]

    def __str__(self) -> str:
        return self.name

    @property
    def trouble(self) -> str:
        """What stands against it, in Nova's words; empty when it is up and enabled."""
        said = [
            *(["forced down"] if self.forced_down else []),
            *([self.state] if self.state not in ("", "up") else []),
            *([self.status] if self.status not in ("", "enabled") else []),
        ]
        return ", ".join(said) + (f" ({self.reason})" if said and self.reason else "")


class ServerQuerySet(models.QuerySet["Server"]):
    """Instances as Nova last reported them."""

    def visible_to(self, user: Any) -> Self:
        """All of them for whoever sees every hypervisor; else those on hypervisors that the person sees."""
        if not may(user, "view"):
            return self.none()
        hypervisors = apps.get_model("hosts", "Hypervisor").objects
        seen = hypervisors.visible_to(user)
        if sees_all(user) or not hypervisors.exclude(pk__in=seen).exists():
            return self.all()
        believed = Team.objects.is_single()
        names = {name for each in seen.only("name", "nova_host", "facts") for name in each.names_in_nova(believed)}
        return self.filter(Q(host__in=names) | Q(hypervisor_name__in=names), cloud__in=seen.values("cloud"))

    def search(self, words: str) -> Self:
        """Those in which every word occurs: in name, id, project or address."""
        wanted = Q()
        for word in words.lower().split()[:8]:
            wanted &= Q(words__contains=word)
        return self.filter(wanted)


class Server(models.Model):
    """An instance as Nova last told; the same instance on a registered hypervisor is an Instance there."""

    cloud = models.ForeignKey(Cloud, models.CASCADE, related_name="servers")
    uuid = models.CharField(max_length=36)
    name = models.CharField(max_length=255)
    project = models.CharField(max_length=64, blank=True)
    project_name = models.CharField(max_length=255, blank=True)
    host = models.CharField(max_length=255, blank=True)
    hypervisor_name = models.CharField(max_length=255, blank=True)
    status = models.CharField(max_length=40, blank=True)
    vm_state = models.CharField(max_length=40, blank=True)
    task_state = models.CharField(max_length=60, blank=True)
    flavor = models.CharField(max_length=255, blank=True)
    ephemeral_gb = models.PositiveIntegerField(default=0)
    image = models.CharField(max_length=64, blank=True)
    addresses = models.JSONField(default=list, blank=True)
    locked = models.BooleanField(default=False)
    locked_reason = models.TextField(blank=True)
    words = models.TextField(blank=True)  # what a search looks through
    updated_at = models.DateTimeField(null=True, blank=True)
    seen_at = models.DateTimeField()

    objects = ServerQuerySet.as_manager()

    class Meta:
        ordering = ["name", "uuid"]
        constraints = [models.UniqueConstraint(fields=["cloud", "uuid"], name="one_server")]
        indexes = [
            models.Index(fields=["uuid"], name="server_uuid"),
            models.Index(fields=["name", "uuid"], name="server_name"),
            models.Index(fields=["host"], name="server_host"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """The page of the instance, by its id in Nova."""
        return f"/instances/{self.uuid}/"
