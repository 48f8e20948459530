"""What a route is made of: a source, a transport, a destination and a control; each of these knows only itself.

Every part is one object without state. It says in one file all that the rest of volmig has to know of it: its steps,
the planned values that these refer to, its checks, the facts that it needs, what an approval binds of it, and how a
person looks at it. Parts know each other by what is written here, never by their kind. A part may refer to what another
one measures by the task of the step that measures it; jobs.engine.routes puts the step's name there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hosts.remote.hostctl.act import Act
from jobs.engine import host_facts
from jobs.engine.host_facts import Facts
from jobs.engine.migration import Migration
from jobs.engine.rules import Rule
from jobs.engine.steps import Artifact, Made, Step

Steps = tuple[Step, ...]
Args = Mapping[str, Any]  # of a verb: names of planned values, `Made` ones, or mappings of either
Answers = type[host_facts.Source] | type[host_facts.Relay] | type[host_facts.Destination] | type[host_facts.Nova]
Commands = Mapping[str, Sequence[tuple[str, ...]]]


class Part(Protocol):
    """What every part says.

    `kind` is its name; rows of the database and hypervisors may have it, so it stays for ever. `rules` are its checks.
    `facts` names for each role that this part is asked about the verb of hostctl (or of the control of an instance)
    that gives its facts, and the type in which the answer is read: a subclass of the usual one where there is more to
    read. `needs` says in words without which facts no plan can be made.
    """

    kind: str
    needs: str
    rules: Sequence[Rule]
    facts: Mapping[str, tuple[str, Answers]]

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """By role, the arguments that its facts need there; of the facts of other parts, too."""

    def has(self, facts: Facts) -> bool:
        """Whether what `needs` says is there."""

    def look_commands(self, ask: Migration, instances: str) -> Commands:
        """By role, commands that only read, for a person; `instances` is the directory of instances there."""


class Source(Part, Protocol):
    """What the disk is read from; `unchanged` are the keys of what FENCE measures that may not change meanwhile."""

    unchanged: tuple[str, ...]

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Planned values by name; it is asked only when `has` says yes."""

    def fence(self) -> Steps:
        """Keep writers out of it; the step of FENCE measures what is `unchanged`."""

    def release(self) -> Steps:
        """Give it back as it was found."""

    def reader(self) -> Args:
        """The arguments by which COPY and COMPARE open it."""

    def fenced(self) -> Args:
        """The arguments by which COMPARE sees that nobody has written to it since FENCE."""

    def now(self, facts: Facts) -> object | None:
        """What has an attribute for each of `unchanged`, as it was seen; None when it is not there."""

    def size(self, facts: Facts) -> int | None:
        """How many bytes it has, as it was seen; None when it is not there."""

    def binding(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """What an approval of the exchange binds of it."""

    def owner(self, ask: Migration) -> str:
        """The UUID of the instance whose disk it was, as far as its name says; else empty."""


class Sink(Part, Protocol):
    """What the disk is put into. `identity` are the keys of what VERIFY measures that an approval binds, `unchanged`
    those that may not change until EXCHANGE.

    Its planned values include `settle`: the seconds after the exchange for which others may still open the old disk.
    """

    identity: tuple[str, ...]
    unchanged: tuple[str, ...]

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Planned values by name; it is asked only when `has` says yes."""

    def place(self, ask: Migration) -> Mapping[str, Any]:
        """The arguments by which whoever delivers the copy gives facts of the place for it."""

    def bytes_needed(self, size: int) -> int:
        """How many bytes a copy of a disk of `size` bytes may take there."""

    def writer(self) -> Args:
        """The arguments by which DELIVER finds the place for the copy."""

    def delivered(self) -> Artifact:
        """What DELIVER leaves: the copy beside the live disk."""

    def live(self) -> Args:
        """The arguments by which a control finds the live disk of the instance."""

    def exchanged(self) -> Args:
        """The arguments by which START sees that the delivered disk is the live one."""

    def verify(self, copied: Args) -> Steps:
        """Read the copy back where it will be used; `copied` says how large it is and what its SHA-256 is."""

    def exchange(self) -> Steps:
        """Put it in the place of the live disk, which is kept."""

    def rejected(self, kept: str) -> tuple[str, Artifact]:
        """Where the new disk lies once EXCHANGE was undone, and what identifies it. `kept` is where the
        former disk lay until then. The identity and the bytes are keys of what the undo measures.
        """

    def purge(self) -> Steps:
        """Delete the disk that is not used any more."""

    def purge_after_rollback(self) -> Args:
        """The arguments of the step of PURGE that are others when it is the new disk that is not used any more."""

    def rehearsal(self) -> Steps:
        """Read the kept disk, each time that this is requested; no part of a plan."""

    def rehearsed(self, ask: Migration, path: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of REHEARSE for the disk kept at `path`, of which `recorded` is known."""

    def copy(self, facts: Facts) -> object | None:
        """What has an attribute for each of `unchanged`, as it was seen where the copy should lie; None for nothing."""

    def is_foreign(self, facts: Facts, verified: Mapping[str, Any]) -> bool:
        """Whether another one than that which VERIFY measured lies where the copy should."""

    def binding(self, facts: Facts) -> dict[str, Any]:
        """What an approval of the exchange binds of the disk that is to be replaced."""

    def disks(self, stopped: Mapping[str, Any], verified: Mapping[str, Any], exchanged: Mapping[str, Any]) -> list[str]:
        """Which disk is which, in words, from what STOP, VERIFY and EXCHANGE measured; empty mappings for nothing."""

    def directory(self, ask: Migration, instances: str) -> str:
        """Where the disk that is kept lies, for a person."""


class Transport(Part, Protocol):
    """How the copy gets there. `roles` are the hypervisors that it needs, in the order in which pages name them;
    `delivers` is the role of the one that writes to the destination's place, whose facts say what it sees of that.
    """

    roles: tuple[str, ...]
    delivers: str

    def values(self, ask: Migration, facts: Facts, sink: Sink) -> dict[str, Any]:
        """Planned values by name; it is asked only when `has` says yes."""

    def cut_off(self, ask: Migration) -> frozenset[str]:
        """Roles that cannot be asked for facts, because there is no way between them."""

    def open(self, source: Source, sink: Sink) -> Steps:
        """Make and mount what the copy goes through."""

    def carry(self, source: Source, sink: Sink) -> Steps:
        """COPY, HASH, COMPARE, and DELIVER where the copy is not made in its place."""

    def copied(self) -> Mapping[str, Made]:
        """`sha256` and `file_size` of the copy where it was delivered, as measured."""

    def close(self) -> Steps:
        """Take away what `open` made."""


class Control(Part, Protocol):
    """Who locks, stops and starts the instance. `by_host` says that it is hostctl of the destination."""

    by_host: bool

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Planned values by name; it is asked only when `has` says yes."""

    def acts(self, verb: str, args: dict[str, Any], job: str) -> tuple[Act, ...]:
        """What a verb of its steps changes."""

    def lock(self) -> Steps:
        """Keep others from starting it, and say why."""

    def stop(self, sink: Sink) -> Steps:
        """Shut the instance down; STOP measures the live disk then, under `live`."""

    def start(self, sink: Sink) -> Steps:
        """Start it on the new disk."""

    def unlock(self) -> Steps:
        """Let others have it again."""

    def binding(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """What an approval binds of the instance beside what libvirt says."""

    def not_now(self, facts: Facts) -> tuple[str, bool]:
        """Why nobody can be asked for an approval just now, and whether that passes; an empty sentence: they can."""
