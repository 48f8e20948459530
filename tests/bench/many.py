"""Fills a database with the history of years: migrations by the 100,000, ten events of each, in a valid chain."""

import datetime as dt
import json
import random
import uuid
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from django.contrib.auth.models import Group, User
from django.db import connection, models, transaction
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.engine import plan as planning
from jobs.models import Approval, Decision, Job, Word, word
from tests.engine import sound
from volmig.record.models import SIGNED, ChainHead, Event, sign

GIB = 1 << 30
BATCH = 2000
ENDS = [("purged", "done", 55), ("done", "done", 20), ("undone", "failed", 8), ("undone", "cancelled", 5)]
ENDS += [("undone", "rejected", 2), ("undone", "blocked", 4), ("rolled_back", "rolled back", 5)]
KINDS = ["db", "web", "queue", "cache", "billing", "search", "mail", "archive", "ci", "metrics"]
PLACES = ["eu", "us", "ap", "lab", "edge"]
STORY = ["job.submit", "job.status", "job.status", "job.start", "step.done", "step.done", "step.done", "step.done"]
STORY += ["approval.ask", "approval.approve"]
STEPS = ["relay_lv", "convert", "compare", "stage"]


class Seed:
    """The same history each time, from `jobs` migrations with ten events each."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.chance, self.now = jobs, random.Random(2026), timezone.now()
        self.began = self.now - dt.timedelta(days=4 * 365)

    def sow(self) -> None:
        self.people = [self.person(f"operator-{n}", "operator") for n in range(30)]
        self.deciders = [self.person(f"approver-{n}", "approver") for n in range(10)]
        self.hosts = [self.hypervisor(f"cmp-{n:03}", n) for n in range(60)]
        self.first = (Job.objects.order_by("-pk").values_list("pk", flat=True).first() or 0) + 1
        rows = self.migrations()
        insert(Job, rows)
        insert(Word, self.words())
        insert(Approval, self.approvals())
        insert(Decision, self.decisions())
        insert(Event, self.events())
        ChainHead.objects.update_or_create(pk=1, defaults={"seq": self.seq, "hash": self.hash})
        settle()

    def person(self, name: str, role: str) -> User:
        user = User.objects.create(username=name, password="!")
        user.groups.set(Group.objects.filter(name=role))
        return user

    def hypervisor(self, name: str, number: int) -> Hypervisor:
        return Hypervisor.objects.create(name=name, address=f"192.0.2.{number}", host_key="ssh-ed25519 AAAA")

    def migrations(self) -> Iterator[dict[str, Any]]:
        self.told: list[SimpleNamespace] = []
        plan = json.dumps(planning.make(sound.MIGRATION, sound.FACTS).to_json())
        facts, weights = json.dumps(sound.FACTS.to_json()), [weight for *_, weight in ENDS]
        same = Job(uuid=uuid.UUID(int=0), relay_vg="vg_nova0", share_source="filer:/export/nova", disk="disk.local")
        for number in range(self.jobs):
            at = self.began + (self.now - self.began) * (number / self.jobs)
            status, outcome = self.chance.choices(ENDS, weights)[0][:2]
            if number > self.jobs - 40:
                status, outcome = self.chance.choice(["preparing", "awaiting_approval", "on_trial", "planned"]), ""
            source, relay, destination = self.chance.sample(self.hosts, 3)
            name = f"{self.chance.choice(KINDS)}-{self.chance.choice(PLACES)}-{self.chance.randrange(20000)}"
            old, new = (str(uuid.UUID(int=self.chance.getrandbits(128))) for _ in range(2))
            told = SimpleNamespace(
                pk=self.first + number, source_id=source.pk, relay_id=relay.pk, destination_id=destination.pk,
                requester=self.chance.choice(self.people), source_vg="vg_nova0", source_lv=f"{old}_disk.local",
                lv_uuid=f"lv-{uuid.UUID(int=self.chance.getrandbits(128))}"[:38], instance_id=new, instance_name=name,
                ticket=f"OPS-{1000 + number // 3}", at=at, by=self.chance.choice(self.deciders),
            )  # fmt: skip
            self.told.append(told)
            yield {field.attname: getattr(same, field.attname) for field in Job._meta.concrete_fields} | {
                "id": told.pk, "uuid": uuid.UUID(int=self.chance.getrandbits(128)), "requester_id": told.requester.pk,
                "last_editor_id": told.requester.pk, "source_size": self.chance.randrange(1, 4000) * GIB,
                "status": status, "outcome": outcome, "created_at": at,
                "ended_at": at + dt.timedelta(hours=self.chance.uniform(0.2, 60)) if outcome else None,
                "plan": plan, "facts": facts, "checks": "[]", "halt_data": "{}", "digest": "ab" * 32,
                "halt_reason": "Something was seen that is not foreseen." if not outcome and number % 9 == 0 else "",
                **{key: value for key, value in vars(told).items() if key not in ("pk", "at", "by", "requester")},
            }  # fmt: skip

    def words(self) -> Iterator[dict[str, Any]]:
        key = 0
        for told in self.told:
            for text in {word.plain(each) for each in (*word.of_job(told), word.person(told.by.username))}:
                key += 1
                yield {"id": key, "job_id": told.pk, "text": text}

    def approvals(self) -> Iterator[dict[str, Any]]:
        for told in self.told:
            yield {
                "id": told.pk, "job_id": told.pk, "kind": "swap", "version": 1, "digest": "cd" * 32,
                "bound": json.dumps({"job": str(told.pk)}), "requester_id": told.requester.pk,
                "last_editor_id": told.requester.pk, "created_at": told.at,
                "expires_at": told.at + dt.timedelta(days=1), "voided_at": None, "void_reason": "",
                "void_changes": "[]", "consumed_at": told.at + dt.timedelta(hours=1), "approvers": 1,
                "granted_by_id": None, "seals": "{}",
            }  # fmt: skip

    def decisions(self) -> Iterator[dict[str, Any]]:
        for told in self.told:
            yield {
                "id": told.pk, "approval_id": told.pk, "person_id": told.by.pk, "requester_id": told.requester.pk,
                "last_editor_id": told.requester.pk, "verdict": "approve", "reason": "as agreed", "at": told.at,
                "withdrawn_at": None,
            }  # fmt: skip

    def events(self) -> Iterator[dict[str, Any]]:
        head = ChainHead.objects.filter(pk=1).first() or ChainHead()
        self.seq, self.hash = head.seq, head.hash
        for told in self.told:
            for number, action in enumerate(STORY):
                self.seq += 1
                yield self.event(told, number, action)

    def event(self, told: SimpleNamespace, number: int, action: str) -> dict[str, Any]:
        who = told.by if action == "approval.approve" else None if action.startswith("step") else told.requester
        step = STEPS[number % 4] if action.startswith("step") else ""
        data = {"n": number, "evidence": {"seconds": 4.2}, "hypervisor": "cmp-001"}
        values = {
            "seq": self.seq, "at": told.at + dt.timedelta(seconds=number), "actor_id": who and who.pk,
            "actor_name": who.username if who else "", "role": "operator" if who else "", "session": "",
            "address": "192.0.2.9" if who else "", "action": action, "job": told.pk,
            "object": step or f"Migration {told.pk}: vg_nova0/{told.source_lv} to {told.instance_name} disk.local",
            "data": data,
        }  # fmt: skip
        before, self.hash = self.hash, sign(self.hash, [values[name] for name in SIGNED])
        return values | {"id": self.seq, "data": json.dumps(data), "prev_hash": before, "hash": self.hash}


def insert(model: type[models.Model], rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows of plain values as fast as the database takes them; JSON comes as text."""
    columns = {field.attname: field.column for field in model._meta.concrete_fields}
    plain: dict[type, Any] = SQLITE if connection.vendor == "sqlite" else {}
    names: list[str] = []
    batch: list[tuple[Any, ...]] = []
    for row in rows:
        names = names or list(row)
        batch.append(tuple(plain[type(value)](value) if type(value) in plain else value for value in row.values()))
        if len(batch) == BATCH:
            write(model, [columns[name] for name in names], batch)
            batch = []
    write(model, [columns[name] for name in names], batch)


# As Django writes them there.
SQLITE = {dt.datetime: lambda at: str(at.astimezone(dt.UTC).replace(tzinfo=None)), uuid.UUID: lambda key: key.hex}


def write(model: type[models.Model], columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    listed = ", ".join(f'"{column}"' for column in columns)
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.copy(f"COPY {model._meta.db_table} ({listed}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return
        marks = ", ".join("?" * len(columns))
        cursor.connection.executemany(f"INSERT INTO {model._meta.db_table} ({listed}) VALUES ({marks})", rows)  # noqa: S608


def settle() -> None:
    """What PostgreSQL does by itself in time: it counts, and goes on after the keys that were given."""
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for model in (Job, Word, Approval, Decision, Event):
            table = model._meta.db_table
            cursor.execute(f"VACUUM ANALYZE {table}")
            cursor.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}")  # noqa: S608
