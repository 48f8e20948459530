"""The way in which a verb says no to a person."""

from collections.abc import Iterable


class Refused(Exception):  # noqa: N818 - the word that callers read
    """Nothing was changed; `sentences` tell a person why."""

    def __init__(self, sentences: str | Iterable[str]) -> None:
        self.sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        super().__init__(" ".join(self.sentences))


class Moved(Exception):  # noqa: N818
    """Somebody else was first: the row is not as it was when it was read."""
