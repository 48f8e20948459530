"""What the web server runs: pages over HTTP, live updates over websockets."""

import os

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")
pages = get_asgi_application()  # loads the apps, so it comes before what imports models

from jobs.live import routes  # noqa: E402

live = AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(routes)))
application = ProtocolTypeRouter({"http": pages, "websocket": live})
