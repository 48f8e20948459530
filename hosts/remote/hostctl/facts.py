"""Read-only verbs: what a host is and has, and the facts that checks, plans and approvals stand on."""

import errno
import ipaddress
import json
import os
import platform
import re
import socket
import stat
import time
from typing import Any, Dict, List, Optional, Tuple

from . import detached, lvm, mounts, nfs, qemu_img, stage, version, virsh
from .act import Args, Refused, Stop
from .filesystem import export_format
from .owner import as_owner
from .tools import Work, find

RELAY_PORTS = (111, 2049, 20048)
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
        "boot_id": detached.boot_id(),
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
        warnings=["LVM left something out: %s" % groups.skipped] * bool(groups.skipped) + sorted(set(problems)),
        volume_groups=groups.found,
        logical_volumes=[_volume(found) for found in lvm.volumes(work)] if has_lvm else [],
        mounts=[_mount(found) for found in mounts.mounts() if found.fstype in ("nfs", "nfs4")],
        addresses=_addresses(work),
        nfs_server=nfs.server(work),
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
    """Which TCP ports answer from here: open, refused, filtered or unreachable."""
    return {"results": [dict(target, **_knock(target["address"], target["port"])) for target in work.args["targets"]]}


def _knock(address: str, port: int, patience: float = 2.0) -> Dict[str, Any]:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    begun = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.settimeout(patience)
        try:
            tried.connect((address, port))
            state = "open"
        except socket.timeout:
            state = "filtered"
        except OSError as error:
            state = "refused" if error.errno == errno.ECONNREFUSED else "unreachable"
    return {"state": state, "ms": round(1000 * (time.monotonic() - begun), 1)}


def _knocks(address: str) -> List[Dict[str, Any]]:
    return [dict({"address": address, "port": port}, **_knock(address, port)) for port in RELAY_PORTS]


def _source_address(towards: str) -> str:
    """The local address that packets to the relay carry: the one address that is exported to."""
    family = socket.AF_INET6 if ipaddress.ip_address(towards).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as chosen:
        try:
            chosen.connect((towards, 2049))
        except OSError:
            return ""
        return str(chosen.getsockname()[0])


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
    said = export_format(work.ask("blkid", "-p", *where, "-o", "udev", "--", path, good=None).out)
    return {name: _decoded(said[key]) for name, key in UDEV.items() if key in said}


def _decoded(text: str) -> str:
    """A value as the guest has it: blkid writes a byte that is no safe UTF-8 as \\xNN."""
    raw = re.sub(rb"\\x([0-9a-fA-F]{2})", lambda found: bytes([int(found.group(1), 16)]), text.encode())
    return raw.decode("utf-8", "replace")


def _partitions(work: Work, path: str) -> List[Dict[str, Any]]:
    if not find("sfdisk"):
        return []
    output = work.ask("sfdisk", "-J", "--", path, good=None)
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
    holds = ", ".join(named) or "no filesystem that is known here"
    if table:
        return "%s table with %d partition%s: %s" % (
            table.upper(),
            len(partitions),
            "" if len(partitions) == 1 else "s",
            holds,
        )
    return "%s on the whole disk" % holds if named else "no partition table and %s" % holds


