"""python -m tests.cycles: refuses files that import each other in a circle, directly or through others.

import-linter has a contract for cycles between packages (acyclic_siblings), which is stricter than what is meant here:
volmig.database may read a model of volmig.health whose heart reads volmig.database. So this asks the graph that
import-linter is made of. What is imported for types alone never runs, so it makes no cycle: a model's QuerySet may name
the model beside it.
"""

import os
import sys
from graphlib import CycleError, TopologicalSorter

import grimp

PACKAGES = ("volmig", "hosts", "jobs")


def cycle(*packages: str) -> list[str]:
    """The files of one cycle, each of which imports the next, the first again at the end; none when there is no cycle.

    Imports inside functions count as well: they are how a cycle is hidden.
    """
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True, cache_dir=None)
    files = {name: graph.find_modules_directly_imported_by(name) for name in sorted(graph.modules)}
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def main(*packages: str) -> int:
    """Says which files import each other; 1 when some do."""
    if found := cycle(*packages or PACKAGES):
        print(f"Files import each other in a circle: {' -> '.join(found)}")
        return 1
    print("No file imports another one that leads back to it.")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main(*sys.argv[1:]))
