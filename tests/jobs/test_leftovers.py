"""Leftovers of killed jobs: found by a scan, removed only as recorded, and never while anything needs them."""

import dataclasses
import datetime as dt
import json
from importlib import import_module

import pytest
from django.apps import apps
from django.utils import timezone

from hosts import tasks
from hosts.models import Hypervisor, Scan
from jobs import drift
from jobs.drift import rows
from jobs.models import Footprint, Job, Refused, Removal
from jobs.worker.executor import Work
from tests.factories import operator, person
from tests.fakes import LIVE, File, Volume
from volmig.accounts.models import Team
from volmig.record.models import Event


def scan():
    for host in Hypervisor.objects.all():
        tasks.scan(host.pk)
    return rows(Hypervisor.objects.all())


def of(verdict, found):
    return {row.about.kind for row in found if row.found.verdict == verdict}


def row(kind, found=None):
    return next(each for each in found or scan() if each.about.kind == kind)


def ended(job):
    """As after a database that was put back, or hosts that came back: the job has ended, and what it made stands."""
    Job.objects.filter(pk=job.pk).update(status="undone", ended_at=timezone.now(), outcome="failed", wake_at=None)
    job.refresh_from_db()
    return job


def ask(each, by=None):
    return Removal.objects.ask(by or operator(), each.found, each.job, each.hypervisor, each.step)


def refused(call, says):
    with pytest.raises(Refused) as said:
        call()
    assert any(says in sentence for sentence in said.value.sentences), said.value.sentences
    assert not Removal.objects.exists()


@pytest.fixture
def killed(drive, site):
    """A job whose hypervisors were left in the midst of staging, and that has ended for the database."""
    site.relay.slow = {"stage"}
    job = drive.submit()
    site.relay.finish()
    site.relay.slow = set()
    job.runs.filter(step="stage").update(result="done", ended_at=timezone.now(), evidence={"inode": 4712})
    job.footprints.filter(kind="stage").update(state="present", identity="4712")
    return ended(job)


def test_a_job_at_work_has_nothing_left_over(drive, site):
    site.relay.slow = {"convert"}
    site.source.slow = {"convert"}
    drive.submit()
    found = scan()
    assert of("needed", found) >= {"lv", "filesystem", "export", "mount", "fence", "unit", "memory"}
    assert {each.found.verdict for each in found} == {"needed"}


def test_a_whole_job_leaves_its_backup_which_is_kept_until_its_purge(drive):
    drive.done()
    found = scan()
    assert [(each.about.kind, each.found.verdict) for each in found] == [("backup", "needed")]
    assert "until its purge is approved" in found[0].why_kept


def test_everything_of_a_killed_job_is_found_with_its_owner(killed):
    found = scan()
    assert {each.found.verdict for each in found} == {"left"}
    assert of("left", found) == {"lv", "filesystem", "export", "mount", "fence", "unit", "memory", "stage"}
    assert {each.job for each in found} == {killed}
    assert [each.why_kept for each in found if each.why_kept] == []


def test_everything_of_a_killed_job_is_removed_and_nothing_is_left(killed, site, drive):
    live = dataclasses.replace(site.files[LIVE])
    for each in scan():
        ask(each)
    drive.due(killed)
    for each in scan():  # what remembers those removals
        ask(each)
    drive.due(killed)
    assert [(wish.kind, wish.said) for wish in Removal.objects.filter(result="refused")] == []
    assert (scan(), site.leftovers(), site.files[LIVE]) == ([], [], live)
    assert not killed.footprints.left().exclude(kind="space").exists()
    assert site.source.volumes[next(iter(site.source.volumes))].permission == "writeable"
    assert killed.status == "undone"


def test_a_removal_is_written_down_before_and_after(killed, drive):
    wish = ask(row("stage"))
    asked = Event.objects.get(action="leftover.remove")
    assert (asked.actor_name, asked.job, asked.data["identity"]) == ("olga", killed.pk, "4712")
    drive.due(killed)
    wish.refresh_from_db()
    run = killed.runs.get(step="stage", direction="undo")
    assert (wish.result, run.result, run.args["expect_inode"]) == ("removed", "done", 4712)
    assert Event.objects.get(action="leftover.removed").object == wish.name
    assert Event.objects.filter(action="step.done", object="stage", job=killed.pk).exists()


