"""The archive unpacks itself beside itself, for root alone, and answers all the same where it cannot."""

import errno
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest

from hosts.remote import hostctl
from hosts.remote.hostctl import bootstrap, pack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's archive unpacks itself")


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "libexec"
    folder.mkdir(mode=0o755)
    path = folder / "volmig-hostctl"
    path.write_bytes(pack.bundle())
    return path


def hello(archive):
    request = json.dumps({"hash": hostctl.source_hash(), "verb": "hello", "args": {}})
    done = subprocess.run([sys.executable, "-I", archive], input=request, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert (answer["state"], answer["hash"]) == ("done", hostctl.source_hash())


def unpacked(archive):
    return archive.parent / f".hostctl-{hostctl.source_hash()}"


def compiled(archive):
    return list(unpacked(archive).glob("hostctl/__pycache__/*.pyc"))


def test_the_first_call_leaves_it_compiled_for_the_next(archive):
    hello(archive)
    assert compiled(archive)
    assert unpacked(archive).stat().st_mode & 0o777 == 0o700
    (unpacked(archive) / "hostctl/__main__.py").write_text(
        'def main():\n    print(\'{"from": "the folder"}\')\n    return 0'
    )
    done = subprocess.run([sys.executable, "-I", archive], input="", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"from": "the folder"}


def test_a_folder_in_which_others_may_write_is_not_used(archive):
    archive.parent.chmod(0o775)
    hello(archive)
    assert not unpacked(archive).exists()


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o777), lambda path: os.chown(path, 65534, 65534)])
def test_an_unpacked_folder_that_others_could_have_changed_is_not_used(archive, spoil):
    hello(archive)
    (unpacked(archive) / "hostctl/__main__.py").write_text("raise SystemExit(3)")
    spoil(unpacked(archive))
    hello(archive)


def test_a_link_in_the_folders_place_is_not_followed(archive, tmp_path):
    (tmp_path / "elsewhere/hostctl").mkdir(parents=True)
    (tmp_path / "elsewhere/hostctl/__main__.py").write_text("raise SystemExit(3)")
    unpacked(archive).symlink_to(tmp_path / "elsewhere")
    hello(archive)


def test_what_an_older_version_unpacked_goes_after_a_day(archive):
    old, recent = archive.parent / ".hostctl-0123", archive.parent / ".hostctl-4567"
    for folder in (old, recent):
        folder.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    hello(archive)
    assert (old.exists(), recent.exists()) == (False, True)


# The same in this process, where the disk can be made to fail


@pytest.fixture
def unpack(archive):
    return lambda: bootstrap.unpacked(str(archive), hostctl.source_hash())


def test_what_is_unpacked_is_what_runs(archive, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "hostctl"]:
        monkeypatch.delitem(sys.modules, name)
    request = json.dumps({"hash": hostctl.source_hash(), "verb": "hello", "args": {}}).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(request)))
    monkeypatch.setattr(sys, "argv", ["hostctl"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(bootstrap, "__file__", str(archive / "__main__.py"))
    monkeypatch.chdir(tmp_path)
    mask = os.umask(0o022)
    try:
        assert bootstrap.start(hostctl.source_hash()) == 0
        assert sys.modules["hostctl"].__file__ == str(unpacked(archive) / "hostctl/__init__.py")
    finally:
        os.umask(mask)
        for name in [name for name in sys.modules if name.split(".")[0] == "hostctl"]:
            del sys.modules[name]
    assert json.loads(capsys.readouterr().out)["hash"] == hostctl.source_hash()


def test_what_was_unpacked_once_is_used_again(archive, unpack):
    first = unpack()
    made = os.stat(first).st_mtime_ns
    assert (first, os.stat(unpack()).st_mtime_ns) == (str(unpacked(archive)), made)
    unpacked(archive).chmod(0o777)
    assert unpack() == ""


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o775), lambda path: os.chown(path, 65534, 65534)])
def test_beside_an_archive_that_others_may_replace_nothing_is_unpacked(archive, unpack, spoil):
    spoil(archive.parent)
    assert unpack() == ""
    assert not unpacked(archive).exists()


def test_a_file_system_that_is_full_leaves_nothing_half_there(archive, unpack, monkeypatch):
    def full(packed, part, names):
        (archive.parent / part / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    old = archive.parent / ".hostctl-0123"
    old.mkdir()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    assert unpack() == ""
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_a_call_that_was_slower_uses_what_the_quicker_one_unpacked(archive, unpack, monkeypatch):
    real = zipfile.ZipFile.extractall

    def late(packed, part, names):
        real(packed, part, names)
        real(packed, unpacked(archive), names)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", late)
    mask = os.umask(0o077)
    try:
        assert unpack() == str(unpacked(archive))
    finally:
        os.umask(mask)
    assert sorted(path.name for path in archive.parent.iterdir()) == [unpacked(archive).name, archive.name]
