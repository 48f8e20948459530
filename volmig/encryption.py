"""Secrets at rest: sealed with keys that lie outside the database, newest first, so that keys can be changed."""

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from volmig import data_dir, keys

KEYS = data_dir.SEALING_KEYS  # a file in the data directory, one key a line; the first seals, all open


class Unopened(Exception):  # noqa: N818 - the word that callers read
    """No key that is there opens it."""


def sealing_keys() -> list[str]:
    """The keys, the newest first. Raises Unopened where this machine lacks them."""
    try:
        return keys.key(KEYS).decode().split()
    except keys.KeysDiffer as error:
        raise Unopened(str(error)) from error


def box() -> MultiFernet:
    """Decrypts with any key in the file, encrypts with the first."""
    return MultiFernet([Fernet(key) for key in sealing_keys()])


def seal(text: str) -> str:
    """Encrypts with the first key, Fernet."""
    return box().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """The text; raises Unopened when the keys are not those that it was sealed with."""
    try:
        return box().decrypt(sealed.encode()).decode()
    except InvalidToken:
        none = f"none of the keys in {data_dir.key_path(KEYS)} decrypts this secret; enter it again"
        raise Unopened(keys.why_outdated(KEYS) or none) from None


def seal_anew(sealed: str) -> str:
    """The same secret under the newest key; raises Unopened."""
    return seal(unseal(sealed))


def new_key() -> None:
    """From now on another key seals; the one before still opens secrets in backups, older ones are gone.

    In a file that an administrator keeps (VOLMIG_SEALING_KEYS_FILE) the administrator has added the new key already.
    """
    if not data_dir.is_given(KEYS):
        content = "\n".join([data_dir.new(KEYS).decode().strip(), *sealing_keys()[:1], ""]).encode()
        data_dir.replace(data_dir.key_path(KEYS), content)
    keys.register(KEYS)
