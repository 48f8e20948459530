"""Discovery: what the workers ask hypervisors in the background."""

import datetime as dt
import math
import re
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db.models import F
from django.utils import timezone

from hosts.models import NFS_PORTS, WAY, Cloud, DataAddress, Hypervisor, Scan, keep
from hosts.remote import hostctl, instances, nova, ssh
from hosts.remote.host import Answer, Denied, Garbled, Host, HostctlDiffers, HostError, HostKeyChanged, Request, skew
from hosts.remote.hostctl.policy import objections, reported
from hosts.remote.phrases import phrase
from volmig import incarnation
from volmig.queue import later

INVENTORY_SECONDS = 60
LEFTOVERS_SECONDS = 60
OUTSIDE_POLICY = "not allowed"  # the state of a port that the hypervisor's own policy does not let it try
PAGE = 500  # instances that are asked for at once
TURN = 15.0  # seconds of reading pages after which the next task goes on
LONGEST_ROUND = dt.timedelta(minutes=15)  # a reading that has taken longer was lost, and begins anew


def refresh_stale() -> None:
    """Task, once a minute: queues a refresh of the hypervisors whose figures are older than VOLMIG_REFRESH_SECONDS.

    Only as many as keep all of them fresh in turn: workers that look around do not move migrations.
    """
    now = timezone.now()
    before = now - dt.timedelta(seconds=settings.REFRESH_SECONDS)
    share = math.ceil(Hypervisor.objects.reachable().count() * 60 / settings.REFRESH_SECONDS)
    stale = Hypervisor.objects.stale(before).order_by(F("tried_at").asc(nulls_first=True))
    for pk in stale.values_list("pk", flat=True)[:share]:
        later("hosts.tasks.refresh", pk)
        Hypervisor.objects.filter(pk=pk).update(tried_at=now)  # or busy workers would find it queued again next minute


def refresh(hypervisor_id: int) -> None:
    """Task: looks at one hypervisor; what went wrong is kept as its last error."""
    hypervisor = Hypervisor.objects.reachable().filter(pk=hypervisor_id).first()
    if hypervisor is None:
        return
    hypervisor.put(tried_at=timezone.now())
    try:
        with ssh.connect(hypervisor.remote()) as host:
            look(hypervisor, host)
    except HostError as error:
        note(hypervisor, error)


def look(hypervisor: Hypervisor, host: Host) -> None:
    """Hello proves the way and the program, the inventory is what is there, reach is whom it can talk to.

    First who owns it: that is to be known of one whose tools fail, too.
    """
    compare_owner(hypervisor, asked(host, Request("status", job=NOBODY)).get("owner"))
    began = time.time()
    hello = asked(host, Request("hello"))
    off, versions = skew(hello.get("time"), began, time.time()), hello.get("versions")
    versions = [str(each) for each in versions] if isinstance(versions, list) else []
    hypervisor.put(
        hostctl_hash=hostctl.source_hash(), hostctl_versions=versions or [hostctl.source_hash()], clock_off=off
    )
    policy = asked(host, Request("policy"))
    inventory = asked(host, Request("inventory"), INVENTORY_SECONDS)
    try:
        hypervisor.record_inventory(inventory | {"policy": policy})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Garbled(f"read the inventory of {hypervisor}", f"a field is missing or malformed ({error})") from error
    look_around(hypervisor, host)


def compare_owner(hypervisor: Hypervisor, owner: Any) -> None:
    """Enter read-only mode when this volmig acted on a hypervisor and its database does not know it: it was set back.

    So that is found out although nothing is to be changed there. That a hypervisor belongs to another volmig stands
    against acting there alone, and is found out then: registering it must not stop all migrations.
    """
    fault = incarnation.stale(owner) if isinstance(owner, dict) else None
    if fault and not fault.is_other:
        incarnation.enter_read_only(f"{hypervisor.name}: {fault.found}.", fault.code)


