"""What every way to a hypervisor has in common: its address, the request, the answer and the errors."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from hosts.remote.hostctl import PROTOCOL
from hosts.remote.phrases import sentence

FARTHEST = 1e10  # seconds since 1970 that a clock may say: three centuries
STATES = frozenset({"done", "running", "failed", "refused", "busy", "lost"})

# Since which protocol hostctl knows a field of the request; those that are not named here it has always known. Older
# versions refuse what they do not know, so a request to one of them is made without it.
FIELDS_SINCE: Final[dict[str, int]] = {"incarnation": 2, "session": 2, "claim": 2, "after": 2, "seal": 2}


@dataclass(frozen=True)
class Address:
    """Where a hypervisor is, and as whom volmig enters it."""

    host: str
    port: int
    user: str
    host_key: str  # the pinned key, "ssh-ed25519 AAAA…"
    shipped: bool = False  # True: root login, hostctl is sent there; False: an installed hostctl is the forced command
    key_file: str = ""  # empty: only the SSH agent's keys
    bastion: "Address | None" = None
    hostctl: str = ""  # the version (hash) of hostctl to run there; empty: this volmig's own
    protocol: int = PROTOCOL  # what that version understands
    archive: bytes = field(default=b"", repr=False, compare=False)  # its file, where it is shipped and is not our own

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


def fingerprint(key: str) -> str:
    """Returns the fingerprint of a "type base64" key as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


class HostError(Exception):
    """Something went wrong between volmig and a hypervisor; str() is a sentence for people (see phrases.sentence).

    `touched` tells whether anything was changed on the hypervisor: no, yes, or not known (None).
    """

    def __init__(self, tried: str, found: str, next_step: str = "", touched: bool | None = False) -> None:
        self.tried, self.found, self.next_step, self.touched = tried, found.rstrip(". "), next_step, touched
        super().__init__(tried, found, next_step, touched)

    def __str__(self) -> str:
        return sentence(self.tried, self.found, self.next_step)


class Unreachable(HostError):  # noqa: N818 - these are the words that callers read
    """Refused, timed out or dropped; passes by itself, so callers try again later."""


class NoFacts(Unreachable):
    """It answers, but not with what it was asked; mostly passes too, and is for a person when it does not."""


class HostKeyUnknown(HostError):  # noqa: N818
    """Nobody has pinned a host key yet."""


class HostKeyChanged(HostError):  # noqa: N818
    """The host offered another key than the pinned one; callers quarantine it and never retry.

    `address` is the machine that did, which may be the bastion; None when nothing was asked.
    """

    address: Address | None = None


class HostctlDiffers(HostError):  # noqa: N818
    """The version of hostctl that is needed is not installed there; passes when it is.

    `needs` is that version, `has` the one that answered ("" when none did), `protocol` what that one speaks, `versions`
    all that are installed. Nothing was carried out.
    """

    needs = has = ""
    protocol = 0
    versions: tuple[str, ...] = ()


class Garbled(HostError):  # noqa: N818
    """The answer is not the JSON document that was expected."""


class Denied(HostError):  # noqa: N818
    """A cloud does not believe the credential, or does not let it do this."""


class TooOld(HostError):  # noqa: N818
    """A cloud's API lacks something that volmig cannot do without."""


@dataclass(frozen=True)
class Access:
    """How to enter a cloud: by a name in a clouds.yaml, or by what an administrator entered.

    `auth` are Keystone's values as pairs, the secret among them in the clear; it is never shown by repr().
    """

    name: str
    entry: str = ""  # the cloud's name in the clouds.yaml; empty when it was entered
    file: str = ""  # that clouds.yaml; empty for openstacksdk's own places
    auth_type: str = ""
    auth: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    region: str = ""
    ca_file: str = ""
    verify: bool = True


@dataclass(frozen=True)
class Request:
    """One call of a hostctl verb; sizes in `args` are bytes."""

    verb: str
    args: dict[str, Any] = field(default_factory=dict)
    job: str = ""
    number: int = 0
    step: str = ""
    direction: str = "do"
    attempt: int = 1
    fence: int = 0
    stops: str = ""  # a unit of the same job to stop first
    # Who asks, for what changes something; see hostctl's ownership.py.
    incarnation: str = ""
    session: str = ""
    claim: int = 0
    after: str = ""  # the session that is known to have acted there before
    seal: dict[str, Any] = field(default_factory=dict)  # that an approval allows this; destructive verbs need one
    # What this job has measured so far, for an adapter that remembers nothing itself; hostctl does, and is not told.
    known: dict[str, Any] = field(default_factory=dict)

    def document(self, protocol: int = PROTOCOL) -> dict[str, Any]:
        """What a hostctl of this protocol reads."""
        known = {name: value for name, value in asdict(self).items() if name != "known"}
        return {name: value for name, value in known.items() if FIELDS_SINCE.get(name, 1) <= protocol}


@dataclass(frozen=True)
class Answer:
    """What hostctl said; `commands` is every command that it ran."""

    state: str
    evidence: dict[str, Any] = field(default_factory=dict)
    commands: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    unit: str = ""
    boot_id: str = ""
    again: float = 0  # seconds until running work is to be asked about; 0: somebody follows it

    @property
    def code(self) -> str:
        """The code of the refusal or failure; empty when there is none."""
        return str((self.error or {}).get("code") or "")

    @property
    def found(self) -> str:
        """Why it was refused or failed, as a clause; empty when hostctl does not say."""
        return str((self.error or {}).get("found") or "")


class Host(Protocol):
    """A way to call hostctl; `watch` yields its lines and raises Unreachable after 10 s of silence."""

    def call(self, request: Request, timeout: float = 20) -> Answer:
        """The response to one request; Unreachable, HostError or HostctlDiffers otherwise, within `timeout` seconds."""

    def watch(self) -> Iterator[dict[str, Any]]:
        """Progress and ends of units, one document each, until the connection ends."""

    def close(self) -> None:
        """Gives the connection back; the host can be called again."""


def skew(said: Any, began: float, ended: float) -> float:
    """How many seconds a clock that said this is off any moment of the call, which began and ended by ours."""
    if not isinstance(said, int | float):
        return 0.0
    at = float(max(-FARTHEST, min(said, FARTHEST)))  # JSON has infinity (1e999), and integers too large for a float
    return min(at - began, 0.0) + max(at - ended, 0.0)
