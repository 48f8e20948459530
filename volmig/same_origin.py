"""Which pages may open live connections: volmig's own, by scheme, name and port."""

from typing import Any

from channels.security.websocket import OriginValidator, WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host


def allowed_origins(scope: dict[str, Any]) -> list[str]:
    """The origin under which this request reached volmig, and VOLMIG_PUBLIC_URL as forms accept it.

    Not every port of an allowed host: another service on the same name would read along with the person's cookie.
    """
    hosts = [value.decode("latin1") for name, value in scope.get("headers", []) if name == b"host"]
    if len(hosts) != 1 or not validate_host(split_domain_port(hosts[0])[0], settings.ALLOWED_HOSTS):
        return []
    scheme = "https" if scope.get("scheme", "ws") in ("wss", "https") else "http"
    return [f"{scheme}://{hosts[0]}", *settings.CSRF_TRUSTED_ORIGINS]


class SameOrigin:
    """Refuses a websocket whose Origin is missing or another than one of allowed_origins."""

    def __init__(self, application: Any) -> None:
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> Any:
        validator = OriginValidator(self.application, allowed_origins(scope))
        try:
            return await validator(scope, receive, send)
        except ValueError as error:  # a port that is no number
            if "port" not in str(error).lower():
                raise
            return await WebsocketDenier()(scope, receive, send)
