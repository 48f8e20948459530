"""Pytest fixtures: the storage lab for a session, and the same one made pristine for a test."""

import os
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The checkout's lab, booted when it is not up; ended afterwards if we booted it, unless VOLMIG_LAB_KEEP=1."""
    lab = Lab()
    with lab.held():
        keep = lab.is_up() or os.environ.get("VOLMIG_LAB_KEEP") == "1"
        try:
            lab.up()
            yield lab
        finally:
            if not keep:
                lab.down()


@pytest.fixture
def clean_lab(lab: Lab) -> Lab:
    """The lab as after its first boot; cleaned before the test, so that what a failed one left can be looked at."""
    lab.reset()
    return lab
