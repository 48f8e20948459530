"""What live pages and pages together cost: sockets, pages, connections of PostgreSQL and memory, over minutes.

`python -m tests.bench.sockets [SECONDS]` opens 500 websockets and asks for 20 pages a second of two web processes, with
200 migrations whose progress is written four times a second. SOCKETS, RATE, JOBS and PROCESSES in the environment
change the numbers. The machine should be idle otherwise: clients, writer and PostgreSQL run on it, too.
"""

import asyncio
import contextlib
import http.cookiejar
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import websockets

from tests import postgresql
from tests.family import end_all
from tests.rig import free_port

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"
PEOPLE = {"olga": ["operator"], "pavel": ["approver", "viewer"], "ada": ["auditor", "operator", "administrator"]}
WRITES = 4  # of progress in one second, as the watcher writes it
TURNS = 2  # migrations in a second of which a step ends
PAGES = {"overview": 25, "migration": 35, "history": 10, "hosts": 4, "inbox": 15, "audit": 6, "healthz": 5}
BESIDE = 1 + 10  # connections of a web process beside those of requests: notifications, and volmig.database's
REQUESTS = 8  # VOLMIG_WEB_REQUESTS, where it is not set
MOST = 1.0  # seconds, for 95 % of pages
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'volmig' AND application_name <> 'bench'"
GROWTH = 1.05  # of memory, from the second minute to the last


@dataclass
class Seen:
    """What clients saw: seconds of pages by kind, answers by status, and of sockets how late progress came."""

    pages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: Counter[Any] = field(default_factory=Counter)
    opened: int = 0
    open_now: int = 0
    closed: Counter[Any] = field(default_factory=Counter)
    messages: int = 0
    late: list[float] = field(default_factory=list)
    heard: set[int] = field(default_factory=set)  # sockets of migrations that saw progress
    followed: int = 0  # sockets of migrations
    connections: list[int] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds since the start, KiB of all web processes
    cpu: float = 0.0  # seconds of all web processes
    per_process: list[int] = field(default_factory=list)  # connections of clients that each web process has

    @property
    def seconds(self) -> list[float]:
        return [each for times in self.pages.values() for each in times]


@dataclass(frozen=True)
class Site:
    """Web processes over a PostgreSQL of their own. `cookies` are of people who logged in, by name."""

    base: str
    address: str
    web: int
    began: float
    numbers: list[int]
    cookies: dict[str, str]


