"""Words for every halt: each code that the code can give has a sentence of its own, and every status a way on."""

import ast
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

import hosts.remote
import jobs
from hosts.remote import host
from jobs.engine import halt_help, routes, states
from jobs.engine.evidence import Evidence
from tests.engine.sound import MIGRATION

REMOTE, JOBS = Path(hosts.remote.__file__).parent, Path(jobs.__file__).parent
CODE = re.compile(r"[a-z]+(-[a-z]+)*")
MAKERS = {"Refused": 0, "Failed": 0, "No": 0, "_wait": 2, "Objection": 0}  # where the code stands among the arguments
# What the codes are that no literal spells out; none where one is only handed on.
SPELT = {
    "'not-' + wanted": ("not-linked", "not-done"),
    "f'{verb}-refused'": ("stop-refused", "start-refused"),
    "f'{verb}-failed'": ("stop-failed", "start-failed"),
    "f'still-{task}'": ("still-powering-on", "still-powering-off"),
    "code": ("policy-volume-group", "policy-share", "policy-directory", "policy-peer"),
    "found[0].code": (),
    "*(str(shown.get(name, '')) for name in ('code', 'found', 'next'))": (),
    "self.code": (),
    "type(error).__name__": tuple(
        name for name, each in vars(host).items() if isinstance(each, type) and issubclass(each, host.HostError)
    ),
}


def expressions(path):
    """Whatever stands for a code: the argument of a maker (on a hypervisor or cloud), the value of a key or name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and REMOTE in path.parents:
            place = MAKERS.get(getattr(node.func, "id", getattr(node.func, "attr", "")))
            if place is not None and len(node.args) > place:
                yield node.args[place]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "code")
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code" and REMOTE in path.parents:
            yield node.value


def spelt(expression):
    """The codes that an expression can be; its own text when nobody has said, which no word is for."""
    if isinstance(expression, ast.Constant):
        return [expression.value] if CODE.fullmatch(str(expression.value)) else []
    if isinstance(expression, ast.IfExp):
        return [*spelt(expression.body), *spelt(expression.orelse)]
    return SPELT.get(ast.unparse(expression), [ast.unparse(expression)])


def codes():
    """Every code that hostctl, the adapter of a cloud and the engine can give."""
    folders = (JOBS, JOBS / "worker", JOBS / "web", JOBS / "engine")
    paths = [*REMOTE.rglob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))]
    return {code for path in paths for expression in expressions(path) for code in spelt(expression)}


def test_the_codes_are_found_where_they_are_made():
    assert {"act-failed", "unknown-state", "foreign-stage", "left-behind", "still-powering-on", "Denied"} <= codes()
    assert len(codes()) > 75


def test_every_code_has_words_of_its_own_and_no_word_is_for_none():
    assert codes() == set(halt_help.EXPECTED), codes() ^ set(halt_help.EXPECTED)
    assert len(set(halt_help.EXPECTED.values())) > len(halt_help.EXPECTED) * 0.9


def test_every_code_in_every_status_says_what_a_person_can_do():
    for status in states.WORKING | {"awaiting_approval", "on_trial"}:
        for code in halt_help.EXPECTED:
            told = halt_help.by_hand(status, code, "", MIGRATION, "/i")
            assert told, (status, code)
            assert all(line.strip() and "{" not in line for line in told), (status, code)
        assert status == "checking" or halt_help.RESUME[status], "resume says what it does"


def test_what_nobody_foresaw_is_told_by_its_family():
    assert halt_help.expected("foreign-teapot") == "Only what this migration made itself."
    assert halt_help.expected("unknown-teapot") == "Only what was recorded and is known."
    assert halt_help.expected("") == "The step ends as planned."


def test_what_hostctl_recommends_is_said_unless_more_is_known():
    args = ("preparing", "foreign-volume", "Rename it.", MIGRATION, "/i")
    assert halt_help.by_hand(*args) == ["Rename it."]
    assert "copy is made again" in halt_help.by_hand("approved", "foreign-stage", "x", MIGRATION, "/i")[0]


def test_the_steps_by_hand_name_the_very_directory_and_job():
    gone = " ".join(halt_help.by_hand("purging", "unknown-instance", "", MIGRATION, "/i"))
    assert f"/i/.volmig/{MIGRATION.job} on {MIGRATION.destination}" in gone
    assert f"volmig-hostctl rollback {MIGRATION.job}" in " ".join(
        halt_help.by_hand("rolling_back", "changed", "", MIGRATION, "/i")
    )


@pytest.mark.parametrize("on", sorted({step.on for step in routes.named().values()}))
def test_looking_only_reads_and_takes_names_as_words(on):
    evil = replace(MIGRATION, source_vg="vg; rm -rf /", relay_vg="$(x)", disk="d'isk")
    lines = halt_help.looks(evil, on, "/i")
    assert {shlex.split(line)[0] for line in lines} <= {"lvs", "findmnt", "exportfs", "ls", "virsh"}
    assert all(len(shlex.split(line)) == len(shlex.split(line, comments=True)) for line in lines)
    assert not any(word in (";", "rm", "$(x)x") for line in lines for word in shlex.split(line))


def test_which_inode_is_which_disk_is_said_as_far_as_it_is_known():
    assert halt_help.disks(MIGRATION, Evidence()) == []
    seen = Evidence({"stop": {"live": "no mapping"}, "swap": {"backup_inode": 5}})
    assert halt_help.disks(MIGRATION, seen) == ["old disk: inode 5"]
    evidence = Evidence({"stop": {"live": {"inode": 4711}}, "stage_verify": {"inode": 4712}})
    assert halt_help.disks(MIGRATION, evidence) == ["old disk: inode 4711", "new disk: inode 4712"]
