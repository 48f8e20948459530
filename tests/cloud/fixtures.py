"""Pytest fixtures: the control plane for a session, and the same one without servers and trouble for a test."""

import os
from collections.abc import Iterator

import pytest

from tests.cloud.plane import ControlPlane
from tests.cloud.real import RealPlane


@pytest.fixture(scope="session")
def cloud() -> Iterator[ControlPlane]:
    """The checkout's plane, started when it is not up; ended afterwards if we started it (VOLMIG_CLOUD_KEEP)."""
    plane = ControlPlane()
    with plane.held():
        keep = plane.is_up() or os.environ.get("VOLMIG_CLOUD_KEEP") == "1"
        try:
            plane.up()
            yield plane
        finally:
            if not keep:
                plane.down()


@pytest.fixture
def clean_cloud(cloud: ControlPlane) -> ControlPlane:
    """The plane as after its first start; cleaned before the test, so that what a failed one left can be looked at."""
    cloud.reset()
    return cloud


@pytest.fixture(scope="session")
def real_cloud() -> Iterator[RealPlane]:
    """The lab with Nova's own libvirt driver on it, likewise."""
    plane = RealPlane()
    with plane.lab.held(), plane.held():
        keep = plane.is_up() or os.environ.get("VOLMIG_CLOUD_KEEP") == "1"
        try:
            plane.up()
            yield plane
        finally:
            if not keep:
                plane.down()
