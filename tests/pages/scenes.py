"""Scenes that the pages are looked at in: discovered hypervisors, people, and a job in any status, as rows."""

import datetime as dt
import uuid
from dataclasses import replace

from django.utils import timezone

from hosts.models import Cloud, Hypervisor, Scan, Share
from jobs.engine import approval_binding, routes
from jobs.engine import plan as planning
from jobs.engine.checks import look
from jobs.engine.rules import Around, Case
from jobs.models import Adoption, Approval, Decision, Footprint, Job, Rehearsal, Removal, StepRun
from tests.engine import sound
from volmig import incarnation

GIB = 1 << 30
SIZE = 600 * GIB
SHARE = "filer:/export/nova"
INSTANCES = "/var/lib/nova/instances"
HOSTILE = "<img src=x onerror=alert(1)>"
# How far the steps are in each status: the last step that is done, and the one that runs.
REACHED = {
    "checking": ("", ""),
    "planned": ("", ""),
    "preparing": ("source_fence", "convert"),
    "awaiting_approval": ("relay_erase", ""),
    "approved": ("relay_erase", ""),
    "swapping": ("stop", "swap"),
    "on_trial": ("start", ""),
    "done": ("forget_destination", ""),
    "rolling_back": ("start", ""),
    "rolled_back": ("forget_destination", ""),
    "undoing": ("source_fence", ""),
    "undone": ("", ""),
    "purging": ("forget_destination", "purge"),
    "purged": ("purge", ""),
}


def inventory(groups=(), volumes=(), mounts=(), domains=(), address="10.20.0.1"):
    """An answer of the inventory verb."""
    return {
        "hostname": "host",
        "python": "3.11",
        "user": "volmig",
        "boot_id": "b",
        "time": 0,
        "tools": {},
        "features": {},
        "volume_groups": list(groups),
        "logical_volumes": list(volumes),
        "mounts": list(mounts),
        "domains": list(domains),
        "addresses": [{"interface": "eth1", "address": address, "prefix": 24}],
        "nfs_server": {},
    }


def group(free, size=20_000 * GIB):
    return {"name": "vg_nova0", "uuid": "vg", "size": size, "free": free, "extent_size": 4 << 20}


def volume(name, size=SIZE, is_open=False, **more):
    row = {
        "vg": "vg_nova0",
        "name": name,
        "uuid": f"lv-{name[6:36]}",
        "size": size,
        "attributes": "-wi-a-----",
        "open": is_open,
        "tags": [],
    }
    return {**row, "major": 253, "minor": 1, **more}


def domain(name, key, disk="disk.local", kind="qcow2"):
    source = f"{INSTANCES}/{key}/{disk}"
    return {
        "uuid": key,
        "name": name,
        "state": "running",
        "disks": [{"target": "vdb", "source": source, "format": kind}],
    }


MOUNT = {
    "source": SHARE,
    "target": INSTANCES,
    "fstype": "nfs",
    "options": "rw,vers=3,hard",
    "size": 40_000 * GIB,
    "free": 4300 * GIB,
}
OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-11aa-4c0e-9d5f-0a1b2c3d4e5f"


def hypervisors():
    """Three that can carry a disk between them, and one in quarantine."""
    made = {}
    for number, name in enumerate(("cmp-lvm-07", "jump-02", "cmp-nfs-03", "cmp-lvm-08")):
        row = {
            "name": name,
            "address": f"192.0.2.{number + 10}",
            "host_key": "ssh-ed25519 AAAA",
            "pinned_at": timezone.now(),
        }
        made[name] = Hypervisor.objects.create(**row)
    names = [f"{OLD}_disk.local", f"{uuid.UUID(int=7)}_disk.local", f"{uuid.UUID(int=8)}_disk.local"]
    volumes = [volume(names[0]), volume(names[1], 40 * GIB, is_open=True), volume(names[2], 9000 * GIB)]
    made["cmp-lvm-07"].record_inventory(inventory([group(9000 * GIB)], volumes))
    made["jump-02"].record_inventory(inventory([group(5000 * GIB)], mounts=[MOUNT], address="10.20.0.2"))
    guests = [
        domain("db-new", NEW),
        domain("web-3", str(uuid.UUID(int=9)), kind="raw"),
        domain("queue-1", str(uuid.UUID(int=10))),
    ]
    made["cmp-nfs-03"].record_inventory(inventory(mounts=[MOUNT], domains=guests, address="10.30.0.3"))
    made["cmp-lvm-08"].quarantine("the host key changed from SHA256:aaa to SHA256:bbb")
    return made


