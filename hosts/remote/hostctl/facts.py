"""Read-only verbs: what a host is and has, and the facts that checks, plans and approvals stand on."""

import errno
import ipaddress
import json
import os
import platform
import re
import select
import socket
import stat
import time
from typing import Any, Dict, List, Optional, Tuple

from . import (
    bases,
    exports,
    job_directory,
    live_disk,
    lvm,
    mounts,
    nfs_mount,
    nfs_server,
    openers,
    transient_units,
    untrusted,
    version,
    virsh,
)
from .act import Args, Stop
from .commands import Work, export_format, find
from .images import Image
from .relay_filesystem import signature
from .sandbox import NOBODY, Cage
from .untrusted import Share

RELAY_PORTS = (111, 2049, 20048)
PATIENCE = 2.0  # seconds that ports get to answer
UNTRIED = "untried"
HEAD = 4 << 20
PARTITIONS = 16  # the signatures of so many are read
PROBED = 1 << 20  # bytes within which the signatures of the usual filesystems lie
UDEV = {"TYPE": "ID_FS_TYPE", "LABEL": "ID_FS_LABEL_ENC", "UUID": "ID_FS_UUID_ENC", "PTTYPE": "ID_PART_TABLE_TYPE"}


# The host itself


def hello(work: Work) -> Dict[str, Any]:
    """Who this is and which tools it has (version, or "" when missing)."""
    return {
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "protocol": version.PROTOCOL,
        "oldest_protocol": version.OLDEST,
        "versions": version.installed(),
        "user": _user(),
        "boot_id": transient_units.boot_id(),
        "time": time.time(),
        "tools": _tools(work),
        "features": {
            "virsh": bool(find("virsh")),
            "exportfs": bool(find("exportfs")),
            "systemd_run": bool(find("systemd-run")),
            "cgroup2": os.path.exists("/sys/fs/cgroup/cgroup.controllers"),
            "selinux": os.path.isdir("/sys/fs/selinux/class"),
        },
    }


def _user() -> str:
    return "root" if os.geteuid() == 0 else str(os.geteuid())


def _tools(work: Work) -> Dict[str, str]:
    asked = {
        "qemu_img": ("qemu-img", "--version"),
        "lvm": ("lvm", "version"),
        "systemd": ("systemctl", "--version"),
        "libvirt": ("virsh", "--version"),
        "mkfs_ext4": ("mkfs.ext4", "-V"),
        "blkid": ("blkid", "--version"),
        "sfdisk": ("sfdisk", "--version"),
        "mount_nfs": ("mount.nfs", "-V"),
    }
    versions = {name: _version(work, words) for name, words in asked.items()}
    return dict(versions, kernel=platform.release(), exportfs="present" if find("exportfs") else "")


def _version(work: Work, words: Tuple[str, ...]) -> str:
    if not find(words[0]):
        return ""
    output = work.ask(*words, good=None)
    found = re.search(r"\b\d+(?:\.\d+)*", output.out or output.err)
    return found.group() if found else "?"


def inventory(work: Work) -> Dict[str, Any]:
    """Everything the pages list of a hypervisor."""
    has_lvm = bool(find("lvs"))
    groups = lvm.groups(work) if has_lvm else lvm.Groups([], "")
    problems = ["%(name)s %(problem)s" % group for group in groups.found if group["problem"]]
    return dict(
        hello(work),
        warnings=["LVM's report is incomplete: %s" % groups.skipped] * bool(groups.skipped) + sorted(set(problems)),
        volume_groups=groups.found,
        logical_volumes=[_volume(found) for found in lvm.volumes(work)] if has_lvm else [],
        mounts=[_mount(found) for found in mounts.mounts() if found.fstype in ("nfs", "nfs4")],
        addresses=_addresses(work),
        nfs_server=nfs_server.server(work),
        domains=virsh.domains(work),
    )


def _volume(found: lvm.Volume) -> Dict[str, Any]:
    return {
        "vg": found.vg,
        "name": found.lv,
        "uuid": found.uuid,
        "size": found.size,
        "attributes": found.attributes,
        "open": found.open,
        "tags": list(found.tags),
        "major": found.major,
        "minor": found.minor,
    }


def _mount(found: mounts.Mount) -> Dict[str, Any]:
    size, free = _space(found.target)
    return {
        "source": found.source,
        "target": found.target,
        "fstype": found.fstype,
        "options": found.options,
        "size": size,
        "free": free,
    }


