"""The plans of this release, in full: `python -m tests.engine.plans` writes tests/engine/golden anew.

A plan in flight, in an archive or in an approval was made by an older release, and is carried out as it was shown. So
what a plan says changes on purpose or not at all: write these files anew only in a commit that changes plans and says
why. `plan.json` is the plan of the sound migration, exactly as the database has it. `others.json` has, for each case
that the tests of the engine make from the sound one, the SHA-256 of its plan and where it differs. `requests.json` has
what hypervisors and Nova are asked to do for each step, and for its undo, when everything has been measured.
`steps.json` has what a stored plan takes from the table by the names of its steps.

Everything that this needs of the product is imported here, under these names, and nowhere else.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from jobs.engine.host_facts import Action, Contents, Facts, Filesystem, Guest, Move, Nova, Probe, Server, Service
from jobs.engine.plan import Plan, at_rate, make, rehearsal
from jobs.engine.routes import named
from tests.engine import sound
from tests.engine.sound import INSTANCE, LIVE, MIB, MIGRATION, facts

GOLDEN = Path(__file__).parent / "golden"
DIRECTORY = f"/var/lib/nova/instances/.volmig/{MIGRATION.job}"
EVIL = "x'; rm -rf / $(reboot) «y» é"
# What each step measures when it goes well, in the shape in which hostctl and the control of the instance say it.
MEASURED = {
    "relay_lv": {"lv_uuid": "re1ayy-0001", "size": 1 << 30, "major": 253, "minor": 9, "already": False},
    "relay_fs": {"fs_uuid": MIGRATION.job, "free": 1 << 29, "already": False},
    "relay_export": {"client": "10.20.0.1", "options": "rw", "started": ["nfs-server"]},
    "source_mount": {"options": "rw,vers=3", "already": False},
    "source_fence": {"was": "writeable", "writes": 40, "sectors_written": 320, "holder_unit": "volmig-x-holder"},
    "convert": {"file_size": 1000, "bytes_read": 512 * MIB, "bytes_written": 1000},
    "seal": {"sha256": "ab" * 32, "file_size": 1000},
    "compare": {"file_size": 1000, "virtual_size": 512 * MIB, "writes": 40, "sectors_written": 320},
    "stage": {"sha256": "ab" * 32, "file_size": 1000, "inode": 4712},
    "stage_verify": {"sha256": "ab" * 32, "file_size": 1000, "inode": 4712, "mtime_ns": 5},
    "lock": {"marks": True, "prevents": False, "already": False},
    "stop": {
        "was": "running",
        "stopped_at": 1.5,
        "live": {"inode": 4711, "file_size": 900, "mtime_ns": 3, "uid": 64055, "gid": 64055, "mode": 420},
    },
    "swap": {"live_inode": 4712, "backup_inode": 4711, "backup_path": f"{DIRECTORY}/disk.old", "backup_bytes": 900},
    "start": {"started_at": 2.5, "state": "running", "already": False},
}
SERVER = Server(INSTANCE, "db7", "dst", "", "ACTIVE", "active", flavor="m1.data", ephemeral_gb=1)
NOVA = Nova(
    ("dst",),
    "2.96",
    SERVER,
    {},
    (Action("create", "2026-11-01T10:00:00", "req-1", "u"),),
    ("src",),
    None,
    (Service("src", "up", "enabled"), Service("dst", "up", "enabled")),
)
OWNER = replace(SERVER, name="db-old", host="src", status="SHUTOFF", vm_state="stopped")
# What is asked for, where it is not the sound migration: the fields of Migration that are other ones.
ASKED = {
    "another disk": {"disk": "disk"},
    "another instance": {"instance_id": "99999999-9b1a-4f57-8a36-5d1e7c20b9aa", "instance_name": "db-old"},
    "another volume": {"source_vg": "vg1", "source_lv": "rescued", "lv_uuid": "cccccc-dddd"},
    "another relay": {"relay": "jump2", "relay_vg": "vg_spare", "relay_address": "10.30.0.2"},
    "another share": {"share_source": "filer2:/export/other nova"},
    "another job": {"job": "c0ffee00-0000-4000-8000-000000000000", "number": 8},
    "other hypervisors": {"source": "cmp-1", "relay": "cmp-2", "destination": "cmp-3"},
    "relay is the source": {"relay": "src"},
    "relay is the destination": {"relay": "dst"},
    "destination is the source": {"destination": "src"},
    "no data network": {"relay_address": ""},
    "a limit": {"rate": 5 * MIB},
    "a limit above what a pass can do": {"rate": 10**10},
    "one byte": {"source_size": 1},
    "odd size": {"source_size": 513 * MIB + 512},
    "ten tebibytes": {"source_size": 10 << 40},
    "a longer shutdown": {"deadline": 900},
    "a longer margin": {"margin": 600},
    "through Nova": {"control": "openstack"},
    "through Nova with a limit": {"control": "openstack", "rate": 5 * MIB},
    "hostile names": {
        "source_vg": EVIL,
        "source_lv": EVIL,
        "relay_vg": EVIL,
        "share_source": EVIL,
        "disk": EVIL,
        "instance_name": EVIL,
    },
}
# What is seen, where it is not the sound facts: fields by the names that sound.facts takes.
SEEN = {
    "no volume": {"source__volume": None},
    "another UUID": {"volume__uuid": "cccccc"},
    "another size": {"volume__size": 513 * MIB},
    "volume in use": {"volume__holders": ("qemu (pid 12)",), "volume__open": True},
    "volume read-only": {"volume__permission": "read-only"},
    "volume not active": {"volume__attributes": "-wi-------", "volume__active": False},
    "a snapshot": {"volume__attributes": "swi-a-s---"},
    "dm-crypt": {"volume__crypt": True},
    "volume was written to": {"volume__writes": 41, "volume__sectors_written": 328},
    "source instance runs": {"source__instance_running": Guest("u", "old", "running")},
    "another address of the source": {"source__source_address": "10.40.0.1"},
    "no way to the relay": {"source__reach": (Probe("10.20.0.2", 2049, "filtered"),)},
    "no NFS server": {"relay__nfs_server": {"nfs-server": "missing"}},
    "NFS server runs": {"relay__nfs_server": {"nfs-server": "active", "rpcbind": "active"}},
    "nothing of NFS runs": {"relay__nfs_server": {"nfs-server": "inactive", "rpcbind": "inactive"}},
    "no volume group": {"relay__vg": None},
    "no space on the relay": {"group__free": 512 * MIB},
    "larger extents": {"group__extent_size": 64 * MIB},
    "leftovers on the relay": {"relay__leftovers": ("volmig_3f",)},
    "leftovers on the share": {"destination__leftovers": (DIRECTORY,)},
    "relay without the share": {"relay__share": None},
    "destination without the share": {"destination__share": None},
    "share read-only": {"share__options": "ro,vers=3"},
    "no space on the share": {"share__free": 512 * MIB},
    "root owns the share": {"share__owner_uid": 0, "share__owner_gid": 0},
    "another owner of the share": {"share__owner_uid": 107, "share__owner_gid": 108},
    "the share elsewhere": {"share__target": "/srv/nova", "destination__instances": "/srv/nova"},
    "locks stay local": {"share__options": "rw,vers=3,nolock,hard"},
    "longer caches": {"destination__acdirmax": 3600},
    "no instance": {"destination__domain": None},
    "instance paused": {"domain__state": "paused"},
    "instance shut off": {"domain__state": "shut off"},
    "domain is raw": {"domain__driver": "raw"},
    "domain uses another file": {"domain__source": "/elsewhere"},
    "domain may be smaller": {"domain__max_bytes": 500 * MIB},
    "no disk": {"destination__disk": None},
    "disk with two names": {"disk__nlink": 2},
    "disk raw": {"disk__format": "raw"},
    "disk elsewhere": {"disk__path": "/elsewhere", "disk__inode": 4713},
    "disk larger": {"disk__virtual_size": 513 * MIB},
    "disk smaller": {"disk__virtual_size": 256 * MIB},
    "disk with a base": {"disk__backing": ("/base",), "disk__relative_bases": ("../_base/0123",)},
    "disk with snapshots and bitmaps": {"disk__snapshots": 2, "disk__bitmaps": 1},
    "disk corrupt and dirty": {"disk__corrupt": True, "disk__dirty": True},
    "disk with objections": {"disk__objections": ("it is encrypted (method 2)",)},
    "disk.info says raw": {"destination__disk_info": {LIVE: "raw"}},
    "other contents": {
        "destination__contents": Contents(filesystems=(Filesystem("whole disk", "ext4", "data", "2222"),))
    },
}
# What Nova says: fields of the sound answer of Nova that are other ones.
SAID = {
    "as it should": {},
    "time to shut down": {"properties": {"os_shutdown_timeout": "300"}},
    "time to shut down that is no number": {"properties": {"os_shutdown_timeout": "long"}},
    "a short time to shut down": {"properties": {"os_shutdown_timeout": "5"}},
    "bus": {"properties": {"hw_disk_bus": "scsi"}},
    "no server": {"server": None},
    "elsewhere": {"server": replace(SERVER, host="cmp-9")},
    "busy": {"server": replace(SERVER, task_state="rebuilding")},
    "locked": {"server": replace(SERVER, locked=True, locked_reason="maintenance")},
    "shut off": {"server": replace(SERVER, status="SHUTOFF")},
    "a migration": {"moves": (Move("live-migration", "running", "dst", "x"),)},
    "an evacuation": {"source_moves": (Move("evacuation", "done", "src", "dst", "2026-11-20T08:00:00"),)},
    "an owner of the source": {"source_server": OWNER},
    "a service that is down": {"services": (Service("dst", "down", "enabled"),)},
}
RATES = {"convert": (1e6, 2e6, 4e6), "seal": (1e8, 2e8, 3e8), "reread": (3e6, 5e6, 7e6), "erase": (1e6, 1e7, 1e8)}


def plans():
    """The plan of each case by its name; where none can be made, why not."""
    found = {f"asked: {name}": planned(replace(MIGRATION, **more), sound.FACTS) for name, more in ASKED.items()}
    found |= {f"seen: {name}": planned(MIGRATION, facts(**more)) for name, more in SEEN.items()}
    mine = replace(MIGRATION, control="openstack")
    for name, more in SAID.items():
        said = replace(sound.FACTS, instance=replace(NOVA, **more))
        found |= {f"Nova: {name}": planned(mine, said), f"Nova, not asked: {name}": planned(MIGRATION, said)}
    made = make(MIGRATION, sound.FACTS)
    slow = make(replace(MIGRATION, rate=5 * MIB), sound.FACTS)
    found |= {
        "rates of earlier migrations": make(MIGRATION, sound.FACTS, RATES).to_json(),
        "rates and a limit": make(replace(MIGRATION, rate=MIB), sound.FACTS, RATES).to_json(),
        "limited later": at_rate(made, 5 * MIB).to_json(),
        "stored, then limited": at_rate(again(made), 5 * MIB).to_json(),
        "limit lifted": at_rate(slow, 0).to_json(),
        "stored": again(made).to_json(),
        "stored by names only": again(made, by_names).to_json(),
        "stored by names only, through Nova": again(make(mine, sound.FACTS), by_names).to_json(),
        "no relay seen": planned(MIGRATION, Facts(sound.FACTS.source, None, sound.FACTS.destination)),
        "nothing seen": planned(MIGRATION, Facts()),
    }
    for name, path in (("the old disk", f"{DIRECTORY}/disk.old"), ("the rejected disk", f"{DIRECTORY}/disk.rejected")):
        steps = rehearsal(MIGRATION, path, {"inode": 4711, "sha256": "ab" * 32}, 20 * MIB)
        found[f"rehearsal of {name}"] = Plan(MIGRATION.job, steps).to_json()
    return found


def planned(migration, seen):
    try:
        return make(migration, seen).to_json()
    except ValueError as error:
        return {"no plan": str(error)}


def again(plan, change=lambda raw: raw):
    """The same plan after it was stored."""
    return Plan.from_json(change(read_back(plan.to_json())), plan.job)


def by_names(raw):
    """As format 1 stored it: of each step its name and what is shown of it."""
    rows = [{key: value for key, value in row.items() if key not in ("step", "undo_commands")} for row in raw["steps"]]
    return {key: value for key, value in raw.items() if key != "format"} | {"steps": rows}


def requests(plan):
    """By step and direction: the verb, the arguments and the commands, with all that was measured filled in."""
    known = {**MEASURED, "limits": {"rate": 3 * MIB}}
    found = {}
    for each in plan.steps:
        step, args = each.step, each.filled(known)
        ways = {"do": (step.verb, args)}
        if step.undo:
            ways["undo"] = (step.undo, {**args, "made": MEASURED.get(step.name, {})})
        found[step.name] = {
            way: {"verb": verb, "args": given, "commands": [act.text for act in each.acts(verb, given, plan.job)]}
            for way, (verb, given) in ways.items()
        }
    return found


def meanings():
    """By step: what it is for, and what is known of what it leaves and of its speed, beside what plans store."""
    return {
        name: {
            "task": step.task,
            "artifact": {
                key: getattr(step.artifact, key)
                for key in ("identity", "bytes", "leads_to", "undo_arg", "reserves", "removable")
                if step.artifact
            },
            "limited": bool(step.throughput and step.throughput.limited),
        }
        for name, step in named().items()
    }


def flat(value, name=""):
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}".strip("."))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from flat(inner, f"{name}.{number}".strip("."))
    else:
        yield name, value


def differs(raw, usual):
    """What is otherwise than usual: values by their path; "absent" where there is none."""
    here, there = dict(flat(raw)), dict(flat(usual))
    return {
        name: here.get(name, "absent")
        for name in sorted({*here, *there})
        if here.get(name, "absent") != there.get(name, "absent")
    }


def sha256(value):
    """Of the JSON as the database gets it, in the order of its keys, too."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def read_back(value):
    """As it comes out of the database."""
    return json.loads(json.dumps(value))


