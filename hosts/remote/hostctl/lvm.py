"""Logical volumes: make, fence, release, erase and remove, each bound to tag and UUID."""

import fcntl
import json
import os
import stat
import struct
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import mounts
from .act import Act, Args, Failed, Refused, command, syscall
from .tools import Work


def name(args: Args) -> str:
    """VG/LV, the name LVM tools are given; mapper names are never built (they double every dash)."""
    return "%s/%s" % (args["vg"], args["lv"])


def device(args: Args) -> str:
    """The path that everything but LVM is given."""
    return "/dev/%s/%s" % (args["vg"], args["lv"])


def holder(job: str) -> str:
    """The unit that keeps the source open, so that Nova's clean-up cannot remove it under the copy."""
    return "volmig-%s-holder" % job.replace("-", "")


def create_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (
        command(
            "lvcreate",
            "--yes",
            "-Wy",
            "-Zy",
            "-n",
            args["lv"],
            "-L",
            "%sb" % args["size"],
            "--addtag",
            "volmig",
            "--addtag",
            "volmig.job=%s" % job,
            "--",
            args["vg"],
        ),
    )


def remove_acts(args: Args, job: str) -> Tuple[Act, ...]:
    made = args.get("made", {})
    which = 'lv_uuid="%s" && lv_tags={"volmig.job=%s"}' % (made.get("lv_uuid", "«lv_uuid»"), job)
    return (
        syscall("zero %s, %s bytes (BLKZEROOUT)" % (device(args), args["size"])),
        command("lvchange", "-an", "--", name(args)),
        command("lvremove", "--yes", "-S", which, "--", args["vg"]),
    )


def fence_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (
        command("lvchange", "--addtag", "volmig", "--addtag", "volmig.src=%s" % job, "--", name(args)),
        command("lvchange", "-pr", "--", name(args)),
        command(
            "systemd-run",
            "--quiet",
            "--unit=%s" % holder(job),
            "--description=volmig holds %s open" % name(args),
            "-p",
            "StandardInput=file:%s" % device(args),
            "--",
            "/usr/bin/sleep",
            "infinity",
        ),
    )


def unfence_acts(args: Args, job: str) -> Tuple[Act, ...]:
    made = args.get("made", {})
    stop = command("systemctl", "stop", "--", holder(job))
    writeable = command("lvchange", "-prw", "--", name(args))
    untag = command("lvchange", "--deltag", "volmig", "--deltag", "volmig.src=%s" % job, "--", name(args))
    return (stop, untag) if made.get("was") == "read-only" else (stop, writeable, untag)


# Reading

FIELDS = (
    "vg_name,lv_name,lv_uuid,lv_size,lv_attr,lv_tags,lv_device_open,lv_kernel_major,lv_kernel_minor,"
    "lv_permissions,lv_active,lv_health_status,pool_lv,origin"
)


class Volume(NamedTuple):
    """A logical volume as LVM reports it; size in bytes, `device` as MAJOR:MINOR (-1:-1 when inactive)."""

    vg: str
    lv: str
    uuid: str
    size: int
    attributes: str
    tags: Tuple[str, ...]
    open: bool
    major: int
    minor: int
    permission: str
    active: bool
    health: str
    pool: str
    origin: str

    @property
    def device(self) -> str:
        return "%d:%d" % (self.major, self.minor)


def volumes(work: Work, select: str = "") -> List[Volume]:
    chosen = ("-S", select) if select else ()
    output = work.ask("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", FIELDS, *chosen)
    return [_volume(row) for report in json.loads(output.out)["report"] for row in report["lv"]]


def _volume(row: Dict[str, str]) -> Volume:
    return Volume(
        row["vg_name"],
        row["lv_name"],
        row["lv_uuid"],
        int(row["lv_size"]),
        row["lv_attr"],
        tuple(tag for tag in row["lv_tags"].split(",") if tag),
        row["lv_device_open"] != "",
        int(row["lv_kernel_major"]),
        int(row["lv_kernel_minor"]),
        row["lv_permissions"],
        row["lv_active"] == "active",
        row["lv_health_status"],
        row["pool_lv"],
        row["origin"],
    )


