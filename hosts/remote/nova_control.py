"""Instance control through Nova: lock, stop, start, unlock, each believed only when the hypervisor's libvirt agrees."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from hosts.remote.host import Answer, Host, HostctlDiffers, Request, Unreachable
from hosts.remote.hostctl.act import Act, Args

AGAIN: Final = 2.0  # seconds: no watcher follows Nova
START_DEADLINE: Final = 180  # seconds; a compute that takes longer to start an instance is looked at by a person
SKEW: Final = 60.0  # seconds by which Nova's clock, or that of another worker, may differ from this one
RECALLED: Final = 200  # actions of an instance that are read when a migration of it is adopted
HARMLESS: Final = frozenset({"lock", "unlock", "stop"})  # of other people: the disk stays as it was approved
Document = dict[str, Any]


class Nova(Protocol):
    """What this needs of hosts.remote.nova, which is the one that speaks to the cloud."""

    def version(self) -> str:
        """The newest API version of this Nova, 2.95."""

    def server(self, uuid: str) -> Document | None:
        """The instance, None when Nova has none by that id."""

    def actions(self, uuid: str, limit: int = 20) -> list[Document]:
        """What was done to the instance, the newest first, os-instance-actions."""

    def action(self, uuid: str, request: str) -> Document:
        """One of its actions with its events and their tracebacks."""

    def migrations(self, uuid: str) -> list[Document]:
        """Its migrations, resizes and evacuations."""

    def services(self) -> list[Document]:
        """The nova-compute services."""

    def image(self, uuid: str) -> Document:
        """An image with its properties, from Glance."""

    def who(self) -> Document:
        """User, project and roles of the credential."""

    def post(self, path: str, body: Document) -> tuple[int, str, str]:
        """Status, text and request id of a POST; it is never sent twice."""


# What will be asked for: pure, so that a plan can show it


def _action(args: Args, body: Document) -> tuple[Act, ...]:
    path, text = f"/servers/{args['instance']}/action", json.dumps(body, ensure_ascii=False)
    return (Act("http", ("POST", path, text), f"POST {path} {text}"),)


def _lock(args: Args) -> tuple[Act, ...]:
    return _action(args, {"lock": {"locked_reason": args["reason"]}})


BUILDERS: Final[Mapping[str, Callable[[Args], tuple[Act, ...]]]] = {
    "instance_lock": _lock,
    "instance_unlock": lambda args: _action(args, {"unlock": None}),
    "instance_stop": lambda args: _action(args, {"os-stop": None}),
    "instance_start": lambda args: _action(args, {"os-start": None}),
}


def acts(verb: str, args: Args, job: str = "«job»") -> tuple[Act, ...]:
    """What `verb` asks Nova for, in order. Unknown verbs: KeyError."""
    return BUILDERS[verb](args)


# What Nova says, in volmig's words


def server(found: Document) -> Document:
    """A server's document as facts: sizes in GiB as Nova has them, "" for what is not set."""
    flavor, image = found.get("flavor") or {}, found.get("image") or {}
    return {
        "uuid": text(found["id"]),
        "name": text(found.get("name")),
        "project": text(found.get("tenant_id")),
        "host": text(found.get("OS-EXT-SRV-ATTR:host")),
        "hypervisor": text(found.get("OS-EXT-SRV-ATTR:hypervisor_hostname")),
        "status": text(found.get("status")),
        "vm_state": text(found.get("OS-EXT-STS:vm_state")),
        "task_state": text(found.get("OS-EXT-STS:task_state")),
        "locked": bool(found.get("locked")),
        "locked_reason": text(found.get("locked_reason")),
        "flavor": text(flavor.get("original_name")),
        "ephemeral_gb": int(flavor.get("ephemeral") or 0),
        "root_gb": int(flavor.get("disk") or 0),
        "image": text(image.get("id")),
        "host_status": text(found.get("host_status")),
        "updated": text(found.get("updated")),
        "fault": text((found.get("fault") or {}).get("message")),
    }


def text(found: Any) -> str:
    """What came, as one line of bounded length."""
    return "" if found is None else " ".join(str(found).split())[:300]


