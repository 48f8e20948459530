"""manage.py up: one command that starts web, workers and watcher, and leaves nothing behind."""

import contextlib
import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, connection

from volmig import beats, data_dir, database, incarnation, keys, online, schema, systemd
from volmig.accounts.people import first_administrator
from volmig.health import heart
from volmig.models import QueuedTask
from volmig.parts import GROUPS, PARTS, of_group
from volmig.ssh_key import ssh_key_file

upgrade = import_module(settings.UPGRADE)
ENDS = {signal.SIGINT, signal.SIGTERM}
SIGNALS = {*ENDS, signal.SIGCHLD}
PR_SET_PDEATHSIG = 1
PREPARES = 0x766F6C6D6967  # names a lock of the database
LOCK_PAUSE = 0.2  # seconds between tries to get it
LIBC = ctypes.CDLL(None, use_errno=True)
# A worker finishes the tick that it is in, at most about 20 s, before it stops.
PATIENCE_SECONDS = 30
COMPARE_SECONDS = 30  # between comparisons of keys and settings with those of other machines
KEEP_ALIVE_SECONDS = 75  # for which an idle connection of a client or a proxy stays open
START_SECONDS = 20  # a part that ends within them was never able to start; a busy machine needs several to import all
# Seconds of silence after which workers are stuck. A worker that is killed while it waits for a task takes the lock of
# the cluster's own queue along, and no other gets anything any more. Ticks beat while they run; all tasks at both ends.
STUCK_SECONDS = {"workers": 30, "background": settings.TASK_SECONDS + 30}
# Seconds until the first sign of life; after each start that failed, twice as many. A machine that starts everything at
# once, after an outage, takes long, and to kill what is starting makes it longer.
FIRST_BEAT_SECONDS, LONGEST_START_SECONDS = 120.0, 1800.0


