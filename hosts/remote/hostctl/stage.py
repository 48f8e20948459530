"""The staged image on the share: copied by the relay, verified by the destination, beside the live disk."""

import hashlib
import json
import os
import pwd
import stat
import time
from typing import Any, Callable, Dict, Optional, Tuple

from . import untrusted
from .act import Act, Args, Failed, Refused, command, syscall
from .commands import Work
from .direct_io import read_direct, write_all
from .job_directory import Place, _write_card, check_share, directory, read_card, remove_place, write_card
from .live_disk import identity
from .qcow2 import check_header, header_of
from .qemu_img import info_objections, part, whole
from .sandbox import Cage, Shown


def seal_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What hashing the copy announces; it is read past the page cache."""
    return (syscall("read %s past the cache (O_DIRECT) and note its SHA-256" % part(args)),)


def stage_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What staging announces: the directory, its card, and the copy with its hash."""
    there = directory(args, job)
    return (
        syscall("mkdir %s as the owner of %s" % (there, args["instances"])),
        syscall("write %s/card.json" % there),
        syscall("copy %s/disk.qcow2 to %s/disk.new (SHA-256 as noted, fsync)" % (args["mountpoint"], there)),
    )


def unstage_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What removing the staged copy announces."""
    return (syscall("unlink disk.new and card.json in %s, rmdir it" % directory(args, job)),)


def verify_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What verifying announces: the hash as the filer returns it, and qemu-img info."""
    new = "%s/disk.new" % directory(args, job)
    return (
        syscall("read %s past the cache (O_DIRECT) and compare its SHA-256" % new),
        command("qemu-img", "info", "-f", "qcow2", "--output=json", "--", new),
    )


def seal(work: Work) -> Dict[str, Any]:
    """Note the copy's SHA-256 before the source compares it: what changes it later is found when it is staged."""
    (reading,) = seal_acts(work.args, work.job)
    fd = untrusted.open_direct(part(work.args), links=1)
    try:
        total = os.fstat(fd).st_size
        hashed = work.must(reading, lambda: hash_of(fd, lambda done: work.report(done, total, done, 0)))
    finally:
        os.close(fd)
    digest, size = hashed.value
    return {"sha256": digest, "file_size": size}


def hash_of(fd: int, report: Callable[[int], None]) -> Tuple[str, int]:
    """SHA-256 (hexadecimal) of a whole file that was opened with untrusted.open_direct, and how many bytes it has."""
    digest, done = hashlib.sha256(), 0
    for block in read_direct(fd):
        digest.update(block)
        done += len(block)
        report(done)
    return digest.hexdigest(), done


def stage(work: Work) -> Dict[str, Any]:
    """Copy the proved image onto the share beside the live disk, as the share's owner, hashing what is written."""
    args = work.args
    mkdir, card, copying = stage_acts(args, work.job)
    check_share(args)
    image = untrusted.open_file(whole(args), links=1)
    try:
        check_header(image, whole(args), work.args.get("virtual_size") or header_of(image).size)
        known = work.memory.recall("stage")
        work.must(mkdir, lambda: Place(args, work.job, make=True).close())
        with Place(args, work.job) as place, place.mine():
            there = place.look("disk.new")
            if there is not None and known.get("inode") == there.st_ino and known.get("file_size") == there.st_size:
                return dict(known, already=True)
            _clear(place, there)
            work.must(card, lambda: _write_card(place, work))
            made = work.must(copying, lambda: _copy_in(work, place, image)).value
    finally:
        os.close(image)
    work.memory.remember("stage", **made)
    return dict(made)


def _clear(place: Place, there: Optional[os.stat_result]) -> None:
    """A partial copy of an attempt that died is ours to remove; a file with other names is a live disk and is not."""
    if place.look("disk.old") or place.look("disk.rejected"):
        raise Refused(
            "unknown-stage", "stage into %s" % place.path, "a swap of this job has begun there", "Inspect it manually."
        )
    if there is not None:
        if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1:
            raise Refused(
                "foreign-file",
                "replace %s/disk.new" % place.path,
                "it is not a plain file with one name",
                "Inspect it manually.",
            )
        os.unlink("disk.new", dir_fd=place.fd)


def _copy_in(work: Work, place: Place, image: int) -> Dict[str, Any]:
    target = untrusted.create("disk.new", place.fd, place.file_mode)
    try:
        os.fchmod(target, place.file_mode)
        total = os.fstat(image).st_size
        digest = copy(image, target, work.args["rate"], lambda done, written: work.report(done, total, done, written))
        os.fsync(target)
        found = os.fstat(target)
    finally:
        os.close(target)
    os.fsync(place.fd)
    if digest != work.args["sha256"]:
        raise Failed(
            "wrong-bytes",
            "stage %s" % whole(work.args),
            "its SHA-256 is %s; before it was compared it was %s" % (digest, work.args["sha256"]),
            "The copy changed on the relay: check its memory and its disks. Then start again.",
        )
    work.report(total, total, total, total, last=True)
    return {"sha256": digest, "file_size": found.st_size, "inode": found.st_ino}


