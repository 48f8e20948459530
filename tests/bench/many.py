"""Fills a database with the history of years: migrations by the million, ten events of each, in a valid chain.

Every migration has what a real one leaves: words, approvals and decisions, a journal, a ledger, and an archive with its
plan. What is alike in all of them the database itself copies; what is signed or differs comes by COPY, some thousand
migrations at a time, so that memory is bounded whatever the number.
"""

import datetime as dt
import json
import multiprocessing
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, overload

from django.contrib.auth.models import Group, User
from django.db import connection, models, transaction
from django.utils import timezone

from hosts.models import Cloud, Hypervisor, Instance, LogicalVolume, Mount, Scan, Server, Share, VolumeGroup
from hosts.remote.hostctl.leftovers import CAP
from jobs.engine import approval_binding, checks
from jobs.engine import plan as planning
from jobs.engine.evidence import Evidence
from jobs.models import Approval, Archive, Decision, Footprint, Job, StepRun, Word, search
from jobs.models import archive as archives
from tests.engine import sound
from volmig.record.models import SIGNED, ChainHead, Event, sign

GIB = 1 << 30
INSTANCES = "/var/lib/nova/instances"
BATCH = 2000  # rows that are written at once where there is no COPY
MANY = 5000  # migrations whose rows are in memory at a time
ENDS = [("purged", "done", 55), ("done", "done", 20), ("undone", "failed", 8), ("undone", "cancelled", 5)]
ENDS += [("undone", "rejected", 2), ("undone", "blocked", 4), ("rolled_back", "rolled back", 5)]
KEPT_FOR = 0.06  # of the time: about three months, after which every kept disk was purged
OPEN = 40  # the last ones are under way
KINDS = ["db", "web", "queue", "cache", "billing", "search", "mail", "archive", "ci", "metrics"]
PLACES = ["eu", "us", "ap", "lab", "edge"]
STORY = ["job.submit", "job.status", "job.status", "job.start", "step.done", "step.done", "step.done", "step.done"]
STORY += ["approval.ask", "approval.approve"]
STEPS = ["relay_lv", "convert", "compare", "stage"]
TABLES = (Job, Word, Approval, Decision, Event, Archive, StepRun, Footprint)
OF_SITE = (Hypervisor, Instance, LogicalVolume, Mount, Scan, Server, Share, VolumeGroup)
LEDGER = ("space", "lv", "filesystem", "mount", "export", "stage", "fence", "fence", "lock", "backup")
PLAIN = """SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename = %s
  AND to_regclass(quote_ident(indexname)) NOT IN (SELECT conindid FROM pg_constraint)"""


class History(Sequence[SimpleNamespace]):
    """The migrations by their place in time, each made anew whenever it is asked for."""

    def __init__(self, seed: "Seed") -> None:
        self.seed = seed

    def __len__(self) -> int:
        return self.seed.jobs

    @overload
    def __getitem__(self, index: int) -> SimpleNamespace: ...
    @overload
    def __getitem__(self, index: slice) -> list[SimpleNamespace]: ...
    def __getitem__(self, index: int | slice) -> SimpleNamespace | list[SimpleNamespace]:
        if isinstance(index, slice):
            return [self.seed.tell(number) for number in range(*index.indices(len(self)))]
        return self.seed.tell(range(len(self))[index])


