"""What a verb does: acts that can be shown beforehand, and the ways in which a verb says no."""

import shlex
from typing import Any, Dict, NamedTuple, Optional, Tuple

Args = Dict[str, Any]
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class Act(NamedTuple):
    """One thing that changes something: a command (argv) or a system call (text only)."""

    kind: str
    argv: Tuple[str, ...]
    text: str

    @property
    def tried(self) -> str:
        """The act as it reads after "Tried to"."""
        return "run %s" % self.text if self.kind == "command" else self.text


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


def reason(error: OSError) -> str:
    """Why a system call failed, in the system's words and without its number."""
    said = error.strerror or "the system gave no reason"
    return said[:1].lower() + said[1:]


class Stop(Exception):  # noqa: N818  what it says is an answer, not a fault
    """A verb ends without success; `code` names the guard, the rest makes a sentence for the operator.

    It reads "Tried to {tried}: {found}. {next_step}": an infinitive without "to", a clause, and a sentence.
    """

    state = "failed"
    touched: Optional[bool] = None

    def __init__(self, code: str, tried: str, found: str, next_step: str, **evidence: Any) -> None:
        super().__init__("%s: %s" % (code, found))
        # What a tool said often ends with a full stop; the sentence that it becomes part of has its own.
        self.code, self.tried, self.found = code, tried.rstrip(". "), found.rstrip(". ")
        self.next_step, self.evidence = next_step, evidence

    def error(self, touched: Optional[bool]) -> Dict[str, Any]:
        """The refusal as JSON; `touched` is None while it is unknown whether anything was changed."""
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
