"""Quantities as operators read them."""

import datetime as dt

import pytest
from django.utils import timezone

from volmig.templatetags.units import age, duration, rate, size


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        *[(0, "0 s"), (12.4, "12 s"), (60, "1 min"), (192, "3 min 12 s"), (3600, "1 h"), (18120, "5 h 2 min")],
        *[(None, "–"), (2 * 86400 + 3 * 3600 + 59, "2 d 3 h"), (-3, "0 s"), (3601, "1 h")],
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds, said):
    assert duration(seconds) == said


def test_an_age_has_the_absolute_time_and_zone_on_hover():
    at = timezone.now() - dt.timedelta(seconds=12)
    assert ">12 s ago</time>" in age(at)
    assert f'title="{at:%Y-%m-%d %H:%M:%S} UTC"' in age(at)


def test_what_was_never_seen_says_so():
    assert "never" in age(None)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (52 * 1024, "52.0 KiB"),
        (512 * 1024**2, "512.0 MiB"),
        (10 * 1024**3, "10.0 GiB"),
        (1023 * 1024**3, "1023.0 GiB"),
        (1024 * 1024**3, "1.0 TiB"),
        (20_000 * 1024**3, "19.5 TiB"),
    ],
)
def test_a_size_is_in_the_unit_in_which_it_is_a_small_number(count, said):
    assert f">{said}<" in size(count)


def test_a_size_has_its_exact_bytes_on_hover():
    assert 'title="1\u202f073\u202f741\u202f825 bytes"' in size(1024**3 + 1)


def test_a_rate_is_in_mib_per_second():
    assert rate(110 * 1024**2) == "110.0 MiB/s"
    assert rate(None) == "–"
