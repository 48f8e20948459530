#!/usr/bin/python3 -I
"""volmig-hostctl: hands a request over to the version of hostctl that it names, as `hash`. It never changes.

Versions lie side by side in DIRECTORY as hostctl-HASH; the link `current` is the one for requests that name none, or
one that is not installed: that one says so. By hand (status JOB, rollback JOB) it is the one that the job ran with.
`hostctl install` puts this program in its place.
"""

import json
import os
import re
import stat
import sys

DIRECTORY = os.path.realpath(__file__) + ".d"
STATE = "/var/lib/volmig"
POLICY = "/etc/volmig/hostctl.json"
INPUT_CAP = (1 << 20) + 1
JOB = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"
HASH = r"[0-9a-f]{16}\Z"


def main(words: "list[str]") -> int:
    """Replaces this process by that version; its standard input is the request, as it came."""
    data = b"" if words else sys.stdin.buffer.read(INPUT_CAP)
    request = {"job": words[1], "hash": of_job(words[1])} if len(words) > 1 else of_request(data)
    wanted = installed(request.get("hash"))
    path = wanted if wanted and may_run(wanted, request) else installed(current())
    if not path:
        sys.stderr.write("volmig-hostctl: no version found in %s that only root can have written\n" % DIRECTORY)
        return 127
    if not words:
        give_back(data)
    return os.execv(sys.executable, [sys.executable, "-I", path, *words])  # noqa: S606  no shell is what is wanted


def of_request(data: bytes) -> "dict[str, object]":
    """What a request says; nothing when it is none."""
    try:
        request = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return request if isinstance(request, dict) else {}


def may_run(path: str, request: "dict[str, object]") -> bool:
    """Where this hypervisor has a policy, a version that knows none is run only for migrations that began with it here.

    Else whoever has volmig's key could get around the policy by the name of an old version.
    """
    if not os.path.lexists(POLICY):
        return True
    with open(path, "rb") as file:
        return b"hostctl/policy.py" in file.read() or of_job(request.get("job")) == request.get("hash")


def of_job(job: object) -> object:
    """The hash that the last request of a job named on this host; empty when none is kept, or is just being removed."""
    if not isinstance(job, str) or not re.match(JOB, job):
        return ""
    directory = os.path.join(STATE, job)
    try:
        names = [name for name in os.listdir(directory) if name.endswith(".request.json")]
        last = max((os.path.join(directory, name) for name in names), key=os.path.getmtime)
        with open(last, "rb") as file:
            return of_request(file.read()).get("hash")
    except (OSError, ValueError):
        return ""


def current() -> str:
    """The hash that the link `current` leads to."""
    try:
        return os.readlink(os.path.join(DIRECTORY, "current"))[len("hostctl-") :]
    except OSError:
        return ""


def installed(digest: object) -> str:
    """The path of a version; empty when it is not there, or when anyone but root could have written it."""
    if not isinstance(digest, str) or not re.match(HASH, digest):
        return ""
    path = os.path.join(DIRECTORY, "hostctl-" + digest)
    try:
        directory, file = os.lstat(DIRECTORY), os.lstat(path)
    except OSError:
        return ""
    mine = only_roots(directory) and only_roots(file)
    return path if mine and stat.S_ISDIR(directory.st_mode) and stat.S_ISREG(file.st_mode) else ""


def only_roots(found: os.stat_result) -> bool:
    return found.st_uid == 0 and not found.st_mode & 0o022


def give_back(data: bytes) -> None:
    """What was read becomes standard input again; a pipe would hold too little."""
    new = hasattr(os, "memfd_create")  # since Python 3.8
    fd = os.memfd_create("request") if new else os.open("/run", os.O_TMPFILE | os.O_RDWR, 0o600)
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
