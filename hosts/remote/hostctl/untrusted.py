"""The one place that opens what others may have written: a share, or a copy that another host wrote.

Names are resolved one by one from an open directory, as the share's owner. A symbolic link, a named pipe, a socket or a
device is refused before it is opened, and again by what was really opened: between the two, names may change. What is
read whole has a limit. `links` demands the number of names: a file with a second one may be somebody else's disk.

What this cannot detect: a file of another tenant that the share's own owner *moved* here. That owner can read it
without us.
"""

import contextlib
import errno
import json
import os
import re
import stat
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .act import Refused, reason
from .privileges import as_user
from .sandbox import Shown

OPEN_SAFELY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISDIR, "a directory"),
)
# What open() says of a link, a socket or pipe, a device without driver, and a file that is under a lease.
NOT_A_FILE = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EWOULDBLOCK, errno.EISDIR)
NAMES_CAP = 10000
JSON_CAP = 65536


def _unnoted(text: str) -> None:
    return None


note = _unnoted  # is passed what is about to be opened or run: on a dead server that is the last message


def plain(text: str, cap: int = 400) -> str:
    """Printable ASCII whatever a thing is called; what was escaped is equal to no name of ours."""
    return ascii(text)[1:-1][:cap]


def open_directory(name: str, dir_fd: Optional[int] = None) -> int:
    """A directory, never through a symbolic link as its last name."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def open_file(
    name: str,
    dir_fd: Optional[int] = None,
    flags: int = os.O_RDONLY,
    path: str = "",
    links: Optional[int] = None,
) -> int:
    """A regular file, as whoever this process is; `path` is its name in sentences. FileNotFoundError where none is."""
    tried = path or name
    _demand_regular(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), tried, links)
    try:
        fd = os.open(name, flags | OPEN_SAFELY, dir_fd=dir_fd)
    except OSError as error:
        if isinstance(error, PermissionError) and flags & os.O_ACCMODE == os.O_RDONLY:
            raise _unreadable(tried, error)
        if error.errno in NOT_A_FILE:
            raise _foreign(tried, "it is no longer a regular file (%s)" % reason(error))
        raise
    try:
        _demand_regular(os.fstat(fd), tried, links)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _demand_regular(found: os.stat_result, tried: str, links: Optional[int]) -> None:
    for is_kind, named in KINDS:
        if is_kind(found.st_mode):
            raise _foreign(tried, "it is %s, not a regular file" % named)
    if not stat.S_ISREG(found.st_mode):
        raise _foreign(tried, "it is not a regular file (mode %o)" % found.st_mode)
    if links is not None and found.st_nlink != links:
        raise _foreign(tried, "it has %d names (hard links), not %d" % (found.st_nlink, links))


def _unreadable(tried: str, error: OSError) -> Refused:
    return Refused(
        "not-readable",
        "open %s" % plain(tried),
        "user %d, who owns the share, may not: %s" % (os.geteuid(), reason(error)),
        "Let the owner of the share read it; volmig reads nothing there as root.",
    )


def _foreign(tried: str, found: str) -> Refused:
    return Refused(
        "foreign-file",
        "open %s" % plain(tried),
        found,
        "Find out who put it there, then remove it. volmig opens regular files only.",
    )


@contextlib.contextmanager
def opened(name: str, dir_fd: Optional[int] = None, flags: int = os.O_RDONLY, **how: Any) -> Iterator[int]:
    """open_file for the length of a block."""
    fd = open_file(name, dir_fd, flags, **how)
    try:
        yield fd
    finally:
        os.close(fd)


def create(name: str, dir_fd: Optional[int], mode: int) -> int:
    """A new file for writing; FileExistsError where anything has the name."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_SAFELY, mode, dir_fd=dir_fd)


def open_direct(name: str, dir_fd: Optional[int] = None, path: str = "", links: Optional[int] = None) -> int:
    """Open to read past the page cache, so that what is on the disks is read and not what is in memory."""
    try:
        return open_file(name, dir_fd, os.O_RDONLY | os.O_DIRECT, path, links)
    except OSError as error:  # tmpfs and some others: drop the cache instead
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        fd = open_file(name, dir_fd, os.O_RDONLY, path, links)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd


def look(name: str, dir_fd: int) -> Optional[os.stat_result]:
    """lstat of a name after asking the server, or None; only regular files are opened for that."""
    # Opening asks an NFS server for fresh attributes; a plain stat may answer from the cache for a minute.
    with contextlib.suppress(OSError, Refused):
        os.close(open_file(name, dir_fd))
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def names(dir_fd: int) -> List[str]:
    """What a directory holds, in order; refuses more than ten thousand names."""
    found = os.listdir(dir_fd)
    if len(found) > NAMES_CAP:
        raise Refused(
            "foreign-files",
            "list a directory on the share",
            "it has %d entries; at most %d are read" % (len(found), NAMES_CAP),
            "Find out who put them there, and remove them.",
        )
    return sorted(found)


