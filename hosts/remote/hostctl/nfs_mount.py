"""The relay's export, mounted on the source, and proved by what is written and read there."""

import contextlib
import hashlib
import ipaddress
import os
import socket
from typing import Any, Dict, Tuple

from . import mountpoints, mounts, untrusted
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Work
from .direct_io import read_direct, write_all

MOUNT_OPTIONS = "vers=3,proto=tcp,hard,timeo=600,retrans=2,nosuid,nodev,noexec"
PROBE_BYTES = 8 << 20


def mount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that mount the relay's export on the source and prove it with 8 MiB."""
    mountpoint = args["mountpoint"]
    return (
        syscall("mkdir %s (mode 000)" % mountpoint),
        command(
            "mount", "-t", "nfs", "-o", MOUNT_OPTIONS, "--", "%s:%s" % (args["address"], args["export"]), mountpoint
        ),
        syscall("write 8 MiB to %s/.probe, read them back, compare, remove" % mountpoint),
    )


def unmount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """The commands that unmount the relay's export."""
    return (command("umount", "--", args["mountpoint"]), syscall("rmdir %s" % args["mountpoint"]))


def mount(work: Work) -> Dict[str, Any]:
    """Mount the relay's export on the source and prove it: right filesystem, really mounted, 8 MiB there and back."""
    args, mountpoint = work.args, work.args["mountpoint"]
    mkdir, attach, probe = mount_acts(args, work.job)
    already = _is_mounted(work)
    if not already:
        work.must(mkdir, lambda: mountpoints.make_mountpoint(mountpoint))
        output = work.do(attach, timeout=60)
        if not _is_mounted(work):
            raise Failed(
                "not-mounted",
                attach.tried,
                "%s; %s" % (output.said(), _way(args["address"])),
                "Compare that address with the one that the relay exports to (exportfs -s there), and check the "
                "firewall (111, 2049, 20048). If this host's addresses or routes changed, undo and plan again.",
            )
    mountpoints.check_target(args, work.job)
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
        "Something else is mounted there. Inspect it manually.",
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
            "the data read back differs",
            "The network or the relay's disk corrupts data. Do not use this relay.",
        )


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
                "This is not the job's mount. Inspect it manually.",
            )
        mountpoints.unmount_patiently(work, detach)
    already = not found and not os.path.lexists(mountpoint)
    if not already:
        work.must(rmdir, lambda: os.rmdir(mountpoint))
    return {"already": already}