def job(by, status="planned", **changed):
    """A job in this status, with the journal that such a job has."""
    hosts = {each.name: each for each in Hypervisor.objects.all()} or hypervisors()
    values = {
        "uuid": uuid.uuid4(),
        "requester": by,
        "last_editor": by,
        "ticket": "OPS-5519",
        "source": hosts["cmp-lvm-07"],
        "relay": hosts["jump-02"],
        "destination": hosts["cmp-nfs-03"],
        "source_vg": "vg_nova0",
        "source_lv": f"{OLD}_disk.local",
        "lv_uuid": f"lv-{uuid.uuid4()}"[:38],
        "source_size": SIZE,
        "relay_vg": "vg_nova0",
        "share_source": SHARE,
        "instance_id": str(uuid.uuid4()),
        "instance_name": "db-new",
        "disk": "disk.local",
        "status": status,
        **changed,
    }
    if status in ("undone", "done", "rolled_back", "purged"):
        values.setdefault("ended_at", timezone.now())
        values.setdefault("outcome", "failed" if status == "undone" else values.get("outcome", ""))
    made = Job.objects.create(**values)
    if status != "checking":
        plan_for(made)
        journal(made)
    return made


def facts_of(made):
    """The sound facts of the engine's tests, with this job's names and sizes."""
    live = f"{INSTANCES}/{made.instance_id}/{made.disk}"
    guest = replace(sound.DESTINATION.domain, uuid=made.instance_id, name=made.instance_name, source=live)
    contents = replace(sound.CONTENTS, summary="ext4 “data”")
    return sound.facts(
        volume__uuid=made.lv_uuid,
        volume__size=made.source_size,
        volume__lv=made.source_lv,
        disk__path=live,
        disk__allocated=GIB,
        disk__virtual_size=made.source_size,
        group__free=5000 * GIB,
        share__free=4300 * GIB,
        destination__domain=guest,
        source__contents=contents,
        destination__disk_info={live: "qcow2"},
    )


def plan_for(made):
    facts = facts_of(made)
    names = (
        "source_vg",
        "source_lv",
        "lv_uuid",
        "source_size",
        "relay_vg",
        "share_source",
        "instance_id",
        "instance_name",
        "disk",
    )
    asked = replace(
        sound.MIGRATION,
        job=str(made.uuid),
        number=made.pk,
        source=made.source.name,
        relay=made.relay.name,
        destination=made.destination.name,
        **{name: getattr(made, name) for name in names},
    )
    plan = planning.make(asked, facts)
    made.plan, made.facts, made.facts_at = plan.to_json(), facts.to_json(), timezone.now()
    made.checks = [check.to_json() for check in look(Case(asked, facts, Around()))]
    made.checks.append(
        {
            "name": "fstab",
            "severity": "warns",
            "ok": False,
            "sentence": "The guest’s fstab may name UUID 71c2, which the new disk does not carry.",
            "found": "71c2",
        }
    )
    made.digest = approval_binding.digest({"plan": made.plan})
    made.save()


