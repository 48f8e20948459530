"""inotify, as far as a test needs it: who read or opened a file, however it was named and by whatever program."""

import ctypes
import os
import struct
from pathlib import Path

ACCESS, OPEN = 0x1, 0x20
EVENT = struct.Struct("iIII")


class Watch:
    """Counts how often files were read (and opened) since it began; by inode, so a second name makes no difference."""

    def __init__(self, files: dict[Path, int]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.names = {}
        for path, mask in files.items():
            number = libc.inotify_add_watch(self.fd, os.fsencode(path), mask)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self.names[number] = path

    def seen(self) -> list[tuple[str, int]]:
        """What happened since it was asked last: name and event, each once for every read."""
        found = []
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                number, mask, _cookie, length = EVENT.unpack_from(data)
                found.append((self.names[number].name, mask))
                data = data[EVENT.size + length :]

    def close(self) -> None:
        os.close(self.fd)
