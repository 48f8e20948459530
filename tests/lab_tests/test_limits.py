"""Limits hold on real machines: one conversion at a time from a source, and no more bytes a second than was asked."""

import pytest

from tests.lab_tests.conftest import MIB

pytestmark = [pytest.mark.lab, pytest.mark.torture]

FIRST, SECOND = "3f8df945-7cbd-46e0-8ad1-d51013cf706b", "4f8df945-7cbd-46e0-8ad1-d51013cf706b"
RATE = 8 * MIB  # bytes per second


def test_a_second_conversion_from_a_source_waits_and_the_first_keeps_to_its_limit(clean_lab, register, drive):
    lab, guests = clean_lab, {}
    for uuid, name, bulk in ((FIRST, "db-new", 80), (SECOND, "web-new", 0)):
        lab.volume(lab.src, f"{uuid}_disk.local", 128 * MIB, data_mb=1, bulk_mb=bulk)
        guests[uuid] = lab.instance(uuid, name, disk_bytes=128 * MIB)
    register()
    first = drive.submit(f"{FIRST}_disk.local", guests[FIRST], rate=RATE)
    drive.until(lambda: first.runs.exists(), first)  # on a busy machine the second may be looked at sooner
    second = drive.submit(f"{SECOND}_disk.local", guests[SECOND])
    drive.until(lambda: second.status == "preparing" and (second.waiting_for or second.runs.exists()), first, second)
    assert second.waiting_for == f"It waits for migration {first.pk}, which reads from src."
    drive.reach(first, "awaiting_approval")
    drive.until(lambda: second.runs.exists(), second)
    assert second.runs.earliest("started_at").started_at > first.approvals.get().created_at

    evidence = first.evidence()["convert"]
    # An upper bound alone: how much slower a busy machine is than its limit says nothing about the limit.
    assert evidence["bytes_written"] / evidence["seconds"] < RATE * 1.25
    stage = first.runs.get(step="stage", direction="do")
    assert stage.bytes_total / stage.seconds < RATE * 1.25
