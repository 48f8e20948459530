"""The parts that volmig consists of, one table: what each is called, what starts it, and the queue that it works on.

It knows nothing of Django: the settings are read after it.
"""

from dataclasses import dataclass

MIGRATIONS, BACKGROUND = "migrations", "background"  # queues, and the clusters of workers that are named after them


@dataclass(frozen=True)
class Part:
    """One kind of process: `name` is in VOLMIG_PART, heartbeats and metrics, `called` in sentences,
    without an article.

    `manage.py up` with the word `group` starts it. `queue` is that of its tasks: a cluster for each, so that refreshes
    never delay a tick.
    """

    name: str
    group: str
    called: str
    queue: str = ""


PARTS = {
    part.name: part
    for part in (
        Part("web", "web", "web process"),
        Part("workers", "workers", "workers", MIGRATIONS),
        Part("background", "workers", "background workers", BACKGROUND),
        Part("watcher", "watcher", "watcher"),
    )
}
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS.values()))  # the words after `manage.py up`


def of_group(*groups: str) -> list[Part]:
    """The parts that these words after `manage.py up` start, in the order in which they start."""
    return [part for part in PARTS.values() if part.group in groups]


def of_queue(queue: str) -> Part:
    """The part that works on this queue. Raises KeyError where none does."""
    return {part.queue: part for part in PARTS.values() if part.queue}[queue]


def how_to_start(group: str) -> str:
    """The command that starts a part again, in production first: `manage.py` typed there without the settings of its
    units would start a second volmig, with an empty database."""
    by_others = f"containers: docker compose restart {group}; by hand: manage.py up {group}"
    return f"systemctl restart volmig-{group} ({by_others})"


def called(name: str) -> str:
    """What a part is called in a sentence, without an article; for a part of a later release its name."""
    return PARTS[name].called if name in PARTS else name
