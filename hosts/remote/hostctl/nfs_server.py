"""NFS on the relay (services, export) and on the source (mount), each proved by what is there afterwards."""

import contextlib
import hashlib
import ipaddress
import mmap
import os
import re
import socket
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Tuple

from . import mounts, relay_filesystem, untrusted
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import NOT_INSTALLED, Work, find
from .store import sync_directory

# In the order in which they are started; stopped in reverse.
UNITS = ("rpcbind.socket", "rpcbind", "rpc-statd", "nfs-mountd", "nfs-server")
OWN_FILE = re.compile(r"volmig-[0-9a-f]{32}\.exports\Z")
MOUNT_OPTIONS = "vers=3,proto=tcp,hard,timeo=600,retrans=2,nosuid,nodev,noexec"
PROBE_BYTES = 8 << 20
VERSIONS = "/proc/fs/nfsd/versions"
THREADS = "/proc/fs/nfsd/threads"
EXPORTS = "/etc/exports.d"  # exportfs(8): every file there whose name ends in .exports is read, but hidden ones


def export_options(args: Args) -> str:
    return "rw,sync,no_subtree_check,mp,fsid=%s,all_squash,anonuid=%s,anongid=%s" % (
        args["fs_uuid"],
        args["uid"],
        args["gid"],
    )


def exports_file(mountpoint: str) -> str:
    return "%s/volmig-%s.exports" % (EXPORTS, os.path.basename(mountpoint))


def export_acts(args: Args, job: str) -> Tuple[Act, ...]:
    mountpoint = args["mountpoint"]
    starts = tuple(command("systemctl", "start", "--", unit) for unit in ordered(args["start"]))
    return (
        *starts,
        syscall("chown %s:%s %s (mode 0700)" % (args["uid"], args["gid"], mountpoint)),
        syscall("write this export to %s, so that it lasts when others export anew" % exports_file(mountpoint)),
        command("exportfs", "-o", export_options(args), "%s:%s" % (args["client"], mountpoint)),
    )


def unexport_acts(args: Args, job: str) -> Tuple[Act, ...]:
    where = "%s:%s" % (args["client"], args["mountpoint"])
    started = args.get("made", {}).get("started", ())
    stops = tuple(command("systemctl", "stop", "--", unit) for unit in reversed(ordered(started)))
    unlink = syscall("unlink %s" % exports_file(args["mountpoint"]))
    return (unlink, command("exportfs", "-u", where), command("exportfs", "-f"), *stops)


def mount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    mountpoint = args["mountpoint"]
    return (
        syscall("mkdir %s (mode 000)" % mountpoint),
        command(
            "mount", "-t", "nfs", "-o", MOUNT_OPTIONS, "--", "%s:%s" % (args["address"], args["export"]), mountpoint
        ),
        syscall("write 8 MiB to %s/.probe, read them back, compare, remove" % mountpoint),
    )


def unmount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("umount", "--", args["mountpoint"]), syscall("rmdir %s" % args["mountpoint"]))


def ordered(units: Iterable[str]) -> List[str]:
    """Units in starting order; a placeholder («…») stands for itself."""
    if isinstance(units, str):
        return [units]
    known = [unit for unit in UNITS if unit in units]
    return known + [unit for unit in units if unit not in UNITS]


class Export(NamedTuple):
    """One row of the kernel's export list."""

    path: str
    client: str
    options: Tuple[str, ...]


def exports(work: Work) -> List[Export]:
    """All that is exported; refuses when exportfs does not say, for then nothing is known to be withdrawn."""
    output = work.ask("exportfs", "-s", good=(0, NOT_INSTALLED))
    if any(line[:1] not in ("/", '"', " ", "\t", "") for line in output.out.splitlines()):
        raise Refused(
            "probe-failed",
            "run exportfs -s",
            "it answered %.200r" % output.out,
            "Run that command on the host by hand; resume when it answers.",
        )
    rows = re.findall(r"^(/\S*)\s+([^\s()]+)\(([^)]*)\)\s*$", output.out, re.MULTILINE)
    return [Export(path, client, tuple(options.split(","))) for path, client, options in rows]