def _space(path: str) -> Tuple[Optional[int], Optional[int]]:
    """Size and free bytes, or Nones of a server that does not answer."""

    def asked() -> List[int]:
        found = os.statvfs(path)
        return [found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize]

    size, free = mounts.apart({path: asked}, 5)[path] or (None, None)
    return size, free


def _addresses(work: Work) -> List[Dict[str, Any]]:
    listed = json.loads(work.ask("ip", "-j", "address", "show").out)
    return [
        {"interface": link["ifname"], "address": address["local"], "prefix": address["prefixlen"]}
        for link in listed
        for address in link.get("addr_info", [])
        if address.get("scope") == "global"
    ]


# The network


def reach(work: Work) -> Dict[str, Any]:
    """Which TCP ports answer from here: open, refused, filtered or unreachable; those that time was too short for
    are `untried`, and nothing is known of them."""
    found = knock(work.args["targets"], PATIENCE, work.until)
    return {
        "results": [each for each in found if each["state"] != UNTRIED],
        "untried": [{name: each[name] for name in ("address", "port")} for each in found if each["state"] == UNTRIED],
    }


def knock(targets: List[Dict[str, Any]], patience: float = PATIENCE, until: Optional[float] = None) -> List[Args]:
    """Each target with its `state` and the milliseconds until it was known, in the order of `targets`.

    All connections are begun at once, so ports that never answer cost `patience` seconds together and not each. One
    that did not answer is filtered; where `until` (monotonic clock) came before its patience was over, untried.
    """
    begun = time.monotonic()
    deadline = begun + patience if until is None else min(begun + patience, until)
    silent = "filtered" if deadline >= begun + patience else UNTRIED
    found = [dict(target, state=silent) for target in targets]
    waiting: Dict[int, Tuple[socket.socket, Args]] = {}
    poll = select.poll()
    try:
        for each in found:
            knock = _begin(each)
            if knock is not None:
                waiting[knock.fileno()] = (knock, each)
                poll.register(knock, select.POLLOUT)
        while waiting and time.monotonic() < deadline:
            for fd, _event in poll.poll(1 + int(1000 * max(0.0, deadline - time.monotonic()))):
                knock, each = waiting.pop(fd)
                poll.unregister(fd)
                with knock:
                    each["state"] = _state(knock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                each["ms"] = _since(begun)
    finally:
        for knock, _each in waiting.values():
            knock.close()
    return [dict({"ms": _since(begun)}, **each) for each in found]


def _begin(target: Args) -> Optional[socket.socket]:
    """A connection under way, or None where its outcome is known at once, which is then the target's state."""
    family = socket.AF_INET6 if ipaddress.ip_address(target["address"]).version == 6 else socket.AF_INET
    try:
        knock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # no IPv6 here, or no more sockets for this process
        target["state"] = "unreachable" if error.errno == errno.EAFNOSUPPORT else UNTRIED
        return None
    knock.setblocking(False)
    result = knock.connect_ex((target["address"], target["port"]))
    if result in (errno.EINPROGRESS, errno.EINTR):
        return knock
    knock.close()
    target["state"] = _state(result)
    return None


def _state(code: int) -> str:
    """What the error number of a connection says of its port."""
    known = {0: "open", errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "filtered"}
    return known.get(code, "unreachable")


def _since(begun: float) -> float:
    return round(1000 * (time.monotonic() - begun), 1)


def _knocks(address: str) -> List[Dict[str, Any]]:
    return knock([{"address": address, "port": port} for port in RELAY_PORTS])


# What a disk holds


def contents(work: Work, path: str, readable: int = 1 << 63) -> Dict[str, Any]:
    """Partition table and filesystems of a raw device or file, and one phrase that says it.

    Only the first `readable` bytes of it are its contents; partitions that were not read are named, not guessed at.
    """
    whole = _signature(work, path)
    partitions = _partitions(work, path) if whole.get("PTTYPE") else []
    read = [part for part in partitions[:PARTITIONS] if part["start"] + PROBED <= readable]
    unread = [part["number"] for part in partitions if part not in read]
    places = [("whole disk", whole)] + [
        ("partition %d" % part["number"], _signature(work, path, part["start"])) for part in read
    ]
    filesystems = [
        {"where": where, "type": found["TYPE"], "label": found.get("LABEL", ""), "uuid": found.get("UUID", "")}
        for where, found in places
        if found.get("TYPE")
    ]
    table = whole.get("PTTYPE", "")
    return {
        "table": table,
        "partitions": [{name: part[name] for name in ("number", "size", "type")} for part in partitions],
        "filesystems": filesystems,
        "unread": unread,
        "summary": _summary(table, partitions, filesystems, unread),
    }


def _signature(work: Work, path: str, offset: int = 0) -> Dict[str, str]:
    """TYPE, LABEL, UUID and PTTYPE; `-o udev`, as `-o export` escapes in a way that cannot be taken back (blkid(8))."""
    where = ("-O", offset) if offset else ()
    said = export_format(signature(work, path, *where, form="udev", good=None).out)
    return {name: _decoded(said[key]) for name, key in UDEV.items() if key in said}


def _decoded(text: str) -> str:
    """A value as the guest has it: blkid writes a byte that is no safe UTF-8 as \\xNN."""
    raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda found: bytes([int(found.group(1), 16)]), text.encode())
    return raw.decode("utf-8", "replace")


