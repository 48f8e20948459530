"""Everything that says what went wrong reads "Tried to <infinitive>: <clause>. <Sentence>.", wherever it is written."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts.remote.host import HostError, Unreachable
from hosts.remote.hostctl.act import Failed, command, syscall
from hosts.remote.hostctl.verbs import VERBS
from hosts.remote.phrases import PHRASES, phrase, sentence
from hosts.remote.ssh import plain

ROOT = Path(__file__).resolve().parents[1]
HOSTCTL = {"Refused": 1, "Failed": 1}  # the constructor -> where its `tried` stands; `found` and the next step follow
ERRORS = dict.fromkeys(
    ("HostError", "Unreachable", "HostKeyUnknown", "HostKeyChanged", "HostctlDiffers", "Garbled", "Denied", "TooOld"), 0
)
# Infinitives that may follow "Tried to". A refusal with another verb adds it here, once it has been read aloud.
INFINITIVES = set(
    """accept act add adopt answer apply ask attach authorise bind call change check claim clean compare connect
    consume convert copy count create delete detect discard do downgrade end enter erase exchange export fence
    find follow forget give grant hash hold inspect install keep link list load lock log look make mark mount
    move negotiate open parse pass pin protect prove purge put reach read rehearse reject release remove
    rename repeat replace reserve resolve restore restrict revoke roll run save scan seal send set shut sign
    spend stage start stat stop store swap sync test trust undo unexport unlock unmark unmount unpack upgrade
    use validate verify wait write zero take""".split()  # noqa: SIM905
)
NAMES = ("Nova", "Keystone", "LVM", "UUID", "SHA-256", "QEMU", "NFS", "SSH", "ACPI", "libvirt", "I/O", "Python")
HOLE = "\0"  # where a value is put in
Place = tuple[str, str, str, str]  # where, `tried`, `found`, the next step; a value is a hole


def sources() -> list[Path]:
    return [path for folder in ("hosts", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]


class Reader(ast.NodeVisitor):
    """Collects what constructors of refusals are given; a name stands for what its function assigns to it."""

    def __init__(self, path: Path) -> None:
        self.path, self.functions, self.found = path, [], []
        self.helpers: dict[str, str] = {}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == "_tried":
                self.helpers["_tried"] = next(
                    self.text(each.value) for each in ast.walk(node) if isinstance(each, ast.Return)
                )
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.functions.append(node)
        self.generic_visit(node)
        self.functions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        at = {**HOSTCTL, **ERRORS, "No": 1}.get(name)
        inside = "hostctl" in self.path.parts or name not in HOSTCTL
        if at is not None and inside and len(node.args) > at + 1:
            texts = [self.text(each) for each in node.args[at : at + 3]]
            self.found.append((f"{self.path.relative_to(ROOT)}:{node.lineno}", *[*texts, ""][:3]))
        self.generic_visit(node)

    def text(self, node: ast.expr, depth: int = 0) -> str:
        """The words of an expression, with a hole for each value that is known only when it runs."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self.text(each, depth) if isinstance(each, ast.Constant) else HOLE for each in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
            return re.sub(r"%[-.\d]*[a-z]", HOLE, self.text(node.left, depth))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left, depth) + self.text(node.right, depth)
        if isinstance(node, ast.IfExp):
            return self.text(node.body, depth)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "_tried" and node.args:
            return self.text(node.args[0], depth) + self.helpers.get("_tried", "")
        if isinstance(node, ast.Name) and depth < 3:
            given = [each for function in self.functions for each in ast.walk(function) if assigns(each, node.id)]
            texts = {self.text(value_of(each, node.id), depth + 1) for each in given}
            return sorted(texts)[-1] if texts else HOLE
        if isinstance(node, ast.Attribute) and node.attr == "text":
            return "an act's text, which is no infinitive: take its `tried`"
        return HOLE


def assigns(node: ast.AST, name: str) -> bool:
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    target = node.targets[0]
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        return name in [getattr(each, "id", "") for each in target.elts]
    return getattr(target, "id", "") == name


def value_of(node: ast.Assign, name: str) -> ast.expr:
    target = node.targets[0]
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        return node.value.elts[[getattr(each, "id", "") for each in target.elts].index(name)]
    return node.value


