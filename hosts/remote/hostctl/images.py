"""A disk image on a share and the base files it stands on, all held open before any tool sees one of them."""

import os
from typing import Any, Dict, List, Tuple

from .act import Refused, reason
from .qcow2 import Header, header_of
from .sandbox import Cage
from .untrusted import CHAIN_CAP, Base, Share, plain


class Image:
    """`objections` are reasons to let no tool open it: what its header names, and what of its chain is not a plain
    file on the same share. `folder`, below the share, is where it is used: from there a relative base is resolved."""

    def __init__(self, share: Share, relative: str, fd: int, folder: str) -> None:
        self.share, self.path, self.fd = share, "%s/%s" % (share.path, relative), fd
        self.seen = os.fstat(fd)
        # A file with a second name may be another disk: not a byte of it is read.
        is_one = self.seen.st_nlink == 1
        self.header = header_of(fd) if is_one else Header(b"")
        self.objections = self.header.hazards() if is_one else ["it has %d names (hard links)" % self.seen.st_nlink]
        self.bases: List[Base] = []
        self.opened = [(relative, fd)]
        try:
            self._follow(self.header, folder)
        except BaseException:
            self.close()
            raise

    def _follow(self, header: Header, folder: str) -> None:
        while header.is_qcow2 and header.backing and not self.objections:
            base = Base(header.base, folder, self.share.path)
            self.bases.append(base)
            if base.trouble or len(self.bases) > CHAIN_CAP:
                self.objections.append(base.trouble or "it has more than %d backing files" % CHAIN_CAP)
                return
            is_raw, header = header.base_format == b"raw", self._opened(base)
            if is_raw:  # a raw file is never probed: its bytes are the guest's
                return
            self.objections += ["its backing file %s: %s" % (plain(base.text), why) for why in header.hazards()]
            folder = base.relative.rpartition("/")[0]

    def _opened(self, base: Base) -> Header:
        try:
            fd = self.share.file(base.relative)
        except Refused as stop:
            self.objections.append("its backing file %s: %s" % (plain(base.text), stop.found))
        except OSError as error:
            self.objections.append("its backing file %s: %s" % (plain(base.text), reason(error)))
        else:
            self.opened.append((base.relative, fd))
            return header_of(fd)
        return Header(b"")

    def described(self) -> Dict[str, Any]:
        """What a swap, a rollback and a backup of this image have to know besides its bytes."""
        return {
            "backing": [plain(base.text) for base in self.bases],
            "relative_bases": [plain(base.text) for base in self.bases if base.is_relative],
            "objections": self.objections,
            "snapshots": self.header.snapshots,
            "bitmaps": self.header.bitmaps,
            "dirty": self.header.dirty,
            "corrupt": self.header.corrupt,
        }

    @property
    def user(self) -> Tuple[int, int]:
        """Who reads it in a cage: the share's owner; where that is root, whoever the file belongs to."""
        owner = self.share.owner if self.share.owner.st_uid else self.seen
        return owner.st_uid, owner.st_gid

    def cage(self, **how: Any) -> Cage:
        """For a tool that may read this image and its chain, and nothing else."""
        shown = tuple(self.share.shown(relative, fd) for relative, fd in self.opened)
        return Cage(shown=shown, user=self.user, **how)

    def close(self) -> None:
        """Closes the image and its backing files."""
        while self.opened:
            os.close(self.opened.pop()[1])

    def __enter__(self) -> "Image":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
