"""One request: validate it, keep it behind flock and fence, run it or start it detached, answer what is stored."""

import ipaddress
import json
import re
import time
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from . import PROTOCOL, authority, policy, question, source_hash, transient_units, verbs
from .act import UUID, Args, Refused, Stop
from .commands import Work
from .ownership import Ownership
from .store import RUN, STATE, Store, forgotten
from .version import installed

INPUT_CAP = 1 << 20
DEPTH_CAP = 12
TARGETS_CAP = 64  # ports that one request may have knocked at: so many connections are open at once
ANSWER_WITHIN = 5.0
LOCK_WITHIN = 20.0

# Allow-lists, all anchored at both ends; whatever is not listed here never reaches a verb.
LVM_NAME, PATH = policy.LVM_NAME, policy.ABSOLUTE
PATTERNS = {
    "vg": LVM_NAME,
    "lv": LVM_NAME,
    "relay_lv": LVM_NAME,
    "instance": UUID,
    "fs_uuid": UUID,
    "lv_uuid": r"[A-Za-z0-9]{6}-(?:[A-Za-z0-9]{4}-){5}[A-Za-z0-9]{6}",
    "mountpoint": r"/(?:srv|mnt)/volmig/[0-9a-f]{32}",
    "export": r"/srv/volmig/[0-9a-f]{32}",
    "instances": PATH,
    "backup_path": PATH,
    "share_source": policy.SHARE,
    "disk": r"disk(?:\.[a-z0-9]{1,16})?",
    "sha256": r"[0-9a-f]{64}",
    "reason": r"[ -~]{1,200}",
    "was": r"writeable|read-only|running|shut off",
    "holder_unit": r"volmig-[0-9a-f]{32}-holder",
    "options": r"[A-Za-z0-9_=,.:/-]{0,500}",
    "stops": r"volmig-[0-9a-f]{32}-[a-z][a-z_]{0,39}-(?:do|undo)-[0-9]{1,3}",
    "step": r"[a-z][a-z_]{0,39}",
    "direction": r"do|undo",
    "job": UUID,
    "verb": r"[a-z_]{1,40}",
    "hash": r"[0-9a-f]{16}",
    "incarnation": r"[0-9a-f]{32}",
    "session": r"[0-9a-f]{32}",
    "after": r"[0-9a-f]{32}",
    "instead_of": r"[0-9a-f]{32}",
}
COUNTS = (
    "size",
    "uid",
    "gid",
    "rate",
    "writes",
    "sectors_written",
    "file_size",
    "virtual_size",
    "inode",
    "mtime_ns",
    "mode",
    "deadline",
    "expect_inode",
    "backup_inode",
    "live_inode",
    "number",
    "attempt",
    "fence",
    "claim",
    "port",
    "major",
    "minor",
    "device",
    "nlink",
    "free",
    "erased_bytes",
    "bytes_read",
    "bytes_written",
)
ADDRESSES = ("address", "client", "relay_address")
UNITS = ("start", "started")
NESTED = ("made", "live", "stage", "recorded")


class Request(NamedTuple):
    """A validated request; `key` names step, direction and attempt on this host, `seal` proves an approval.

    Who asks: `incarnation` is the volmig, `session` the start of its workers, `claim` how far that has counted in its
    database, `after` the session that this volmig knows to have acted here before. See ownership.py.
    """

    verb: str
    args: Args
    job: str
    step: str
    direction: str
    attempt: int
    fence: int
    stops: str
    hash: str
    incarnation: str = ""
    session: str = ""
    claim: int = 0
    after: str = ""
    seal: Dict[str, Any] = {}

    @property
    def key(self) -> str:
        """Names the attempt in files and units: step, direction, number."""
        return "%s-%s-%d" % (self.step, self.direction, self.attempt)


# Validation


def _bad(what: str, found: object) -> Refused:
    return Refused(
        "bad-request",
        "read the request",
        "%s: %.200r" % (what, found),
        "This is a bug in volmig: report it with the evidence archive of this migration.",
    )


