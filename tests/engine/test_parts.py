"""Parts of routes are known to their own file and to the registry alone: the rest of the engine asks the route.

A literal that is the name of a part may mean something else: where it does, the place is listed in EXCEPTIONS.
"""

import ast
import dataclasses
from pathlib import Path

import pytest

from jobs.engine import first_steps, routes
from jobs.engine.checks import rules_of
from jobs.engine.rules import About
from jobs.engine.steps import LIMITS, Made, Task

from .sound import FACTS, MIGRATION

ENGINE = Path(routes.__file__).parent
FOLDERS = ("endpoints", "transports", "controls")
PARTS = {id(part): part for route in routes.every() for part in route.parts}.values()
KINDS = {*routes.ROUTES, *(part.kind for part in PARTS)} - {""}
CLASSES = {type(part).__name__ for part in PARTS}
OBJECTS = {name for name, value in vars(routes).items() if any(value is part for part in PARTS)}
EXCEPTIONS = {
    ("first_steps.py", "lv"): "a kind of footprint, in what is never changed of plans of earlier releases",
    ("lv.py", "lv"): "its own name, and the argument of hostctl by which a volume is opened",
    ("relay_nfs.py", "lv"): "an argument of hostctl for the temporary volume, and the kind of footprint that it is",
}


def named_in(text):
    """Each name of a part in a module: as a literal, as a class or object, as a module that is imported."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in KINDS:
            yield node.value
        elif isinstance(node, ast.Name) and node.id in CLASSES | OBJECTS:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in CLASSES | OBJECTS:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and set(node.module.split(".")) & set(FOLDERS):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if set(each.name.split(".")) & set(FOLDERS))


def own(path):
    """What a file of a part may name: its own part, and what is in its folder, as a control adds to another one."""
    here = [part for part in PARTS if type(part).__module__ == f"jobs.engine.{path.parent.name}.{path.stem}"]
    names = {name for part in here for name in (part.kind, type(part).__name__)}
    objects = {name for name in OBJECTS if any(vars(routes)[name] is part for part in here)}
    controls = {"jobs.engine.controls.libvirt", "Libvirt"} if path.parent.name == "controls" else set()
    return names | objects | controls


def places():
    for path in sorted(ENGINE.rglob("*.py")):
        if path != Path(routes.__file__):
            yield from ((path.name, name) for name in named_in(path.read_text()) if name not in own(path))


def test_no_part_is_named_outside_its_file_and_the_registry():
    found = sorted({place for place in places() if place not in EXCEPTIONS})
    print(f"places in jobs/engine that name a part outside its file and the registry: {len(found)}")
    assert found == [], "Ask the route: routes.of(migration).source, .transport, .sink or .control."


def test_each_exception_is_needed():
    assert {("lv.py", "lv"), *places()} >= set(EXCEPTIONS)
    assert first_steps.FIRST_STEPS["relay_lv"]["leaves"] == "lv"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('kind == "qcow2"', ["qcow2"]),
        ('ROUTES["relay-nfs"]', ["relay-nfs"]),
        ('control = "openstack"', ["openstack"]),
        ("from jobs.engine.endpoints.lv import LV", ["jobs.engine.endpoints.lv"]),
        ("import jobs.engine.transports.relay_nfs", ["jobs.engine.transports.relay_nfs"]),
        ("routes.QCOW2.verify()", ["QCOW2"]),
        ("isinstance(source, LogicalVolume)", ["LogicalVolume"]),
        ('"qcow2 is a format"', []),
    ],
)
def test_a_name_of_a_part_is_found(line, names):
    assert list(named_in(line)) == names


# What every route has to hold, whatever it is made of


def every_route():
    return list(routes.every())


def made(args):
    for value in args.values():
        if isinstance(value, dict):
            yield from made(value)
        elif isinstance(value, Made):
            yield value


def check_whole(route):
    """What a plan of this route needs: each task once where others ask for the one step of it, and no loose end."""
    steps = route.steps
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    for task in set(Task) - {Task.OPEN, Task.CLOSE, Task.DELIVER, Task.FORGET, Task.REHEARSE}:
        route.one(task)
    phases = [step.phase for step in steps]
    assert phases == sorted(phases)
    assert set(phases) == set("ABCD")
    for at, step in enumerate(steps):
        later, earlier = names[at + 1 :], names[:at]
        assert step.torn_by in ("", *later)
        assert step.rests_on in ("", *earlier)
        assert step.box
        for value in made(step.args):
            assert value.step in (LIMITS, *earlier), f"{step.name} needs what {value.step} has not measured yet"
        assert step.undo or not step.artifact
    order = [step.task for step in steps]
    assert order.index(Task.FENCE) < order.index(Task.COPY) < order.index(Task.COMPARE) < order.index(Task.VERIFY)
    assert {step.on for step in steps if step.task is Task.FORGET and step.phase == "C"} == set(route.roles)
    assert {step.on for step in steps} <= {*route.roles, "instance"}


@pytest.mark.parametrize("route", every_route(), ids=lambda route: f"{route.name} {route.control.kind}")
def test_a_route_is_whole(route):
    check_whole(route)


@pytest.mark.parametrize("route", every_route(), ids=lambda route: f"{route.name} {route.control.kind}")
def test_whoever_delivers_the_copy_says_what_it_sees_of_its_place(route):
    fields = {field.name for field in dataclasses.fields(route.answers[route.transport.delivers])}
    assert "share" in fields, "else the checks of space and of permissions would silently be left out"
    assert route.transport.delivers in route.roles


def steps_of_parts(route):
    """The steps of each part as it gives them, before routes fill in what parts leave open between them."""
    source, transport, sink, control = route.source, route.transport, route.sink, route.control
    return {
        source: (*source.fence(), *source.release()),
        transport: (*transport.open(source, sink), *transport.carry(source, sink), *transport.close()),
        sink: (*sink.verify(transport.copied()), *sink.exchange(), *sink.purge(), *sink.rehearsal()),
        control: (*control.lock(), *control.stop(sink), *control.start(sink), *control.unlock()),
    }


@pytest.mark.parametrize("route", every_route(), ids=lambda route: f"{route.name} {route.control.kind}")
def test_a_part_undoes_and_rests_on_its_own_steps_and_names_none_of_another(route):
    for part, steps in steps_of_parts(route).items():
        names = {step.name for step in steps}
        for step in steps:
            assert isinstance(step.torn_by, Task) or step.torn_by in {"", *names}
            assert step.rests_on in {"", *names}
        given = {value for name in vars(type(part)) for value in made_of(part, name)}
        assert {value.step for value in given if not isinstance(value.step, Task)} <= {LIMITS, *names}


def made_of(part, name):
    """What a method of a part refers to in the mappings that it hands to other parts."""
    handed = {"fenced", "exchanged", "copied", "reader", "writer", "live", "purge_after_rollback"}
    return made(getattr(part, name)()) if name in handed else ()


def test_a_name_of_a_step_means_the_same_on_every_route():
    for name, step in routes.named().items():
        others = [each for route in routes.every() for each in (*route.steps, *route.rehearsal) if each.name == name]
        assert {(each.task, each.on, each.phase, each.artifact, each.throughput, each.box) for each in others} == {
            (step.task, step.on, step.phase, step.artifact, step.throughput, step.box)
        }


def test_a_check_has_one_name():
    for route in routes.every():
        names = [rule.name for rule in rules_of(route)]
        assert len(set(names)) == len(names)
        assert names.index("policies allow it") == 0
        assert names[-1] == "clocks agree"
        assert [rule.about for rule in rules_of(route)] == sorted(rule.about for rule in rules_of(route))
    assert len(About) == len({rule.about for route in routes.every() for rule in rules_of(route)})


def test_what_no_volmig_of_today_knows_is_refused():
    with pytest.raises(routes.UnknownRoute, match="no route 'pigeon'"):
        routes.route_of("pigeon")
    with pytest.raises(routes.UnknownRoute, match="under the control 'vcenter'"):
        routes.route_of("relay-nfs", "vcenter")
    with pytest.raises(routes.UnknownRoute):
        routes.control_of("vcenter")


def test_a_route_with_a_loose_end_is_no_route(monkeypatch):
    source, transport, sink = routes.ROUTES["relay-nfs"]

    class Endless(type(sink)):
        def exchange(self):
            return (*super().exchange(), dataclasses.replace(super().exchange()[0], name="swap_again"))

    monkeypatch.setitem(routes.ROUTES, "endless", (source, transport, Endless()))
    with pytest.raises(LookupError, match="endless has 2 steps to exchange"):
        _ = routes.route_of("endless").steps


def test_two_parts_that_give_a_value_the_same_name_make_no_plan(monkeypatch):
    source, transport, sink = routes.ROUTES["relay-nfs"]

    class Greedy(type(sink)):
        def values(self, ask, facts):
            return {**super().values(ask, facts), "lv_uuid": "of another volume"}

    monkeypatch.setitem(routes.ROUTES, "greedy", (source, transport, Greedy()))
    with pytest.raises(LookupError, match="Two parts of greedy give the planned value lv_uuid"):
        routes.route_of("greedy").values(MIGRATION, FACTS)


def test_without_facts_of_a_part_no_plan_is_made():
    route = routes.route_of("relay-nfs")
    with pytest.raises(ValueError, match="needs the source volume, the relay's volume group, and the share on both"):
        route.values(MIGRATION, dataclasses.replace(FACTS, relay=None))
