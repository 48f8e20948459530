"""App configuration and the system checks that refuse settings known to lose or repeat work."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's word

from volmig import environment, webhook


class VolmigConfig(AppConfig):
    """The floor: settings that are unsafe are refused by system checks, see below."""

    name = "volmig"

    def ready(self) -> None:
        """Registers the system checks, django.core.checks."""
        register(queue_is_safe)
        register(sqlite_is_safe)
        register(requests_are_not_atomic)
        register(webhook_is_signed)
        register(variables_are_known)
        register(roles_are_known)
        register(static_files_are_collected)


def queue_is_safe(**_: Any) -> list[CheckMessage]:
    """volmig.Q…: an error for each setting of the queue that would lose, repeat or forge tasks."""
    return [Error(f"Q_CLUSTER: {why}", id=f"volmig.Q{index}") for index, why in enumerate(queue_faults(), 1)]


def queue_faults() -> list[str]:
    """What is wrong with Q_CLUSTER, TASKS and EVERY_MINUTE, one sentence each."""
    cluster: dict[str, Any] = dict(settings.Q_CLUSTER)
    others: dict[str, dict[str, Any]] = cluster.get("ALT_CLUSTERS", {})
    clusters = [cluster, *(cluster | other for other in others.values())]
    longest = max((each["queue_limit"] / each["workers"] + 2) * each["timeout"] for each in clusters)
    queues = {cluster.get("cluster_name"), *others}
    caches: dict[str, dict[str, Any]] = settings.CACHES
    wanted = {
        "broker_class must be volmig.broker.TableBroker: django-q's own runs whatever a row of the database says": all(
            each.get("broker_class") == "volmig.broker.TableBroker" for each in clusters
        ),
        "scheduler must be off: its schedules are rows that name any function": all(
            each.get("scheduler", True) is False for each in clusters
        ),
        "cache must be one that keeps nothing: results are pickles": all(
            caches.get(each.get("cache", "default"), {}).get("BACKEND", "").endswith(".DummyCache") for each in clusters
        ),
        "sync must be off: a tick would run inside the request": not any(each.get("sync") for each in clusters),
        f"retry must exceed {longest:g} s, or waiting tasks run twice": all(
            each["retry"] > longest for each in clusters
        ),
        "every queue of TASKS needs a cluster of its name": set(settings.TASKS.values()) <= queues,
        "ticks must not share a queue with other work: guests wait for them": {
            name for name, queue in settings.TASKS.items() if queue == settings.TASKS["jobs.worker.tick.run"]
        }
        <= {"jobs.worker.tick.run", "jobs.worker.watcher.sweep"},
        "every former name of a task must lead to one in TASKS, and be none itself": set(settings.FORMER_TASKS.values())
        <= set(settings.TASKS)
        and set(settings.TASKS).isdisjoint(settings.FORMER_TASKS),
        "every name in EVERY_MINUTE must be in TASKS": set(settings.EVERY_MINUTE) <= set(settings.TASKS),
        "no cache may lie in the database: caches are pickles": not any(
            each["BACKEND"].endswith(".DatabaseCache") for each in caches.values()
        ),
    }
    return [why for why, holds in wanted.items() if not holds]


def sqlite_is_safe(**_: Any) -> list[CheckMessage]:
    """volmig.S…: WAL, full sync and immediate transactions, or commits are lost and writers starve."""
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
    """volmig.D1: no transaction around each request."""
    if settings.DATABASES["default"].get("ATOMIC_REQUESTS"):
        return [Error("ATOMIC_REQUESTS must be off: it makes every page view a writer", id="volmig.D1")]
    return []


def webhook_is_signed(**_: Any) -> list[CheckMessage]:
    """volmig.W…: notices need secrets of Standard Webhooks."""
    if not settings.WEBHOOK_URL:
        return []
    found: list[CheckMessage] = [Error(why, id="volmig.W1") for why in webhook.faults(settings.WEBHOOK_SECRETS)]
    plain = any(not secret.startswith(webhook.PREFIX) for secret in settings.WEBHOOK_SECRETS)
    hint = (
        f"Create one of the form {webhook.PREFIX}…, see docs/configuration.md; others are refused in the next release."
    )
    return found or ([Warning("VOLMIG_WEBHOOK_SECRET is not a Standard Webhooks secret", hint, id="volmig.W2")] * plain)


def variables_are_known(**_: Any) -> list[CheckMessage]:
    """A warning for each VOLMIG_… variable that nothing reads, with the one that may be meant."""
    return [
        Warning(
            f"VOLMIG_{name} is set, but nothing reads it",
            f"Did you mean VOLMIG_{near}?" if near else None,
            id="volmig.E1",
        )
        for name, near in environment.unknown()
    ]


def roles_are_known(**_: Any) -> list[CheckMessage]:
    """An error for roles in VOLMIG_NEED_TOTP that do not exist."""
    from volmig.accounts.roles import ALLOWS  # it needs models

    known = ", ".join(sorted(ALLOWS))
    strange = sorted(set(settings.NEED_TOTP) - set(ALLOWS))
    return [Error(f"VOLMIG_NEED_TOTP: {each} is none of the roles {known}", id="volmig.R1") for each in strange]


def static_files_are_collected(**_: Any) -> list[CheckMessage]:
    """collectstatic itself runs only the checks of static files, not this one."""
    if not settings.COLLECTED or (settings.STATIC_ROOT / "staticfiles.json").exists():
        return []
    hint = "Run manage.py collectstatic --noinput with the same VOLMIG_STATIC, or unset it."
    return [Error(f"VOLMIG_STATIC: no files have been collected in {settings.STATIC_ROOT}", hint, id="volmig.T1")]
