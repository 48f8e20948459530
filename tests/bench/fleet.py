"""`make fleet`: sites of 10 to 500 hypervisors with as many running migrations, measured.

Every part is a process as operators start it: PostgreSQL, a web process, two machines of workers and two of watchers,
each with its own data directory. Behind real SSH servers are fakes that behave (tests/fleet/servers.py).
Migrations start evenly over the time after which the first of them has converted, so that all run at once while the
first go through their later steps, with a second person's approval and at last a confirmation.

`python -m tests.bench.fleet 10 50` prints the table of these sizes; `--one 10 FILE` writes the figures of one.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import websockets

from tests import postgresql
from tests.bench.latency import shown_by
from tests.family import end_all
from tests.rig import free_port

ROOT = Path(__file__).resolve().parents[2]
SIZES = (10, 50, 200, 500)
SPARE = 20  # hypervisors more than migrations
SHORT = {"seal": 3.0, "compare": 10.0, "stage": 5.0, "stage_verify": 5.0}  # seconds that these units run
SOCKETS = 40  # pages that are open, at most
DURABLE = ("fsync=on", "full_page_writes=on", "synchronous_commit=on", "max_connections=100")
MACHINES = {"wrk1": "workers", "wrk2": "workers", "wat1": "watcher", "wat2": "watcher", "web1": "web"}
EACH = ("web1", "workers", "watcher", "postgresql", "servers", "driver")
TICK = "jobs.worker.tick.run"
WORKERS = "12"  # of migrations, on each machine: docs/sizing.md says from how many migrations on


@dataclasses.dataclass(frozen=True)
class Course:
    """How long what takes, in seconds, for so many migrations."""

    ramp: float  # over which they start
    convert: float
    window: float  # during which all of them run, and the first go on

    @classmethod
    def of(cls, migrations: int) -> "Course":
        ramp = max(60.0, migrations * 1.0)
        return cls(ramp, ramp + 15, 90.0)


SAMPLE = Course(ramp=5.0, convert=3.0, window=0.0)  # of `make test`: nothing is timed there


def main() -> int:
    words = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
    if words[:1] == ["--one"]:
        figures = measure(int(words[1]), SAMPLE if "--sample" in words else Course.of(int(words[1])))
        Path(words[2]).write_text(json.dumps(figures))
        return 0
    sizes = [int(word) for word in words] or list(SIZES)
    found = [figures for size in sizes if (figures := in_a_process_of_its_own(size))]
    print(table(found))
    verdicts = [verdict for verdict in judged(found) if verdict]
    print("\n".join(f"{'held        ' if holds else 'did NOT hold'} | {said}" for holds, said in verdicts))
    return 0 if len(found) == len(sizes) and all(holds for holds, _ in verdicts) else 1


def in_a_process_of_its_own(size: int, *more: str) -> dict[str, Any] | None:
    """The figures; None when it failed. Whatever ends this one ends that one, which then leaves nothing running."""
    with tempfile.NamedTemporaryFile(prefix="volmig-fleet-", suffix=".json") as file:
        command = [sys.executable, "-m", "tests.bench.fleet", "--one", str(size), file.name, *more]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        return json.loads(Path(file.name).read_text()) if status == 0 else None


# One size


def measure(size: int, course: Course) -> dict[str, Any]:
    """Starts a site, runs so many migrations on it, and returns its figures."""
    folder = Path(tempfile.mkdtemp(prefix="volmig-fleet-"))
    with postgresql.cluster(*DURABLE) as address, Load(folder, address, size, course) as load:
        load.prepare()
        load.start()
        load.discover()
        load.migrate()
        return load.figures()


class Load:
    """A site under load. Everything of it is gone afterwards, unless FLEET_KEEP is set, with which its folder stays."""

    def __init__(self, folder: Path, database: str, size: int, course: Course) -> None:
        self.folder, self.database, self.size, self.course = folder, database, size, course
        self.web, self.port = free_port(), free_port()
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.numbers: list[int] = []
        self.pages = Pages(self)
        os.environ.update(self.environment("web1"))

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self.pages.over.set()
        end_all(self.parts.values(), 60)
        from django.db import connections

        connections.close_all()
        if os.environ.get("FLEET_KEEP"):
            say(f"logs are in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self, machine: str) -> dict[str, str]:
        ours = {"VOLMIG_DATA": str(self.folder / machine), "VOLMIG_DB": self.database}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VOLMIG_")}
        ours["VOLMIG_WORKERS"] = WORKERS
        caps = {"VOLMIG_ACTIONS_PER_PERSON": "100000", "VOLMIG_SSH_KEY": ""}
        return kept | ours | caps | {"DJANGO_SETTINGS_MODULE": "volmig.settings", "VOLMIG_LOCK_MARGIN": "1"}

    # Before anything is measured

    def prepare(self) -> None:
        """Tables, keys on all machines, people, SSH servers, and the hypervisors, registered and pinned."""
        for name in MACHINES:
            (self.folder / name).mkdir(mode=0o700)
        import django

        django.setup()
        from django.core.management import call_command
        from django.test import override_settings

        from tests import factories
        from volmig import data_dir, incarnation, keys

        call_command("migrate", verbosity=0)
        keys.ensure()
        incarnation.check()
        ada = factories.admin()
        factories.operator(), factories.approver()
        here = self.folder / "web1"
        for name in set(MACHINES) - {"web1"}:
            for key in data_dir.KEYS:
                shutil.copy(here / key, self.folder / name / key)
            with override_settings(DATA=self.folder / name):
                incarnation.join(ada)
        self.serve(data_dir.ssh_public_key(data_dir.ssh_key()))
        self.register()

    def serve(self, key: str) -> None:
        seconds = {"convert": self.course.convert, **SHORT} if self.course.window else {"convert": self.course.convert}
        asked = {"hypervisors": self.size + SPARE, "port": self.port, "key": key, "seconds": seconds}
        (self.folder / "servers.json").write_text(json.dumps(asked))
        self.begin("servers", [sys.executable, "-m", "tests.fleet.servers", str(self.folder)], "web1")
        self.until(lambda: (self.folder / "hosts.json").exists(), "the SSH servers listen")
        self.given = json.loads((self.folder / "hosts.json").read_text())

    def register(self) -> None:
        from django.utils import timezone

        from hosts.models import Hypervisor

        way = {"port": self.port, "user": "volmig", "pinned_at": timezone.now()}
        Hypervisor.objects.bulk_create(Hypervisor(name=name, **way, **at) for name, at in self.given["hosts"].items())
        for each in Hypervisor.objects.all():
            each.seal_key()

    def start(self) -> None:
        for name, part in MACHINES.items():
            more = ["--bind", f"127.0.0.1:{self.web}"] if part == "web" else []
            self.begin(name, [sys.executable, "manage.py", "up", part, *more], name)
        from volmig.health.models import Process

        wanted = Counter({"web": 1, "workers": 2, "background": 2, "watcher": 2})
        beating = lambda: Counter(Process.objects.values_list("part", flat=True))  # noqa: E731
        self.until(lambda: beating() >= wanted, "all parts have sent a heartbeat")

    def begin(self, name: str, command: list[str], machine: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.parts[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(machine), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def until(self, condition: Any, what: str, seconds: float = 300) -> float:
        began = time.monotonic()
        while not condition():
            for name, process in self.parts.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended:\n{self.log(name)[-3000:]}")
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"not after {seconds:.0f} s: {what}")
            time.sleep(0.2)
        return time.monotonic() - began

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def discover(self) -> None:
        """Until the workers have read all hypervisors for the first time."""
        from hosts.models import Hypervisor

        unseen = Hypervisor.objects.filter(seen_at=None)
        self.discovered = self.until(lambda: not unseen.exists(), "all hypervisors were read", 600)
        say(f"{self.size + SPARE} hypervisors were read in {self.discovered:.0f} s")

    # The load

    def migrate(self) -> None:
        """Starts the migrations, sees them all run together, and keeps watching while the first go on."""
        self.sampler = Sampler(self)
        course, began = self.course, time.monotonic()
        self.began, submitted = time.time(), 0
        while (now := time.monotonic() - began) < course.ramp + course.window or self.is_unfinished(now):
            while submitted < self.size and now >= submitted * course.ramp / self.size:
                self.numbers.append(self.submit(submitted))
                submitted += 1
            if submitted == self.size and not self.sampler.all_at:
                self.sampler.all_at = time.time()
                say(f"all {self.size} were started after {now:.0f} s")
                if course.window:
                    self.pages.start()
            self.decide()
            self.sampler.take()
            time.sleep(max(0.0, 1 - (time.monotonic() - began - now)))
        self.pages.end()

    def is_unfinished(self, now: float) -> bool:
        """Of a sample: it ends when every migration has."""
        from jobs.models import Job

        if self.course.window:
            return False
        if now > 1200:  # a busy machine takes long, and nothing is timed here
            raise RuntimeError(f"not at their end: {Counter(Job.objects.values_list('status', flat=True))}")
        return Job.objects.filter(halt_reason="").exclude(status__in=("done", "failed", "blocked")).exists()

    def submit(self, number: int) -> int:
        from hosts.models import Hypervisor, Instance, LogicalVolume
        from jobs.models import Job
        from tests.fleet import servers

        job = Job.objects.submit(
            self.people[0],
            source_volume=LogicalVolume.objects.get(uuid=servers.volume_uuid(number)),
            destination=Instance.objects.get(uuid=servers.instance(number)),
            disk="disk.local",
            relay=Hypervisor.objects.get(name=servers.name_of(number + 1)),
            relay_vg="vg_nova0",
            ticket="FLEET-1",
            start=True,
        )
        return int(job.pk)

    @property
    def people(self) -> tuple[Any, Any]:
        from django.contrib.auth.models import User

        return User.objects.get(username="olga"), User.objects.get(username="pavel")

    def decide(self) -> None:
        """What people do: approve what waits, and confirm what runs on its new disk."""
        from jobs.models import Approval, Job

        olga, pavel = self.people
        for approval in Approval.objects.open().filter(kind="swap", decisions=None):
            approval.approve(pavel, approval.digest, "Agreed with the tenant.")
        tidy = Job.objects.filter(status="on_trial", confirmed_at=None, runs__step="forget_destination")
        for job in tidy.filter(runs__result="done", runs__direction="do").distinct():
            if job.runs.filter(step="forget_destination", result="done").exists():
                job.confirm(olga)

    # What came of it

    def figures(self) -> dict[str, Any]:
        self.sampler.settle()
        return self.sampler.figures() | {
            "size": self.size,
            "discovered": round(self.discovered, 1),
            **self.gaps(),
            **self.pages.figures(),
            "faults": self.faults(),
        }

    def gaps(self) -> dict[str, Any]:
        """Seconds from the end of a unit until its migration's next step begins, but for what waits for a person."""
        rows = [json.loads(line) for line in (self.folder / "gaps.jsonl").read_text().splitlines()]
        seconds = [row["seconds"] for row in rows if row["after"] in ("convert", "seal", "compare", "stage")]
        return {"next_step": spread(seconds)}

    def faults(self) -> list[str]:
        """What should not be in any log."""
        said = []
        for name in self.parts:
            for line in self.log(name).splitlines():
                if re.search(r"Traceback|ended with status|did not stop|was given to another|ERROR", line):
                    said.append(f"{name}: {line[:300]}")
        return said[:20]