EVIDENCE = {
    "relay_lv": {"lv_uuid": "re1ayy", "size": 632 * GIB, "major": 253, "minor": 9},
    "source_fence": {"was": "writeable", "writes": 40, "sectors_written": 320, "holder_unit": "volmig-x-holder"},
    "convert": {"file_size": 480 * GIB, "bytes_read": SIZE, "bytes_written": 480 * GIB, "seconds": 6400},
    "seal": {"sha256": "b28f3a19" * 8, "file_size": 480 * GIB},
    "compare": {
        "virtual_size": SIZE,
        "file_size": 480 * GIB,
        "check": "no errors",
        "compare": "Images are identical.",
        "writes": 40,
    },
    "stage": {"sha256": "b28f3a19" * 8, "file_size": 480 * GIB, "inode": 88123},
    "stage_verify": {"sha256": "b28f3a19" * 8, "file_size": 480 * GIB, "inode": 88123, "mtime_ns": 1},
    "stop": {"was": "running", "stopped_at": "2026-11-22T02:00:05+00:00", "live": {"inode": 4711}},
    "swap": {
        "live_inode": 88123,
        "backup_inode": 4711,
        "backup_path": f"{INSTANCES}/.volmig/x/disk.old",
        "swapped_at": "2026-11-22T02:00:06+00:00",
    },
    "start": {"started_at": "2026-11-22T02:00:14+00:00", "state": "running"},
}


def journal(made):
    """The rows of the steps that a job in its status has behind it, and of the one that runs."""
    last, runs = REACHED[made.status]
    at = timezone.now() - dt.timedelta(hours=2)
    for name in before(last):
        ran(made, name, at)
        at += dt.timedelta(minutes=4)
    if runs:
        running(made, runs)
    if last:
        Footprint.objects.create(
            job=made, kind="fence", hypervisor=made.source, name=made.source_lv, identity=made.lv_uuid, state="present"
        )


def before(last):
    names = [step.name for step in routes.steps()]
    return names[: names.index(last) + 1] if last else []


def host_of(made, name):
    return {"source": made.source, "relay": made.relay}.get(routes.named()[name].on, made.destination)


def command(text, code=0, **more):
    return {
        "kind": "command",
        "text": text,
        "argv": text.split(),
        "probe": False,
        "exit": code,
        "seconds": 0.4,
        "at": timezone.now().isoformat(),
        "stdout": "",
        "stderr": "",
        **more,
    }


def ran(made, name, at, result="done", **more):
    texts = [each["text"] for step in made.plan["steps"] if step["name"] == name for each in step["commands"]]
    row = {
        "evidence": EVIDENCE.get(name, {}),
        "commands": [command("lvs --reportformat json", probe=True), *map(command, texts)],
        **more,
    }
    times = {"started_at": at, "ended_at": at + dt.timedelta(minutes=3)}
    return StepRun.objects.create(
        job=made,
        step=name,
        hypervisor=host_of(made, name),
        result=result,
        unit=f"volmig-{made.pk}-{name}-do-1",
        **times,
        **row,
    )


def running(made, name, done=0.624):
    """A step under way, with figures as the watcher writes them."""
    total = made.source_size if name == "convert" else 0
    figures = {
        "bytes_total": total,
        "bytes_done": int(total * done),
        "bytes_read": int(total * done),
        "bytes_written": int(total * done * 0.77),
    }
    if not total:
        figures = {}
    return StepRun.objects.create(
        job=made,
        step=name,
        hypervisor=host_of(made, name),
        result="running",
        unit=f"volmig-{made.uuid.hex}-{name}-do-1",
        started_at=timezone.now() - dt.timedelta(minutes=68 if total else 0),
        progress_at=timezone.now(),
        rate=94 << 20,
        **figures,
    )


