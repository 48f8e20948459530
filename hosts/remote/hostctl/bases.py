"""The files that a kept disk stands on: each gets a second name beside it, so that cleaning Nova's image cache cannot
take away what a rollback needs.

Nova removes a base that no instance's disk names any more (nova/virt/libvirt/imagecache.py), and a disk that is kept is
no instance's. A second name costs no space and changes no byte.
"""

import errno
import os
import re
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional

from . import untrusted
from .act import UUID, Act, Args, Refused, reason, syscall
from .commands import Work
from .images import Image
from .job_directory import Place, directory
from .privileges import as_root, as_user
from .untrusted import Base, plain

SECOND_NAME = re.compile(r"base\.[0-9]{1,2}\Z")
OF_AN_INSTANCE = re.compile(UUID + "/")


def second_name(number: int) -> str:
    """`number` counts from the disk itself: its own backing file is 0, that one's is 1."""
    return "base.%d" % number


def keep_act(args: Args, job: str) -> Act:
    """What the swap announces for the second names of backing files."""
    live = "%s/%s/%s" % (args["instances"], args["instance"], args["disk"])
    return syscall("link each file that %s stands on, if any, to %s/base.0 and so on" % (live, directory(args, job)))


def kept_names(place: Place) -> List[str]:
    """The second names (base.0, base.1, …) that exist in the directory of the migration."""
    with place.mine():
        return [name for name in untrusted.names(place.fd) if SECOND_NAME.match(name)]


def _chain(place: Place, relative: str, instance: str) -> Image:
    """A disk below the share and what it stands on, as it is found from the instance's directory."""
    return Image(place.share, relative, place.share.file(relative), instance)


class Standing(NamedTuple):
    """A base as it is now: its own file, and the second name that is kept of it; None where there is no such file."""

    base: Base
    name: str
    there: Optional[os.stat_result]
    kept: Optional[os.stat_result]

    @property
    def gone(self) -> bool:
        """True when only the second name is left."""
        return self.there is None and self.kept is not None

    @property
    def trouble(self) -> str:
        """Why the disk cannot be used, or empty."""
        if self.there is None and self.kept is None:
            return "its backing file %s is gone, and no second name of it was kept" % plain(self.base.text)
        if self.there is not None and self.kept is not None and self.there.st_ino != self.kept.st_ino:
            return "another file is in the place of its backing file %s, which is kept as %s" % (
                plain(self.base.text),
                self.name,
            )
        return ""


def standing(place: Place, image: Image) -> List[Standing]:
    """What is there of the bases of an image that have plain names on the share."""
    return [
        Standing(base, second_name(number), place.share.look(base.relative), place.look(second_name(number)))
        for number, base in enumerate(image.bases)
        if not base.trouble
    ]


def keep(work: Work, place: Place) -> List[Dict[str, str]]:
    """Before the swap: a second name for every base of the live disk; [{"path", "kept" or "", "why" it is not kept}].

    Refused where a base is not there: the disk would be no way back.
    """
    relative = "%(instance)s/%(disk)s" % work.args
    with _chain(place, relative, work.args["instance"]) as image:
        if image.objections:
            raise Refused(
                "bad-image",
                "keep the backing files of %s" % image.path,
                ", ".join(image.objections),
                "A rollback could not return to this disk. Repair it, or undo the migration.",
            )
        rows = standing(place, image)
        if not rows:
            return []
        files = [os.fstat(fd) for _relative, fd in image.opened[1:]]
        said = work.must(
            keep_act(work.args, work.job), lambda: [_link(place, row, file) for row, file in zip(rows, files)]
        )
    listed: List[Dict[str, str]] = said.value
    return listed


def _link(place: Place, row: Standing, file: os.stat_result) -> Dict[str, str]:
    """One base; a filer that gives no second name (another qtree, a file of another owner) is no reason to stop."""
    found = {"path": plain(row.base.text), "kept": row.name, "why": ""}
    if OF_AN_INSTANCE.match(row.base.relative):  # its own migration would refuse a disk with two names
        return dict(found, kept="", why="it is in the directory of an instance")
    if row.kept is None:
        try:
            with place.share.within(row.base.relative) as (above, name), _owner_of(place, file):
                os.link(name, row.name, src_dir_fd=above, dst_dir_fd=place.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK):
                raise
            return dict(found, kept="", why=reason(error))
    linked = place.look(row.name)
    if linked is None or linked.st_ino != file.st_ino:
        raise Refused(
            "unknown-files",
            "keep %s as %s/%s" % (plain(row.base.text), place.path, row.name),
            "another file has that name",
            "Find out who put it there. No disk was exchanged.",
        )
    return found


def _owner_of(place: Place, found: os.stat_result) -> Any:
    owner = place.owner
    return as_user(owner.st_uid, owner.st_gid) if found.st_uid == owner.st_uid else as_root()


def troubles(args: Args, job: str) -> List[str]:
    """Why the former disk that this job keeps could not be used again; empty where it could, or where none is kept."""
    try:
        with Place(args, job) as place:
            if place.look("disk.old") is None:
                return []
            with _chain(place, place.relative("disk.old"), args["instance"]) as image:
                return [row.trouble for row in standing(place, image) if row.trouble]
    except FileNotFoundError:
        return []


def demand(work: Work, place: Place, relative: str) -> None:
    """Before a disk is used again: everything that it stands on is there, and is what it was. A base that is gone gets
    its name back from the second one that was kept; refused where it was not kept, or where another file has its name.
    """
    for _ in range(untrusted.CHAIN_CAP):
        with _chain(place, relative, work.args["instance"]) as image:
            _demand_one_name(image)
            rows = standing(place, image)
        trouble = [row.trouble for row in rows if row.trouble]
        if trouble:
            raise Refused(
                "base-missing",
                "use %s/%s" % (place.share.path, relative),
                "; ".join(trouble),
                "Put the file back from a backup, or move the other one away and link the kept one to its place "
                "(%s), then resume. Until then the current disk stays in use." % place.path,
            )
        gone = [row for row in rows if row.gone]
        if not gone:
            return
        for row in gone:
            _put_back(work, place, row)


def _demand_one_name(image: Image) -> None:
    # Nothing was read of a file with a second name, so what it stands on is not known.
    if image.seen.st_nlink != 1:
        found = "it has %d names (hard links)" % image.seen.st_nlink
        raise Refused("unknown-file", "read the backing files of %s" % image.path, found, "Inspect it manually.")


def _put_back(work: Work, place: Place, row: Standing) -> None:
    """link never replaces anything; the folder of the bases has to be there."""
    text = "link %s/%s to %s, where nothing is" % (place.path, row.name, plain(row.base.text))

    def link(kept: os.stat_result) -> None:
        with place.share.within(row.base.relative) as (above, name), _owner_of(place, kept):
            os.link(row.name, name, src_dir_fd=place.fd, dst_dir_fd=above, follow_symlinks=False)
            os.fsync(above)

    if row.kept is not None:
        work.must(syscall(text), partial(link, row.kept), recovery=True)


def release(work: Work, place: Place, relative: str) -> None:
    """The second names go, once the disk in use has all that it stands on under its own name."""
    names = kept_names(place)
    if not names:
        return
    demand(work, place, relative)
    for name in names:
        found = place.look(name)
        if found is not None:
            with _owner_of(place, found):
                work.must(
                    syscall("unlink %s/%s (a second name of a base file)" % (place.path, name)),
                    partial(os.unlink, name, dir_fd=place.fd),
                    recovery=True,
                )