def unit_state(work: Work, unit: str) -> str:
    """active, inactive, masked or missing; refuses when systemd does not say: what was started is stopped later."""
    shown = work.ask("systemctl", "show", "-p", "LoadState", "-p", "ActiveState", "--", unit).out
    facts = relay_filesystem.export_format(shown)
    if not ("LoadState" in facts and "ActiveState" in facts):
        raise Refused(
            "probe-failed",
            "ask systemd for %s" % unit,
            "it answered %.200r" % shown,
            "Run systemctl show on the host by hand; resume when it answers.",
        )
    if facts.get("LoadState") != "loaded":
        return "masked" if facts.get("LoadState") == "masked" else "missing"
    return "active" if facts.get("ActiveState") in ("active", "activating") else "inactive"


def server(work: Work) -> Dict[str, str]:
    """State of each unit that serving NFSv3 needs."""
    return {unit: unit_state(work, unit) for unit in UNITS}


def export(work: Work) -> Dict[str, Any]:
    """Serve the job's filesystem to exactly one client; start what is missing and remember how it was found."""
    args = work.args
    relay_filesystem.check_target(args, work.job)
    own, record, offer = export_acts(args, work.job)[-3:]
    before = work.memory.recall("nfs").get("before") or server(work)
    work.memory.remember("nfs", before=before)
    # A host that lost its power still lists its exports, although nobody serves them.
    if _exported(work) and not _down(work):
        return dict(_exported_evidence(args, before), already=True)
    for start in export_acts(args, work.job)[:-3]:
        work.must(start, timeout=60)
    _check_serving(work)
    work.must(own, lambda: _own(args))
    work.do(record, lambda: _record(args))  # where /etc cannot be written, the export lasts until an exportfs -r
    output = work.do(offer)
    if not _exported(work):
        raise Failed("not-exported", offer.tried, output.said(), "Read exportfs's message in the log, then resume.")
    return _exported_evidence(args, before)


def _own(args: Args) -> None:
    os.chown(args["mountpoint"], args["uid"], args["gid"])
    os.chmod(args["mountpoint"], 0o700)


def _record(args: Args) -> None:
    """A file of this export's own: exportfs -r and a restart of the server read it, and find it in force."""
    path = exports_file(args["mountpoint"])
    part = "%s/.%s.part" % (EXPORTS, os.path.basename(path))
    os.makedirs(EXPORTS, 0o755, exist_ok=True)
    with open(part, "w") as file:
        file.write("%s %s(%s)\n" % (args["mountpoint"], args["client"], export_options(args)))
        file.flush()
        os.fsync(file.fileno())
    os.rename(part, path)
    sync_directory(EXPORTS)


def recorded() -> List[Tuple[str, str]]:
    """Path and client of every export that has a file of volmig's."""
    try:
        names = [name for name in sorted(os.listdir(EXPORTS)) if OWN_FILE.match(name)]
    except OSError:
        return []
    words = [_text(os.path.join(EXPORTS, name)).split() for name in names]
    return [(row[0], row[1].partition("(")[0]) for row in words if len(row) == 2]


def all_exports(work: Work) -> List[Tuple[str, str]]:
    """Path and client of what is exported, and of what is in a file only: the next exportfs -r brings that back."""
    return sorted({(row.path, row.client) for row in exports(work)} | set(recorded()))


def _exported_evidence(args: Args, before: Dict[str, str]) -> Dict[str, Any]:
    started = [unit for unit in ordered(args["start"]) if before.get(unit) == "inactive"]
    return {"client": args["client"], "options": export_options(args), "started": started}


def _exported(work: Work) -> bool:
    """True when exported as planned; refuses an export of our path to anybody else or otherwise."""
    args, rows = work.args, [row for row in exports(work) if row.path == work.args["mountpoint"]]
    wanted = set(export_options(args).replace("mp,", "mountpoint,").split(","))
    if not rows:
        return False
    missing = wanted - set(rows[0].options)
    if len(rows) == 1 and rows[0].client == args["client"] and not missing:
        return True
    raise Refused(
        "foreign-export",
        "export %s to %s" % (args["mountpoint"], args["client"]),
        "it is exported as %s" % "; ".join("%s(%s)" % (row.client, ",".join(row.options)) for row in rows),
        "Somebody else exported it, or otherwise (missing: %s). Look at it by hand."
        % (", ".join(sorted(missing)) or "nothing"),
    )


