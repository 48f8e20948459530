"""Detached work: transient systemd units, following them, and what is left of a job on this host."""

import contextlib
import json
import os
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import exports, lvm, mounts, store
from .act import Act, Args, Refused, command, syscall
from .commands import Work, export_format, find
from .privileges import as_root

BEAT = 2.0
GRACE = 5.0
NEVER = -1.0


def forget_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What forgetting announces; the fence stays, so that an earlier worker is still refused."""
    return (
        command("systemctl", "reset-failed", "--", "volmig-%s-*" % job.replace("-", "")),
        syscall("remove /var/lib/volmig/%s and /run/volmig/%s, but remember the job's fence" % (job, job)),
    )


def unit_name(job: str, key: str) -> str:
    """The unit of an attempt, without .service; it has the migration's id."""
    return "volmig-%s-%s" % (job.replace("-", ""), key)


class Units:
    """systemd, as far as volmig needs it; tests put another one in its place."""

    def __init__(self) -> None:
        self.work = Work({}, "", lambda args, job: ())

    def alive(self, unit: str) -> bool:
        """Whether it runs; where systemd does not say, the kernel does: what still runs may not be taken for lost."""
        shown = self.work.ask("systemctl", "show", "-p", "ActiveState", "--", unit + ".service", good=None)
        state = export_format(shown.out).get("ActiveState")
        return state in ("active", "activating", "deactivating", "reloading") if state else _running(unit)

    def start(self, unit: str, properties: List[str], argv: List[str]) -> str:
        """Start a transient unit; the answer is an empty text or why it did not start."""
        output = self._start(unit, ["Type=exec", *properties], argv)
        if output.exit and "Type" in output.err:  # systemd before 240 does not know Type=exec
            output = self._start(unit, properties, argv)
        return output.said() if output.exit else ""

    def _start(self, unit: str, properties: List[str], argv: List[str]) -> Any:
        options = [word for one in properties for word in ("-p", one)]
        act = command("systemd-run", "--unit=" + unit, "--description=volmig", *options, "--", *argv)
        return self.work.do(act, recovery=True)

    def stop(self, unit: str) -> None:
        """Stops a unit and waits for its end, at most 100 s."""
        self.work.do(command("systemctl", "stop", "--", unit + ".service"), recovery=True, timeout=100)


def program() -> List[str]:
    """How to start this very hostctl again."""
    return [sys.executable, "-I", os.path.abspath(sys.argv[0])]


