"""Failpoints: armed on a lab only, by names that exist; each kills one worker once, or has all of them wait."""

import os
import subprocess
import sys

import pytest
from django.conf import settings as present

from jobs.apps import failpoint_faults, failpoints_are_for_labs
from jobs.engine import failpoints, routes

DIE = """
import django; django.setup()
from jobs.engine import failpoints
for moment in failpoints.MOMENTS:
    failpoints.reach("convert", "do", moment)
    print(moment, flush=True)
"""


def begin(data, script=("-c", DIE), **told):
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "volmig.settings", "VOLMIG_DATA": str(data), **told}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *script], cwd=present.BASE_DIR, env=environment, **pipes)


def start(*what, **told):
    with begin(*what, **told) as worker:
        out, err = worker.communicate()
    return subprocess.CompletedProcess(worker.args, worker.returncode, out, err)


def test_a_worker_dies_at_a_boundary_once_and_the_next_one_goes_on(tmp_path):
    told = {"VOLMIG_LAB": "yes", "VOLMIG_FAILPOINT": "convert.do.after-do"}
    first, second = start(tmp_path, **told), start(tmp_path, **told)
    assert (first.returncode, first.stdout.split()) == (-9, ["before-do"])
    assert (second.returncode, second.stdout.split()) == (0, list(failpoints.MOMENTS))
    assert [each.name for each in (tmp_path / "failpoints").iterdir()] == ["convert.do.after-do"]


def test_several_boundaries_kill_one_worker_each(tmp_path):
    told = {"VOLMIG_LAB": "yes", "VOLMIG_FAILPOINT": "convert.*, stage.do.before-do"}
    ends = [start(tmp_path, **told).returncode for _ in range(4)]
    assert ends == [-9, -9, -9, 0]


def test_a_worker_waits_at_a_boundary_until_somebody_lets_it_go_on(tmp_path):
    told = {"VOLMIG_LAB": "yes", "VOLMIG_FAILPOINT": "convert.do.after-do=wait"}
    with begin(tmp_path, **told) as worker:
        assert worker.stdout.readline() == "before-do\n"
        there = tmp_path / "failpoints" / "convert.do.after-do"
        while not there.exists():
            assert worker.poll() is None
        there.unlink()
        assert worker.stdout.read().split() == ["after-do", "after-record"]
    assert worker.returncode == 0


def test_outside_a_lab_nothing_is_armed_and_nothing_starts(tmp_path):
    told = {"VOLMIG_FAILPOINT": "*.do.*"}
    assert start(tmp_path, **told).returncode == 0
    refused = start(tmp_path, ("manage.py", "qcluster"), **told)
    assert refused.returncode == 1
    assert "it kills workers amid a migration" in refused.stderr
    assert not (tmp_path / "failpoints").exists()


def test_a_boundary_that_no_step_has_is_refused_on_a_lab_too(settings):
    settings.LAB, settings.FAILPOINT = True, "convert.do.after-do"
    assert failpoint_faults() == []
    for wrong, named in (("convert.do.after-do, swop.do.*", "swop.do.*"), ("convert.do.*=pause", "pause")):
        settings.FAILPOINT = wrong
        assert [named in each.msg for each in failpoints_are_for_labs()] == [True]


def test_every_step_has_its_boundaries_and_those_of_its_undo():
    convert = routes.named()["convert"]
    assert failpoints.every([convert])[:3] == [f"convert.do.{moment}" for moment in failpoints.MOMENTS]
    undoable = sum(bool(step.undo) for step in routes.steps())
    assert len(set(failpoints.every(routes.steps()))) == 3 * (len(routes.steps()) + undoable)
    with pytest.raises(ValueError, match="No step has a boundary"):
        failpoints.chosen("convert.do", routes.steps())
