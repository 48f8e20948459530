"""The vocabulary of steps: what a step is for, where it runs, what it leaves behind, what it refers to.

The steps themselves are given by the parts of a route (endpoints, transports, controls) and put together by
jobs.engine.routes. All that others need to know of a step stands in its row there, and no other module names a step: it
asks for the step of a task, as in `plan.one(Task.EXCHANGE)`, or for what the row says of it. The names themselves stay
for ever: journals, archives and what hypervisors remember have steps by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any, Final

SOURCE: Final = "source"
RELAY: Final = "relay"
DESTINATION: Final = "destination"
INSTANCE: Final = "instance"
ROLES: Final = (SOURCE, RELAY, DESTINATION)  # that a hypervisor can have; a route needs some of them
LIMITS: Final = "limits"  # stands for a step that measures what is allowed just now; see Hands.limits of the runner
Range = tuple[float, float, float]
QUICK: Final[Range] = (0.3, 1, 4)


class UnknownRole(LookupError):  # noqa: N818 - the word that callers read
    """A step names a role that no hypervisor of a migration has."""


def hypervisor_role(on: str) -> str:
    """source, relay or destination: where a step with this `on` runs. An instance is handled on its destination."""
    role = DESTINATION if on == INSTANCE else on
    if role not in ROLES:
        raise UnknownRole(f"No hypervisor of a migration has the role {on!r}.")
    return role


class Task(StrEnum):
    """What a step is for, whatever it is called and however it does it."""

    OPEN = auto()  # make and mount what the copy goes through
    FENCE = auto()  # keep writers out of the source
    COPY = auto()
    HASH = auto()  # of the copy, before it is compared
    COMPARE = auto()  # the copy with the source
    DELIVER = auto()  # put the copy beside the live disk
    VERIFY = auto()  # read back what was delivered, where it will be used
    CLOSE = auto()  # take away what OPEN made
    LOCK = auto()
    STOP = auto()
    EXCHANGE = auto()  # the live disk with the delivered one
    START = auto()
    RELEASE = auto()  # the source
    UNLOCK = auto()
    FORGET = auto()  # remove what a hypervisor remembers of the migration
    PURGE = auto()  # the disk that is not in use any more
    REHEARSE = auto()  # read that disk, to see whether it could be used again


@dataclass(frozen=True)
class Throughput:
    """A pass over the disk: its time depends on the bytes.

    `name` is under which its speed is measured; `size` the planned value that is its bytes; `guess` the bytes a
    second (slow, usual, fast) until earlier migrations have shown better; a bandwidth limit holds for `limited` ones.
    """

    name: str
    size: str
    guess: Range
    limited: bool = False


@dataclass(frozen=True)
class ByHand:
    """What a person runs as root to look at a thing and to remove it, with names in braces as jobs.engine.drift fills
    them.

    With some things other ones are made: directories whose names begin with `directories`, which `empties` removes, and
    units of systemd whose names end in `units`; they go by the undo that removes the thing.
    """

    looks: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    directories: str = ""
    empties: tuple[str, ...] = ("rmdir -- {path}",)
    units: str = ""


@dataclass(frozen=True)
class Artifact:
    """What a step leaves behind until it is undone or a later step removes it.

    `kind` is the kind of footprint, `named` the planned value that is its name; `where` says whether it lies on the
    step's hypervisor or on the share. `identity` is the key of the step's evidence that tells it from another of the
    same name, `bytes` the one that is its size; both are empty where nothing is measured. What has no identity but
    where it leads says that in `leads_to`, a format of the step's arguments.
    `undo_arg` is the argument by which the undoing verb gets the recorded identity: `NAME` as a number, or `made.NAME`.
    `reserves` is the planned value that is the bytes which are kept free for it until it is made.
    `removable` when its step's undo may remove it alone, after its migration has ended. `word` is what people call it,
    where that is another word than its kind.
    """

    kind: str
    named: str
    where: str = "hypervisor"
    identity: str = ""
    bytes: str = ""
    leads_to: str = ""
    undo_arg: str = ""
    reserves: str = ""
    removable: bool = True
    word: str = field(default="", compare=False)
    by_hand: ByHand = field(default=ByHand(), compare=False)

    @property
    def on_share(self) -> bool:
        """Whether it lies on the share, where several hypervisors see it."""
        return self.where == "share"


@dataclass(frozen=True)
class Made:
    """A value that an earlier step will have measured; `like` names what the facts say it will probably be.

    `step` is a step's name within the part that has this step, else the task of the one step of the route that is for
    it. `key` may be a path, as in `live.inode`.
    """

    step: str
    key: str
    label: str
    like: str = ""


@dataclass(frozen=True)
class Step:
    """One step, as its part gives it.

    `args` maps the verb's arguments to names of planned values, to `Made` ones, or to mappings of either. Only planning
    needs them: a step that is read from a stored plan has none, its `Planned` has the values.
    `throughput` is set for a pass over the disk; other steps take `seconds` (low, usual, high).
    `torn_by` is the later step that takes away what this one made: after it nothing is left to undo. It is given by its
    name, or as a task where another part has it; in a plan it always is a name.
    `volatile` things are gone when their hypervisor reboots and have to be made again, and so has what `rests_on` them.
    They are asked for again, too, when what rests on them failed: somebody may have taken them away.
    `settles` steps wait until directory caches of other NFS clients can no longer name the disk before the swap.
    `bars` tells that nothing before it is undone while it cannot be undone itself.
    `box` is the title of the box of the pipeline in which it is drawn.

    A stored plan has of these what jobs.engine.stored_steps says; the rest is always as its part has it for the name.
    """

    name: str
    task: Task
    phase: str
    on: str
    verb: str
    title: str
    args: Mapping[str, Any] = field(default_factory=dict, compare=False)
    undo: str = ""
    torn_by: str = ""
    artifact: Artifact | None = None
    throughput: Throughput | None = None
    seconds: Range = QUICK
    volatile: bool = False
    rests_on: str = ""
    settles: bool = False
    repeatable: bool = True
    bars: bool = False
    box: str = ""

    @property
    def leaves(self) -> str:
        """The kind of footprint that it leaves; empty for none."""
        return self.artifact.kind if self.artifact else ""


# Bytes per second (slow, usual, fast) until earlier migrations have shown better; 1 Gbit/s is about 110 MB/s.
OVER_LINK: Final[Range] = (30e6, 80e6, 110e6)
ON_DISK: Final[Range] = (60e6, 200e6, 1000e6)
RATE: Final = Made(LIMITS, "rate", "bandwidth limit when this pass starts", like="rate")
