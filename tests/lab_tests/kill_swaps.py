"""Runs on a hypervisor: the real swap on its share, killed at random instants while a reader opens the live path.

Arguments: the installed hostctl, the directory of instances, the share's source, how many trials, a seed. Prints one
JSON object. Only libvirt is not asked: the instance does not exist.

The reader is on the very hypervisor that swaps, as nova-compute is when it looks at disk sizes: its NFS client puts an
open disk aside before it renames another over it, and where the swap is killed in between the live disk is nameless.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time

PROGRAM, INSTANCES, SHARE, TRIALS, SEED = sys.argv[1:6]
sys.path.insert(0, PROGRAM)
from hostctl import virsh  # noqa: E402 - it lies in the archive
from hostctl.tools import Work  # noqa: E402
from hostctl.verbs import VERBS  # noqa: E402

JOB, INSTANCE, SIZE = "5a1ce0de-0000-4111-8222-933334444555", "7b2df1ef-1111-4222-8333-944445555666", 1 << 20
HOME, PLACE = f"{INSTANCES}/{INSTANCE}", f"{INSTANCES}/.volmig/{JOB}"
LIVE, NEW, OLD = f"{HOME}/disk.local", f"{PLACE}/disk.new", f"{PLACE}/disk.old"
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


def begin():
    """An old disk that is live and a stage; what the swap is told of them. The live path is never without a disk."""
    write(LIVE, WHOLE["old"])
    if os.path.exists(OLD):
        os.unlink(OLD)
    write(NEW, WHOLE["new"])
    return {
        **{"instances": INSTANCES, "instance": INSTANCE, "disk": "disk.local", "share_source": SHARE},
        **{"virtual_size": SIZE, "live": virsh.identity(os.stat(LIVE)), "stage": virsh.identity(os.stat(NEW))},
    }


def do(args):
    return VERBS["swap"].run(Work(args, JOB, VERBS["swap"].acts))


def killed(args, after):
    """Have a process swap, and kill it after so many seconds (None: never); whether it was still at work."""
    child = os.fork()
    if not child:
        try:
            do(args)
        finally:
            os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def content(path):
    try:
        with open(path, "rb") as file:
            read = file.read()
    except FileNotFoundError:
        return "nameless"
    return next((name for name, whole in WHOLE.items() if read == whole), "torn")


def reader(pipe):
    """Opens the live path for ever; on SIGTERM it tells what it found there, and how often."""
    found = {"old": 0, "new": 0, "torn": 0, "nameless": 0}

    def tell(*_):
        os.write(pipe, json.dumps(found).encode())
        os._exit(0)

    signal.signal(signal.SIGTERM, tell)
    while True:
        found[content(LIVE)] += 1


def main():
    os.makedirs(HOME, exist_ok=True)
    os.makedirs(PLACE, exist_ok=True)
    for directory in (HOME, PLACE, os.path.dirname(PLACE)):
        os.chown(directory, os.stat(INSTANCES).st_uid, os.stat(INSTANCES).st_gid)
    rng, args, took = random.Random(int(SEED)), begin(), []
    for _ in range(5):
        began = time.monotonic()
        killed(args, None)
        took.append(time.monotonic() - began)
        args = begin()
    usual, told = statistics.median(took), {"killed": 0, "live": {}, "backup lost": 0, "not finished": 0, "states": {}}
    receive, send = os.pipe()
    reading = os.fork()
    if not reading:
        reader(send)
    try:
        kill_all(told, rng, usual, args)
    finally:
        os.kill(reading, signal.SIGTERM)
    told["reader"] = json.loads(os.read(receive, 4096))
    print(json.dumps(told))


def kill_all(told, rng, usual, args):
    for _ in range(int(TRIALS)):
        told["killed"] += killed(args, rng.uniform(0, usual))
        names = "".join("x" if os.path.exists(path) else "-" for path in (NEW, OLD))
        told["states"][names] = told["states"].get(names, 0) + 1
        live = content(LIVE)
        told["live"][live] = told["live"].get(live, 0) + 1
        told["backup lost"] += live != "old" and content(OLD) != "old"
        do(args)
        told["not finished"] += (content(LIVE), content(OLD)) != ("new", "old")
        args = begin()


main()
