"""What carries volmig's marker on this host, whoever asks: read-only, capped, and never waiting for a dead share."""

import os
import re
import stat
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import commands, exports, lvm, mounts, relay_filesystem, store, untrusted
from .act import UUID, Stop
from .commands import Work, find
from .untrusted import Share, open_directory, plain

CAP = 1000
SHARES_WITHIN = 8.0
PROBE_WITHIN = 10.0
MARKED = 'lv_tags={"volmig"} || lv_name=~"^volmig_"'
TAG = re.compile(r"volmig\.(job|src)=(%s)\Z" % UUID)
OWN_PATH = re.compile(r"/(?:srv|mnt)/volmig/([0-9a-f]{32})\Z")
UNIT = re.compile(r"^\W*(volmig-([0-9a-f]{32})-[a-z_]+(?:-(?:do|undo)-\d{1,3})?)\.service\s", re.MULTILINE)
DISKS = {"disk.new": "stage", "disk.old": "backup", "disk.rejected": "backup"}
Thing = Dict[str, Any]


def leftovers(work: Work) -> Dict[str, Any]:
    """Everything with a marker: {"things", "shares" with whether each answered, "missed" kinds, "more" than the cap}.

    A thing is {"kind", "name", "job" (UUID, "" where the marker names none), "identity", "size" in bytes or 0, "since"
    in seconds of the epoch or None, "share" on which it lies or "", "path" here}.
    """
    things: List[Thing] = []
    missed: List[str] = []
    for kinds, look in LOOKS:
        try:
            things += look(work)
        except (Stop, OSError, ValueError, KeyError):
            missed += kinds
    shares = _shares()
    beyond = sum(share.pop("beyond") for share in shares)
    for share in shares:
        things += share.pop("things")
    return {
        "things": things[:CAP],
        "more": max(0, len(things) - CAP) + beyond,
        "missed": missed,
        "shares": shares,
        "time": time.time(),
    }


def _thing(kind: str, name: str, job: str, identity: str, size: int = 0, since: Optional[float] = None) -> Thing:
    whole = {"kind": kind, "name": plain(name), "job": job, "identity": plain(identity, 100), "size": size}
    return dict(whole, since=since, share="", path=whole["name"])


def _dashed(digits: str) -> str:
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _volumes(work: Work) -> List[Thing]:
    return [thing for found in lvm.volumes(work, MARKED) for thing in _of_volume(found)] if find("lvs") else []


def _of_volume(found: lvm.Volume) -> List[Thing]:
    """A temporary volume, or the fence on a source; without its tag it is reported, and belongs to no job."""
    path = "%s/%s" % (found.vg, found.lv)
    marks = [mark.groups() for mark in map(TAG.match, found.tags) if mark]
    kinds = {"job": "lv", "src": "fence"}
    things = [_thing(kinds[what], path, job, found.uuid, found.size) for what, job in marks]
    return things or [_thing("lv", path, "", found.uuid, found.size)]


def _mounted(work: Work) -> List[Thing]:
    return [_of_mount(work, row, own.group(1)) for row, own in _own_mounts() if own]


def _own_mounts() -> List[Tuple[mounts.Mount, Any]]:
    return [(row, OWN_PATH.match(row.target)) for row in mounts.mounts()]


def _of_mount(work: Work, row: mounts.Mount, digits: str) -> Thing:
    if row.fstype.startswith("nfs"):
        return _thing("mount", row.target, _dashed(digits), row.source)
    asked = relay_filesystem.signature(work, row.source, good=None, timeout=PROBE_WITHIN)
    return _thing("filesystem", row.target, _dashed(digits), commands.export_format(asked.out).get("UUID", ""))


def _exports(work: Work) -> List[Thing]:
    found = exports.all_exports(work) if find("exportfs") else exports.recorded()
    owned = [(path, client, OWN_PATH.match(path)) for path, client in found]
    return [_thing("export", path, _dashed(own.group(1)), client) for path, client, own in owned if own]


def _units(work: Work) -> List[Thing]:
    listed = work.ask("systemctl", "list-units", "--all", "--plain", "--full", "--no-legend", "--", "volmig-*")
    return [_thing("unit", name, _dashed(digits), name) for name, digits in UNIT.findall(listed.out)]


