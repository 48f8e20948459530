"""qemu-img: convert, check, compare and inspect, always with explicit formats and never with --salvage or -n."""

from typing import Any, Dict, List, Tuple

from .act import Act, Args, command, syscall
from . import lvm


def part(args: Args) -> str:
    return "%s/disk.part" % args["mountpoint"]


def whole(args: Args) -> str:
    return "%s/disk.qcow2" % args["mountpoint"]


def convert_acts(args: Args, job: str) -> Tuple[Act, ...]:
    rate = ("-r", args["rate"]) if args["rate"] else ()
    # -t none -T none: the default cache mode of convert may lose what it reported as written.
    return (command("qemu-img", "convert", "-p", *rate, "-t", "none", "-T", "none", "-f", "raw", "-O", "qcow2",
                    "-o", "compat=1.1", "--", lvm.device(args), part(args)),)


def compare_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("qemu-img", "check", "-f", "qcow2", "--output=json", "--", part(args)),
            command("qemu-img", "compare", "-p", "-f", "raw", "-F", "qcow2", "-T", "none", "--",
                    lvm.device(args), part(args)),
            syscall("rename %s to %s" % (part(args), whole(args))))


def discard_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (syscall("unlink disk.part and disk.qcow2 in %s" % args["mountpoint"]),)
