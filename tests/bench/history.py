"""How long pages of the history and of the record take with 100,000 migrations and 1,000,000 events.

`python -m tests.bench.history` measures SQLite and PostgreSQL; JOBS=1000 in the environment makes it small.
"""

import importlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import postgresql

ROOT = Path(__file__).resolve().parents[2]
JOBS = int(os.environ.get("JOBS", "100000"))
TIMES = int(os.environ.get("TIMES", "20"))
MEDIAN, MOST = 0.1, 0.25  # seconds


def main() -> bool:
    """Measures both databases in processes of their own; whether everything was quick enough."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running or lying about
    good = on("SQLite", "")
    if postgresql.programs() is None:
        print("\nNo PostgreSQL on this machine (apt-get install postgresql): not measured.")
        return good
    # What was sown is vacuumed at once; a vacuum by itself amid the measurements would be counted, too.
    with postgresql.cluster("shared_buffers=256MB", "autovacuum=off") as address:
        return on("PostgreSQL", address) and good


def on(name: str, database: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="volmig-bench-") as data:
        told = {"VOLMIG_DATA": data, "VOLMIG_DB": database, "VOLMIG_ALLOWED_HOSTS": "testserver"}
        environment = {**os.environ, **told, "DJANGO_SETTINGS_MODULE": "volmig.settings"}
        command = [sys.executable, "-m", "tests.bench.history", name]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def measure(database: str) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from tests.bench.many import Seed
    from volmig.record.chain import verify

    call_command("migrate", verbosity=0)
    began = time.monotonic()
    seed = Seed(JOBS)
    seed.sow()
    print(f"\n{database}: {JOBS:,} migrations and {JOBS * 10:,} events, made in {time.monotonic() - began:.0f} s")
    slow = look(seed) + scrape()
    began = time.monotonic()
    faults = verify()
    took = time.monotonic() - began
    print(f"  the record's {JOBS * 10:,} events verified in {took:.1f} s: {took / JOBS * 10000:.1f} s for 100,000")
    connection.close()
    if slow or faults:
        sys.exit("\n".join([f"{database}: too slow: {', '.join(slow)}" if slow else "", *faults[:3]]).strip())


def look(seed: Any) -> list[str]:
    """Times each page as it is asked for by its address, rendering included; returns those that are too slow."""
    from django.contrib.auth.models import Group, User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from volmig.accounts.models import Team

    clients = {}
    for name, roles in {"ada": ["auditor", "operator", "approver"], "vera": ["viewer"]}.items():
        user = User.objects.create(username=name)
        user.groups.set(Group.objects.filter(name__in=roles))
        clients[name] = Client()
        clients[name].force_login(user)
    few = Team.objects.create(name="few")
    few.hypervisors.add(*seed.hosts[:6])
    Team.objects.filter(everybody=True).update(everybody=False)
    few.members.add(User.objects.get(username="vera"))
    print(f"  {'page':66} {'median':>8} {'95 %':>8} {'queries':>8} {'they take':>10} {'CPU':>8}")
    # As the web server does: what is there already, here also what was sown, is not for the collector any more.
    importlib.import_module("volmig.asgi")
    slow = []
    for title, who, path in pages(seed):
        clients[who].get(path)  # templates are read once
        times, worked = [], time.process_time()
        for _ in range(TIMES):
            began = time.perf_counter()
            response = clients[who].get(path)
            times.append(time.perf_counter() - began)
            assert response.status_code == 200, (path, response.status_code)
        cpu = (time.process_time() - worked) / TIMES
        with CaptureQueriesContext(connection) as queries:
            clients[who].get(path)
        median, most = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        mark = "" if median <= MEDIAN and most <= MOST else "  too slow"
        slow += [title] if mark else []
        asked = sum(float(query["time"]) for query in queries)
        figures = f"{median * 1000:5.0f} ms {most * 1000:5.0f} ms {len(queries):8} {asked * 1000:7.0f} ms"
        print(f"  {title:66} {figures} {cpu * 1000:5.0f} ms{mark}", flush=True)
    return slow


def scrape() -> list[str]:
    """Times what Prometheus asks for; returns its name when that is too slow."""
    from volmig.health import metrics

    metrics.exposition()
    times = []
    for _ in range(TIMES):
        began = time.perf_counter()
        metrics.exposition()
        times.append(time.perf_counter() - began)
    median, most = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    print(f"  {'/metrics':66} {median * 1000:5.0f} ms {most * 1000:5.0f} ms", flush=True)
    return ["/metrics"] if median > MEDIAN or most > MOST else []


def pages(seed: Any) -> list[tuple[str, str, str]]:
    told, middle = seed.told, seed.told[len(seed.told) // 2]
    deep = seed.told[len(seed.told) // 50].pk
    day = middle.at.date()
    history = {
        "first page": "",
        "deep page": f"after={deep}",
        "deep page, backwards": f"before={deep}",
        "the very last page": f"after={seed.first + 30}",
        "search: one instance": f"q={middle.instance_name}",
        "search: instances that begin with billing": "q=billing",
        "search: a part that a fifth of them have": "q=eu",
        "search: an instance's id": f"q={middle.instance_id}",
        "search: a volume": f"q=vg_nova0/{middle.source_lv}",
        "search: a volume group that all of them have": "q=vg_nova0",
        "search: a ticket": f"q={middle.ticket}",
        "search: a number": f"q={middle.pk}",
        "search: nothing is found": "q=nonesuch",
        "hypervisor": f"host={seed.hosts[3].pk}",
        "person who asked": f"person={middle.requester.username}",
        "person who decided": f"person={middle.by.username}",
        "person whom nobody knows": "person=nobody",
        "state: done": "status=done",
        "state: failed": "status=failed",
        "state: active": "status=active",
        "state: halted": "status=halted",
        "state that none is in": "status=rolling_back",
        "a day": f"since={day}&until={day}",
        "until a day long ago": f"until={told[len(told) // 40].at.date()}",
        "from a day on": f"since={told[len(told) // 40].at.date()}",
        "hypervisor, person and state": f"host={seed.hosts[3].pk}&person={middle.requester.username}&status=purged",
        "search, state and days": f"q=billing&status=done&since={told[len(told) // 2].at.date()}",
        "by instance": "sort=name",
        "by instance, deep": f"sort=name&after={middle.pk}",
        "by size": "sort=largest",
        "by end": "sort=ended",
        "oldest first": "sort=oldest",
    }
    audit = {
        "first page": "",
        "deep page": "after=5000",
        "person": f"who={middle.requester.username.upper()}",
        "person whom nobody knows": "who=nobody",
        "action: all that have approval in it": "what=approval",
        "action: step.done": "what=step.done",
        "action: one that there is not": "what=nonesuch",
        "on: a step": "on=convert",
        "on: what half of them begin with": "on=Migration",
        "on: one migration": f"on=Migration {middle.pk}:",
        "on: nothing": "on=nonesuch",
        "migration": f"job={middle.pk}",
        "since a day long ago": f"since={told[len(told) // 40].at.date()}T00:00",
        "since yesterday": f"since={told[-60].at.date()}T00:00",
        "person, action and migration": f"who={middle.requester.username}&what=job&job={middle.pk}",
    }
    rows = [(f"history: {title}", "ada", f"/migrations/?{query}") for title, query in history.items()]
    rows += [
        (f"history of a small team: {title}", "vera", f"/migrations/?{history[title]}")
        for title in ("first page", "deep page", "search: instances that begin with billing", "state: done")
    ]
    rows += [(f"audit: {title}", "ada", f"/audit/?{query}") for title, query in audit.items()]
    return [
        *rows,
        ("overview", "ada", "/"),
        ("approvals", "ada", "/approvals/"),
        ("inbox count", "ada", "/approvals/count"),
    ]


if __name__ == "__main__":
    if sys.argv[1:]:
        measure(sys.argv[1])
    else:
        sys.exit(0 if main() else 1)
