"""Discovery: what the workers ask hypervisors in the background."""

import datetime as dt
import math
import re
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from django.conf import settings
from django.db import DataError
from django.utils import timezone

from hosts.models import WAY, Cloud, Hypervisor, Scan, site
from hosts.remote import hostctl, nova, nova_control, ssh
from hosts.remote.host import (
    Answer,
    Denied,
    Garbled,
    Host,
    HostctlDiffers,
    HostError,
    HostKeyChanged,
    Request,
    Unreachable,
    skew,
)
from hosts.remote.hostctl.facts import RELAY_PORTS
from hosts.remote.hostctl.policy import objections, reported
from hosts.remote.hostctl.request import TARGETS_CAP
from hosts.remote.phrases import phrase
from hosts.visits import Visit, alone, together
from volmig import incarnation
from volmig.queue import later

INVENTORY_SECONDS = 60
LEFTOVERS_SECONDS = 60
SHARE = 50  # hypervisors that one task refreshes at most
AT_ONCE = 16  # of these, at the same time
TURN_OF_VISITS = 25.0  # seconds after which such a task begins no more of them
VISIT_SECONDS = 60.0  # that one of them may take, so that no task comes to its limit
PROBE_SECONDS = 30.0  # of these, for the ports of relays
PORT_STATES = frozenset({"open", "refused", "filtered", "unreachable"})  # of a port that was probed
OUTSIDE_POLICY = "not allowed"  # the state of a port that the hypervisor's own policy does not let it try
OUT_OF_TIME = "There was no time left for them."
PAGE = 500  # instances that are asked for at once
TURN = 15.0  # seconds of reading pages after which the next task goes on
LONGEST_ROUND = dt.timedelta(minutes=15)  # a reading that has taken longer was lost, and begins anew


def refresh_stale() -> None:
    """Task, once a minute: queues refreshes, so that no figures get older than VOLMIG_REFRESH_SECONDS.

    Which ones is decided by the workers that do it: what is still queued is not queued again, and no hypervisor counts
    as tried before it is. At most twice as many as keep all of them fresh, so that a minute that was lost is made up.
    """
    due = Hypervisor.objects.stale(outdated()).count()
    steady = math.ceil(Hypervisor.objects.reachable().count() * 60 / settings.REFRESH_SECONDS)
    for number in range(math.ceil(min(due, 2 * steady) / SHARE)):
        later("hosts.tasks.refresh_due", number)


def refresh_due(_number: int = 0) -> None:
    """Task: refreshes up to SHARE hypervisors that are due, several at a time; the longest untried first.

    The number only lets several of these tasks wait at a time.
    """
    due = iter(partial(Hypervisor.objects.take_stale, outdated()), None)
    together((visit(hypervisor) for hypervisor in islice(due, SHARE)), AT_ONCE, TURN_OF_VISITS)


def outdated() -> dt.datetime:
    """Hypervisors last tried before this are due: by the next minute's refreshes their figures would be too old."""
    return timezone.now() - dt.timedelta(seconds=settings.REFRESH_SECONDS - min(60, settings.REFRESH_SECONDS / 2))


def refresh(hypervisor_id: int) -> None:
    """Task: refreshes one hypervisor, because a person requested it; what went wrong is kept as its last error."""
    hypervisor = Hypervisor.objects.reachable().filter(pk=hypervisor_id).first()
    if hypervisor is not None:
        hypervisor.put(tried_at=timezone.now())
        alone(visit(hypervisor))


def visit(hypervisor: Hypervisor) -> Visit:
    """Hello proves the way and the program, the inventory is what is there, reach is whom it can talk to.

    First who owns it: that is to be known of one whose tools fail, too.
    """
    until = time.monotonic() + VISIT_SECONDS
    try:
        with (yield partial(ssh.connect, hypervisor.remote())) as host:
            status = yield partial(asked, host, Request("status", job=NOBODY), left(until))
            compare_owner(hypervisor, status.get("owner"))
            began = time.time()
            hello = yield partial(asked, host, Request("hello"), left(until))
            hypervisor.put(clock_off=skew(hello.get("time"), began, time.time()))
            record_version(hypervisor, hello.get("versions"))
            policy = yield partial(asked, host, Request("policy"), left(until))
            inventory = yield partial(asked, host, Request("inventory"), left(until, INVENTORY_SECONDS))
            record_inventory(hypervisor, inventory | {"policy": policy})
            yield from probe(hypervisor, host, until)
    except HostError as error:
        note(hypervisor, error)


def left(until: float, most: float = 20) -> float:
    """The seconds that a call may take within a visit that is to end then."""
    return max(1.0, min(most, until - time.monotonic()))


def record_version(hypervisor: Hypervisor, versions: Any) -> None:
    versions = [str(each) for each in versions] if isinstance(versions, list) else []
    hypervisor.put(hostctl_hash=hostctl.source_hash(), hostctl_versions=versions or [hostctl.source_hash()])