class Pages:
    """Browsers on the pages of some migrations: how old the progress is that they are shown."""

    def __init__(self, load: Load) -> None:
        self.load, self.over = load, threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.look()), name="pages", daemon=True)
        self.shown: dict[int, list[tuple[float, float]]] = defaultdict(list)  # migration: (reported, shown), as times
        self.closed: list[str] = []

    def start(self) -> None:
        self.cookie = cookie_of(self.load)
        self.thread.start()

    def end(self) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join(30)

    async def look(self) -> None:
        numbers = self.load.numbers
        step = max(1, len(numbers) // SOCKETS)
        await asyncio.gather(*(self.follow(number) for number in numbers[::step][:SOCKETS]))

    async def follow(self, number: int) -> None:
        address = f"ws://127.0.0.1:{self.load.web}/live/migrations/{number}/"
        headers = {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.load.web}"}
        try:
            async with websockets.connect(address, additional_headers=headers, open_timeout=60) as page:
                while not self.over.is_set():
                    with contextlib.suppress(TimeoutError):
                        message = str(await asyncio.wait_for(page.recv(), 1))
                        if shown := shown_by(message):  # not 0, which nobody reported
                            self.shown[number].append((self.load.given["began"] + shown / 1000, time.time()))
        except (OSError, websockets.WebSocketException, TimeoutError) as error:
            self.closed.append(f"{type(error).__name__}: {error}")

    def figures(self) -> dict[str, Any]:
        seconds = [each for rows in self.shown.values() for each in ages(rows)]
        return {"progress": spread(seconds), "pages": len(self.shown), "pages_closed": self.closed[:3]}


def ages(rows: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Seconds from each report, of which there are four in a second, to the first fragment that shows as much or more.

    The first fragment is left out: before it the page was not open.
    """
    for (before, _), (reported, shown) in itertools.pairwise(rows):
        at = reported
        while at > before:
            yield shown - at
            at -= 0.25


def cookie_of(load: Load) -> str:
    """That of a session of an operator, as logging in makes it."""
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.test import Client

    client = Client()
    client.force_login(get_user_model().objects.get(username="olga"))
    return (
        "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items()) or settings.SESSION_COOKIE_NAME
    )


class Sampler:
    """Looks every second: at the queue, at processes, at hypervisors' errors and at what the SSH servers counted."""

    def __init__(self, load: Load) -> None:
        self.load, self.all_at = load, 0.0
        self.rows: list[dict[str, Any]] = []
        self.errors: Counter[str] = Counter()
        self.loads: list[float] = []
        self.cpu_before, self.at_before = self.cpu(), time.time()
        self.cpu_at_all: dict[str, float] | None = None

    def take(self) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(QUEUE, [TICK])
            waiting, background, rows, depth = cursor.fetchone()
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            (connections,) = cursor.fetchone()
        self.rows.append(
            {"at": time.time(), "waiting": waiting, "background": background, "rows": rows, "depth": depth}
            | {"connections": connections, "streaming": self.streaming()}
        )
        self.loads.append(os.getloadavg()[0])
        if self.all_at and self.cpu_at_all is None:
            self.cpu_at_all, self.at_all = self.cpu(), time.time()
        self.look_for_errors()

    def look_for_errors(self) -> None:
        """Nothing is wrong with any hypervisor, so whatever is said of one is false."""
        from hosts.models import Hypervisor, Scan
        from jobs.models import Job

        for rows, column in (
            (Hypervisor.objects, "last_error"),
            (Hypervisor.objects, "reach_error"),
            (Hypervisor.objects, "quarantine_reason"),
            (Scan.objects, "error"),
            (Job.objects, "halt_reason"),
            (Job.objects.filter(wait_kind="fault"), "waiting_for"),
            (Job.objects.exclude(status="done"), "outcome_reason"),
        ):
            for pk, said in rows.exclude(**{column: ""}).values_list("pk", column):
                self.errors[f"{rows.model.__name__} {pk}: {said}"[:400]] += 1

    def streaming(self) -> int:
        return int(self.last_second().get("watches", 0))

    def last_second(self) -> dict[str, Any]:
        lines = (self.load.folder / "seconds.jsonl").read_bytes().splitlines()
        return json.loads(lines[-1]) if lines else {}

    def cpu(self) -> dict[str, float]:
        """Seconds of processor that each part has used, with all processes below it."""
        tree, used = processes()
        roots = {name: process.pid for name, process in self.load.parts.items()}
        roots |= {"postgresql": postmaster(self.load.database), "driver": os.getpid()}
        found = {
            name: sum(used.get(pid, 0.0) for pid in below(tree, pid, set(roots.values())))
            for name, pid in roots.items()
        }
        found["workers"], found["watcher"] = (
            sum(found[name] for name, part in MACHINES.items() if part == each) for each in ("workers", "watcher")
        )
        return found

    def settle(self) -> None:
        self.cpu_after, self.at_after = self.cpu(), time.time()

    def figures(self) -> dict[str, Any]:
        from jobs.models import Job

        waiting = [row["waiting"] for row in self.rows]
        began, seconds = (self.cpu_at_all, self.at_after - self.at_all) if self.cpu_at_all else (
            self.cpu_before, self.at_after - self.at_before
        )  # fmt: skip
        cores = {name: round((self.cpu_after[name] - began[name]) / seconds, 3) for name in EACH}
        streaming = [row["streaming"] for row in self.rows if row["at"] >= (self.all_at or 0)]
        return {
            "waiting": spread(waiting),
            "background": spread([row["background"] for row in self.rows]),
            "rows": max(row["rows"] for row in self.rows),
            "depth": max(row["depth"] for row in self.rows),
            "connections": max(row["connections"] for row in self.rows),
            "streaming": round(statistics.mean(streaming), 1) if streaming else 0,
            "cores": cores,
            "watcher_ms": round(1000 * cores["watcher"] / max(1.0, statistics.mean(streaming)), 1) if streaming else 0,
            "errors": [f"{said} ({count} s)" for said, count in self.errors.most_common(20)],
            "load": spread(self.loads),
            "statuses": dict(Counter(Job.objects.values_list("status", flat=True))),
            **self.counted(),
        }

    def counted(self) -> dict[str, Any]:
        lines = [json.loads(line) for line in (self.load.folder / "seconds.jsonl").read_text().splitlines()]
        within = [line for line in lines if line["at"] >= self.at_before]
        logins = [after.get("logins", 0) - before.get("logins", 0) for before, after in itertools.pairwise(within)]
        last = lines[-1]
        return {
            "logins": spread(logins),
            "logins_in_all": last.get("logins", 0),
            "refused_logins": last.get("refused logins", 0),
            "open": max(line.get("open", 0) for line in lines),
            "calls": {name: count for name, count in last.items() if name.startswith("calls of")},
            "refusals": {name: count for name, count in last.items() if name.split()[0] in ("refused", "failed", "lost")
                         and name != "refused logins"},
        }  # fmt: skip


# The age of what waits, also of what a cluster took and no worker has begun.
QUEUE = """
SELECT coalesce(extract(epoch FROM max(now() - queued_at) FILTER (WHERE queue = 'migrations' AND begun_at IS NULL)), 0),
       coalesce(extract(epoch FROM max(now() - queued_at) FILTER (WHERE queue = 'background' AND begun_at IS NULL)), 0),
       coalesce((SELECT max(n) FROM (SELECT count(*) AS n FROM volmig_queuedtask WHERE done_at IS NULL AND name = %s
                 GROUP BY number) AS each), 0),
       count(*)
FROM volmig_queuedtask WHERE done_at IS NULL
"""


def processes() -> tuple[dict[int, int], dict[int, float]]:
    """The parent of every process, and the seconds of processor that it and its children that ended have used."""
    parents, used, tick = {}, {}, os.sysconf("SC_CLK_TCK")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents[int(entry)] = int(words[1])
                used[int(entry)] = sum(map(int, words[11:15])) / tick
    return parents, used


def below(parents: dict[int, int], root: int, others: Iterable[int]) -> list[int]:
    """A process and all below it, without the trees of others."""
    found, stop = [root], set(others) - {root}
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in stop]
    return found


def postmaster(database: str) -> int:
    return int(Path(database.rpartition("host=")[2], "data/postmaster.pid").read_text().split()[0])


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(map(float, values))
    at = lambda share: round(ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)], 2)  # noqa: E731
    return {"count": len(ordered), "median": at(0.5), "most": at(0.95), "max": at(1.0)}


