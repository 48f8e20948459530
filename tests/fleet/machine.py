"""A Debian with its own systemd on top of this one: what is done there is gone afterwards.

Its root is this machine's, under an overlay in memory; processes, mounts, network, users' files and units are its own.
So a runbook can be carried out as it is written: packages' own units start, ports 80 and 443 are free, and units run
with all of their hardening. It needs root, a cgroup2 and overlayfs, and no container engine.
"""

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.family import children, end_all

CHECKOUT = Path(__file__).resolve().parents[2]
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
# What a command that fetches something may need of this machine's environment: its proxies, certificates and indexes.
FETCHES = ("PIP_", "UV_", "SSL_", "REQUESTS_", "CURL_", "HTTP", "http", "NO_PROXY", "no_proxy", "ALL_PROXY")
# Kernel settings are the host's, so they are read-only there; units that need hardware or a console are left out.
MASKED = ("systemd-sysctl", "systemd-modules-load", "systemd-timesyncd", "getty@tty1", "console-getty", "e2scrub_reap")
SET_UP = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# The checkout, which may lie under /tmp.
mkdir -p ".$CHECKOUT"
mount --bind "$CHECKOUT" ".$CHECKOUT" && mount -o remount,bind,ro ".$CHECKOUT"
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do touch "dev/$each"; mount --bind "/dev/$each" "dev/$each"; done
mkdir dev/pts dev/shm
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
rm -rf etc/systemd/system/*.wants
for each in $MASKED; do ln -sf /dev/null "etc/systemd/system/$each.service"; done
hostname debian
ip link set lo up
# Not chroot: no user namespace can be made in one.
pivot_root . .
umount -l .
mount --make-rshared /
exec env -i container=overlay "PATH=$PATH" /lib/systemd/systemd --unit=multi-user.target --show-status=no
"""


class NotHere(RuntimeError):  # noqa: N818 - the word that fixtures read
    """This machine cannot be the ground for another one; the message says what it lacks."""


class Machine:
    """Use `booted()`; `run` is a command by root in it."""

    def __init__(self, supervisor: "subprocess.Popen[bytes]", init: int) -> None:
        self.supervisor, self.init = supervisor, init

    def command(self, script: str, network: bool = False) -> list[str]:
        """What runs a script in it; with `network` it sees this machine's network in place of an empty one."""
        spaces = [each for each in NAMESPACES if not (network and each == "--net")]
        fetches = {name: value for name, value in os.environ.items() if network and name.startswith(FETCHES)}
        environment = [f"{name}={value}" for name, value in {**fetches, **CLEAN}.items()]
        enter = ["nsenter", "--target", str(self.init), *spaces, "--root", "--wd"]
        return [*enter, "env", "-i", *environment, "bash", "-c", f"cd; set -euo pipefail\n{script}"]

    def run(
        self, script: str, network: bool = False, check: bool = True, seconds: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a bash script there, by root in its home; what it prints, errors among it, is the answer's stdout."""
        command = self.command(script, network)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{script}\nended with {done.returncode}:\n{done.stdout}\n{self.journal()}")
        return done

    def type(self, script: str, *answers: tuple[str, str], seconds: float = 60) -> str:
        """Runs a script on a new terminal: waits for each question, and types the answer to it."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(self.command(script), stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown, end, left = "", time.monotonic() + seconds, list(answers)
        try:
            while time.monotonic() < end:
                if select.select([ours], [], [], 0.2)[0]:
                    try:
                        shown += os.read(ours, 4096).decode()
                    except OSError:  # the other end is closed
                        break
                if left and left[0][0] in shown.rpartition("\0")[2]:
                    os.write(ours, f"{left.pop(0)[1]}\n".encode())
                    shown += "\0"  # a question that was answered is not answered again
                if process.poll() is not None:
                    break
            status = process.wait(max(1.0, end - time.monotonic()))
        finally:
            process.kill()
            os.close(ours)
        assert status == 0, f"{script}\nended with {status}:\n{shown}\n{self.journal()}"
        return shown.replace("\0", "")

    def start(self, script: str) -> "subprocess.Popen[bytes]":
        """Runs a script beside the test; it ends with the machine."""
        return subprocess.Popen(self.command(script), stdin=subprocess.DEVNULL, start_new_session=True)

    def journal(self, lines: int = 60) -> str:
        return self.run(f"journalctl --no-pager --lines={lines} 2>&1 || true", check=False).stdout

    def until(self, condition: Callable[[], object], what: str, seconds: float = 180) -> object:
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {seconds} s\n{self.journal()}")
            time.sleep(0.3)
        return found


def cgroup() -> Path:
    """Where this machine's cgroup2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise NotHere("no cgroup2 is mounted here")


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """Boots one on an empty folder; raises NotHere where that is not possible. Nothing of it is left."""
    if os.geteuid():
        raise NotHere("only root can make namespaces with their own systemd")
    if not Path("/lib/systemd/systemd").exists():
        raise NotHere("no systemd is installed")
    group = cgroup() / f"volmig-machine-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()

    def enter() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    flags = ["--fork", "--kill-child", *NAMESPACES]
    with (folder / "boot.log").open("wb") as log:
        supervisor = subprocess.Popen(
            ["unshare", *flags, "sh", "-c", SET_UP, "set-up", str(folder)],
            env={**os.environ, "MASKED": " ".join(MASKED), "CHECKOUT": str(CHECKOUT)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=enter,
        )  # fmt: skip
    try:
        yield Machine(supervisor, until_it_runs(supervisor, folder / "boot.log"))
    finally:
        for pid in children(supervisor.pid):  # the end of its first process is the end of all
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        end_all([supervisor], 30)
        remove(group)


def until_it_runs(supervisor: "subprocess.Popen[bytes]", log: Path) -> int:
    """The process id of its systemd, once it has started what it is to start."""
    end = time.monotonic() + 60
    while time.monotonic() < end and supervisor.poll() is None:
        for init in children(supervisor.pid):
            state = Machine(supervisor, init).run("systemctl is-system-running", check=False).stdout.strip()
            if state in ("running", "degraded"):
                return init
        time.sleep(0.2)
    raise NotHere(f"a systemd in namespaces does not start here: {log.read_text()[-1000:]}")


def remove(group: Path) -> None:
    """Removes a tree of control groups, whose processes have been killed and go one by one."""
    for _ in range(100):
        try:
            for each in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                each.rmdir()
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
