"""Who may do what: five roles, which are Django groups, and the verbs that each allows."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase

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
    "audit": "read the audit record",
}
Answer = TypeVar("Answer", bound=HttpResponseBase)


def roles_of(user: Any) -> set[str]:
    """Returns the names of the person's roles; a superuser has all, somebody disabled or unknown none."""
    if not user.is_active:
        return set()
    if user.is_superuser:
        return set(ALLOWS)
    if not hasattr(user, "_roles"):  # asked several times in one request
        user._roles = set(user.groups.values_list("name", flat=True)) & set(ALLOWS)
    return set(user._roles)


def may(user: Any, verb: str) -> bool:
    """Tells whether one of the person's roles allows the verb: view, submit, approve, administer or audit."""
    if verb not in SENTENCES:
        raise ValueError(f"unknown verb {verb!r}")
    return any(verb in ALLOWS[role] for role in roles_of(user))


def refusal(verb: str) -> str:
    roles = sorted(role for role, verbs in ALLOWS.items() if verb in verbs)
    return f"To {SENTENCES[verb]} you need the role {' or '.join(roles)}. An administrator can give it to you."


def needs(verb: str) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Makes a view that answers 403, naming the role that is missing, to people whose roles do not allow the verb."""

    def decorate(view: Callable[..., Answer]) -> Callable[..., Answer]:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Answer:
            if not may(request.user, verb):
                raise PermissionDenied(refusal(verb))
            return view(request, *args, **kwargs)

        return guarded

    return decorate
