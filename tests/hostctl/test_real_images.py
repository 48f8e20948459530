"""The real qemu-img between the real verbs, on files: conversions that are killed, and bits that flip on the way."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import lvm, mountpoints, stage
from hosts.remote.hostctl.act import Stop
from hosts.remote.hostctl.commands import Work
from hosts.remote.hostctl.verbs import VERBS

pytestmark = pytest.mark.torture
MIB = 1 << 20
SIZE = 8 * MIB
WAY = ("seal", "compare", "stage", "stage_verify")
COUNTED = {"writes": 1, "sectors_written": 8}


class Place:
    """A source of random bytes with holes, and the directories of relay and share."""

    def __init__(self, root, job):
        self.job, self.source, self.relay, self.instances = job, root / "source", root / "relay", root / "instances"
        self.relay.mkdir()
        self.instances.mkdir()
        data = bytearray(os.urandom(SIZE))
        data[MIB : 3 * MIB] = bytes(2 * MIB)
        self.source.write_bytes(data)
        self.part, self.whole = self.relay / "disk.part", self.relay / "disk.qcow2"
        self.staged = self.instances / ".volmig" / job / "disk.new"
        self.known = {}

    def do(self, verb, rate=0):
        args = {"vg": "vg", "lv": "lv", "lv_uuid": "u", "size": SIZE, "virtual_size": SIZE, "rate": rate}
        args |= {"mountpoint": str(self.relay), "instances": str(self.instances), "share_source": "filer:/vol"}
        found = VERBS[verb].run(Work({**args, **self.known}, self.job, VERBS[verb].acts))
        self.known |= {name: found[name] for name in ("sha256", "file_size") if name in found}

    def begin(self, image):
        """As after a conversion that went well."""
        for path in (self.whole, self.staged):
            path.unlink(missing_ok=True)
        self.part.write_bytes(image)
        self.known = {}

    def is_equal(self):
        words = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", self.source, self.staged]
        return subprocess.run(words).returncode == 0

    def at_work(self):
        """The qemu-img processes that work on this place."""
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (directory / "cmdline").read_bytes()
                if b"qemu-img" in words and str(self.relay).encode() in words:
                    yield int(directory.name)


@pytest.fixture
def place(tmp_path, job, monkeypatch):
    made = Place(tmp_path, job)
    monkeypatch.setattr(lvm, "device", lambda args: str(made.source))
    quiet = SimpleNamespace(check=lambda: None, check_counters=lambda: COUNTED)  # fenced: nobody writes to it
    monkeypatch.setattr(lvm, "Source", lambda args, job: quiet)
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    monkeypatch.setattr(stage, "check_share", lambda args: None)
    made.do("convert")
    made.image = made.part.read_bytes()
    return made


def flip(path, at, bit):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def fate(place, luck, moment):
    """What becomes of an image in which one bit flips before this verb: the verb that refused it, or none did."""
    place.begin(place.image)
    for verb in WAY:
        if verb == moment:
            files = [each for each in (place.staged, place.whole, place.part) if each.exists()]
            flip(files[0], luck.randrange(files[0].stat().st_size), luck.randrange(8))
        try:
            place.do(verb)
        except Stop:
            return verb
    return ""


def test_of_a_thousand_bits_that_flip_between_conversion_and_last_hash_none_gets_through(place):
    luck, caught, harmless = random.Random(3), Counter(), 0
    for trial in range(1000):
        moment = WAY[trial % len(WAY)]
        refused = fate(place, luck, moment)
        caught[moment, refused] += 1
        if not refused:
            assert moment == "seal", "once its hash is noted, every bit counts"
            assert place.is_equal(), "a bit got through"
            harmless += 1
    told = ", ".join(f"before {moment} by {verb or 'nothing'}: {count}" for (moment, verb), count in caught.items())
    print(f"\nflipped {told}; the {harmless} that nothing refused stand where the image keeps nothing")


def begun(place):
    """A conversion in a process of its own, so slow that it can be met half way."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            place.do("convert", rate=4 * MIB)
            os._exit(0)
        os._exit(1)
    return child


def test_of_two_hundred_conversions_that_are_killed_half_way_none_is_accepted(place):
    luck, partial = random.Random(4), SimpleNamespace(killed=0, passed_the_check=0)
    while partial.killed < 200:
        place.begin(b"")
        place.part.unlink()
        child = begun(place)
        time.sleep(luck.uniform(0.05, 0.3))
        half_way = list(place.at_work())
        for pid in [*half_way, child]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        while list(place.at_work()):
            time.sleep(0.01)
        if not half_way:
            continue
        partial.killed += 1
        if not place.part.exists():
            continue
        check = ["qemu-img", "check", "-q", "-f", "qcow2", place.part]
        partial.passed_the_check += subprocess.run(check, stderr=subprocess.DEVNULL).returncode == 0
        with pytest.raises(Stop):
            place.do("compare")
        assert not place.whole.exists()
    print(f"\nkilled 200, of which {partial.passed_the_check} passed qemu-img check; accepted none")
    place.do("convert")
    place.do("compare")
    assert place.whole.exists(), "and the next one is accepted"
