"""A logical volume: the source whose instance is gone or shut off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from jobs.engine import part
from jobs.engine.host_facts import Facts, Source, Volume
from jobs.engine.migration import Migration
from jobs.engine.part import Args, Commands, Steps
from jobs.engine.rules import BLOCKS, WARNS, About, Case, Finding, Rules, group_is_whole
from jobs.engine.steps import SOURCE, Artifact, ByHand, Made, Step, Task

rule: Final = Rules()
_NAME = {"vg": "source_vg", "lv": "source_lv"}
_WRITES = Made("source_fence", "writes", "writes to the source LV when it was fenced")
_SECTORS = Made("source_fence", "sectors_written", "sectors written to the source LV when it was fenced")
FIRST_EPHEMERAL: Final = {"disk.local", "disk.eph0"}  # nova/virt/libvirt/blockinfo.py, get_disk_mapping


def other_part(source_lv: str, disk: str) -> str:
    """The disk that a volume of this name was in its instance, when that is another than `disk`; else empty."""
    # A data disk on top of a root disk has every size and format right, and a guest that never boots again.
    part = re.fullmatch(r"[0-9a-f-]{36}_(disk(?:\.\w+)?)", source_lv)
    return part[1] if part and part[1] != disk else ""


def instance_of(volume: str) -> str:
    """The instance that a volume of Nova's belongs to; empty when its name does not say."""
    found = re.fullmatch(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_disk(?:\.\w+)?", volume)
    return found[1] if found else ""


class LogicalVolume(part.Source):
    """A volume that is fenced: made read-only, held open, and watched for writes by the kernel's counters."""

    kind = "lv"
    needs = "the source volume"
    rules = rule
    facts = {SOURCE: ("source_facts", Source)}
    unchanged = ("writes", "sectors_written")

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """Its group and its name."""
        return {SOURCE: {"vg": ask.source_vg, "lv": ask.source_lv}}

    def has(self, facts: Facts) -> bool:
        """The volume is there."""
        return self.now(facts) is not None

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Its names, the permission to which it goes back, and the unit that holds it."""
        volume = self.now(facts)
        assert volume  # noqa: S101 - see `has`
        return {
            "source_vg": ask.source_vg,
            "source_lv": ask.source_lv,
            "lv_uuid": ask.lv_uuid,
            "source_path": f"{ask.source_vg}/{ask.source_lv}",
            "permission": volume.permission,
            "holder_unit": f"volmig-{ask.hex}-holder",
        }

    def look_commands(self, ask: Migration, instances: str) -> Commands:
        """lvs."""
        name = f"{ask.source_vg}/{ask.source_lv}"
        return {SOURCE: [("lvs", "-o", "lv_name,lv_uuid,lv_attr,lv_tags", name)]}

    def fence(self) -> Steps:
        """Tags, a read-only permission and a holder that keeps it open; measures the counters of writes."""
        return (
            Step(
                "source_fence",
                Task.FENCE,
                "A",
                SOURCE,
                "lv_fence",
                "Fence writers out of the source volume",
                self.reader(),
                undo="lv_unfence",
                torn_by="source_release",
                volatile=True,
                artifact=Artifact(
                    "fence",
                    "source_path",
                    identity="holder_unit",
                    undo_arg="made.lv_uuid",
                    word="fenced source",
                    by_hand=ByHand(
                        (
                            "lvs -o +lv_uuid,lv_tags,lv_permissions,lv_device_open -- {path}",
                            "systemctl status -- {holder}",
                        ),
                        (
                            "systemctl stop -- {holder}",
                            "lvchange -prw -- {path}",
                            "lvchange --deltag volmig --deltag {tag} -- {path}",
                        ),
                        units="-holder",
                    ),
                ),
                box="Fence source",
            ),
        )

    def release(self) -> Steps:
        """Undo the fence; refused where the volume was written to meanwhile."""
        was = Made("source_fence", "was", "permission before the fence", like="permission")
        holder = Made("source_fence", "holder_unit", "unit that holds the volume", like="holder_unit")
        return (
            Step(
                "source_release",
                Task.RELEASE,
                "C",
                SOURCE,
                "lv_unfence",
                "Release the source volume, unchanged",
                {**_NAME, "made": {"was": was, **self.fenced(), "holder_unit": holder}},
                box="Release",
            ),
        )

    def reader(self) -> Args:
        """Group, name, UUID and size in bytes: hostctl opens no other volume."""
        return {**_NAME, "lv_uuid": "lv_uuid", "size": "source_size"}

    def fenced(self) -> Args:
        """The kernel's counters of writes, which may not have moved."""
        return {"writes": _WRITES, "sectors_written": _SECTORS}

    def now(self, facts: Facts) -> Volume | None:
        """The volume, with its counters."""
        return facts.source.volume if facts.source else None

    def size(self, facts: Facts) -> int | None:
        """Bytes, as LVM says."""
        volume = self.now(facts)
        return volume.size if volume else None

    def binding(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Its name, UUID and size, and the counters of writes."""
        name = {"volume": f"{ask.source_vg}/{ask.source_lv}"}
        volume = self.now(facts)
        if volume is None:
            return {**name, "lv_uuid": None}
        return {
            **name,
            "lv_uuid": volume.uuid,
            "size": volume.size,
            "writes": volume.writes,
            "sectors_written": volume.sectors_written,
        }

    def owner(self, ask: Migration) -> str:
        """The UUID in names that Nova gives."""
        return instance_of(ask.source_lv)


LV: Final = LogicalVolume()


# Its checks


@rule(About.SOURCE, "volume is there", BLOCKS, "The source volume is there.", "source")
def _volume_is_there(case: Case, source: Source) -> Finding:
    if source.volume is None:
        return f"{case.source_path} is not on {case.migration.source} any more.", None
    return None


@rule(About.SOURCE, "volume is the same", BLOCKS, "It is the volume that was chosen.", "volume")
def _volume_is_the_same(case: Case, volume: Volume) -> Finding:
    if volume.uuid != case.migration.lv_uuid:
        return f"{case.source_path} is another volume now: it was {case.migration.lv_uuid}, it is {volume.uuid}.", (
            volume.uuid
        )
    if volume.size != case.migration.source_size:
        return f"{case.source_path} has another size now: {case.migration.source_size} bytes became {volume.size}.", (
            volume.size
        )
    return None


@rule(About.SOURCE, "volume is free", BLOCKS, "Nothing has the source volume open.", "volume")
def _volume_is_free(case: Case, volume: Volume) -> Finding:
    if volume.holders:
        return f"{case.source_path} is in use by {', '.join(volume.holders)}.", list(volume.holders)
    if volume.open:
        return f"{case.source_path} is open; LVM does not say who has it.", "open"
    return None


@rule(About.SOURCE, "source instance is off", BLOCKS, "No instance runs on the source volume.", "source")
def _source_instance_is_off(case: Case, source: Source) -> Finding:
    guest = source.instance_running
    if guest and guest.state != "shut off":
        return f"Instance {guest.name} on {case.migration.source} uses {case.source_path} and is {guest.state}.", (
            guest.uuid
        )
    return None


@rule(About.SOURCE, "volume is readable", BLOCKS, "The source volume is active, whole and of a plain kind.", "volume")
def _volume_is_readable(case: Case, volume: Volume) -> Finding:
    problem = _attribute_problem(volume.attributes) or ("" if volume.active else "is not active")
    if not problem:
        return None
    remedy = f" Activate it: lvchange -ay {case.source_path}." if problem == "is not active" else ""
    return f"{case.source_path} {problem}.{remedy}", volume.attributes


@rule(
    About.SOURCE,
    "source volume group is whole",
    BLOCKS,
    "The volume group of the source can be written to by LVM.",
    "source",
)
def _source_group_is_whole(case: Case, source: Source) -> Finding:
    return group_is_whole(case.migration.source, source.vg)


@rule(
    About.SOURCE,
    "source's instances are known",
    WARNS,
    "libvirt on the source says which instances use the volume.",
    "source",
)
def _instances_of_source_are_known(case: Case, source: Source) -> Finding:
    if source.virsh:
        return None
    return (
        f"virsh is not installed on {case.migration.source} (libvirt in a container?): only LVM and the kernel say "
        "whether the volume is in use. Make sure that no instance is defined on it."
    ), None


@rule(About.SOURCE, "volume is plain", BLOCKS, "The source volume is not encrypted by its host.", "volume")
def _volume_is_plain(case: Case, volume: Volume) -> Finding:
    if volume.crypt:
        return f"{case.source_path} lies under dm-crypt; its bytes are of no use without the key.", "crypt"
    return None


@rule(About.MATCH, "same name", BLOCKS, "Volume and disk have the same part in their instances.")
def _same_name(case: Case) -> Finding:
    if part := other_part(case.migration.source_lv, case.migration.disk):
        advice = "Choose the disk of the same name."
        if {part, case.migration.disk} == FIRST_EPHEMERAL:
            new = re.sub(r"_disk\.\w+$", f"_{case.migration.disk}", case.migration.source_lv)
            advice = (
                "Both names can mean the first ephemeral disk: Nova calls it disk.local when it comes from the flavour "
                "alone and disk.eph0 when it was requested at boot. If it is the same disk, rename the volume and "
                f"submit again: lvrename {case.migration.source_vg} {case.migration.source_lv} {new}"
            )
        return (
            f"The volume was {part} of its instance, and {case.migration.disk} of {case.migration.instance_name} "
            f"would be replaced. {advice}"
        ), part
    return None


def _attribute_problem(attributes: str) -> str:
    """What lvs' attribute characters tell against copying: kind, state and health."""
    padded = attributes.ljust(9, "-")
    kind, state, health = padded[0], padded[4], padded[8]
    kinds = {
        "s": "is a snapshot",
        "S": "is a merging snapshot",
        "O": "is an origin that merges a snapshot",
        "t": "is a thin pool",
        "e": "is a pool's metadata",
        "v": "is being converted by LVM",
        "p": "is being moved by pvmove",
        "V": "is a thin volume; only plain volumes have been proved to copy",
    }
    states = {
        "s": "is suspended",
        "S": "is suspended",
        "I": "has an invalid snapshot",
        "-": "is not active",
        "i": "has a mapping without tables",
        "X": "is in an unknown state",
    }
    healths = {
        "p": "has lost a physical volume",
        "X": "is in unknown health",
        "D": "lies in a thin pool without space",
        "F": "lies in a failed thin pool",
        "M": "lies in a pool that needs repair",
    }
    return kinds.get(kind) or states.get(state) or healths.get(health) or ""
