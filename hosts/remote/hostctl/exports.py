"""What a host exports by NFS: by the kernel's list, and by the files that bring it back."""

import os
import re
from typing import List, NamedTuple, Tuple

from .act import Refused
from .commands import NOT_INSTALLED, Work

OWN_FILE = re.compile(r"volmig-[0-9a-f]{32}\.exports\Z")
EXPORTS = "/etc/exports.d"  # exportfs(8): every file there whose name ends in .exports is read, but hidden ones


def exports_file(mountpoint: str) -> str:
    """The file under exports.d that keeps one export of volmig, exports(5)."""
    return "%s/volmig-%s.exports" % (EXPORTS, os.path.basename(mountpoint))


class Export(NamedTuple):
    """One row of the kernel's export list."""

    path: str
    client: str
    options: Tuple[str, ...]


def exports(work: Work) -> List[Export]:
    """All that is exported; refuses when exportfs does not say, for then nothing is known to be withdrawn."""
    output = work.ask("exportfs", "-s", good=(0, NOT_INSTALLED))
    if any(line[:1] not in ("/", '"', " ", "\t", "") for line in output.out.splitlines()):
        raise Refused(
            "probe-failed",
            "run exportfs -s",
            "it returned %.200r" % output.out,
            "Run that command on the host manually; resume when it responds.",
        )
    rows = re.findall(r"^(/\S*)\s+([^\s()]+)\(([^)]*)\)\s*$", output.out, re.MULTILINE)
    return [Export(path, client, tuple(options.split(","))) for path, client, options in rows]


def recorded() -> List[Tuple[str, str]]:
    """Path and client of every export that has a file of volmig's."""
    try:
        names = [name for name in sorted(os.listdir(EXPORTS)) if OWN_FILE.match(name)]
    except OSError:
        return []
    words = [_text(os.path.join(EXPORTS, name)).split() for name in names]
    return [(row[0], row[1].partition("(")[0]) for row in words if len(row) == 2]


def all_exports(work: Work) -> List[Tuple[str, str]]:
    """Path and client of what is exported, and of what is in a file only: the next exportfs -r brings that back."""
    return sorted({(row.path, row.client) for row in exports(work)} | set(recorded()))


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read(4096)
    except OSError:
        return ""
