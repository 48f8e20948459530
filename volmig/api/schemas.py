"""What documents of the API have in common, and those of no app: accounts, the audit log, keys of evidence."""

import datetime as dt
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from ninja import Field, Schema

from volmig.accounts.models import Token
from volmig.record.models import Event as EventRow

Number = Annotated[int, Field(ge=1, le=2**63 - 1)]
PLAIN = r"^[^\x00]*$"
Words = Annotated[str, Field(max_length=500, pattern=PLAIN)]
Name = Annotated[str, Field(max_length=255, pattern=PLAIN)]
Long = Annotated[str, Field(max_length=900, pattern=PLAIN)]  # names and identities of things that are left over
Kind = Literal["swap", "rollback", "purge"]
Key = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[!-~]+$")]
Mib = Annotated[float, Field(ge=0.1, le=100_000)] | None  # with one decimal, as the page has it
# As text: pydantic would take a number for the seconds since 1970.
Day = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")]
Moment = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d( \d\d:\d\d)?)?$")]


class Told(Schema):
    """What programs send: nothing that is not asked for."""

    model_config = {"extra": "forbid"}  # a word that is misspelt is not passed over


def same(row: Any, *names: str) -> dict[str, Any]:
    """What a row calls as its document does."""
    return {name: getattr(row, name) for name in names}


class Me(Schema):
    """Whose token this is, what it is for just now, and until when."""

    person: str
    roles: list[str]
    scope: list[str]
    token: str
    expires_at: dt.datetime

    @classmethod
    def of(cls, token: Token, roles: Iterable[str]) -> Self:
        """The document of a token and its owner; the scope is what it may do now."""
        name = token.person.get_username()
        scope = sorted(token.verbs())
        return cls(person=name, roles=sorted(roles), scope=scope, token=token.name, expires_at=token.expires_at)


class Done(Schema):
    """That it is done, or what happens now, in the words of the page."""

    detail: str


class Event(Schema):
    """One row of the record; `hash` signs it together with the one before."""

    seq: int
    at: dt.datetime
    actor: str
    role: str
    session: str
    address: str
    action: str
    job: int | None
    object: str
    data: Any
    prev_hash: str
    hash: str

    @classmethod
    def of(cls, row: EventRow) -> Self:
        """The document of an event with its hashes."""
        names = ("seq", "at", "role", "session", "address", "action", "job", "object", "data", "prev_hash", "hash")
        return cls(actor=row.actor_name, **same(row, *names))


class EvidenceKey(Schema):
    """A public key (base64) that signed evidence from `from` until `until`; `signature` is by the key `signed_by`."""

    id: str
    public: str
    since: str = Field(alias="from")
    until: str
    signed_by: str
    signature: str


class EvidenceKeys(Schema):
    """The oldest first; the last is in use."""

    keys: list[EvidenceKey]


class Page(Schema):
    """`next` is the address of what follows, null at the end."""

    next: str | None = None


class Events(Page):
    """One page of events."""

    items: list[Event]
