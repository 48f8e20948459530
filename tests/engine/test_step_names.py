"""Only the part that gives a step names it: what others need to know of one, they ask of its task, or of the step.

A literal that is a step's name may mean something else: a kind of approval, a verb of hostctl, an action of Nova. Where
the code around it says so, that is allowed everywhere (`MEANS_SOMETHING_ELSE`); else the place is listed in EXCEPTIONS.
"""

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from jobs.engine import first_steps, routes

ROOT = Path(__file__).parents[2]
NAMES = frozenset(routes.named())
# The parts, and what format 1 of stored plans leaves out of steps, which is never changed.
ENGINE = ROOT / "jobs/engine"
PARTS = {path for folder in ("endpoints", "transports", "controls") for path in (ENGINE / folder).glob("*.py")}
OWN = {*PARTS, Path(first_steps.__file__)}
KINDS = ("kind", "kind__in")  # arguments and attributes: the kind of an approval, or of a thing that a step leaves
OF_APPROVALS = ("bound", "ask", "make_approval", "_asked", "_undecided")  # functions that take such a kind
ACTIONS = ("_verb",)  # functions that take the name of what a person does
APPROVAL, THING, PAGE = "a kind of approval", "a kind of thing that a step leaves", "what a person does on a page"
BOUND, NOVA, VERB = "a key of what an approval binds", "an action of Nova", "a verb of hostctl, or an argument of one"
# By the place: the function, or the table of the module, with what stands around it.
EXCEPTIONS = {
    "KINDS": (APPROVAL, THING),
    "Kind": (APPROVAL,),
    "ASKABLE": (APPROVAL,),
    "sealing.VERBS": (APPROVAL, VERB),
    "sealing.PHASES": (APPROVAL,),
    "review.WORDS": (APPROVAL,),
    "review.DOWN": (APPROVAL,),
    "ON_SHARE": (THING,),
    "approval_binding.swap": (BOUND,),
    "approval_binding.stale": (BOUND,),
    "approval_binding.rollback": (BOUND,),
    "approval_binding.purge": (BOUND,),
    "sealing.arguments": (BOUND,),
    "Review.rows": (BOUND,),
    "migrations.VERBS": (PAGE,),
    "adoption.VERBS": (PAGE,),
    "migrations.submit": (PAGE,),
    "Want": (PAGE,),
    "START": (PAGE,),
    "REHEARSE": (PAGE,),
    "wants": (PAGE,),
    "SPOKEN": (PAGE,),
    "client.*": (PAGE,),
    "ASKED_OF_NOVA": (NOVA,),
    "done_through_nova": (NOVA,),
    "USUAL": (NOVA,),
    "nova_control.*": (NOVA,),
    "tasks.changes": (NOVA,),
    "PHRASES": (VERB,),
    "FIELDS_SINCE": (VERB,),
    "progress.PHASES": ("a title of a phase",),
    "STATUSES": ("a name of an icon",),
}


def sources():
    """Every module of the product that is no part of a route; hostctl has no steps, only verbs."""
    for top in ("jobs", "hosts", "volmig"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if path not in OWN and not {"migrations", "hostctl"} & set(path.relative_to(ROOT).parts[:-1]):
                yield path


def literals(text, module):
    """Each literal that is a step's name and whose surroundings do not say that it means something else: (place, name,
    line)."""
    yield from _walk(ast.parse(text), [module], [])


def _walk(node, place, around):
    if isinstance(node, ast.Constant) and node.value in NAMES and not means_something_else(node, around):
        yield ".".join(place), node.value, node.lineno
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        place = [*place, node.name]
    elif isinstance(node, ast.Assign | ast.AnnAssign) and len(place) == 1:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        place = [*place, getattr(target, "id", "")]
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, place, [*around, node])


def means_something_else(node, around):
    for inner, outer in zip([*around, node][:0:-1], around[::-1], strict=True):
        if isinstance(inner, ast.keyword) and inner.arg in KINDS:
            return True
        if isinstance(outer, ast.Compare):
            return any(name_of(each) in (*KINDS, "verb") for each in (outer.left, *outer.comparators))
        if isinstance(outer, ast.Call):
            called = name_of(outer.func)
            if called in (*ACTIONS, *OF_APPROVALS) and inner in outer.args:
                return True
    return False


def name_of(node):
    return getattr(node, "attr", getattr(node, "id", ""))


def excepted(place):
    """The exceptions that a place falls under: by the end of its dotted name."""
    return [name for name in EXCEPTIONS if fnmatchcase(f".{place}", f"*.{name}")]


def test_no_step_is_named_outside_the_part_that_gives_it():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name!r} in {place}"
        for path in sources()
        for place, name, line in literals(path.read_text(), path.stem)
        if not excepted(place)
    ]
    assert found == [], "Ask for the step of a task, as in plan.one(Task.EXCHANGE), or give Step an attribute."


def test_each_exception_is_needed():
    places = {place for path in sources() for place, _, _ in literals(path.read_text(), path.stem)}
    assert [name for name in EXCEPTIONS if not any(name in excepted(place) for place in places)] == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('run.step == "swap"', ["swap"]),
        ('run.step in ("lock", "stop")', ["lock", "stop"]),
        ('runs.filter(step="swap")', ["swap"]),
        ('evidence["stage_verify"]', ["stage_verify"]),
        ('journal.runs("swap", "do")', ["swap"]),
        ('BOXES = {"A": ("relay_lv", "convert")}', ["relay_lv", "convert"]),
        ('approvals.filter(kind="swap")', []),
        ('asked.kind == "purge"', []),
        ('approvals.filter(kind=chosen(each.step == "swap"))', ["swap"]),
        ('job.ask("purge", user)', []),
        ('job.ask(of(each.step == "purge"), user)', ["purge"]),
        ('step.verb == "purge"', []),
    ],
)
def test_a_name_is_found_where_it_means_a_step(line, names):
    assert [name for _, name, _ in literals(line, "module")] == names


TAG = re.compile(r"{[%{].*?[%}]}")
QUOTED = re.compile(r"""["']([^"']*)["']""")
ELSEWHERE = re.compile(r"""(\bicon|\burl ["'][\w:]+["']|\.kind [=!]=|\.verb [=!]=)\s*$""")


def named_in(template):
    """The step names that tags of a template have as literals, where they are no icon, page, kind or verb."""
    for tag in TAG.findall(template):
        for literal in QUOTED.finditer(tag):
            if NAMES & set(literal[1].split()) and not ELSEWHERE.search(tag[: literal.start()]):
                yield literal[0]


def test_no_template_names_a_step():
    found = [(path.name, name) for path in (ROOT / "templates").rglob("*.html") for name in named_in(path.read_text())]
    assert found == []


def test_a_name_in_a_template_is_found():
    assert list(named_in('{% if run.step == "swap" %}{% icon "lock" %}{% if asked.kind == "swap" %}')) == ['"swap"']
    assert list(named_in('{% if run.step in "lock stop" %}')) == ['"lock stop"']