def test_an_undo_that_goes_on_for_long_is_waited_for_and_ends_the_removal(killed, site, drive):
    for kind in ("mount", "export", "filesystem"):
        ask(row(kind))
        drive.due(killed)
    site.relay.slow = {"lv_remove"}
    wish = ask(row("lv"))
    drive.due(killed)
    wish.refresh_from_db()
    assert (wish.result, killed.runs.last().result) == ("", "running")
    site.relay.finish()
    drive.go(killed)
    wish.refresh_from_db()
    assert wish.result == "removed"
    assert not any(name.startswith("volmig_") for name in site.relay.volumes)


def test_a_conversion_that_still_runs_for_a_job_that_has_ended_is_stopped_by_its_own_undo(drive, site):
    site.source.slow = {"convert"}
    job = ended(drive.submit())
    each = next(each for each in scan() if each.about.name.endswith("convert-do-1"))
    assert (each.found.verdict, each.step, each.why_kept) == ("left", "convert", "")
    wish = ask(each)
    drive.due(job)
    wish.refresh_from_db()
    assert (wish.result, site.source.running) == ("removed", {})


# Refused when it is asked


def test_nothing_is_removed_of_a_job_that_is_at_work(drive, site):
    job = drive.submit()
    each = row("stage")
    refused(lambda: ask(each), "awaiting approval")
    Removal.objects.create(
        job=job, hypervisor=job.relay, step="stage", kind="stage", place=each.about.place, name=each.about.name,
        identity=each.about.identity, asked_by=operator(),
    )  # fmt: skip
    drive.due(drive.go(job))
    wish = Removal.objects.get()
    assert (wish.result, "Nothing was removed" in wish.said) == ("refused", True)
    assert any("/.volmig/" in path for path in site.files)


@pytest.mark.parametrize(
    ("who", "says"),
    [
        (lambda: person("vera", "viewer"), "you need the role operator"),
        (lambda: person("pavel", "approver"), "you need the role operator"),
        (lambda: person("dora", "operator", is_active=False), "you need the role operator"),
    ],
)
def test_these_people_may_not_ask_for_a_removal(killed, who, says):
    each = row("lv")
    refused(lambda: ask(each, who()), says)


def test_an_operator_of_another_team_may_not_ask_for_a_removal(killed):
    Team.objects.update(everybody=False)
    Team.objects.get().members.add(operator())
    each = row("lv")
    refused(lambda: ask(each, person("otto", "operator")), "not a member of the team")


def test_a_backup_is_never_removed_here(drive, site):
    job = drive.done()
    Footprint.objects.filter(kind="backup").update(keep_until=timezone.now())
    each = row("backup")
    assert each.found.verdict == "left"
    refused(lambda: ask(each), "purge")
    assert (job.status, any("disk.old" in path for path in site.files)) == ("done", True)


def test_what_the_ledger_does_not_know_is_never_removed(killed, site):
    stranger = "11111111-2222-4333-8444-555555555555"
    site.relay.volumes["volmig_111111112222"] = Volume("foreign", 4 << 20, tags={stranger})
    each = next(each for each in scan() if each.found.verdict == "stranger")
    assert (each.job, each.about.job) == (None, stranger)
    refused(
        lambda: Removal.objects.ask(operator(), each.found, killed, each.hypervisor, "relay_lv"), "not in the inventory"
    )


def test_another_volume_under_the_recorded_name_is_never_removed(killed, site):
    name = next(name for name in site.relay.volumes if name.startswith("volmig_"))
    site.relay.volumes[name].uuid = "another"
    each = row("lv")
    assert each.found.verdict == "other"
    refused(lambda: ask(each), "Another object has this name")


