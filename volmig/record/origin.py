"""From where the running request comes, for the events that it writes: no verb has to carry the request along."""

import hashlib
from collections.abc import Callable
from contextvars import ContextVar

from django.http import HttpRequest, HttpResponse

current: ContextVar[HttpRequest | None] = ContextVar("current", default=None)


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Remembers the request while it is answered."""

    def remember(request: HttpRequest) -> HttpResponse:
        token = current.set(request)
        try:
            return get_response(request)
        finally:
            current.reset(token)

    return remember


def origin() -> tuple[str, str]:
    """Returns the address and the session, or the token, of the running request; empty outside of requests."""
    request = current.get()
    if request is None:
        return "", ""
    if token := getattr(request, "token", None):
        return request.META.get("REMOTE_ADDR", ""), str(token)[:16]
    # Asked for when an event is written: logging in changes the key.
    return request.META.get("REMOTE_ADDR", ""), shortened(request.session.session_key or "")


def shortened(key: str) -> str:
    """Returns enough of a session's key to tell sessions apart, and too little to take one over."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ""