def commands(bind: str, shared: socket.socket | None = None) -> dict[str, list[str]]:
    """What starts each process; web processes accept from `shared`, where there is one, in place of their own."""
    host, port = split(bind)
    where = ["--fd", str(shared.fileno())] if shared else ["--host", host, "--port", str(port)]
    manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
    # WhiteNoise reads files in one piece, which is right for files as small as ours.
    quiet = ["-W", "ignore:StreamingHttpResponse must consume"]
    serve = [*quiet, "-m", "uvicorn", "volmig.asgi:application", *where]
    manners = ["--timeout-graceful-shutdown", "3", "--lifespan", "on", "--no-access-log", "--log-level", "warning"]
    # Longer than proxies keep an idle connection: what they send while it is being closed here would be lost.
    manners += ["--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)]
    # Each live page would hold memory for its compressor; it is sent small messages, mostly, and sends nothing.
    manners += ["--ws-per-message-deflate", "false", "--ws-max-size", "1024"]
    # uvicorn believes a proxy's headers of whoever sits on this machine: guesses would come from any address one likes.
    proxy = "--proxy-headers" if settings.BEHIND_PROXY else "--no-proxy-headers"
    watch = "import django; django.setup(); from jobs.worker.watcher import main; main()"
    return {
        "web": [sys.executable, *serve, *manners, proxy],
        **{part.name: [*manage, "qcluster"] for part in PARTS.values() if part.queue},
        "watcher": [sys.executable, "-c", watch],
    }


def split(bind: str) -> tuple[str, int]:
    """Host and port of --bind; CommandError when it has none."""
    host, _, port = bind.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError:
        raise CommandError(f"--bind must be an address and a port, such as 127.0.0.1:8000, not {bind}.") from None


def listen(bind: str) -> socket.socket:
    """The socket that several web processes accept from: whichever is idle takes the next connection, so one that
    hangs or starts anew takes none. Raises CommandError when the address is taken."""
    host, port = split(bind)
    try:
        shared = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CommandError(f"Not started: cannot listen on {bind}: {error.strerror or error}.") from error
    # Each connection has it from here: uvicorn does not know what kind of socket it was given, so asyncio sets nothing.
    shared.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return shared


def as_child() -> None:
    """Runs in the child: a session of its own, all signals open, and SIGTERM when the supervisor dies."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def give_back(cluster: str) -> None:
    """What a cluster that ended had taken is taken again at once; without the database after settings.TASK_RETRY."""
    try:
        QueuedTask.objects.give_back(cluster)
    except (DatabaseError, InterfaceError):
        return
    finally:
        connection.close()


@dataclass
class Child:
    """One part, restarted with growing pauses when it ends by itself."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    pause: float = 1  # seconds from its end to its next start
    has_run: bool = False
    due: float = field(default_factory=time.monotonic)
    patience: float = FIRST_BEAT_SECONDS
    inherits: tuple[int, ...] = ()  # file descriptors that stay open in it
    cluster: str = ""  # of workers: 16 hex digits, new at every start

    def start(self) -> None:
        """Starts the process with its part and without keys of the other kind."""
        ours = {"DJANGO_SETTINGS_MODULE": "volmig.settings", "PYTHONUNBUFFERED": "1", "VOLMIG_PART": self.name}
        environment = os.environ | ours  # the part decides which keys it may read
        for each in data_dir.variables_of("worker" if self.name == "web" else "web"):
            environment.pop(each, None)
        environment[heart.SUPERVISOR] = str(os.getpid())
        environment["Q_CLUSTER_NAME"] = self.queue  # read once, when django-q is imported
        environment["VOLMIG_CLUSTER"] = self.cluster = secrets.token_hex(8) if self.queue else ""
        if self.queue:
            environment[beats.VARIABLE] = str(self.beat_file)
            beats.prepare(self.beat_file)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            cwd=settings.BASE_DIR,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=self.inherits,
            preexec_fn=as_child,  # safe: the supervisor has no threads
        )

    def tend(self) -> None:
        """Starts it when it is due; clears up after it when it has ended; raises CommandError when it cannot start."""
        if self.process is None:
            if time.monotonic() >= self.due:
                self.start()
        elif self.process.poll() is not None:
            self.ended(self.process.returncode)
        elif self.queue and (why := self.why_stuck()):
            print(f"{self.name} {why}; restarting", file=sys.stderr)
            if beats.silent_for(self.beat_file) is None:
                self.patience = min(2 * self.patience, LONGEST_START_SECONDS)
            self.process.kill()  # what that cuts off is done again

    @property
    def queue(self) -> str:
        """The queue of its tasks; empty for a part that is no cluster of workers."""
        return PARTS[self.name].queue

    @property
    def beat_file(self) -> Path:
        """The file that the process touches; a process that stops doing so is restarted."""
        return Path(settings.DATA / f"up-{self.name}.beat")

    def why_stuck(self) -> str:
        """What these workers failed to do for too long; empty while they live or may still be starting."""
        silent = beats.silent_for(self.beat_file)
        if silent is not None:
            self.patience = FIRST_BEAT_SECONDS
            return f"showed no sign of life for {silent:.0f} s" if silent > STUCK_SECONDS[self.name] else ""
        if time.monotonic() - self.started < self.patience:
            return ""
        return f"did not start within {self.patience:.0f} s"

    def ended(self, status: int) -> None:
        """Restarts it after a pause; a process that never began to work ends `up`."""
        lasted = time.monotonic() - self.started
        self.kill()
        killed = status < 0  # from outside, so it was able to start
        if lasted < START_SECONDS and not self.has_run and not killed:
            raise CommandError(f"{self.name} ended at once with status {status}: see its message above.")
        self.has_run = True
        self.pause = 1 if lasted > 60 else min(30, self.pause * 2)
        self.due = time.monotonic() + self.pause
        print(f"{self.name} ended with status {status}; it starts again in {self.pause:g} s", file=sys.stderr)

    def ask_to_stop(self) -> None:
        """Signals the main process only: a SIGTERM to qcluster's whole group deadlocks it."""
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """Ends whatever is left of its session, for workers outlive a qcluster that was killed, and frees its tasks."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
            if self.cluster:
                self.beat_file.unlink(missing_ok=True)
                give_back(self.cluster)


class Command(BaseCommand):
    help = "Starts volmig: web, workers and watcher, or the part that is named. Ctrl-C stops all of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("part", nargs="?", default="all", choices=("all", *GROUPS))
        parser.add_argument("--bind", default="127.0.0.1:8000", help="address and port of the pages")
        only = "do not prepare the database; refuse to start on one that `manage.py prepare` has not prepared"
        parser.add_argument("--no-prepare", action="store_true", help=only)

    def handle(self, *args: Any, **options: Any) -> None:
        """Runs until Ctrl-C or SIGTERM; CommandError when it cannot start."""
        groups = GROUPS if options["part"] == "all" else (options["part"],)
        locks = [only_one(group) for group in groups if group != "web"]  # of several for one port, only one gets it
        try:
            when_possible(f"up {options['part']}", require_prepared if options["no_prepare"] else prepare)
        except (database.Unusable, keys.KeysDiffer) as error:
            raise CommandError(f"Not started. {error}") from error
        several = "web" in groups and settings.WEB_PROCESSES > 1
        shared = listen(options["bind"]) if several else None
        try:
            supervise(children_of(groups, options["bind"], shared), options["bind"])
        finally:
            for lock in locks:
                lock.close()
            if shared:
                shared.close()


def children_of(groups: Iterable[str], bind: str, shared: socket.socket | None) -> list[Child]:
    """The processes of these groups; web inherits the listening socket."""
    chosen, names = commands(bind, shared), [part.name for part in of_group(*groups)]
    inherits = (shared.fileno(),) if shared else ()
    return [
        Child(name, chosen[name], inherits=inherits if name == "web" else ())
        for name in names
        for _ in range(settings.WEB_PROCESSES if name == "web" else 1)
    ]


def only_one(name: str) -> IO[str]:
    """Holds the lock of this part on this data directory: two clusters would run the same task twice."""
    path = settings.DATA / f"up-{name}.lock"
    lock = path.open("w")
    data_dir.share(path, settings.DATA)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        running = f"{name} {'are' if name == 'workers' else 'is'} already running"
        said = f"volmig's {running} on {settings.DATA}. A second machine needs its own data directory"
        raise CommandError(f"{said} ({keys.SEVERAL}).") from error
    return lock


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One after the other: parts that start at once would make the same tables."""
    take: Callable[[], bool]
    with contextlib.ExitStack() as stack:
        if database.is_postgresql():  # they may be on several machines
            cursor = stack.enter_context(connection.cursor())
            take, release = partial(try_lock, cursor), partial(unlock, cursor)
        else:
            lock = stack.enter_context((settings.DATA / "up-prepare.lock").open("w"))
            take, release = partial(try_flock, lock), partial(fcntl.flock, lock, fcntl.LOCK_UN)
        if not take():
            print("Another process is preparing the database or creating its first administrator. Waiting.", flush=True)
            # One that waited within a statement would hold a snapshot, for whose end the building of an index waits.
            while not take():
                time.sleep(LOCK_PAUSE)
        stack.callback(release)
        yield


