"""The directory of a migration on the share, where stage, backup and card lie; reached by file descriptors alone."""

import contextlib
import json
import os
import time
from typing import Any, Dict, Iterable, Optional

from . import mounts, untrusted
from .act import Args, Refused
from .commands import Work
from .direct_io import write_all
from .untrusted import Share, open_directory


def directory(args: Args, job: str) -> str:
    """Where stage, backup and card of a job lie: outside the instance's directory, on the same export."""
    return "%s/.volmig/%s" % (args["instances"], job)


class Place:
    """The job's directory on the share, held open by file descriptors: no name is resolved twice, no link followed."""

    def __init__(self, args: Args, job: str, make: bool = False) -> None:
        self.path, self.instances, self.job = directory(args, job), args["instances"], job
        self.fd = -1
        self.share = Share(self.instances)
        self.owner, self.root = self.share.owner, self.share.fd
        try:
            with self.mine():
                self._open(job, make)
        except BaseException:
            self.close()
            raise

    def _open(self, job: str, make: bool) -> None:
        if make:
            _mkdir(".volmig", self.root, self.dir_mode)
            above = self.share.folder(".volmig")
            try:
                _mkdir(job, above, self.dir_mode)
            finally:
                os.close(above)
        self.fd = self.share.folder(".volmig/%s" % job)
        if os.fstat(self.fd).st_uid != self.owner.st_uid:
            raise Refused(
                "foreign-directory",
                "use %s" % self.path,
                "it belongs to user %d" % os.fstat(self.fd).st_uid,
                "Inspect it manually.",
            )

    # A stage that belongs to root can be inspected as nobody only if others may read it; that user gets no listing.
    @property
    def dir_mode(self) -> int:
        """0711 where the share's owner is root: the owner of the disk has to reach it."""
        return 0o700 if self.owner.st_uid else 0o711

    @property
    def file_mode(self) -> int:
        """0644 where the share's owner is root, or the image's own user could not read it."""
        return 0o600 if self.owner.st_uid else 0o644

    def mine(self) -> Any:
        """Context in which this process is the share's owner."""
        return self.share.mine()

    def look(self, name: str) -> Optional[os.stat_result]:
        """lstat of a name in the directory after asking the server, or None."""
        with self.mine():
            return untrusted.look(name, self.fd)

    def relative(self, name: str) -> str:
        """The path of a name in the directory, below the share."""
        return ".volmig/%s/%s" % (self.job, name)

    def close(self) -> None:
        """Closes the directory and the share; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self.share.close()

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _mkdir(name: str, dir_fd: int, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=dir_fd)
        made = open_directory(name, dir_fd)  # the share's owner may have put a link in its place since
        try:
            os.fchmod(made, mode)  # whatever the umask left of it
        finally:
            os.close(made)


def label(fd: int) -> str:
    """The SELinux label of an open file, or an empty text where there is none."""
    try:
        return os.getxattr(fd, "security.selinux").decode("ascii", "replace").rstrip("\0")
    except OSError:
        return ""


def check_share(args: Args) -> None:
    """Refuse unless `instances` is (inside) the planned NFS share and nothing else."""
    instances = args["instances"]
    above = [mount for mount in mounts.mounts() if (instances + "/").startswith(mount.target.rstrip("/") + "/")]
    found = max(above, key=lambda mount: len(mount.target))
    if found.source != mounts.share_name(args["share_source"]) or not found.fstype.startswith("nfs"):
        raise Refused(
            "unknown-share",
            "use %s" % instances,
            "%s (%s) is mounted there, planned was %s" % (found.source, found.fstype, args["share_source"]),
            "Mount the planned share, or plan again.",
        )


CARD = """This directory belongs to a volmig migration. Do not delete anything here by hand while the job is open.
disk.new: the converted image, not yet in use. disk.old: the instance's former disk (after the swap).
disk.rejected: the new disk after a rollback. base.0, base.1 and so on: second names of the files that the former disk
stands on (card.json has their paths); without them it cannot be used again.
To look or to roll back without volmig, on the instance's hypervisor:
  hostctl status JOB      hostctl rollback JOB
"""


def _write_card(place: Place, work: Work) -> None:
    known: Dict[str, Any] = {
        name: work.args[name] for name in ("instances", "share_source", "instance", "disk") if name in work.args
    }
    facts: Dict[str, Any] = dict(
        known, job=work.job, staged_from=os.uname().nodename, at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    )
    write_card(place, facts)
    _write_whole(place, "README", CARD.replace("JOB", work.job).encode())


def write_card(place: Place, facts: Dict[str, Any]) -> None:
    """Replace card.json whole; by-hand rollback reads it when the host's own memory is gone."""
    _write_whole(place, "card.json", json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n")


def read_card(place: Place) -> Dict[str, Any]:
    """What the card says, or {} where there is none."""
    with place.mine():
        text = untrusted.read("card.json", place.fd, untrusted.JSON_CAP, "%s/card.json" % place.path)
    return untrusted.parsed(text) or {}


def _write_whole(place: Place, name: str, text: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name + ".tmp", dir_fd=place.fd)
    fd = untrusted.create(name + ".tmp", place.fd, 0o644)
    try:
        write_all(fd, text)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(name + ".tmp", name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
    os.fsync(place.fd)


def remove_place(place: Place, job: str, names: Iterable[str]) -> None:
    """Unlink the given names, then the job's directory, then .volmig if no other job uses it."""
    for name in sorted(names):
        os.unlink(name, dir_fd=place.fd)
    above = open_directory(".volmig", place.root)
    try:
        os.rmdir(job, dir_fd=above)
        os.fsync(above)
    finally:
        os.close(above)
    with contextlib.suppress(OSError):
        os.rmdir(".volmig", dir_fd=place.root)