def _down(work: Work) -> List[str]:
    """Units without which nothing is served and that do not run."""
    needed = ("rpcbind", "nfs-mountd", "nfs-server")
    return [unit for unit, state in server(work).items() if state != "active" and unit in needed]


def version_3(work: Work) -> str:
    """Why this host's NFS server does not serve version 3, or empty: nfs.conf(5) vers3, /proc/fs/nfsd/versions.

    Of a server that was stopped the kernel still says what it served; how it starts, its configuration says.
    """
    running = "" if _text(THREADS).strip() == "0" else _text(VERSIONS)
    if "-3" in running.split():
        return "%s says %s" % (VERSIONS, running.strip())
    if "+3" in running.split() or not find("nfsconf"):
        return ""
    said = work.ask("nfsconf", "--get", "nfsd", "vers3", good=None).out.strip()
    return "vers3=%s in nfs.conf" % said if said.lower() in ("n", "no", "0", "false", "off", "f") else ""


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(4096)
    except OSError:
        return ""


def _check_serving(work: Work) -> None:
    down = _down(work)
    if down:
        raise Failed(
            "nfs-not-running",
            "start the NFS server",
            "not active: %s" % ", ".join(down),
            "See journalctl -u nfs-server.",
        )


def unexport(work: Work) -> Dict[str, Any]:
    """Withdraw the export; stop what we started once nothing at all is exported any more.

    Only what this host itself remembers as inactive before is stopped: a request alone may not stop a site's services.
    """
    args, before, asked = work.args, work.memory.recall("nfs").get("before", {}), work.made.get("started")
    ours = [unit for unit in UNITS if before.get(unit) == "inactive"]
    work.learn(started=[unit for unit in ours if not isinstance(asked, list) or unit in asked])
    forget, withdraw, flush = unexport_acts(work.args, work.job)[:3]
    rows = [row for row in exports(work) if row.path == args["mountpoint"]]
    if any(row.client != args["client"] for row in rows):
        raise Refused(
            "foreign-export",
            "unexport %s" % args["mountpoint"],
            "it is exported to %s" % ", ".join(row.client for row in rows),
            "Somebody else exported it too. Look at it by hand.",
        )
    path = exports_file(args["mountpoint"])
    had_file = os.path.lexists(path)
    if had_file:  # first: from here on nothing brings the export back
        work.must(forget, lambda: os.unlink(path))
    if rows:
        output = work.do(withdraw)
        work.do(flush)
        if any(row.path == args["mountpoint"] for row in exports(work)):
            raise Failed(
                "still-exported", withdraw.tried, output.said(), "Read exportfs's message in the log, then resume."
            )
    return dict(_stop_services(work), already=not rows and not had_file)


def _stop_services(work: Work) -> Dict[str, Any]:
    left = exports(work)
    stops = unexport_acts(work.args, work.job)[3:]
    if left or not stops:
        return {"stopped": [], "kept": ["%s to %s" % (row.path, row.client) for row in left]}
    for stop in stops:
        work.must(stop, timeout=60)
    units = [stop.argv[-1] for stop in stops]
    active = [unit for unit in units if unit_state(work, unit) == "active"]
    if active:
        raise Failed(
            "services-left",
            "stop the NFS server",
            "still active: %s" % ", ".join(active),
            "Stop them by hand, then resume.",
        )
    return {"stopped": units, "kept": []}