def scan_due() -> None:
    """Task, once a minute: queues the daily scan (VOLMIG_SCAN_SECONDS) of hypervisors that have not had it, in turn."""
    before = timezone.now() - dt.timedelta(seconds=settings.SCAN_SECONDS)
    share = math.ceil(Hypervisor.objects.reachable().count() * 60 / settings.SCAN_SECONDS)
    for pk in Hypervisor.objects.unscanned(before).values_list("pk", flat=True)[:share]:
        scan_soon(pk)


def scan_soon(hypervisor_id: int) -> None:
    """Queues one scan; that it was is kept, so that busy workers do not find it queued again and again."""
    Scan.objects.update_or_create(hypervisor_id=hypervisor_id, defaults={"tried_at": timezone.now()})
    later("hosts.tasks.scan", hypervisor_id)


def scan(hypervisor_id: int) -> None:
    """Task: asks one hypervisor for everything with volmig's marker; without an answer what it told before stays."""
    hypervisor = Hypervisor.objects.reachable().filter(pk=hypervisor_id).first()
    if hypervisor is None:
        return
    began = timezone.now()
    kept, _ = Scan.objects.update_or_create(hypervisor=hypervisor, defaults={"tried_at": began})
    try:
        with ssh.connect(hypervisor.remote()) as host:
            kept.record(asked(host, Request("leftovers"), LEFTOVERS_SECONDS), began)
    except HostError as error:
        note(hypervisor, error)
        Scan.objects.filter(pk=kept.pk).update(error=str(error))


def look_around(hypervisor: Hypervisor, host: Host) -> None:
    others = DataAddress.objects.filter(hypervisor__in=Hypervisor.objects.active()).exclude(hypervisor=hypervisor)
    addresses = sorted(set(others.values_list("address", flat=True)))
    targets = [{"address": address, "port": port} for address in addresses for port in NFS_PORTS]
    allowed, outside = by_policy(hypervisor, targets)
    results = asked(host, Request("reach", {"targets": allowed}), 30)["results"] if allowed else []
    results += [target | {"state": OUTSIDE_POLICY} for target in outside]
    now = timezone.now()
    rows = [{"address": row["address"], "port": row["port"], "state": row["state"], "seen_at": now} for row in results]
    keep(hypervisor.reaches, ("address", "port"), rows)


