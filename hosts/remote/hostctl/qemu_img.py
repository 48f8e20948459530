"""qemu-img: convert, check, compare and inspect, always with explicit formats and never with --salvage or -n."""

import json
import os
import re
import stat
import time
from typing import Any, Dict, List, Optional, Tuple

from . import lvm, mountpoints, mounts, untrusted
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Output, Work
from .qcow2 import check_header
from .sandbox import Cage, Shown
from .store import directories, sync_directory

# qemu-img check keeps the reference counts of all clusters in memory, and reads every one of them.
CHECK_LIMITS: Dict[str, Any] = {"seconds": 6 * 3600, "memory": 4 << 30}
# What hostctl itself does in a unit: lvs, other processes' descriptors, other users, and the cage for tools.
CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_IPC_LOCK CAP_KILL CAP_MKNOD CAP_SETGID CAP_SETPCAP"
    " CAP_SETUID CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SYS_NICE CAP_SYS_PTRACE CAP_SYS_RESOURCE"
)


def part(args: Args) -> str:
    """The copy before it is compared."""
    return "%s/disk.part" % args["mountpoint"]


def whole(args: Args) -> str:
    """The copy once it was compared."""
    return "%s/disk.qcow2" % args["mountpoint"]


def convert_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The command that converts the volume; `rate` in bytes per second, 0 for no limit."""
    rate = ("-r", args["rate"]) if args["rate"] else ()
    # -t none -T none: the default cache mode of convert may lose what it reported as written.
    return (
        command(
            "qemu-img",
            "convert",
            "-p",
            *rate,
            "-t",
            "none",
            "-T",
            "none",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            "compat=1.1",
            "--",
            lvm.device(args),
            part(args),
        ),
    )


def compare_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that check the copy and compare it with the volume, and its rename when they are equal."""
    return (
        command("qemu-img", "check", "-f", "qcow2", "--output=json", "--", part(args)),
        command(
            "qemu-img", "compare", "-p", "-f", "raw", "-F", "qcow2", "-T", "none", "--", lvm.device(args), part(args)
        ),
        syscall("rename %s to %s" % (part(args), whole(args))),
    )


def discard_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What is deleted of a copy, compared or not."""
    return (syscall("unlink disk.part and disk.qcow2 in %s" % args["mountpoint"]),)


def sandbox(args: Args, job: str) -> List[str]:
    """Unit properties for work that reads the source: the kernel lets it write nowhere but in the job's directories."""
    return [
        "DevicePolicy=closed",
        "DeviceAllow=%s r" % lvm.device(args),
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "PrivateNetwork=yes",  # what is mounted already keeps its connection
        "CapabilityBoundingSet=" + CAPABILITIES,
        "ReadWritePaths=-%s %s" % (args["mountpoint"], " ".join(directories(job))),
        "IOSchedulingClass=idle",
        "Nice=10",
        "MemoryMax=2G",
    ]


def percent(text: bytes) -> Optional[float]:
    """The last whole progress record of `qemu-img -p` (`    (12.50/100%)\\r`), or None."""
    found = re.findall(rb"\((\d{1,3}\.\d{2})/100%\)\s*[\r\n]", text)
    return float(found[-1]) if found else None


def moved(pid: int) -> Tuple[int, int]:
    """Bytes that a process really read from and wrote to storage; (0, 0) once it has ended."""
    try:
        with open("/proc/%d/io" % pid) as file:
            facts = dict(line.split(": ") for line in file.read().splitlines())
    except (OSError, ValueError):
        return 0, 0
    return int(facts["read_bytes"]), int(facts["write_bytes"])


class Following:
    """Turns what qemu-img prints and what the kernel counts into progress."""

    def __init__(self, work: Work, total: int) -> None:
        self.work, self.total, self.read, self.written = work, total, 0, 0

    def __call__(self, pid: int, text: bytes) -> None:
        read, written = moved(pid)
        self.read, self.written = max(read, self.read), max(written, self.written)
        self.work.report(int(self.total * (percent(text) or 0) / 100), self.total, self.read, self.written)


def inspect(work: Work, path: str, become: Cage) -> Dict[str, Any]:
    """What qemu-img info says of an image; run without privileges, at most 60 s."""
    return _facts(work.ask(*info_words(path), become=become, timeout=60))


def info_words(path: str) -> Tuple[str, ...]:
    """The command line of qemu-img info; the format is given, so that QEMU guesses none from the data."""
    return ("qemu-img", "info", "-f", "qcow2", "--output=json", "--", path)


def _facts(output: Output) -> Dict[str, Any]:
    facts = json.loads(output.out)
    return facts if isinstance(facts, dict) else {}