def mount(work: Work) -> Dict[str, Any]:
    """Mount the relay's export on the source and prove it: right filesystem, really mounted, 8 MiB there and back."""
    args, mountpoint = work.args, work.args["mountpoint"]
    mkdir, attach, probe = mount_acts(args, work.job)
    already = _is_mounted(work)
    if not already:
        work.must(mkdir, lambda: relay_filesystem.make_mountpoint(mountpoint))
        output = work.do(attach, timeout=60)
        if not _is_mounted(work):
            raise Failed(
                "not-mounted",
                attach.tried,
                "%s; %s" % (output.said(), _way(args["address"])),
                "Compare that address with the one that the relay exports to (exportfs -s there), and check the "
                "firewall (111, 2049, 20048). Where this host's addresses or routes changed, undo and plan again.",
            )
    relay_filesystem.check_target(args, work.job)
    work.must(probe, lambda: _prove(mountpoint))
    return {"options": mounts.at(mountpoint)[0].options, "already": already}


def source_address(towards: str) -> str:
    """The local address that packets to another host carry, as its export has to name it; empty where no way leads."""
    family = socket.AF_INET6 if ipaddress.ip_address(towards).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as chosen:
        try:
            chosen.connect((towards, 2049))
        except OSError:
            return ""
        return str(chosen.getsockname()[0])


def _way(towards: str) -> str:
    address = source_address(towards)
    if not address:
        return "this host has no route to %s" % towards
    return "this host's packets to %s carry the address %s" % (towards, address)


def _is_mounted(work: Work) -> bool:
    args, found = work.args, mounts.at(work.args["mountpoint"])
    if not found:
        return False
    row = found[0]
    planned = len(found) == 1 and row.source == "%s:%s" % (args["address"], args["export"]) and row.fstype == "nfs"
    if planned and mounts.option(row, "vers") == "3" and mounts.option(row, "hard"):
        return True
    raise Refused(
        "foreign-mount",
        "mount on %s" % args["mountpoint"],
        "%s (%s, %s) is mounted there" % (row.source, row.fstype, row.options),
        "Something else is mounted there. Look at it by hand.",
    )


def _prove(mountpoint: str) -> None:
    """Small requests may pass where bulk stalls (MTU) or is mangled; the read bypasses the cache."""
    path, block = os.path.join(mountpoint, ".probe"), os.urandom(1 << 20)
    wanted = hashlib.sha256(block * 8).hexdigest()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fd = untrusted.create(path, None, 0o600)
    try:
        for _ in range(PROBE_BYTES >> 20):
            write_all(fd, block)
        os.fsync(fd)
    finally:
        os.close(fd)
    digest = hashlib.sha256()
    fd = untrusted.open_direct(path)
    try:
        for chunk in read_direct(fd):
            digest.update(chunk)
    finally:
        os.close(fd)
    os.unlink(path)
    if digest.hexdigest() != wanted:
        raise Failed(
            "mangled",
            "write 8 MiB to %s and read them back" % mountpoint,
            "other bytes came back",
            "The network or the relay's disk corrupts data. Do not use this relay.",
        )


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_direct(fd: int, chunk: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file that was opened with untrusted.open_direct."""
    buffer = mmap.mmap(-1, chunk)  # O_DIRECT wants memory aligned to pages
    try:
        while True:
            count = os.readv(fd, [buffer])
            if not count:
                return
            yield buffer[:count]
    finally:
        buffer.close()


def unmount(work: Work) -> Dict[str, Any]:
    """Unmount the relay's export from the source; decided by the mount table, never touching the path itself."""
    mountpoint = work.args["mountpoint"]
    detach, rmdir = unmount_acts(work.args, work.job)
    found = mounts.at(mountpoint)
    if found:
        export_path = "/srv/volmig/" + work.job.replace("-", "")
        if len(found) != 1 or not found[0].source.endswith(":" + export_path) or not found[0].fstype.startswith("nfs"):
            raise Refused(
                "foreign-mount",
                "unmount %s" % mountpoint,
                "%s (%s) is mounted there" % (found[0].source, found[0].fstype),
                "This is not the job's mount. Look at it by hand.",
            )
        relay_filesystem.unmount_patiently(work, detach)
    already = not found and not os.path.lexists(mountpoint)
    if not already:
        work.must(rmdir, lambda: os.rmdir(mountpoint))
    return {"already": already}
