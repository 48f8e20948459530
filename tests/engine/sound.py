"""A migration with nothing wrong about it; tests change one thing and look what happens."""

from dataclasses import replace
from typing import Any

from jobs.engine.host_facts import (
    Contents,
    Destination,
    Disk,
    Domain,
    Facts,
    Filesystem,
    Group,
    Probe,
    Relay,
    Share,
    Source,
    Volume,
)
from jobs.engine.migration import Migration
from jobs.engine.rules import Around, Case

MIB = 1 << 20
INSTANCE = "0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa"
LIVE = f"/var/lib/nova/instances/{INSTANCE}/disk.local"

MIGRATION = Migration(
    job="3f1c9a52-7d40-4be1-9c55-2f6a0b8d1e77",
    number=7,
    route="relay-nfs",
    source="src",
    relay="jump",
    destination="dst",
    source_vg="vg_nova0",
    source_lv=f"{INSTANCE}_disk.local",
    lv_uuid="aaaaaa-bbbb",
    source_size=512 * MIB,
    relay_vg="vg_nova0",
    share_source="filer:/export/nova",
    instance_id=INSTANCE,
    instance_name="db7",
    disk="disk.local",
    relay_address="10.20.0.2",
)
VOLUME = Volume(
    "vg_nova0", f"{INSTANCE}_disk.local", "aaaaaa-bbbb", 512 * MIB, "-wi-a-----", writes=40, sectors_written=320
)
CONTENTS = Contents(filesystems=(Filesystem("whole disk", "ext4", "data", "1111"),), summary="ext4")
SHARE = Share("filer:/export/nova", "/var/lib/nova/instances", "rw,vers=3,hard", 20 << 30, 9 << 30, 64055, 64055, True)
SOURCE = Source(
    VOLUME, CONTENTS, "10.20.0.1", tuple(Probe("10.20.0.2", port, "open", 1.0) for port in (111, 2049, 20048))
)
RELAY = Relay(
    Group("vg_nova0", 10 << 30, 4 << 30, 4 * MIB),
    (),
    SHARE,
    {"nfs-server": "inactive", "rpcbind": "active"},
    {"111": True, "2049": False, "20048": False},
)
DISK = Disk(LIVE, 4711, "qcow2", 512 * MIB, file_size=20 * MIB, uid=64055, gid=64055, mode=0o644)
DESTINATION = Destination(
    SHARE,
    "/var/lib/nova/instances",
    DISK,
    {LIVE: "qcow2"},
    Domain(INSTANCE, "db7", "running", "qcow2", LIVE),
    CONTENTS,
    (),
    60,
)
FACTS = Facts(SOURCE, RELAY, DESTINATION)


def facts(**changed: Any) -> Facts:
    """The sound facts with fields replaced, each named part__field, e.g. volume__size or domain__driver."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in changed.items():
        part, key = name.split("__")
        parts.setdefault(part, {})[key] = value
    volume = replace(VOLUME, **parts.get("volume", {}))
    disk = replace(DISK, **parts.get("disk", {}))
    domain = replace(DESTINATION.domain, **parts.get("domain", {}))
    group = replace(RELAY.vg, **parts.get("group", {}))
    share = replace(SHARE, **parts.get("share", {}))
    source = replace(SOURCE, **{"volume": volume, **parts.get("source", {})})
    relay = replace(RELAY, **{"vg": group, "share": share, **parts.get("relay", {})})
    whole = {"disk": disk, "domain": domain, "share": share}
    destination = replace(DESTINATION, **{**whole, **parts.get("destination", {})})
    return Facts(source, relay, destination)


def case(around: Around | None = None, migration: dict[str, Any] | None = None, **changed: Any) -> Case:
    return Case(replace(MIGRATION, **(migration or {})), facts(**changed), around or Around())