def record_inventory(hypervisor: Hypervisor, inventory: dict[str, Any]) -> None:
    """Raises Garbled when it is not as agreed."""
    try:
        hypervisor.record_inventory(inventory)
    except (KeyError, TypeError, ValueError, AttributeError, DataError) as error:  # a text that is too long, too
        raise Garbled(f"read the inventory of {hypervisor}", f"a field is missing or malformed ({error})") from error


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


def probe(hypervisor: Hypervisor, host: Host, until: float) -> Visit:
    """Which relays it reaches, as a source, on the address that a migration would use.

    In batches of what hostctl takes at once, and no longer than PROBE_SECONDS. What goes wrong here is kept as the
    error of the probing: a hypervisor that cannot be probed is not at fault, and one batch does not lose the others.
    """
    until = min(until, time.monotonic() + PROBE_SECONDS)
    addresses = set(site().relays_of(hypervisor.pk, hypervisor.relays_used()).values())
    targets = [{"address": address, "port": port} for address in sorted(addresses) for port in RELAY_PORTS]
    allowed, outside = by_policy(hypervisor, targets)
    waiting, results, errors = batches(allowed), [], []
    while waiting and time.monotonic() < until:
        batch = waiting.pop(0)
        try:
            answer = yield partial(asked, host, Request("reach", {"targets": batch}), left(until))
            results += understood(hypervisor, batch, answer)
        except HostError as error:
            errors.append(str(error))
            if isinstance(error, Unreachable):  # the connection is gone
                break
    missing = len(allowed) - len(results)
    why = " ".join(dict.fromkeys(errors)) or OUT_OF_TIME
    said = f"{missing} of {len(targets)} ports were not probed. {why}" if missing else ""
    results += [target | {"state": OUTSIDE_POLICY} for target in outside]
    hypervisor.record_reach(results, addresses, said)


def by_policy(
    hypervisor: Hypervisor, targets: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that the hypervisor's policy lets it be asked to reach, and the others, which it would refuse."""
    rules = reported(hypervisor.facts.get("policy"))
    allowed: list[dict[str, Any]] = []
    outside: list[dict[str, Any]] = []
    for target in targets:
        (outside if objections(rules, "reach", {"targets": [target]}, reads=True) else allowed).append(target)
    return allowed, outside


def batches(targets: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """In as many as hostctl takes in one request."""
    return [targets[first : first + TARGETS_CAP] for first in range(0, len(targets), TARGETS_CAP)]


def understood(hypervisor: Hypervisor, batch: list[dict[str, Any]], answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found of these targets, and of no others; raises Garbled when that is not as agreed."""
    try:
        found = {(row["address"], row["port"]): row["state"] for row in answer["results"]}
        states = [(target, found.get((target["address"], target["port"]))) for target in batch]
        return [target | {"state": state} for target, state in states if state in PORT_STATES]
    except (KeyError, TypeError) as error:
        said = f"a field is missing or malformed ({error})"
        raise Garbled(f"read what {hypervisor} reaches", said) from error


def asked(host: Host, request: Request, timeout: float = 20) -> dict[str, Any]:
    answer: Answer = host.call(request, timeout)
    if answer.state != "done":
        found = answer.found or f"it returned {answer.state}"
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
        found = f"Tried to read the state of {cloud}: {type(error).__name__}: {error}."
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
    seen = nova_control.server(found)
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
    found.append(call("lock with a reason", "yes", f"volmig uses version {version} of Nova's API."))
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
    return call(what, "yes", "Nova responded." if "projects" not in what else "The call succeeded.")


def of_an_instance(way: nova.Nova, page: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What can only be seen on an instance that is there."""
    host, history = "see the hypervisor of an instance", "read what was done to an instance"
    if not page:
        why = "There is no instance to check this with."
        return [call(host, "unknown", why), call(history, "unknown", why)]
    seen = nova_control.server(page[0])
    there = call(host, "yes", f"{seen['name']} is on {seen['host']}.") if seen["host"] else None
    hidden = call(host, "no", f"Nova does not report the host of {seen['name']}; only administrators see it.")
    return [there or hidden, tried(history, lambda: way.actions(seen["uuid"], 1))]


def changes(me: dict[str, Any]) -> list[dict[str, str]]:
    """Whether it may lock, stop and start: told by its roles, because to try would be to do."""
    if "admin" in me["roles"]:
        why = "Nova's default policy allows it for the role admin. Not tested; a migration's first lock proves it."
        said = [call(what, "likely", why) for what in ("lock and unlock", "stop", "start")]
    elif "volmig" in me["roles"]:
        why = "If Nova has the policy of docs/clouds.md for the role volmig. A migration's first lock proves it."
        said = [call(what, "likely", why) for what in ("lock and unlock", "stop", "start")]
    else:
        why = (
            "The role admin, or volmig with its policy, is required: "
            "Nova's lock prevents everyone else from stopping the instance."
        )
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
