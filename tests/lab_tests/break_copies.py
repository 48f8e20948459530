"""Runs on a hypervisor: the real conversion into filesystems that fill up, and from volumes that cannot be read.

Arguments: the installed hostctl, how many trials of each, a seed. Prints one JSON object. What guards the source and
the mount is not asked here: source and target are scratch volumes of vg_nova0.
"""

import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

PROGRAM, TRIALS, SEED = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, PROGRAM)
from hostctl import lvm, mountpoints  # noqa: E402 - it lies in the archive
from hostctl.act import Stop  # noqa: E402
from hostctl.commands import Work  # noqa: E402
from hostctl.verbs import VERBS  # noqa: E402

JOB, MIB = "5a1ce0de-0000-4111-8222-933334444555", 1 << 20
SOURCE, TARGET, BAD, WHERE = (
    "/dev/vg_nova0/lab_source",
    "/dev/vg_nova0/lab_target",
    "/dev/mapper/lab_bad",
    "/run/lab-target",
)
SIZE = 16 * MIB


def run(*words, **how):
    subprocess.run(words, check=True, **how)


def refusal(verb, source):
    """What a verb says that stops; empty when it is content."""
    lvm.device = lambda args: source
    args = {"vg": "vg_nova0", "lv": "lab_source", "lv_uuid": "u", "size": SIZE, "rate": 0, "mountpoint": WHERE}
    try:
        VERBS[verb].run(Work(args, JOB, VERBS[verb].acts))
    except Stop as stop:
        return stop.found
    return ""


def clear():
    for name in os.listdir(WHERE):
        if name != "lost+found":
            os.unlink(os.path.join(WHERE, name))


def accepted(told, kind, source, words):
    """Convert, and compare what that left; whether either was content, and whether the reason was the right one."""
    said = refusal("convert", source)
    told[kind + " told"] += words in said
    told[kind + " accepted"] += not said or not refusal("compare", SOURCE)
    clear()


def main():
    luck = random.Random(SEED)
    told = {f"{kind} {what}": 0 for kind in ("full", "unreadable") for what in ("told", "accepted")}
    fenced = SimpleNamespace(check=lambda: None, check_counters=lambda: {"writes": 1, "sectors_written": 8})
    lvm.Source, mountpoints.check_target = lambda args, job: fenced, lambda args, job: None
    run("lvcreate", "-qyWn", "-L16M", "-n", "lab_source", "vg_nova0", stdout=subprocess.DEVNULL)
    run("lvcreate", "-qyWn", "-L40M", "-n", "lab_target", "vg_nova0", stdout=subprocess.DEVNULL)
    run("dd", "if=/dev/urandom", f"of={SOURCE}", "bs=1M", "count=16", "status=none")
    run("mkfs.ext4", "-q", "-m0", TARGET)
    os.makedirs(WHERE, exist_ok=True)
    run("mount", TARGET, WHERE)
    for _ in range(TRIALS):
        space = os.statvfs(WHERE)
        leave = luck.randrange(MIB, 14 * MIB)
        run("fallocate", "-l", str(space.f_bavail * space.f_frsize - leave), WHERE + "/fill")
        accepted(told, "full", SOURCE, "No space left")
    for _ in range(TRIALS):
        at, end = 8 * luck.randrange(SIZE // 4096 - 1), SIZE // 512
        table = f"0 {at} linear {SOURCE} 0\n" if at else ""
        table += f"{at} 8 error\n{at + 8} {end - at - 8} linear {SOURCE} {at + 8}\n"
        run("dmsetup", "create", "lab_bad", input=table.encode())
        accepted(told, "unreadable", BAD, "Input/output error")
        run("dmsetup", "remove", "--retry", "lab_bad")
    assert refusal("convert", SOURCE) == refusal("compare", SOURCE) == "", "and a whole one is accepted"
    run("umount", WHERE)
    run("lvremove", "-qy", "vg_nova0/lab_source", "vg_nova0/lab_target", stdout=subprocess.DEVNULL)
    print(json.dumps(told))


main()
