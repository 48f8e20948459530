"""How long every list takes with a history of years: by default 100,000 migrations and 1,000,000 events.

`python -m tests.bench.history` measures SQLite and PostgreSQL; `--jobs 1000000 --on postgresql` is the figure of
docs/sizing.md. Ten events are made for each migration. Needs about 32 KB of disk for each migration on PostgreSQL, in
the directory of temporary files, and gives it back at the end.
"""

import argparse
import importlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests import postgresql

ROOT = Path(__file__).resolve().parents[2]
JOBS = int(os.environ.get("JOBS", "100000"))
TIMES = int(os.environ.get("TIMES", "20"))
MEDIAN, MOST = 0.1, 0.25  # seconds
# What was sown is vacuumed at once; one that begins amid the measurements would be counted, too.
POSTGRESQL = ("shared_buffers=512MB", "maintenance_work_mem=512MB", "autovacuum=off", "wal_level=minimal")
POSTGRESQL += ("max_wal_senders=0",)
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def main(jobs: int = JOBS, which: str = "") -> bool:
    """Measures both databases, or one, in processes of their own; whether everything was quick enough."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running or lying about
    good = which == "postgresql" or on("SQLite", "", jobs)
    if which == "sqlite":
        return good
    if postgresql.programs() is None:
        print("\nNo PostgreSQL on this machine (apt-get install postgresql): not measured.")
        return good and not which
    with postgresql.cluster(*POSTGRESQL) as address:
        return on("PostgreSQL", address, jobs) and good


def on(name: str, database: str, jobs: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="volmig-bench-") as data:
        ours = {"VOLMIG_DATA": data, "VOLMIG_DB": database, "VOLMIG_ALLOWED_HOSTS": "testserver"}
        environment = {**os.environ, **ours, "DJANGO_SETTINGS_MODULE": "volmig.settings"}
        command = [sys.executable, "-m", "tests.bench.history", "--measure", name, "--jobs", str(jobs)]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def measure(database: str, jobs: int) -> None:
    import django

    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from tests.bench.many import Seed
    from volmig import keys
    from volmig.record.chain import verify

    call_command("migrate", verbosity=0)
    keys.ensure()
    began = time.monotonic()
    seed = Seed(jobs)
    seed.sow()
    print(f"\n{database}: {jobs:,} migrations and {jobs * 10:,} events, made in {time.monotonic() - began:.0f} s")
    print(f"  most memory of this process while they were made: {memory():,.0f} MiB")
    sizes(jobs)
    slow = look(seed) + scrape()
    unused()
    build_indexes()
    before, began = memory(), time.monotonic()
    faults = verify()
    took = time.monotonic() - began
    print(f"  verify_audit: {jobs * 10:,} events in {took:.1f} s, {took / jobs * 10000:.1f} s for 100,000")
    print(f"  most memory of this process before and after: {before:,.0f} and {memory():,.0f} MiB")
    connection.close()
    if slow or faults:
        sys.exit("\n".join([f"{database}: too slow: {', '.join(slow)}" if slow else "", *faults[:3]]).strip())


def memory() -> float:
    """The most that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sizes(jobs: int) -> None:
    """Prints what the tables take."""
    from django.db import connection

    if connection.vendor != "postgresql":
        print(f"  the file: {Path(str(connection.settings_dict['NAME'])).stat().st_size / 1e6:,.0f} MB")
        return
    with connection.cursor() as cursor:
        cursor.execute(SIZES)
        rows = cursor.fetchall()
        cursor.execute("SELECT pg_database_size(current_database())")
        (whole,) = cursor.fetchone()
    places = f"{'table':>10} {'TOAST':>10} {'indexes':>10}"
    print(f"  {'table':24} {'rows':>12} {places} {'bytes a row':>12} {'a migration':>12}")
    for name, count, heap, toast, indexes in rows:
        total = heap + toast + indexes
        columns = "".join(f"{size / 1e6:7,.0f} MB " for size in (heap, toast, indexes))
        print(f"  {name:24} {count:12,.0f} {columns} {total / max(count, 1):11,.0f} {total / jobs:12,.0f}")
    print(f"  the database: {whole / 1e9:.1f} GB, {whole / jobs / 1000:.1f} KB for each migration", flush=True)


def unused() -> None:
    """Prints the indexes of big tables and how often the pages above used them."""
    from django.db import connection

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute(INDEXES)
            for table, name, scans, size, unique in cursor.fetchall():
                print(f"  {table:18} {name:40} {size / 1e6:8,.0f} MB {scans:10,} scans{' (unique)' if unique else ''}")


