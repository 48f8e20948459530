"""A whole migration by the command-line client, against a running server, on the fake site: nobody touches a page."""

import pytest

from jobs.models import Job
from tests.api.conftest import letters_of
from tests.factories import approver, asked, operator
from tests.fakes import INSTANCE, LIVE, SOURCE_LV
from tests.shell import Shell
from volmig import client


@pytest.fixture
def shells(live_server, tmp_path, site):
    """Those of an operator and of an approver, each with a token for what they do."""
    people = (operator(), "submit"), (approver(), "approve")
    return [Shell(live_server.url, letters_of(*each), tmp_path) for each in people]


def wish():
    asked()
    return f"--source src --volume vg_nova0/{SOURCE_LV} --instance {INSTANCE} --relay jump --relay-vg vg_nova0".split()


def test_two_tokens_carry_a_disk_across_and_a_third_yes_is_not_needed(shells, site, drive):
    olga, pavel = shells
    number = str(olga.json("submit", *wish(), "--key", "tonight")["number"])
    job = drive.go(Job.objects.get())
    assert olga.run("watch", number)[0] == client.WAITING
    assert olga.run("approve", number, "--instance", INSTANCE[-6:], "--reason", "Mine.")[0] == client.REFUSED
    assert pavel.run("confirm", number)[0] == client.REFUSED
    assert site.files[LIVE].content == "old disk"
    code, printed, said = pavel.run("approve", number, "--instance", INSTANCE[-6:], "--reason", "Agreed.")
    assert (code, "Block by block equal" in printed) == (0, True), said
    drive.go(job)
    assert site.files[LIVE].content == "new disk"
    assert olga.run("watch", number, "--until", "on_trial")[0] == 0
    assert olga.run("confirm", number)[0] == 0
    drive.go(job)
    assert olga.run("watch", number)[0] == 0
    assert [each["number"] for each in olga.json("history", "--status", "done")] == [int(number)]


def test_a_migration_is_taken_back_by_the_client(shells, site, drive):
    olga, _ = shells
    number = str(olga.json("submit", *wish())["number"])
    job = drive.go(Job.objects.get())
    assert olga.run("cancel", number)[0] == 0
    drive.go(job)
    code, _, said = olga.run("watch", number)
    assert (code, "Cancelled" in said) == (client.UNDONE, True)
    assert site.files[LIVE].content == "old disk"


def test_a_preflight_shows_checks_and_plan_and_leaves_nothing(shells, site, drive):
    olga, _ = shells
    program = olga.start("preflight", *wish(), "--every", "0.1")
    while program.poll() is None:
        for job in Job.objects.due():
            drive.go(job)
    printed, said = program.communicate()
    assert program.returncode == 0, said
    assert "convert" in printed.lower()
    assert "All checks passed" in said
    job = Job.objects.get()
    assert (job.status, job.outcome) == ("undone", "cancelled")
    assert not job.runs.exclude(direction="undo").filter(step="convert").exists()
    assert site.files[LIVE].content == "old disk"
