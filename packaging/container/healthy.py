"""The HEALTHCHECK of the image: exits with 0 when this container can serve pages, as /healthz says."""

import os
import sys
import urllib.request

URL = os.environ.get("HEALTH_URL", "http://127.0.0.1:8000/healthz")
# volmig answers under its own names only.
NAME = os.environ.get("VOLMIG_ALLOWED_HOSTS", "127.0.0.1").split(",")[0].strip()

request = urllib.request.Request(URL, headers={"Host": NAME})  # noqa: S310 - our own address
try:
    with urllib.request.urlopen(request, timeout=4):  # noqa: S310
        sys.exit(0)
except OSError as error:  # 503 is one, too
    sys.exit(f"{URL}: {error}")
