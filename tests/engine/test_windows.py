"""Windows and blackout days: what is read, what is open when, and the next span that is long enough."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.engine.windows import Blackout, Schedule, Span, Window, next_fit, outlook, sentence, words

UTC = dt.UTC
WEDNESDAY = dt.datetime(2026, 11, 25, 17, 0, tzinfo=UTC)
TWO_HOURS, MINUTE = dt.timedelta(hours=2), dt.timedelta(minutes=1)


def at(text):
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(*lines, zone="UTC", blackouts=()):
    return Schedule(zone, tuple(map(Window.read, lines)), tuple(map(Blackout.read, blackouts)))


@pytest.mark.parametrize(
    ("line", "usual"),
    [
        ("thu 2:00-4:00", "Thu 02:00-04:00"),
        (" Monday - Friday 22:00 - 06:00 ", "Mon-Fri 22:00-06:00"),
        ("Sat-Mon 00:00-24:00", "Sat-Mon 00:00-24:00"),
    ],
)
def test_a_window_is_read_as_people_write_it(line, usual):
    assert str(Window.read(line)) == usual
    assert Window.read(usual) == Window.read(line)


@pytest.mark.parametrize(
    "line", ["", "02:00-04:00", "Xyz 02:00-04:00", "Thu 25:00-26:00", "Thu 02:61-04:00", "Thu 2-4"]
)
def test_what_is_no_window_is_refused_with_a_sentence(line):
    with pytest.raises(ValueError, match="is no"):
        Window.read(line)


@pytest.mark.parametrize("line", ["", "24.12.2026", "2026-13-01", "2026-12-24 to 2026-12-01", "2026-02-30"])
def test_what_is_no_day_is_refused_with_a_sentence(line):
    with pytest.raises(ValueError, match=r"is no day|ends before it begins"):
        Blackout.read(line)


def test_without_windows_it_is_always_open():
    assert next_fit([schedule()], WEDNESDAY, TWO_HOURS).begin == WEDNESDAY


def test_a_weekly_window_is_found_before_in_and_after_it():
    thursdays = [schedule("Thu 02:00-04:00")]
    assert next_fit(thursdays, WEDNESDAY, MINUTE) == Span(at("2026-11-26T02:00"), at("2026-11-26T04:00"))
    amid = at("2026-11-26T03:00")
    assert next_fit(thursdays, amid, MINUTE).begin == amid
    assert next_fit(thursdays, amid, TWO_HOURS).begin == at("2026-12-03T02:00")
    assert next_fit(thursdays, at("2026-11-26T04:00"), MINUTE).begin == at("2026-12-03T02:00")


def test_what_exactly_fits_fits():
    assert next_fit([schedule("Thu 02:00-04:00")], at("2026-11-26T02:00"), TWO_HOURS)
    assert next_fit([schedule("Thu 02:00-04:00")], WEDNESDAY, TWO_HOURS + MINUTE) is None


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins():
    nights = [schedule("Fri 22:00-06:00")]
    assert next_fit(nights, WEDNESDAY, MINUTE) == Span(at("2026-11-27T22:00"), at("2026-11-28T06:00"))
    amid = at("2026-11-28T05:00")
    assert next_fit(nights, amid, MINUTE).begin == amid


def test_windows_that_touch_are_one():
    nights = [schedule("Thu 22:00-24:00", "Fri 00:00-04:00")]
    assert next_fit(nights, WEDNESDAY, dt.timedelta(hours=5)).end == at("2026-11-27T04:00")


def test_a_blackout_day_is_a_whole_day_of_its_time_zone():
    vienna = schedule("Mon-Sun 00:00-24:00", zone="Europe/Vienna", blackouts=["2026-11-26"])
    span = next_fit([vienna], WEDNESDAY, dt.timedelta(hours=7))
    assert span.begin == at("2026-11-26T23:00")
    assert next_fit([vienna], WEDNESDAY, dt.timedelta(hours=6)).end == at("2026-11-25T23:00")


def test_a_blackout_of_many_days_cuts_the_windows_within():
    thursdays = schedule("Thu 02:00-04:00", blackouts=["2026-11-26 to 2026-12-09"])
    assert next_fit([thursdays], WEDNESDAY, MINUTE).begin == at("2026-12-10T02:00")


def test_of_several_schedules_all_have_to_be_open():
    both = [schedule("Thu 02:00-04:00"), schedule("Thu 03:00-05:00", "Sun 02:00-03:00")]
    assert next_fit(both, WEDNESDAY, MINUTE) == Span(at("2026-11-26T03:00"), at("2026-11-26T04:00"))
    assert next_fit(both, WEDNESDAY, TWO_HOURS) is None


def test_when_clocks_are_put_forward_or_back_the_window_never_grows():
    sundays = schedule("Sun 02:30-03:30", zone="Europe/Vienna")
    forward = sundays.open(at("2027-03-28T00:00"), at("2027-03-28T12:00"))
    back = sundays.open(at("2026-10-25T00:00"), at("2026-10-25T12:00"))
    assert all(span.length <= dt.timedelta(hours=1) for span in forward + back)
    assert back == [Span(at("2026-10-25T01:30"), at("2026-10-25T02:30"))]


def test_the_sentence_says_which_window_and_why():
    thursdays = [schedule("Thu 02:00-04:00")]
    assert sentence(thursdays, WEDNESDAY, MINUTE, "1 min").startswith(
        "It waits for the window on Thursday 02:00 to 04:00 UTC: none is open now"
    )
    late = sentence(thursdays, at("2026-11-26T03:59"), TWO_HOURS, "2 h")
    assert "Thursday 3 December 2026 02:00 to 04:00 UTC" in late
    assert "the swap may take up to 2 h, and the present window closes at 04:00 UTC" in late
    assert "No window within a year" in sentence(thursdays, WEDNESDAY, dt.timedelta(hours=3), "3 h")


def test_words_are_in_the_time_zone_of_the_policy():
    from zoneinfo import ZoneInfo

    span = Span(at("2026-11-26T02:00"), at("2026-11-26T04:00"))
    assert words(span, WEDNESDAY, ZoneInfo("Europe/Vienna")) == "Thursday 03:00 to 05:00 CET"


@given(
    days=st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True),
    begin=st.integers(0, 1439),
    end=st.integers(1, 1440),
    minutes=st.integers(0, 60 * 24 * 300),
    length=st.integers(1, 300),
)
def test_what_is_found_is_long_enough_and_lies_within_a_window(days, begin, end, minutes, length):
    window = Window(tuple(days), begin, end)
    now = WEDNESDAY + dt.timedelta(minutes=minutes)
    span = next_fit([Schedule("Europe/Vienna", (window,))], now, dt.timedelta(minutes=length))
    if span is not None:
        assert span.begin >= now
        assert span.length >= dt.timedelta(minutes=length)
        whole = Schedule("Europe/Vienna", (window,)).open(now - dt.timedelta(days=8), span.end + dt.timedelta(days=8))
        assert any(each.begin <= span.begin and span.end <= each.end for each in whole)


@pytest.mark.parametrize(
    ("lines", "now", "says"),
    [
        (["Thu 02:00-04:00"], WEDNESDAY, "next Thursday 02:00 to 04:00 UTC"),
        (["Thu 02:00-04:00"], at("2026-11-26T03:00"), "open until 04:00 UTC"),
        (["Wed-Thu 22:00-06:00"], at("2026-11-25T23:00"), "open until Thursday 06:00 UTC"),
        ([], WEDNESDAY, "open"),
    ],
)
def test_the_outlook_says_until_when_it_is_open_or_from_when(lines, now, says):
    assert outlook(schedule(*lines), now) == says


def test_the_outlook_of_a_year_of_blackouts_is_shut():
    never = Schedule(blackouts=(Blackout.read("2026-01-01 to 2029-01-01"),))
    assert outlook(never, WEDNESDAY) == "shut for the next year"


@pytest.mark.parametrize("line", ["2026-12-24", "2026-12-24 to 2027-01-02"])
def test_days_off_are_written_as_they_are_read(line):
    assert str(Blackout.read(line)) == line
    assert Blackout.read(str(Blackout.read(line))) == Blackout.read(line)


def test_a_window_of_more_than_a_day_is_said_by_its_beginning():
    span = Span(at("2026-11-26 02:00"), at("2026-11-28 02:00"))
    assert words(span, WEDNESDAY, dt.UTC) == "Thursday from 02:00 UTC on"
