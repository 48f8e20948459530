"""Logical volumes: make, fence, release, erase and remove, each bound to tag and UUID."""

from typing import Any, Dict, Tuple

from .act import Act, Args, command, syscall


def name(args: Args) -> str:
    """VG/LV, the name LVM tools are given; mapper names are never built (they double every dash)."""
    return "%s/%s" % (args["vg"], args["lv"])


def device(args: Args) -> str:
    """The path that everything but LVM is given."""
    return "/dev/%s/%s" % (args["vg"], args["lv"])


def holder(job: str) -> str:
    """The unit that keeps the source open, so that Nova's clean-up cannot remove it under the copy."""
    return "volmig-%s-holder" % job.replace("-", "")


def create_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("lvcreate", "--yes", "-Wy", "-Zy", "-n", args["lv"], "-L", "%sb" % args["size"],
                    "--addtag", "volmig", "--addtag", "volmig.job=%s" % job, "--", args["vg"]),)


def remove_acts(args: Args, job: str) -> Tuple[Act, ...]:
    made = args.get("made", {})
    which = 'lv_uuid="%s" && lv_tags={"volmig.job=%s"}' % (made.get("lv_uuid", "«lv_uuid»"), job)
    return (syscall("zero %s, %s bytes (BLKZEROOUT)" % (device(args), args["size"])),
            command("lvchange", "-an", "--", name(args)),
            command("lvremove", "--yes", "-S", which, "--", args["vg"]))


def fence_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("lvchange", "--addtag", "volmig", "--addtag", "volmig.src=%s" % job, "--", name(args)),
            command("lvchange", "-pr", "--", name(args)),
            command("systemd-run", "--quiet", "--unit=%s" % holder(job), "--description=volmig holds %s open" % name(args),
                    "-p", "StandardInput=file:%s" % device(args), "--", "/usr/bin/sleep", "infinity"))


def unfence_acts(args: Args, job: str) -> Tuple[Act, ...]:
    made = args.get("made", {})
    stop = command("systemctl", "stop", "--", holder(job))
    writeable = command("lvchange", "-prw", "--", name(args))
    untag = command("lvchange", "--deltag", "volmig", "--deltag", "volmig.src=%s" % job, "--", name(args))
    return (stop, untag) if made.get("was") == "read-only" else (stop, writeable, untag)
