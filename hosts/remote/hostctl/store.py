"""What a host keeps of a job: highest fence, requests, results, remembered facts; each written whole or not at all."""

import contextlib
import fcntl
import json
import os
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .act import Refused
from .commands import Memory

STATE = "/var/lib/volmig"
RUN = "/run/volmig"
TOMBSTONES = 1000  # jobs that ended lately, each a file of some KiB
RUNS = 200  # of so many steps of an ended job is kept what was asked for and what came of it


class Store(Memory):
    """One job's directory under /var/lib/volmig and its progress files under /run/volmig.

    Of a job that was forgotten its fence stays, in /var/lib/volmig/forgotten: a worker that had stalled sent a request
    when another had ended the job, and a host that knew nothing of it any more did as it was told. What was done stays
    there too, so that a database that was restored from a backup can learn how the job ended.
    """

    def __init__(self, job: str, state: str = STATE, run: str = RUN) -> None:
        self.job = job
        self.directory, self.run = directories(job, state, run)
        self.forgotten = os.path.join(state, "forgotten")

    def exists(self) -> bool:
        """True once a request of this migration was stored, until it is forgotten."""
        return os.path.isdir(self.directory)

    def open(self) -> None:
        """Creates its directories, for root only."""
        for directory in (self.directory, self.run):
            os.makedirs(directory, 0o700, exist_ok=True)

    def read(self, name: str) -> Optional[Dict[str, Any]]:
        """A stored document, None when there is none; Refused when it is damaged."""
        return read_json(os.path.join(self.directory, name + ".json"))

    def write(self, name: str, value: Dict[str, Any]) -> None:
        """Replaces a document atomically and syncs it: it survives a power cut."""
        write_json(os.path.join(self.directory, name + ".json"), value, sync=True)

    def recall(self, name: str) -> Dict[str, Any]:
        """Facts kept under a name; empty when there are none."""
        return self.read("fact." + name) or {}

    def remember(self, name: str, **facts: Any) -> None:
        """Adds facts under a name; those of other keys stay."""
        self.write("fact." + name, dict(self.recall(name), **facts))

    def fence(self) -> int:
        """The highest fence that was ever seen here for this job; its end does not change that."""
        return int(self.fenced().get("fence", 0))

    def fenced(self) -> Dict[str, Any]:
        """That fence, with the session that set it and its claim at the last request."""
        return self.read("fence") or self.buried()

    def check_fence(self, fence: int, session: str = "") -> None:
        """Refuse a lower fence, which comes from an owner that lost the job, and an equal one of another session.

        Only a database that was set back gives the same number a second time.
        """
        seen = self.fenced()
        highest, setter = int(seen.get("fence", 0)), str(seen.get("session") or "")
        if fence < highest or (fence == highest and session and setter and session != setter):
            by = " by session %s" % setter[:8] if fence == highest else ""
            raise Refused(
                "stale-fence",
                "act under fence %d" % fence,
                "fence %d was already seen for this job%s" % (highest, by),
                "Nothing to do: volmig compares it with its database.",
            )

    def raise_fence(self, fence: int, session: str = "", claim: int = 0) -> None:
        """Remember the highest fence, and how far its session had counted; refuse what `check_fence` refuses."""
        self.check_fence(fence, session)
        if fence > self.fence() or claim > self.claimed(session):
            self.write("fence", {"fence": fence, "session": session, "claim": claim})

    def claimed(self, session: str) -> int:
        """How far the session had counted when it last acted for this job, if it was the last one that did."""
        seen = self.fenced()
        return int(seen.get("claim", 0)) if session and seen.get("session") == session else 0

    def started(self) -> List[str]:
        """step-direction-attempt of everything ever started here."""
        if not self.exists():
            return []
        return sorted(
            name[: -len(".request.json")] for name in os.listdir(self.directory) if name.endswith(".request.json")
        )

    def result(self, key: str) -> Optional[Dict[str, Any]]:
        """The result of an attempt, None while it has none."""
        return self.read(key + ".result")

    def buried(self) -> Dict[str, Any]:
        """What is left of a job that was forgotten here: its fence, and what was done; empty for others."""
        return read_json(self._tombstone()) or {}

    def runs(self) -> List[Dict[str, Any]]:
        """Everything that was ever asked for here and what came of it, in order; of what was forgotten no commands."""
        before = self.buried().get("runs") or []
        kept = [self._run(key) for key in self.started()]
        return sorted(before + kept, key=lambda run: (run["fence"], run["claim"], run["at"]))

    def _run(self, key: str) -> Dict[str, Any]:
        asked, result = self.read(key + ".request") or {}, self.result(key) or {}
        step, direction, attempt = key.split("-")
        run = {"step": step, "direction": direction, "attempt": int(attempt), "args": asked.get("args") or {}}
        run.update({name: asked.get(name) or "" for name in ("verb", "session", "boot_id")})
        run.update({name: asked.get(name) or 0 for name in ("fence", "claim", "at")})
        run.update({name: result.get(name) or {} for name in ("evidence", "error")})
        run.update(ended=self._ended(key) if result else 0)
        return dict(run, state=result.get("state") or "", commands=result.get("commands") or [])

    def _ended(self, key: str) -> float:
        """When its result was stored, in seconds since the epoch."""
        return os.stat(os.path.join(self.directory, key + ".result.json")).st_mtime

    def progress(self, key: str, figures: Dict[str, Any]) -> None:
        """Replaces the figures of a running attempt; not synced, they are worth nothing after a crash."""
        write_json(os.path.join(self.run, key + ".json"), figures, sync=False)

    def finish(self, key: str, answer: Dict[str, Any]) -> None:
        """Stores the result of an attempt; its figures are removed."""
        self.write(key + ".result", answer)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.run, key + ".json"))

    @contextlib.contextmanager
    def locked(self, name: str, wait: float) -> Iterator[bool]:
        """Hold the flock `name`; yields False when it was not free within `wait` seconds."""
        fd = os.open(os.path.join(self.directory, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield flock(fd, wait)
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Forget the job, but not its fence: an owner that stalled for long may yet ask for something."""
        import shutil  # slow to load, and only the last call for a job needs it

        session = str(self.fenced().get("session") or "")
        self.bury(self.fence(), session, self.claimed(session))
        for directory in (self.run, self.directory):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)

    def bury(self, fence: int, session: str, claim: int) -> None:
        """Keep, of a job that has no memory here any more or never had, its fence and what was done."""
        os.makedirs(self.forgotten, 0o700, exist_ok=True)
        runs = [dict(run, commands=[]) for run in self.runs()][-RUNS:]
        write_json(self._tombstone(), {"fence": fence, "session": session, "claim": claim, "runs": runs}, sync=True)
        stones = [os.path.join(self.forgotten, name) for name in os.listdir(self.forgotten)]
        with contextlib.suppress(FileNotFoundError):  # another job ends just now and has the same in mind
            for stone in sorted(stones, key=os.path.getmtime)[:-TOMBSTONES]:
                os.unlink(stone)

    def _tombstone(self) -> str:
        return os.path.join(self.forgotten, self.job + ".json")


def directories(job: str, state: str = STATE, run: str = RUN) -> Tuple[str, str]:
    """Where a job's requests, results and facts are kept, and where its progress is."""
    return os.path.join(state, job), os.path.join(run, job)


def forgotten(state: str) -> List[str]:
    """The jobs that were forgotten, as far as that is remembered."""
    try:
        names = os.listdir(os.path.join(state, "forgotten"))
    except FileNotFoundError:
        return []
    return [name[: -len(".json")] for name in names if len(name) == 41 and name.endswith(".json")]


def flock(fd: int, wait: float) -> bool:
    """Takes an exclusive lock, flock(2); False when it is still taken after `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(0.05)


def read_json(path: str) -> Optional[Dict[str, Any]]:
    """What a file under /var/lib/volmig holds; None when there is none.

    One that is damaged is refused: taken for none, a host would forget whom it belongs to and which fence it has seen.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Refused(
            "state-damaged",
            "read %s" % path,
            "it is not a JSON object (%d bytes)" % os.path.getsize(path),
            "Restore this file from a backup of this host. If there is none: find out what this host had done last, "
            "then remove the file.",
        )
    return value


def read_progress(path: str) -> Optional[Dict[str, Any]]:
    """What a file under /run/volmig holds: figures that are written again soon; None when it cannot be read."""
    try:
        return read_json(path)
    except Refused:
        return None


def write_json(path: str, value: Dict[str, Any], sync: bool) -> None:
    """Replace a file whole: temporary name, fsync, rename, fsync of the directory."""
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.rename(path + ".tmp", path)
    if sync:
        sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Makes renames and new names in it survive a power cut, fsync(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
