"""Which hostctl this is: a hash over its sources, which the archive that holds them was given when it was packed.

A call on a hypervisor does not count it anew: reading all sources took 15 ms of some 120.

The hash names one version; the protocol says which requests a version understands. PROTOCOL is raised by one, once in a
release, when a request or an answer has a field or a verb that the release before does not know. OLDEST is the oldest
protocol whose requests are still understood. Versions before protocol 2 do not mention it in their answers.
"""

import os
import re
import sys
from typing import List

PROTOCOL = 2
OLDEST = 1
ARCHIVE = r"hostctl-([0-9a-f]{16})\Z"  # several versions lie side by side under such names

_digest = ""


def told(digest: str) -> None:
    """What the archive says, before anything else runs."""
    global _digest
    _digest = digest


def source_hash() -> str:
    """First 16 hex digits of the SHA-256 over all source files."""
    if not _digest:
        from .pack import digest

        told(digest())
    return _digest


def installed() -> List[str]:
    """The hashes of all versions that lie beside the running archive, its own among them."""
    try:
        beside = versions_in(os.path.dirname(os.path.abspath(sys.argv[0])))
    except OSError:
        beside = []
    return sorted({source_hash(), *beside})


def versions_in(directory: str) -> List[str]:
    """The hashes of all versions that a directory holds."""
    found = [re.match(ARCHIVE, name) for name in os.listdir(directory)]
    return sorted(each.group(1) for each in found if each)
