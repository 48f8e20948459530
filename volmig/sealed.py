"""Secrets at rest: sealed with keys that lie outside the database, newest first, so that keys can be changed."""

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from volmig import data

KEYS = "sealing_keys"  # a file in the data directory, one key a line; the first seals, all open


class Unopened(Exception):  # noqa: N818 - the word that callers read
    """No key that is there opens it."""


def keys() -> list[str]:
    path = data.directory() / KEYS
    content = path.read_bytes() if path.exists() else data.write_once(path, Fernet.generate_key() + b"\n", shared=True)
    return content.decode().split()


def box() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys()])


def seal(text: str) -> str:
    return box().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """The text; raises Unopened when the keys are not those that it was sealed with."""
    try:
        return box().decrypt(sealed.encode()).decode()
    except InvalidToken:
        found = f"none of the keys in {data.directory() / KEYS} opens this secret; enter it again"
        raise Unopened(found) from None


def seal_anew(sealed: str) -> str:
    """The same secret under the newest key; raises Unopened."""
    return seal(unseal(sealed))


def new_key() -> None:
    """From now on another key seals; the one before still opens what lies in backups, older ones are gone."""
    data.replace(data.directory() / KEYS, "\n".join([Fernet.generate_key().decode(), *keys()[:1], ""]).encode())