COPY_BLOCK = 1 << 20
ZEROS = bytes(COPY_BLOCK)


def copy(source: int, target: int, rate: int, report: Callable[[int, int], None]) -> str:
    """Copy a whole file into an empty one; zeros become holes. Returns the SHA-256. `rate`: bytes/s, 0 = no limit."""
    digest, done, written, begun = hashlib.sha256(), 0, 0, time.monotonic()
    while True:
        block = os.pread(source, COPY_BLOCK, done)
        if not block:
            break
        digest.update(block)
        if block != ZEROS[: len(block)]:
            os.lseek(target, done, os.SEEK_SET)
            write_all(target, block)
            written += len(block)
        done += len(block)
        report(done, written)
        if rate:
            time.sleep(max(0.0, begun + done / rate - time.monotonic()))
    os.ftruncate(target, done)
    return digest.hexdigest()


def unstage(work: Work) -> Dict[str, Any]:
    """Remove the stage (never a backup or anything that has a second name) and the job's directory."""
    try:
        place = Place(work.args, work.job)
    except FileNotFoundError:
        return {"already": True}
    with place, place.mine():
        names = set(untrusted.names(place.fd))
        if "disk.new" not in names and names & {"disk.old", "disk.rejected"}:
            return {"already": True}  # it was swapped in: what lies here now is for a purge, or a way back
        strange = sorted(names - {"disk.new", "card.json", "README", "card.json.tmp", "README.tmp"})
        if strange:
            raise Refused(
                "unknown-files", "remove %s" % place.path, "it holds %s" % ", ".join(strange), "Inspect it manually."
            )
        there = place.look("disk.new")
        if there is not None and (not stat.S_ISREG(there.st_mode) or there.st_nlink != 1):
            raise Refused(
                "foreign-file",
                "remove %s/disk.new" % place.path,
                "it has another name too: it may be a live disk",
                "Inspect it manually.",
            )
        if there is not None and there.st_ino != work.args.get("expect_inode", there.st_ino):
            raise Refused(
                "foreign-file",
                "remove %s/disk.new" % place.path,
                "its inode is %d, recorded was %d" % (there.st_ino, work.args["expect_inode"]),
                "Another file has the name. Inspect it manually.",
            )
        work.must(unstage_acts(work.args, work.job)[0], lambda: remove_place(place, work.job, names))
    return {"already": False}


def verify(work: Work) -> Dict[str, Any]:
    """On the destination: the stage's bytes, read past the cache, are those hashed; qemu calls it plain qcow2."""
    args = work.args
    reading, info = verify_acts(args, work.job)
    check_share(args)
    with _visible(args, work.job) as place:
        with place.mine():
            seen = work.must(reading, lambda: _check_bytes(work, place)).value
        output = work.must(info, become=Cage(shown=(seen,), user=_unprivileged(place)), timeout=60)
        wrong = info_objections(json.loads(output.out), args["virtual_size"])
        if wrong:
            raise Failed("bad-image", info.tried, "it has %s" % ", ".join(wrong), "Discard the stage and start again.")
        with place.mine():
            found = place.look("disk.new")
            facts = dict(read_card(place), sha256=args["sha256"], stage=identity(found) if found else {})
            write_card(place, facts)
    if found is None or found.st_nlink != 1:
        raise Refused("foreign-file", info.tried, "disk.new vanished or has another name", "Inspect it manually.")
    return {"inode": found.st_ino, "mtime_ns": found.st_mtime_ns, "file_size": found.st_size, "sha256": args["sha256"]}


def _visible(args: Args, job: str, seconds: float = 90) -> Place:
    """The place, as soon as this client sees it: another client made it, and absence may be cached for a minute."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            place = Place(args, job)
            with place.mine():
                if place.look("disk.new") is not None:
                    return place
            place.close()
        except FileNotFoundError:
            pass
        if time.monotonic() > deadline:
            raise Refused(
                "no-stage",
                "verify the stage of job %s" % job,
                "there is no disk.new under %s" % args["instances"],
                "Run the step stage again.",
            )
        time.sleep(1)


def _check_bytes(work: Work, place: Place) -> Shown:
    """Header and bytes are those of our copy; returns it as what qemu-img may see."""
    args, path = work.args, "%s/disk.new" % place.path
    with untrusted.opened("disk.new", place.fd, path=path, links=1) as plain:
        check_header(plain, path, args["virtual_size"])
    fd = untrusted.open_direct("disk.new", place.fd, path, links=1)
    try:
        shown = place.share.shown(place.relative("disk.new"), fd)
        digest, done = hash_of(fd, lambda done: work.report(done, args["file_size"], done, 0))
    finally:
        os.close(fd)
    if done != args["file_size"] or digest != args["sha256"]:
        raise Failed(
            "wrong-bytes",
            "read %s/disk.new" % place.path,
            "%d bytes with SHA-256 %s; staged were %d with %s" % (done, digest, args["file_size"], args["sha256"]),
            "The staged copy changed in transit. Discard it and find out why.",
        )
    return shown


def _unprivileged(place: Place) -> Tuple[int, int]:
    if place.owner.st_uid:
        return place.owner.st_uid, place.owner.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid
