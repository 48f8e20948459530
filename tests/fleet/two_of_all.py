"""A whole volmig with two of everything over one PostgreSQL and a site behind SSH: what the fault matrix is run on.

Six machines: web1, web2, wrk1, wrk2, wat1, wat2. People are programs at the API of either web machine, who try again as
people would, and one who reloads the overview.
"""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests import postgresql
from tests.family import family
from tests.fleet import ssh_site
from tests.fleet.parts import PASSWORD, Machine, keys_in, logged_in, rows, until
from tests.fleet.ssh_site import HOSTS, SshSite
from tests.rig import free_port
from volmig.client import TOKEN, Stop
from volmig.client import Server as Api

PARTS = {"web1": "web", "web2": "web", "wrk1": "workers", "wrk2": "workers", "wat1": "watcher", "wat2": "watcher"}
SMALL = "48m"
ENVIRONMENT = {
    "DJANGO_SETTINGS_MODULE": "volmig.settings",
    "VOLMIG_ADMIN_USER": "ada",
    "VOLMIG_ADMIN_PASSWORD": PASSWORD,
    "VOLMIG_WORKERS": "2",
    "VOLMIG_BACKGROUND_WORKERS": "1",
    "VOLMIG_LEASE_SECONDS": "10",
    "VOLMIG_LOCK_MARGIN": "1",
    "VOLMIG_CONVERSIONS_PER_SOURCE": "100",
    "VOLMIG_CONVERSIONS_PER_RELAY": "100",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# Registers and pins the hypervisors, with what discovery would find there, and lets the data directories in; prints the
# tokens of operator and approver.
SEED = """
import json, sys
from pathlib import Path
import django
django.setup()
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from hosts.models import Hypervisor
from tests import factories
from volmig import incarnation
from volmig.accounts import people
given = json.load(sys.stdin)
now, hosts = timezone.now(), {}
for name, (address, data, role) in given["hosts"].items():
    pinned = {"address": address, "port": given["port"], "user": "volmig", "host_key": given["host_key"]}
    hosts[name] = factories.a_hypervisor(name, *data, **pinned, pinned_at=now, seen_at=now, tried_at=now)
    if role != "destination":
        factories.a_volume_group(hosts[name], free=8 << 40)
    if role != "source":
        factories.mounts(hosts[name])
with transaction.atomic():
    for source, volume, uuid, destination, instance in given["migrations"]:
        factories.a_volume(hosts[source].volume_groups.get(), volume, uuid=uuid)
        factories.an_instance(hosts[destination], instance)
olga, pavel = factories.operator(), factories.approver()
tokens = [people.make_token(olga, "test", ["submit"], 1), people.make_token(pavel, "test", ["approve"], 1)]
for each in given["directories"]:  # as manage.py adopt --join does on each machine
    settings.DATA = Path(each)
    incarnation.join()
print(json.dumps(tokens))
"""
APPROVES = """
import django
django.setup()
from django.contrib.auth.models import User
from volmig.accounts import people
print(people.make_token(User.objects.get(username="pavel"), "test", ["approve"], 1))
"""
ITEM = re.compile(
    r'<div class="run-row attention-row.*?<strong>(?P<subject>.*?)</strong>.*?<span class="status-sentence">'
    r"(?P<sentence>.*?)</span>(?P<rest>.*?)</footer>",
    re.S,
)


class Volmig:
    """Use it with `with`. `said` is what the overview has listed since the test began, each once."""

    def __init__(self, root: Path, migrations: int) -> None:
        self.root, self.migrations, self.next = root, migrations, 0
        self.machines: dict[str, Machine] = {}
        self.ports = {name: free_port() for name, part in PARTS.items() if part == "web"}
        self.over = threading.Event()
        self.said: dict[str, float] = {}
        self.probed: dict[str, set[str]] = {name: set() for name in self.ports}
        self.answers: dict[str, set[int]] = {name: set() for name in self.ports}  # statuses of the overview

    def __enter__(self) -> "Volmig":
        with ExitStack() as stack:
            self.postgresql = stack.enter_context(postgresql.server("max_connections=100"))
            self.site = stack.enter_context(SshSite(self.migrations))
            stack.callback(self.stop)
            self.prepare(stack)
            for name in PARTS:
                self.up(name)
            until(lambda: len({each[:2] for each in self.parts()}) == 8, 600, self.logs)
            self.browser = until(lambda: logged_in(self.ports["web1"]))
            for each in (self.approve, self.confirm, self.reload):
                threading.Thread(target=each, daemon=True).start()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def stop(self) -> None:
        self.over.set()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda machine: machine.stop(), self.machines.values()))

    # Setting up

    def prepare(self, stack: ExitStack) -> None:
        """Tables, an administrator, the same keys everywhere, data directories that belong to the database."""
        superuser = self.postgresql.address
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("CREATE ROLE site LOGIN")  # who is not a superuser gets none of the slots kept for those
            connection.execute("ALTER DATABASE volmig OWNER TO site")
            connection.execute("GRANT ALL ON SCHEMA public TO site")
        self.address = superuser.replace("volmig@", "site@")
        first = self.machine("web1")
        self.small = self.machine("wrk1").data  # a disk that a test can fill
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", self.small], check=True)
        stack.callback(subprocess.run, ["umount", "--lazy", self.small], check=True)
        for name, key in keys_in(Path(environment_data())).items():  # whose seals the fake hypervisors know
            (first.data / name).write_bytes(key)
            (first.data / name).chmod(0o600)
        first.manage("prepare")
        for name in PARTS:
            if name != "web1":
                self.copy_keys(self.machines.get(name) or self.machine(name))
        given = {
            "port": self.site.port, "host_key": self.site.host_key, "hosts": HOSTS, "migrations": self.known(),
            "directories": [str(self.machines[name].data) for name in PARTS],
        }  # fmt: skip
        tokens = json.loads(first.run("-c", SEED, typed=json.dumps(given)).splitlines()[-1])
        self.tokens = dict(zip(("operator", "approver"), tokens, strict=True))

    def known(self) -> list[tuple[str, str, str, str, str]]:
        found = []
        for number in range(self.migrations):
            at = ssh_site.roles(number)
            volume = ssh_site.volume(number), ssh_site.volume_uuid(number)
            found.append((at["source"], *volume, at["destination"], ssh_site.instance(number)))
        return found

    def machine(self, name: str, folder: str = "", **more: Any) -> Machine:
        self.machines[folder or name] = machine = Machine(
            self.root,
            name,
            self.address,
            folder,
            **ENVIRONMENT,
            **more,
        )
        return machine

    def copy_keys(self, machine: Machine) -> None:
        for name in keys_in(self.machines["web1"].data):
            shutil.copy(self.machines["web1"].data / name, machine.data / name)

    def let_in(self, machine: Machine) -> None:
        machine.manage("adopt", "--join", "--as", "ada", typed="join\n")

    def up(self, name: str, **more: str) -> "subprocess.Popen[bytes]":
        words = ["--bind", f"127.0.0.1:{self.ports[name]}"] if name in self.ports else []
        return self.machines[name].up(PARTS.get(name, "watcher"), *words, **more)

    def logs(self) -> str:
        return "\n".join(
            f"== {name}\n{path.read_text()[-3000:]}"
            for name, machine in self.machines.items()
            for path in machine.data.parent.glob(f"{machine.data.name}-*.log")
        )

    # What people do

    def order(self, count: int) -> list[int]:
        """Asks for so many migrations; returns their numbers in the test."""
        numbers = list(range(self.next, self.next + count))
        self.next += count
        for number in numbers:
            until(lambda number=number: self.submit(number), 60)
        return numbers

    def submit(self, number: int) -> bool:
        at = ssh_site.roles(number)
        wanted = {
            "source": at["source"], "volume": f"vg_nova0/{ssh_site.volume(number)}", "disk": "disk.local",
            "instance": ssh_site.instance(number), "destination": at["destination"],
            "relay": at["relay"], "relay_vg": "vg_nova0", "ticket": f"OPS-{number}", "start": True,
        }  # fmt: skip
        for port in self.ports.values():
            with suppress(Stop):
                self.api(port, "operator").post("/jobs", wanted, Idempotency_Key=f"test-{number}")
                return True
        return False

    def api(self, port: int, who: str) -> Api:
        return Api(f"http://127.0.0.1:{port}", self.tokens[who])

    def approve(self) -> None:
        """A token that approves is valid for a quarter of an hour, and all of this takes longer."""
        while not self.over.wait(1):
            for port in self.ports.values():
                with suppress(psycopg.Error, AssertionError):  # the database is unavailable
                    try:
                        self.approve_all(self.api(port, "approver"))
                        break
                    except Stop as stop:
                        if stop.code == TOKEN:
                            self.tokens["approver"] = self.machines["web1"].run("-c", APPROVES).splitlines()[-1]

    def approve_all(self, api: Api) -> None:
        for asked in api.get("/approvals")["items"]:
            about = api.get(f"/approvals/{asked['id']}")
            yes = {"digest": about["digest"], "reason": "As agreed.", "instance": self.tail(about)}
            api.post(f"/jobs/{about['job']}/approve", yes)

    def tail(self, about: dict[str, Any]) -> str:
        return str(rows(self.address, "SELECT instance_id FROM jobs_job WHERE id = %s", about["job"])[0][0])[-6:]

    def confirm(self) -> None:
        query = "SELECT id FROM jobs_job WHERE status = 'on_trial' AND confirmed_at IS NULL"
        while not self.over.wait(1):
            with suppress(psycopg.Error):
                for (pk,) in rows(self.address, query):
                    for port in self.ports.values():
                        with suppress(Stop):
                            self.api(port, "operator").post(f"/jobs/{pk}/confirm")
                            break

    def reload(self) -> None:
        """One who has the overview open, and a load balancer that probes."""
        while not self.over.wait(0.5):
            for name, port in self.ports.items():
                with suppress(OSError):
                    self.probed[name].update(self.readiness(port))
                with suppress(OSError):
                    self.look(name)

    def readiness(self, port: int) -> list[str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz/ready", timeout=10) as answer:
                return list(json.load(answer)["reasons"])
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            return list(json.loads(said)["reasons"]) if error.code == 503 else [f"{error.code}: {said[:200]}"]

    def look(self, name: str) -> None:
        try:
            with self.browser.open(f"http://127.0.0.1:{self.ports[name]}/", timeout=10) as answer:
                page, status = answer.read().decode(), answer.status
        except urllib.error.HTTPError as error:
            page, status = error.read().decode(), error.code
        self.answers[name].add(status)
        for item in ITEM.finditer(page):
            words = html.unescape(re.sub(r"<[^>]+>", " ", f"{item['subject']}: {item['sentence']} {item['rest']}"))
            self.said.setdefault(" ".join(words.split()), time.monotonic())

    # What a test sees

    def parts(self) -> list[tuple[str, str, int]]:
        """Machine, part and process of each recent heartbeat."""
        return rows(
            self.address, "SELECT machine, part, pid FROM health_process WHERE beaten_at > now() - interval '30 s'"
        )

    def statuses(self, numbers: list[int]) -> dict[int, str]:
        """Of each of these migrations, what it is, and why it halted if it did."""
        names = {ssh_site.instance(number): number for number in numbers}
        query = "SELECT instance_id, status, halt_reason, outcome_reason FROM jobs_job WHERE instance_id = ANY(%s)"
        found = rows(self.address, query, list(names))
        return {
            names[each]: f"halted: {halt}" if halt else f"{status} {why}".strip() for each, status, halt, why in found
        }

    def until_under_way(self, numbers: list[int]) -> None:
        """Until some copy and one is past its approval, or all that there are have come that far."""
        far = {"approved", "swapping", "on_trial", "done"}
        until(lambda: far & {*self.statuses(numbers).values()}, 900, lambda: f"{self.statuses(numbers)}\n{self.logs()}")

    def waiting(self, numbers: list[int]) -> list[tuple[Any, ...]]:
        ids = [ssh_site.instance(number) for number in numbers]
        columns = "id, status, waiting_for, wake_at, lease_owner, lease_until, now()"
        return rows(self.address, f"SELECT {columns} FROM jobs_job WHERE instance_id = ANY(%s)", ids)  # noqa: S608

    def check(self, numbers: list[int], deadline: float) -> None:
        """None of these migrations may halt or be undone, and the time may not be over yet."""
        found = self.statuses(numbers)
        wrong = {number: is_ for number, is_ in found.items() if is_.startswith(("halted", "undone", "blocked"))}
        assert not wrong, f"{wrong}\n{self.logs()}"
        assert time.monotonic() < deadline, f"{self.waiting(numbers)}\n{self.said}\n{self.logs()}"

    def check_disks(self, numbers: list[int]) -> None:
        """Every instance runs on its new disk, which was exchanged once, while nobody else could start it."""
        for number in numbers:
            site = self.site.sites[number]
            (source,) = site.source.volumes.values()
            assert (site.files[site.live].content, site.destination.state) == ("new disk", "running")
            assert (source.content, source.permission) == ("new disk", "writeable")
            assert site.unlocked == []

    def forget(self) -> None:
        """What was probed and answered so far."""
        for name in self.ports:
            self.probed[name], self.answers[name] = set(), set()

    def until_probed(self, reason: str) -> None:
        """Until the readiness of both web machines gave this reason."""
        until(lambda: all(reason in each for each in self.probed.values()), 60, lambda: f"{self.probed}\n{self.logs()}")

    def until_followed_once(self, seconds: float) -> None:
        """Until each hypervisor with work is followed by one watcher; and it stays so for a while."""
        until(lambda: {*self.site.channels().values()} - {0} == {1}, 60, lambda: self.site.channels())
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert max(self.site.channels().values()) <= 1
            time.sleep(0.1)

    def queue(self, count: int) -> None:
        """Ticks of so many migrations, of which each finds at once that there is nothing to do."""
        name = "jobs.worker.tick.run"
        ticks = f"SELECT '{name}', 'migrations', 1000000 + n, '{name} ' || 1000000 + n, false, now()"
        with psycopg.connect(self.address) as connection:
            connection.execute(
                f"INSERT INTO volmig_queuedtask (name, queue, number, waits, urgent, queued_at) {ticks} "
                "FROM generate_series(1, %s) AS n",
                [count],
            )

    def waiting_tasks(self) -> int:
        return int(rows(self.address, "SELECT count(*) FROM volmig_queuedtask WHERE done_at IS NULL")[0][0])

    @contextmanager
    def starved(self, *names: str, share: float) -> Iterator[None]:
        """These machines' processes run for that share of the time only."""
        over = threading.Event()

        def signal_all(number: int) -> None:
            for name in names:
                for pid in [self.supervisor(name), *family(self.supervisor(name))]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

        def starve() -> None:
            while not over.is_set():
                signal_all(signal.SIGSTOP)
                over.wait(1 - share)
                signal_all(signal.SIGCONT)
                over.wait(share)

        thread = threading.Thread(target=starve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def supervisor(self, name: str) -> int:
        return self.machines[name].started[PARTS[name]].pid

    def most_rows(self) -> int:
        """The most rows of the queue that any migration has and that no worker has ended."""
        ticks = "FROM volmig_queuedtask WHERE name = 'jobs.worker.tick.run' AND done_at IS NULL"
        query = f"SELECT count(*) {ticks} GROUP BY number"
        return max((count for (count,) in rows(self.address, query)), default=0)

    def until_said(self, pattern: str, since: float, seconds: float = 300) -> str:
        """The sentence of the overview with this pattern, once it stands there."""

        def found() -> str:
            said = (each for each, at in self.said.copy().items() if at >= since and re.search(pattern, each))
            return next(said, "")

        return str(until(found, seconds, lambda: f"{pattern} is not among {[*self.said]}"))


def environment_data() -> str:
    """The data directory of the tests, whose keys all machines get."""
    from volmig import data_dir

    return str(data_dir.directory())
