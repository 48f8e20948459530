"""python -m tests.house: figures of the source, to consider and not to cut code for. See docs/layout.md."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("volmig", "hosts", "jobs")
SHOWN = 12  # of the longest functions, of modules, of repeats
LONG = 400  # lines, from which on a module is named
BLOCK = 4  # lines that are the same in two places, at least
PATCHES = {"setattr", "setitem", "delattr", "delitem", "setenv", "delenv"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """One source file: its path from the root, its lines and its tree."""

    path: str
    lines: list[str]
    tree: ast.Module


@dataclass(frozen=True)
class Measured:
    """A function with its length: lines of code from `def` to its end, without docstring, comments and blank lines."""

    place: str
    lines: int


def files(*folders: str, root: Path = ROOT) -> list[File]:
    """All Python files there but migrations of tables."""
    found = []
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        if "migrations" not in path.parent.parts:
            text = path.read_text(encoding="utf-8")
            found.append(File(str(path.relative_to(root)), text.splitlines(), ast.parse(text)))
    return found


def documented(node: Function | ast.ClassDef | ast.Module) -> range:
    """The lines of its docstring, none when it has none."""
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return range(first.lineno, (first.end_lineno or first.lineno) + 1)
    return range(0)


def code(file: File, first: int, last: int, but: range = range(0)) -> list[tuple[int, str]]:
    """Number and text, without indentation, of the lines that hold code."""
    numbered = ((number, file.lines[number - 1].strip()) for number in range(first, last + 1) if number not in but)
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def functions(found: Iterable[File]) -> list[Measured]:
    return [
        Measured(
            f"{file.path}:{node.lineno} {node.name}",
            len(code(file, node.lineno, node.end_lineno or node.lineno, documented(node))),
        )
        for file in found
        for node in ast.walk(file.tree)
        if isinstance(node, Function)
    ]


def public(node: ast.AST, inside: bool = True) -> Iterator[Function | ast.ClassDef]:
    """Public classes, and public functions and methods of modules and public classes; not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef) and child.name != "Meta":
                yield from public(child)
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from public(child)


def undocumented(found: Iterable[File]) -> tuple[int, dict[str, int]]:
    """How many public functions and classes there are, and by file how many of them have no docstring."""
    every, without = 0, defaultdict[str, int](int)
    for file in found:
        for node in public(file.tree):
            if node.name != "Meta":
                every += 1
                without[file.path] += not documented(node)
    return every, {path: number for path, number in without.items() if number}


def patches(found: Iterable[File]) -> tuple[int, int]:
    """Tests, and calls that put something else in the place of what is tested (monkeypatch, mock.patch)."""
    tests = done = 0
    for file in found:
        for node in ast.walk(file.tree):
            tests += isinstance(node, Function) and node.name.startswith("test_")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                whose = ast.unparse(node.func.value)
                done += node.func.attr in PATCHES and whose == "monkeypatch"
                done += "mock" in whose.split(".") and node.func.attr in ("patch", "object")
    return tests, done


def repeats(found: Iterable[File]) -> list[tuple[int, str, list[str]]]:
    """Blocks of the same lines in two places or more: how many lines, the first of them, where. The longest first.

    Lines of imports and those without a letter do not begin a block.
    """
    lines = {file.path: code(file, 1, len(file.lines), documented(file.tree)) for file in found}
    seen: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path, rows in lines.items():
        for at in range(len(rows) - BLOCK + 1):
            texts = tuple(text for _, text in rows[at : at + BLOCK])
            if not any(text.startswith(("from ", "import ")) for text in texts) and texts[0].strip("()[]{},") != "":
                seen[texts].append((path, at))
    shown, covered = [], set[tuple[str, int]]()
    for places in seen.values():
        if len(places) < 2 or covered.issuperset(places):
            continue
        length = BLOCK
        while len(longer := {text_at(lines, path, at + length) for path, at in places}) == 1 and None not in longer:
            length += 1
        covered |= {(path, at + more) for path, at in places for more in range(length)}
        first = lines[places[0][0]][places[0][1]]
        shown.append((length, first[1], [f"{path}:{lines[path][at][0]}" for path, at in places]))
    return sorted(shown, key=lambda each: -each[0] * (len(each[2]) - 1))


def text_at(lines: dict[str, list[tuple[int, str]]], path: str, at: int) -> str | None:
    return lines[path][at][1] if at < len(lines[path]) else None


def report(root: Path = ROOT) -> Iterator[str]:
    """The lines of all figures."""
    product, tests = files(*PACKAGES, root=root), files("tests", root=root)
    yield f"{len(product)} files of {', '.join(PACKAGES)}, {sum(len(file.lines) for file in product)} lines."
    measured = sorted(functions(product), key=lambda each: -each.lines)
    lengths = [each.lines for each in measured]
    yield (
        f"Functions: {len(lengths)}, median {median(lengths):g} lines, "
        f"90 % up to {quantiles(lengths, n=10)[-1]:g}, longest {lengths[0]}:"
    )
    yield from (f"  {each.lines:4}  {each.place}" for each in measured[:SHOWN])
    long = sorted(((len(file.lines), file.path) for file in product if len(file.lines) > LONG), reverse=True)
    yield f"Modules of more than {LONG} lines: {len(long)}:"
    yield from (f"  {number:4}  {path}" for number, path in long[:SHOWN])
    every, without = undocumented(product)
    lacking = sum(without.values())
    yield f"Public functions and classes with a docstring: {100 * (every - lacking) / every:.0f} % of {every}. Without:"
    most = sorted(without.items(), key=lambda each: -each[1])
    yield from (f"  {number:4}  {path}" for path, number in most[:SHOWN])
    count, done = patches(tests)
    yield f"Patches for each test: {done / count:.2f} ({done} in {count})."
    same = repeats(product)
    yield f"Blocks of {BLOCK} lines or more that are in several places: {len(same)}:"
    yield from (f"  {length:4}  {', '.join(where)}: {first}" for length, first, where in same[:SHOWN])


if __name__ == "__main__":
    sys.stdout.write("\n".join(report()) + "\n")