def _partitions(work: Work, path: str) -> List[Dict[str, Any]]:
    if not find("sfdisk"):
        return []
    output = work.ask("sfdisk", "-J", "--", path, good=None, become=Cage(own=(path,)))
    try:
        table = json.loads(output.out)["partitiontable"]
    except (ValueError, KeyError):
        return []
    sector = int(table.get("sectorsize", 512))
    return [
        {
            "number": _partition_number(part["node"], path),
            "start": part["start"] * sector,
            "size": part["size"] * sector,
            "type": part.get("type", ""),
        }
        for part in table.get("partitions", [])
    ]


def _partition_number(node: str, path: str) -> int:
    """What a guest calls it: vdb14 is partition 14. After a name that ends in a digit sfdisk writes a p before it."""
    return int(node[len(path) :].lstrip("p"))


def _summary(table: str, partitions: List[Dict[str, Any]], filesystems: List[Dict[str, str]], unread: List[int]) -> str:
    named = ["%s%s" % (found["type"], " “%s”" % found["label"] if found["label"] else "") for found in filesystems]
    if unread:
        numbers = ", ".join(str(number) for number in unread)
        named.append("partition%s %s not read" % ("" if len(unread) == 1 else "s", numbers))
    holds = ", ".join(named) or "no known filesystem"
    if table:
        return "%s table with %d partition%s: %s" % (
            table.upper(),
            len(partitions),
            "" if len(partitions) == 1 else "s",
            holds,
        )
    return "%s on the whole disk" % holds if named else "no partition table and %s" % holds


