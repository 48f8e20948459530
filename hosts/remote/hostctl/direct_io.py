"""Reading and writing past the cache (O_DIRECT), so that a filer answers and not this host's memory."""

import mmap
import os
from typing import Iterator


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it: write(2) may write less than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_direct(fd: int, chunk: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file that was opened with untrusted.open_direct."""
    buffer = mmap.mmap(-1, chunk)  # O_DIRECT wants memory aligned to pages
    try:
        while True:
            count = os.readv(fd, [buffer])
            if not count:
                return
            yield buffer[:count]
    finally:
        buffer.close()