def action(found: Document) -> Document:
    """One row of os-instance-actions."""
    return {
        "action": text(found.get("action")),
        "at": text(found.get("start_time")),
        "request": text(found.get("request_id")),
        "user": text(found.get("user_id")),
        "failed": found.get("message") == "Error",
    }


def foreign(actions: Iterable[Document], approved: str, ours: Iterable[str], accepted: str) -> list[Document]:
    """What others had done to the instance since the action `approved`, oldest first; harmless things are left out.

    `actions` come newest first; what is older than `accepted` (a moment) has been seen and accepted by a person.
    """
    found = []
    for row in actions:
        if row["request"] == approved:
            break
        if row["request"] not in ours and row["action"] not in HARMLESS and row["at"] > accepted:
            found.append(row)
    return found[::-1]


def told(row: Document) -> str:
    """One action as people say it."""
    return f"{row['action']} at {row['at'][:19].replace('T', ' ')} UTC by user {row['user'] or 'nobody'}"


# Doing


class No(Exception):  # noqa: N818 - an answer, not a fault
    """A verb ends without success; `failed` when it acted or tried to, else refused."""

    def __init__(self, code: str, tried: str, found: str, after: str, state: str = "refused", **evidence: Any) -> None:
        super().__init__(found)
        touched = None if state == "failed" else False
        self.state, self.evidence = state, evidence
        said = {"code": code, "tried": tried, "found": found.rstrip("."), "next": after}
        self.error = said | {"touched": touched, "evidence": evidence}


@dataclass
class Said:
    """One request being worked on: what it measured so far, and what it asked Nova to change."""

    request: Request
    commands: list[Document] = field(default_factory=list)
    evidence: Document = field(default_factory=dict)

    @property
    def args(self) -> Args:
        """The arguments of the request."""
        return self.request.args

    @property
    def instance(self) -> str:
        """The instance's id."""
        return str(self.request.args["instance"])

    @property
    def undoing(self) -> bool:
        """True when the verb puts back what it did before."""
        return self.request.direction == "undo"

    @property
    def this(self) -> Document:
        """What this very attempt has measured."""
        return {**(self.request.known.get("this") or {}), **self.evidence}

    def of(self, what: str) -> Document:
        """What the job measured when the instance was stopped, the disks were exchanged, or the copy was verified."""
        return dict(self.request.known.get(what) or {})

    @property
    def waited(self) -> float:
        """Seconds since Nova was asked. What was noted before a clock was set back counts from when that was noticed:
        the beginning of the attempt is then brought to that moment."""
        now, times = time.time(), (self.this.get("asked_at"), self.request.known.get("began"))
        return now - next((float(at) for at in times if at and float(at) <= now + SKEW), now)

    def note(self, act: Act, began: float, status: int, out: str, err: str = "") -> None:
        """Adds a call to the commands of the step, as hostctl reports those that it ran."""
        self.commands.append(
            {
                "kind": act.kind,
                "text": act.text,
                "argv": list(act.argv),
                "probe": False,
                "exit": status,
                "seconds": round(time.time() - began, 3),
                "at": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
                "stdout": out,
                "stderr": err,
            }
        )


