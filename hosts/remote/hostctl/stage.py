"""The staged image on the share: copied by the relay, verified by the destination, beside the live disk."""

from typing import Tuple

from .act import Act, Args, command, syscall


def directory(args: Args, job: str) -> str:
    """Where stage, backup and card of a job lie: outside the instance's directory, on the same export."""
    return "%s/.volmig/%s" % (args["instances"], job)


def stage_acts(args: Args, job: str) -> Tuple[Act, ...]:
    there = directory(args, job)
    return (syscall("mkdir %s as the owner of %s" % (there, args["instances"])),
            syscall("write %s/card.json" % there),
            syscall("copy %s/disk.qcow2 to %s/disk.new (SHA-256 while copying, fsync)" % (args["mountpoint"], there)))


def unstage_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (syscall("unlink disk.new and card.json in %s, rmdir it" % directory(args, job)),)


def verify_acts(args: Args, job: str) -> Tuple[Act, ...]:
    new = "%s/disk.new" % directory(args, job)
    return (syscall("read %s past the cache (O_DIRECT) and compare its SHA-256" % new),
            command("qemu-img", "info", "-f", "qcow2", "--output=json", "--", new))
