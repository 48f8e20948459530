"""Live pages: one tailer per web process reads what changed in the database and tells every socket that watches it."""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Max, Sum
from django.http import Http404
from django.template.loader import render_to_string
from django.urls import path
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from jobs import attention
from jobs.models import Approval, Decision, Job, StepRun
from volmig import database
from volmig.accounts.roles import may
from volmig.health import heart

log = logging.getLogger(__name__)

POLL = 0.25  # seconds between two looks: qemu-img itself reports no faster than that is worth showing
RECHECK = 5.0  # seconds until a socket of a disabled user or of an ended session is closed
CONDITIONS_EVERY = 2.0  # seconds between two looks for what only the passing of time has changed
BEAT_EVERY = 3.0  # seconds; a page that hears nothing for three of them says that it is stale
LIST_EVERY = 2.0  # seconds between two nudges of a list that only moved in its percentages
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

Mark = tuple[str, int, int]  # session key, user, what it watches
Marks = dict[int, tuple[Any, Any]]  # job -> (what turns pages, what only moves bars)
Conditions = tuple[dict[int, tuple[Any, ...]], tuple[Any, ...]]  # of each migration at work, and everything else


def group(number: int) -> str:
    """The channel group of those who watch job `number`, or the list."""
    return f"job-{number}" if number > 0 else {LIST: "jobs", INBOX: "inbox"}[number]


def fragment(job: Job) -> str:
    """The progress fragment of a job: the same for everybody who may see it."""
    return render_to_string("jobs/_progress.html", {"job": job})


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


def look(numbers: set[int], before: Marks) -> tuple[Marks, dict[int, str]]:
    """The present marks of the watched jobs and the fragment of each that differs from `before`."""
    now = marks(numbers)
    changed = [number for number in now if now[number] != before.get(number)]
    return now, fragments(set(changed))


def fragments(numbers: set[int]) -> dict[int, str]:
    return {job.pk: fragment(job) for job in Job.objects.with_runs().filter(pk__in=numbers)}


class Tailer:
    """Follows the watched jobs for all sockets of one event loop; runs only while there is one."""

    def __init__(self) -> None:
        self.sockets: set[JobConsumer] = set()
        self.task: asyncio.Task[None] | None = None

    def add(self, socket: "JobConsumer") -> None:
        """Start to follow what `socket` watches."""
        self.sockets.add(socket)
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self.run())

    def drop(self, socket: "JobConsumer") -> None:
        """Forget a socket; the last one ends the task at its next turn."""
        self.sockets.discard(socket)

    async def run(self) -> None:
        """Look, tell, sleep, until nobody watches; an error costs one turn and is logged."""
        jobs: Marks = {}
        everything: Marks = {}
        inbox: tuple[Any, ...] | None = None
        conditions: Conditions | None = None
        told_list = checked = looked = beaten = 0.0
        outage, pause = database.Outage("live pages"), POLL
        while self.sockets:
            now = asyncio.get_running_loop().time()
            try:
                jobs = await self.follow_jobs(jobs)
                inbox = await self.follow_inbox(inbox)
                if self.watched()[LIST]:
                    everything, told_list = await self.follow_list(everything, told_list, now)
                if now - looked >= CONDITIONS_EVERY:
                    looked = now
                    conditions = await self.follow_conditions(conditions)
                if now - checked >= RECHECK:
                    checked = now
                    await self.close_ended()
                # Last, and only when all went well: a page is live only while its changes are polled.
                if now - beaten >= BEAT_EVERY:
                    beaten = now
                    await send(INBOX, json.dumps({"beat": round(time.time(), 3)}))
                outage.over()
                pause = POLL
            except database.AWAY as error:
                pause = outage.failed(error)
            except Exception:
                log.exception("live pages: a poll failed; the next follows")
            await asyncio.sleep(pause)

    def watched(self) -> Counter[int]:
        """How many sockets watch each job."""
        return Counter(socket.number for socket in self.sockets)

    async def follow_jobs(self, before: Marks) -> Marks:
        """Send the fragment of every watched job that moved, and `changed` when more than its bars may have."""
        numbers = set(self.watched()) - {LIST, INBOX}
        if not numbers:
            return {}
        now: Marks
        now, fragments = await database_sync_to_async(look)(numbers, before)
        for number, html in fragments.items():
            await send(number, html)
            # A first look too: what moved since its page was fetched, the tailer has never seen otherwise.
            if number not in before or before[number][0] != now[number][0]:
                await send(number, changed(number))
        return now

    async def follow_list(self, before: Marks, told: float, at: float) -> tuple[Marks, float]:
        """Nudge the lists: at once when a job turned, every two seconds when bars moved."""
        now = await database_sync_to_async(marks)(None)
        turned = {n: mark[0] for n, mark in now.items()} != {n: mark[0] for n, mark in before.items()}
        if now == before or not (turned or at - told >= LIST_EVERY):
            return before, told
        await send(LIST, changed(LIST))
        return now, at

    async def follow_inbox(self, before: tuple[Any, ...] | None) -> tuple[Any, ...]:
        """Tell every page when what waits for people is not what it was; each then asks how much waits for its own."""
        now: tuple[Any, ...] = await database_sync_to_async(waiting)()
        if now != before:
            await send(INBOX, json.dumps({"inbox": True}))
        return now

    async def follow_conditions(self, before: Conditions | None) -> Conditions:
        """Tell the pages of what stalls, is late or has come back, which no row tells of."""
        now: Conditions = await database_sync_to_async(attention.marks)()
        if before is None or now == before:
            return now
        changes = {n for n in now[0].keys() | before[0].keys() if now[0].get(n) != before[0].get(n)}
        for number, html in (await database_sync_to_async(fragments)(changes & set(self.watched()))).items():
            await send(number, html)
            await send(number, changed(number))
        await send(LIST, changed(LIST))
        await send(INBOX, json.dumps({"inbox": True}))
        return now

    async def close_ended(self) -> None:
        """Close the sockets whose person may no longer see what they show."""
        sockets = list(self.sockets)
        allowed = await database_sync_to_async(still_allowed)({mark_of(socket) for socket in sockets})
        ended = [socket for socket in sockets if mark_of(socket) not in allowed]
        # One whose browser just left raises; the others have to be closed all the same.
        await asyncio.gather(*(socket.close(code=ENDED) for socket in ended), return_exceptions=True)


