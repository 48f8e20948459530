"""Clients of people whose password was typed a moment ago, as after a real login."""

import time
from typing import Any


def just_typed(client: Any) -> Any:
    """Makes this logged-in client one whose person typed their password just now."""
    session = client.session
    session["password_at"] = time.time()
    session.save()
    return client