def document(value):
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def files():
    """The content of each golden file, as today's code makes it."""
    usual = make(MIGRATION, sound.FACTS)
    raw = read_back(usual.to_json())
    others = {}
    for name, each in read_back(plans()).items():
        if "steps" in each and len(each["steps"]) == len(raw["steps"]):
            others[name] = {"sha256": sha256(each), "differs": differs(each, raw)}
        else:  # a rehearsal, or no plan at all
            others[name] = {"sha256": sha256(each), "plan": each}
    through_nova = again(make(replace(MIGRATION, control="openstack"), sound.FACTS))
    asked = {"through Nova": differs(requests(through_nova), requests(usual)), "usual": requests(usual)}
    return {
        "plan.json": document(raw),
        "others.json": document({"sha256 of plan.json": sha256(raw), "others": others}),
        "requests.json": document(asked),
        "steps.json": document(meanings()),
    }


def changes(name, text):
    """The lines in which a golden file is not what today's code makes, as a diff; empty when it is, byte for byte."""
    path = GOLDEN / name
    kept = path.read_bytes().decode() if path.exists() else ""
    return list(difflib.unified_diff(kept.splitlines(True), text.splitlines(True), "recorded", "today", n=1))


if __name__ == "__main__":
    for name, text in files().items():
        (GOLDEN / name).write_text(text)
        print(f"{GOLDEN / name}: {len(text)} bytes")
