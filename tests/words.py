"""What people read of volmig: visible text of templates, documents, and strings in the source that are sentences."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("volmig", "hosts", "jobs")
Text = tuple[str, str]  # where (path and line), and what it says; each value that is filled in is a blank


def documents() -> list[Path]:
    """README, everything in docs/, and of the changes those that are not released."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def of_templates() -> Iterator[Text]:
    """Text between tags, and attributes that are shown or read aloud; without tags and values of Django's templates."""
    for path in sorted((ROOT / "templates").rglob("*.html")):
        text = re.sub(r"{#.*?#}|{% comment %}.*?{% endcomment %}", "", path.read_text(encoding="utf-8"), flags=re.S)
        shown = re.sub(r"\{\{[^}]*default:\"([^\"]+)\"[^}]*\}\}", r" \1 ", text)
        shown = re.sub(r"\{%[^%]*%\}|\{\{[^}]*\}\}", " ", shown)
        spoken = re.findall(r'(?:title|aria-label|placeholder|alt)="([^"]+)"', shown)
        between = re.sub(r"<(script|style|pre)\b.*?</\1>|<[^>]*>", "\n", shown, flags=re.S)
        for line in [*between.splitlines(), *spoken]:
            if line.strip():
                yield str(path.relative_to(ROOT)), " ".join(line.split())


def of_document(text: str, where: str) -> Iterator[Text]:
    """Paragraphs without code, whether in a block or in a line."""
    without = re.sub(r"^```.*?^```|<!--.*?-->", "", text, flags=re.S | re.M)
    for paragraph in re.sub(r"`[^`\n]*`|\]\([^)]*\)", " ", without).split("\n\n"):
        if paragraph.strip():
            yield where, " ".join(paragraph.split())


def of_documents() -> Iterator[Text]:
    """All documents; of CHANGELOG.md the first section, which is not released."""
    for path in documents():
        yield from of_document(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    newest = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)[1]
    yield from of_document(newest, "CHANGELOG.md")


@dataclass
class Strings(ast.NodeVisitor):
    """Strings of a source file of more than a word, without docstrings; joined where the source joins them."""

    where: str
    found: list[Text]
    served: bool = False  # docstrings of functions are the descriptions of operations of the API

    def visit_Expr(self, node: ast.Expr) -> None:
        """A string alone is a docstring, which only readers of the source see."""
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)) or self.served:
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A string without values."""
        if isinstance(node.value, str):
            self.keep(node.value, node.lineno)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """An f-string; what is in its braces may have strings itself."""
        parts = [str(each.value) if isinstance(each, ast.Constant) else " … " for each in node.values]
        self.keep("".join(parts), node.lineno)
        for each in node.values:
            if isinstance(each, ast.FormattedValue):
                self.visit(each.value)

    def keep(self, text: str, line: int) -> None:
        """Keys and names are a word; statements of SQL and code are not read by people."""
        if " " in text.strip() and not re.match(r"\s*(SELECT|UPDATE|INSERT|WITH|DROP|CREATE|LOCK|import)\b", text):
            self.found.append((f"{self.where}:{line}", " ".join(text.split())))


def of_source(*folders: str) -> Iterator[Text]:
    """Every string of more than a word in these folders, for whomever it may be: what is not seen costs no more."""
    for path in sorted(each for folder in folders for each in (ROOT / folder).rglob("*.py")):
        if path.parent.name != "migrations":
            found: list[Text] = []
            where = str(path.relative_to(ROOT))
            served = path.name == "operations.py" or where == "volmig/api/root.py"
            Strings(where, found, served).visit(ast.parse(path.read_text(encoding="utf-8")))
            yield from found