def parse(data: bytes) -> Request:
    """The request in `data`; Refused for anything that is not exactly one well-formed request."""
    if len(data) > INPUT_CAP:
        raise _bad("more than 1 MiB", len(data))
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _bad("not JSON", data[:100])
    if not isinstance(value, dict) or _depth(value) > DEPTH_CAP:
        raise _bad("not a flat JSON object", data[:100])
    return _request(value)


def _no_constant(name: str) -> None:
    raise ValueError("%s is not JSON" % name)


def _depth(value: Any, level: int = 1) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return level if level > DEPTH_CAP else max([level] + [_depth(item, level + 1) for item in inner])


def _request(value: Dict[str, Any]) -> Request:
    known = (
        *("hash", "verb", "job", "number", "step", "direction", "attempt", "fence", "stops", "args"),
        *("incarnation", "session", "claim", "after", "seal"),
    )
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise _bad("unknown fields", unknown)
    head: Dict[str, Any] = {name: value.get(name) for name in known if value.get(name) not in ("", None)}
    head.update(direction=head.get("direction", "do"), attempt=head.get("attempt", 1), fence=head.get("fence", 0))
    args = head.pop("args", {})
    for name, found in head.items():
        check_field(name, found)
    if head.get("verb") not in verbs.VERBS:
        raise _bad("no such verb", head.get("verb"))
    return Request(
        head["verb"],
        check_args(head["verb"], args, head.get("job", "")),
        head.get("job", ""),
        head.get("step", ""),
        head["direction"],
        head["attempt"],
        head["fence"],
        head.get("stops", ""),
        head.get("hash", ""),
        head.get("incarnation", ""),
        head.get("session", ""),
        head.get("claim", 0),
        head.get("after", ""),
        head.get("seal", {}),
    )


def check_args(verb: str, args: Any, job: str) -> Args:
    """The arguments of a verb, every one on its allow-list; evidence under `made` that no list knows is dropped."""
    if not isinstance(args, dict):
        raise _bad("args", args)
    missing = [name for name in verbs.VERBS[verb].needs if name not in args]
    if missing:
        raise _bad("%s needs" % verb, missing)
    for name, found in args.items():
        check_field(name, found)
    for name in ("mountpoint", "export"):
        if name in args and not args[name].endswith("/" + job.replace("-", "")):
            raise _bad("%s of another job" % name, args[name])
    return {name: _evidence(found) if name in NESTED else found for name, found in args.items()}


def _evidence(found: Dict[str, Any]) -> Dict[str, Any]:
    kept = {name: value for name, value in found.items() if _known(name)}
    for name, value in kept.items():
        check_field(name, value)
    return kept


def _known(name: str) -> bool:
    return name in PATTERNS or name in COUNTS or name in ADDRESSES or name in UNITS


def check_field(name: str, found: Any) -> None:
    """Refuse a value that is not on the allow-list of its field, and a field that has none."""
    if not is_field(name, found):
        raise _bad(name, found)


def is_field(name: str, found: Any) -> bool:
    """Whether a value is on the allow-list of its field."""
    if name in PATTERNS:
        return isinstance(found, str) and re.match(r"(?:%s)\Z" % PATTERNS[name], found) is not None
    if name in COUNTS:
        return type(found) is int and 0 <= found < 1 << 63
    if name in ADDRESSES:
        return isinstance(found, str) and _is_address(found)
    if name in UNITS:
        return isinstance(found, list) and all(isinstance(unit, str) and unit in verbs.SERVICES for unit in found)
    if name == "targets":
        return isinstance(found, list) and len(found) <= TARGETS_CAP and all(_is_target(target) for target in found)
    if name == "untouched":
        return isinstance(found, bool)
    if name == "seal":
        return authority.is_seal(found)
    return name in NESTED and isinstance(found, dict)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_target(target: Any) -> bool:
    return (
        isinstance(target, dict)
        and set(target) == {"address", "port"}
        and is_field("address", target["address"])
        and is_field("port", target["port"])
        and 0 < target["port"] < 65536
    )


# Answers