@contextlib.contextmanager
def site(jobs: int, processes: int) -> Iterator[Site]:
    """Starts all that it takes, PostgreSQL with its usual 100 connections included, and ends it again."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(postgresql.cluster("max_connections=100"))
        data = stack.enter_context(tempfile.TemporaryDirectory(prefix="volmig-bench-"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VOLMIG_")}
        environment |= {"DJANGO_SETTINGS_MODULE": "volmig.settings", "VOLMIG_DATA": data, "VOLMIG_DB": address}
        environment |= {"VOLMIG_WEB_PROCESSES": str(processes), "VOLMIG_LOG_LEVEL": "WARNING"}
        environment["BEGAN"] = str(began := time.time())
        own = environment | {"VOLMIG_DB": f"{address}&application_name=bench"}
        run = [sys.executable, "-m", "tests.bench.sockets"]
        printed = subprocess.run(
            [*run, "seed", str(jobs)], cwd=ROOT, env=own, check=True, stdout=subprocess.PIPE, text=True
        )
        port = free_port()
        up = [sys.executable, "manage.py", "up", "web", "--bind", f"127.0.0.1:{port}"]
        web, base = stack.enter_context(running(up, environment)), f"http://127.0.0.1:{port}"
        answering(base, web)
        cookies = {name: sign_in(base, name) for name in PEOPLE}
        stack.enter_context(running([*run, "write"], own))
        yield Site(base, address, web.pid, began, [int(each) for each in printed.stdout.split()], cookies)


def measure(seconds: float, sockets: int, rate: float, jobs: int, processes: int) -> Seen:
    """All of it at once for so many seconds."""
    seen = Seen()
    with site(jobs, processes) as at:
        sizes = Sizes(seconds, sockets, rate, at.began)
        asyncio.run(load(seen, at.base, at.cookies, at.numbers, sizes, at.address, at.web))
    return seen


@dataclass(frozen=True)
class Sizes:
    seconds: float
    sockets: int
    rate: float
    began: float  # by the clock; progress is milliseconds since then


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        end_all([process], 60)


def answering(base: str, web: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 300  # a busy machine is slow
    while time.monotonic() < end and web.poll() is None:
        try:
            urllib.request.urlopen(f"{base}/healthz/ready", timeout=10)  # noqa: S310 - our own address
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the web processes do not answer")


def sign_in(base: str, name: str) -> str:
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{base}/login/", timeout=60).read()
    token = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
    fields = {"username": name, "password": PASSWORD, "csrfmiddlewaretoken": token}
    browser.open(f"{base}/login/", urllib.parse.urlencode(fields).encode(), timeout=60).read()
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)


async def load(
    seen: Seen, base: str, cookies: dict[str, str], numbers: list[int], sizes: Sizes, address: str, web: int
) -> None:
    """All clients at once, and who watches the server meanwhile."""
    until = time.monotonic() + sizes.seconds
    chance, people = random.Random(2026), list(cookies.values())
    watched = [chance.choice(numbers) if each % 2 else 0 for each in range(sizes.sockets)]
    seen.followed = sum(map(bool, watched))
    pages = [page(seen, base, people[n % 3], number, n, until, sizes) for n, number in enumerate(watched)]
    await asyncio.gather(
        *pages, ask(seen, base, cookies["ada"], numbers, until, sizes), sample(seen, until, address, web)
    )


async def page(seen: Seen, base: str, cookie: str, number: int, which: int, until: float, sizes: Sizes) -> None:
    """One open page, as a browser has it: of one migration, or of the overview."""
    address = base.replace("http", "ws", 1) + "/live/migrations/" + (f"{number}/" if number else "")
    await asyncio.sleep(which / sizes.sockets * min(10.0, sizes.seconds / 4))
    headers, newest = {"Cookie": cookie, "Origin": base}, 0
    try:
        async with websockets.connect(address, additional_headers=headers, open_timeout=60, compression=None) as socket:
            seen.opened += 1
            seen.open_now += 1
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    async for message in socket:
                        seen.messages += 1
                        bar = re.search(r'<progress max="\d+" value="(\d+)"', str(message))
                        # What is ahead of the clock was there before anything moved.
                        if bar and newest < int(bar[1]) < (time.time() - sizes.began) * 1000:
                            newest = int(bar[1])
                            seen.heard.add(which)
                            seen.late.append(time.time() - sizes.began - newest / 1000)
            except TimeoutError:
                return
            finally:
                seen.open_now -= 1
        seen.closed[socket.close_code] += 1
    except (OSError, websockets.WebSocketException, TimeoutError) as error:
        seen.closed[type(error).__name__] += 1


async def ask(seen: Seen, base: str, cookie: str, numbers: list[int], until: float, sizes: Sizes) -> None:
    """Pages at a fixed rate, whatever becomes of those before; their time counts from when they were due."""
    chance, tasks, sent, began = random.Random(7), set(), 0, time.monotonic()
    while time.monotonic() < until - 1:
        kind = chance.choices(list(PAGES), list(PAGES.values()))[0]
        where = {"overview": "/", "migration": f"/migrations/{chance.choice(numbers)}/", "history": "/migrations/"}
        where |= {"hosts": "/hosts/", "inbox": "/approvals/count", "audit": "/audit/", "healthz": "/healthz/live"}
        task = asyncio.create_task(one(seen, base, cookie, kind, where[kind], began + sent / sizes.rate))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        sent += 1
        await asyncio.sleep(max(0.0, began + sent / sizes.rate - time.monotonic()))
    await asyncio.gather(*tasks)


async def one(seen: Seen, base: str, cookie: str, kind: str, path: str, due: float) -> None:
    try:
        async with asyncio.timeout(60):
            answer = await get(base, path, cookie)
        seen.answers[answer.split(b" ", 2)[1].decode()] += 1
    except (OSError, TimeoutError, IndexError) as error:
        seen.answers[type(error).__name__] += 1
    seen.pages[kind].append(time.monotonic() - due)


async def get(base: str, path: str, cookie: str) -> bytes:
    """A whole answer, over a new connection."""
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}", f"Cookie: {cookie}", "Connection: close", "", ""]
        writer.write("\r\n".join(lines).encode())
        return await reader.read()
    finally:
        writer.close()


async def sample(seen: Seen, until: float, address: str, web: int) -> None:
    """Every second: connections of the web processes, by PostgreSQL's own word, and their memory."""
    began = time.monotonic()
    own = address.replace("postgres://", "postgresql://") + "&application_name=bench"
    async with await psycopg.AsyncConnection.connect(own, autocommit=True) as database:
        worked = cpu(servers(web))
        while time.monotonic() < until - 1:
            row = await (await database.execute(CONNECTIONS)).fetchone()
            seen.connections.append(int(row[0]))
            processes = servers(web)
            seen.memory.append((time.monotonic() - began, sum(map(memory, processes))))
            await asyncio.sleep(1)
    seen.cpu = cpu(servers(web)) - worked
    seen.per_process = [clients(pid) for pid in servers(web)]


def servers(web: int) -> list[int]:
    """The processes that serve pages, under the one that started them."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    return [int(pid) for pid, parent, args in rows if int(parent) == web and "uvicorn" in args]


def memory(pid: int) -> int:
    """KiB of resident memory; 0 for one that has just ended."""
    try:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):
        return 0


def cpu(pids: list[int]) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def clients(pid: int) -> int:
    """How many sockets a process has open."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(each))
    return sum(link.startswith("socket:") for link in links)


# What is measured runs on rows that these two processes write


