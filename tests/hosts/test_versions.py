"""Two real versions of hostctl behind a real sshd: installed as the forced command, and shipped."""

import dataclasses
import os
import shutil

import pytest

from hosts.remote import ssh
from hosts.remote.host import HostctlDiffers, Request
from tests.hostctl.test_install import Place
from tests.hosts.sshd import Sshd
from tests.trust import versions

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("sshd", path="/usr/sbin:/usr/bin"), reason="needs openssh-server, and root"
)
STATUS = Request("status", job="0c6f2d4e-9b1a-4f57-8a36-5d1e7c20b9aa")


def asked(address, version=None):
    """The answer of that version, entered as a migration does that began with it."""
    if version is not None:
        address = dataclasses.replace(
            address,
            hostctl=version.hash,
            protocol=version.protocol,
            archive=version.archive if address.shipped else b"",
        )
    with ssh.connect(address) as host:
        return host.call(STATUS)


@pytest.fixture
def installed(tmp_path):
    """A forced command that leads to what a test installs."""
    (tmp_path / "host").mkdir()
    place = Place(tmp_path / "host")
    with Sshd(tmp_path / "sshd") as sshd:
        (sshd.home / "stand_in").unlink()
        (sshd.home / "stand_in").symlink_to(place.program)
        yield place, sshd.address


def test_one_forced_command_serves_both_versions(installed):
    place, address = installed
    former, today = versions.former(), versions.current()
    place.install_former(former)
    assert asked(address, former).state == "done"
    with pytest.raises(HostctlDiffers) as caught:
        asked(address)
    assert (caught.value.has, caught.value.needs, caught.value.touched) == (former.hash, today.hash, False)
    place.install(today)
    assert [asked(address, each).state for each in (former, today, None)] == ["done"] * 3


def test_a_version_that_is_not_installed_is_refused_and_those_that_are_named(installed):
    place, address = installed
    place.install(versions.current())
    with pytest.raises(HostctlDiffers) as caught:
        asked(address, versions.former())
    assert caught.value.versions == (versions.current().hash,)
    assert f"volmig-hostctl.d/hostctl-{versions.former().hash}" in str(caught.value)


def test_each_version_is_shipped_once_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh, "SHIPPED_DIRECTORY", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    with Sshd(tmp_path / "sshd", forced=False) as sshd:
        for version in (versions.former(), versions.current(), versions.former()):
            assert asked(sshd.address, version).state == "done"
    there = {path.name for path in (tmp_path / "bin").glob("hostctl-*")}
    assert there == {f"hostctl-{version.hash}" for version in (versions.former(), versions.current())}
