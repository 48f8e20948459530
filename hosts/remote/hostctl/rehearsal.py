"""The disk that is kept after a swap: a rehearsal reads it whole, says whether it is as recorded, writes nothing."""

import hashlib
import json
import os
import re
import stat
import time
from typing import Any, Dict, List, Optional, Tuple

from . import bases
from .act import UUID, Args, Refused
from .commands import Work
from .direct_io import read_direct
from .images import Image
from .job_directory import Place, check_share, directory, read_card
from .live_disk import identity
from .privileges import as_user
from .qemu_img import CAPABILITIES, CHECK_LIMITS
from .store import directories
from .untrusted import open_direct, open_file, plain

KEPT = ("disk.old", "disk.rejected")
CHECK_SECONDS = 3600
MARKED_CORRUPT = "it is marked corrupt: QEMU opens it for reading only until qemu-img check -r all has repaired it"
AWAY = "its backing file %s is gone from its place; it is kept as %s/%s, from which a rollback puts it back"
SOUND, LEAKS = 0, 3  # exit statuses of qemu-img check: in order, and space that nothing uses


def sandbox(args: Args, job: str) -> List[str]:
    """Unit properties for work that only reads: the kernel lets it write nowhere but where its result is kept."""
    return [
        "DevicePolicy=closed",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "PrivateNetwork=yes",
        "CapabilityBoundingSet=" + CAPABILITIES,
        "ReadWritePaths=" + " ".join(directories(job)),
        "IOSchedulingClass=idle",
        "Nice=10",
        "MemoryMax=4G",
    ]


def rehearse(work: Work) -> Dict[str, Any]:
    """Whether the kept disk could be used again: `verdict` is ok, differs or unreadable, `findings` are sentences.

    `recorded` is what is known of it: inode, size, times, owner, and the SHA-256 of an earlier rehearsal, if any.
    """
    name, began = _name(work), time.monotonic()
    check_share(work.args)
    try:
        with Place(work.args, work.job) as place:
            found = place.look(name)
            if found is None:
                return _said([], ["there is no %s" % work.args["backup_path"]])
            told = _looked_at(work, place, name, found)
    except OSError as error:
        return _said([], ["%s: %s" % (work.args["backup_path"], error.strerror or error)])
    return dict(told, seconds=round(time.monotonic() - began, 1))


def _name(work: Work) -> str:
    """The name of the kept disk; the path has to lie in this job's own directory."""
    path = work.args["backup_path"]
    there, _slash, name = path.rpartition("/")
    if there != directory(work.args, work.job) or name not in KEPT:
        raise Refused(
            "bad-request",
            "rehearse %s" % path,
            "this job has no backup there",
            "This is a bug in volmig: report it with the evidence archive of this migration.",
        )
    return str(name)


def _looked_at(work: Work, place: Place, name: str, found: os.stat_result) -> Dict[str, Any]:
    """Identity, structure and bytes of the kept disk, and that nobody changed it meanwhile."""
    seen = dict(identity(found), allocated=found.st_blocks * 512)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        # With a second name it may be the live disk: that one is not read.
        return _said(["it is mode %o with %d names, not a plain file" % (found.st_mode, found.st_nlink)], [], **seen)
    user = _reader(place, found)
    broken, away, leaks = _structure(work, place, name, user)
    digest, unread = _bytes(work, place, name, user, found.st_size)
    after = place.look(name)
    recorded = dict(work.args["recorded"])
    known = recorded.pop("sha256", digest)
    wrong = away + _unlike(seen, recorded)
    wrong += ["its SHA-256 is %s, recorded %s" % (digest, known)] if digest and digest != known else []
    wrong += ["it changed while it was read"] if after is None or identity(after) != identity(found) else []
    return _said(wrong, broken + unread, sha256=digest, leaks=leaks, **seen)