class Seed:
    """The same history each time, from `jobs` migrations with ten events each."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.chance, self.now = jobs, random.Random(), timezone.now()
        self.began = self.now - dt.timedelta(days=4 * 365)
        self.stories = History(self)

    def sow(self) -> None:
        self.people = [self.person(f"operator-{n}", "operator") for n in range(30)]
        self.deciders = [self.person(f"approver-{n}", "approver") for n in range(10)]
        self.hosts = [self.hypervisor(f"cmp-{n:03}", n) for n in range(60)]
        self.first = (Job.objects.order_by("-pk").values_list("pk", flat=True).first() or 0) + 1
        self.like = Alike()
        self.word_key = 0
        self.site()
        with Unindexed():
            together(self.migrations, self.events)
            self.like.spread(self.first, self.first + self.jobs - OPEN)
            self.under_way()
            progress("journals, ledgers and archives")
        self.scans()
        settle()
        progress("indexes and statistics")

    def migrations(self) -> None:
        for start in range(0, self.jobs, MANY):
            stories = self.stories[start : start + MANY]
            insert(Job, map(self.migration, stories))
            insert(Word, (row for each in stories for row in self.words(each)))
            insert(Approval, map(self.approval, stories))
            insert(Decision, map(self.decision, stories))
            progress(f"{start + MANY:,} migrations")

    def events(self) -> None:
        head = ChainHead.objects.filter(pk=1).first() or ChainHead()
        self.seq, self.hash = head.seq, head.hash
        for start in range(0, self.jobs, MANY):
            stories = self.stories[start : start + MANY]
            insert(Event, (self.event(each, n, action) for each in stories for n, action in enumerate(STORY)))
        ChainHead.objects.update_or_create(pk=1, defaults={"seq": self.seq, "hash": self.hash})

    def person(self, name: str, role: str) -> User:
        user = User.objects.create(username=name, password="!")
        user.groups.set(Group.objects.filter(name=role))
        return user

    def hypervisor(self, name: str, number: int) -> Hypervisor:
        return Hypervisor.objects.create(name=name, address=f"192.0.2.{number}", host_key="ssh-ed25519 AAAA")

    def site(self) -> None:
        """What hypervisors and Nova reported: 50 instances and volumes on each."""
        seen = {"seen_at": self.now}
        share = self.share = Share.objects.create(source="filer:/export/nova")
        cloud = Cloud.objects.create(name="prod")
        for host in self.hosts:
            Mount.objects.create(hypervisor=host, share=share, path=INSTANCES, **seen)
            group = VolumeGroup.objects.create(
                hypervisor=host, name="vg_nova0", uuid=f"vg-{host.name}", size=900 * GIB, free=400 * GIB,
                extent_size=1 << 22, **seen,
            )  # fmt: skip
            ids = [str(uuid.UUID(int=host.pk * 1000 + number)) for number in range(50)]
            Instance.objects.bulk_create(
                Instance(hypervisor=host, uuid=each, name=f"instance-{each[-8:]}", state="running", **seen)
                for each in ids
            )
            Server.objects.bulk_create(
                Server(cloud=cloud, uuid=each, name=f"web-{each[-8:]}", host=host.name, status="ACTIVE", **seen)
                for each in ids
            )
            LogicalVolume.objects.bulk_create(
                LogicalVolume(
                    volume_group=group, name=f"{each}_disk.local", uuid=each, size=GIB, attributes="-wi-a-----",
                    is_open=False, **seen,
                )
                for each in ids
            )  # fmt: skip

    def under_way(self) -> None:
        """What the last migrations have made so far, and that of their journals which proves it."""
        begun = [each for each in self.stories[self.jobs - OPEN :] if each.status != "planned"]
        insert(Footprint, (row for each in begun for row in self.made(each, each.pk * len(LEDGER))))
        StepRun.objects.bulk_create(
            StepRun(
                id=each.pk * len(self.like.runs) + number, job_id=each.pk, step=step, direction="do", attempt=1, lap=1,
                fence=1, hypervisor_id=on, unit=unit, started_at=each.at, ended_at=each.at, result="done",
            )
            for each in begun
            for number, (step, on, unit) in enumerate(units(each))
        )  # fmt: skip

    def made(self, story: SimpleNamespace, key: int) -> Iterator[dict[str, Any]]:
        """The rows of the ledger; keys count from `key`."""
        share, folder = self.share.pk, f"{INSTANCES}/.volmig/{story.uuid}"
        lv, mounted = lv_of(story.uuid), f"/srv/volmig/{story.uuid.replace('-', '')}"
        rows = [("lv", story.relay_id, None, lv, "re1ayy"), ("filesystem", story.relay_id, None, mounted, story.uuid)]
        rows += [("fence", story.source_id, None, f"{story.source_vg}/{story.source_lv}", story.lv_uuid)]
        rows += [("stage", None, share, f"{folder}/disk.new", "4711")]
        if story.status == "on_trial":
            rows = [("backup", None, share, f"{folder}/disk.old", "4711")]
        for number, (kind, host, on, name, identity) in enumerate(rows):
            yield {
                "id": key + number, "job_id": story.pk, "kind": kind, "hypervisor_id": host, "share_id": on,
                "name": name, "identity": identity, "bytes": story.source_size, "state": "present", "since": story.at,
                "keep_until": None,
            }  # fmt: skip

    def scans(self) -> None:
        """What hostctl lists on each hypervisor: what is there of migrations under way, and what it sees on the share,
        as all others do: a disk for each migration that is not purged, the first ones by name, and how many more."""
        standing = (
            Footprint.objects.left()
            .exclude(kind="space")
            .values("kind", "name", "identity", "bytes", "since", "hypervisor_id", "share_id", "job__uuid")
        )
        disks = sorted(map(thing, standing.exclude(share=None).iterator()), key=itemgetter("name"))
        here = {host.pk: [thing(row) for row in standing.filter(hypervisor=host)] for host in self.hosts}
        for story in self.stories[self.jobs - OPEN :]:
            for _, on, unit in units(story) if story.status != "planned" else ():
                plain = {"share": "", "size": 0, "since": self.now.timestamp(), "job": story.uuid}
                here[on].append(plain | {"kind": "unit", "name": unit, "identity": unit, "path": unit})
                path = f"/var/lib/volmig/{story.uuid}"
                here[on].append(plain | {"kind": "memory", "name": path, "identity": path, "path": path})
        for host in self.hosts:
            scan = Scan.objects.create(hypervisor=host, tried_at=self.now)
            found, beyond = [*here[host.pk], *disks[:CAP]][:CAP], max(0, len(disks) + len(here[host.pk]) - CAP)
            shares = [{"source": self.share.source, "answered": True}]
            scan.record({"things": found, "more": beyond, "missed": [], "shares": shares}, self.now)

    def tell(self, number: int) -> SimpleNamespace:
        """What is known of one migration, by chance, and the same each time."""
        chance = self.chance
        chance.seed(2026 + 7919 * number)
        at = self.began + (self.now - self.began) * (number / self.jobs)
        status, outcome = chance.choices(ENDS, [weight for *_, weight in ENDS])[0][:2]
        if number < self.jobs * (1 - KEPT_FOR) and status in ("done", "rolled_back"):
            status = "purged"
        if number >= self.jobs - OPEN:
            status, outcome = chance.choice(["preparing", "awaiting_approval", "on_trial", "planned"]), ""
        source, relay, destination = chance.sample(self.hosts, 3)
        name = f"{chance.choice(KINDS)}-{chance.choice(PLACES)}-{chance.randrange(20000)}"
        old, new, lv, own = (str(uuid.UUID(int=chance.getrandbits(128))) for _ in range(4))
        return SimpleNamespace(
            pk=self.first + number, uuid=own, source_id=source.pk, relay_id=relay.pk, destination_id=destination.pk,
            requester=chance.choice(self.people), source_vg="vg_nova0", source_lv=f"{old}_disk.local",
            lv_uuid=f"lv-{lv}"[:38], instance_id=new, instance_name=name, ticket=f"OPS-{1000 + number // 3}", at=at,
            by=chance.choice(self.deciders), status=status, outcome=outcome,
            source_size=chance.randrange(1, 4000) * GIB,
            ended_at=at + dt.timedelta(hours=chance.uniform(0.2, 60)) if outcome else None,
            halt_reason="Something was seen that is not foreseen." if not outcome and number % 9 == 0 else "",
        )  # fmt: skip

    def migration(self, story: SimpleNamespace) -> dict[str, Any]:
        own = {key: value for key, value in vars(story).items() if key not in ("pk", "uuid", "at", "by", "requester")}
        kept = self.like.references(story.pk) if story.outcome else self.like.columns
        return self.like.job | own | kept | {
            "id": story.pk, "uuid": uuid.UUID(story.uuid), "requester_id": story.requester.pk,
            "last_editor_id": story.requester.pk, "created_at": story.at,
            "archived_at": story.ended_at,
        }  # fmt: skip

    def words(self, story: SimpleNamespace) -> Iterator[dict[str, Any]]:
        for text in {search.plain(each) for each in (*search.of_job(story), search.person(story.by.username))}:
            self.word_key += 1
            yield {"id": self.word_key, "job_id": story.pk, "text": text}

    def approval(self, story: SimpleNamespace) -> dict[str, Any]:
        return {
            "id": story.pk, "job_id": story.pk, "kind": "swap", "version": 1, "digest": "cd" * 32,
            "bound": self.like.bound, "requester_id": story.requester.pk,
            "last_editor_id": story.requester.pk, "created_at": story.at,
            "expires_at": story.at + dt.timedelta(days=1), "voided_at": None, "void_reason": "",
            "void_changes": "[]", "consumed_at": story.at + dt.timedelta(hours=1), "approvers": 1,
            "granted_by_id": None, "seals": "{}",
        }  # fmt: skip

    def decision(self, story: SimpleNamespace) -> dict[str, Any]:
        return {
            "id": story.pk, "approval_id": story.pk, "person_id": story.by.pk, "requester_id": story.requester.pk,
            "last_editor_id": story.requester.pk, "verdict": "approve", "reason": "as agreed", "at": story.at,
            "withdrawn_at": None,
        }  # fmt: skip

    def event(self, story: SimpleNamespace, number: int, action: str) -> dict[str, Any]:
        self.seq += 1
        who = story.by if action == "approval.approve" else None if action.startswith("step") else story.requester
        step = STEPS[number % 4] if action.startswith("step") else ""
        data = {"n": number, "hypervisor": "cmp-001"} | self.like.event_data.get(action, {})
        values = {
            "seq": self.seq, "at": story.at + dt.timedelta(seconds=number), "actor_id": who and who.pk,
            "actor_name": who.username if who else "", "role": "operator" if who else "", "session": "",
            "address": "192.0.2.9" if who else "", "action": action, "job": story.pk,
            "object": step or f"Migration {story.pk}: vg_nova0/{story.source_lv} to {story.instance_name} disk.local",
            "data": data,
        }  # fmt: skip
        before, self.hash = self.hash, sign(self.hash, [values[name] for name in SIGNED])
        return values | {"id": self.seq, "data": json.dumps(data), "prev_hash": before, "hash": self.hash}


def lv_of(uuid: str) -> str:
    return f"vg_nova0/volmig_{uuid.replace('-', '')[:12]}"


def units(story: SimpleNamespace) -> list[tuple[str, int, str]]:
    """A unit for each of its hypervisors: the step, where, and its name."""
    steps = {"convert": story.source_id, "stage": story.relay_id, "seal": story.destination_id}
    return [(step, on, f"volmig-{story.uuid.replace('-', '')}-{step}-do-1") for step, on in steps.items()]


def thing(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the ledger as hostctl would list it."""
    name = f".volmig/{row['name'].rpartition('/.volmig/')[2]}" if row["share_id"] else row["name"]
    return {
        "kind": row["kind"], "name": name, "job": str(row["job__uuid"]), "identity": row["identity"],
        "size": row["bytes"], "since": row["since"].timestamp(), "path": row["name"],
        "share": "filer:/export/nova" if row["share_id"] else "",
    }  # fmt: skip


