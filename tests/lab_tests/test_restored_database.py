"""An older database acts on nothing while a real guest runs on its new disk; adopted, its migration ends well."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.lab_tests.conftest import MIB
from tests.site import ROOT, Site
from tests.trust.amounts import figure

pytestmark = pytest.mark.lab

OLD, NEW = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "c8d1a0b2-1111-4222-8333-944445555666"
DEVICE = f"/dev/vg_nova0/{OLD}_disk.local"
WISH = f"--source src --volume vg_nova0/{OLD}_disk.local --instance {NEW} --relay jump --relay-vg vg_nova0".split()
# Everything that hostctl keeps of migrations and owners, with content and times; its units; volumes with their tags.
KEPT_BY_A_HOST = """
find /var/lib/volmig -type f ! -name '*.lock' ! -name lock ! -name door -printf '%p %i %s %T@ ' -exec sha256sum {} ';' | sort
systemctl list-units --all --plain --no-legend 'volmig-*' | sort
lvs --noheadings -o vg_name,lv_name,lv_uuid,lv_attr,lv_tags
find /var/lib/nova/instances/.volmig -printf '%p %i %s %T@\\n' 2>/dev/null | sort
"""  # noqa: E501 - commands of a shell


def kept_by_hosts(lab):
    return {name: lab.guests[name].run(KEPT_BY_A_HOST) for name in ("src", "jump", "dst")}


class Guest:
    """The process that runs the instance, and what it has done since it was asked about last."""

    PID = "pid=$(cat /run/libvirt/qemu/db-new.pid)"

    def __init__(self, lab):
        self.lab, self.boots = lab, lab.console(lab.guest).count("VOLMIG-READY")
        self.began, self.turns = self._process(), self._turns()

    def _process(self):
        """Its PID, and the moment at which this very process was started."""
        return self.lab.dst.run(f"{self.PID}; echo $pid; cut -d' ' -f22 /proc/$pid/stat")

    def _turns(self):
        """How often its threads have slept and gone on again: a process that stands still does not."""
        said = self.lab.dst.run(f"{self.PID}; cat /proc/$pid/task/*/status")
        return sum(int(line.split()[1]) for line in said.splitlines() if line.startswith("voluntary_ctxt_switches"))

    def has_gone_on(self):
        """Whether it is the same process, which has run on, and the guest in it has not booted again."""
        assert self.lab.dst.run("virsh domstate db-new").strip() == "running"
        before, self.turns = self.turns, self._turns()
        boots = self.lab.console(self.lab.guest).count("VOLMIG-READY")
        return self._process() == self.began and boots == self.boots and self.turns > before


def asked(volmig, sql):
    database = sqlite3.connect(f"file:{volmig.data}/db.sqlite3?mode=ro", uri=True, timeout=30)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()


def until(volmig, sql, wanted, seconds=180):
    deadline = time.monotonic() + seconds
    while (found := asked(volmig, sql)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def reach(volmig, status):
    until(volmig, "SELECT status, halt_reason FROM jobs_job", [(status, "")])


def manage(volmig, *words, typed=""):
    how = {"cwd": ROOT, "env": volmig.environment, "input": typed, "text": True, "capture_output": True}
    done = subprocess.run([sys.executable, "manage.py", *words], **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tick_by_hand(volmig, number):
    manage(volmig, "shell", "-c", f"from jobs.worker import tick; tick.run({number})")


def put_back(kept, there):
    """The files as they were, in the very directory in which they were."""
    for path in there.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, there, dirs_exist_ok=True)


@pytest.fixture
def scene(clean_lab, site, shell_of):
    """A running guest, a volume for it, and a volmig whose olga asks and whose pavel approves."""
    lab = clean_lab
    lab.mount_share(acdirmax=1)
    lab.digest = lab.volume(lab.src, f"{OLD}_disk.local", 64 * MIB, data_mb=4)
    lab.before = lab.sha256(lab.src, DEVICE)
    lab.guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    lab.start(lab.guest)
    lab.wait_console(lab.guest, f"VOLMIG-DATA sha256 {lab.guest.sha256}")
    volmig = site(False)
    return lab, volmig, shell_of(volmig, "olga", "submit"), shell_of(volmig, "pavel", "approve")


def test_an_older_database_touches_no_host_while_the_guest_runs_on_and_is_adopted_to_its_right_end(scene, tmp_path):
    lab, volmig, olga, pavel = scene
    number = str(olga.json("submit", *WISH)["number"])
    reach(volmig, "awaiting_approval")
    manage(volmig, "backup", "--output", str(tmp_path / "backup.tar.gz"))
    volmig.stop()
    shutil.copytree(volmig.data, tmp_path / "kept")
    approve = ("approve", number, "--instance", NEW[-6:], "--reason", "Agreed.")

    volmig.start()
    assert pavel.run(*approve)[0] == 0
    reach(volmig, "on_trial")
    lab.wait_console(lab.guest, f"VOLMIG-DATA sha256 {lab.digest}")
    lab.wait_console(lab.guest, "VOLMIG-READY")
    volmig.stop()
    guest, hosts = Guest(lab), kept_by_hosts(lab)

    # Set back in place, with its data directory: only the hosts know better, and an approver approves the swap again.
    put_back(tmp_path / "kept", volmig.data)
    volmig.start()
    assert pavel.run(*approve)[0] == 0
    until(volmig, "SELECT code FROM volmig_incarnation", [("other-owner",)])
    tick_by_hand(volmig, number)
    volmig.stop()
    assert (kept_by_hosts(lab), guest.has_gone_on()) == (hosts, True)

    # Restored from its backup into a new directory, as after the loss of the machine.
    restored = Site(lab, tmp_path / "restored")
    restored.more = volmig.more
    elsewhere = {**os.environ, "VOLMIG_DATA": str(tmp_path / "none")}
    command = [sys.executable, "manage.py", "restore", str(tmp_path / "backup.tar.gz"), "--into", str(restored.data)]
    subprocess.run(command, cwd=ROOT, env=elsewhere, check=True, capture_output=True)
    restored.start()
    try:
        for shell in (olga, pavel):
            shell.environment["VOLMIG_URL"] = restored.url
        code, _, said = pavel.run(*approve)
        assert (code != 0, "read-only" in said) == (True, True), said
        tick_by_hand(restored, number)
        shown = manage(restored, "adopt")
        assert "after adoption on_trial" in shown, shown
        assert (kept_by_hosts(lab), guest.has_gone_on()) == (hosts, True)

        manage(restored, "adopt", "--migration", number, "--as", "ada", typed=f"{number}\n")
        manage(restored, "adopt", "--finish", "--as", "ada")
        owned = kept_by_hosts(lab)
        assert all(owned[name] != hosts[name] for name in hosts), "what is compared shows who owns a host"
        reach(restored, "on_trial")
        assert olga.run("confirm", number)[0] == 0
        reach(restored, "done")
    finally:
        restored.stop()
    assert guest.has_gone_on(), "the guest was neither stopped nor started again"
    assert lab.sha256(lab.src, DEVICE) == lab.before
    assert sorted(line.rpartition("/")[2] for line in lab.leftovers()) == ["README", "card.json", "disk.old"]
    figure("restored database on the lab, twice: 0 changes on 3 hosts before adoption, 0 restarts of the guest, done")