def image_contents(work: Work, path: str, virtual_size: int) -> Dict[str, Any]:
    """The same for a qcow2 image in use: its first 4 MiB are copied out raw and looked at."""
    import tempfile  # slow to load, and other calls do without

    os.makedirs("/run/volmig", 0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/run/volmig") as scratch:
        head = os.path.join(scratch, "head")
        count = max(1, min(HEAD, virtual_size) // 65536)
        words = (
            "qemu-img",
            "dd",
            "-U",
            "-f",
            "qcow2",
            "-O",
            "raw",
            "bs=65536",
            "count=%d" % count,
            "if=" + path,
            "of=" + head,
        )
        if work.ask(*words, good=None, timeout=60).exit:
            return {"table": "", "partitions": [], "filesystems": [], "unread": [], "summary": "not readable"}
        os.truncate(head, virtual_size)
        return contents(work, head, HEAD)


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
        "source_address": _source_address(relay),
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
    leftovers += [row.path for row in nfs.exports(work) if short in row.path]
    listening = {str(port): _knock("127.0.0.1", port)["state"] == "open" for port in RELAY_PORTS}
    return {
        "vg": groups.named(args["vg"]),
        "skipped": groups.skipped,
        "leftovers": leftovers,
        "share": share(args["share_source"]),
        "nfs_server": nfs.server(work),
        "no_version_3": nfs.version_3(work),
        "ports": listening,
        "time": time.time(),
    }


def share(source: str, *files: str) -> Optional[Dict[str, Any]]:
    """The mounted share, or None. `squashes_root` is known (True) only where the owner keeps root out; else None."""
    found = mounts.of_source(source, *files)
    if found is None:
        return None
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
    args = work.args
    domain, problem = _domain(work)
    files = [disk["source"] for disk in domain["disks"]] if domain else []
    found = mounts.of_source(args["share_source"], *files)
    target = dict(args, instances=found.target) if found else args
    path = "%(instances)s/%(instance)s/%(disk)s" % target if found else ""
    disk = _live_disk(work, target, path) if found else None
    return {
        "share": share(args["share_source"], *files),
        "instances": found.target if found else "",
        "disk": disk,
        "disk_info": _disk_info(target) if found else None,
        "domain": _domain_facts(domain, path) if domain else None,
        "domain_problem": problem,
        "contents": image_contents(work, path, disk["virtual_size"]) if disk and disk["format"] == "qcow2" else None,
        "leftovers": _leftovers(target) if found else [],
        "stage": staged(target, work.job) if found and work.job else None,
        "acdirmax": int(mounts.option(found, "acdirmax") or 60) if found else 60,
        "time": time.time(),
    }


def _live_disk(work: Work, args: Args, path: str) -> Optional[Dict[str, Any]]:
    try:
        with as_owner(args["instances"]):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        header, seen = qemu_img.Header(os.pread(fd, 65536, 0)), os.fstat(fd)
        label = stage.label(fd)
    finally:
        os.close(fd)
    plain = {
        "path": path,
        "device": seen.st_dev,
        "nlink": seen.st_nlink,
        "allocated": seen.st_blocks * 512,
        "label": label,
    }
    size = header.size if header.is_qcow2 else seen.st_size
    backing = _chain(work, args, path) if header.is_qcow2 and header.backing else []
    return dict(
        virsh.identity(seen), **plain, format="qcow2" if header.is_qcow2 else "raw", virtual_size=size, backing=backing
    )


def _chain(work: Work, args: Args, path: str) -> List[str]:
    output = work.ask(
        "qemu-img",
        "info",
        "-U",
        "-f",
        "qcow2",
        "--backing-chain",
        "--output=json",
        "--",
        path,
        become=qemu_img.limited(),
    )
    chain = [str(image.get("filename")) for image in json.loads(output.out)[1:]]
    outside = [name for name in chain if not os.path.realpath(name).startswith(args["instances"] + "/")]
    if outside:
        raise Refused(
            "foreign-backing",
            "follow the chain of %s" % path,
            "it leads to %s" % ", ".join(outside),
            "Look at the image by hand.",
        )
    return chain


def _disk_info(args: Args) -> Optional[Dict[str, Any]]:
    try:
        with open("%(instances)s/%(instance)s/disk.info" % args, encoding="utf-8") as file:
            value = json.loads(file.read(65536))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


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


def _leftovers(args: Args) -> List[str]:
    directory = os.path.join(args["instances"], ".volmig")
    try:
        with as_owner(args["instances"]):
            return sorted(os.path.join(directory, name) for name in os.listdir(directory))
    except OSError:
        return []


def staged(args: Args, job: str) -> Optional[Dict[str, Any]]:
    """The job's own staged copy as this host sees it."""
    try:
        with stage.Place(args, job) as place:
            there = place.look("disk.new")
    except FileNotFoundError:
        return None
    return virsh.identity(there) if there else None


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
        return dict(virsh.live(instances, path), path=path)
    except OSError:
        return None
