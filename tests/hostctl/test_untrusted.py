"""The one place that opens what others may have written: regular files alone, by the owner of the share."""

import errno
import os
import socket
import stat
import struct

import pytest

from hosts.remote.hostctl import images, untrusted
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.images import Image
from hosts.remote.hostctl.privileges import as_user
from hosts.remote.hostctl.untrusted import Base, Share

from .conftest import qcow2

NOVA = 64055
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes the share's owner")


def a_link(path):
    path.symlink_to("/etc/passwd")


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def a_directory(path):
    path.mkdir()


def a_device(path):
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def a_second_name(path):
    path.with_name("other").write_text("not ours")
    path.hardlink_to(path.with_name("other"))


KINDS = [a_link, a_pipe, a_socket, a_directory, pytest.param(a_device, marks=as_root), a_second_name]


@pytest.mark.parametrize("make", KINDS)
def test_nothing_but_a_regular_file_with_one_name_is_opened(tmp_path, make):
    make(tmp_path / "disk")
    with pytest.raises(Refused) as refused:
        untrusted.open_file(str(tmp_path / "disk"), links=1)
    assert refused.value.code == "foreign-file"


@pytest.mark.parametrize("make", KINDS)
def test_what_takes_the_name_between_the_check_and_the_opening_is_refused_too(tmp_path, make, monkeypatch):
    (tmp_path / "plain").touch()
    plain = os.stat(tmp_path / "plain")
    make(tmp_path / "disk")
    monkeypatch.setattr(os, "stat", lambda *_, **__: plain)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused) as refused:
        untrusted.open_file(str(tmp_path / "disk"), links=1)
    assert refused.value.code == "foreign-file"
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


@as_root
def test_what_the_owner_of_the_share_may_not_read_is_not_read_as_root(tmp_path):
    for path in (tmp_path, *tmp_path.parents[:-1]):
        path.chmod(path.stat().st_mode | 0o111)
    (tmp_path / "disk").touch(mode=0o600)
    fd = untrusted.open_directory(str(tmp_path))
    try:
        with as_user(NOVA, NOVA), pytest.raises(Refused) as refused:
            untrusted.open_file("disk", fd)
    finally:
        os.close(fd)
    assert refused.value.code == "not-readable"
    assert f"user {NOVA}, who owns the share" in refused.value.found


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE])
def test_every_other_error_of_opening_is_passed_on(tmp_path, monkeypatch, number):
    (tmp_path / "disk").touch()

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    for opening in (untrusted.open_file, untrusted.open_direct):
        with pytest.raises(OSError, match=os.strerror(number)):
            opening(str(tmp_path / "disk"))


def test_a_directory_with_too_many_names_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "NAMES_CAP", 2)
    fd = untrusted.open_directory(str(tmp_path))
    try:
        for number in range(2):
            (tmp_path / str(number)).touch()
        assert untrusted.names(fd) == ["0", "1"]
        (tmp_path / "2").touch()
        with pytest.raises(Refused, match="it has 3 entries; at most 2 are read"):
            untrusted.names(fd)
    finally:
        os.close(fd)


@as_root
def test_what_lies_below_a_share_is_found_name_by_name_and_what_is_not_there_is_none(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text('{"x": 1}')
    (tmp_path / "link").symlink_to("a")
    with Share(str(tmp_path)) as share:
        assert share.read("a/file") == b'{"x": 1}'
        assert share.look("a/file").st_size == 8
        assert (share.read("b/file"), share.look("b/file"), share.read("a/none")) == (None, None, None)
        with pytest.raises(Refused, match="at most 4 are read"):
            share.read("a/file", 4)
        with pytest.raises(Refused, match="link is not a directory"):
            share.read("link/file")
        with pytest.raises(Refused, match="is not a directory"):
            share.read("a/file/below")
    share.close()  # a second time does nothing
    assert share.fd == -1


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"5", b"[" * 100_000])
def test_what_is_no_json_object_is_none(text):
    assert untrusted.parsed(text) is None


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        (b"", "has no plain name"),
        (b"a\nb", "has no plain name"),
        (b"nbd:host:1", "is not a plain path"),
        (b"json:{}", "is not a plain path"),
        (b"../../../etc/shadow", "leads to outside the share"),
        (b"/etc/shadow", "leads to outside the share"),
        (b"../a/../../../x", "leads up and down again"),
        (b"/share/a/../../etc/shadow", "leads up and down again"),
        (b"/share/a/", "leads up and down again"),
    ],
)
def test_a_base_that_may_lie_elsewhere_is_refused(name, trouble):
    assert trouble in Base(name, "instance", "/share").trouble


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        (b"../_base/0123", "_base/0123"),
        (b"./disk.base", "instance/disk.base"),
        (b"/share/_base/0123\0after", "_base/0123"),
    ],
)
def test_a_base_on_the_share_is_found_from_where_the_image_is_used(name, relative):
    base = Base(name, "instance", "/share")
    assert (base.trouble, base.relative) == ("", relative)


# Images and the files that they stand on


def an_image(share, relative="disk"):
    return Image(share, relative, share.file(relative), "")


def open_files():
    return len(os.listdir("/proc/self/fd"))


@as_root
def test_a_chain_without_end_is_objected_to_and_every_file_of_it_is_closed(tmp_path):
    (tmp_path / "disk").write_bytes(qcow2(1 << 20, base=b"disk"))
    before = open_files()
    with Share(str(tmp_path)) as share, an_image(share) as image:
        assert image.objections == ["it has more than 16 backing files"]
    assert open_files() == before


@as_root
@pytest.mark.parametrize("make", [a_link, a_pipe, a_directory])
def test_a_base_that_is_no_regular_file_is_objected_to_and_not_opened(tmp_path, make):
    make(tmp_path / "base")
    (tmp_path / "disk").write_bytes(qcow2(1 << 20, base=b"base"))
    with Share(str(tmp_path)) as share, an_image(share) as image:
        assert image.objections[0].startswith("its backing file base: it is ")
        assert len(image.opened) == 1


@as_root
def test_what_goes_wrong_while_a_chain_is_followed_leaves_no_file_open(tmp_path, monkeypatch):
    (tmp_path / "base").write_bytes(qcow2(1 << 20))
    (tmp_path / "disk").write_bytes(qcow2(1 << 20, base=b"base"))
    real, read = images.header_of, []

    def fails(fd):
        read.append(fd)
        if len(read) > 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd)

    monkeypatch.setattr(images, "header_of", fails)
    before = open_files()
    with Share(str(tmp_path)) as share, pytest.raises(OSError, match="Input/output"):
        an_image(share)
    assert open_files() == before


@as_root
def test_a_raw_base_is_not_probed_for_it_holds_a_guests_bytes(tmp_path):
    (tmp_path / "base").write_bytes(qcow2(1 << 20, base=b"/etc/shadow"))
    image = bytearray(qcow2(1 << 20, base=b"base", extensions=struct.pack(">II8s", 0xE2792ACA, 3, b"raw")))
    (tmp_path / "disk").write_bytes(image)
    with Share(str(tmp_path)) as share, an_image(share) as found:
        assert found.objections == []
        assert [base.text for base in found.bases] == ["base"]
