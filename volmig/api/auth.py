"""Who asks: tokens, how many requests they may make, and what wrong ones cost."""

import math
import time

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest
from django.utils import timezone
from ninja.security import HttpBearer

from volmig.accounts.models import Token
from volmig.accounts.throttle import Attempt
from volmig.api.problems import Stop
from volmig.refusals import Sentence

UNKNOWN = Sentence("token-unknown", "Unknown token.")
OLD_TOKEN = Sentence(
    "token-old",
    "Changing people, keys or credentials needs a token created within the last 15 minutes. "
    "Create one on your account page.",
)
TOO_FAST = Sentence("too-fast", "This token has made too many requests in this minute. Continue in the next.")
TOO_MANY = Sentence("too-many", "Too many wrong tokens from this address. Try again in ten minutes.")


class Bearer(HttpBearer):
    """A token; from here on its person can do no more than it was made for."""

    openapi_scheme = "bearer"

    def authenticate(self, request: HttpRequest, token: str) -> Token:
        """The token that was sent; Stop 401 when it is unknown or not valid, 429 when it is too fast."""
        known = Token.objects.shown(token)
        if known is None:
            raise wrong(request)
        code, words = known.why_over()
        if code:
            raise Stop(401, Sentence(code, words), WWW_Authenticate='Bearer error="invalid_token"')
        if too_fast(known):
            raise Stop(429, TOO_FAST, Retry_After="60")
        request.user = known.person
        request.user.scope = known.verbs()  # type: ignore[attr-defined]
        request.user.token_key = known.pk  # type: ignore[attr-defined]
        request.token = known  # type: ignore[attr-defined]
        known.note(request.META.get("REMOTE_ADDR", ""))
        return known


def too_fast(token: Token) -> bool:
    """Counts a request of this token within this minute, in this process."""
    key = f"requests:{token.pk}:{int(time.time() // 60)}"
    cache.add(key, 0, 120)
    return cache.incr(key) > settings.API_PER_MINUTE


def fresh(request: HttpRequest) -> None:
    """Go on only with a token that was made a moment ago, when its person typed their password."""
    if not request.token.is_fresh():  # type: ignore[attr-defined]
        raise Stop(403, OLD_TOKEN)


def wrong(request: HttpRequest) -> Stop:
    """Counts a token that nobody has; after some of them their address, or its network, has to wait."""
    attempt = Attempt.with_token(request)
    until = attempt.begin()
    if until is None:
        attempt.wrong()
        return Stop(401, UNKNOWN, WWW_Authenticate='Bearer error="invalid_token"')
    return Stop(429, TOO_MANY, Retry_After=str(max(1, math.ceil((until - timezone.now()).total_seconds()))))