def approval(made, kind="swap", **changed):
    """A request for consent, bound to what the job's plan and evidence say."""
    commands = [
        each["text"]
        for step in made.plan.get("steps", [])
        if step["phase"] == ("D" if kind == "purge" else "B")
        for each in step["commands"]
    ]
    disk = (made.facts or facts_of(made).to_json())["destination"]["disk"]
    bound = {
        "job": str(made.uuid),
        "commands": commands,
        "hostctl": "abcdef0123456789",
        "instance": {
            "id": made.instance_id,
            "host": made.destination.name,
            "may be": ["running", "shut off"],
            "is": "as allowed",
        },
        "live": {key: disk[key] for key in ("path", "inode", "format", "virtual_size", "backing")},
        "stage": {key: EVIDENCE["stage_verify"][key] for key in ("sha256", "inode", "file_size")},
    }
    values = {
        "version": made.version,
        "digest": approval_binding.digest(bound),
        "bound": bound,
        "requester": made.requester,
        "last_editor": made.last_editor,
    }
    return Approval.objects.create(
        job=made, kind=kind, expires_at=timezone.now() + dt.timedelta(hours=20), **{**values, **changed}
    )


def decision(asked, by, verdict="approve", reason="Checked with the tenant."):
    return Decision.objects.create(
        approval=asked,
        person=by,
        verdict=verdict,
        reason=reason,
        requester=asked.requester,
        last_editor=asked.last_editor,
    )


def halted(by):
    """A job that saw what nobody foresaw."""
    data = {
        "code": "foreign-volume",
        "step": "relay_lv",
        "tried": "make the temporary volume",
        "found": "an LV of this name without volmig's tag",
        "touched": False,
        "next": "Look at it on jump-02; remove or rename it, then resume.",
    }
    made = job(
        by, "preparing", halt_reason="A foreign logical volume has the name that was to be used.", halt_data=data
    )
    made.runs.filter(result="running").update(result="refused", ended_at=timezone.now(), error=data)
    return made


def reservation(made):
    Footprint.objects.create(
        job=made, kind="space", hypervisor=made.relay, name=made.relay_vg, bytes=632 * GIB, state="reserved"
    )
    Footprint.objects.create(
        job=made, kind="space", share=Share.objects.get(source=SHARE), name="stage", bytes=600 * GIB, state="reserved"
    )


def nova(hosts: dict[str, Hypervisor]) -> Cloud:
    """A cloud whose Nova was read: an instance found again, one elsewhere, and a compute that nobody registered."""
    calls = [
        {"call": "log in", "may": "yes", "sentence": "As volmig in project service, with admin."},
        {"call": "list projects by name", "may": "no", "sentence": "403 You are not authorized."},
        {"call": "stop", "may": "likely", "sentence": "Nova's default policy allows it for the role admin."},
        {"call": "see the hypervisor of an instance", "may": "unknown", "sentence": "There is no instance."},
    ]
    now = timezone.now()
    auth = {"auth_url": "https://keystone.example.org/v3", "application_credential_id": "5f0c" * 8}
    kept = {"auth_type": "v3applicationcredential", "auth": auth, "secret": "sealed", "seen_at": now, "tried_at": now}
    cloud = Cloud.objects.create(name="eu-1", control="openstack", calls=calls, checked_at=now, version="2.96", **kept)
    Hypervisor.objects.filter(name__in=["cmp-lvm-07", "cmp-nfs-03", "jump-02"]).update(cloud=cloud)
    for name, status in (("cmp-lvm-07", "enabled"), ("cmp-nfs-03", "disabled"), ("cmp-nfs-99.example.org", "enabled")):
        cloud.computes.create(name=name, host=name, kind="QEMU", state="up", status=status, seen_at=now)
    for key, name, host in ((OLD, "orders-db", "cmp-lvm-07"), (str(uuid.uuid4()), "web-" * 20, "cmp-nfs-99")):
        told = {"status": "SHUTOFF", "vm_state": "stopped", "flavor": "m1.data", "ephemeral_gb": 512, "host": host}
        shown = {"project_name": "shop", "addresses": ["10.9.0.7", "2001:db8::7"], "words": f"{name} {key}"}
        locked = {"locked": True, "locked_reason": "maintenance", "updated_at": now, "seen_at": now}
        cloud.servers.create(uuid=key, name=name, **told, **shown, **locked)
    return cloud


