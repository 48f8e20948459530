"""The vocabulary of checks: what one is asked about, what it finds, where it stands on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, auto
from typing import Any, Final

from jobs.engine.host_facts import (
    Destination,
    Disk,
    Facts,
    Group,
    Nova,
    Relay,
    Server,
    Share,
    Source,
    Volume,
)
from jobs.engine.migration import Migration
from jobs.engine.steps import RELAY

BLOCKS: Final = "blocks"
WARNS: Final = "warns"
INFORMS: Final = "informs"


@dataclass(frozen=True)
class Check:
    """What one check found: its name and severity, a sentence for people, and data where it does not hold."""

    name: str
    severity: str
    ok: bool
    sentence: str
    found: Any = None

    def to_json(self) -> dict[str, Any]:
        """As the database and the API have it."""
        return asdict(self)


@dataclass(frozen=True)
class Trouble:
    """Why a hypervisor gave no facts: in the words of the error that its transport raised."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Around:
    """What the database knows around a job: bytes that other jobs have reserved, other jobs, clocks, silent hosts,
    and the policies of the hypervisors.
    """

    reserved_on_relay: int = 0
    reserved_on_share: int = 0
    job_with_volume: int | None = None
    job_with_instance: int | None = None
    skew: Mapping[str, float] = field(default_factory=dict)
    trouble: Mapping[str, Trouble] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what each role's hypervisor reports
    seal_keys: Mapping[str, str] = field(default_factory=dict)  # fingerprints of the keys under which volmig seals


@dataclass(frozen=True)
class Case:
    """All that the checks look at. Its properties are what checks may need; None stands for facts that are missing.

    The route gives the role of the hypervisor that puts the copy into its place, and the bytes of the source as it was
    seen.
    """

    migration: Migration
    facts: Facts
    around: Around = Around()
    delivers: str = RELAY
    size: int | None = None

    @property
    def volume(self) -> Volume | None:
        """The source volume."""
        return self.facts.source.volume if self.facts.source else None

    @property
    def disk(self) -> Disk | None:
        """The disk that is to be replaced."""
        return self.facts.destination.disk if self.facts.destination else None

    @property
    def group(self) -> Group | None:
        """The relay's volume group."""
        return self.facts.relay.vg if self.facts.relay else None

    @property
    def share(self) -> Share | None:
        """The share as the hypervisor mounts it that puts the copy there."""
        side = getattr(self.facts, self.delivers)
        return side.share if side else None

    @property
    def source(self) -> Source | None:
        """What the source said."""
        return self.facts.source

    @property
    def relay(self) -> Relay | None:
        """What the relay said."""
        return self.facts.relay

    @property
    def destination(self) -> Destination | None:
        """What the destination said."""
        return self.facts.destination

    @property
    def nova(self) -> Nova | None:
        """What Nova said, where it controls the instance."""
        return self.facts.instance

    @property
    def server(self) -> Server | None:
        """The instance as Nova has it."""
        return self.nova.server if self.nova else None

    @property
    def policies(self) -> Mapping[str, Mapping[str, Any]] | None:
        """None where no hypervisor could report one."""
        return self.around.policies or None

    @property
    def source_path(self) -> str:
        """The source volume as people call it: VG/LV."""
        return f"{self.migration.source_vg}/{self.migration.source_lv}"


Finding = tuple[str, Any] | None
Judge = Callable[..., Finding]


class About(IntEnum):
    """What a check is about: pages show checks in this order, and of one subject those of the source first, then those
    of the transport, of the destination, and of the control; what all routes have in common comes before these.
    """

    POLICY = auto()
    MACHINES = auto()
    OTHER_JOBS = auto()
    SOURCE = auto()
    WAY = auto()  # what the copy goes through
    LEFTOVERS = auto()
    PLACE = auto()  # what the copy will lie on
    INSTANCE = auto()
    DISK = auto()  # the one that is to be replaced
    MATCH = auto()  # of the source and that disk
    FORMAT = auto()
    SIZE = auto()
    BASES = auto()
    CONTENTS = auto()
    CLOUD = auto()
    CLOCKS = auto()


@dataclass(frozen=True)
class Rule:
    """A named check: `judge` gets the case and the facts named in `needs`; it is not asked when one is missing.

    `holds` is the sentence for when there is nothing to find. Names and severities stay: pages, the API and reports of
    people have them.
    """

    about: About
    name: str
    severity: str
    holds: str
    judge: Judge
    needs: tuple[str, ...]

    def look(self, case: Case) -> Check | None:
        """What it finds in this case; None when facts that it needs are missing."""
        facts = [getattr(case, need) for need in self.needs]
        if any(fact is None for fact in facts):
            return None
        finding = self.judge(case, *facts)
        if finding is None:
            return Check(self.name, self.severity, True, self.holds)
        return Check(self.name, self.severity, False, *finding)


class Rules(list[Rule]):
    """The checks of one part, in order: a decorator that takes in each function that it is put on."""

    def __call__(self, about: About, name: str, severity: str, holds: str, *needs: str) -> Callable[[Judge], Judge]:
        def take_in(judge: Judge) -> Judge:
            self.append(Rule(about, name, severity, holds, judge, needs))
            return judge

        return take_in


# What checks of several parts find


def group_is_whole(host: str, group: Group | None) -> Finding:
    """Tags and permissions are metadata: LVM refuses to write them to a group of which a part is missing."""
    if group is not None and group.problem:
        return f"The volume group {group.name} on {host} {group.problem}.", group.problem
    return None


def nothing_is_left(host: str, names: tuple[str, ...]) -> Finding:
    """Nothing on this host has a name that the job will use."""
    if names:
        return f"{host} already has {', '.join(names)}, which this migration did not make; inspect it first.", list(
            names
        )
    return None


def share_is_mounted(host: str, source: str, share: Share | None) -> Finding:
    """This host mounts the share, for writing."""
    if share is None:
        return f"{host} does not mount {source}.", None
    if "ro" in share.options.split(","):
        return f"{host} mounts {source} read-only.", share.options
    return None
