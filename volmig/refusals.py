"""How volmig says no: sentences for people, each with a code for programs."""

from collections.abc import Iterable


class Sentence(str):
    """Why something may not be; the words may get better, `code` stays, because programs branch on it."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str, words: str) -> "Sentence":
        made = super().__new__(cls, words)
        made.code = code
        return made


class Refused(Exception):  # noqa: N818 - the word that callers read
    """Nothing was changed; `sentences` tell a person why."""

    def __init__(self, sentences: Sentence | Iterable[Sentence]) -> None:
        self.sentences = [sentences] if isinstance(sentences, Sentence) else list(sentences)
        super().__init__(" ".join(self.sentences))


class Moved(Exception):  # noqa: N818
    """Somebody else was first: the row is not as it was when it was read."""
