"""Logical volumes: make, fence, release, erase and remove, each bound to tag and UUID."""

import fcntl
import json
import os
import re
import stat
import struct
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from . import mounts
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Work


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
    """The commands that create the temporary volume with its tags; `size` in bytes."""
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
    """The commands that overwrite the temporary volume with zeros and remove it, by UUID and tag."""
    made = args.get("made", {})
    which = 'lv_uuid="%s" && lv_tags={"volmig.job=%s"}' % (made.get("lv_uuid", "«lv_uuid»"), job)
    return (
        syscall("zero %s, %s bytes (BLKZEROOUT)" % (device(args), args["size"])),
        command("lvchange", "-an", "--", name(args)),
        command("lvremove", "--yes", "-S", which, "--", args["vg"]),
    )


def fence_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that mark the source volume, make it read-only and keep it open in a unit."""
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
    """The commands that release the source volume; it stays read-only if it was so before."""
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


# A site's lvm.conf may change how LVM prints a report; these settings give the JSON that is read here, whatever it says
# (lvm.conf(5), sections log and report). A setting that an old LVM lacks is passed over with a warning.
CONFIG = " ".join(
    (
        'log{command_names=0 prefix="" indent=0 verbose=0 silent=0 report_command_log=0}',
        "report{compact_output=0 buffered=1 headings=1 prefixes=0 quoted=1 columns_as_rows=0",
        'list_item_separator="," binary_values_as_numeric=0 mark_hidden_devices=1}',
    )
)
SOME_FAILED = 5  # lvs(8): some objects could not be processed; the rows that were printed are right


class Volume(NamedTuple):
    """A logical volume as LVM reports it; size in bytes, `device` as MAJOR:MINOR (-1:-1 when inactive).

    `open` is False for a volume that is not active: LVM has no data about its openers then, and there can be none.
    """

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
        """Major and minor number as sysfs writes them, 253:7."""
        return "%d:%d" % (self.major, self.minor)


class Report(NamedTuple):
    """What lvs or vgs printed; `skipped` is why LVM left some object out, empty when the rows are all there are."""

    rows: List[Dict[str, str]]
    skipped: str


def report(work: Work, tool: str, section: str, fields: str, *chosen: str) -> Report:
    """Rows of `lvs` or `vgs`; Refused when what it printed cannot be read as a report."""
    options = ("--config", CONFIG, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields)
    output = work.ask(tool, *options, *chosen, good=(0, SOME_FAILED))
    rows = _rows(output.out, tool, section)
    if rows is None:
        strange = [line.strip() for line in output.out.splitlines() if not _is_json(line)]
        raise Refused(
            "unreadable-report",
            "read what %s reports" % tool,
            "it is not JSON; it begins with: %s" % (strange or output.out.strip().splitlines() or ["nothing"])[0][:200],
            "Compare the sections log and report of /etc/lvm/lvm.conf and lvmlocal.conf with LVM's defaults.",
        )
    return Report(rows, output.said() if output.exit else "")


def _rows(text: str, tool: str, section: str) -> Optional[List[Dict[str, str]]]:
    """The rows of a report, with what LVM printed between its lines left out; None when that is no report."""
    lines = [re.sub(r"^%s\s+" % tool, "", line.strip()) for line in text.splitlines()]
    for candidate in (text, "\n".join(line for line in lines if _is_json(line))):
        try:
            return [row for one in json.loads(candidate)["report"] for row in one[section]]
        except (ValueError, KeyError, TypeError):
            continue
    return None


def _is_json(line: str) -> bool:
    """Whether a line can be one of LVM's JSON: a bracket, or the name of a report."""
    return line.strip()[:1] in ("{", "}", "[", "]", '"')


def volumes(work: Work, select: str = "") -> List[Volume]:
    """The volumes that LVM shows, of all groups that it could read."""
    return [_volume(row) for row in _report_volumes(work, select).rows]


def _report_volumes(work: Work, select: str) -> Report:
    return report(work, "lvs", "lv", FIELDS, *(("-S", select) if select else ()))


def _volume(row: Dict[str, str]) -> Volume:
    active = row["lv_active"] in ("active", "1")
    return Volume(
        row["vg_name"],
        row["lv_name"],
        row["lv_uuid"],
        int(row["lv_size"]),
        row["lv_attr"],
        tuple(tag for tag in row["lv_tags"].split(",") if tag),
        active and row["lv_device_open"] not in ("", "0"),
        int(row["lv_kernel_major"]),
        int(row["lv_kernel_minor"]),
        row["lv_permissions"],
        active,
        row["lv_health_status"],
        row["pool_lv"],
        row["origin"],
    )


