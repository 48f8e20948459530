"""Migrations over fakes, and with the real hostctl over fake tools, as in tests/jobs."""

from tests.jobs.conftest import drive as drive
from tests.jobs.conftest import machines as machines
from tests.jobs.conftest import real_life as real_life
from tests.jobs.conftest import site as site