def boot_id() -> str:
    """Another one after each boot, random(4): a unit of an earlier boot has no result any longer."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def reporter(job: store.Store, key: str) -> Callable[[Dict[str, int]], None]:
    """Returns what a running attempt calls with its figures (bytes); the watch reads them."""
    step, direction, attempt = key.split("-")

    def report(figures: Dict[str, int]) -> None:
        whole = dict(
            figures,
            job=job.job,
            step=step,
            direction=direction,
            attempt=int(attempt),
            unit=unit_name(job.job, key),
            at=time.time(),
        )
        with as_root():
            job.progress(key, whole)

    return report


# Following: reads only /proc, /run and /var/lib/volmig, so that a dead NFS server cannot hang it.


class Watch:
    """What changed since the last look, as lines for `watch`."""

    def __init__(
        self, state: str = store.STATE, run: str = store.RUN, alive: Optional[Callable[[str], bool]] = None
    ) -> None:
        self.state, self.run, self.alive = state, run, alive or _running
        self.reported: Dict[str, float] = {}
        self.seen: Dict[Tuple[str, str], float] = {}  # when it was last seen alive; NEVER once its end was told
        self.first = True

    def changes(self) -> Iterator[Dict[str, Any]]:
        """Figures and ends of all attempts that changed since the last call; the first call gives all."""
        for name in listed(self.state):
            job = store.Store(name, self.state, self.run)
            for key in job.started():
                with contextlib.suppress(Refused):  # a damaged file: whoever asks for the step is told so
                    yield from self._follow(job, key)
        self.first = False

    def _follow(self, job: store.Store, key: str) -> Iterator[Dict[str, Any]]:
        place, now = (job.job, key), time.monotonic()
        if self.seen.get(place) == NEVER:
            return
        if job.result(key) is not None:
            told = self.first and place not in self.seen  # it had ended before this watch began
            self.seen[place] = NEVER
            if not told:
                yield {"ended": _ended(job, key)}
        elif self.alive(unit_name(job.job, key)):
            self.seen[place] = now
            yield from self._progress(job, key)
        elif now - self.seen.setdefault(place, now) > GRACE:  # a request is stored before its unit starts
            self.seen[place] = NEVER
            yield {"ended": _ended(job, key)}

    def _progress(self, job: store.Store, key: str) -> Iterator[Dict[str, Any]]:
        figures = store.read_progress(os.path.join(job.run, key + ".json"))
        if figures and self.reported.get(job.job + key) != figures["at"]:
            self.reported[job.job + key] = figures["at"]
            yield {"progress": figures}


def listed(directory: str) -> List[str]:
    """Ids of migrations in a directory; none when it does not exist."""
    try:
        return sorted(name for name in os.listdir(directory) if len(name) == 36)
    except FileNotFoundError:
        return []


def _ended(job: store.Store, key: str) -> Dict[str, Any]:
    result = job.result(key)
    step, direction, attempt = key.split("-")
    return {
        "job": job.job,
        "step": step,
        "direction": direction,
        "attempt": int(attempt),
        "unit": unit_name(job.job, key),
        "state": (result or {}).get("state", "lost"),
    }


def _running(unit: str) -> bool:
    """The unit's control group has processes; asked of the kernel, four times a second, without starting a program."""
    for root in (
        "/sys/fs/cgroup/system.slice",
        "/sys/fs/cgroup/systemd/system.slice",
        "/sys/fs/cgroup/unified/system.slice",
    ):
        try:
            with open("%s/%s.service/cgroup.procs" % (root, unit)) as file:
                return bool(file.read().strip())
        except OSError:
            continue
    return False


def watch() -> None:
    """Stream JSON lines for ever: progress, ended, and a beat every two seconds. Ends when nobody reads."""
    following, beat = Watch(), 0.0
    while True:
        lines = list(following.changes())
        if time.monotonic() - beat >= BEAT:
            beat = time.monotonic()
            lines.append({"beat": time.time()})
        for line in lines:
            sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        time.sleep(0.25)


# Forgetting


def left(work: Work) -> List[str]:
    """Everything of a job that is still on this host, in words; reads mount tables, never a path on NFS."""
    short = work.job.replace("-", "")
    tagged = (
        [
            volume
            for volume in lvm.volumes(work)
            if any(tag in ("volmig.job=" + work.job, "volmig.src=" + work.job) for tag in volume.tags)
        ]
        if find("lvs")
        else []
    )
    found = ["logical volume %s/%s" % (volume.vg, volume.lv) for volume in tagged]
    found += ["mount on %s" % mount.target for mount in mounts.mounts() if short in mount.target]
    found += ["export %s to %s" % (path, client) for path, client in exports.all_exports(work) if short in path]
    return found + (["unit %s" % lvm.holder(work.job)] if Units().alive(lvm.holder(work.job)) else [])


def forget(work: Work, job: store.Store, units: Units) -> Dict[str, Any]:
    """Remove what this host remembers of a job; refuses while a unit of the job runs."""
    unended = [key for key in job.started() if job.result(key) is None]
    running = [key for key in unended if units.alive(unit_name(work.job, key))]
    if running:
        raise Refused(
            "still-running",
            "forget job %s" % work.job,
            "%s runs" % ", ".join(running),
            "Wait until it ends, or stop it.",
        )
    reset, remove = forget_acts(work.args, work.job)
    still = left(work)
    if still:  # what is remembered is needed to remove it
        return {"left": still}
    work.do(reset)
    work.must(remove, job.remove)
    return {"left": still}