def say(what: str) -> None:
    print(f"fleet | {what}", file=sys.stderr, flush=True)


# The table


def shown(figure: dict[str, float], *names: str) -> str:
    return " / ".join(f"{figure[name]:.2f}" for name in names) if figure else "none"


ROWS = {
    "hypervisors": lambda each: str(each["size"] + SPARE),
    "oldest waiting tick, 95 % / max, s": lambda each: shown(each["waiting"], "most", "max"),
    "oldest waiting background task, 95 % / max, s": lambda each: shown(each["background"], "most", "max"),
    "queue rows per migration, max": lambda each: str(each["rows"]),
    "queue rows in all, max": lambda each: str(each["depth"]),
    "end of a step to the next, median / 95 %, s": lambda each: shown(each["next_step"], "median", "most"),
    "progress on the page, median / 95 %, s": lambda each: shown(each["progress"], "median", "most"),
    "hypervisors streaming, mean": lambda each: str(each["streaming"]),
    "watchers, ms of CPU per host and second": lambda each: str(each["watcher_ms"]),
    "watchers, cores": lambda each: str(each["cores"]["watcher"]),
    "workers, cores": lambda each: str(each["cores"]["workers"]),
    "web, cores": lambda each: str(each["cores"]["web1"]),
    "PostgreSQL, cores": lambda each: str(each["cores"]["postgresql"]),
    "SSH servers and fakes, cores": lambda each: str(each["cores"]["servers"]),
    "browsers and people of the bench, cores": lambda each: str(each["cores"]["driver"]),
    "logins a second, median / max": lambda each: shown(each["logins"], "median", "max"),
    "refused logins": lambda each: str(each["refused_logins"]),
    "SSH connections open, max": lambda each: str(each["open"]),
    "connections of PostgreSQL, max": lambda each: str(each["connections"]),
    "first discovery of all, s": lambda each: str(each["discovered"]),
    "false errors": lambda each: str(len(each["errors"])),
    "lines in logs that should not be there": lambda each: str(len(each["faults"])),
    "load average, median": lambda each: shown(each["load"], "median"),
}


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| migrations running at once | " + " | ".join(str(each["size"]) for each in found) + " |"]
    lines.append("|---" * (len(found) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(row(each) for each in found) + " |" for name, row in ROWS.items()]
    for each in found:
        lines += [f"{each['size']}: {said}" for said in (*each["errors"], *each["faults"], *each["pages_closed"])]
        lines.append(f"{each['size']}: statuses {each['statuses']}, refusals {each['refusals']}, {each['calls']}")
    return "\n".join(lines)


def judged(found: list[dict[str, Any]]) -> Iterator[tuple[bool, str]]:
    """Each line of what it must show: whether it held, and the figure."""
    at = {each["size"]: each for each in found}
    for size, seconds in ((200, 5), (500, 20)):
        if size in at:
            oldest = at[size]["waiting"]["max"]
            yield oldest < seconds, f"oldest waiting task under {seconds} s at {size}: {oldest:.1f} s"
    for size, each in at.items():
        yield each["rows"] <= 2, f"at most two queue rows per migration at {size}: {each['rows']}"
        no_error = not each["errors"] and not each["refused_logins"]
        yield no_error, f"no false error on any hypervisor at {size}: {len(each['errors'])}"
        # Of each of the workers' and watchers' processes no more than it paces.
        yield each["logins"]["max"] <= LOGINS, f"bounded logins at {size}: {each['logins']['max']:.0f} in a second"
    if 200 in at:
        gap, page = at[200]["next_step"], at[200]["progress"]
        said = f"end of a step to the next, median under 3 s at 200: {shown(gap, 'median')} s"
        yield bool(gap) and gap["median"] < 3, said
        said = f"progress on the page, median under 1.5 s and 95 % under 3 s at 200: {shown(page, 'median', 'most')} s"
        yield bool(page) and page["median"] < 1.5 and page["most"] < 3, said
    shares = [each["watcher_ms"] for each in found]
    if len(shares) > 1:
        falls = all(after <= before * 1.1 for before, after in itertools.pairwise(shares))
        yield falls, f"watcher CPU per host flat or falling: {shares} ms a second"


LOGINS = 100  # a second, over all processes; twelve of them pace themselves to 20, and rarely do so at once

if __name__ == "__main__":
    sys.exit(main())
