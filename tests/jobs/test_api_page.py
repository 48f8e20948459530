"""docs/api.md, as it is written: its commands carry a disk across on the fake site."""

import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from jobs.models import Job
from tests.api.conftest import letters_of
from tests.factories import approver, asked, operator
from tests.fakes import INSTANCE, LIVE, SOURCE_LV

PAGE = Path(__file__).resolve().parents[2] / "docs/api.md"
TOKENS, LOOK, ASK, FOLLOW, APPROVE, CONFIRM, _ = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def bash(live_server, tmp_path, site):
    """Runs commands of the page, with the names of the fake site in place of the page's."""
    asked()
    (tmp_path / "token").write_text(letters_of(operator(), "submit"))
    (tmp_path / "approving").write_text(letters_of(approver(), "approve"))
    names = {
        "https://volmig.example.org": live_server.url,
        "~/.config/volmig/": f"{tmp_path}/",
        "3f8df945-7cbd-46e0-8ad1-d51013cf706b_disk.local": SOURCE_LV,
        "c8d1a0b2-1111-4222-8333-944445555666": INSTANCE,
        "q=3f8df945": f"q={SOURCE_LV[:8]}",
        "q=db-new": f"q={INSTANCE}",
        "cmp-lvm-07": "src",
        "jump-02": "jump",
        "555666": INSTANCE[-6:],
    }
    begin = TOKENS.partition("\n")[2]  # the first line takes what somebody pastes

    def run(block, number=""):
        script = f"set -eo pipefail; N={number}\n{begin}\n{block}\necho; echo N=$N"
        for old, new in names.items():
            script = script.replace(old, new)
        pipes = {"cwd": tmp_path, "text": True, "capture_output": True}
        done = subprocess.run(["bash", "-c", script], timeout=60, check=False, **pipes)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="the page uses curl and jq")
def test_the_commands_of_the_page_carry_a_disk_across(bash, site, drive, tmp_path):
    assert f"src\tvg_nova0/{SOURCE_LV}" in bash(LOOK)
    number = bash(ASK).rpartition("N=")[2].strip()
    assert bash(ASK).rpartition("N=")[2].strip() == number
    job = drive.go(Job.objects.get())
    assert "Another person has to approve the swap" in bash(FOLLOW, number)
    assert "Block by block equal" in bash(APPROVE, number)
    drive.go(job)
    bash(CONFIRM, number)
    drive.go(job)
    assert (job.status, site.files[LIVE].content) == ("done", "new disk")
    assert zipfile.is_zipfile(tmp_path / f"migration-{number}.zip")