def answer(
    state: str,
    evidence: Optional[Dict[str, Any]] = None,
    work: Optional[Work] = None,
    error: Optional[Dict[str, Any]] = None,
    unit: str = "",
) -> Dict[str, Any]:
    """The response as JSON; `state` is done, running, failed, refused or unknown."""
    return {
        "state": state,
        "evidence": evidence or {},
        "commands": work.commands if work else [],
        "error": error,
        "unit": unit,
        "boot_id": transient_units.boot_id(),
        "hash": source_hash(),
        "protocol": PROTOCOL,
    }


def refusal(stop: Stop, work: Optional[Work] = None, unit: str = "") -> Dict[str, Any]:
    """Foreign and unknown objects stay refusals even after an act, because they must halt the job."""
    touched = work.touched if work else False
    strange = stop.code.startswith(("foreign-", "unknown-"))
    state = "refused" if touched is False or strange else "failed"
    return answer(state if stop.state == "refused" else "failed", stop.evidence, work, stop.error(touched), unit)


def bug(work: Optional[Work], unit: str = "") -> Dict[str, Any]:
    """An exception that nobody foresaw: said plainly, never a traceback on standard output."""
    last = traceback.format_exc().strip().splitlines()
    where = [line.strip() for line in last if line.strip().startswith("File ")][-1:]
    error: Dict[str, Any] = {
        "code": "bug",
        "tried": "run the step",
        "found": ("hostctl failed: %s, at %s" % (last[-1][:400], " ".join(where))).rstrip(". "),
        "touched": None,
        "evidence": {},
        "next": "This is a bug in volmig: report it with the evidence archive, and check this host first.",
    }
    return answer("failed", {}, work, error, unit)


def guarded(run: Callable[[Work], Dict[str, Any]], work: Work, unit: str = "") -> Dict[str, Any]:
    """The answer of a verb, whatever happens in it."""
    try:
        return answer("done", run(work), work, None, unit)
    except Stop as stop:
        return refusal(stop, work, unit)
    except Exception:
        return bug(work, unit)


# Handling


