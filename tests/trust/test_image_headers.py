"""Image headers against an oracle: what OpenStack's own inspector (oslo.utils) calls unsafe, hostctl refuses too."""

import logging
import random
import struct
import subprocess
from collections.abc import Iterator

import pytest
from oslo_utils.imageutils.format_inspector import QcowInspector, SafetyCheckFailed

from hosts.remote.hostctl.commands import find
from hosts.remote.hostctl.qcow2 import HEAD, Header
from tests.hostctl.conftest import qcow2

from .amounts import amount, figure

SIZE = 1 << 30
FIELDS = ((8, ">Q"), (16, ">I"), (20, ">I"), (24, ">Q"), (32, ">I"), (36, ">I"), (56, ">I"), (60, ">I"), (72, ">Q"))
FIELDS += ((80, ">Q"), (88, ">Q"), (96, ">I"), (100, ">I"), (4, ">I"))

# It warns of every image that it refuses.
logging.getLogger("oslo_utils.imageutils.format_inspector").setLevel(logging.CRITICAL)


def unsafe(data: bytes) -> set[str]:
    """The checks of the inspector that this image fails; empty for what it takes for no qcow2 at all."""
    inspector = QcowInspector()
    for at in range(0, 1024, 512):
        inspector.eat_chunk(data[at : at + 512])
    if not inspector.format_match:
        return set()
    try:
        inspector.safety_check()
    except SafetyCheckFailed as failed:
        return set(failed.failures)
    return set()


def refused(data: bytes) -> bool:
    """As a live disk: by its own header, or because it stands on a base, which is then judged by itself."""
    header = Header(data[:HEAD])
    return not header.is_qcow2 or bool(header.hazards() or header.backing)


def falsely(data: bytes, failed: set[str]) -> bool:
    """Version 2 has no feature bits; the inspector reads a bit of what follows its header all the same."""
    return data[4:8] == b"\0\0\0\2" and failed == {"data_file"}


def mutated(count: int, seed: int) -> Iterator[bytes]:
    luck = random.Random(seed)
    plain = [qcow2(SIZE), qcow2(SIZE, version=2), qcow2(SIZE, base=b"/base"), qcow2(SIZE, incompatible=4)]
    for _ in range(count):
        data = bytearray(luck.choice(plain)[:1024])
        for _ in range(luck.randint(1, 4)):
            if luck.random() < 0.5:
                at, form = luck.choice(FIELDS)
                width = struct.calcsize(form) * 8
                struct.pack_into(
                    form, data, at, luck.choice((0, 1, 1 << luck.randrange(width), luck.getrandbits(width)))
                )
            else:
                data[luck.randrange(4, 128)] = luck.getrandbits(8)
        yield bytes(data)


def test_whatever_the_inspector_refuses_is_refused():
    count, bad, both, ours = amount(300_000, 20_000), 0, 0, 0
    for data in mutated(count, 11):
        failed = unsafe(data)
        if failed and not falsely(data, failed):
            bad += 1
            both += refused(data)
            assert refused(data), (failed, data[:128].hex())
        else:
            ours += refused(data)
    assert bad > count // 10
    figure(f"{count} mutated headers: the inspector refuses {bad}, hostctl {both} of these and {ours} others")


def test_what_the_inspector_and_qemu_call_sound_is_not_refused(tmp_path):
    if not find("qemu-img"):
        pytest.skip("needs qemu-img")
    path = tmp_path / "image"
    for options in ("compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on"):
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "1G"]
        subprocess.run(words, check=True)
        data = path.read_bytes()[:HEAD]
        assert (unsafe(data), Header(data).hazards()) == (set(), []), options
        assert Header(data).objections(SIZE) == []


@pytest.mark.parametrize("kind", ["backing", "data file", "unknown bit", "version 1", "extended L2"])
def test_each_of_the_inspectors_checks_has_its_own_sentence(kind):
    data, says = {
        "backing": (qcow2(SIZE, base=b"/x"), "backing file"),
        "data file": (qcow2(SIZE, incompatible=4), "data file"),
        "unknown bit": (qcow2(SIZE, incompatible=1 << 40), "unknown incompatible"),
        "version 1": (qcow2(SIZE, version=1), "version"),
        "extended L2": (qcow2(SIZE, incompatible=16), "extended L2"),
    }[kind]
    assert unsafe(data)
    assert says in ", ".join(Header(data).objections(SIZE))


def test_no_header_whatever_makes_the_reader_fail():
    luck = random.Random(12)
    for _ in range(amount(200_000, 5_000)):
        data = b"QFI\xfb" + bytes(3) + luck.choice((b"\2", b"\3")) + luck.randbytes(luck.randrange(2048))
        header = Header(data)
        assert isinstance(header.hazards() + header.objections(SIZE), list)
    assert Header(b"").objections(SIZE) == ["it is not a qcow2 image"]
