"""What all pages have: their frame, and how a part of one is fetched again."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.functional import SimpleLazyObject
from django.views.decorators.http import require_GET

from jobs.models import Approval
from jobs.web import attention
from volmig import incarnation
from volmig.accounts.roles import may, needs, roles_of

PAGE = 50


def chrome(request: HttpRequest) -> dict[str, Any]:
    """What every page's frame shows: who looks, what waits for them, the colours that they chose."""
    theme = request.COOKIES.get("theme", "")
    mode = incarnation.read_only()
    colours = {"theme": theme if theme in ("light", "dark") else "", "read_only": mode}
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return colours
    found: Any = SimpleLazyObject(lambda: attention.items(user, mode))  # not every part of a page shows it
    words = "superuser" if user.is_superuser else ", ".join(sorted(roles_of(user))) or "no role yet"
    return colours | {
        "attention": SimpleLazyObject(lambda: [item for item in found if not item.resolved]),
        "resolved": SimpleLazyObject(lambda: [item for item in found if item.resolved]),
        "nobody_approves": settings.APPROVERS == 0,
        "waiting_approvals": SimpleLazyObject(lambda: Approval.objects.inbox(user).count()),
        "role_words": words,
        **{f"may_{verb}": may(user, verb) for verb in ("submit", "approve", "administer", "audit")},
    }


def show(request: HttpRequest, page: str, part: str, values: dict[str, Any]) -> HttpResponse:
    """The whole page, or for htmx only the part that it fetches again."""
    partial = request.headers.get("HX-Request") == "true"
    response = render(request, part if partial else page, values)
    response["Vary"] = "HX-Request"
    return response


@require_GET
@needs("view")
def attention_count(request: HttpRequest) -> HttpResponse:
    """How much needs attention, for the menu and the title of every page."""
    return render(request, "jobs/_attention_count.html")