def build_indexes() -> None:
    """Builds the indexes of the last releases once more, as `manage.py prepare` does, while every big table is written
    to; prints how long that takes and how long a write had to wait."""
    from django.db import connection
    from django.db.migrations.loader import MigrationLoader

    from volmig.online import AddIndexOnline

    if connection.vendor != "postgresql":
        return
    loader = MigrationLoader(connection)
    state = loader.project_state()
    added = [
        (app, each) for (app, _), migration in loader.disk_migrations.items()
        for each in migration.operations
        if isinstance(each, AddIndexOnline) and any(
            index.name == each.index.name for index in state.models[app, each.model_name_lower].options["indexes"]
        )
    ]  # fmt: skip
    connection.connection.autocommit = True
    with connection.schema_editor(atomic=False) as editor:
        for app, each in added:
            each.database_backwards(app, editor, state, state)
        with Writers() as writers:
            began = time.monotonic()
            for app, each in added:
                each.database_forwards(app, editor, state, state)
            took = time.monotonic() - began
    print(f"  {len(added)} indexes built anew in {took:.0f} s; meanwhile {writers.count:,} writes, the longest "
          f"{writers.longest * 1000:.0f} ms", flush=True)  # fmt: skip


class Writers:
    """Writes one row of each big table after the other, on a separate connection, until the block exits."""

    def __init__(self) -> None:
        self.over, self.count, self.longest = threading.Event(), 0, 0.0
        self.pool = ThreadPoolExecutor(1)

    def __enter__(self) -> "Writers":
        self.writing = self.pool.submit(self.write)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.writing.result()  # raises what went wrong
        assert self.count, "nothing was written"

    def write(self) -> None:
        from django.apps import apps
        from django.db import connection

        from volmig.online import BIG
        from volmig.record.models import Event

        tables = [apps.get_model(*each)._meta.db_table for each in sorted(BIG) if each != ("record", "event")]
        update = "UPDATE {0} SET id = id WHERE id = (SELECT max(id) FROM {0})"
        writes = [partial(self.execute, update.format(table)) for table in tables]
        while not self.over.is_set():
            for write in (*writes, partial(Event.append, "bench.write", data={})):
                began = time.monotonic()
                write()
                self.count, self.longest = self.count + 1, max(self.longest, time.monotonic() - began)
            self.over.wait(0.05)
        connection.close()

    def execute(self, statement: str) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(statement)


SIZES = """SELECT relname, reltuples,
  pg_table_size(oid) - coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0),
  coalesce(pg_total_relation_size(nullif(reltoastrelid, 0)), 0), pg_indexes_size(oid)
  FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND reltuples > 1000
  ORDER BY pg_total_relation_size(oid) DESC"""
INDEXES = """SELECT relname, indexrelname, idx_scan, pg_relation_size(indexrelid), indisunique
  FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid) JOIN pg_class USING (relname)
  WHERE pg_class.relkind = 'r' AND reltuples > 5000 ORDER BY 1, 3 DESC"""


def look(seed: Any) -> list[str]:
    """Times each page as it is asked for by its address, rendering included; returns those that are too slow."""
    from django.contrib.auth.models import Group, User
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from volmig.accounts.models import Team, Token

    clients = {}
    for name, roles in {"ada": ["auditor", "operator", "approver", "administrator"], "vera": ["viewer"]}.items():
        user = User.objects.create(username=name)
        user.groups.set(Group.objects.filter(name__in=roles))
        clients[name] = Client()
        clients[name].force_login(user)
    letters = Token.objects.make(User.objects.get(username="ada"), "bench", ("approve", "audit", "administer"), 30)[1]
    clients["program"] = Client(headers={"Authorization": f"Bearer {letters}"})
    few = Team.objects.create(name="few")
    few.hypervisors.add(*seed.hosts[:6])
    Team.objects.filter(everybody=True).update(everybody=False)
    few.members.add(User.objects.get(username="vera"))
    print(f"  {'page':66} {'median':>8} {'95 %':>8} {'queries':>8} {'they take':>10} {'blocks':>9} {'CPU':>8}")
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
        read = sum(blocks(query["sql"]) for query in queries) if connection.vendor == "postgresql" else 0
        median, most = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        mark = "" if median <= MEDIAN and most <= MOST else "  too slow"
        slow += [title] if mark else []
        asked = sum(float(query["time"]) for query in queries)
        figures = f"{median * 1000:5.0f} ms {most * 1000:5.0f} ms {len(queries):8} {asked * 1000:7.0f} ms {read:9,}"
        print(f"  {title:66} {figures} {cpu * 1000:5.0f} ms{mark}", flush=True)
    return slow


