"""The swap: link the live disk aside, rename the stage over it, and the same discipline back."""

from typing import Tuple

from .act import Act, Args, syscall
from .stage import directory


def live_path(args: Args) -> str:
    return "%s/%s/%s" % (args["instances"], args["instance"], args["disk"])


def _exchange_acts(args: Args, job: str, incoming: str, aside: str) -> Tuple[Act, ...]:
    live, there = live_path(args), directory(args, job)
    return (syscall("link %s to %s/%s" % (live, there, aside)),
            syscall("fsync %s" % there),
            syscall("rename %s/%s to %s" % (there, incoming, live)),
            syscall("fsync %s and %s" % (live.rsplit("/", 1)[0], there)))


def swap_acts(args: Args, job: str) -> Tuple[Act, ...]:
    new = "%s/disk.new" % directory(args, job)
    first = syscall("give %s the owner, mode and label of the live disk, fsync" % new)
    return (first,) + _exchange_acts(args, job, "disk.new", "disk.old")


def swap_back_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return _exchange_acts(args, job, "disk.old", "disk.rejected")


def purge_acts(args: Args, job: str) -> Tuple[Act, ...]:
    there = directory(args, job)
    return (syscall("unlink the disk with inode %s in %s" % (args["backup_inode"], there)),
            syscall("unlink %s/card.json, rmdir %s" % (there, there)))