def test_what_was_made_but_never_measured_is_never_removed(killed):
    killed.footprints.filter(kind="lv").update(state="reserved", identity="")
    each = row("lv")
    refused(lambda: ask(each), "never recorded")


def test_the_same_thing_is_asked_for_once(killed):
    each = row("lv")
    ask(each)
    with pytest.raises(Refused):
        ask(each)
    assert Removal.objects.count() == 1


# Refused when it would be done: the scan was of an hour ago


def late(drive, job, wish):
    drive.due(job)
    wish.refresh_from_db()
    assert (wish.result, wish.ended_at is not None) == ("refused", True)
    assert "Nothing was removed." in wish.said
    assert Event.objects.filter(action="leftover.refused", job=job.pk).exists()
    return wish.said


def test_a_volume_that_was_exchanged_meanwhile_stays(killed, site, drive):
    wish = ask(row("lv"))
    name = next(name for name in site.relay.volumes if name.startswith("volmig_"))
    site.relay.volumes[name].uuid = "another"
    late(drive, killed, wish)
    assert site.relay.volumes[name].uuid == "another"
    assert site.relay.asked("lv_remove") == []


def test_a_volume_whose_marker_names_another_job_meanwhile_stays(killed, site, drive):
    wish = ask(row("lv"))
    name = next(name for name in site.relay.volumes if name.startswith("volmig_"))
    site.relay.volumes[name].tags = {"11111111-2222-4333-8444-555555555555"}
    late(drive, killed, wish)
    assert name in site.relay.volumes


def test_a_staged_file_that_was_exchanged_meanwhile_stays(killed, site, drive):
    wish = ask(row("stage"))
    path = next(path for path in site.files if path.endswith("disk.new"))
    site.files[path] = File(9000, "somebody's")
    late(drive, killed, wish)
    assert site.files[path].content == "somebody's"


def test_nothing_is_removed_on_a_hypervisor_that_cannot_be_reached(killed, site, drive):
    wish = ask(row("lv"))
    before = list(site.relay.volumes)
    site.relay.reachable = False
    assert "connection refused" in late(drive, killed, wish)
    site.relay.reachable = True
    drive.due(killed)
    assert list(site.relay.volumes) == before, "it is not done later behind anybody's back"


def answers(site, monkeypatch, **changed):
    told = {**site.relay.leftovers({}), **changed}
    monkeypatch.setattr(site.relay, "leftovers", lambda args: told)


def test_nothing_is_removed_on_a_share_that_does_not_answer(killed, site, drive, monkeypatch):
    wish = ask(row("stage"))
    source = wish.place
    answers(site, monkeypatch, things=[], shares=[{"source": source, "answered": False}])
    assert "the scan did not cover it" in late(drive, killed, wish), "it is not taken for gone"
    assert site.relay.asked("unstage") == []


def test_nothing_is_removed_of_a_kind_that_cannot_be_listed(killed, site, drive, monkeypatch):
    wish = ask(row("lv"))
    answers(site, monkeypatch, things=[], missed=["lv", "fence"])
    assert "the scan did not cover it" in late(drive, killed, wish)
    assert site.relay.asked("lv_remove") == []


def test_what_has_gone_since_the_scan_needs_no_removal(killed, site, drive):
    wish = ask(row("stage"))
    del site.files[next(path for path in site.files if path.endswith("disk.new"))]
    drive.due(killed)
    wish.refresh_from_db()
    assert (wish.result, site.relay.asked("unstage")) == ("gone", [])


def test_nothing_is_removed_on_a_hypervisor_in_quarantine(killed, drive):
    wish = ask(row("lv"))
    killed.relay.quarantine("Its key changed.")
    assert "quarantine" in late(drive, killed, wish)


def test_hostctls_own_guard_has_the_last_word(killed, site, drive):
    """The volume is still mounted: its undo refuses, the removal says so, and somebody may ask again."""
    wish = ask(row("lv"))
    drive.due(killed)
    wish.refresh_from_db()
    assert (wish.result, "is mounted" in wish.said) == ("refused", True)
    assert any(name.startswith("volmig_") for name in site.relay.volumes)
    assert killed.halt_reason == ""