def mark_of(socket: "JobConsumer") -> Mark:
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


async def send(number: int, text: str) -> None:
    """Give a message to all who watch job `number`."""
    layer = get_channel_layer()
    if layer is None:
        raise RuntimeError("no channel layer is configured")
    await layer.group_send(group(number), {"type": "told", "text": text})


tailers: dict[int, Tailer] = {}
heart.gauge("websockets", lambda: sum(len(each.sockets) for each in tuple(tailers.values())))


def tailer() -> Tailer:
    """The tailer of the running event loop (tests have many loops in one process, a server has one)."""
    return tailers.setdefault(id(asyncio.get_running_loop()), Tailer())


class JobConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """One open page: of a job, of a list when no number is in its address, or of nothing that moves but the inbox."""

    number = LIST
    user_id: int
    session_key: str

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the connection; however it ends, nothing goes on for it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in `disconnect`: telling a browser that just left raises, and that is then not called.
            tailer().drop(self)
            for number in {self.number, INBOX}:
                await self.channel_layer.group_discard(group(number), self.channel_name)

    async def connect(self) -> None:
        """Accept those who may see the job, send them its present fragment and follow it."""
        user = self.scope["user"]
        self.number = self.scope["url_route"]["kwargs"].get("number", LIST)
        found, html = await database_sync_to_async(first_look)(user, self.number)
        if not found:
            await self.accept()
            await self.close(code=ENDED)
            return
        self.user_id, self.session_key = user.pk, self.scope["session"].session_key
        for number in {self.number, INBOX}:
            await self.channel_layer.group_add(group(number), self.channel_name)
        await self.accept()
        if html:
            await self.send(html)
        if self.number == LIST or self.number in tailer().watched():  # else its first look tells
            await self.send(changed(self.number))
        tailer().add(self)

    async def told(self, message: dict[str, str]) -> None:
        """Pass on what the tailer said."""
        await self.send(message["text"])


def first_look(user: Any, number: int) -> tuple[bool, str]:
    """Whether `user` may watch `number`, and the fragment to begin with."""
    if number in (LIST, INBOX):
        return may(user, "view"), ""
    try:
        return True, fragment(Job.objects.with_runs().find(user, "view", pk=number))
    except (Http404, PermissionDenied):
        return False, ""


routes = [
    path("live/migrations/<int:number>/", JobConsumer.as_asgi()),
    path("live/migrations/", JobConsumer.as_asgi()),
    path("live/inbox/", JobConsumer.as_asgi(), {"number": INBOX}),
]