def volume(work: Work, vg: str, lv: str) -> Optional[Volume]:
    """The volume of that name, or None; selection instead of a name, so that absence is an answer and not an error."""
    found = volumes(work, 'vg_name="%s" && lv_name="%s"' % (vg, lv))
    return found[0] if found else None


def groups(work: Work) -> List[Dict[str, Any]]:
    output = work.ask(
        "vgs",
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "-o",
        "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size",
    )
    return [
        {
            "name": row["vg_name"],
            "uuid": row["vg_uuid"],
            "size": int(row["vg_size"]),
            "free": int(row["vg_free"]),
            "extent_size": int(row["vg_extent_size"]),
        }
        for report in json.loads(output.out)["report"]
        for row in report["vg"]
    ]


def counters(device: str) -> Tuple[int, int]:
    """Writes completed and sectors written since the device appeared: the tripwire."""
    with open("/sys/dev/block/%s/stat" % device) as file:
        figures = file.read().split()
    return int(figures[4]), int(figures[6])


def openers(device: str) -> List[Dict[str, Any]]:
    """Processes that have a block device open, through whichever node: [{pid, name, unit}]."""
    number = os.makedev(*(int(part) for part in device.split(":")))
    return [_process(pid) for pid in os.listdir("/proc") if pid.isdigit() and _has_open(pid, number)]


def _has_open(pid: str, number: int) -> bool:
    try:
        return any(_rdev("/proc/%s/fd/%s" % (pid, fd)) == number for fd in os.listdir("/proc/%s/fd" % pid))
    except OSError:  # it ended while we looked
        return False


def _rdev(path: str) -> int:
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else -1


def _process(pid: str) -> Dict[str, Any]:
    return {
        "pid": int(pid),
        "name": first_line("/proc/%s/comm" % pid),
        "unit": first_line("/proc/%s/cgroup" % pid).rsplit("/", 1)[-1],
    }