def leftovers(by):
    """Every way in which ledger and reality differ: left over, another one, unknown, gone, and what is in use."""
    over = job(by, "undone", instance_name="db-killed")
    kept = job(by, "done", instance_name="db-kept")
    digits, relay = over.uuid.hex, over.relay
    earlier = timezone.now() - dt.timedelta(hours=30)
    Footprint.objects.filter(job__in=[over, kept]).delete()
    volume_name = f"vg_nova0/volmig_{digits[:12]}"
    for kind, name, identity, where in (
        ("lv", volume_name, "re1ayy", {"hypervisor": relay, "bytes": 632 * GIB}),
        ("filesystem", f"/srv/volmig/{digits}", str(over.uuid), {"hypervisor": relay}),
        ("mount", f"/mnt/volmig/{digits}", "", {"hypervisor": over.source}),
        ("stage", f"{INSTANCES}/.volmig/{over.uuid}/disk.new", "88123", {"share": Share.objects.get(source=SHARE)}),
    ):
        row = {"kind": kind, "name": name, "identity": identity, "state": "present", "since": earlier}
        Footprint.objects.create(job=over, **row, **where)
    backup = {"kind": "backup", "name": f"{INSTANCES}/.volmig/{kept.uuid}/disk.old", "identity": "4711"}
    share = Share.objects.get(source=SHARE)
    Footprint.objects.create(job=kept, share=share, state="present", since=earlier, **backup)
    stranger = str(uuid.uuid4())
    things = [
        told("lv", volume_name, str(over.uuid), "re1ayy", size=632 * GIB),
        told("filesystem", f"/srv/volmig/{digits}", str(over.uuid), "another filesystem"),
        told("lv", "vg_nova0/volmig_deadbeef0000", stranger, "strange", size=4 * GIB),
        told("unit", f"volmig-{stranger.replace('-', '')}-{'very_long_' * 3}step-do-1", stranger, "unit"),
        told("stage", f".volmig/{over.uuid}/disk.new", str(over.uuid), "88123", share=SHARE, size=480 * GIB),
        told("backup", f".volmig/{kept.uuid}/disk.old", str(kept.uuid), "4711", share=SHARE, size=600 * GIB),
    ]
    now = timezone.now()
    shares = [{"source": SHARE, "answered": True}]
    scanned(relay, things, shares)
    dead = [{"source": SHARE, "answered": False}]
    Scan.objects.create(hypervisor=over.source, tried_at=now, began_at=now, missed=["unit"], shares=dead)
    failed = "Tried to log in: connection refused. Retrying automatically."
    Scan.objects.create(hypervisor=over.destination, tried_at=now, error=failed)
    for result, said in (("removed", "It is taken away."), ("refused", HOSTILE), ("", "")):
        wish = {"kind": "lv", "place": relay.name, "name": f"vg_nova0/{result or 'open'}", "identity": "x"}
        ended = now if result else None
        row = {"result": result, "said": said, "asked_by": by, "ended_at": ended, "step": "relay_lv"}
        Removal.objects.create(job=over, hypervisor=relay, **wish, **row)
    return over


def scanned(host, things, shares):
    """The scan in which a hypervisor listed these things just now."""
    now = timezone.now()
    scan = Scan(hypervisor=host, tried_at=now, began_at=now, shares=shares)
    scan.lists(things)
    scan.save()
    return scan


def told(kind, name, job, identity, share="", size=0):
    """One thing of a scan."""
    path = f"{INSTANCES}/{name}" if share else name
    row = {"kind": kind, "name": name, "job": job, "identity": identity, "size": size, "share": share, "path": path}
    return row | {"since": None, "first_seen": (timezone.now() - dt.timedelta(hours=28)).isoformat()}


