"""The parts of volmig are listed in one table, and everything that is said of a part is said of one that exists."""

import ast
import os
from pathlib import Path

import pytest
import yaml
from django.conf import settings
from django.core.management import load_command_class

from jobs.web import metrics
from volmig.health import alive, heart
from volmig.management.commands import up
from volmig.parts import GROUPS, PARTS, called, how_to_start, of_group, of_queue

SOURCES = [
    settings.BASE_DIR / "manage.py",
    *(path for app in ("volmig", "hosts", "jobs") for path in sorted((settings.BASE_DIR / app).rglob("*.py"))),
]


def words(value):
    """Every string in a literal, at any depth."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    return set().union(*map(words, value)) if isinstance(value, list | tuple | set | frozenset) else set()


def tables(source):
    """Lines of the literals that list the parts: those that name the first and the last of them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
            try:
                literal = ast.literal_eval(node)
            except (ValueError, TypeError):  # it is computed
                continue
            if {"web", "watcher"} <= words(literal):
                found.append(node.lineno)
    return found


def test_no_other_module_lists_the_parts():
    found = {str(path): tables(path.read_text()) for path in SOURCES if path.name != "parts.py"}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "table",
    [
        'PARTS = ("web", "workers", "watcher")',
        'CALLED = {"web": "a page", "watcher": ""}',
        'x = {"a": ["web", {"watcher"}]}',
    ],
)
def test_a_second_table_is_found(table):
    assert tables(table) == [1] * len(tables(table)) != []


def test_what_starts_and_what_probes_parts_take_the_same_words():
    def choices(app, name):
        parser = load_command_class(app, name).create_parser("manage.py", name)
        return {*next(action for action in parser._actions if action.dest == "part").choices}

    assert choices("volmig", "up") - {"all"} == choices("volmig.health", "health") == {*GROUPS}


def test_every_part_has_a_command_and_every_queue_a_part():
    assert up.commands("127.0.0.1:8000").keys() == PARTS.keys() == {part.name for part in of_group(*GROUPS)}
    assert {part.queue for part in PARTS.values()} - {""} == {*settings.TASKS.values()}
    assert {of_queue(queue).name for queue in settings.TASKS.values()} == up.STUCK_SECONDS.keys()
    assert alive.WAITING.keys() == {*settings.TASKS.values()}
    assert alive.MISSING.keys() <= PARTS.keys()
    assert {part for _, part, *_ in metrics.CARRIED} <= PARTS.keys()


def test_a_part_of_a_later_release_is_called_by_its_name():
    assert (called("watcher"), called("gatherer")) == ("watcher", "gatherer")


def test_a_pid_space_is_of_one_data_directory_however_that_is_reached(settings, tmp_path, monkeypatch):
    one, other, link = tmp_path / "one", tmp_path / "other", tmp_path / "link"
    one.mkdir()
    other.mkdir()
    link.symlink_to(one)

    def space(path: Path):
        settings.DATA = path
        return heart.pid_space()

    assert space(one) == space(link) != space(other)
    before = space(one)
    monkeypatch.setattr("socket.gethostname", lambda: f"not-{os.uname().nodename}")
    assert space(one) != before, "two containers may share a volume"


@pytest.mark.parametrize("group", sorted({PARTS[part].group for part in alive.MISSING}))
def test_a_missing_part_is_started_by_a_unit_and_a_service_that_exist(group):
    """`manage.py up` alone, typed on a machine of the runbook, starts a second volmig with an empty database."""
    packaging = settings.BASE_DIR / "packaging"
    services = yaml.safe_load((packaging / "compose/compose.yaml").read_text())["services"]
    said = how_to_start(group)
    assert (packaging / f"systemd/volmig-{group}.service").exists()
    assert said.startswith(f"systemctl restart volmig-{group} ")
    assert f"docker compose restart {group};" in said
    assert group in services
    for part in of_group(group):
        _, advice = alive.MISSING[part.name]
        assert said in advice