def refusals() -> Iterator[Place]:
    for path in sources():
        yield from Reader(path).found


ALL = list(refusals())


def test_the_reader_finds_them_all():
    """About 150 today: a reader that goes blind would pass everything."""
    assert len(ALL) > 120
    assert {"hosts/remote/hostctl/commands.py", "hosts/remote/ssh.py", "hosts/remote/nova_control.py"} <= {
        where.split(":")[0] for where, *_ in ALL
    }


@pytest.mark.parametrize("place", ALL, ids=[each[0] for each in ALL])
def test_a_refusal_is_an_infinitive_a_clause_and_a_sentence(place):
    _, tried, found, after = place
    assert faults(tried, found, after) == []


def faults(tried: str, found: str, after: str) -> list[str]:
    """What is wrong with a refusal; a text that is only a hole is checked where it is made."""
    wrong = []
    first = tried.split(" ")[0]
    if HOLE not in first and first not in INFINITIVES:
        wrong.append(f"`tried` begins with {first!r}, which is no known infinitive")
    if tried.endswith((".", ":")) or re.search(r"[a-z]_[a-z]", tried):
        wrong.append("`tried` ends with a stop, or shows a name from code")
    if found.endswith(".") or ". " in found:
        wrong.append("`found` is not one clause")
    if found[:1].isupper() and not found.startswith(NAMES):
        wrong.append("`found` begins like a sentence")
    if after and after != HOLE and not (after[0].isupper() or after[0] == HOLE):
        wrong.append("the next step does not begin like a sentence")
    if after and after != HOLE and (not after.endswith((".", "?", HOLE)) or after.endswith("..")):
        wrong.append("the next step does not end like a sentence")
    return wrong


@pytest.mark.parametrize(
    ("tried", "found", "after"),
    [
        ("asked: lvs", "it failed", "Resume."),
        ("call relay_facts", "it failed", "Resume."),
        ("run lvs", "It failed.", "Resume."),
        ("run lvs", "it failed. Twice", "Resume."),
        ("run lvs", "it failed", "resume."),
        ("run lvs", "it failed", "Resume.."),
    ],
)
def test_each_of_these_would_be_found(tried, found, after):
    assert faults(tried, found, after)


def test_no_refusal_hands_on_what_python_says():
    """`str(error)` of a system call is "[Errno 13] …", and the type of an exception is a name from code."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(getattr(node, "func", None), "id", "")
            if name not in {**HOSTCTL, **ERRORS, "No": 1} or "__name__" not in ast.unparse(node):
                if name in {**HOSTCTL, **ERRORS, "No": 1} and "hostctl" in path.parts:
                    assert "str(error)" not in ast.unparse(node), f"{path}:{node.lineno}"
                continue
            raise AssertionError(f"{path}:{node.lineno} shows the name of a class")


def test_every_verb_has_its_phrase_and_each_is_an_infinitive():
    assert set(PHRASES) >= set(VERBS)
    assert {phrase(verb).split()[0] for verb in PHRASES} <= INFINITIVES
    assert not any("_" in each for each in PHRASES.values())
    assert phrase("a_verb_of_tomorrow") == "run a step"


def test_an_act_reads_after_tried_to():
    assert command("lvs", "-a").tried == "run lvs -a"
    assert syscall("rename a to b").tried == "rename a to b"


@pytest.mark.parametrize("found", ["the link is down", "the link is down.", "the link is down.. "])
def test_whatever_a_tool_said_the_sentence_has_one_full_stop(found):
    told = "Tried to run lvs: the link is down. Repair it."
    assert sentence("run lvs", found, "Repair it.") == told
    assert str(HostError("run lvs", found, "Repair it")) == told
    assert Failed("code", "run lvs", found, "Repair it.").found == "the link is down"


@pytest.mark.parametrize(
    ("error", "clause"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (OSError("[Errno 113] No route to host"), "No route to host"),
        (TimeoutError(), "no response within"),
        (EOFError(), "the connection was cut"),
    ],
)
def test_an_error_of_the_network_is_a_clause_without_numbers(error, clause):
    said = str(Unreachable("log in to jump", plain(error), "Retrying automatically."))
    assert clause in said
    assert "Errno" not in said
    assert ".." not in said