class Alike:
    """What all migrations have alike but for their keys: plan, facts, checks, journal and ledger."""

    def __init__(self) -> None:
        made = planning.make(sound.MIGRATION, sound.FACTS)
        evidence = Evidence({"stage_verify": {"sha256": "ab" * 32, "inode": 4711, "file_size": 1 << 30}})
        found = [check.to_json() for check in checks.look(sound.case())]
        plain = {"plan": made.to_json(), "facts": sound.FACTS.to_json(), "checks": found, "halt_data": {}}
        self.columns = {name: json.dumps(value) for name, value in plain.items()}
        bound = approval_binding.swap(sound.MIGRATION, sound.FACTS, made, evidence, "0123456789abcdef")
        self.bound = json.dumps(bound)
        self.runs = [self.run(each) for each in made.to_json()["steps"]]
        long = {f"{run['step']}.do.1.{name}": run[name] for run in self.runs for name in archives.OF_RUN}
        long |= {name: self.columns[name] for name in archives.OF_JOB}
        packed = {name: archives.compact(text) for name, text in long.items() if archives.is_bulky(text)}
        self.content = archives.packed(packed)
        self.check, self.packed = archives.check_of(self.content), set(packed)
        empty = Job(uuid=uuid.UUID(int=0), relay_vg="vg_nova0", share_source="filer:/export/nova", disk="disk.local")
        self.job = {field.attname: getattr(empty, field.attname) for field in Job._meta.concrete_fields}
        self.job |= {"digest": "ab" * 32, "hostctl": "0123456789abcdef", "facts_at": timezone.now()}
        self.event_data: dict[str, dict[str, Any]] = {
            "approval.ask": {"digest": "cd" * 32, "bound": bound, "approvers": 1},
            "step.done": {"attempt": 1, "direction": "do", "evidence": {"seconds": 4.2, "bytes_read": 1 << 34}},
        }

    def run(self, begun: dict[str, Any]) -> dict[str, Any]:
        """An attempt that went well, in the shape that hostctl reports."""
        report = {
            "at": "2026-01-01T00:00:00+00:00",
            "exit": 0,
            "probe": False,
            "stderr": "",
            "stdout": "",
            "seconds": 0.1,
        }
        ran = [{**report, **each, "argv": each["text"].split()} for each in begun["commands"]]
        return {
            "step": begun["name"], "on": begun["on"], "args": json.dumps(begun["args"]), "commands": json.dumps(ran),
            "evidence": json.dumps({"seconds": 4.2, "bytes_read": 1 << 34, "boot_id": "ab" * 16}),
        }  # fmt: skip

    def reference(self, key: Any, part: str) -> str:
        return f"{archives.REFERENCE}{key}:{self.check}:{part}"

    def references(self, key: int) -> dict[str, str]:
        return {
            name: json.dumps(self.reference(key, name)) if name in self.packed else text
            for name, text in self.columns.items()
        }

    def spread(self, first: int, end: int) -> None:
        """Copies archive, journal and ledger for the migrations from key `first` to before `end`."""
        keep("alike_run", "key integer, step text, place text, args text, commands text, evidence text", self.stored())
        keep("alike_mark", "key integer, kind text", list(enumerate(LEDGER)))
        postgresql = connection.vendor == "postgresql"
        words = {"jsonb": "::jsonb" if postgresql else "", "false": "false" if postgresql else "0"}
        words["uuid"] = "j.uuid" if postgresql else DASHED
        # About half of those that are kept are due.
        words["due"] = "j.ended_at + interval '45 days'" if postgresql else "datetime(j.ended_at, '+45 days')"
        words |= {"runs": len(self.runs), "marks": len(LEDGER), "among": "WHERE j.id >= %s AND j.id < %s ORDER BY j.id"}
        execute(ARCHIVES.format(**words), [self.content, first, end], Archive)
        execute(RUNS.format(**words), [first, end], StepRun)
        execute(MARKS.format(**words), [first, end], Footprint)

    def stored(self) -> list[tuple[Any, ...]]:
        """The journal's rows, with references into the archive of a migration that is still to be named."""
        rows = []
        for key, run in enumerate(self.runs):
            parts = {name: f"{run['step']}.do.1.{name}" for name in archives.OF_RUN}
            columns = {
                name: json.dumps(self.reference("<key>", part)) if part in self.packed else run[name]
                for name, part in parts.items()
            }
            rows.append((key, run["step"], run["on"], columns["args"], columns["commands"], run["evidence"]))
        return rows