def kept(made, days=10, found=""):
    """The disk that this job's swap left over, kept for so many days more; with a rehearsal that found this."""
    until = timezone.now() + dt.timedelta(days=days) if made.status != "on_trial" else None
    where = {"share": Share.objects.get(source=SHARE), "name": f"{INSTANCES}/.volmig/{made.uuid}/disk.old"}
    row = Footprint.objects.create(
        job=made, kind="backup", identity="4711", bytes=480 * GIB, state="present", keep_until=until, **where
    )
    if found:
        figures = {"sha256": "5e" * 32, "file_size": 480 * GIB, "seconds": 5210.4, "leaks": 2}
        wrong = ["its mtime ns is 5, recorded 4", HOSTILE] if found == "differs" else []
        told = {"ended_at": timezone.now(), "result": found, "figures": figures, "findings": wrong}
        Rehearsal.objects.create(job=made, number=1, by=made.requester, **told)
    return row


def recalled(*steps, at=1_796_000_000.0, **args):
    """Steps as a hypervisor recalls them: "swap" is done, "undo swap" and "start running" as they say."""
    found = []
    for number, words in enumerate(steps):
        name, direction, result = words.removeprefix("undo ").partition(" ")[0], "do", words.rpartition(" ")[2]
        direction = "undo" if words.startswith("undo ") else "do"
        run = {
            "step": name,
            "direction": direction,
            "attempt": 1,
            "state": "running" if result == "running" else "done",
        }
        found.append(run | {"fence": 3, "claim": number, "at": at + 60 * number, "args": args})
    return found


def adoptions(by):
    """volmig is read-only: a guest may be down, one runs on its new disk, a host is silent, one belongs to another."""
    state = incarnation.enter_read_only("dst: session 1ed2dc48 acted there, which this database does not know.")
    copied = recalled("convert", "seal", "compare")
    down = job(by, "awaiting_approval", instance_name="orders-db-2")
    swap = recalled("stage_verify", "lock", "stop", "swap")
    adoption(
        state,
        down,
        "rolling_back",
        "The swap was under way and the instance never ran on its new disk. It gets its old disk back.",
        copied,
        swap,
    )
    runs = job(by, "approved", instance_name="invoices-db-1", instance_id=str(uuid.uuid4()))
    nova_says = {"known": "yes", "fence": 0, "shown": "active on cmp-nfs-03, locked by this migration"}
    adoption(
        state,
        runs,
        "on_trial",
        "The instance runs on its new disk. A person confirms, or asks for a rollback.",
        copied,
        recalled("stage_verify", "swap"),
        instance=nova_says | {"runs": recalled("lock", "stop", "start")},
    )
    silent = adoption(
        state, job(by, "preparing", instance_name="mail-1", instance_id=str(uuid.uuid4())), "", "", copied, []
    )
    said = "Tried to reach cmp-lvm-07: no response within 20 s. Retrying automatically."
    silent.trouble, silent.seen["source"] = f"cmp-lvm-07 has to respond first: {said}", {"silent": said}
    silent.save()
    lacking = {str(uuid.uuid4()): {"known": "yes", "fence": 4, "runs": recalled("stop", "swap", instance=OLD)}}
    ended = {str(uuid.uuid4()): {"known": "forgotten", "fence": 9, "runs": recalled("lv_fence", "purge", instance=NEW)}}
    for host in Hypervisor.objects.all():
        row = Adoption.objects.create(episode=state.episode, hypervisor=host, seen={"owner": {"incarnation": "x"}})
        if host.name == "jump-02":
            row.status, row.words = "other", "It belongs to another volmig (e3b0c442)."
        row.seen["unknown"] = lacking | ended if host.name == "cmp-nfs-03" else {}
        row.save()


def adoption(state, made, status, words, relay, destination, **more):
    seen = {
        "source": {"known": "no", "fence": 0, "runs": []},
        "relay": {"known": "forgotten", "fence": 3, "runs": relay},
        "destination": {"known": "yes", "fence": 3, "runs": destination},
    }
    seen |= {"instance": more["instance"]} if "instance" in more else {}
    return Adoption.objects.create(
        episode=state.episode, job=made, status=status, words=words, seen=seen, digest="d" * 64
    )