# What is gone


def gone(site, killed):
    """Somebody removed the volume by hand."""
    name = next(name for name in site.relay.volumes if name.startswith("volmig_"))
    site.relay.mounts.clear()
    site.relay.exports.clear()
    del site.relay.volumes[name]
    return row("lv")


def test_what_is_gone_can_be_struck_off_with_an_event(killed, site):
    each = gone(site, killed)
    assert each.found.verdict == "gone"
    Footprint.objects.get(pk=each.found.entry.key).strike_off(operator(), each.found, each.hypervisor)
    assert killed.footprints.get(kind="lv").state == "gone"
    assert Event.objects.get(action="leftover.struck").data["kind"] == "lv"
    assert "lv" not in {each.about.kind for each in scan()}


@pytest.mark.parametrize("who", ["viewer", "approver", "auditor"])
def test_only_operators_strike_off(killed, site, who):
    each = gone(site, killed)
    with pytest.raises(Refused):
        Footprint.objects.get(pk=each.found.entry.key).strike_off(person("x", who), each.found, each.hypervisor)
    assert killed.footprints.get(kind="lv").state == "present"


def test_what_is_there_is_not_struck_off(killed):
    each = row("lv")
    with pytest.raises(Refused) as said:
        Footprint.objects.get(pk=each.found.entry.key).strike_off(operator(), each.found, each.hypervisor)
    assert "reports that it is there" in str(said.value)


def test_a_row_that_has_changed_meanwhile_is_not_struck_off(killed, site):
    each = gone(site, killed)
    mark = Footprint.objects.get(pk=each.found.entry.key)
    Footprint.objects.filter(pk=mark.pk).update(since=timezone.now())
    with pytest.raises(Refused):
        mark.strike_off(operator(), each.found, each.hypervisor)
    assert killed.footprints.get(kind="lv").state == "present"


def test_what_a_job_at_work_has_lost_is_not_struck_off(drive, site):
    site.source.slow = {"convert"}
    drive.submit()
    site.relay.exports.clear()
    each = row("export")
    assert (each.found.verdict, each.found.drifts, "running" in each.why_not_struck) == ("gone", False, True)


# Scans


def test_a_host_that_does_not_answer_keeps_what_it_told_and_says_why(killed, site):
    before = len(scan())
    site.relay.reachable = False
    assert len(scan()) == before
    told = Scan.objects.get(hypervisor__name="jump")
    assert "connection refused" in told.error
    assert told.things


def test_what_a_scan_finds_again_keeps_the_time_of_the_first(killed):
    scan()
    first = {each["name"]: each["first_seen"] for each in Scan.objects.get(hypervisor__name="jump").things}
    scan()
    assert {each["name"]: each["first_seen"] for each in Scan.objects.get(hypervisor__name="jump").things} == first


@pytest.mark.parametrize(
    "thing",
    [
        {"kind": "lv"},
        {"kind": "lv", "name": "x\n", "job": "", "identity": "", "size": 0, "since": None, "share": "", "path": ""},
        {"kind": "lv", "name": "x", "job": "../..", "identity": "", "size": 0, "since": None, "share": "", "path": ""},
        {"kind": "lv", "name": "x" * 901, "job": "", "identity": "", "size": 0, "since": 1, "share": "", "path": ""},
        {"kind": ["lv"], "name": "x", "job": "", "identity": "", "size": 0, "since": None, "share": "", "path": ""},
        "lv",
    ],
)
def test_an_answer_that_is_not_as_agreed_changes_nothing(killed, site, monkeypatch, thing):
    before = len(scan())
    answer = {"things": [thing], "more": 0, "missed": [], "shares": [], "time": 0}
    monkeypatch.setattr(site.relay, "leftovers", lambda args: answer)
    assert len(scan()) == before
    assert "Tried to read" in Scan.objects.get(hypervisor__name="jump").error


