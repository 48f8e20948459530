"""The ways in which a verb says no: to a person, and to a worker that comes too late."""


class Moved(Exception):  # noqa: N818
    """Somebody else was first: the row is not as it was when it was read."""
