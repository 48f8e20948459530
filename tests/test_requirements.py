"""The locks of requirements: exactly what the requirements need, each with hashes; nothing of this machine in them."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))?(?P<hashes>(?: \\\n    --hash=\S+)+)"
)
SHA256 = re.compile(r"--hash=sha256:[0-9a-f]{64}")
NAMES = ["requirements", "requirements-dev"]


def wanted(name):
    """The requirements of a file and of those that it includes."""
    for line in (ROOT / f"{name}.txt").read_text().splitlines():
        if line.startswith("-r "):
            yield from wanted(line[3:].removesuffix(".txt"))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def locked(name):
    """The entries of a lock by package; fails when there is anything else in it."""
    text = (ROOT / f"{name}.lock").read_text()
    lines = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    entries = list(ENTRY.finditer(lines))
    rest = ENTRY.sub("", lines).strip()
    assert not rest, f"{name}.lock holds more than versions and hashes: {rest[:200]}"
    return {entry["name"]: entry for entry in entries}


def needed(requirement, extras=frozenset({""})):
    """The requirements of an installed package, for this Python and the wanted extras."""
    for line in requires(requirement) or []:
        each = Requirement(line)
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
            yield each


def closure(name):
    """Every package that the requirements of a file need here, with those that they need in turn."""
    found, todo = set(), [(each.name, frozenset({"", *each.extras})) for each in wanted(name)]
    while todo:
        package, extras = todo.pop()
        if (canonicalize_name(package), extras) in found:
            continue
        found.add((canonicalize_name(package), extras))
        try:
            todo += [(each.name, frozenset({"", *each.extras})) for each in needed(package, extras)]
        except PackageNotFoundError:
            pytest.fail(f"{package} is needed and not installed: install requirements-dev.lock")
    return {package for package, _ in found}


@pytest.mark.parametrize("name", NAMES)
def test_every_requirement_is_an_exact_version_and_locked_as_it_is(name):
    entries = locked(name)
    for each in wanted(name):
        assert str(each.specifier).startswith("=="), f"{each} is not pinned"
        entry = entries[canonicalize_name(each.name)]
        assert each.specifier.contains(entry["version"]), f"{name}.lock has {entry['version']} of {each}: make lock"


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_what_the_requirements_need_and_nothing_else(name):
    # What only another system or Python needs has a marker; that it is needed cannot be seen from here.
    everywhere = {package for package, entry in locked(name).items() if not entry["marker"]}
    there = closure(name)
    assert there <= set(locked(name)), f"not locked: {sorted(there - set(locked(name)))}: make lock"
    assert everywhere <= there, f"locked and not needed: {sorted(everywhere - there)}: make lock"


@pytest.mark.parametrize("name", NAMES)
def test_every_locked_package_has_hashes_and_they_are_sha256(name):
    for package, entry in locked(name).items():
        assert all(SHA256.fullmatch(each) for each in entry["hashes"].replace("\\", " ").split()), package


def test_what_runs_is_locked_alike_for_development():
    run, develop = locked("requirements"), locked("requirements-dev")
    assert {name: entry.group() for name, entry in run.items()} == {name: develop[name].group() for name in run}


def test_what_is_packed_with_code_for_a_processor_is_locked_for_more_than_one():
    """A wheel for x86_64 alone would refuse to install elsewhere; each such package has many."""
    entries = locked("requirements")
    for package in ("cryptography", "bcrypt", "pynacl", "psycopg-binary", "pydantic-core", "cffi"):
        assert len(SHA256.findall(entries[package]["hashes"])) > 10, package
