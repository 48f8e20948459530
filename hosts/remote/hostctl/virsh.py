"""libvirt through virsh: state, lock mark, stop and start of one domain; never destroy."""

from typing import Tuple
from xml.sax.saxutils import quoteattr

from .act import Act, Args, command

URI = "qemu:///system"
MARK = "https://volmig.invalid/lock"


def _virsh(*words: object) -> Act:
    return command("virsh", "-c", URI, *words)


def lock_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (_virsh("metadata", "--domain", args["instance"], "--config", "--uri", MARK, "--key", "volmig",
                   "--set", "<lock reason=%s/>" % quoteattr(args["reason"])),)


def unlock_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (_virsh("metadata", "--domain", args["instance"], "--config", "--uri", MARK, "--remove"),)


def stop_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (_virsh("shutdown", "--domain", args["instance"]),)


def start_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (_virsh("start", "--domain", args["instance"]),)
