"""hostctl as one executable file, and the hash over its sources; for volmig alone, no call on a hypervisor needs it."""

import hashlib
import io
import os
import pkgutil
import zipfile
from typing import Dict

PACKAGE = __name__.rpartition(".")[0]
SHEBANG = b"#!/usr/bin/python3 -I\n"
START = b"\n\nsys.exit(start('%s'))\n"


def bundle() -> bytes:
    """One executable file that holds this package; the same sources give the same bytes."""
    archive = io.BytesIO()
    files = {"hostctl/" + name: text for name, text in _sources().items()}
    files["__main__.py"] = _source("bootstrap.py") + START % digest().encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return SHEBANG + archive.getvalue()


def digest() -> str:
    """First 16 hex digits of the SHA-256 over all source files: the same unpacked and inside the archive."""
    found = hashlib.sha256()
    for name, text in sorted(_sources().items()):
        found.update(b"%s\0%d\0" % (name.encode(), len(text)) + text)
    return found.hexdigest()[:16]


def _sources() -> Dict[str, bytes]:
    names = [module.name + ".py" for module in pkgutil.iter_modules([os.path.dirname(__file__)])] + ["__init__.py"]
    return {name: _source(name) for name in names}


def _source(name: str) -> bytes:
    text = pkgutil.get_data(PACKAGE, name)
    if text is None:
        raise FileNotFoundError("hostctl source %s is missing from %s" % (name, os.path.dirname(__file__)))
    return text
