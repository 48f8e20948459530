"""A host in a temporary directory: store, units that run in this process, and small qcow2 images."""

import struct
import uuid
from pathlib import Path

import pytest

from hosts.remote.hostctl import transient_units
from hosts.remote.hostctl.request import Desk
from tests import policies


class FakeUnits(transient_units.Units):
    """Units that the test starts, ends or loses at will; `run_now` runs the work before start returns."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.started: list[tuple[str, list[str], list[str]]] = []
        self.desk: Desk | None = None
        self.run_now = True
        self.trouble = ""

    def alive(self, unit):
        return unit in self.live

    def start(self, unit, properties, argv):
        self.started.append((unit, properties, argv))
        if self.trouble:
            return self.trouble
        self.live.add(unit)
        if self.run_now:
            self.desk.run_unit(*argv[-2:])
            self.live.discard(unit)
        return ""

    def stop(self, unit):
        self.live.discard(unit)


@pytest.fixture
def job() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    units = FakeUnits()
    rules = policies.reading("dst", *policies.OF_ROLE)
    units.desk = Desk(units, str(tmp_path / "state"), str(tmp_path / "run"), 0.2, lambda: rules)
    return units.desk


def qcow2(
    size: int,
    version: int = 3,
    backing: int = 0,
    crypt: int = 0,
    incompatible: int = 0,
    extensions: bytes = b"",
    base: bytes = b"",
    snapshots: int = 0,
) -> bytes:
    """A qcow2 header as its specification describes it; `base` is the name of its backing file."""
    backing = backing or (4096 if base else 0)
    named = (backing, len(base), 16, size, crypt)
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, *named, 1, 0x30000, 0x10000, 1, snapshots, 0)
    tail = struct.pack(">QQQII", incompatible, 0, 0, 4, 104) if version >= 3 else b""
    whole = bytearray((head + tail + extensions).ljust(65536, b"\0"))
    whole[backing : backing + len(base)] = base if base else b""
    return bytes(whole)
