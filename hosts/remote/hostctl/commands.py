"""The only place that starts programs: fixed directories, clean environment, time limits, capped output, a record."""

import os
import selectors
import signal
import stat
import subprocess
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import untrusted
from .act import Act, Args, Failed, Refused, Stop, command, reason

DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
ENVIRONMENT = {"LC_ALL": "C", "PATH": ":".join(DIRECTORIES), "LVM_SUPPRESS_FD_WARNINGS": "1"}
OUTPUT_CAP = 1 << 20
KEPT = 64 << 10
NOT_INSTALLED = 127  # exit status of a program that this host does not have

Watch = Callable[[int, bytes], None]
ABANDONED: List[Tuple[int, str]] = []  # processes that did not end when they were killed, and what they were


class Output(NamedTuple):
    """How an act or a question ended: exit status (errno for system calls), text, and a system call's value."""

    exit: int
    out: str = ""
    err: str = ""
    value: Any = None

    def said(self) -> str:
        """What the program printed, in one line of at most 400 characters, its first lines first.

        LVM and qemu-img print the cause first and advice after it, libvirt the other way round: so all of it is given.
        """
        lines = [line.strip().rstrip(".") for line in (self.err or self.out).splitlines() if line.strip()]
        text = "; ".join(dict.fromkeys(lines))
        return text if 0 < len(text) <= 400 else text[:399] + "…" if text else "exit status %d, no message" % self.exit


def find(program: str) -> str:
    """Absolute path of a program in a directory that only root writes, or an empty text."""
    if os.path.isabs(program):
        return program
    for directory in DIRECTORIES:
        path = os.path.join(directory, program)
        if _secure(path):
            return path
    return ""


