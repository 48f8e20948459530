"""Fills a fresh volmig with people and hypervisors, as an administrator would: `python -m tests.seed <what.json`.

The document: {"people": {"name": [roles…]}, "password": "…",
"hypervisors": [{"name", "address", "port", "user", "shipped"}…], "entry": "…"}; with the entry of a clouds.yaml, Nova
has the instances. Keys are pinned as offered: the lab made them itself.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")


TRIES = 5  # a guest that has just booted may be slower than a hypervisor is given


def main() -> None:
    django.setup()
    wanted = json.load(sys.stdin)
    for name, roles in wanted["people"].items():
        person(name, roles, wanted["password"])
    with ThreadPoolExecutor() as pool:  # each is asked over SSH, which takes seconds
        list(pool.map(hypervisor, wanted["hypervisors"]))
    if "entry" in wanted:
        through_nova(wanted["entry"])


def person(name: str, roles: list[str], password: str) -> None:
    from django.contrib.auth.models import Group, User

    user, _ = User.objects.get_or_create(username=name)
    user.set_password(password)
    user.save()
    user.groups.set(Group.objects.filter(name__in=roles))


def hypervisor(row: dict[str, Any]) -> None:
    """Registers, pins and reads one hypervisor; again is harmless. A host that is slow to answer is asked again."""
    from django.contrib.auth.models import User

    from hosts import tasks
    from hosts.models import Cloud, Hypervisor

    administrator = User.objects.filter(groups__name="administrator").first()
    cloud, _ = Cloud.objects.get_or_create(name="lab")
    known, _ = Hypervisor.objects.update_or_create(name=row["name"], defaults={**row, "cloud": cloud})
    for _ in range(TRIES):
        tasks.offer_key(known.pk)
        known.refresh_from_db()
        if known.offered_key:
            known.pin(administrator, known.offered_key)
        tasks.refresh(known.pk)
        known.refresh_from_db()
        if known.seen_at and not known.last_error:
            return
    raise SystemExit(f"{known} could not be read: {known.last_error}")


def through_nova(entry: str) -> None:
    """Has Nova control the instances of all hypervisors; its computes and instances are read."""
    from django.contrib.auth.models import User

    from hosts import tasks
    from hosts.models import Cloud, Hypervisor

    administrator = User.objects.filter(groups__name="administrator").first()
    cloud = Cloud.objects.get(name="lab")
    cloud.reregister(administrator, Hypervisor.objects.all(), name="lab", control="openstack", entry=entry)
    tasks.refresh_cloud(cloud.pk)


if __name__ == "__main__":
    main()
