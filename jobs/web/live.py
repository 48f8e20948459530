"""Live pages: one tailer per web process reads what changed in the database and tells every socket that watches it.

It reads what has changed and is watched, and renders it once for all sockets that show it: a fragment is the same for
everybody who may see its migration. Whatever depends on who looks is fetched by each page, of which only so many are
asked to do so in a second.
"""

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any, TypeVar

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Max, Sum
from django.http import Http404
from django.template.loader import render_to_string
from django.urls import path
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from jobs.models import Approval, Decision, Job, StepRun
from jobs.models.footprint import BULKY
from jobs.web import attention, changes
from volmig import database
from volmig.accounts.roles import may
from volmig.health import heart
from volmig.timetable import Timetable

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE = 0.25  # seconds between two turns at least: qemu-img itself reports no faster than that is worth showing
SHARE = 0.15  # of a processor, which the tailer's turns may take: pages come from the same process
RECHECK = 5.0  # seconds until a socket of a disabled user or of an ended session is closed
CONDITIONS_SHARE = 0.1  # of a processor, which those polls may take
CONDITIONS_EVERY = 2.0  # seconds between two polls for what only the passing of time has changed
BEAT_EVERY = 3.0  # seconds; a page that hears nothing for three of them says that it is stale
LIST_EVERY = 2.0  # seconds between two nudges of a list that only moved in its percentages
AGAIN = 2.0  # seconds after a turn that failed for another reason than the database until the next
NUDGES = 10  # pages that are sent word in one second to fetch what has changed: each then makes requests
ENDED = 4403  # close code: do not reconnect, the permission is gone
INBOX = -1  # what a page watches that shows nothing live but how much waits for this person
LIST = 0  # what a socket watches that follows all jobs and not one; no job has this number

JOB_FIELDS = (
    "pk",
    "status",
    "outcome",
    "halt_reason",
    "waiting_for",
    "version",
    "rate",
    "cancel_requested_at",
    "facts_at",
)
RUN_FIELDS = (
    "pk",
    "job_id",
    "result",
    "bytes_done",
    "bytes_read",
    "bytes_written",
    "rate",
    "progress_at",
    "silent_since",
    "ended_at",
)

SMALL = tuple(each.attname for each in Job._meta.concrete_fields if each.attname not in ("id", *BULKY))
INBOX_NEWS = json.dumps({"inbox": True})

Mark = tuple[str, int, int]  # session key, user, what it watches
Marks = dict[int, tuple[Any, Any]]  # job -> (what turns pages, what only moves bars)
Conditions = tuple[dict[int, tuple[Any, ...]], tuple[Any, ...]]  # of each migration at work, and everything else


def fragment(job: Job) -> str:
    """The progress fragment of a job: the same for everybody who may see it."""
    return render_to_string("jobs/_progress.html", {"job": job})


def bars(job: Job) -> str:
    """The part of the fragment that differs where only figures of the running step have moved."""
    return render_to_string("jobs/_moved.html", {"job": job})


def marks(numbers: Iterable[int] | None) -> Marks:
    """What is known of the jobs in `numbers` (None: the active ones), in a form that differs when a page would."""
    jobs = Job.objects.active() if numbers is None else Job.objects.filter(pk__in=numbers)
    turned = {row[0]: row for row in jobs.values_list(*JOB_FIELDS)}
    for rows in (Approval.objects.filter(job__in=turned), Decision.objects.filter(approval__job__in=turned)):
        key = "job" if rows.model is Approval else "approval__job"
        for number, *newest in rows.order_by().values_list(key).annotate(Max("pk")):
            turned[number] = (*turned[number], *newest)
    moved: dict[int, list[Any]] = {number: [] for number in turned}
    newest_runs = StepRun.objects.filter(job__in=turned).order_by("pk").values_list(*RUN_FIELDS)
    for row in newest_runs:
        moved[row[1]].append(row)
        turned[row[1]] = (*turned[row[1]], row[0], row[2])
    return {number: (turned[number], tuple(moved[number][-1:])) for number in turned}