def volume(work: Work, vg: str, lv: str) -> Optional[Volume]:
    """The volume of that name, or None; selection instead of a name, so that absence is an answer and not an error.

    Refused when LVM left something out and the volume is not among the rest, or when two groups have the name: then it
    cannot be known whether the volume is there, nor which of two it is.
    """
    found = _report_volumes(work, 'vg_name="%s" && lv_name="%s"' % (vg, lv))
    if found.skipped and not found.rows:
        raise Refused(
            "volume-not-known",
            "find %s/%s" % (vg, lv),
            "LVM's report is incomplete: %s" % found.skipped,
            "Repair what LVM reports (run lvs and vgs on the host), then resume.",
        )
    if len(found.rows) > 1:
        raise Refused(
            "unknown-volume",
            "find %s/%s" % (vg, lv),
            "%d volumes have that name, in groups of one name" % len(found.rows),
            "Rename one of the groups by its UUID (vgrename), then resume.",
        )
    return _volume(found.rows[0]) if found.rows else None


GROUP_FIELDS = "vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_attr,vg_missing_pv_count"


class Groups(NamedTuple):
    """The volume groups that LVM shows, and why it left others out ("" when it did not).

    Sizes in bytes; `problem` of a group is why nothing can be written to its metadata, or empty.
    """

    found: List[Dict[str, Any]]
    skipped: str

    def named(self, name: str) -> Optional[Dict[str, Any]]:
        """The volume group of that name, None when LVM does not report it."""
        return next((group for group in self.found if group["name"] == name), None)


def groups(work: Work) -> Groups:
    """All volume groups with sizes in bytes, vgs(8), and what LVM skipped."""
    rows, skipped = report(work, "vgs", "vg", GROUP_FIELDS)
    found = [
        {
            "name": row["vg_name"],
            "uuid": row["vg_uuid"],
            "size": int(row["vg_size"]),
            "free": int(row["vg_free"]),
            "extent_size": int(row["vg_extent_size"]),
            "problem": _group_problem(row, rows),
        }
        for row in rows
    ]
    return Groups(found, skipped)


def _group_problem(row: Dict[str, str], rows: List[Dict[str, str]]) -> str:
    """Why LVM will not, or must not, write to a group's metadata; attribute letters are those of vgs(8), VG attr."""
    attributes = row["vg_attr"].ljust(6, "-")
    missing = int(row["vg_missing_pv_count"] or 0)
    alike = [other["vg_uuid"] for other in rows if other["vg_name"] == row["vg_name"]]
    problems = (
        (
            len(alike) > 1,
            "has the name of another volume group (%s); rename one: vgrename UUID NAME" % ", ".join(alike),
        ),
        (missing > 0, "lacks %d physical volume%s" % (missing, "" if missing == 1 else "s")),
        (attributes[3] == "p", "lacks a physical volume"),
        (attributes[2] == "x", "is exported"),
        (attributes[0] == "r", "is read-only"),
        (attributes[5] == "c", "is clustered"),
    )
    return next((sentence for holds, sentence in problems if holds), "")


def demand_writable_group(work: Work, vg: str, tried: str) -> Dict[str, Any]:
    """The group, whole and writable; Refused before anything is written to one that is not."""
    reported = groups(work)
    group = reported.named(vg)
    if group is None:
        found = reported.skipped or "there is no volume group %s" % vg
        raise Refused("no-volume-group", tried, found, "Choose another relay or volume group.")
    if group["problem"]:
        raise Refused(
            "group-not-whole",
            tried,
            "the volume group %s %s" % (vg, group["problem"]),
            "Repair the volume group, then resume.",
        )
    return group


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
    """The first line of a file in sysfs or procfs; empty when it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


class Child(NamedTuple):
    """A device that is stacked on another one, as the kernel names it; `uuid` is the device mapper's, or empty."""

    name: str
    uuid: str
    device: str


