"""A plan that an older volmig stored is carried out, undone, drawn and archived as it was meant.

`golden/plan.json` is the plan of a migration of the fake site as the last release stored it, with placeholders for the
UUID of the migration. `RECORD_PLANS=1 pytest tests/jobs/test_stored_plans.py` writes it anew: see tests.engine.plans.
"""

import json
import os
from pathlib import Path

import pytest

from hosts.remote.host import Answer
from jobs.engine.steps import Task
from jobs.models import Footprint, Job
from jobs.templatetags import progress
from jobs.worker import archiving
from jobs.worker.journal import Journal
from tests.engine.plans import by_names
from tests.factories import operator

STORED = Path(__file__).parent / "golden/plan.json"
BOXES = [
    ["Relay volume", "Export, mount", "Fence source", "Convert", "Compare", "Stage", "Verify stage", "Clear relay"],
    ["Lock", "Stop", "Swap", "Start"],
    ["Release", "Clean up"],
    ["Purge"],
]


def names(job):
    """What stands for the migration in the recorded plan: its UUID, as digits alone, and the first 12 and 8 of them."""
    digits = job.uuid.hex
    return {str(job.uuid): "(UUID)", digits: "(HEX)", digits[:12]: "(TWELVE)", digits[:8]: "(EIGHT)"}


def recorded(job):
    text = json.dumps(job.plan, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    for found, name in names(job).items():
        text = text.replace(found, name)
    return text


def of_before(job, change):
    """Give it the plan that the last release stored, as if that had made it."""
    text = STORED.read_text()
    for found, name in names(job).items():
        text = text.replace(name, found)
    Job.objects.filter(pk=job.pk).update(plan=change(json.loads(text)))
    return Job.objects.get(pk=job.pk)


def whole(raw):
    return raw


def boxes(job):
    return [[box.title for box in phase.rows] for phase in progress.phases(job)]


def states(job):
    return [[box.state for box in phase.rows] for phase in progress.phases(job)]


def test_what_is_stored_is_what_the_last_release_stored(drive):
    job = drive.submit()
    if os.environ.get("RECORD_PLANS"):
        STORED.write_text(recorded(job))
    assert recorded(job) == STORED.read_text()


@pytest.mark.parametrize("change", [whole, by_names])
def test_a_plan_of_the_last_release_is_carried_out_rolled_back_rehearsed_and_purged(drive, site, change):
    job = of_before(drive.submit(), change)
    assert boxes(job) == BOXES
    drive.approve(job)
    assert job.status == "on_trial"
    assert states(job)[:3] == [["done"] * 8, ["done"] * 4, ["done"] * 2]
    job.ask("rollback", operator())
    drive.approve(job, "rollback")
    assert (job.status, site.destination.state) == ("rolled_back", "running")
    assert states(job)[1] == ["undone"] * 4
    job.rehearse(operator())
    drive.go(job)
    assert job.rehearsals.get().result == "ok"
    job.ask("purge", operator())
    drive.approve(job, "purge")
    assert job.status == "purged"
    assert site.leftovers() == []
    assert not Footprint.objects.left().exists()
    drawn, plan = states(job), job.plan
    archiving.sweep()
    again = Job.objects.get(pk=job.pk)
    assert again.archived_at
    assert (again.plan, boxes(again), states(again)) == (plan, BOXES, drawn)


@pytest.mark.parametrize("change", [whole, by_names])
def test_a_copy_that_was_made_by_a_plan_of_the_last_release_is_taken_back(drive, site, change):
    job = of_before(drive.submit(), change)
    job.cancel(operator())
    drive.go(job)
    assert job.status == "undone"
    assert site.leftovers() == []
    assert not Footprint.objects.left().exists()


def test_what_a_step_leaves_is_identified_by_what_its_row_says_whatever_else_was_measured(drive):
    job = drive.submit()
    journal, planned = Journal(job, job.planned().steps), job.planned().one(Task.DELIVER)
    run = journal.begin(planned, "do", {})
    journal.record(run, Answer("done", {"lv_uuid": "of the copy", "fs_uuid": "x", "inode": 4712}))
    assert job.footprints.get(kind="stage").identity == "4712"