# As hostctl writes it, where the database has the digits alone.
DASHED = " || '-' || ".join(
    f"substr(j.uuid, {at}, {length})" for at, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
)
ARCHIVES = """INSERT INTO jobs_archive (id, job_id, content, made_at)
SELECT j.id, j.id, %s, j.ended_at FROM jobs_job j {among}"""
RUNS = """INSERT INTO jobs_steprun
 (id, job_id, step, direction, attempt, lap, fence, hypervisor_id, args, unit, boot_id, started_at, bytes_done,
  bytes_total, bytes_read, bytes_written, rate, unread, ended_at, result, evidence, commands)
SELECT j.id * {runs} + r.key, j.id, r.step, 'do', 1, 1, 1,
  CASE r.place WHEN 'source' THEN j.source_id WHEN 'relay' THEN j.relay_id ELSE j.destination_id END,
  replace(r.args, '<key>', CAST(j.id AS text)){jsonb}, 'volmig-' || j.uuid || '-' || r.step || '-do-1',
  '0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa', j.created_at, 0, 0, 0, 0, 0, {false}, j.ended_at, 'done',
  r.evidence{jsonb}, replace(r.commands, '<key>', CAST(j.id AS text)){jsonb}
FROM jobs_job j CROSS JOIN alike_run r {among}, r.key"""
MARKS = """INSERT INTO jobs_footprint
 (id, job_id, kind, hypervisor_id, share_id, name, identity, bytes, state, since, keep_until)
SELECT j.id * {marks} + m.key, j.id, m.kind, CASE m.kind WHEN 'backup' THEN NULL ELSE j.relay_id END,
  CASE m.kind WHEN 'backup' THEN (SELECT min(id) FROM hosts_share) END,
  '/var/lib/nova/instances/.volmig/' || {uuid} || '/' || CASE m.kind WHEN 'backup' THEN
    CASE j.outcome WHEN 'rolled back' THEN 'disk.rejected' ELSE 'disk.old' END ELSE m.kind || m.key END,
  '4711', j.source_size,
  CASE WHEN m.kind = 'backup' AND j.status IN ('done', 'rolled_back') THEN 'present' ELSE 'gone' END,
  j.ended_at, {due}
FROM jobs_job j CROSS JOIN alike_mark m {among}, m.key"""


