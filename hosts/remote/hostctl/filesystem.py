"""The relay's temporary filesystem: make, mount, prove, unmount."""

from typing import Tuple

from .act import Act, Args, command, syscall
from . import lvm

SENTINEL = ".volmig"


def create_acts(args: Args, job: str) -> Tuple[Act, ...]:
    mountpoint = args["mountpoint"]
    return (command("mkfs.ext4", "-q", "-m", "0", "-T", "largefile4", "-U", args["fs_uuid"],
                    "-L", "vm_%s" % job.replace("-", "")[:8], "--", lvm.device(args)),
            syscall("mkdir %s (mode 000)" % mountpoint),
            command("mount", "-t", "ext4", "-o", "nosuid,nodev,noexec", "--", lvm.device(args), mountpoint),
            syscall("write the sentinel %s/%s" % (mountpoint, SENTINEL)))


def remove_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("umount", "--", args["mountpoint"]), syscall("rmdir %s" % args["mountpoint"]))