def _memories(work: Work) -> List[Thing]:
    """What this host remembers of jobs, by the names of directories that only root writes."""
    try:
        names = sorted(os.listdir(store.STATE))
    except FileNotFoundError:
        return []
    paths = [(os.path.join(store.STATE, name), name) for name in names if re.match(UUID + r"\Z", name)]
    return [_thing("memory", path, job, path, 0, os.lstat(path).st_mtime) for path, job in paths]


def _mountpoints(work: Work) -> List[Thing]:
    """Directories to mount on with nothing mounted; others are not looked at, for what is mounted may be dead."""
    covered = {row.target for row, _ in _own_mounts()}
    found = mounts.apart({place: _listing(place, covered) for place in ("/srv/volmig", "/mnt/volmig")}, SHARES_WITHIN)
    if None in found.values():
        raise OSError("a directory of mount points is not responding")
    rows = [row for listed in found.values() for row in listed or ()]
    return [_thing("directory", path, _dashed(path[-32:]), path, 0, since) for path, since in rows]


def _listing(place: str, covered: Any) -> Callable[[], List[Tuple[str, float]]]:
    def listed() -> List[Tuple[str, float]]:
        try:
            paths = sorted(os.path.join(place, name) for name in os.listdir(place))
        except FileNotFoundError:
            return []
        return [(path, os.lstat(path).st_mtime) for path in paths if path not in covered and OWN_PATH.match(path)]

    return listed


LOOKS: Tuple[Tuple[Tuple[str, ...], Callable[[Work], List[Thing]]], ...] = (
    (("lv", "fence"), _volumes),
    (("filesystem", "mount"), _mounted),
    (("export",), _exports),
    (("unit",), _units),
    (("memory",), _memories),
    (("directory",), _mountpoints),
)


# On shares

NOTHING: Dict[str, Any] = {"things": [], "beyond": 0}


def _shares() -> List[Dict[str, Any]]:
    """Each mounted share with what lies in its .volmig; all are asked at once, and one that is dead is left behind."""
    targets = {row.source: row.target for row, own in _own_mounts() if row.fstype in ("nfs", "nfs4") and not own}
    heard = mounts.apart({source: _listing_of_share(target) for source, target in targets.items()}, SHARES_WITHIN)
    return [
        {
            "source": plain(source),
            "answered": heard[source] is not None,
            "things": [dict(each, share=plain(source)) for each in (heard[source] or NOTHING)["things"]],
            "beyond": (heard[source] or NOTHING)["beyond"],
        }
        for source in sorted(targets)
    ]


def _listing_of_share(target: str) -> Callable[[], Dict[str, Any]]:
    """What lies on it, up to the cap, and how many directories or disks are beyond that."""

    def listed() -> Dict[str, Any]:
        with Share(target) as share, share.mine():
            try:
                root = share.folder(".volmig")
            except FileNotFoundError:
                return NOTHING
            try:
                jobs = [name for name in untrusted.names(root) if re.match(UUID + r"\Z", name)]
                things = [thing for job in jobs[:CAP] for thing in _of_folder(root, job)]
            finally:
                os.close(root)
        found = [dict(thing, path=plain("%s/%s" % (target.rstrip("/"), thing["name"]))) for thing in things[:CAP]]
        return {"things": found, "beyond": len(things[CAP:]) + len(jobs[CAP:])}

    return listed


def _of_folder(root: int, job: str) -> List[Thing]:
    """The disks in a job's directory, or the directory itself where there is none; links are never followed."""
    try:
        fd = open_directory(job, root)
    except OSError:
        return [_thing("directory", ".volmig/" + job, job, "")]
    try:
        present = set(untrusted.names(fd))
        there = [(name, os.stat(name, dir_fd=fd, follow_symlinks=False)) for name in DISKS if name in present]
        inode, since = str(os.fstat(fd).st_ino), os.fstat(fd).st_mtime
    finally:
        os.close(fd)
    disks = [_of_disk(job, name, seen) for name, seen in there]
    return disks or [_thing("directory", ".volmig/" + job, job, inode, 0, since)]


def _of_disk(job: str, name: str, seen: os.stat_result) -> Thing:
    inode = str(seen.st_ino) if stat.S_ISREG(seen.st_mode) else ""
    return _thing(DISKS[name], ".volmig/%s/%s" % (job, name), job, inode, seen.st_blocks * 512, seen.st_ctime)
