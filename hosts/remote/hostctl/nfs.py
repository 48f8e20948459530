"""NFS on the relay (services, export) and on the source (mount), each proved by what is there afterwards."""

from typing import Any, Iterable, List, Tuple

from .act import Act, Args, command, syscall

# In the order in which they are started; stopped in reverse.
UNITS = ("rpcbind.socket", "rpcbind", "rpc-statd", "nfs-mountd", "nfs-server")
MOUNT_OPTIONS = "vers=3,proto=tcp,hard,timeo=600,retrans=2,nosuid,nodev,noexec"
PROBE_BYTES = 8 << 20


def export_options(args: Args) -> str:
    return "rw,sync,no_subtree_check,mp,fsid=%s,all_squash,anonuid=%s,anongid=%s" % (
        args["fs_uuid"], args["uid"], args["gid"])


def export_acts(args: Args, job: str) -> Tuple[Act, ...]:
    mountpoint = args["mountpoint"]
    starts = tuple(command("systemctl", "start", "--", unit) for unit in ordered(args["start"]))
    return starts + (
        syscall("chown %s:%s %s (mode 0700)" % (args["uid"], args["gid"], mountpoint)),
        command("exportfs", "-o", export_options(args), "%s:%s" % (args["client"], mountpoint)))


def unexport_acts(args: Args, job: str) -> Tuple[Act, ...]:
    where = "%s:%s" % (args["client"], args["mountpoint"])
    started = args.get("made", {}).get("started", ())
    stops = tuple(command("systemctl", "stop", "--", unit) for unit in reversed(ordered(started)))
    return (command("exportfs", "-u", where), command("exportfs", "-f")) + stops


def mount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    mountpoint = args["mountpoint"]
    return (syscall("mkdir %s (mode 000)" % mountpoint),
            command("mount", "-t", "nfs", "-o", MOUNT_OPTIONS, "--",
                    "%s:%s" % (args["address"], args["export"]), mountpoint),
            syscall("write 8 MiB to %s/.probe, read them back, compare, remove" % mountpoint))


def unmount_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("umount", "--", args["mountpoint"]), syscall("rmdir %s" % args["mountpoint"]))


def ordered(units: Iterable[str]) -> List[str]:
    """Units in starting order; a placeholder («…») stands for itself."""
    if isinstance(units, str):
        return [units]
    known = [unit for unit in UNITS if unit in units]
    return known + [unit for unit in units if unit not in UNITS]
