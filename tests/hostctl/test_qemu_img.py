"""Images and progress: hostile headers are refused before qemu sees them, partial records are not believed."""

import struct

import pytest

from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.qcow2 import Header, check_header
from hosts.remote.hostctl.qemu_img import info_objections, percent, sandbox
from hosts.remote.hostctl.verbs import VERBS

from .conftest import qcow2

SIZE = 1 << 30


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_image_has_nothing_against_it(version):
    assert Header(qcow2(SIZE, version)).objections(SIZE) == []


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (qcow2(SIZE, backing=512), "backing"),
        (qcow2(SIZE, crypt=2), "encrypted"),
        (qcow2(SIZE, incompatible=4), "incompatible"),
        (qcow2(SIZE, extensions=struct.pack(">II8s", 0x44415441, 5, b"/etc/")), "data file"),
        (qcow2(SIZE + 512), "virtual size"),
        (qcow2(SIZE, version=4), "version"),
        (b"\0" * 65536, "not a qcow2"),
        (qcow2(SIZE)[:50], "not a qcow2"),
        (b"", "not a qcow2"),
        (qcow2(SIZE, extensions=struct.pack(">II", 0xE2792ACA, 0xFFFFFFFF))[:200], "extension"),
    ],
)
def test_every_other_header_is_objected_to(image, word):
    found = ", ".join(Header(image).objections(SIZE))
    assert word in found
    assert bool(found) == bool(word)


def test_a_bad_header_is_refused(tmp_path):
    (tmp_path / "image").write_bytes(qcow2(SIZE, backing=512))
    with (tmp_path / "image").open("rb") as file, pytest.raises(Refused, match="backing"):
        check_header(file.fileno(), "image", SIZE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", None),
        (b"    (12.5", None),
        (b"    (12.50/100%)", None),
        (b"    (12.50/100%)\r", 12.5),
        (b"    (12.50/100%)\r    (99.0", 12.5),
        (b"    (1.00/100%)\r    (2.00/100%)\r", 2.0),
        (b"50/100%)\r    (3.00/100%)\r", 3.0),
        (b"    (100.00/100%)\r    (100.00/100%)\n", 100.0),
        (b"garbage\r", None),
    ],
)
def test_only_the_last_whole_record_counts(text, found):
    assert percent(text) == found


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"virtual-size": 5}, "virtual size"),
        ({"backing-filename": "/x"}, "backing"),
        ({"dirty-flag": True}, "dirty"),
        ({"encrypted": True}, "encryption"),
        ({"format": "raw"}, "format"),
        ({"format-specific": {"data": {"data-file": "/x"}}}, "data file"),
        ({"format-specific": {"data": {"corrupt": True}}}, "corrupt"),
    ],
)
def test_what_qemu_says_of_an_image_is_judged(changed, word):
    plain = {"format": "qcow2", "virtual-size": SIZE, "dirty-flag": False}
    assert info_objections(plain, SIZE) == []
    assert word in " ".join(info_objections(dict(plain, **changed), SIZE))


def test_the_kernel_lets_convert_only_read_the_source():
    properties = sandbox({"vg": "v", "lv": "l", "mountpoint": "/mnt/volmig/x"}, "a-job")
    assert {"DevicePolicy=closed", "DeviceAllow=/dev/v/l r", "ProtectSystem=strict"} <= set(properties)


def test_convert_and_compare_write_nowhere_but_in_the_directories_of_their_own_job():
    """A fault in a tool that reads a guest's bytes reaches neither the owner of this host nor another job's fence."""
    for verb in ("convert", "compare"):
        properties = VERBS[verb].sandbox({"vg": "v", "lv": "l", "mountpoint": "/mnt/volmig/x"}, "a-job")
        assert [each for each in properties if each.startswith("ReadWritePaths")] == [
            "ReadWritePaths=-/mnt/volmig/x /var/lib/volmig/a-job /run/volmig/a-job"
        ]
