"""The commands of a page of docs/: its fenced sh blocks, each with the remark that says how a test treats it."""

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^(?:<!-- test: (?P<remark>[^\n]+) -->\n)?```sh\n(?P<script>.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    chapter: str
    script: str
    remark: str = ""  # empty: it is run as it stands

    def __str__(self) -> str:
        return f"{self.chapter}: {self.script.splitlines()[0][:60]}"


def of(page: Path) -> list[Block]:
    """The blocks of a page in their order, with the heading that each stands under."""
    text = page.read_text()
    headings = [(found.start(), found[1]) for found in HEADING.finditer(text)]

    def chapter(at: int) -> str:
        return next((name for begins, name in reversed(headings) if begins < at), "")

    return [Block(chapter(at.start()), at["script"], at["remark"] or "") for at in BLOCK.finditer(text)]
