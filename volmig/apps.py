"""App configuration and the system checks that refuse settings known to lose or repeat work."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register


class VolmigConfig(AppConfig):
    name = "volmig"

    def ready(self) -> None:
        register(queue_is_safe)
        register(sqlite_is_safe)
        register(requests_are_not_atomic)


def queue_is_safe(**_: Any) -> list[CheckMessage]:
    return [Error(f"Q_CLUSTER: {why}", id=f"volmig.Q{index}") for index, why in enumerate(queue_faults(), 1)]


def queue_faults() -> list[str]:
    cluster: dict[str, Any] = dict(settings.Q_CLUSTER)
    longest = (cluster["queue_limit"] / cluster["workers"] + 2) * cluster["timeout"]
    wanted = {
        "orm must name the default database, so that enqueueing is part of the transaction": cluster.get("orm")
        == "default",
        "sync must be off: a tick would run inside the request": not cluster.get("sync"),
        "ack_failures must be on, or a failing task is repeated for ever": cluster.get("ack_failures") is True,
        "max_attempts must be 1": cluster.get("max_attempts") == 1,
        "bulk must be 1: a task waiting in a batch is delivered again": cluster.get("bulk", 1) == 1,
        f"retry must exceed {longest:g} s, or waiting tasks run twice": cluster["retry"] > longest,
    }
    return [why for why, holds in wanted.items() if not holds]


def sqlite_is_safe(**_: Any) -> list[CheckMessage]:
    database = settings.DATABASES["default"]
    if not database["ENGINE"].endswith("sqlite3"):
        return []
    options = database.get("OPTIONS", {})
    pragmas = options.get("init_command", "").replace(" ", "").lower()
    wanted = {
        "transaction_mode must be IMMEDIATE, or half of the writes fail under load": options.get("transaction_mode")
        == "IMMEDIATE",
        "timeout must be at least 20 s": options.get("timeout", 5) >= 20,
        "journal_mode must be WAL": "journal_mode=wal" in pragmas,
        "synchronous must be FULL, or a power cut forgets the last commits": "synchronous=full" in pragmas,
    }
    faults = [why for why, holds in wanted.items() if not holds]
    return [Error(f"SQLite: {why}", id=f"volmig.S{index}") for index, why in enumerate(faults, 1)]


def requests_are_not_atomic(**_: Any) -> list[CheckMessage]:
    if settings.DATABASES["default"].get("ATOMIC_REQUESTS"):
        return [Error("ATOMIC_REQUESTS must be off: it makes every page view a writer", id="volmig.D1")]
    return []
