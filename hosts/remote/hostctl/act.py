"""What a verb does: acts that can be shown beforehand, and the ways in which a verb says no."""

import shlex
from typing import Any, Dict, NamedTuple, Optional, Tuple

Args = Dict[str, Any]


class Act(NamedTuple):
    """One thing that changes something: a command (argv) or a system call (text only)."""

    kind: str
    argv: Tuple[str, ...]
    text: str


def command(*words: object) -> Act:
    """An act that runs a program; the program is named without its directory, which each host finds for itself."""
    argv = tuple(str(word) for word in words)
    return Act("command", argv, " ".join(_shown(word) for word in argv))


def syscall(text: str) -> Act:
    """An act done by system calls of this process, described for people."""
    return Act("syscall", (), text)


def _shown(word: str) -> str:
    # A placeholder such as «lv_uuid» is not a shell word; quoting it would only hide it.
    return word if word.startswith("«") and word.endswith("»") else shlex.quote(word)


class Stop(Exception):  # noqa: N818  what it says is an answer, not a fault
    """A verb ends without success; `code` names the guard, the sentences are for the operator."""

    state = "failed"
    touched: Optional[bool] = None

    def __init__(self, code: str, tried: str, found: str, next_step: str, **evidence: Any) -> None:
        super().__init__("%s: %s" % (code, found))
        self.code, self.tried, self.found, self.next_step, self.evidence = code, tried, found, next_step, evidence

    def error(self, touched: Optional[bool]) -> Dict[str, Any]:
        return {
            "code": self.code,
            "tried": self.tried,
            "found": self.found,
            "touched": touched,
            "next": self.next_step,
            "evidence": self.evidence,
        }


class Refused(Stop):
    """A precondition did not hold."""

    state = "refused"


class Failed(Stop):
    """It acted, or may have, and it did not come out right."""