def test_the_daily_scan_is_queued_for_each_hypervisor_once_a_day(killed, settings, monkeypatch):
    queued = []
    monkeypatch.setattr(tasks, "later", lambda dotted, pk: queued.append(pk))
    settings.SCAN_SECONDS = 86400
    for _ in range(6):
        tasks.scan_due()
    assert sorted(queued) == sorted(Hypervisor.objects.values_list("pk", flat=True))


def test_of_one_share_the_newest_scan_that_it_answered_counts(killed, site):
    scan()
    told = Scan.objects.get(hypervisor__name="dst")
    told.things, told.shares = [], [{"source": told.shares[0]["source"], "answered": False}]
    told.began_at = timezone.now()
    told.save()
    assert "stage" in {each.about.kind for each in rows(Hypervisor.objects.all())}


def test_what_a_scan_lists_on_shares_is_read_of_the_one_that_counts_alone(drive, site, monkeypatch):
    drive.done()
    scan()
    read, loads = [], json.loads
    monkeypatch.setattr(
        "django.db.models.fields.json.json.loads", lambda text, **kw: read.append(text) or loads(text, **kw)
    )
    assert {each.about.kind for each in rows(Hypervisor.objects.all())} == {"backup"}
    assert Scan.objects.filter(listed=1).count() == 2, "two hypervisors mount the share"
    assert sum("disk.old" in text for text in read) == 1


def test_what_another_scan_tells_while_scans_are_read_is_taken_as_a_whole(drive, site, monkeypatch):
    """The time of one scan with the things of a newer one would take a disk that was made between them for a stranger,
    or one that was deleted for gone before anybody saw that."""
    drive.done()
    scan()
    before = drift.speakers

    def newer(scans):
        monkeypatch.setattr(drift, "speakers", before)
        Scan.objects.update(on_shares=[], listed=0, began_at=later)
        return before(scans)

    later = timezone.now() + dt.timedelta(minutes=1)
    monkeypatch.setattr(drift, "speakers", newer)
    found = rows(Hypervisor.objects.all())
    assert [(each.found.verdict, each.found.at) for each in found] == [("gone", later)]


def test_a_share_of_which_not_all_is_listed_makes_nothing_gone(drive, site):
    drive.done()
    scan()
    Scan.objects.update(on_shares=[], listed=0, more=1)
    assert rows(Hypervisor.objects.all()) == []
    Scan.objects.update(more=0)
    assert of("gone", rows(Hypervisor.objects.all())) == {"backup"}


def test_of_a_share_that_is_listed_as_far_as_hostctl_goes_there_may_be_more(drive, site, monkeypatch):
    """Earlier versions of hostctl did not say so, and the rest would have been taken for gone."""
    monkeypatch.setattr("hosts.models.CAP", 1)
    drive.done()
    scan()
    assert set(Scan.objects.values_list("listed", "more")) == {(0, 0), (1, 1)}


def test_a_disk_in_the_directory_of_another_job_is_found_although_not_all_is_listed(drive, site):
    """What one hypervisor says of a file that the ledger knows is compared with the ledger, whatever job it names."""
    drive.done()
    scan()
    for each in Scan.objects.exclude(on_shares=[]):
        each.on_shares[0]["job"], each.more = "11111111-2222-4333-8444-555555555555", 1
        each.save()
    assert of("other", rows(Hypervisor.objects.all())) == {"backup"}


def test_scans_of_earlier_releases_are_split(drive, site):
    drive.done()
    scan()
    wanted = list(Scan.objects.order_by("pk").values("things", "on_shares", "listed"))
    module = import_module("hosts.migrations.0010_scans_of_shares")
    module.join(apps, None)
    Scan.objects.update(on_shares=[], listed=0)
    assert list(Scan.objects.order_by("pk").values("things", "on_shares", "listed")) != wanted
    module.split(apps, None)
    assert list(Scan.objects.order_by("pk").values("things", "on_shares", "listed")) == wanted


def test_a_tick_of_a_job_without_wishes_does_nothing_more_than_before(drive, site):
    job = drive.done()
    asked = len(site.relay.requests)
    drive.go(job)
    assert len(site.relay.requests) == asked
    assert Work.handlers["done"]