def waiting() -> tuple[Any, ...]:
    """What is open and what was said to it, in a form that differs when somebody's inbox would."""
    asked = Approval.objects.open().filter(expires_at__gt=timezone.now())
    said = Decision.objects.filter(approval__in=asked.values("pk"))
    rows: dict[str, Any] = asked.aggregate(Count("pk"), Max("pk"), Sum("approvers"))
    rows |= said.aggregate(decisions=Count("pk"), newest=Max("pk"), withdrawn=Count("withdrawn_at"))
    return tuple(rows.values())


class Reader:
    """What of the watched migrations has changed since it was read last, rendered. Lives in one thread."""

    def __init__(self) -> None:
        self.marks: Marks = {}
        self.jobs: dict[int, Job] = {}  # with their journals, as of when they turned last

    def compare(self, numbers: set[int], watched: set[int]) -> tuple[dict[int, str], dict[int, str]]:
        """The whole fragment of each of `numbers` that turned, and the bars of each of which only those moved."""
        for gone in self.jobs.keys() - watched:
            del self.jobs[gone]
        before = {number: mark for number, mark in self.marks.items() if number in watched}
        now = marks(numbers)
        turned = {number for number in now if before.get(number, ("",))[0] != now[number][0]}
        moved = {number for number in now if number not in turned and before[number][1] != now[number][1]}
        renewed = self.renew({number: now[number][1][-1] for number in moved & self.jobs.keys()})
        parts = {number: bars(self.jobs[number]) for number in renewed}
        whole = self.fragments(turned | (moved - renewed))
        self.marks = before | now  # only now: what failed is read again
        return whole, parts

    def fragments(self, numbers: set[int]) -> dict[int, str]:
        """The whole fragments of these, read anew."""
        found = {job.pk: job for job in Job.objects.with_runs().filter(pk__in=numbers)}
        self.jobs |= found
        return {number: fragment(job) for number, job in found.items()}

    def renew(self, rows: dict[int, tuple[Any, ...]]) -> set[int]:
        """Puts the newest figures into jobs that were read before; returns those of which that is all that changed."""
        done = set()
        for number, *values in Job.objects.filter(pk__in=rows).values_list("pk", *SMALL):
            job, row = self.jobs[number], rows[number]
            run = next((each for each in job.runs.all() if each.pk == row[0]), None)
            if run is not None:
                vars(job).update(zip(SMALL, values, strict=True))
                vars(run).update(zip(RUN_FIELDS[2:], row[2:], strict=True))
                done.add(number)
        return done