def blocks(statement: str) -> int:
    """How many pages of 8 KB PostgreSQL reads for a query, wherever they lie: it does not depend on the machine."""
    from django.db import connection

    if not statement.startswith("SELECT") or "FOR UPDATE" in statement:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement.replace("%", "%%"), ())
        (found,) = cursor.fetchone()
    plan = found[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def scrape() -> list[str]:
    """Times what Prometheus asks for; returns its name when that is too slow."""
    from jobs.web import metrics

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
    stories, middle = seed.stories, seed.stories[len(seed.stories) // 2]
    deep, last = stories[len(stories) // 50].pk, stories[-100].pk
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
        "until a day long ago": f"until={stories[len(stories) // 40].at.date()}",
        "from a day on": f"since={stories[len(stories) // 40].at.date()}",
        "hypervisor, person and state": f"host={seed.hosts[3].pk}&person={middle.requester.username}&status=purged",
        "search, state and days": f"q=billing&status=done&since={stories[len(stories) // 2].at.date()}",
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
        "since a day long ago": f"since={stories[len(stories) // 40].at.date()}T00:00",
        "since yesterday": f"since={stories[-60].at.date()}T00:00",
        "person, action and migration": f"who={middle.requester.username}&what=job&job={middle.pk}",
    }
    rows = [(f"history: {title}", "ada", f"/migrations/?{query}") for title, query in history.items()]
    rows += [
        (f"history of a small team: {title}", "vera", f"/migrations/?{history[title]}")
        for title in ("first page", "deep page", "search: instances that begin with billing", "state: done")
    ]
    rows += [(f"audit: {title}", "ada", f"/audit/?{query}") for title, query in audit.items()]
    shown = {
        "overview": "/",
        "approvals": "/approvals/",
        "inbox count": "/approvals/count",
        "attention count": "/attention/count",
        "kept disks": "/backups/",
        "kept disks that are due": "/backups/?due=1",
        "leftovers": "/leftovers/",
        "a migration that ended: plan": f"/migrations/{middle.pk}/?tab=plan",
        "a migration that ended: log": f"/migrations/{middle.pk}/?tab=log",
        "a migration that ended: evidence": f"/migrations/{middle.pk}/?tab=evidence",
        "a migration that ended: approvals": f"/migrations/{middle.pk}/?tab=approvals",
        "a migration that ended: events": f"/migrations/{middle.pk}/?tab=events",
        "a migration under way": f"/migrations/{stories[-5].pk}/",
        "hypervisors": "/hosts/",
        "one hypervisor": f"/hosts/{seed.hosts[3].pk}/",
        "clouds": "/hosts/clouds/",
        "instances": "/instances/",
        "instances: search": "/instances/?q=web",
        "one instance": f"/instances/{uuid.UUID(int=seed.hosts[3].pk * 1000 + 7)}/",
        "asking for a migration": "/migrations/new",
        "people": "/accounts/",
        "one person": f"/accounts/{middle.requester.pk}/",
        "teams": "/teams/",
        "evidence": "/evidence/",
        "processes": "/processes/",
        "checks": "/checks/",
        "account": "/account/",
    }
    rows += [(title, "ada", path) for title, path in shown.items()]
    for title, path in {
        "migrations": "jobs",
        "migrations, deep": f"jobs?after={deep}",
        "migrations: search": "jobs?q=billing",
        "migrations: state": "jobs?status=failed",
        "migrations by size": "jobs?sort=largest",
        "one migration": f"jobs/{middle.pk}",
        "its plan": f"jobs/{middle.pk}/plan",
        "its progress": f"jobs/{middle.pk}/progress",
        "its events": f"jobs/{middle.pk}/events",
        "its approvals": f"jobs/{middle.pk}/approvals",
        "the last migrations": f"jobs?before={last}",
        "approvals": "approvals",
        "kept disks": "backups",
        "kept disks that are due": "backups?due=true",
        "leftovers": "leftovers",
        "hypervisors": "hypervisors",
        "one hypervisor": f"hypervisors/{seed.hosts[3].pk}",
        "its volumes": f"hypervisors/{seed.hosts[3].pk}/volumes",
        "volumes": "volumes?q=disk",
        "shares": "shares",
        "clouds": "clouds",
        "instances": "servers",
        "instances: search": "servers?q=web",
        "events": "events",
        "events, deep": "events?after=5000",
        "events: person": f"events?who={middle.requester.username}",
        "events: action": "events?what=approval",
    }.items():
        rows.append((f"API: {title}", "program", f"/api/v1/{path}"))
    return rows


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description=__doc__)
    parsed.add_argument("--jobs", type=int, default=JOBS, help="migrations; ten events are made for each")
    parsed.add_argument("--on", choices=NAMES, default="", help="one database alone")
    parsed.add_argument("--measure", default="", help=argparse.SUPPRESS)
    return parsed


if __name__ == "__main__":
    args = parser().parse_args()
    if args.measure:
        measure(args.measure, args.jobs)
    else:
        sys.exit(0 if main(args.jobs, args.on) else 1)
