"""hostctl: volmig's one small program on each hypervisor, standard library of Python 3.6 and later only."""

import hashlib
import io
import os
import pkgutil
import zipfile
from typing import Dict

from .act import Act
from .verbs import acts

__all__ = ["Act", "acts", "bundle", "source_hash"]

SHEBANG = b"#!/usr/bin/python3 -I\n"
START = b"\n\nsys.exit(start('%s'))\n"


def source_hash() -> str:
    """First 16 hex digits of the SHA-256 over all source files: the same unpacked and inside the archive."""
    digest = hashlib.sha256()
    for name, text in sorted(_sources().items()):
        digest.update(b"%s\0%d\0" % (name.encode(), len(text)) + text)
    return digest.hexdigest()[:16]


def bundle() -> bytes:
    """One executable file that holds this package; the same sources give the same bytes."""
    archive = io.BytesIO()
    files = {"hostctl/" + name: text for name, text in _sources().items()}
    files["__main__.py"] = _source("start.py") + START % source_hash().encode()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return SHEBANG + archive.getvalue()


def _sources() -> Dict[str, bytes]:
    names = [module.name + ".py" for module in pkgutil.iter_modules(__path__)] + ["__init__.py"]
    return {name: _source(name) for name in names}


def _source(name: str) -> bytes:
    text = pkgutil.get_data(__name__, name)
    if text is None:
        raise FileNotFoundError("hostctl source %s is missing from %s" % (name, os.path.dirname(__file__)))
    return text