class Tailer:
    """Follows what all sockets of one event loop watch; runs only while there is one."""

    def __init__(self) -> None:
        self.sockets: set[JobConsumer] = set()
        self.fresh: set[JobConsumer] = set()  # that have been sent nothing yet
        self.nudges: dict[JobConsumer, set[str]] = {}  # what makes their pages fetch something; oldest first
        self.room, self.delivered_at = float(NUDGES), 0.0
        self.task: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, "live pages")
        self.changes = changes.of_this_database()
        self.reader = Reader()
        self.list_marks: Marks | None = None
        self.list_moved, self.listed_at = False, 0.0
        self.inbox: tuple[Any, ...] | None = None
        self.conditions: Conditions | None = None
        self.timetable = Timetable()
        self.worked = 0.0  # processor seconds of the reader's thread

    def add(self, socket: "JobConsumer") -> None:
        """Start to follow what `socket` watches; its first messages come with the next turn."""
        self.sockets.add(socket)
        self.fresh.add(socket)
        self.changes.wake.set()
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.run())

    def drop(self, socket: "JobConsumer") -> None:
        """Forget a socket; the last one ends the task at its next turn."""
        self.sockets.discard(socket)
        self.fresh.discard(socket)
        self.nudges.pop(socket, None)

    async def run(self) -> None:
        """Wait for a change, read, send, until nobody watches; an error costs one turn and is logged."""
        outage = database.Outage("live pages")
        self.changes = changes.of_this_database()  # anew: what was followed before may still be about to end
        following = asyncio.get_running_loop().create_task(self.changes.follow())
        try:
            while self.sockets:
                before = self.worked
                try:
                    await self.turn()
                    outage.over()
                    pause = max(PAUSE, (self.worked - before) * (1 / SHARE - 1))
                except database.AWAY as error:
                    pause = outage.failed(error)
                except Exception:
                    log.exception("live pages: an update failed; the next one follows")
                    pause = AGAIN
                await asyncio.sleep(pause)
                await self.changes.wait(self.idle_seconds())
        finally:
            following.cancel()

    async def turn(self) -> None:
        """What changed goes to those who watch it; then what is due by the clock.

        If any of it fails the next turn does all of it, for everything that is watched: it cannot go well without the
        database, and no page hears a beat before.
        """
        batch = self.changes.take()
        try:
            await self.follow_jobs(batch)
            await self.follow_list(batch)
            if batch.turned or batch.everything:
                await self.follow_inbox()
            if self.timetable.is_due("conditions", CONDITIONS_EVERY):
                await self.follow_conditions()
                await self.follow_inbox()
            if self.timetable.is_due("recheck", RECHECK):
                await self.close_ended()
        except BaseException:
            self.changes.batch.add(batch)
            self.changes.compare_all()
            self.timetable.reset()
            raise
        self.deliver()
        # Last, and only when all went well: a page is live only while its changes are read.
        if self.timetable.is_due("beat", BEAT_EVERY):
            self.send(self.sockets, "beat", json.dumps({"beat": round(time.time(), 3)}))

    def idle_seconds(self) -> float:
        """For how long nothing has to be done unless something changes."""
        if self.fresh or self.nudges:
            return 0.0
        left = self.timetable.seconds_left()
        return min(left, max(0.0, self.listed_at + LIST_EVERY - time.monotonic())) if self.list_moved else left

    async def read(self, call: Callable[..., T], *values: Any) -> T:
        """In the tailer's thread, so that neither pages nor sockets that connect stand before it."""
        in_thread = database_sync_to_async(timed, thread_sensitive=False, executor=self.thread)
        found: T
        found, worked = await in_thread(call, *values)
        self.worked += worked
        return found

    def watching(self) -> dict[int, set["JobConsumer"]]:
        """The sockets that watch each job, the list, or nothing but the inbox."""
        found: dict[int, set[JobConsumer]] = defaultdict(set)
        for socket in self.sockets:
            found[socket.number].add(socket)
        return found

    async def follow_jobs(self, batch: changes.Batch) -> None:
        """Send what of the watched jobs moved, and have pages fetch the rest of those that turned."""
        watching, fresh = self.watching(), set(self.fresh)
        watched = watching.keys() - {LIST, INBOX}
        wanted = watched if batch.everything else (batch.turned | batch.moved) & watched
        whole, parts = await self.read(self.reader.compare, wanted, watched) if wanted else ({}, {})
        for number, html in whole.items():
            self.send(watching[number], "whole", html)
            self.nudge(watching[number], changed(number))
        for number, html in parts.items():
            self.send(watching[number] - fresh, "bars", html)
        # Last: what has been compared counts as sent, whatever fails from here on.
        await self.welcome(fresh, watched - whole.keys())

    async def welcome(self, fresh: set["JobConsumer"], unsent: set[int]) -> None:
        """A new socket gets all of its job: what moved since its page was fetched nobody has sent it."""
        lacking = {socket.number for socket in fresh} & unsent
        first = await self.read(self.reader.fragments, lacking) if lacking else {}
        for socket in fresh & self.sockets:
            if socket.number in first:
                self.send({socket}, "whole", first[socket.number])
            if socket.number != INBOX:
                self.nudge({socket}, changed(socket.number))
        self.fresh -= fresh

    async def follow_list(self, batch: changes.Batch) -> None:
        """Nudge the lists: when a job turned, and every two seconds when bars moved."""
        lists, before = self.watching()[LIST], self.list_marks
        if not lists:
            self.list_marks, self.list_moved = None, False
            return
        turned, moved = batch.turned, batch.moved
        if batch.everything:
            self.list_marks = now = await self.read(marks, None)
            if before is not None:  # else all of them are new, and have been nudged
                turned = turned | {
                    n for n in now.keys() | before.keys() if now.get(n, (0,))[0] != before.get(n, (0,))[0]
                }
                moved = moved | {n for n in now.keys() & before.keys() if now[n] != before[n]}
        self.list_moved |= bool(moved)
        time_now = time.monotonic()
        if turned or (self.list_moved and time_now - self.listed_at >= LIST_EVERY):
            self.listed_at, self.list_moved = time_now, False
            self.nudge(lists, changed(LIST))

    async def follow_inbox(self) -> None:
        """Have every page ask how much waits for its own person, when what waits for people is not what it was."""
        before, self.inbox = self.inbox, await self.read(waiting)
        if before is not None and self.inbox != before:
            self.nudge(self.sockets, INBOX_NEWS)

    async def follow_conditions(self) -> None:
        """Update the pages of what stalls, is late or has come back: with time alone, no row changes."""
        worked, before = self.worked, self.conditions
        now = await self.read(attention.marks)
        self.timetable.put_off("conditions", max(0.0, (self.worked - worked) / CONDITIONS_SHARE - CONDITIONS_EVERY))
        if before is not None and now != before:
            watching = self.watching()
            differing = {n for n in now[0].keys() | before[0].keys() if now[0].get(n) != before[0].get(n)}
            shown = differing & watching.keys()
            fragments = await self.read(self.reader.fragments, shown) if shown else {}
            for number, html in fragments.items():
                self.send(watching[number], "whole", html)
                self.nudge(watching[number], changed(number))
            self.nudge(watching[LIST], changed(LIST))
            self.nudge(self.sockets, INBOX_NEWS)
        self.conditions = now  # only now: what failed is compared again

    async def close_ended(self) -> None:
        """Close the sockets whose person may no longer see what they show."""
        sockets = list(self.sockets)
        allowed = await self.read(still_allowed, {mark_of(socket) for socket in sockets})
        ended = [socket for socket in sockets if mark_of(socket) not in allowed]
        for socket in ended:
            self.drop(socket)
        # One whose browser just left raises; the others have to be closed all the same.
        await asyncio.gather(*(socket.close(code=ENDED) for socket in ended), return_exceptions=True)

    def send(self, sockets: Iterable["JobConsumer"], kind: str, text: str) -> None:
        """Put a message out for each; one of the same kind that still waits there is replaced."""
        for socket in sockets:
            socket.outbox.put(kind, text)

    def nudge(self, sockets: Iterable["JobConsumer"], text: str) -> None:
        """Have these pages fetch something, when it is their turn; one that left meanwhile takes none."""
        for socket in self.sockets.intersection(sockets):
            self.nudges.setdefault(socket, set()).add(text)

    def deliver(self) -> None:
        """To as many pages as there is room for: half of it is for pages of one migration, half for all others.

        In each half those come first that have waited longest; what one does not need is for the other. Lists always
        wait for their turn while many are open, and a page of one migration is not to wait behind them.
        """
        now = time.monotonic()
        self.room = min(float(NUDGES), self.room + NUDGES * (now - self.delivered_at))
        self.delivered_at = now
        migrations = [socket for socket in self.nudges if socket.number not in (LIST, INBOX)]
        others = [socket for socket in self.nudges if socket.number in (LIST, INBOX)]
        by_turns = (socket for pair in zip_longest(migrations, others) for socket in pair if socket is not None)
        for socket in islice(by_turns, int(self.room) // 2 * 2):  # even, or one half would always be served first
            for text in self.nudges.pop(socket):
                self.send({socket}, text, text)
            self.room -= 1


def timed(call: Callable[..., T], *values: Any) -> tuple[T, float]:
    """What a call returns, and the processor seconds that it took in its thread."""
    began = time.thread_time()
    return call(*values), time.thread_time() - began


class Outbox:
    """What a socket is still to be sent, the newest of each kind: a browser that reads slowly holds no memory."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.ready = asyncio.Event()

    def put(self, kind: str, text: str) -> None:
        """Replaces an older message of the same kind: a slow page gets only the newest."""
        if kind == "whole":
            self.messages.pop("bars", None)  # older than this
        self.messages[kind] = text
        self.ready.set()

    async def take(self) -> list[str]:
        """Waits for messages and takes all of them."""
        await self.ready.wait()
        self.ready.clear()
        messages, self.messages = self.messages, {}
        return list(messages.values())


def mark_of(socket: "JobConsumer") -> Mark:
    """What a page's updates depend on: session, person, migration."""
    return socket.session_key, socket.user_id, socket.number


def still_allowed(marked: set[Mark]) -> set[Mark]:
    """Those whose session is alive, of an active person who may still see what is watched."""
    keys, ids = {key for key, _, _ in marked}, {user for _, user, _ in marked}
    sessions = {
        s.session_key: s.get_decoded() for s in Session.objects.filter(pk__in=keys, expire_date__gt=timezone.now())
    }
    users = {user.pk: user for user in get_user_model().objects.filter(pk__in=ids, is_active=True) if may(user, "view")}
    seen = {pk: seen_of(user, {number for _, theirs, number in marked if theirs == pk}) for pk, user in users.items()}
    return {
        (key, user, number)
        for key, user, number in marked
        if key in sessions
        and user in users
        and number in seen[user]
        # The hash moves with the password: a changed password ends the sockets of older logins too.
        and constant_time_compare(sessions[key].get("_auth_user_hash", ""), users[user].get_session_auth_hash())
    }


def seen_of(user: Any, numbers: set[int]) -> set[int]:
    """What of `numbers` the person may watch."""
    return {LIST, INBOX, *Job.objects.visible_to(user).filter(pk__in=numbers).values_list("pk", flat=True)}


def changed(number: int) -> str:
    """The second kind of message: fetch again whatever depends on who looks."""
    return json.dumps({"changed": number})


tailers: dict[int, Tailer] = {}
heart.gauge("websockets", lambda: sum(len(each.sockets) for each in tuple(tailers.values())))


def tailer() -> Tailer:
    """The tailer of the running event loop (tests have many loops in one process, a server has one)."""
    loop = id(asyncio.get_running_loop())
    if loop not in tailers:
        tailers[loop] = Tailer()
    return tailers[loop]


class JobConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """One open page: of a job, of a list when no number is in its address, or of nothing that moves but the inbox."""

    number = LIST
    user_id: int
    session_key: str
    outbox: Outbox
    writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the connection; however it ends, nothing goes on for it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in `disconnect`: telling a browser that just left raises, and that is then not called.
            tailer().drop(self)
            if self.writing is not None:
                self.writing.cancel()

    async def connect(self) -> None:
        """Accept those who may see what they ask for, and follow it; the tailer sends the present fragment."""
        user = self.scope["user"]
        self.number = self.scope["url_route"]["kwargs"].get("number", LIST)
        found = await database_sync_to_async(may_watch)(user, self.number)
        await self.accept()
        if not found:
            await self.close(code=ENDED)
            return
        self.user_id, self.session_key = user.pk, self.scope["session"].session_key
        self.outbox = Outbox()
        self.writing = asyncio.get_running_loop().create_task(self.write())
        tailer().add(self)

    async def write(self) -> None:
        """Send what the tailer puts out, until the browser leaves."""
        try:
            while True:
                for text in await self.outbox.take():
                    await self.send(text)
        except Exception:  # whatever the server raises for a browser that left: nothing more is for it
            tailer().drop(self)


def may_watch(user: Any, number: int) -> bool:
    """Whether `user` may see what `number` stands for."""
    if number in (LIST, INBOX):
        return may(user, "view")
    try:
        Job.objects.defer(*BULKY).find(user, "view", pk=number)
    except (Http404, PermissionDenied):
        return False
    return True


routes = [
    path("live/migrations/<int:number>/", JobConsumer.as_asgi()),
    path("live/migrations/", JobConsumer.as_asgi()),
    path("live/inbox/", JobConsumer.as_asgi(), {"number": INBOX}),
]