def by_policy(
    hypervisor: Hypervisor, targets: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that the hypervisor's policy lets it be asked to reach, and the others, which it would refuse."""
    rules = reported(hypervisor.facts.get("policy"))
    outside = [target for target in targets if objections(rules, "reach", {"targets": [target]}, reads=True)]
    return [target for target in targets if target not in outside], outside


def asked(host: Host, request: Request, timeout: float = 20) -> dict[str, Any]:
    answer: Answer = host.call(request, timeout)
    if answer.state != "done":
        found = answer.found or f"it answered {answer.state}"
        raise HostError(phrase(request.verb), found, str((answer.error or {}).get("next") or ""))
    return answer.evidence


def note(hypervisor: Hypervisor, error: HostError) -> None:
    """Keeps the error for people; a changed key quarantines the machine that offered it, which may be a bastion."""
    hypervisor.put(last_error=str(error))
    if isinstance(error, HostctlDiffers):
        hypervisor.put(hostctl_hash=error.has, hostctl_versions=list(error.versions))
    if isinstance(error, HostKeyChanged) and error.address:
        for culprit in Hypervisor.objects.active().at(error.address):
            culprit.quarantine(str(error))


def offer_key(hypervisor_id: int) -> None:
    """Task: asks for the host key that a person is to compare and pin; nobody is logged in for it."""
    hypervisor = Hypervisor.objects.active().get(pk=hypervisor_id)
    try:
        bastion = hypervisor.bastion.remote() if hypervisor.bastion else None
        key = ssh.offered_key(hypervisor.address, hypervisor.port, bastion)
    except HostError as error:
        note(hypervisor, error)
    else:
        way = {name: getattr(hypervisor, name) for name in WAY}  # who changed it meanwhile wants another machine's key
        Hypervisor.objects.filter(pk=hypervisor.pk, **way).update(offered_key=key)


# Clouds


def refresh_clouds() -> None:
    """Task, once a minute: queues a reading of the clouds whose figures are older than VOLMIG_REFRESH_SECONDS."""
    now = timezone.now()
    before = now - dt.timedelta(seconds=settings.REFRESH_SECONDS)
    for cloud in Cloud.objects.with_nova():
        if cloud.round_at and now - cloud.round_at < LONGEST_ROUND:
            continue
        if cloud.tried_at is None or cloud.tried_at < before:
            later("hosts.tasks.refresh_cloud", cloud.pk)
            cloud.put(tried_at=now)


def refresh_cloud(cloud_id: int) -> None:
    """Task: reads computes, then instances page by page; what does not fit into one turn is left to the next task.

    Figures are replaced as pages come; instances that no page of a whole round had are gone.
    """
    cloud = Cloud.objects.with_nova().filter(pk=cloud_id).first()
    if cloud is None:
        return
    now = timezone.now()
    try:
        way = nova.connect(cloud.access())
        if not cloud.marker or cloud.round_at is None or now - cloud.round_at > LONGEST_ROUND:
            cloud.put(tried_at=now, round_at=now, marker="")
            cloud.record_computes(list(way.hypervisors()), way.services())
        if not read_pages(cloud, way):
            later("hosts.tasks.refresh_cloud", cloud.pk)
    except HostError as error:
        cloud.put(last_error=str(error), round_at=None, marker="")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"Tried to read what {cloud} has: {type(error).__name__}: {error}."
        cloud.put(last_error=found, round_at=None, marker="")


def read_pages(cloud: Cloud, way: nova.Nova) -> bool:
    """Reads on from the marker for one turn; true when the last page was read."""
    began, names = time.monotonic(), projects(way)
    while True:
        page = way.servers(cloud.marker, PAGE)
        cloud.record_servers([server_row(each, names) for each in page])
        if len(page) < PAGE:
            cloud.servers.filter(seen_at__lt=cloud.round_at).delete()
            cloud.put(seen_at=timezone.now(), round_at=None, marker="", last_error="", version=way.version())
            return True
        cloud.put(marker=str(page[-1]["id"]))
        if time.monotonic() - began > TURN:
            return False


def projects(way: nova.Nova) -> dict[str, str]:
    """Names of projects by id; empty when Keystone does not list them for this credential."""
    try:
        return {str(row["id"]): str(row.get("name") or "") for row in way.projects()}
    except HostError:
        return {}


def server_row(found: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The columns of a Server."""
    seen = instances.server(found)
    networks = found.get("addresses") or {}
    addresses = [str(row["addr"])[:45] for rows in networks.values() for row in rows if row.get("addr")][:32]
    project = names.get(seen["project"], "")
    words = " ".join([seen["name"], seen["uuid"], seen["project"], project, *addresses]).lower()
    same = ("uuid", "name", "project", "host", "status", "vm_state", "task_state", "flavor", "ephemeral_gb", "image")
    return {name: seen[name] for name in (*same, "locked", "locked_reason")} | {
        "name": seen["name"][:255],
        "project_name": project[:255],
        "hypervisor_name": seen["hypervisor"][:255],
        "addresses": addresses,
        "words": words,
        "updated_at": moment(seen["updated"]),
        "seen_at": timezone.now(),
    }


def moment(text: str) -> dt.datetime | None:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=dt.UTC)


def check_cloud(cloud_id: int) -> None:
    """Task: finds out which calls the credential may make, without changing anything anywhere."""
    cloud = Cloud.objects.with_nova().filter(pk=cloud_id).first()
    if cloud is None:
        return
    nova.forget()  # a new token shows what the credential may do now
    try:
        found, version = looked_at(nova.connect(cloud.access()))
    except HostError as error:
        found, version = [call("log in", "no", str(error))], ""
    cloud.put(calls=found, checked_at=timezone.now(), version=version)


def call(what: str, may: str, sentence: str) -> dict[str, str]:
    return {"call": what, "may": may, "sentence": sentence}


def looked_at(way: nova.Nova) -> tuple[list[dict[str, str]], str]:
    """Every call that volmig makes, with yes, no, likely or unknown, and Nova's microversion."""
    me = way.who()
    roles = ", ".join(me["roles"]) or "no role"
    found = [call("log in", "yes", f"As {me['user'] or me['user_id']} in project {me['project']}, with {roles}.")]
    try:
        version = way.version()
    except HostError as error:
        return [*found, call("lock with a reason", "no", str(error))], ""
    found.append(call("lock with a reason", "yes", f"Nova's API is spoken as {version}."))
    page: list[dict[str, Any]] = []
    asks: list[tuple[str, Callable[[], Any]]] = [
        ("list the instances of all projects", lambda: page.extend(way.servers("", 1))),
        ("list hypervisors", lambda: next(way.hypervisors(), None)),
        ("list compute services", way.services),
        ("list migrations and evacuations", lambda: way.migrations(NOBODY)),
        ("list projects by name", way.projects),
    ]
    found += [tried(what, ask) for what, ask in asks]
    return [*found, *of_an_instance(way, page), *changes(me)], version


NOBODY = "00000000-0000-4000-8000-000000000000"


def tried(what: str, ask: Callable[[], Any]) -> dict[str, str]:
    try:
        ask()
    except Denied as error:
        return call(what, "no", error.found)
    except HostError as error:
        return call(what, "unknown", error.found)
    return call(what, "yes", "Nova answered." if "projects" not in what else "It was answered.")


def of_an_instance(way: nova.Nova, page: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What can only be seen on an instance that is there."""
    host, history = "see the hypervisor of an instance", "read what was done to an instance"
    if not page:
        why = "There is no instance to see it on."
        return [call(host, "unknown", why), call(history, "unknown", why)]
    seen = instances.server(page[0])
    there = call(host, "yes", f"{seen['name']} is on {seen['host']}.") if seen["host"] else None
    hidden = call(host, "no", f"Nova does not tell where {seen['name']} is; only administrators are told.")
    return [there or hidden, tried(history, lambda: way.actions(seen["uuid"], 1))]


def changes(me: dict[str, Any]) -> list[dict[str, str]]:
    """Whether it may lock, stop and start: told by its roles, because to try would be to do."""
    if "admin" in me["roles"]:
        why = "By Nova's default policy for the role admin. It is not tried; a job's first lock proves it."
        said = [call(what, "likely", why) for what in ("lock and unlock", "stop", "start")]
    elif "volmig" in me["roles"]:
        why = "Where Nova has the policy of docs/clouds.md for the role volmig. A job's first lock proves it."
        said = [call(what, "likely", why) for what in ("lock and unlock", "stop", "start")]
    else:
        why = "The role admin, or volmig with its policy, is needed: Nova's lock keeps everybody else from stopping it."
        said = [call(what, "no", why) for what in ("lock and unlock", "stop", "start")]
    return [ruled(each, me["rules"]) for each in said] if me["rules"] is not None else said


def ruled(said: dict[str, str], rules: list[dict[str, str]]) -> dict[str, str]:
    """An application credential with access rules may only make the calls that they name."""
    path = f"/v2.1/servers/{NOBODY}/action"
    if any(
        rule.get("service") == "compute" and rule.get("method") == "POST" and fits(rule.get("path", ""), path)
        for rule in rules
    ):
        return said
    why = "The access rules of the application credential do not name POST /v2.1/servers/*/action."
    return call(said["call"], "no", why)


def fits(pattern: str, path: str) -> bool:
    """Whether a path of Keystone's access rules covers this one: * and {name} stand for a part, ** for any rest."""
    parts = (re.escape(part) for part in re.split(r"(\*\*|\*|\{[^}]*\})", pattern))
    wild = {r"\*\*": ".*", r"\*": "[^/]+"}
    shaped = "".join("[^/]+" if part.startswith(r"\{") else wild.get(part, part) for part in parts)
    return re.fullmatch(shaped, path) is not None