class Control:
    """A Host for the steps of an instance whose cloud volmig controls through Nova.

    `hypervisor` leads to hostctl on the instance's own hypervisor, `names` are what Nova calls it. `intend` is called
    immediately before every change: it writes down what was found, and raises when another worker has the job.
    """

    def __init__(
        self,
        nova: Nova,
        hypervisor: Callable[[], Host],
        names: frozenset[str],
        intend: Callable[[Request, Document], None],
    ) -> None:
        self.nova, self.hypervisor, self.names, self.intend = nova, hypervisor, names, intend

    def call(self, request: Request, timeout: float = 20) -> Answer:
        """Carries a verb of hostctl out through Nova; the answer has the same shape."""
        said = Said(request)
        try:
            state = getattr(self, request.verb)(said)
        except No as no:
            return Answer(no.state, {**said.this, **no.evidence}, said.commands, no.error)
        except (Unreachable, HostctlDiffers):
            if not said.commands:
                raise
            state = "running"  # what was changed has to be written down before the next look
        return Answer(state, said.this, said.commands, again=AGAIN if state == "running" else 0)

    def watch(self) -> Iterator[dict[str, Any]]:
        """Nothing: Nova's actions are polled by the verbs."""
        yield from ()

    def close(self) -> None:
        """Nothing: the connection is the cloud's."""
        pass

    # Facts

    def nova_facts(self, said: Said) -> str:
        """The instance as Nova sees it; with `source_instance` also what checks need to know around it."""
        found = self.nova.server(said.instance)
        rows = [action(row) for row in self.nova.actions(said.instance)]
        said.evidence = {
            "names": sorted(self.names),
            "version": self.nova.version(),
            "server": found and server(found),
            "actions": rows,
            "time": time.time(),
        }
        if "source_instance" in said.args:
            said.evidence |= self._around(said) | {"properties": self._properties(found or {})}
        return "done"

    def _around(self, said: Said) -> Document:
        """The instance that the source volume belonged to, evacuations of both, and the compute services."""
        instance, source = said.instance, said.args["source_instance"]
        twin = source == instance or not source
        there = None if twin else self.nova.server(source)
        services = [
            {name: row.get(name) for name in ("host", "state", "status")}
            | {"forced_down": bool(row.get("forced_down")), "reason": text(row.get("disabled_reason"))}
            for row in self.nova.services()
        ]
        return {
            "source_names": said.args.get("source_names", []),
            "source_server": there and server(there),
            "services": services,
            "moves": [move(row) for row in self.nova.migrations(instance)],
            "source_moves": [] if twin else [move(row) for row in self.nova.migrations(source)],
        }

    def _properties(self, found: Document) -> Document:
        """Of its image: Nova itself keeps os_shutdown_timeout to itself, and what it tells of others is Glance's."""
        image = (found.get("image") or {}).get("id")
        known = self.nova.image(image) if image else {}
        wanted = {name: value for name, value in known.items() if name.startswith(("hw_", "os_", "img_"))}
        return {text(name): text(value) for name, value in wanted.items() if isinstance(value, str | int)}

    def recall(self, said: Said) -> str:
        """What Nova keeps of an instance for a database that was set back: its state, and what volmig's user had done.

        `acts` are oldest first; what failed on the compute is left out.
        """
        found, me = self.nova.server(said.instance), self.nova.who()["user_id"]
        rows = [action(row) for row in self.nova.actions(said.instance, RECALLED)]
        acts = [row for row in reversed(rows) if row["user"] == me and not row["failed"]]
        said.evidence = {"server": found and server(found), "acts": acts}
        return "done"

    # Lock and unlock

    def instance_lock(self, said: Said) -> str:
        """Locks the instance with the migration's reason; refuses a lock of someone else (`foreign-lock`)."""
        reason, found = said.args["reason"], self._here(said)
        if found["locked"] and found["locked_reason"] != reason:
            why = found["locked_reason"] or "no reason given"
            after = "Ask the person who locked it, unlock it, then resume."
            raise No("foreign-lock", self._tried("lock", said), f"someone else has locked it ({why})", after)
        if not found["locked"]:
            status, complaint = self._ask(said)
            found = self._here(said)
            if not found["locked"] or found["locked_reason"] != reason:
                seen = f"it is not locked for volmig; {status} {complaint}".strip()
                raise No(
                    "not-locked", self._tried("lock", said), seen, "Check the credential on the cloud's page.", "failed"
                )
        said.evidence |= {"prevents": True, "already": not said.commands}
        return "done"

    def instance_unlock(self, said: Said) -> str:
        """Only a lock with the job's own reason is taken off; any other is somebody else's, and stays."""
        found = self.nova.server(said.instance)
        if found is None:
            said.evidence |= {"already": True, "gone": True}
            return "done"
        seen = server(found)
        if not seen["locked"] or seen["locked_reason"] != said.args["reason"]:
            other = {"lock_of_others": seen["locked_reason"] or "no reason given"} if seen["locked"] else {}
            said.evidence |= {"already": not said.commands and "request" not in said.this, **other}
            return "done"
        status, complaint = self._ask(said)
        seen = server(self.nova.server(said.instance) or found)
        if seen["locked"] and seen["locked_reason"] == said.args["reason"]:
            what = f"it is still locked; {status} {complaint}".strip()
            raise No("still-locked", self._tried("unlock", said), what, "Unlock it in Nova, then resume.", "failed")
        return "done"

    # Stop

    def instance_stop(self, said: Said) -> str:
        """Shuts it down, and is done once Nova and libvirt both report it off."""
        found = self._state(said)
        if found is None:
            return "done"
        state, task = found["vm_state"], found["task_state"]
        if state == "stopped" and not task:
            return self._is_off(said)
        if task == "powering-off":
            said.evidence |= {"was": "running"}
            return self._wait(said, "stop", "stop-deadline", self._deadline(said))
        if task or state != "active":
            raise self._strange(said, "stop", found)
        if "request" in said.this:
            raise self._ended_badly(said, "stop", "The instance runs on its old disk." if not said.undoing else "")
        self._uses_its_disk(said, self._libvirt(said))
        return self._change(said, "stop")

    def _is_off(self, said: Said) -> str:
        seen, rows = self._libvirt(said), [action(row) for row in self.nova.actions(said.instance)]
        if not said.undoing:
            self._nobody_else(said, rows, "stop")
        if seen["state"] != "shut off":
            if said.waited < self._deadline(said):
                return "running"
            found = f"Nova reports stopped, libvirt on the hypervisor reports {seen['state']}"
            raise No("unknown-state", self._tried("stop", said), found, "Find out which is true before you continue.")
        self._uses_its_disk(said, seen)
        said.evidence |= {
            "was": self._was(said, rows),
            "already": not self._recalled(said, rows, "stop"),
            "live": seen["live"],
            "stopped_at": seen["time"],
            "nova": "stopped",
            "libvirt": seen["state"],
        }
        return "done"

    def _was(self, said: Said, rows: list[Document]) -> str:
        """How this job's own stop found it."""
        known = said.this.get("was") or said.of("stopped").get("was")
        return str(known or ("running" if self._recalled(said, rows, "stop") else "shut off"))

    def _deadline(self, said: Said) -> float:
        return float(said.args.get("deadline", START_DEADLINE))

    # Start

    def instance_start(self, said: Said) -> str:
        """Starts it, and is done once Nova and libvirt both report it running."""
        found = self._state(said)
        if found is None:
            return "done"
        state, task = found["vm_state"], found["task_state"]
        if state == "active" and not task:
            return self._is_on(said)
        if task in ("powering-on", "powering-off") and (task == "powering-on" or said.undoing):
            return self._wait(said, "start", f"still-{task}", START_DEADLINE)
        if state == "stopped" and not task:
            return self._from_off(said)
        if state == "error" and "request" in said.this:
            raise self._ended_badly(said, "start", found["fault"])
        raise self._strange(said, "start", found)

    def _from_off(self, said: Said) -> str:
        if "request" in said.this:
            raise self._ended_badly(said, "start")
        if said.undoing and self._was(said, self._rows(said)) != "running":
            said.evidence |= {"state": "shut off", "already": True}
            return "done"
        seen = self._libvirt(said)
        self._uses_its_disk(said, seen)
        return self._change(said, "start")

    def _is_on(self, said: Said) -> str:
        ours = "request" in said.this  # accepted from a stopped instance: nobody else can have started it
        if not ours:
            rows = self._rows(said)
            ours = self._recalled(said, rows, "start")
            if not said.undoing:
                self._nobody_else(said, rows, "start")
        seen = self._libvirt(said)
        if seen["state"] != "running":
            if said.waited < START_DEADLINE:
                return "running"
            found = f"Nova reports active, libvirt on the hypervisor reports {seen['state']}"
            after = "Read libvirt's log of this guest."
            raise No("not-running", self._tried("start", said), found, after, "failed", ever_ran=True)
        self._uses_its_disk(said, seen)
        said.evidence |= {"started_at": seen["time"], "state": "running", "already": not ours}
        return "done"

    def _ever_ran(self, said: Said) -> bool:
        """Whether the guest may have written to the new disk: libvirt's own log and the file's own times say no."""
        seen, swapped = self._libvirt(said), said.of("exchanged").get("swapped_at")
        if seen["state"] != "shut off" or seen["runs"] is None or swapped is None or not seen["live"]:
            return True
        runs = [run for run in seen["runs"] if run["at"] >= float(swapped) - 1 and run["ended"] != "failed"]
        stage = said.of("verified")
        same = all(seen["live"][name] == stage.get(name) for name in ("inode", "file_size", "mtime_ns"))
        return bool(runs) or not same

    # What they share

    def _here(self, said: Said) -> Document:
        """The server, which has to be there and on this hypervisor."""
        return self._checked(said, self.nova.server(said.instance))

    def _checked(self, said: Said, found: Document | None) -> Document:
        tried = self._tried("find", said)
        if found is None:
            raise No(
                "unknown-instance", tried, "Nova has no such instance: it was deleted", "Cancel; its disk is gone."
            )
        seen = server(found)
        if seen["host"] not in self.names and seen["hypervisor"] not in self.names:
            where = f"Nova has it on {seen['host'] or 'no host'}, not on {' or '.join(sorted(self.names))}"
            raise No("unknown-host", tried, where, "The instance was moved. Find out why; cancel, and plan again.")
        return seen

    def _state(self, said: Said) -> Document | None:
        """The same for stop and start; None, and done, when an undo finds it deleted."""
        found = self.nova.server(said.instance)
        if said.undoing and found is None:
            said.evidence |= {"gone": True, "already": True}
            return None
        return self._checked(said, found)

    def _libvirt(self, said: Said) -> Document:
        names = ("instance", "instances", "disk")
        asked = Request(
            "instance_state", {name: said.args[name] for name in names}, said.request.job, said.request.number
        )
        answer = self.hypervisor().call(asked)
        if answer.state != "done":
            error = answer.error or {}
            found = str(error.get("found", answer.state))
            raise No(
                "unknown-state", f"read from libvirt the state of {said.instance}", found, str(error.get("next", ""))
            )
        return answer.evidence

    def _uses_its_disk(self, said: Said, seen: Document) -> None:
        """The domain has this very file, and the file is the one that it has to be."""
        args, live = said.args, seen["live"]
        path = f"{args['instances']}/{args['instance']}/{args['disk']}"
        sources = [disk["source"] for disk in seen["disks"]]
        if path not in sources or not live:
            found = f"it uses {', '.join(sources) or 'no disk'}, not {path}" if live else f"{path} is not there"
            raise No(
                "unknown-disk", self._tried("check the disk of", said), found, "Check the instance's disks; plan again."
            )
        if live["inode"] != args.get("expect_inode", live["inode"]):
            found = f"{path} has inode {live['inode']}, expected {args['expect_inode']}"
            raise No("unknown-inode", self._tried("start", said), found, "The disk was replaced. Inspect it.")

    def _change(self, said: Said, verb: str) -> str:
        """Ask for it, once; what a 409 means is told by the next look at the state."""
        status, complaint = self._ask(said, was="running" if verb == "stop" else "shut off")
        if status < 400:
            return "running"
        found = self._here(said)
        wanted, task = ("stopped", "powering-off") if verb == "stop" else ("active", "powering-on")
        if found["task_state"] == task or (found["vm_state"] == wanted and not found["task_state"]):
            return "running"
        evidence = {"ever_ran": False} if verb == "start" else {}
        why = f"Nova refused: {status} {complaint}"
        raise No(f"{verb}-refused", self._tried(verb, said), why, "Read Nova's message.", "failed", **evidence)

    def _ask(self, said: Said, **found: Any) -> tuple[int, str]:
        """Have Nova change something, and write that down."""
        act, began = acts(said.request.verb, said.args)[0], time.time()
        self.intend(said.request, {"asking": began, **found})
        status, request, complaint = self.nova.post(act.argv[1], json.loads(act.argv[2]))
        said.note(act, began, 0 if status < 400 else status, f"{status} {request}".strip(), complaint)
        said.evidence |= {"asking": 0}
        if status < 400:
            said.evidence |= {"request": request, "asked_at": began, **found}
        return status, complaint

    def _wait(self, said: Said, verb: str, code: str, deadline: float) -> str:
        if said.waited < deadline:
            return "running"
        found = f"still under way after {int(said.waited)} s"
        after = "Check nova-compute on the hypervisor: it may still carry the request out later."
        ran = {"ever_ran": True} if verb == "start" and not said.undoing else {}
        raise No(code, self._tried(verb, said), found, after, "failed", **ran)

    def _ended_badly(self, said: Said, verb: str, more: str = "") -> No:
        """It was accepted and did not happen; why is told only by the action's events."""
        row = self.nova.action(said.instance, said.this["request"])
        failed = [each for each in row.get("events") or () if each.get("result") == "Error"]
        why = (
            "; ".join(text(each.get("details") or each.get("event")) for each in failed) or more or "it gave no reason"
        )
        ran = {"ever_ran": self._ever_ran(said)} if verb == "start" and not said.undoing else {}
        found = f"Nova accepted it, and it failed on the compute: {why}"
        return No(f"{verb}-failed", self._tried(verb, said), found, "Read nova-compute's log.", "failed", **ran)

    def _strange(self, said: Said, verb: str, found: Document) -> No:
        what = f"it is {found['vm_state']}" + (f" and {found['task_state']}" if found["task_state"] else "")
        after = "Find out who is using it; bring it to running or shut off, then resume."
        if said.undoing:
            return No("not-settled", self._tried(verb, said), what, after, "failed")
        return No("unknown-state", self._tried(verb, said), what, after)

    def _nobody_else(self, said: Said, rows: list[Document], verb: str) -> None:
        known = said.request.known
        mine = [*(known.get("ours") or ()), said.this.get("request", ""), *self._lost(said, rows, verb)]
        others = foreign(rows, str(known.get("approved") or ""), mine, str(known.get("accepted") or ""))
        if others:
            found = "someone else changed it: " + "; ".join(told(row) for row in others)
            raise No("foreign-action", self._tried(verb, said), found, "Find out who and why, then resume or cancel.")

    def _rows(self, said: Said) -> list[Document]:
        return [action(row) for row in self.nova.actions(said.instance)]

    def _recalled(self, said: Said, rows: list[Document], verb: str) -> bool:
        """Whether this attempt asked for it, by its own record or, when the answer was lost, by Nova's."""
        if "request" in said.this:
            return True
        lost = self._lost(said, rows, verb)
        if lost:
            act = acts(said.request.verb, said.args)[0]
            said.note(act, time.time(), 0, f"the answer was lost; Nova reports it as {lost[0]}")
            said.evidence |= {"request": lost[0]}
        return bool(lost)

    def _lost(self, said: Said, rows: list[Document], verb: str) -> list[str]:
        """What volmig itself asked for in this attempt, as it wrote down, although no answer came."""
        asking, ours = said.this.get("asking"), said.request.known.get("ours") or ()
        if not asking:
            return []
        me, began = self.nova.who()["user_id"], datetime.fromtimestamp(asking - SKEW, UTC).isoformat()[:19]
        return [
            row["request"]
            for row in rows
            if row["action"] == verb and row["user"] == me and row["at"] >= began and row["request"] not in ours
        ][:1]

    def _tried(self, verb: str, said: Said) -> str:
        return f"{verb} {said.instance} through Nova"


def move(found: Document) -> Document:
    """One row of os-migrations."""
    return {
        "kind": text(found.get("migration_type")),
        "status": text(found.get("status")),
        "source": text(found.get("source_compute")),
        "destination": text(found.get("dest_compute")),
        "at": text(found.get("updated_at") or found.get("created_at")),
    }