class Desk:
    """Handles requests of one host; places and units are arguments so that tests can run it anywhere."""

    def __init__(
        self,
        units: Optional[transient_units.Units] = None,
        state: str = STATE,
        run: str = RUN,
        patience: float = ANSWER_WITHIN,
        rules: Callable[[], policy.Reading] = policy.read,
    ) -> None:
        self.units, self.state, self.run, self.patience = units or transient_units.Units(), state, run, patience
        self.rules = rules  # reads the policy of this host

    def store(self, job: str) -> Store:
        """What this host has stored of one migration."""
        return Store(job, self.state, self.run)

    def handle(self, data: bytes) -> Dict[str, Any]:
        """The answer to one request; never raises. What another version stored is answered in this one's name."""
        return dict(self._handle(data), hash=source_hash(), protocol=PROTOCOL)

    def _handle(self, data: bytes) -> Dict[str, Any]:
        try:
            request = parse(data)
            if request.hash and request.hash != source_hash():
                raise Refused(
                    "hostctl-differs",
                    "run %s" % request.verb,
                    "this hostctl is %s, requested was %s" % (source_hash(), request.hash),
                    "Install version %s of hostctl beside it." % request.hash,
                    versions=installed(),
                )
            if not self._was_begun(request):
                self._allow(request)
            return self._dispatch(request)
        except Stop as stop:
            return refusal(stop)
        except Exception:
            return bug(None)

    def _was_begun(self, request: Request) -> bool:
        """Whether this very attempt was begun before: what became of it is answered whatever the policy says by now.

        To refuse it as untouched, when it may have been carried out and only its answer was lost, would be a lie.
        """
        if not verbs.VERBS[request.verb].mutates or not request.job or not request.step:
            return False
        asked = self.store(request.job).read(request.key + ".request")
        return asked is not None and (asked["verb"], asked["args"]) == (request.verb, request.args)

    def _allow(self, request: Request) -> None:
        """Refuse what this host's policy does not allow, and what needs a seal but has no valid one; nothing ran."""
        reading, verb = self.rules(), request.verb
        found = policy.objections(reading, verb, request.args, not verbs.VERBS[verb].mutates)
        if not found and policy.RULES[verb].sealed and reading.policy is not None:
            keys = reading.policy.seal_keys
            unsealed = authority.objection(keys, request.seal, request.job, verb, request.args, time.time())
            found = [unsealed] if unsealed else []
        if found:
            said = "; ".join(each.found for each in found)
            raise Refused(found[0].code, "run this step", said, found[0].next_step)

    def _dispatch(self, request: Request) -> Dict[str, Any]:
        verb = verbs.VERBS[request.verb]
        work = Work(request.args, request.job, verb.acts)
        if request.verb == "policy":
            return answer("done", dict(policy.report(self.rules()), time=time.time()))
        if request.verb == "status":
            return answer("done", self.status(request.job))
        if request.verb == "recall":
            return answer("done", self.recall(request.job))
        if request.verb == "own":
            return self._own(request)
        if request.verb == "fence":
            return self._fence(request)
        if not verb.mutates:
            return self._question(request.verb, work)
        if not request.job or (not request.step and request.verb != "forget"):
            raise _bad("%s needs job and step" % request.verb, request.step)
        if request.verb == "forget":
            return self._forget(request, work)
        return self._submit(request)

    def _question(self, verb: str, work: Work) -> Dict[str, Any]:
        def run(work: Work) -> Dict[str, Any]:
            return guarded(verbs.VERBS[verb].run, work)

        return question.answered(run, work, verb, self.run, question.within(verb))

    def _fence(self, request: Request) -> Dict[str, Any]:
        """Shut out every earlier owner of the job; busy while anything that one of them began still runs."""
        if not request.job:
            raise _bad("fence needs a job", request.job)
        kept = self.store(request.job)
        if not self._admit(kept, request):
            return answer("busy")
        if not kept.exists():
            return self._bury(kept, request)
        with kept.locked("door", LOCK_WITHIN) as door:
            if not door:
                return answer("busy")
            kept.raise_fence(request.fence, request.session, request.claim)
            running = self._running(kept)
        return answer("busy" if running else "done", {"fence": request.fence, "running": running})

    def _bury(self, kept: Store, request: Request) -> Dict[str, Any]:
        """Note the fence of a job without a directory here, unless another owner noted a higher one just now."""
        with self.ownership().locked(LOCK_WITHIN) as free:
            if not free:
                return answer("busy")
            kept.check_fence(request.fence, request.session)
            kept.bury(request.fence, request.session, request.claim)
        return answer("done", {"fence": request.fence, "running": []})

    def _admit(self, kept: Store, request: Request) -> bool:
        """Refuse, with nothing changed, whoever owns neither this host nor the job; False when others are busy here.

        Nothing of a job that was forgotten comes up again: its fence is known.
        """
        ownership = self.ownership()
        with ownership.locked(LOCK_WITHIN) as free:
            if free:
                ownership.check(request.incarnation, request.session, request.after)
                kept.check_fence(request.fence, request.session)
                ownership.check_claim(request.session, request.claim, kept.claimed(request.session))
                ownership.take(request.incarnation, request.session, request.claim)
        return free

    def _own(self, request: Request) -> Dict[str, Any]:
        """Take this host over, as a person has decided: from then on only this session is known here.

        `instead_of` names the other volmig that the host belonged to.
        """
        if not request.incarnation or not request.session:
            raise _bad("own needs incarnation and session", request.incarnation)
        ownership = self.ownership()
        with ownership.locked(LOCK_WITHIN) as free:
            if not free:
                return answer("busy")
            owner = ownership.read()
            if owner and request.args.get("instead_of") == owner["incarnation"]:
                ownership.check(owner["incarnation"], request.session, request.after)
            else:
                ownership.check(request.incarnation, request.session, request.after)
            ownership.take(request.incarnation, request.session, request.claim, afresh=True)
        return answer("done", {"owner": ownership.read(), "before": owner})

    def recall(self, job: str) -> Dict[str, Any]:
        """What this host keeps of a job, also once it was forgotten; without a job which ones it knows, and its owner.

        `known` is "yes", "forgotten", or "no" when this host never heard of the job, or long ago.
        """
        owner = self.ownership().read()
        if not job:
            return {"owner": owner, "jobs": {name: self._brief(name) for name in known_jobs(self.state)}}
        kept = self.store(job)
        runs = [self._timely(kept, run) for run in kept.runs()]
        return dict(self._brief(job), owner=owner, session=str(kept.fenced().get("session") or ""), runs=runs)

    def _brief(self, job: str) -> Dict[str, Any]:
        kept = self.store(job)
        known = "yes" if kept.started() else "forgotten" if kept.buried() else "no"
        return {"fence": kept.fence(), "known": known}

    def _timely(self, kept: Store, run: Dict[str, Any]) -> Dict[str, Any]:
        """What has no result yet runs, or is lost."""
        if run["state"]:
            return run
        key = "%s-%s-%d" % (run["step"], run["direction"], run["attempt"])
        return dict(run, state="running" if self._alive(kept, key) else "lost")

    def ownership(self) -> Ownership:
        """Which volmig owns this host."""
        return Ownership(self.state)

    def _running(self, kept: Store) -> List[str]:
        """step-direction-attempt of everything that runs."""
        return [key for key in kept.started() if kept.result(key) is None and self._alive(kept, key)]

    def status(self, job: str) -> Dict[str, Any]:
        """Fence and steps of a job as this host knows them, and who owns the host."""
        if not job:
            raise _bad("status needs a job", job)
        kept = self.store(job)
        steps = [self._step(kept, key) for key in kept.started()]
        return dict(self._brief(job), steps=steps, owner=self.ownership().read())

    def _step(self, kept: Store, key: str) -> Dict[str, Any]:
        step, direction, attempt = key.split("-")
        state = (kept.result(key) or {}).get("state") or ("running" if self._alive(kept, key) else "lost")
        return {
            "step": step,
            "direction": direction,
            "attempt": int(attempt),
            "state": state,
            "unit": transient_units.unit_name(kept.job, key),
        }

    def _alive(self, kept: Store, key: str) -> bool:
        return self.units.alive(transient_units.unit_name(kept.job, key))

    def _forget(self, request: Request, work: Work) -> Dict[str, Any]:
        kept = self.store(request.job)
        if not self._admit(kept, request):
            return answer("busy")
        if not kept.exists():
            return guarded(lambda work: {"left": transient_units.left(work), "already": True}, work)
        with kept.locked("door", LOCK_WITHIN) as door:
            if not door:
                return answer("busy")
            kept.raise_fence(request.fence, request.session, request.claim)
            return guarded(lambda work: transient_units.forget(work, kept, self.units), work)

    def _submit(self, request: Request) -> Dict[str, Any]:
        kept = self.store(request.job)
        if not self._admit(kept, request):
            return answer("busy")
        kept.open()
        with kept.locked("door", LOCK_WITHIN) as door:
            if not door:
                return answer("busy")
            kept.raise_fence(request.fence, request.session, request.claim)
            earlier = self._earlier(kept, request)
            if earlier is not None:
                return earlier
            self._stop_first(kept, request)
            busy = self._running(kept)
            if busy:
                return answer("busy", {"running": busy}, unit=transient_units.unit_name(kept.job, busy[0]))
            self._start(kept, request)
        return self._await(kept, request.key)

    def _earlier(self, kept: Store, request: Request) -> Optional[Dict[str, Any]]:
        """What is known of this very step and attempt, or None when it was never started."""
        asked = kept.read(request.key + ".request")
        if asked is None:
            return None
        if (asked["verb"], asked["args"]) != (request.verb, request.args):
            raise Refused(
                "unknown-request",
                "repeat %s" % request.key,
                "it was started with other arguments",
                "Use a new attempt number for other arguments.",
            )
        return self._outcome(kept, request.key)

    def _outcome(self, kept: Store, key: str) -> Dict[str, Any]:
        unit = transient_units.unit_name(kept.job, key)
        alive = self._alive(kept, key)  # asked before the result is read: it may end in between
        result = kept.result(key)
        if result is not None:
            return result
        if alive:
            return answer("running", unit=unit)
        begun = (kept.read(key + ".request") or {}).get("boot_id")
        error: Dict[str, Any] = {
            "code": "lost",
            "tried": "run %s" % unit,
            "touched": None,
            "evidence": {},
            "found": "the host has rebooted"
            if begun != transient_units.boot_id()
            else "it ended without a result (killed?)",
            "next": "Check what it left behind, then use the next attempt.",
        }
        kept.finish(key, answer("lost", {}, None, error, unit))
        return kept.result(key) or {}

    def _stop_first(self, kept: Store, request: Request) -> None:
        if not request.stops:
            return
        prefix = transient_units.unit_name(kept.job, "")
        if not request.stops.startswith(prefix):
            raise _bad("stops a unit of another job", request.stops)
        self.units.stop(request.stops)
        key = request.stops[len(prefix) :]
        if kept.read(key + ".request") is not None:
            self._outcome(kept, key)

    def _start(self, kept: Store, request: Request) -> None:
        kept.write(request.key + ".request", dict(request._asdict(), boot_id=transient_units.boot_id(), at=time.time()))
        unit = transient_units.unit_name(kept.job, request.key)
        properties = verbs.VERBS[request.verb].sandbox(request.args, request.job)
        trouble = self.units.start(unit, properties, [*transient_units.program(), "run", request.job, request.key])
        if trouble:
            self._call_off(kept, request.key, unit, trouble)

    def _call_off(self, kept: Store, key: str, unit: str, trouble: str) -> None:
        """Never to be run; but what systemd says it could not start may have run, or be at work, all the same."""
        with kept.locked("lock", 0) as free:
            if free and kept.result(key) is None:
                stop = Refused(
                    "cannot-start", "start the unit %s" % unit, trouble, "Read systemd's message, repair, then resume."
                )
                kept.finish(key, refusal(stop, None, unit))

    def _await(self, kept: Store, key: str) -> Dict[str, Any]:
        deadline = time.monotonic() + self.patience
        while kept.result(key) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return kept.result(key) or self._outcome(kept, key)

    def run_unit(self, job: str, key: str) -> int:
        """Inside the unit: hold the job's lock over check and act, store one result. 0 when it ended well."""
        kept = self.store(job)
        request = _stored(kept.read(key + ".request"))
        unit = transient_units.unit_name(job, key)
        with kept.locked("lock", LOCK_WITHIN) as held:
            if kept.result(key) is not None:
                return 0
            result = (
                self._acted(kept, request, unit)
                if held
                else refusal(
                    Refused(
                        "locked",
                        "run %s" % key,
                        "another step of this job holds the lock",
                        "Wait until it ends, then resume.",
                    ),
                    None,
                    unit,
                )
            )
            kept.finish(key, result)
        return 0

    def _acted(self, kept: Store, request: Request, unit: str) -> Dict[str, Any]:
        verb = verbs.VERBS[request.verb]
        work = Work(request.args, request.job, verb.acts, kept, transient_units.reporter(kept, request.key))
        try:
            self._allow(request)  # again: the policy may have changed since the request was taken
        except Refused as stop:
            return refusal(stop, work, unit)
        try:
            kept.check_fence(request.fence, request.session)  # only who holds the door writes it
        except Refused as stop:
            # A code of its own: a request that comes from an owner that lost the job is answered stale-fence.
            return refusal(Refused("started-late", stop.tried, stop.found, stop.next_step), work, unit)
        return guarded(verb.run, work, unit)


def _stored(value: Optional[Dict[str, Any]]) -> Request:
    if value is None:
        raise Refused(
            "unknown-request", "run a unit", "no such request is stored", "Units are started by hostctl only."
        )
    return Request(**{name: value[name] for name in Request._fields if name in value})


def known_jobs(state: str) -> List[str]:
    """The jobs that something is kept of, forgotten ones too."""
    return sorted(set(transient_units.listed(state)) | set(forgotten(state)))
