"""The fake tools say what the real ones say; the same scenes run on the lab in tests/lab_tests/test_contract.py."""

import pytest

from hosts.remote.hostctl.commands import Output
from tests import contract, faketools
from tests.fakes import INSTANCE
from tests.machines import Site


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site").mkdir()
    return Site(tmp_path / "site")


def played_on(machine):
    """Runs words on a machine; directories and files are no business of its tools."""

    def one(program, *words):
        if program == "mkdir":
            [machine.real(path).mkdir(parents=True, exist_ok=True) for path in words[1:]]
        elif program == "rmdir":
            [machine.real(path).rmdir() for path in words]
        elif program == "rm":
            machine.real(words[0]).unlink()
        else:
            return faketools.run(machine, (program, *words))
        return Output(0)

    return lambda listed: [one(*words) for words in listed]


def test_volumes(site):
    assert contract.differences(contract.volumes(), played_on(site.relay)) == []


def test_what_a_relay_does(site):
    assert contract.differences(contract.relaying("10.20.0.2"), played_on(site.relay)) == []


def test_an_instance(site):
    site.destination.domains[INSTANCE].state = "shut off"
    assert contract.differences(contract.instance(INSTANCE), played_on(site.destination)) == []


def test_what_is_otherwise_is_told(site):
    scenes = [
        contract.Scene(("blkid", "-p", "--", "/dev/vg_nova0/none"), 0),
        contract.Scene(("exportfs", "-s"), 0, "x"),
    ]
    assert len(contract.differences(scenes, played_on(site.relay))) == 2
