"""libvirt through virsh: state, lock mark, stop and start of one domain; never destroy."""

import calendar
import html
import os
import re
import time
from typing import Any, Dict, List, Optional, Tuple
from xml.etree import ElementTree

from .act import Act, Args, Failed, Refused, command
from .commands import Output, Work, find
from .live_disk import live

URI = "qemu:///system"
MARK = "https://volmig.invalid/lock"
LOG = "/var/log/libvirt/qemu/%s.log"
LOG_TAIL = 1 << 16
LIFE = re.compile(
    r"^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)\.\d+\+0000: (starting up\b|shutting down, reason=\w+)", re.MULTILINE
)


def _virsh(*words: object) -> Act:
    return command("virsh", "-c", URI, *words)


def lock_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The command that marks the domain as a migration's, in its persistent metadata."""
    return (
        _virsh(
            "metadata",
            "--domain",
            args["instance"],
            "--config",
            "--uri",
            MARK,
            "--key",
            "volmig",
            "--set",
            '<lock reason="%s"/>' % html.escape(args["reason"]),
        ),
    )


def unlock_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The command that removes the mark."""
    return (_virsh("metadata", "--domain", args["instance"], "--config", "--uri", MARK, "--remove"),)


def stop_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The command that shuts the guest down by ACPI; it is never powered off."""
    return (_virsh("shutdown", "--domain", args["instance"]),)


