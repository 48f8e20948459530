"""Runs on a hypervisor: the real swap on its share, killed in an act at random and there at a random instant.

Arguments: the installed hostctl, the directory of instances, the share's source, how many to kill, a seed. Prints one
JSON object. Instead of how many it takes `read`: then it opens the live path for ever, with a pause of SEED seconds
after each time, and prints on SIGTERM what it found there. Only libvirt is not asked: the instance does not exist.
"""

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter

PROGRAM, INSTANCES, SHARE, HOW_MANY, SEED = sys.argv[1:6]
sys.path.insert(0, PROGRAM)
from hostctl import live_disk, virsh  # noqa: E402 - it lies in the archive
from hostctl.commands import Work  # noqa: E402
from hostctl.verbs import VERBS  # noqa: E402

JOB, INSTANCE, SIZE = "5a1ce0de-0000-4111-8222-933334444555", "7b2df1ef-1111-4222-8333-944445555666", 1 << 20
HOME, PLACE = f"{INSTANCES}/{INSTANCE}", f"{INSTANCES}/.volmig/{JOB}"
LIVE, NEW, OLD = f"{HOME}/disk.local", f"{PLACE}/disk.new", f"{PLACE}/disk.old"
ACTS = ("ask", "dress", "link", "sync", "rename", "sync both")
PAST = 16  # disks of swaps that are over; a reader elsewhere may have them open yet
virsh.state = lambda work, instance: "shut off"


def image(filler):
    """A whole image whose every byte after the header is `filler`."""
    path = "/run/lab-image"
    subprocess.run(["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    with open(path, "rb") as made:
        return made.read() + filler * 30_000


WHOLE = {"old": image(b"o"), "new": image(b"n")}


def write(path, content):
    with open(path + ".tmp", "wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)


def begin(number):
    """An old disk that is live and a stage; what the swap is told of them. The live path is never without a disk."""
    for path, put_aside in ((LIVE, os.link), (OLD, os.rename)):
        past = f"{PLACE}/past-{put_aside.__name__}-{number % PAST}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(past)
        if os.path.exists(path):
            put_aside(path, past)
    write(LIVE, WHOLE["old"])
    write(NEW, WHOLE["new"])
    return {
        **{"instances": INSTANCES, "instance": INSTANCE, "disk": "disk.local", "share_source": SHARE},
        **{"virtual_size": SIZE, "live": live_disk.identity(os.stat(LIVE)), "stage": live_disk.identity(os.stat(NEW))},
    }


class Told(Work):
    """Tells a pipe when an act begins."""

    pipe = None

    def _call(self, act, function):
        os.write(self.pipe, b".")
        return super()._call(act, function)


def do(args, kind=Work):
    return VERBS["swap"].run(kind(args, JOB, VERBS["swap"].acts))


class Swapping:
    """A process that swaps."""

    def __init__(self, args):
        self.hears, Told.pipe = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                do(args, Told)
            finally:
                os._exit(0)
        os.close(Told.pipe)

    def acts(self):
        """The seconds between one act's beginning and the next one's."""
        at = [time.monotonic()]
        while os.read(self.hears, 1):
            at.append(time.monotonic())
        self.end()
        return [later - sooner for sooner, later in zip(at, [*at[1:], time.monotonic()], strict=True)]

    def kill(self, act, after):
        """So many seconds after this act began; whether it was still at work."""
        for _ in range(act):
            os.read(self.hears, 1)
        time.sleep(after)
        os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def end(self):
        os.close(self.hears)
        return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])


def content(path):
    try:
        with open(path, "rb") as file:
            read = file.read()
    except FileNotFoundError:
        return "nameless"
    return next((name for name, whole in WHOLE.items() if read == whole), "torn")


def read_for_ever():
    found = Counter()

    def tell(*_):
        print(json.dumps(found), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, tell)
    while True:
        found[content(LIVE)] += 1
        time.sleep(float(SEED))


def furnish():
    for directory in (HOME, PLACE):
        os.makedirs(directory, exist_ok=True)
    for directory in (HOME, PLACE, os.path.dirname(PLACE)):
        os.chown(directory, os.stat(INSTANCES).st_uid, os.stat(INSTANCES).st_gid)


def kill_all(count, rng):
    furnish()
    undisturbed = [Swapping(begin(number)).acts() for number in range(9)]
    usual = [statistics.median(each) for each in zip(*undisturbed, strict=True)]
    told = {"killed": Counter(), "live": Counter(), "states": Counter(), "backup lost": 0, "not finished": 0}
    while told["killed"].total() < count:  # what was over by then was not killed
        args, act = begin(told["live"].total()), rng.randrange(len(ACTS))
        told["killed"][ACTS[act]] += Swapping(args).kill(act, rng.uniform(0, usual[act]))
        look(told)
        do(args)
        told["not finished"] += (content(LIVE), content(OLD)) != ("new", "old")
    return told


def look(told):
    names = [name for name, path in (("new", NEW), ("old", OLD)) if os.path.exists(path)]
    live = content(LIVE)
    told["states"]["+".join(names)] += 1
    told["live"][live] += 1
    told["backup lost"] += live != "old" and content(OLD) != "old"


if HOW_MANY == "read":
    read_for_ever()
else:
    print(json.dumps(kill_all(int(HOW_MANY), random.Random(SEED))))