def kernel_children(device: str) -> List[Child]:
    """Devices stacked on this one (partitions, crypt, LVM inside)."""
    directory = "/sys/dev/block/%s/holders" % device
    return [
        Child(
            first_line("%s/%s/dm/name" % (directory, name)) or name,
            first_line("%s/%s/dm/uuid" % (directory, name)),
            first_line("%s/%s/dev" % (directory, name)),
        )
        for name in sorted(os.listdir(directory))
    ]


LAYERS = 4  # a partition, a volume group in it, encryption, a mapping that someone made


def stacked(device: str, own: str = "", layers: int = LAYERS) -> List[str]:
    """What lies on a device, in words: a volume group that this host activated inside it, by name and how to end that.

    `own` is the UUID of the group that the device itself belongs to: LVM stacks its own volumes, too.
    """
    own = own or first_line("/sys/dev/block/%s/dm/uuid" % device)[4:36]
    inner: Dict[str, List[str]] = {}
    said: List[str] = []
    for child in kernel_children(device):
        group = child.uuid[4:36] if child.uuid.startswith("LVM-") else own
        if group != own:
            inner.setdefault(group, []).append(child.name)
            continue
        said.append("device %s on top of it" % child.name)
        said += stacked(child.device, own, layers - 1) if child.device and layers else []
    return [_inner_group(group, names) for group, names in sorted(inner.items())] + said


def _inner_group(uuid: str, names: List[str]) -> str:
    group, volumes = mapped(names[0])[0], ["/".join(mapped(each)) for each in names]
    return (
        "the volume group %s, which lies inside it and which this host activated (%s). Deactivate it: "
        "vgchange -an --config devices/scan_lvs=1 --select vg_uuid=%s. So that LVM does not activate it again, set "
        "devices/scan_lvs to 0, or reject the volume by devices/global_filter, in /etc/lvm/lvm.conf"
        % (group, ", ".join(volumes), dashed(uuid))
    )


def mapped(name: str) -> Tuple[str, str]:
    """Group and volume of a name of LVM's in the device mapper, where every dash of theirs is doubled."""
    group, _, volume = re.sub("(?<!-)((?:--)*)-(?!-)", "\\1/", name, count=1).partition("/")
    return group.replace("--", "-"), volume.replace("--", "-")


def dashed(uuid: str) -> str:
    """An UUID of LVM's as its tools write it; the kernel keeps it without dashes."""
    return "-".join([uuid[:6], *(uuid[at : at + 4] for at in range(6, 26, 4)), uuid[26:]])


def holders(found: Volume) -> List[str]:
    """Everything that keeps a volume open, in words."""
    if not found.active:
        return []
    programs = ["process %(pid)d (%(name)s) of %(unit)s" % process for process in openers(found.device)]
    return stacked(found.device) + ["mounted on %s" % mount.target for mount in mounts.holding(found.device)] + programs


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
                "the kernel reports %s with %d bytes; the plan has %s with %d bytes"
                % (uuid or "no LVM volume", size, self.args["lv_uuid"], self.args["size"]),
                "The volume was replaced or resized. Find out by whom; undo the job.",
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
        others += stacked(self.device) + [mount.target for mount in mounts.holding(self.device)]
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
    tried = "create the volume %s with %d bytes" % (name(args), args["size"])
    group = demand_writable_group(work, args["vg"], tried)
    if args["size"] % group["extent_size"]:
        raise Refused(
            "size-not-extents",
            tried,
            "the size is no multiple of the extent size %d" % group["extent_size"],
            "Plan the size in whole extents.",
        )
    if args["size"] > group["free"]:
        raise Refused(
            "no-space", tried, "%d bytes are free" % group["free"], "Free space or choose another volume group."
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
            "This volume does not belong to this job. Inspect it manually; volmig does not change it.",
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
            "this host has no note of having created it",
            "Inspect the volume manually: its tags name the job.",
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
            "Read LVM's message in the step's log, then resume.",
        )
    return {"erased_bytes": found.size, "lv_uuid": found.uuid}


def check_closed(found: Volume) -> None:
    """Refuse a volume that anything has open, naming what has."""
    if found.open:
        raise Refused(
            "volume-open",
            "use %s/%s" % (found.vg, found.lv),
            "it is open: %s" % (", ".join(holders(found)) or "LVM does not report by what"),
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
            "The device node points elsewhere. Inspect it manually.",
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
    demand_writable_group(work, args["vg"], "fence %s" % name(args))
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
            "Another volume has the name. Inspect it manually.",
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