def try_lock(cursor: Any) -> bool:
    """True when this process may prepare, pg_try_advisory_lock."""
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [PREPARES])
    return bool(cursor.fetchone()[0])


def unlock(cursor: Any) -> None:
    """Gives the advisory lock back."""
    with contextlib.suppress(*database.AWAY):  # the lock went with its connection
        cursor.execute("SELECT pg_advisory_unlock(%s)", [PREPARES])


def try_flock(lock: IO[str]) -> bool:
    """The same for SQLite, flock(2)."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def when_possible(who: str, act: Callable[[], None]) -> None:
    """Waits for the database as often as it goes away meanwhile. Raises Unusable, KeysDiffer, CommandError.

    One that is there and says the same for a minute, as on a full disk, is not waited for: that takes a person.
    """
    outage, before, since = database.Outage(who, longest=15, noted=False), "", 0.0
    while True:
        if database.fault():
            before = ""  # what it says once it is back is about another outage
        database.wait(who)
        try:
            with alone():
                act()
            return
        except database.AWAY as error:
            connection.close()
            if not database.is_away(error):
                raise
            # By its code: what PostgreSQL says of a full disk names another file each time.
            said = getattr(error.__cause__, "sqlstate", None) or database.one_line(error)
            if said != before:
                before, since = said, time.monotonic()
            elif time.monotonic() - since > database.PATIENCE and not database.fault():
                advice = "Fix this, then start again."
                raise database.Unusable(
                    f"The database cannot be prepared: {database.one_line(error)}. {advice}"
                ) from error
            time.sleep(outage.failed(error))  # a server that restarts may be there again already


def prepare() -> None:
    """Migrates the database, registers keys and prints what an upgrade means for active migrations."""
    refuse_what_differs()
    online.migrate(lambda line: print(line, flush=True))
    compare_with_others()
    for line in upgrade.sentences(each for each in upgrade.affected(upgrade.own()) if each.lacking):
        print(line)
    if data_dir.may_read("ssh_key"):
        ssh_key_file()  # so that pages, which must not read it, can show the public half
    say_if_read_only()
    try:
        if still_to_do := first_administrator():
            print(still_to_do, flush=True)
    except (EOFError, KeyboardInterrupt) as error:
        raise CommandError("\nNot started: volmig needs an administrator. Start it again to create one.") from error
    except ValidationError as error:
        raise CommandError(f"VOLMIG_ADMIN_USER, VOLMIG_ADMIN_PASSWORD: {' '.join(error.messages)}") from error


def refuse_what_differs() -> None:
    """Before anything is made: the keys of another volmig, and a database of a later release."""
    if keys.are_kept() and (differing := keys.mismatches(keys.mine())):
        raise keys.KeysDiffer("\n".join(differing))
    if refusal := upgrade.downgrade():
        raise CommandError(refusal)


def compare_with_others() -> None:
    """Registers keys and settings of this machine, and prints settings that differ."""
    keys.ensure()
    keys.note_settings()
    for line in keys.differing_settings():
        print(line, flush=True)


def say_if_read_only() -> None:
    """Prints the reason and what to do."""
    if state := incarnation.check():
        print(f"volmig is read-only: {state.reason} {state.what_to_do}", flush=True)


def require_prepared() -> None:
    """Raises CommandError when the database is not as this release needs it; changes no tables."""
    refuse_what_differs()
    if missing := schema.unapplied():
        first = ".".join(missing[0])
        lacking = f"The database lacks {len(missing)} of this release's database migrations, the first is {first}."
        raise CommandError(f"{lacking} Run manage.py prepare once (volmig-migrate.service), then start this again.")
    compare_with_others()
    say_if_read_only()


def supervise(children: list[Child], bind: str) -> None:
    """Tends the children until SIGINT or SIGTERM; when it returns, none of their processes is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    unannounced = any(child.name == "web" for child in children)
    compare_at = time.monotonic() + COMPARE_SECONDS
    said: set[str] = set()
    try:
        received = None
        # Anything else goes on: stopped for longer than it waits and continued (SIGSTOP, a debugger), Python 3.11
        # returns what happens to be in memory (signalmodule.c, signal_sigtimedwait_impl: EINTR after the deadline).
        while received is None or received.si_signo not in ENDS:
            for child in children:
                child.tend()
            if time.monotonic() > compare_at:
                compare_at = time.monotonic() + COMPARE_SECONDS
                compare_keys(said)
            if unannounced and answers(bind):
                print(f"volmig is on http://{bind}", flush=True)
                unannounced = False
            systemd.notify("WATCHDOG=1" if unannounced else "READY=1\nWATCHDOG=1")
            received = signal.sigtimedwait(SIGNALS, 0.2 if unannounced else 1)
    finally:
        systemd.notify("STOPPING=1")
        stop(children)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def compare_keys(said: set[str]) -> None:
    """Raises CommandError when another machine has registered a key that these processes hold in memory.

    Of other keys, which they read each time, and of settings that differ it prints a line, once for each in `said`.
    """
    try:
        if held := keys.mismatches(name for name in keys.mine() if name in keys.SETTINGS):
            raise CommandError("Stopped. " + "\n".join(held))
        keys.note_settings()
        found = {*keys.mismatches(keys.mine()), *keys.differing_settings()}
    except (DatabaseError, InterfaceError, OSError, ValueError):
        return  # it may be away for a while
    finally:
        connection.close()
    for line in sorted(found - said):
        print(line, file=sys.stderr, flush=True)
    said |= found


def answers(bind: str) -> bool:
    """True once the web processes answer /healthz/live."""
    address = bind.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - what was asked for
    # Another name is refused, with a traceback in the log.
    name = settings.ALLOWED_HOSTS[0].lstrip(".") if settings.ALLOWED_HOSTS else address
    request = urllib.request.Request(f"http://{address}/healthz/live", headers={"Host": name})
    try:
        with urllib.request.urlopen(request, timeout=1):  # noqa: S310 - our own address
            return True
    except urllib.error.HTTPError:
        return True  # it answers, if only that it has no such name
    except OSError:
        return False


def stop(children: list[Child]) -> None:
    """Ends all processes; those that do not end within PATIENCE_SECONDS are killed."""
    for child in children:
        child.ask_to_stop()
    until = time.monotonic() + PATIENCE_SECONDS
    for child in children:
        if child.process:
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{child.name} did not stop in {PATIENCE_SECONDS} s and is killed", file=sys.stderr)
            child.kill()
