"""What libvirt's log of a guest tells: when it was started, and how each run ended."""

from hosts.remote.hostctl import virsh

LOG = """\
2026-11-24 08:00:00.123+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4 (Debian), qemu version: 7.2.22
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 -name guest=db-new,debug-threads=on
2026-11-24T08:00:01.000000Z qemu-system-x86_64: warning: something
2026-11-24 09:00:00.000+0000: shutting down, reason=shutdown
2026-11-24 09:10:00.500+0000: starting up libvirt version: 9.0.0
2026-11-24 09:10:01.000+0000: shutting down, reason=failed
2026-11-24 09:20:00.500+0000: starting up libvirt version: 9.0.0
"""


def test_runs_are_told_with_their_times_and_ends(tmp_path):
    (tmp_path / "db-new.log").write_text(LOG)
    found = virsh.runs("db-new", str(tmp_path / "%s.log"))
    assert [run["ended"] for run in found] == ["shutdown", "failed", ""]
    assert found[1]["at"] - found[0]["at"] == 70 * 60


def test_a_log_that_is_not_there_tells_nothing_and_a_long_one_its_end(tmp_path):
    log = str(tmp_path / "%s.log")
    assert virsh.runs("db-new", log) is None
    assert virsh.runs("../db-new", log) is None
    assert virsh.runs("", log) is None
    (tmp_path / "db-new.log").write_text("x" * (2 << 16) + "\n" + LOG)
    assert len(virsh.runs("db-new", log)) == 3


def test_a_guest_cannot_forge_a_run_within_a_line(tmp_path):
    (tmp_path / "db-new.log").write_text("said: 2026-11-24 08:00:00.123+0000: starting up libvirt\n")
    assert virsh.runs("db-new", str(tmp_path / "%s.log")) == []