def seed(jobs: int) -> None:
    """People, and migrations that are under way; prints their numbers."""
    import django

    django.setup()
    from django.contrib.auth.models import Group, User
    from django.core.management import call_command

    from tests.pages import scenes
    from volmig import data_dir

    for name in (*data_dir.OWNERS, data_dir.AUDIT_KEY):
        data_dir.make(name)
    call_command("migrate", verbosity=0)
    for name, roles in PEOPLE.items():
        User.objects.create_user(name, password=PASSWORD).groups.set(Group.objects.filter(name__in=roles))
    requester = User.objects.get(username="olga")
    scenes.hypervisors()
    statuses = ["preparing"] * 17 + ["awaiting_approval", "awaiting_approval", "on_trial"]
    for number in range(jobs):
        made = scenes.job(requester, statuses[number % 20], instance_name=f"db-{number}")
        if made.status == "awaiting_approval":
            scenes.approval(made)
        if made.status == "preparing":
            print(made.pk)


def write() -> None:
    """Progress of all migrations as the watcher writes it, and steps that end and begin, until it is ended."""
    import django

    django.setup()
    from django.db.models import F
    from django.utils import timezone

    from jobs.models import Job, StepRun

    began, numbers, turned = float(os.environ["BEGAN"]), [], 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        at = time.monotonic()
        done = int((time.time() - began) * 1000)
        now = timezone.now()
        running = StepRun.objects.filter(result="running", bytes_total__gt=0)
        running.update(bytes_done=done, bytes_read=done, bytes_written=done, progress_at=now, rate=90 << 20)
        if turned < (time.time() - began) * TURNS:
            turned += 1
            numbers = numbers or list(Job.objects.filter(status="preparing").values_list("pk", flat=True))
            Job.objects.filter(pk=numbers[turned % len(numbers)]).update(version=F("version") + 1)
        time.sleep(max(0.0, 1 / WRITES - (time.monotonic() - at)))


# The figures


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def budget(processes: int) -> int:
    return processes * (REQUESTS + BESIDE)


def minutes(seen: Seen) -> list[int]:
    """Memory of the web processes in MiB, the median of each minute."""
    found: dict[int, list[int]] = defaultdict(list)
    for at, size in seen.memory:
        found[int(at // 60)].append(size)
    return [round(statistics.median(sizes) / 1024) for _, sizes in sorted(found.items())]


def figures(seen: Seen, processes: int) -> Iterator[str]:
    times, sizes = seen.seconds, minutes(seen)
    shown = f"median {quantile(times, 0.5):.2f} s, 95 % {quantile(times, 0.95):.2f} s, most {max(times):.2f} s"
    yield f"pages: {len(times)}, {shown}"
    yield f"  answers: {dict(seen.answers)}"
    for kind, each in sorted(seen.pages.items()):
        yield f"  {kind}: {len(each)}, median {quantile(each, 0.5):.2f} s, 95 % {quantile(each, 0.95):.2f} s"
    yield f"sockets: {seen.opened} opened, closed early {dict(seen.closed)}, {seen.messages} messages"
    yield f"  descriptors of sockets in each process: {seen.per_process}"
    yield (
        f"progress, from its row to a socket: {len(seen.late)}, median {quantile(seen.late, 0.5):.2f} s, "
        f"95 % {quantile(seen.late, 0.95):.2f} s; {len(seen.heard)} of {seen.followed} sockets of migrations saw some"
    )
    yield f"connections of PostgreSQL: {max(seen.connections)} at most, the budget is {budget(processes)}"
    yield f"memory of the web processes in MiB, by minute: {sizes}"
    yield f"processor time of the web processes: {seen.cpu / seen.memory[-1][0]:.2f} cores"


def faults(seen: Seen, processes: int) -> list[str]:
    """What is worse than the issue allows."""
    sizes = minutes(seen)
    found = [f"95 % of pages take more than {MOST} s"] if quantile(seen.seconds, 0.95) > MOST else []
    found += ["pages failed"] if set(seen.answers) - {"200"} else []
    found += ["sockets were closed"] if seen.closed else []
    found += ["more connections than the budget"] if max(seen.connections) > budget(processes) else []
    found += ["memory grows"] if len(sizes) > 2 and sizes[-1] > sizes[1] * GROWTH else []
    return found


def main() -> bool:
    """Prints the figures; whether all of them are good enough."""
    if postgresql.programs() is None:
        print("\nNo PostgreSQL on this machine (apt-get install postgresql): live pages are not measured.")
        return True
    seconds = float(sys.argv[1]) if sys.argv[1:] else float(os.environ.get("SECONDS", "300"))
    sockets, rate = int(os.environ.get("SOCKETS", "500")), float(os.environ.get("RATE", "20"))
    jobs, processes = int(os.environ.get("JOBS", "200")), int(os.environ.get("PROCESSES", "2"))
    print(
        f"\n{sockets} websockets, {rate:g} pages a second, {jobs} migrations, {processes} web processes, {seconds:g} s"
    )
    seen = measure(seconds, sockets, rate, jobs, processes)
    for line in figures(seen, processes):
        print(f"  {line}", flush=True)
    wrong = faults(seen, processes)
    print(f"  too bad: {'; '.join(wrong)}" if wrong else "  as it should be")
    return not wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["seed"]:
        seed(int(sys.argv[2]))
    elif sys.argv[1:2] == ["write"]:
        write()
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
        sys.exit(0 if main() else 1)
