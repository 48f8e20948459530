"""Who may do what and on what: five roles, which are Django groups, the verbs that each allows, and teams."""

from collections.abc import Callable, Collection, Iterable
from functools import wraps
from typing import Any, Self, TypeVar

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase

from volmig.accounts import factors
from volmig.accounts.models import Team
from volmig.refusals import Sentence

ALLOWS = {
    "viewer": {"view"},
    "operator": {"view", "submit"},
    "approver": {"view", "approve"},
    "administrator": {"view", "administer", "audit"},
    "auditor": {"view", "audit"},
}
SENTENCES = {
    "view": "see hypervisors and migrations",
    "submit": "submit and control migrations",
    "approve": "approve swaps, rollbacks and purges",
    "administer": "register and change hypervisors and accounts",
    "audit": "read the audit log",
}
SEE_ALL = {"administrator", "auditor"}
OF_MEMBERS = {"submit", "approve"}  # others than these are not done to what belongs to a team
Row = TypeVar("Row", bound=models.Model)
Answer = TypeVar("Answer", bound=HttpResponseBase)


def roles_of(user: Any) -> set[str]:
    """Returns the names of the roles that count: a superuser has all, anyone disabled or unknown none.

    Those in VOLMIG_NEED_TOTP do not count for people who have no second factor.
    """
    if not user.is_active:
        return set()
    if not hasattr(user, "_roles"):  # asked several times in one request
        user._roles = held_by(user) - withheld_from(user)
    return set(user._roles)


def held_by(user: Any) -> set[str]:
    """The roles that a person was given."""
    return set(ALLOWS) if user.is_superuser else set(user.groups.values_list("name", flat=True)) & set(ALLOWS)


def withheld_from(user: Any) -> set[str]:
    """The roles that a person would have with a second factor."""
    wanted = set(settings.NEED_TOTP) & held_by(user) if settings.NEED_TOTP else set()
    return set() if not wanted or factors.has(user) else wanted


def may(user: Any, verb: str) -> bool:
    """Tells whether one of the person's roles allows the verb: view, submit, approve, administer or audit."""
    if verb not in SENTENCES:
        raise ValueError(f"unknown verb {verb!r}")
    return verb in scope_of(user) and any(verb in ALLOWS[role] for role in roles_of(user))


def scope_of(user: Any) -> Collection[str]:
    """The verbs that are open to this person here: all of them on pages, those of their token to a program."""
    scope: Collection[str] = getattr(user, "scope", SENTENCES)
    return scope


def refusal(user: Any, verb: str) -> Sentence:
    """Why the person may not use the verb at all."""
    if verb not in scope_of(user):
        said = f"This token lacks the scope to {SENTENCES[verb]}. Create one on your account page that has it."
        return Sentence("token-scope", said)
    roles = sorted(role for role, verbs in ALLOWS.items() if verb in verbs)
    if user.is_active and (withheld := withheld_from(user) & set(roles)):
        said = f"Your role {' and '.join(sorted(withheld))} needs a second factor. Set one up on your account page."
        return Sentence("no-second-factor", said)
    said = f"To {SENTENCES[verb]} you need the role {' or '.join(roles)}. An administrator can grant it."
    return Sentence("no-role", said)


def sees_all(user: Any) -> bool:
    """Whether the person sees what belongs to any team."""
    return bool(roles_of(user) & SEE_ALL)


def teams_of(user: Any) -> set[int]:
    """Returns the keys of the teams that the person is a member of."""
    if not hasattr(user, "_teams"):  # asked several times in one request
        user._teams = set(Team.objects.of(user).values_list("pk", flat=True))
    return set(user._teams)


def is_in_every_team(user: Any) -> bool:
    """Whether the person is a member of all teams that there are."""
    if not hasattr(user, "_in_every_team"):  # asked several times in one request
        user._in_every_team = not Team.objects.exclude(pk__in=teams_of(user)).exists()
    return bool(user._in_every_team)


def why_not(user: Any, verb: str, teams: Iterable[Team]) -> list[Sentence]:
    """Why the person may not do this to what belongs to all of these teams, as sentences; none when they may."""
    sentences = [] if may(user, verb) else [refusal(user, verb)]
    if verb in OF_MEMBERS:
        mine = teams_of(user) if user.is_active else set()
        strange = sorted({team.name for team in teams if team.pk not in mine})
        sentences += [outsider(strange)] if strange else []
    return sentences


def outsider(names: list[str]) -> Sentence:
    """The refusal of a person who is not a member of these teams (`no-member`)."""
    team = "team" if len(names) == 1 else "teams"
    said = f"You are not a member of the {team} {' and '.join(names)}. An administrator can add you."
    return Sentence("no-member", said)


class OwnedQuerySet(models.QuerySet[Row]):
    """Rows that belong to the teams of hypervisors: the one way to find them for a person."""

    owners: tuple[str, ...] = ("team",)  # lookups of the teams; membership in all of them is needed

    def visible_to(self, user: Any) -> Self:
        """What the person may know of."""
        if not may(user, "view"):
            return self.none()
        return self.all() if sees_all(user) else self.of_teams(user)

    def of_teams(self, user: Any) -> Self:
        """What belongs to teams of which the person is a member."""
        if is_in_every_team(user):
            return self.all()  # as on most sites: nothing to look for
        return self.owned_by(teams_of(user))

    def owned_by(self, teams: set[int]) -> Self:
        """Those of which every owner is one of these teams."""
        return self.filter(**{f"{owner}__in": teams for owner in self.owners})

    def find(self, user: Any, verb: str, **key: Any) -> Row:
        """Finds and authorises in one: the row for this person and verb.

        Raises PermissionDenied with the sentence when they may not do this, and Http404 when they may not even know
        whether there is such a row.
        """
        if not may(user, verb):
            raise PermissionDenied(refusal(user, verb))
        row = self.visible_to(user).filter(**key).first()
        if row is None:
            raise Http404
        if sentences := why_not(user, verb, row.teams()):  # type: ignore[attr-defined]
            raise PermissionDenied(Sentence(sentences[0].code, " ".join(sentences)))
        return row


def needs(verb: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Makes a view that answers 403, naming the role that is missing, to people whose roles do not allow the verb."""

    def decorate(view: Callable[..., Answer]) -> Callable[..., Answer]:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Answer:
            if not may(request.user, verb):
                raise PermissionDenied(refusal(request.user, verb))
            return view(request, *args, **kwargs)

        return guarded

    return decorate