def read(name: str, dir_fd: int, cap: int, path: str = "") -> Optional[bytes]:
    """All bytes of a small file, or None where none is; refuses one with more than `cap` bytes."""
    try:
        with opened(name, dir_fd, path=path) as fd:
            size = os.fstat(fd).st_size
            if size > cap:
                raise _foreign(path or name, "it has %d bytes, at most %d are read" % (size, cap))
            return os.pread(fd, cap, 0)
    except FileNotFoundError:
        return None


def parsed(data: Optional[bytes]) -> Optional[Dict[str, Any]]:
    """The JSON object that a file holds, or None where it holds no such thing."""
    try:
        value = json.loads(data.decode("utf-8")) if data else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Share:
    """A directory of instances, held open, and its owner. Everything below it is opened by that user, name by name."""

    def __init__(self, path: str) -> None:
        note("open the share %s" % path)
        self.path, self.owner = path, os.stat(path)
        with self.mine():
            self.fd = open_directory(path)

    def mine(self) -> Any:
        """Context in which this process is the share's owner."""
        return as_user(self.owner.st_uid, self.owner.st_gid)

    def folder(self, relative: str) -> int:
        """A directory below; refuses where a name of its path is a link, or anything else that is no directory."""
        with self.mine():
            fd = open_directory(".", self.fd)
            for name in [word for word in relative.split("/") if word]:
                above = fd
                try:
                    fd = open_directory(name, above)
                except OSError as error:
                    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                        raise
                    found = "%s is not a directory (%s)" % (plain(name), reason(error))
                    raise _foreign("%s/%s" % (self.path, relative), found)
                finally:
                    os.close(above)
            return fd

    @contextlib.contextmanager
    def within(self, relative: str) -> Iterator[Tuple[int, str]]:
        """The directory of a file below, as its owner, and the file's last name."""
        note("open %s/%s" % (self.path, plain(relative)))
        above, _slash, name = relative.rpartition("/")
        fd = self.folder(above)
        try:
            with self.mine():
                yield fd, name
        finally:
            os.close(fd)

    def file(self, relative: str, links: Optional[int] = None) -> int:
        """A regular file below, open for reading."""
        with self.within(relative) as (above, name):
            return open_file(name, above, path="%s/%s" % (self.path, relative), links=links)

    def look(self, relative: str) -> Optional[os.stat_result]:
        """lstat of a name below after asking the server, or None."""
        try:
            with self.within(relative) as (above, name):
                return look(name, above)
        except FileNotFoundError:
            return None

    def read(self, relative: str, cap: int = JSON_CAP) -> Optional[bytes]:
        """All bytes of a small file below, or None where none is."""
        try:
            with self.within(relative) as (above, name):
                return read(name, above, cap, "%s/%s" % (self.path, relative))
        except FileNotFoundError:
            return None

    def shown(self, relative: str, fd: int) -> Shown:
        """An open file below, as a tool in a cage is to see it: that file under its path, or nothing."""
        found = os.fstat(fd)
        path, user = "%s/%s" % (self.path, relative), (self.owner.st_uid, self.owner.st_gid)
        return Shown(path, found.st_dev, found.st_ino, user)

    def close(self) -> None:
        """Closes the share's directory; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# Chains of base files

PROTOCOL = re.compile(r"[^/:]*:")  # how QEMU tells "nbd:…" and "json:…" from a path (path_has_protocol)
CHAIN_CAP = 16


class Base:
    """A file that an image stands on, as its header names it: where it lies below the share, or why it is refused."""

    def __init__(self, name: bytes, folder: str, share: str) -> None:
        self.text = name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        self.relative, self.trouble = "", ""
        self.is_relative = not self.text.startswith("/")
        named = "its backing file %s" % (plain(self.text) or "without a name")
        if not self.text.isprintable() or not self.text:
            self.trouble = "%s has no plain name" % named
        elif PROTOCOL.match(self.text):
            self.trouble = "%s is not a plain path" % named
        elif self.is_relative:
            self._climb(folder, named)
        elif not self.text.startswith(share + "/"):
            self.trouble = "%s leads to outside the share" % named
        else:
            self._below(self.text[len(share) + 1 :].split("/"), named)

    def _climb(self, folder: str, named: str) -> None:
        at, words = [word for word in folder.split("/") if word], self.text.split("/")
        while words and words[0] in ("..", "."):
            if words.pop(0) == "..":
                if not at:
                    self.trouble = "%s leads to outside the share" % named
                    return
                at.pop()
        self._below(at + words, named)

    def _below(self, words: List[str], named: str) -> None:
        # Only at its beginning: what lies before a later ".." might be a link, and lead elsewhere than the text says.
        if ".." in words or not all(words[-1:]):
            self.trouble = "%s leads up and down again" % named
        self.relative = "/".join(word for word in words if word not in ("", "."))