def image_contents(work: Work, image: Image) -> Dict[str, Any]:
    """The same for a qcow2 image in use: its first 4 MiB are copied out raw and looked at."""
    import tempfile  # slow to load, and other calls do without

    if image.objections:
        return _unread("not read: %s" % ", ".join(image.objections))
    size = image.header.size
    os.makedirs("/run/volmig", 0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/run/volmig") as scratch:
        head = os.path.join(scratch, "head")
        _give(head, image.user)
        words = ["qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=65536"]
        words += ["count=%d" % max(1, min(HEAD, size) // 65536), "if=" + image.path, "of=" + head]
        cage = image.cage(scratch=head, written=HEAD + 65536)
        if work.ask(*words, good=None, timeout=10, become=cage).exit:
            return _unread("not readable")
        try:
            os.truncate(head, size)
        except OSError:  # larger than a file can be here
            return _unread("not readable")
        _give(head, NOBODY)
        return contents(work, head, HEAD)


def _unread(summary: str) -> Dict[str, Any]:
    return {"table": "", "partitions": [], "filesystems": [], "unread": [], "summary": summary}


def _give(path: str, user: Tuple[int, int]) -> None:
    """A file of root's own directory for the user of a cage, made where there is none."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, *user)
    finally:
        os.close(fd)


# Facts of a job's three hosts


def source_facts(work: Work) -> Dict[str, Any]:
    """The source volume, what is on it, who uses it, and the way to the relay."""
    args = work.args
    found = lvm.volume(work, args["vg"], args["lv"])
    relay = args["relay_address"]
    return {
        "vg": lvm.groups(work).named(args["vg"]),
        "volume": _source_volume(found) if found else None,
        "virsh": virsh.installed(),
        "contents": contents(work, lvm.device(args)) if found and found.active else None,
        "source_address": nfs_mount.source_address(relay),
        "reach": _knocks(relay),
        "instance_running": _user_of(work, found) if found else None,
        "time": time.time(),
    }


def _source_volume(found: lvm.Volume) -> Dict[str, Any]:
    writes, sectors = lvm.counters(found.device) if found.active else (0, 0)
    return {
        "vg": found.vg,
        "lv": found.lv,
        "uuid": found.uuid,
        "size": found.size,
        "attributes": found.attributes,
        "active": found.active,
        "open": found.open,
        "holders": lvm.holders(found),
        "tags": list(found.tags),
        "major": found.major,
        "minor": found.minor,
        # Of a volume that is not active LVM reports "unknown"; the second attribute letter is the metadata's (lvs(8)).
        "permission": "writeable" if found.attributes[1:2] == "w" else "read-only",
        "writes": writes,
        "sectors_written": sectors,
        "crypt": _is_crypt(found),
    }


def _is_crypt(found: lvm.Volume) -> bool:
    if not found.active:
        return False
    directory = "/sys/dev/block/%s/holders" % found.device
    return any(
        lvm.first_line("%s/%s/dm/uuid" % (directory, name)).startswith("CRYPT-") for name in os.listdir(directory)
    )


def _user_of(work: Work, found: lvm.Volume) -> Optional[Dict[str, str]]:
    """The domain whose disk is this volume, compared by device number and not by name."""
    for domain in virsh.domains(work):
        if any(_is_device(disk["source"], found) for disk in domain["disks"]):
            return {name: domain[name] for name in ("uuid", "name", "state")}
    return None


def _is_device(path: str, found: lvm.Volume) -> bool:
    try:
        seen = os.stat(path)
    except OSError:
        return False
    return stat.S_ISBLK(seen.st_mode) and seen.st_rdev == os.makedev(max(found.major, 0), max(found.minor, 0))


def relay_facts(work: Work) -> Dict[str, Any]:
    """The relay's space, its NFS server, its share, and anything already called like this job's things."""
    args = work.args
    groups = lvm.groups(work)
    leftovers = ["%s/%s" % (found.vg, found.lv) for found in lvm.volumes(work) if found.lv == args["relay_lv"]]
    short = args["relay_lv"].split("_")[-1]
    leftovers += [found.target for found in mounts.mounts() if short in found.target]
    leftovers += sorted({path for path, _client in exports.all_exports(work) if short in path})
    listening = {str(each["port"]): each["state"] == "open" for each in _knocks("127.0.0.1")}
    return {
        "vg": groups.named(args["vg"]),
        "skipped": groups.skipped,
        "leftovers": leftovers,
        "share": share(args["share_source"]),
        "nfs_server": nfs_server.server(work),
        "no_version_3": nfs_server.version_3(work),
        "ports": listening,
        "time": time.time(),
    }


def share(source: str, *files: str) -> Optional[Dict[str, Any]]:
    """The mounted share, or None. `squashes_root` is known (True) only where the owner keeps root out; else None."""
    found = mounts.of_source(source, *files)
    if found is None:
        return None
    untrusted.note("open the share %s" % found.target)
    owner = os.stat(found.target)
    return dict(
        _mount(found), owner_uid=owner.st_uid, owner_gid=owner.st_gid, squashes_root=_squashes(found.target, owner)
    )


def _squashes(path: str, owner: os.stat_result) -> Optional[bool]:
    """Whether root may write where only the owner may; asked of the server (access), nothing is written."""
    if owner.st_uid == 0 or owner.st_mode & 0o002:
        return None
    return not os.access(path, os.W_OK)


def destination_facts(work: Work) -> Dict[str, Any]:
    """The share, the live disk with its chain, the domain, what the disk holds, and leftovers of earlier jobs."""
    domain, problem = _domain(work)
    files = [disk["source"] for disk in domain["disks"]] if domain else []
    found = mounts.of_source(work.args["share_source"], *files)
    path = "%s/%s" % (found.target, _relative(work.args)) if found else ""
    there = _on_share(work, found.target) if found else dict(NOTHING_THERE)
    return dict(
        there,
        share=share(work.args["share_source"], *files),
        instances=found.target if found else "",
        domain=_domain_facts(domain, path) if domain else None,
        domain_problem=problem,
        readers=openers.of_file(path, work.args["instance"]) if path else [],
        acdirmax=int(mounts.option(found, "acdirmax") or 60) if found else 60,
        time=time.time(),
    )


NOTHING_THERE: Dict[str, Any] = {
    "disk": None,
    "disk_info": None,
    "contents": None,
    "leftovers": [],
    "stage": None,
    "way_back": [],  # why the disk that this job keeps could not be used again
}


def _relative(args: Args) -> str:
    return "%(instance)s/%(disk)s" % args


def _on_share(work: Work, instances: str) -> Dict[str, Any]:
    """What lies on the share, every file of it opened as whatever its owner may have made of it."""
    args = dict(work.args, instances=instances)
    with Share(instances) as share:
        info = untrusted.parsed(share.read("%(instance)s/disk.info" % args)) or None
        there = dict(NOTHING_THERE, disk_info=_formats(info), leftovers=_leftovers(share))
        if work.job:
            there.update(stage=staged(args, work.job), way_back=bases.troubles(args, work.job))
        try:
            fd = share.file(_relative(args))
        except FileNotFoundError:
            return there
        with Image(share, _relative(args), fd, args["instance"]) as image:
            is_image = image.header.is_qcow2
            return dict(there, disk=_live_disk(image), contents=image_contents(work, image) if is_image else None)


def _live_disk(image: Image) -> Dict[str, Any]:
    header, seen = image.header, image.seen
    return dict(
        live_disk.identity(seen),
        path=image.path,
        device=seen.st_dev,
        nlink=seen.st_nlink,
        allocated=seen.st_blocks * 512,
        label=job_directory.label(image.fd),
        format="qcow2" if header.is_qcow2 else "raw",
        virtual_size=header.size if header.is_qcow2 else seen.st_size,
        **image.described(),
    )


def _formats(info: Optional[Dict[str, Any]]) -> Optional[Dict[str, str]]:
    """Paths and formats as Nova writes them; anything else in the file is left out."""
    if info is None:
        return None
    return {path: named for path, named in info.items() if isinstance(named, str) and len(path) + len(named) < 1000}


def _domain(work: Work) -> Tuple[Optional[Dict[str, Any]], str]:
    """The instance as libvirt defines it, or None; and why that could not be found out, or an empty text."""
    try:
        if not virsh.state(work, work.args["instance"]):
            return None, ""
        return virsh.domain(work, work.args["instance"]), ""
    except Stop as stop:
        return None, stop.found


def _domain_facts(found: Dict[str, Any], path: str) -> Dict[str, Any]:
    ours = [disk for disk in found["disks"] if disk["source"] == path]
    return {
        "uuid": found["uuid"],
        "name": found["name"],
        "state": found["state"],
        "driver": ours[0]["format"] if ours else None,
        "source": path if ours else None,
        "max_bytes": None,
    }


def _leftovers(share: Share) -> List[str]:
    try:
        folder = share.folder(".volmig")
    except OSError:
        return []
    try:
        return ["%s/.volmig/%s" % (share.path, untrusted.plain(name)) for name in untrusted.names(folder)]
    finally:
        os.close(folder)


def staged(args: Args, job: str) -> Optional[Dict[str, Any]]:
    """The job's own staged copy as this host sees it."""
    try:
        with job_directory.Place(args, job) as place:
            there = place.look("disk.new")
    except FileNotFoundError:
        return None
    return live_disk.identity(there) if there else None


def instance_state(work: Work) -> Dict[str, Any]:
    """State and disks of one instance; with `instances` and `disk` also that file, and when libvirt last started it."""
    args = work.args
    found = virsh.state(work, args["instance"])
    seen: Dict[str, Any] = virsh.domain(work, args["instance"]) if found else {"name": "", "disks": []}
    path = "%(instances)s/%(instance)s/%(disk)s" % args if "disk" in args and "instances" in args else ""
    return {
        "state": found or "unknown",
        "disks": seen["disks"],
        "live": _live(args["instances"], path) if path else None,
        "runs": virsh.runs(seen["name"]),
        "time": time.time(),
    }


def _live(instances: str, path: str) -> Optional[Dict[str, Any]]:
    try:
        return dict(live_disk.live(instances, path), path=path)
    except (OSError, Stop):
        return None
