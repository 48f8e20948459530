"""What a loop does from time to time: once it is due, and not again before its time."""

from types import SimpleNamespace

from volmig import timetable
from volmig.timetable import Timetable


def test_what_is_due_is_due_once_in_its_time(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(timetable, "time", SimpleNamespace(monotonic=lambda: clock.now))
    table = Timetable()
    assert table.seconds_left() == 0
    assert (table.is_due("often", 2), table.is_due("seldom", 5)) == (True, True)
    assert (table.is_due("often", 2), table.seconds_left()) == (False, 2)
    clock.now += 2
    assert (table.is_due("often", 2), table.is_due("seldom", 5), table.seconds_left()) == (True, False, 2)
    table.put_off("often", 10)
    clock.now += 3
    assert (table.seconds_left(), table.is_due("often", 2), table.is_due("seldom", 5)) == (0, False, True)
    table.reset()
    assert (table.seconds_left(), table.is_due("often", 2)) == (0, True)