def start_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The command that starts the domain."""
    return (_virsh("start", "--domain", args["instance"]),)


# Reading

DOMAIN_GONE = ("failed to get domain", "Domain not found")
NO_MARK = "metadata not found"


def installed() -> bool:
    """False where libvirt runs in a container and the host has no virsh."""
    return bool(find("virsh"))


def _read(work: Work, *words: object, **how: Any) -> Output:
    return work.ask("virsh", "-r", "-c", URI, *words, **how)


def state(work: Work, instance: str) -> str:
    """`running`, `shut off`, …; "" when libvirt does not know the domain. Refuses where there is no libvirt."""
    if not installed():
        raise Refused(
            "no-libvirt",
            "read the state of %s" % instance,
            "virsh is not installed on this host",
            "Run this step on the instance's own hypervisor.",
        )
    output = _read(work, "domstate", "--domain", instance, good=None)
    if output.exit == 0:
        return output.out.strip()
    if any(words in output.err for words in DOMAIN_GONE):
        return ""
    raise Refused(
        "unknown-state",
        "read the state of %s" % instance,
        output.said(),
        "Check libvirt on this host, then resume.",
    )


def disks(work: Work, instance: str) -> List[Dict[str, str]]:
    """The file and block disks of a domain: [{target, source, format}]."""
    return _disks(_tree(work, instance))


def _tree(work: Work, instance: str) -> ElementTree.Element:
    return ElementTree.fromstring(_read(work, "dumpxml", "--domain", instance).out)  # noqa: S314  from the host's own libvirt


def _disks(tree: ElementTree.Element) -> List[Dict[str, str]]:
    found = []
    for disk in tree.findall("./devices/disk[@device='disk']"):
        source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
        found.append(
            {
                "target": "" if target is None else target.get("dev", ""),
                "source": "" if source is None else source.get("file") or source.get("dev") or "",
                "format": "" if driver is None else driver.get("type", ""),
            }
        )
    return found


def domains(work: Work) -> List[Dict[str, Any]]:
    """Every domain of this host: [{uuid, name, state, disks}]; [] where there is no virsh."""
    if not installed():
        return []
    listed = _read(work, "list", "--all", "--uuid", good=None)
    if listed.exit:
        return []
    return [found for uuid in listed.out.split() for found in _still_there(work, uuid)]


def _still_there(work: Work, uuid: str) -> List[Dict[str, Any]]:
    """The domain, or nothing when it was undefined since it was listed."""
    try:
        return [domain(work, uuid)]
    except (Refused, ElementTree.ParseError):
        if state(work, uuid):
            raise
        return []


def domain(work: Work, uuid: str) -> Dict[str, Any]:
    """The domain with its state and disks; Refused when libvirt does not have it."""
    tree = _tree(work, uuid)
    return {"uuid": uuid, "name": tree.findtext("name") or "", "state": state(work, uuid), "disks": _disks(tree)}


def runs(name: str, log: str = LOG) -> Optional[List[Dict[str, Any]]]:
    """When libvirt started a guest and how each run ended: [{at, ended}]; None where its log cannot be read.

    `ended` is libvirt's reason (shutdown, destroyed, crashed, failed: it never ran, …), "" while nothing is said.
    """
    if not name or "/" in name:
        return None
    try:
        with open(log % name, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL))
            text = file.read(LOG_TAIL).decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    found: List[Dict[str, Any]] = []
    for day, clock, said in LIFE.findall(text):
        if said.startswith("starting"):
            found.append({"at": _epoch(day, clock), "ended": ""})
        elif found:
            found[-1]["ended"] = said.split("=")[-1]
    return found[-20:]


def _epoch(day: str, clock: str) -> float:
    return calendar.timegm(time.strptime("%s %s" % (day, clock), "%Y-%m-%d %H:%M:%S"))


# Doing


def lock(work: Work) -> Dict[str, Any]:
    """Mark the domain with the reason; libvirt has no lock, so this tells people and prevents nothing."""
    marked = _mark(work)
    if marked not in ("", work.args["reason"]):
        raise Refused(
            "foreign-lock",
            "mark %s" % work.args["instance"],
            "it is marked: %s" % marked,
            "Another job uses it. Wait for that job.",
        )
    if not marked:
        output = work.do(lock_acts(work.args, work.job)[0])
        if _mark(work) != work.args["reason"]:
            raise Failed(
                "not-marked", "mark %s" % work.args["instance"], output.said(), "Read libvirt's message, then resume."
            )
    return {"marks": True, "prevents": False, "already": bool(marked)}


def _mark(work: Work) -> str:
    """The reason in our own metadata of the domain, or an empty text when libvirt says that there is none."""
    if not state(work, work.args["instance"]):
        raise Refused(
            "no-domain", "mark %s" % work.args["instance"], "libvirt has no such domain", "Check where the instance is."
        )
    output = work.ask(
        "virsh", "-c", URI, "metadata", "--domain", work.args["instance"], "--config", "--uri", MARK, good=None
    )
    if output.exit and NO_MARK in output.err:
        return ""
    if output.exit:  # else a mark that was not seen would be left for good
        raise Refused(
            "probe-failed",
            "read our mark on %s" % work.args["instance"],
            output.said(),
            "Check libvirt on this host, then resume.",
        )
    return ElementTree.fromstring(output.out).get("reason", "?")  # noqa: S314  from the host's own libvirt


def unlock(work: Work) -> Dict[str, Any]:
    """Remove our mark, and only ours."""
    if not state(work, work.args["instance"]):
        return {"already": True, "gone": True}
    marked = _mark(work)
    if marked not in ("", work.args["reason"]):
        raise Refused(
            "foreign-lock",
            "unmark %s" % work.args["instance"],
            "it is marked: %s" % marked,
            "Another job put this mark there.",
        )
    if marked:
        output = work.do(unlock_acts(work.args, work.job)[0])
        if _mark(work):
            raise Failed(
                "still-marked",
                "unmark %s" % work.args["instance"],
                output.said(),
                "Read libvirt's message, then resume.",
            )
    return {"already": not marked}


def stop(work: Work) -> Dict[str, Any]:
    """Ask the guest to shut down and wait until libvirt says `shut off`; never destroys."""
    args, instance = work.args, work.args["instance"]
    was = state(work, instance)
    # How the instance was at first decides how it is left: what the stop before a disk is taken back finds must not.
    noted = "stop_undo" if "made" in args else "stop"
    known = work.memory.recall(noted)
    if was not in ("running", "shut off"):
        raise Refused(
            "unknown-state", "stop %s" % instance, "its state is %r" % was, "Bring the instance to running or shut off."
        )
    if was == "running":
        _check_path(work)
        work.memory.remember(noted, was="running")
        output = work.do(stop_acts(args, work.job)[0])
        if not _becomes(work, "shut off", args.get("deadline", 180)):
            raise Failed(
                "stop-deadline",
                "run virsh shutdown %s" % instance,
                "still %s after %d s; %s" % (state(work, instance), args.get("deadline", 180), output.said()),
                "The guest does not react to ACPI. Shut it down from inside or through the cloud, then resume.",
            )
    path = "%s/%s/%s" % (args["instances"], instance, args["disk"])
    return {
        "was": known.get("was") or was,
        "stopped_at": time.time(),
        "live": live(args["instances"], path),
        "already": was == "shut off",
    }


def _check_path(work: Work) -> None:
    args = work.args
    path = "%s/%s/%s" % (args["instances"], args["instance"], args["disk"])
    sources = [disk["source"] for disk in disks(work, args["instance"])]
    if path not in sources:
        raise Refused(
            "unknown-disk",
            "check the disk of %s" % args["instance"],
            "it uses %s, not %s" % (", ".join(sources) or "no disk", path),
            "Check the instance's disks; plan again.",
        )


def _becomes(work: Work, wanted: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while state(work, work.args["instance"]) != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def start(work: Work) -> Dict[str, Any]:
    """Start the domain and see it running on the live path with the expected inode."""
    args, instance = work.args, work.args["instance"]
    begin = start_acts(args, work.job)[0]
    was = state(work, instance)
    if was not in ("running", "shut off"):
        raise Refused(
            "unknown-state",
            "start %s" % instance,
            "its state is %r" % was,
            "Bring the instance to running or shut off.",
        )
    if was == "shut off":
        if "made" in args and _was(work) != "running":  # undo of a stop that stopped nothing
            return {"state": was, "already": True}
        _check_path(work)
        _check_inode(work)
        output = work.do(begin, timeout=120)
        # A start that was refused stays refused: the instance is down, and the way back must not wait for it.
        if not _becomes(work, "running", 0 if output.exit else 30):
            after = state(work, instance)
            raise Failed(
                "not-running",
                begin.tried,
                "%s; %s" % (after, output.said()),
                "Read libvirt's log of this guest.",
                ever_ran=after != "shut off" or output.exit == 0,
            )
    _check_path(work)
    _check_inode(work)
    return {"started_at": time.time(), "state": "running", "already": was == "running"}


def _was(work: Work) -> str:
    """What our own stop found, from this host's memory or, where it has none, from the stop's evidence."""
    return str(work.memory.recall("stop").get("was") or work.made.get("was", ""))


def _check_inode(work: Work) -> None:
    args = work.args
    path = "%s/%s/%s" % (args["instances"], args["instance"], args["disk"])
    found = live(args["instances"], path)["inode"]
    if found != args.get("expect_inode", found):
        raise Refused(
            "unknown-inode",
            "start %s" % args["instance"],
            "%s has inode %d, expected %d" % (path, found, args["expect_inode"]),
            "The disk was replaced. Inspect it manually.",
        )
