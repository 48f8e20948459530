"""Writes docs/reference.md from what is served: operations, codes of refusals, and the client's commands."""

import ast
import os
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs/reference.md"
SOURCES = ("volmig", "hosts", "jobs")
HEAD = """# Reference of the REST API and the client

Written by `make reference` from the code; a test refuses one that is not current. How to begin: [the API](api.md),
[the client](client.md).
"""


def text():
    from volmig import client
    from volmig.api.root import chapters

    parts = [HEAD, "\n## Operations\n", *map(chapter, chapters()), "\n## Codes of refusals\n", CODES]
    parts += [f"| `{code}` | {words} |\n" for code, words in sorted(codes().items())]
    parts += ["\n## The client's commands\n\n", *(command(name, each) for name, each in client.commands().items())]
    return "".join([*parts, EXITS, *(f"| {code} | {means} |\n" for code, means in client.CODES.items())])


CODES = """
The sentences are those of the pages; `…` stands for names and figures. Codes of fields that are not filled in well,
such as `required`, `invalid` or `invalid-choice`, come with the field's name.

| code | sentence |
|---|---|
"""
EXITS = "\n## The client's exit codes\n\n| code | means |\n|---|---|\n"


def chapter(told):
    return f"\n### {told['name']}\n" + "".join(map(operation, told["operations"]))


def operation(told):
    lines = [f"\n**`{told['method']} {told['address']}`** {told['summary']}.", told["description"]]
    if told["parameters"]:
        lines.append("Parameters: " + ", ".join(f"`{name}`" for name in told["parameters"]) + ".")
    if told["sends"]:
        lines.append("Request body: " + ", ".join(map(field, told["sends"])) + ".")
    gives = ", ".join(f"{status} {shape}".strip() for status, shape in told["gives"].items())
    return (
        "\n".join(line for line in [*lines, f"Returns {gives}; errors: {', '.join(told['refuses'])}."] if line) + "\n"
    )


def field(told):
    return f"`{told['name']}` {told['kind']}" + ("" if told["needed"] else f" ({told['usual']})")


def command(name, parser):
    actions = [each for each in parser._actions if each.dest not in ("help", "json")]
    words = [each.option_strings[0] if each.option_strings else each.metavar or each.dest.upper() for each in actions]
    usual = " ".join(f"`{word}`" for word in words)
    return f"- `{name}` {usual}{': ' if usual else ''}{parser.description}\n".replace("  ", " ")


def codes():
    """Every code that a sentence has in the source, with its words."""
    found = {}
    for file in sorted(each for name in SOURCES for each in (ROOT / name).rglob("*.py")):
        tree = ast.parse(file.read_text())
        for function in [*(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), tree]:
            said = {}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    said.setdefault(node.targets[0].id, []).append((node.lineno, node.value))
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Sentence" and len(node.args) == 2:
                    code, words = spoken(node.args[0]), spoken(node.args[1], said, node.lineno)
                    if code and words and "…" not in code:
                        found.setdefault(code, words)
    return found | {f"request-{state}": f"This request is {state}." for state in STATES}


UNSAID = "The sentence says why."
STATES = ("approved", "consumed", "expired", "rejected", "void")


def spoken(node, said=None, line=0):
    """The text of an expression, as far as the source tells it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
    if isinstance(node, ast.Name) and said:
        before = [(number, value) for number, value in said.get(node.id, []) if number < line]
        return spoken(max(before, key=lambda each: each[0])[1]) if before else UNSAID
    return UNSAID if said is not None else ""


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    FILE.write_text(text())
