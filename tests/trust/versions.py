"""Real versions of hostctl beside this tree's: archives, and what runs when one of them is called."""

import importlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hosts.remote import hostctl
from hosts.remote.hostctl import pack
from tests import machines

FORMER = Path(__file__).parent / "former"  # of the release before protocol 2, as it was installed on hypervisors
# What modules were called in it, by today's names.
FORMER_NAMES = {
    "commands": "tools",
    "nfs_server": "nfs",
    "privileges": "owner",
    "rehearsal": "backup",
    "relay_filesystem": "filesystem",
    "transient_units": "detached",
}
SOURCES = Path(hostctl.__file__).parent


@dataclass(frozen=True)
class Version:
    """One version: `archive` is its file, `protocol` what it speaks."""

    hash: str
    protocol: int
    archive: bytes


def current() -> Version:
    return Version(hostctl.source_hash(), hostctl.PROTOCOL, pack.bundle())


def former() -> Version:
    """The version that the release before protocol 2 had."""
    [file] = FORMER.iterdir()
    return Version(file.name.removeprefix("hostctl-"), 1, file.read_bytes())


def rebuilt(folder: Path) -> Version:
    """What another source tree is built into: this one's sources with a line more, packed by its own pack.py."""
    shutil.copytree(SOURCES, folder / "hostctl", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "hostctl" / "store.py").open("a") as file:
        file.write("\n\n# A line that another release has.\n")
    build = (
        "import sys; sys.path.insert(0, sys.argv[1]); from hostctl import pack; sys.stdout.buffer.write(pack.bundle())"
    )
    archive = subprocess.run([sys.executable, "-c", build, str(folder)], capture_output=True, check=True).stdout
    return Version(hash_of(archive), hostctl.PROTOCOL, archive)


def hash_of(archive: bytes) -> str:
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        found = re.search(rb"sys\.exit\(start\('([0-9a-f]{16})'\)\)", packed.read("__main__.py"))
    assert found, "this is no archive of hostctl"
    return found[1].decode()


def install(version: Version, site: machines.Site, monkeypatch: Any, folder: Path) -> None:
    """Have this version run on the machines of a site, too, where it is called or its units are started."""
    with zipfile.ZipFile(io.BytesIO(version.archive)) as packed:
        packed.extractall(folder)
    name = f"hostctl_{version.hash}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "hostctl/__init__.py", submodule_search_locations=[str(folder / "hostctl")]
    )
    assert spec
    assert spec.loader
    package = importlib.util.module_from_spec(spec)
    for stale in [each for each in sys.modules if each.startswith(f"{name}.")]:
        del sys.modules[stale]
    monkeypatch.setitem(sys.modules, name, package)
    spec.loader.exec_module(package)
    wanted = {module.__name__.rpartition(".")[2] for module in machines.OF_HOSTCTL}
    there = {path.stem for path in (folder / "hostctl").glob("*.py")}
    names = {each: each if each in there else FORMER_NAMES.get(each, "") for each in sorted(wanted)}
    modules = {each: importlib.import_module(f"{name}.{own}") for each, own in names.items() if own in there}
    assert package.source_hash() == version.hash
    machines.fit(site, monkeypatch, modules)
    if "question" in there:
        question = importlib.import_module(f"{name}.question")
        monkeypatch.setattr(question, "answered", lambda run, work, *how: run(work))
    program = ["/usr/bin/python3", "-I", f"/usr/local/libexec/volmig-hostctl.d/hostctl-{version.hash}"]
    monkeypatch.setattr(modules["transient_units"], "program", lambda: program)
    site.desks[version.hash] = modules["request"].Desk