def info_objections(facts: Dict[str, Any], size: int) -> List[str]:
    """Why qemu-img's own description is not that of a plain image of `size` bytes."""
    specific = facts.get("format-specific", {}).get("data", {})
    found = (
        (facts.get("format") != "qcow2", "format %s" % facts.get("format")),
        (facts.get("virtual-size") != size, "virtual size %s" % facts.get("virtual-size")),
        ("backing-filename" in facts, "a backing file"),
        ("data-file" in specific, "an external data file"),
        (bool(facts.get("dirty-flag")), "the dirty flag"),
        (bool(specific.get("corrupt")), "the corrupt flag"),
        (bool(facts.get("encrypted")), "encryption"),
    )
    return [word for holds, word in found if holds]


def convert(work: Work) -> Dict[str, Any]:
    """Copy the fenced source onto the relay's filesystem; only exit status 0 of this very run counts."""
    args, started = work.args, time.monotonic()
    source = lvm.Source(args, work.job)
    source.check()
    mountpoints.check_target(args, work.job)
    _check_part(part(args))
    following = Following(work, args["size"])
    work.must(convert_acts(args, work.job)[0], timeout=None, watch=following)
    work.report(args["size"], args["size"], following.read, following.written, last=True)
    with untrusted.opened(part(args), None, os.O_RDWR, links=1) as fd:
        os.fsync(fd)
        check_header(fd, part(args), args["size"])
        size = os.fstat(fd).st_size
    return {
        "file_size": size,
        "bytes_read": following.read,
        "bytes_written": following.written,
        "seconds": round(time.monotonic() - started, 1),
    }


def _check_part(path: str) -> None:
    # qemu-img truncates what is there: an earlier part of ours, never a link to something else.
    if os.path.lexists(path):
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise Refused("foreign-file", "write %s" % path, "it is not a plain file of ours", "Inspect it manually.")


def compare(work: Work) -> Dict[str, Any]:
    """Prove the copy: structure, description, every byte against the source, and that nobody wrote meanwhile."""
    args = work.args
    check, against, rename = compare_acts(args, work.job)
    source = lvm.Source(args, work.job)
    source.check()
    mountpoints.check_target(args, work.job)
    if os.path.lexists(whole(args)) and not os.path.lexists(part(args)):
        return dict(_proved(args, source), check="ok", compare="identical", already=True)
    work.must(check, become=_check_description(work), timeout=None)
    work.must(against, timeout=None, watch=Following(work, args["size"]))
    source.check()
    source.check_counters()
    work.must(rename, lambda: _rename(part(args), whole(args)))
    return dict(_proved(args, source), check="ok", compare="identical")


def _check_description(work: Work) -> Cage:
    """What the copy says of itself is what we wrote; returns the cage in which its structure may be checked."""
    args = work.args
    with untrusted.opened(part(args), links=1) as fd:
        check_header(fd, part(args), args["size"])
        cage, longer = (_cage(part(args), fd, **limits) for limits in ({}, CHECK_LIMITS))
    wrong = info_objections(inspect(work, part(args), cage), args["size"])
    if wrong:
        raise Failed(
            "bad-image",
            "run qemu-img info %s" % part(args),
            "it has %s" % ", ".join(wrong),
            "Discard the copy and convert again.",
        )
    return longer


def _cage(path: str, fd: int, **limits: Any) -> Cage:
    """For tools that read the copy, which the host at the other end of the mount can write: it and nothing else."""
    found = os.fstat(fd)
    # The way there lies in a directory for root alone, and the relay's export takes everybody for the file's owner.
    shown = Shown(path, found.st_dev, found.st_ino, (0, 0))
    return Cage(shown=(shown,), user=(found.st_uid, found.st_gid), **limits)


def _rename(old: str, new: str) -> None:
    os.rename(old, new)
    sync_directory(os.path.dirname(new))


def _proved(args: Args, source: lvm.Source) -> Dict[str, Any]:
    counted = source.check_counters()
    with untrusted.opened(whole(args), links=1) as fd:
        check_header(fd, whole(args), args["size"])
        size = os.fstat(fd).st_size
    return dict(counted, virtual_size=args["size"], file_size=size)


def _unlink(paths: List[str]) -> None:
    for path in paths:
        os.unlink(path)


def discard(work: Work) -> Dict[str, Any]:
    """Remove the copy from the relay's filesystem; nothing mounted means nothing to remove.

    What its server exports no more cannot be reached from here, and goes with the relay's volume.
    """
    args = work.args
    if not mounts.at(args["mountpoint"]) or mounts.is_stale(args["mountpoint"]):
        return {"already": True}
    if "fs_uuid" in args:
        mountpoints.check_target(args, work.job)
    there = [path for path in (part(args), whole(args)) if os.path.lexists(path)]
    if there:
        work.must(discard_acts(args, work.job)[0], lambda: _unlink(there))
        sync_directory(args["mountpoint"])
    return {"already": not there}
