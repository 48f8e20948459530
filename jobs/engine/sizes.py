"""Sizes in bytes, and how they are said."""

from __future__ import annotations

import math
from typing import Final

MIB: Final = 1 << 20
CLUSTER: Final = 1 << 16


def qcow2_size(virtual: int) -> int:
    """Bytes of a qcow2 file in which every cluster of `virtual` bytes is allocated."""
    data = math.ceil(virtual / CLUSTER)
    tables = math.ceil(data / (CLUSTER // 8))
    directory = math.ceil(tables / (CLUSTER // 8))
    counts = math.ceil((data + tables + directory + 2) / (CLUSTER // 2))
    return (data + tables + directory + counts + 2) * CLUSTER


def in_mib(size: int) -> str:
    """A size in words, in whole MiB, as in `1,024 MiB`."""
    return f"{size / MIB:,.0f} MiB"