def _secure(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return (
        stat.S_ISREG(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022 and bool(found.st_mode & 0o111)
    )


class _Child:
    """One running program; collects its output up to the cap and enforces the time limit."""

    def __init__(self, argv: Sequence[str], become: Optional[Callable[[], None]]) -> None:
        self.process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            preexec_fn=become,
        )
        self.argv, self.out, self.err, self.trouble = list(argv), bytearray(), bytearray(), ""

    def collect(self, timeout: Optional[float], watch: Optional[Watch]) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as waiting:
            for pipe, kept in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
                if pipe is not None:
                    waiting.register(pipe, selectors.EVENT_READ, kept)
            while waiting.get_map() and not self.trouble:
                self._take(waiting, watch)
                if deadline is not None and time.monotonic() > deadline:
                    self.trouble = "no response within %g s" % (timeout or 0)
        self._end()

    def _take(self, waiting: selectors.BaseSelector, watch: Optional[Watch]) -> None:
        for ready, _events in waiting.select(0.2):
            chunk = os.read(ready.fd, 65536)
            ready.data.extend(chunk)
            if not chunk:
                waiting.unregister(ready.fileobj)
            if len(ready.data) > OUTPUT_CAP:
                self.trouble = "more than %d bytes of output" % OUTPUT_CAP
        if watch is not None:
            watch(self.process.pid, bytes(self.out[-256:]))

    def _end(self) -> None:
        if self.trouble:
            os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:  # state D on a dead NFS server: nothing can end it, so do not wait for it
            self.trouble = self.trouble or "it does not end"
            ABANDONED.append((self.process.pid, " ".join(self.argv)[:200]))
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Work:
    """What a verb works with: its arguments, questions to ask, acts to do, and the record of both."""

    def __init__(
        self,
        args: Args,
        job: str,
        announce: Callable[[Args, str], Tuple[Act, ...]],
        memory: Optional["Memory"] = None,
        report: Optional[Callable[[Dict[str, int]], None]] = None,
    ) -> None:
        self.args, self.job, self._announce = args, job, announce
        self.memory, self._report = memory or Memory(), report
        self.commands: List[Dict[str, Any]] = []
        self.touched: Optional[bool] = False
        self.plan = list(announce(args, job))
        self.until: Optional[float] = None  # when every answer has to be there, by the monotonic clock
        self._reported = 0.0

    @property
    def made(self) -> Args:
        """What the step reported when it was done; an undo is given it. Empty when it reported nothing."""
        found = self.args.get("made", {})
        return found if isinstance(found, dict) else {}

    def learn(self, **made: Any) -> None:
        """Have what this host itself knows decide, and not what the request says was made (which may know nothing)."""
        self.args = dict(self.args, made=dict(self.made, **made))
        self.plan = list(self._announce(self.args, self.job))

    def ask(self, *words: object, **how: Any) -> Output:
        """Run a read-only question; an exit status not in `good` (default: only 0) refuses the verb."""
        good = how.pop("good", (0,))
        output = self._run(command(*words), True, how)
        if good is not None and output.exit not in good:
            raise Refused(
                "probe-failed",
                command(*words).tried,
                output.said(),
                "Run that command on the host manually; resume when it responds.",
            )
        return output

    def do(self, act: Act, function: Optional[Callable[[], Any]] = None, recovery: bool = False, **how: Any) -> Output:
        """Do one announced act; whether it worked, a probe says. Only recovery may do what was not announced."""
        if not recovery:
            self._tick_off(act)
        self.touched = self.touched or None
        output = self._run(act, False, how) if act.kind == "command" else self._call(act, function or _nothing)
        if output.exit == 0:
            self.touched = True
        return output

    def must(self, act: Act, function: Optional[Callable[[], Any]] = None, **how: Any) -> Output:
        """Do an act whose exit status is proof of failure."""
        output = self.do(act, function, **how)
        if output.exit != 0:
            raise Failed(
                "act-failed",
                act.tried,
                output.said(),
                "Read the step's log; undo, or resume once the cause is fixed.",
            )
        return output

    def report(self, done: int, total: int, read: int = 0, written: int = 0, last: bool = False) -> None:
        """Publish progress in bytes, at most five times a second."""
        now = time.monotonic()
        if self._report is not None and (last or now - self._reported >= 0.2):
            self._reported = now
            self._report({"done": done, "total": total, "read": read, "written": written})

    def _tick_off(self, act: Act) -> None:
        # What runs must be what the plan page showed, in that order; anything else is a bug and must not run.
        if act not in self.plan:
            raise RuntimeError("act was not announced: %s" % act.text)
        del self.plan[: self.plan.index(act) + 1]

    def _run(self, act: Act, probe: bool, how: Dict[str, Any]) -> Output:
        started, at = time.monotonic(), _now()
        path = find(act.argv[0])
        untrusted.note(act.text)
        if self.until is not None:
            how = dict(how, timeout=max(0.5, min(how.get("timeout") or 30, self.until - started)))
        argv = (path or act.argv[0], *act.argv[1:])
        missing = "%s is not installed on this host" % act.argv[0]
        output = _execute(argv, **how) if path else Output(NOT_INSTALLED, "", missing)
        self._record(act, argv, probe, output, started, at)
        return output

    def _call(self, act: Act, function: Callable[[], Any]) -> Output:
        started, at = time.monotonic(), _now()
        try:
            output = Output(0, value=function())
        except OSError as error:
            output = Output(error.errno or 1, "", reason(error))
        except Stop as stop:
            self._record(act, (), False, Output(1, "", stop.found), started, at)
            raise
        self._record(act, (), False, output, started, at)
        return output

    def _record(self, act: Act, argv: Tuple[str, ...], probe: bool, output: Output, started: float, at: str) -> None:
        # Commands are kept with a job. An inventory of hundreds of instances with all that its tools printed would
        # not fit into an answer, and what they printed is in it anyway.
        kept = KEPT if self.job else 0
        self.commands.append(
            {
                "kind": act.kind,
                "text": act.text,
                "argv": list(argv),
                "probe": probe,
                "exit": output.exit,
                "at": at,
                "seconds": round(time.monotonic() - started, 3),
                "stdout": output.out[:kept],
                "stderr": output.err[:kept],
            }
        )


class Memory:
    """What a job remembers on this host between calls; this one forgets (the store's writes to disk)."""

    def recall(self, name: str) -> Dict[str, Any]:
        """Facts under that name; none are kept here, see Store."""
        return {}

    def remember(self, name: str, **facts: Any) -> None:
        """Keeps facts for later requests of the same migration; not here, see Store."""
        return


def _execute(
    argv: Sequence[str],
    timeout: Optional[float] = 30,
    watch: Optional[Watch] = None,
    become: Optional[Callable[[], None]] = None,
) -> Output:
    child = _Child(argv, become)
    child.collect(timeout, watch)
    err = bytes(child.err).decode("utf-8", "replace")
    if child.trouble:
        return Output(124, bytes(child.out).decode("utf-8", "replace"), "%s\n%s" % (err, child.trouble))
    status = child.process.returncode
    return Output(128 - status if status < 0 else status, bytes(child.out).decode("utf-8", "replace"), err)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _nothing() -> None:
    return None


def export_format(text: str) -> Dict[str, str]:
    """`blkid -o export`: NAME=value lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