def keep(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
    """Puts rows into a temporary table."""
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE {table} ({columns})")
        marks = ", ".join(["%s"] * len(rows[0]))
        cursor.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608


def execute(statement: str, params: list[Any], table: type[models.Model]) -> None:
    """Fills a table that is empty: what is truncated in the same transaction needs no log (wal_level=minimal)."""
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql" and not table._default_manager.exists():
            cursor.execute(f"TRUNCATE {table._meta.db_table} CASCADE")
        cursor.execute(statement, params)


def together(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Both at the same time where the database takes two writers; raises when the second fails."""
    if connection.vendor != "postgresql":
        first()
        second()
        return
    connection.close()  # two processes must not share one
    beside = multiprocessing.get_context("fork").Process(target=second)
    beside.start()
    first()
    beside.join()
    if beside.exitcode:
        raise RuntimeError("the process that writes events failed")


class Unindexed:
    """While rows come in, PostgreSQL has no indexes but those of keys and constraints, and asks no foreign key."""

    def __enter__(self) -> None:
        self.made: list[str] = []
        if connection.vendor != "postgresql":
            return
        self.set("SET session_replication_role = replica")
        with connection.cursor() as cursor:
            for model in TABLES:
                cursor.execute(PLAIN, [model._meta.db_table])
                for name, definition in cursor.fetchall():
                    self.made.append(definition)
                    cursor.execute(f'DROP INDEX "{name}"')

    def __exit__(self, *_: object) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                for definition in self.made:
                    cursor.execute(definition)
            self.set("RESET session_replication_role")

    def set(self, what: str) -> None:
        """Applies to new sessions; reconnects this process."""
        with connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{connection.settings_dict["NAME"]}" {what}')
        connection.close()


BEGAN = time.monotonic()


def progress(what: str) -> None:
    """One line that is written over, on a terminal alone."""
    if sys.stderr.isatty():
        print(f"\r{time.monotonic() - BEGAN:6.0f} s: {what:60}", end="", file=sys.stderr, flush=True)


def insert(model: type[models.Model], rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows of plain values as fast as the database takes them; JSON comes as text."""
    columns = {field.attname: field.column for field in model._meta.concrete_fields}
    rows = iter(rows)
    row = next(rows, None)
    if row is None:
        return
    names = list(row)
    values = (tuple(each.values()) for each in chain(row, rows))
    WAYS[connection.vendor](model, [columns[name] for name in names], values)


def chain(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def copy(model: type[models.Model], columns: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    listed = ", ".join(f'"{column}"' for column in columns)
    statement = f"COPY {model._meta.db_table} ({listed}) FROM STDIN"
    with transaction.atomic(), connection.cursor() as cursor, cursor.copy(statement) as sink:
        for row in rows:
            sink.write_row(row)


def insert_many(model: type[models.Model], columns: list[str], rows: Iterator[tuple[Any, ...]]) -> None:
    listed, marks = ", ".join(f'"{column}"' for column in columns), ", ".join("?" * len(columns))
    as_written = (
        tuple(SQLITE[type(value)](value) if type(value) in SQLITE else value for value in row) for row in rows
    )
    with transaction.atomic(), connection.cursor() as cursor:
        statement = f"INSERT INTO {model._meta.db_table} ({listed}) VALUES ({marks})"  # noqa: S608
        cursor.connection.executemany(statement, as_written)


WAYS: dict[str, Callable[..., None]] = {"postgresql": copy, "sqlite": insert_many}
# As Django writes them there.
SQLITE: dict[type, Callable[[Any], Any]] = {
    dt.datetime: lambda at: str(at.astimezone(dt.UTC).replace(tzinfo=None)),
    uuid.UUID: lambda key: key.hex,
}


def settle() -> None:
    """What PostgreSQL does by itself in time: it counts, and goes on after the keys that were given."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for model in (*TABLES, *OF_SITE):
            table = model._meta.db_table
            cursor.execute(f"VACUUM ANALYZE {table}")
            cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")  # noqa: S608