def _reader(place: Place, found: os.stat_result) -> Tuple[int, int]:
    """The share's owner; root only where the disk belongs to somebody else, as in the swap."""
    owner = place.owner
    return (owner.st_uid, owner.st_gid) if found.st_uid == owner.st_uid else (0, 0)


def _unlike(seen: Dict[str, Any], recorded: Dict[str, Any]) -> List[str]:
    return [
        "its %s is %s, recorded %s" % (name.replace("_", " "), seen[name], value)
        for name, value in sorted(recorded.items())
        if name in seen and seen[name] != value
    ]


def _structure(work: Work, place: Place, name: str, user: Tuple[int, int]) -> Tuple[List[str], List[str], int]:
    """What is wrong with the image itself, which of its bases a rollback would put back, and how many clusters of it
    are used by nothing (which is harmless).
    """
    path = "%s/%s" % (place.path, name)
    with as_user(*user):
        fd = open_file(name, place.fd, path=path, links=1)
    # It would be used where the instance is, so a base that it names by a relative path is looked for from there.
    with Image(place.share, place.relative(name), fd, _instance(place)) as image:
        if not image.header.is_qcow2:
            return ["it is not a qcow2 image"], [], 0
        rows = bases.standing(place, image)
        away = [AWAY % (plain(row.base.text), place.path, row.name) for row in rows if row.gone]
        replaced = [row.trouble for row in rows if row.trouble and row.there is not None]
        if replaced or (image.objections and not away):
            return replaced or image.objections, away, 0
        marked = [MARKED_CORRUPT] if image.header.corrupt else []
        cage = image.cage(**CHECK_LIMITS)
        output = work.ask(*_check_words(image), good=None, become=cage, timeout=CHECK_SECONDS)
    if output.exit in (SOUND, LEAKS):
        return marked, away, _count(output.out, "leaks")
    errors = _count(output.out, "corruptions") + _count(output.out, "check-errors")
    said = "%d errors" % errors if errors else output.said()
    return [*marked, "qemu-img check ended with %d: %s" % (output.exit, said)], away, 0


def _check_words(image: Image) -> Tuple[str, ...]:
    """qemu-img check of this image alone: its bases belong to others, and a relative one is not where it would be."""
    if not image.bases:
        return ("qemu-img", "check", "-f", "qcow2", "--output=json", "--", image.path)
    file = {"driver": "file", "filename": image.path}
    alone = json.dumps({"driver": "qcow2", "file": file, "backing": None}, sort_keys=True)
    return ("qemu-img", "check", "--output=json", "--", "json:" + alone)


def _instance(place: Place) -> str:
    """The instance's folder, from the card; a card is written by others too, so only a UUID counts."""
    named = str(read_card(place).get("instance", ""))
    return named if re.match(UUID + r"\Z", named) else ".volmig/%s" % place.job


def _count(text: str, name: str) -> int:
    try:
        value = json.loads(text).get(name, 0)
    except (ValueError, AttributeError):
        return 0
    return value if type(value) is int else 0


def _bytes(work: Work, place: Place, name: str, user: Tuple[int, int], size: int) -> Tuple[str, List[str]]:
    """The SHA-256 of all its bytes, read past the cache; or where reading failed."""
    digest, done = hashlib.sha256(), 0
    fd: Optional[int] = None
    with as_user(*user):
        try:
            fd = open_direct(name, place.fd, links=1)
            for block in read_direct(fd):
                digest.update(block)
                done += len(block)
                work.report(done, size, done, 0)
        except OSError as error:
            return "", ["reading it failed at byte %d: %s" % (done, error.strerror or error)]
        finally:
            if fd is not None:
                os.close(fd)
    work.report(size, size, done, 0, last=True)
    return digest.hexdigest(), [] if done == size else ["%d of its %d bytes could be read" % (done, size)]


def _said(wrong: List[str], broken: List[str], **seen: Any) -> Dict[str, Any]:
    verdict = "unreadable" if broken else "differs" if wrong else "ok"
    return dict(seen, verdict=verdict, findings=broken + wrong)
