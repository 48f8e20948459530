"""Values that many pages share: computed once, by one thread, no older than said, not kept where they cost little."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from volmig import recent
from volmig.recent import Recent


@pytest.fixture
def clock(monkeypatch):
    at = SimpleNamespace(now=100.0)
    monkeypatch.setattr(recent.time, "monotonic", lambda: at.now)
    return at


@pytest.fixture
def counts():
    return Counter()


@pytest.fixture
def kept(counts):
    def compute(key):
        counts[key] += 1
        return f"{key} {counts[key]}"

    return Recent(compute, 15)


def test_a_value_is_kept_for_its_seconds_and_no_longer(kept, clock):
    assert (kept.get("a"), kept.get("a")) == ("a 1", "a 1")
    clock.now += 15
    assert kept.get("a") == "a 1"
    clock.now += 0.1
    assert kept.get("a") == "a 2"


def test_its_age_counts_from_when_its_computing_began(clock):
    def slow(_):
        clock.now += 20
        return clock.now

    kept = Recent(slow, 15)
    assert (kept.get(None), kept.get(None)) == (120, 140)


def test_each_key_has_its_own_value_and_old_ones_are_dropped(kept, clock):
    assert (kept.get("a"), kept.get("b")) == ("a 1", "b 1")
    clock.now += 16
    assert kept.get("c") == "c 1"
    assert list(kept.known) == ["c"]


def test_what_is_not_worth_it_is_computed_each_time(kept, counts):
    kept.worth = lambda value: value == "a 3"
    assert [kept.get("a") for _ in range(5)] == ["a 1", "a 2", "a 3", "a 3", "a 3"]


def test_many_threads_at_once_have_it_computed_once(counts):
    together = threading.Barrier(8)

    def ask(_):
        together.wait()
        return kept.get("a")

    kept = Recent(lambda key: counts.update(key) or counts[key], 15)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {1}


def test_what_could_not_be_computed_is_computed_by_the_next(counts):
    def fails_once(key):
        counts[key] += 1
        return 1 // (counts[key] - 1)

    kept = Recent(fails_once, 15)
    with pytest.raises(ZeroDivisionError):
        kept.get("a")
    assert kept.get("a") == 1


def test_what_is_being_computed_while_all_is_forgotten_is_not_kept(counts):
    begun, forgotten = threading.Event(), threading.Event()

    def slow(key):
        counts[key] += 1
        begun.set()
        forgotten.wait(0.2)  # nobody sets it: whoever forgets has to wait until this ends
        return counts[key]

    kept = Recent(slow, 15)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.get, "a")
        begun.wait()
        pool.submit(kept.forget).result()
        assert first.result() == 1
    assert kept.get("a") == 2


def test_what_is_forgotten_is_computed_anew(kept):
    kept.get("a")
    kept.forget()
    assert kept.get("a") == "a 2"
