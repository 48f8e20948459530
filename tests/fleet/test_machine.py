"""The machine of the runbook's test where it does not boot."""

import os
from pathlib import Path

import pytest

from tests.fleet import machine


@pytest.mark.skipif(os.geteuid() or not Path("/lib/systemd/systemd").exists(), reason="needs root and systemd")
def test_a_machine_that_does_not_boot_is_reported_as_that_and_leaves_nothing(tmp_path, monkeypatch):
    try:
        groups = machine.cgroup()
    except machine.NotHere as error:
        pytest.skip(str(error))
    monkeypatch.setattr(machine, "SET_UP", "echo no such thing; exit 1")
    with pytest.raises(machine.NotHere, match="does not start here: no such thing"), machine.booted(tmp_path):
        pass
    assert not list(groups.glob(f"volmig-machine-{os.getpid()}-*"))
