"""What the web server runs: pages over HTTP, live updates over websockets."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")
if not settings.configured:  # else another program, a test, has this module loaded
    os.environ.setdefault("VOLMIG_PART", "web")
pages = get_asgi_application()  # loads the apps, so it comes before what imports models

from volmig import data_dir, database, keys  # noqa: E402
from volmig.health import heart  # noqa: E402
from volmig.overload import Bounded, Sockets  # noqa: E402
from volmig.same_origin import SameOrigin  # noqa: E402

if data_dir.kind() == "web":
    database.pool(settings.WEB_REQUESTS)
    comparing = ThreadPoolExecutor(1)  # uvicorn's loop runs already, in which no query is allowed
    comparing.submit(keys.at_start).result()
    comparing.shutdown()
    for begin in settings.WEB_BEGINS:
        import_string(begin)()
routes = import_string(settings.WEBSOCKET_ROUTES)
live = Sockets(SameOrigin(AuthMiddlewareStack(URLRouter(routes))), settings.WEBSOCKETS)
bounded = Bounded(pages, settings.WEB_REQUESTS)
application = ProtocolTypeRouter({"http": bounded, "websocket": live, "lifespan": heart.lifespan})

# All that pages need is loaded now, not by the first of them, and it stays: the collector passes it over from here on.
# It looked through every view and library again and again, 100 ms each time, amid somebody's page.
import_module(settings.ROOT_URLCONF)
gc.collect()
gc.freeze()
