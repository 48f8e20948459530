"""The qcow2 header, parsed here before any qemu tool opens the file.

Layout and bits: docs/interop/qcow2.txt of QEMU. Limits: block/qcow2.h of QEMU 8 (QCOW_MAX_L1_SIZE and its neighbours).
"""

import os
import struct
from typing import Iterator, List, Optional, Tuple

from .act import Refused

MAGIC = b"QFI\xfb"
HEAD = 65536  # bytes of a file that are read; a header with extensions that end later is objected to
DIRTY, CORRUPT, DATA_FILE, COMPRESSION = 1, 2, 4, 8  # incompatible features
EXTENDED_L2 = 16
NO_MORE, BACKING_FORMAT, BITMAPS, DATA_FILE_NAME = 0, 0xE2792ACA, 0x23852875, 0x44415441  # header extensions
MAX_SIZE = 1 << 50  # bytes of a virtual disk; no hypervisor has a petabyte
MAX_L1, MAX_REFCOUNTS, MAX_SNAPSHOTS = 32 << 20, 8 << 20, 65536
MAX_BITMAPS, MAX_BITMAP_DIRECTORY = 65535, 1024 * 65535
MAX_BASE_NAME = 1023

Judged = Tuple[Tuple[bool, str], ...]


class Header:
    """What the first 64 KiB of a file say. `hazards` are reasons not to let any tool open it."""

    def __init__(self, data: bytes) -> None:
        magic, self.version, self.backing, self.backing_size, self.cluster_bits = struct.unpack(
            ">4sIQII", data[:24].ljust(24, b"\0")
        )
        self.is_qcow2 = magic == MAGIC and len(data) >= 104
        self.size = self.crypt = self.incompatible = 0
        self.l1_size = self.refcount_clusters = self.snapshots = self.bitmaps = self.bitmap_directory = 0
        self.refcount_order, self.length, self.compression = 4, 72, 0
        self.extensions: List[int] = []
        self.whole = True  # every extension ends within its cluster and within `data`
        self.base = self.base_format = b""
        if self.is_qcow2:
            self._fields(data)
            end = min(self._cluster(), HEAD)
            self._extensions(data[: min(self.backing, end) if self.backing else end])

    def _fields(self, data: bytes) -> None:
        self.size, self.crypt, self.l1_size = struct.unpack(">QII", data[24:40])
        self.refcount_clusters, self.snapshots = struct.unpack(">II", data[56:64])
        if self.version >= 3:
            self.incompatible = struct.unpack(">Q", data[72:80])[0]
            self.refcount_order, self.length = struct.unpack(">II", data[96:104])
            self.compression = data[104] if self.length > 104 and len(data) > 104 else 0
        self.base = data[self.backing : self.backing + min(self.backing_size, MAX_BASE_NAME)] if self.backing else b""

    def _cluster(self) -> int:
        return 1 << min(int(self.cluster_bits), 21)

    def _extensions(self, data: bytes) -> None:
        place = self.length
        while place + 8 <= len(data):
            kind, length = struct.unpack(">II", data[place : place + 8])
            if kind == NO_MORE:
                return
            body = data[place + 8 : place + 8 + length]
            self.whole = self.whole and len(body) == length
            self.extensions.append(kind)
            self._extension(kind, body)
            place += 8 + (length + 7) // 8 * 8
        # Where it ends at the backing file's name, or at the end of its cluster, no end mark is needed.
        self.whole = self.whole and place <= len(data)

    def _extension(self, kind: int, body: bytes) -> None:
        if kind == BACKING_FORMAT:
            self.base_format = body[:64]
        if kind == BITMAPS:
            self.bitmaps, _reserved, self.bitmap_directory = struct.unpack(">IIQ", body[:16].ljust(16, b"\0"))

    @property
    def dirty(self) -> bool:
        """Reference counts may be wrong: the image was in use with lazy refcounts, docs/interop/qcow2.txt of QEMU."""
        return bool(self.incompatible & DIRTY)

    @property
    def corrupt(self) -> bool:
        """QEMU found its metadata damaged; it then opens the image read-only."""
        return bool(self.incompatible & CORRUPT)

    def hazards(self) -> List[str]:
        """Why no tool may open this image, whatever it stands on; empty for a file that is no qcow2 image."""
        return list(_holding(self._hazards())) if self.is_qcow2 else []

    def _hazards(self) -> Judged:
        unknown = self.incompatible & ~(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2)
        names_data = bool(self.incompatible & DATA_FILE) or DATA_FILE_NAME in self.extensions
        tables = "its %s would take %d bytes of memory"
        refcounts = self.refcount_clusters << min(self.cluster_bits, 21)
        return (
            (self.version not in (2, 3), "its version is %d" % self.version),
            (bool(self.crypt), "it is encrypted (method %d)" % self.crypt),
            (names_data, "it names an external data file"),
            (bool(self.incompatible & EXTENDED_L2), "it uses extended L2 entries"),
            (bool(unknown), "it has unknown incompatible features %#x" % unknown),
            (bool(self.compression > 1), "it is compressed in an unknown way (%d)" % self.compression),
            (not 9 <= self.cluster_bits <= 21, "its clusters have 2^%d bytes" % self.cluster_bits),
            (not self._is_length(), "its header has %d bytes" % self.length),
            (not self.whole, "a header extension ends outside the header"),
            (self.refcount_order > 6, "its reference counts have 2^%d bits" % self.refcount_order),
            (self.size > MAX_SIZE, "its virtual size is %d bytes" % self.size),
            (self.l1_size * 8 > MAX_L1, tables % ("L1 table", self.l1_size * 8)),
            (refcounts > MAX_REFCOUNTS, tables % ("refcount table", refcounts)),
            (self.snapshots > MAX_SNAPSHOTS, "it has %d internal snapshots" % self.snapshots),
            (self.bitmaps > MAX_BITMAPS, "it has %d bitmaps" % self.bitmaps),
            (self.bitmap_directory > MAX_BITMAP_DIRECTORY, tables % ("bitmap directory", self.bitmap_directory)),
            (self._is_base_misplaced(), "the name of its backing file is outside the header"),
        )

    def _is_length(self) -> bool:
        return self.version == 2 or (self.length % 8 == 0 and 104 <= self.length <= self._cluster())

    def _is_base_misplaced(self) -> bool:
        end = self.backing + self.backing_size
        return bool(self.backing) and (self.backing_size > MAX_BASE_NAME or end > min(self._cluster(), HEAD))

    def objections(self, size: int) -> List[str]:
        """Why this is not the plain, self-contained image of `size` bytes that we wrote; empty when it is."""
        if not self.is_qcow2:
            return ["it is not a qcow2 image"]
        ours: Judged = (
            (bool(self.backing), "it names a backing file"),
            (bool(self.incompatible), "it has incompatible features %#x" % self.incompatible),
            (bool(self.snapshots), "it has internal snapshots"),
            (bool(self.bitmaps), "it has bitmaps"),
            (self.size != size, "its virtual size is %d, not %d" % (self.size, size)),
        )
        return self.hazards() + list(_holding(ours))


def _holding(judged: Judged) -> Iterator[str]:
    return (sentence for holds, sentence in judged if holds)


def header_of(fd: int) -> Header:
    """The header of an open file."""
    return Header(os.pread(fd, HEAD, 0))


def check_header(fd: int, path: str, size: int) -> None:
    """Refuse an image that is not plain qcow2 of the planned size (`fd` is open for reading)."""
    wrong = header_of(fd).objections(size)
    if wrong:
        raise Refused(
            "bad-image", "read the header of %s" % path, ", ".join(wrong), "Discard the copy and convert again."
        )


def check_hazards(header: Optional[Header], path: str) -> None:
    """Refuse to go on with an image that QEMU would follow to other files, or could not open."""
    wrong = header.hazards() if header else []
    if wrong:
        raise Refused(
            "bad-image",
            "read the header of %s" % path,
            ", ".join(wrong),
            "The image was changed after it was checked. Inspect it by hand, as an unprivileged user.",
        )