def first_line(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def kernel_children(device: str) -> List[str]:
    """Devices stacked on this one (partitions, crypt, LVM inside), as the kernel names them."""
    directory = "/sys/dev/block/%s/holders" % device
    return [first_line("%s/%s/dm/name" % (directory, name)) or name for name in os.listdir(directory)]


def holders(found: Volume) -> List[str]:
    """Everything that keeps a volume open, in words."""
    if not found.active:
        return []
    programs = ["process %(pid)d (%(name)s) of %(unit)s" % process for process in openers(found.device)]
    return (
        ["device %s on top of it" % child for child in kernel_children(found.device)]
        + ["mounted on %s" % mount.target for mount in mounts.holding(found.device)]
        + programs
    )


class Source:
    """The fenced source as the kernel knows it, read-only: works in the sandbox, where LVM's tools cannot."""

    def __init__(self, args: Args, job: str) -> None:
        self.args, self.job, self.path = args, job, device(args)
        found = os.stat(self.path)
        if not stat.S_ISBLK(found.st_mode):
            raise Refused(
                "not-a-volume", "open %s" % self.path, "it is not a block device", "Check the volume on the source."
            )
        self.device = "%d:%d" % (os.major(found.st_rdev), os.minor(found.st_rdev))

    def _sys(self, name: str) -> str:
        return first_line("/sys/dev/block/%s/%s" % (self.device, name))

    def check(self) -> None:
        """Refuse unless this is the recorded volume, read-only, held by our holder and opened by nobody else."""
        uuid, wanted = self._sys("dm/uuid"), self.args["lv_uuid"].replace("-", "")
        size = int(self._sys("size") or 0) * 512
        if not uuid.startswith("LVM-") or uuid[36:] != wanted or size != self.args["size"]:
            raise Refused(
                "unknown-volume",
                "read %s" % self.path,
                "the kernel says %s with %d bytes; planned was %s with %d bytes"
                % (uuid or "no LVM volume", size, self.args["lv_uuid"], self.args["size"]),
                "Somebody replaced or resized the volume. Find out who; undo the job.",
            )
        if self._sys("ro") != "1":
            raise Refused("not-fenced", "read %s" % self.path, "it is writeable", "Run the step source_fence again.")
        self._check_openers()

    def _check_openers(self) -> None:
        processes = openers(self.device)
        ours = [process for process in processes if process["unit"] == holder(self.job) + ".service"]
        others = [
            "%(name)s (pid %(pid)d, %(unit)s)" % process
            for process in processes
            if process not in ours and process["pid"] != os.getpid()
        ]
        others += kernel_children(self.device) + [mount.target for mount in mounts.holding(self.device)]
        if others:
            raise Refused(
                "source-open",
                "read %s alone" % self.path,
                "it is also open by %s" % ", ".join(others),
                "Stop what uses the volume, then resume.",
            )
        if not ours:
            raise Refused(
                "no-holder",
                "read %s" % self.path,
                "the unit %s does not hold it open" % holder(self.job),
                "Run the step source_fence again.",
            )

    def check_counters(self) -> Dict[str, int]:
        """Refuse when anything was written since the fence."""
        writes, sectors = counters(self.device)
        if (writes, sectors) != (self.args["writes"], self.args["sectors_written"]):
            raise Refused(
                "source-written",
                "compare write counters of %s" % self.path,
                "%d writes, %d sectors now; %s, %s at the fence"
                % (writes, sectors, self.args["writes"], self.args["sectors_written"]),
                "Something wrote to the source during the copy: the copy is void. Undo, find the writer, start again.",
            )
        return {"writes": writes, "sectors_written": sectors}


# Doing


def create(work: Work) -> Dict[str, Any]:
    """Make the relay's temporary volume: already ours is success, anything else of that name is foreign."""
    args, found = work.args, volume(work, work.args["vg"], work.args["lv"])
    already = found is not None
    if found is None:
        _check_space(work)
        work.memory.remember("lv", vg=args["vg"], lv=args["lv"], size=args["size"])
        output = work.do(create_acts(args, work.job)[0], timeout=120)
        found = volume(work, args["vg"], args["lv"])
        if found is None:
            raise Failed(
                "no-volume",
                "create the volume %s" % name(args),
                output.said(),
                "Read LVM's message; undo, then try again.",
            )
    check_ours(work, found, args["size"], "volmig.job=%s" % work.job)
    work.memory.remember("lv", lv_uuid=found.uuid)
    return {"lv_uuid": found.uuid, "size": found.size, "major": found.major, "minor": found.minor, "already": already}


def _check_space(work: Work) -> None:
    args = work.args
    group = [group for group in groups(work) if group["name"] == args["vg"]]
    tried = "create the volume %s with %d bytes" % (name(args), args["size"])
    if not group:
        raise Refused(
            "no-volume-group",
            tried,
            "there is no volume group %s" % args["vg"],
            "Choose another relay or volume group.",
        )
    if args["size"] % group[0]["extent_size"]:
        raise Refused(
            "size-not-extents",
            tried,
            "the size is no multiple of the extent size %d" % group[0]["extent_size"],
            "Plan the size in whole extents.",
        )
    if args["size"] > group[0]["free"]:
        raise Refused(
            "no-space", tried, "%d bytes are free" % group[0]["free"], "Free space or choose another volume group."
        )


def check_ours(work: Work, found: Volume, size: int, tag: str, uuid: str = "") -> None:
    """Refuse a volume that lacks the job's tags, the recorded UUID or the planned size."""
    wrong = [
        word
        for word, holds in (
            ("tag volmig", "volmig" in found.tags),
            ("tag %s" % tag, tag in found.tags),
            ("size %d" % size, found.size == size),
            ("UUID %s" % uuid, not uuid or found.uuid == uuid),
        )
        if not holds
    ]
    if wrong:
        raise Refused(
            "foreign-volume",
            "use %s/%s" % (found.vg, found.lv),
            "it lacks %s (it has %s, %d bytes, tags %s)"
            % (", ".join(wrong), found.uuid, found.size, " ".join(found.tags) or "none"),
            "This volume is not this job's. Look at it by hand; volmig does not touch it.",
        )


def remove(work: Work) -> Dict[str, Any]:
    """Erase and remove the temporary volume, and only it (name, tags, UUID, size, closed)."""
    args, known = work.args, work.memory.recall("lv")
    work.learn(**known)
    erase, deactivate, drop = remove_acts(work.args, work.job)
    found = volume(work, args["vg"], args["lv"])
    if found is None:
        return {"erased_bytes": 0, "already": True}
    uuid = work.made.get("lv_uuid", "")
    if not uuid and not known:
        raise Refused(
            "unknown-volume",
            "remove %s" % name(args),
            "this host has no record of having made it",
            "Look at the volume by hand: its tags name the job.",
        )
    check_ours(work, found, args["size"], "volmig.job=%s" % work.job, uuid)
    check_closed(found)
    if not uuid:
        work.learn(lv_uuid=found.uuid)
        erase, deactivate, drop = remove_acts(work.args, work.job)
    if known.get("erased") != found.uuid:
        _activate(work, found)
        work.must(erase, lambda: zero(work, found.uuid))
        work.memory.remember("lv", erased=found.uuid)
    work.must(deactivate, timeout=60)
    work.do(drop, timeout=60)
    if volume(work, args["vg"], args["lv"]) is not None:
        raise Failed(
            "still-there",
            drop.tried,
            "%s is still there" % name(args),
            "Look at the step's log for LVM's message, then resume.",
        )
    return {"erased_bytes": found.size, "lv_uuid": found.uuid}


def check_closed(found: Volume) -> None:
    """Refuse a volume that anything has open, naming what has."""
    if found.open:
        raise Refused(
            "volume-open",
            "use %s/%s" % (found.vg, found.lv),
            "it is open: %s" % (", ".join(holders(found)) or "LVM does not say by whom"),
            "Stop what uses it (unmount, unexport), then resume.",
        )


def _activate(work: Work, found: Volume) -> None:
    if not found.active:  # after a reboot of a host that activates nothing by itself
        work.must(command("lvchange", "-ay", "--", "%s/%s" % (found.vg, found.lv)), recovery=True, timeout=60)


BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272
CHUNK = 64 << 20


def zero(work: Work, uuid: str) -> None:
    """Erase every byte of a volume that nobody has open, and prove it on both ends."""
    size = work.args["size"]
    fd = os.open(device(work.args), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        _check_device(fd, uuid, size)
        for start in range(0, size, CHUNK):
            fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", start, min(CHUNK, size - start)))
            work.report(min(start + CHUNK, size), size, 0, min(start + CHUNK, size))
        os.fsync(fd)
        for place in (0, size - 4096):
            if os.pread(fd, 4096, place).strip(b"\0"):
                raise Failed(
                    "not-erased",
                    "zero %s" % device(work.args),
                    "bytes at %d are not zero" % place,
                    "Resume to erase again.",
                )
    finally:
        os.close(fd)


def _check_device(fd: int, uuid: str, size: int) -> None:
    number = os.fstat(fd).st_rdev
    known = first_line("/sys/dev/block/%d:%d/dm/uuid" % (os.major(number), os.minor(number)))
    real = struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]
    if known[36:] != uuid.replace("-", "") or real != size:
        raise Refused(
            "foreign-device",
            "erase a volume",
            "the opened device is %s with %d bytes" % (known or "no volume", real),
            "The device node points elsewhere. Look at it by hand.",
        )


def fence(work: Work) -> Dict[str, Any]:
    """Keep writers off the source: closed, tagged, read-only, still closed (or undone at once), held, counted."""
    args, job = work.args, work.job
    tag, read_only, hold = fence_acts(args, job)
    found = _source(work)
    if _is_fenced(work, found):
        return dict(work.memory.recall("fence"), **_fenced(found, job), already=True)
    _check_not_foreign(found, job)
    check_closed(found)
    was = work.memory.recall("fence").get("was") or ("writeable" if found.permission == "writeable" else "read-only")
    work.memory.remember("fence", was=was, lv_uuid=found.uuid)
    work.must(tag, timeout=60)
    # lvchange calls it an error when the volume is read-only already (always so, or fenced before a reboot).
    (work.must if found.permission == "writeable" else work.do)(read_only, timeout=60)
    found = _source(work)
    if found.open or found.permission == "writeable":
        _unfence(work, was)
        check_closed(found)
        raise Failed(
            "not-fenced",
            read_only.tried,
            "the volume is still writeable",
            "Read LVM's message in the log, then resume.",
        )
    work.do(hold)
    if not _is_fenced(work, found):
        _unfence(work, was)
        raise Failed(
            "no-holder", hold.tried, "the holder does not keep the volume open", "See journalctl -u %s." % holder(job)
        )
    return dict(was=was, **_fenced(found, job))


def _source(work: Work) -> Volume:
    found = volume(work, work.args["vg"], work.args["lv"])
    if found is None or found.uuid != work.args["lv_uuid"] or found.size != work.args["size"]:
        raise Refused(
            "unknown-volume",
            "fence %s" % name(work.args),
            "planned was %s with %d bytes; found %s"
            % (
                work.args["lv_uuid"],
                work.args["size"],
                "%s with %d bytes" % (found.uuid, found.size) if found else "no such volume",
            ),
            "The source volume is not the planned one. Undo the job and plan again.",
        )
    return found


def _check_not_foreign(found: Volume, job: str) -> None:
    others = [tag for tag in found.tags if tag.startswith("volmig.src=") and tag != "volmig.src=%s" % job]
    if others:
        raise Refused(
            "foreign-fence",
            "fence %s/%s" % (found.vg, found.lv),
            "another job has fenced it: %s" % ", ".join(others),
            "Finish or undo that job first.",
        )
    if not found.active or found.health or found.attributes[4:5] != "a":
        raise Refused(
            "volume-not-healthy",
            "fence %s/%s" % (found.vg, found.lv),
            "attributes %s, health %s" % (found.attributes, found.health or "not reported"),
            "Activate or repair the volume first.",
        )


def _is_fenced(work: Work, found: Volume) -> bool:
    tagged = "volmig.src=%s" % work.job in found.tags
    return tagged and found.active and found.permission != "writeable" and _soon(lambda: _is_held(work, found))


def _is_held(work: Work, found: Volume) -> bool:
    return any(process["unit"] == holder(work.job) + ".service" for process in openers(found.device))


def _soon(holds: Callable[[], bool], seconds: float = 3) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _fenced(found: Volume, job: str) -> Dict[str, Any]:
    writes, sectors = counters(found.device)
    return {"writes": writes, "sectors_written": sectors, "holder_unit": holder(job)}


def _unfence(work: Work, was: str) -> None:
    for act in unfence_acts(dict(work.args, made={"was": was}), work.job):
        work.do(act, recovery=True, timeout=60)


def unfence(work: Work) -> Dict[str, Any]:
    """Give the source back as it was found: holder gone, permission restored, our tags off."""
    args, known = work.args, work.memory.recall("fence")
    work.learn(**known)
    found = volume(work, args["vg"], args["lv"])
    stop = unfence_acts(work.args, work.job)[0]
    work.do(stop)  # the unit's name carries the job: it can only be ours, and stopping none is no harm
    if found is not None and found.active and not _soon(lambda: not _is_held(work, found)):
        raise Failed(
            "still-held",
            stop.tried,
            "%s still holds the volume open" % holder(work.job),
            "Stop that unit, then resume.",
        )
    if found is None or "volmig.src=%s" % work.job not in found.tags:
        return {"already": True, "gone": found is None}
    if work.made.get("lv_uuid", found.uuid) != found.uuid:
        raise Refused(
            "foreign-volume",
            "release %s" % name(args),
            "its UUID is %s, fenced was %s" % (found.uuid, work.made["lv_uuid"]),
            "Another volume took the name. Look at it by hand.",
        )
    for act in unfence_acts(work.args, work.job)[1:]:
        if "-prw" not in act.argv or found.permission != "writeable":  # which lvchange calls an error
            work.must(act, timeout=60)
    after = volume(work, args["vg"], args["lv"])
    wanted = work.made.get("was", "writeable")
    if after is None or after.permission != wanted or "volmig.src=%s" % work.job in after.tags:
        raise Failed(
            "not-released",
            "release %s" % name(args),
            "it is %s with tags %s, not %s and free of our tags"
            % (after and after.permission, after and " ".join(after.tags), wanted),
            "Read LVM's message, then resume.",
        )
    return {"permission": after.permission}
