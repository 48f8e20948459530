"""What needs attention is one list, the same for the overview, the menu, the title, the API and the client."""

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.api import schemas
from jobs.models import Approval, Job, StepRun
from jobs.web import attention
from tests.factories import admin
from tests.fleet.beats import a_process
from tests.pages import scenes
from volmig import incarnation
from volmig.accounts.models import Team
from volmig.client import bar


def ago(seconds):
    return timezone.now() - dt.timedelta(seconds=seconds)


def still(dana, seconds=200, **changed):
    """A copy that has moved nothing for so long."""
    job = scenes.job(dana, "preparing", **changed)
    StepRun.objects.filter(job=job, ended_at=None).update(progress_at=ago(seconds))
    return job


def down(dana, seconds, **changed):
    """An instance that is down for so long, while its disk is being swapped."""
    job = scenes.job(dana, "swapping", **changed)
    evidence = {"was": "running", "stopped_at": ago(seconds).timestamp()}
    times = {"started_at": ago(seconds + 10), "ended_at": ago(seconds - 3)}
    StepRun.objects.filter(job=job, step="stop").update(evidence=evidence, **times)
    return job


@pytest.fixture
def usable(hosts):
    Hypervisor.objects.update(quarantined_at=None, quarantine_reason="")
    return hosts


def progress(job):
    """What the API answers."""
    return schemas.Progress.of(Job.objects.get(pk=job.pk)).model_dump(mode="json")


def listed(user):
    return attention.items(user, incarnation.read_only())


def kinds_of(user):
    return [(item.job or item.subject, item.kind) for item in listed(user)]


def test_what_runs_as_forecast_needs_none(dana, usable):
    scenes.job(dana, "preparing")
    down(dana, 10)
    scenes.job(dana, "on_trial")
    scenes.approval(scenes.job(dana, "awaiting_approval"))
    scenes.job(dana, "done")
    assert kinds_of(dana) == []


def test_halted_stalled_late_and_expiring_are_listed_the_worst_first(dana, usable):
    slow, late, halted = still(dana), down(dana, 200), scenes.halted(dana)
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    Approval.objects.filter(pk=asked.pk).update(expires_at=timezone.now() + dt.timedelta(minutes=30))
    found = kinds_of(dana)
    assert {found[0], found[1]} == {(late.pk, "down-late"), (halted.pk, "halted")}
    assert found[2:] == [(slow.pk, "still"), (f"Migration {asked.job_id}: {asked.job.instance_name}", "expiring")]


def test_a_hypervisor_in_quarantine_is_listed_and_one_that_is_unreachable_while_a_migration_uses_it(dana, usable):
    job = scenes.job(dana, "preparing")
    Hypervisor.objects.filter(pk=usable["cmp-lvm-08"].pk).update(quarantined_at=ago(60), quarantine_reason="key")
    Hypervisor.objects.filter(pk=job.relay_id).update(last_error="Tried to log in: refused.", seen_at=ago(4000))
    assert [item.subject for item in listed(dana)] == ["cmp-lvm-08", job.relay.name]
    Hypervisor.objects.filter(pk=job.relay_id).update(seen_at=ago(5))
    assert [item.subject for item in listed(dana)] == ["cmp-lvm-08"]


def test_read_only_mode_is_listed_for_everybody_whose_migrations_wait_for_its_end(dana, usable):
    incarnation.check()
    scenes.job(dana, "preparing")
    before = attention.marks()
    incarnation.enter_read_only("src: another session acted there")
    [item] = listed(dana)
    assert (item.kind, item.url, item.bad) == ("read-only", "#read-only", True)
    assert listed(admin())[0].url == "/adopt/", "who can end it gets there"
    assert item.detail == "src: another session acted there"
    assert attention.marks() != before, "pages that are open hear of it"
    incarnation.leave_read_only()
    assert kinds_of(dana) == []


def test_the_menu_and_the_title_of_every_page_have_the_count(dana, browser_of, usable):
    still(dana)
    scenes.halted(dana)
    for address in ("/", "/migrations/", "/approvals/", "/backups/", "/hosts/", "/account/"):
        page = browser_of(dana).get(address).content.decode()
        assert "<title>(2) " in page, address
        assert 'data-attention="2"' in page, address
    assert 'data-attention="2"' in browser_of(dana).get("/attention/count").content.decode()


def test_it_is_asked_for_by_the_same_few_queries_whatever_is_listed(dana, usable):
    counts = []
    listed(dana)  # what the person may do is looked up once
    for more in (1, 9):
        for number in range(more):
            still(dana, instance_name=f"s{number}")
            down(dana, 200, instance_name=f"d{number}")
            scenes.halted(dana)
            waiting = scenes.job(dana, "awaiting_approval", instance_name=f"a{number}")
            asked = scenes.approval(waiting)
            Approval.objects.filter(pk=asked.pk).update(expires_at=timezone.now() + dt.timedelta(minutes=30))
            Job.objects.filter(pk=waiting.pk).update(wait_kind="host", waiting_for="No.", waiting_since=ago(100))
        counts += [queries_of(dana), queries_of(dana)]
    few, again, many, many_again = counts
    assert few == again + 1, "plans are read once"
    assert again <= 5
    assert many <= few + 3, "of many they are read for all pages of this process: hypervisors and plans once"
    assert many_again < few, "and not for each page"


def queries_of(person):
    with CaptureQueriesContext(connection) as queries:
        attention.items(person, None)
    return len(queries)


def test_of_many_migrations_the_same_is_listed_as_of_few(dana, usable, monkeypatch):
    for number in range(15):
        still(dana, instance_name=f"s{number}")
        down(dana, 200, instance_name=f"d{number}")
        scenes.halted(dana)
    many = attention.items(dana, None)
    monkeypatch.setattr(attention, "FEW", 1000)
    assert len(many) == 45
    assert sorted(map(str, many)) == sorted(map(str, attention.items(dana, None)))


def test_what_a_person_may_not_see_is_not_listed_from_what_all_pages_share(dana, usable, person):
    for _ in range(attention.FEW + 1):
        scenes.halted(dana)
    assert attention.items(dana, None)
    stranger = person("sam", "viewer")
    Team.objects.update(everybody=False)
    assert attention.items(stranger, None) == []


def test_where_nothing_is_at_work_one_query_says_so(dana, usable, django_assert_num_queries):
    scenes.job(dana, "done")
    scenes.job(dana, "on_trial")
    Hypervisor.objects.update(last_error="")
    listed(dana)  # what the person may do is looked up once
    with django_assert_num_queries(1):
        assert attention.items(dana, None) == []
    scenes.job(dana, "preparing")
    with django_assert_num_queries(4):
        assert attention.items(dana, None) == []
    with django_assert_num_queries(3):  # a plan is read once
        assert attention.items(dana, None) == []


def test_each_migration_has_one_status_sentence_on_the_overview_and_on_its_page(dana, browser_of, usable):
    jobs = [
        still(dana),
        still(dana, 40),
        down(dana, 200),
        down(dana, 5),
        scenes.halted(dana),
        scenes.job(dana, "preparing"),
    ]
    overview = browser_of(dana).get("/").content.decode()
    for job in jobs:
        assert overview.count(f'data-job="{job.pk}"') == 1, job.condition()
        page = browser_of(dana).get(job.get_absolute_url()).content.decode()
        assert page.count("data-condition=") == 1
        assert (page.count("data-left") > 0) == (job.time_left() is not None)


@pytest.mark.parametrize("seconds", [20, 200])
def test_no_time_left_is_told_anywhere_while_nothing_moves(seconds, dana, browser_of, usable):
    job = still(dana, seconds)
    browser = browser_of(dana)
    for address in ("/", job.get_absolute_url()):
        page = browser.get(address).content.decode()
        assert "data-left" not in page
        assert " left (" not in page
    shown = progress(job)
    assert (shown["seconds_left"], shown["running"]["seconds_left"]) == (None, None)
    assert shown["condition"]["kind"] == "still"
    assert shown["condition"]["attention"] is (seconds > 90)
    assert "left" not in bar(shown)
    assert "has moved no data." in bar(shown)


def test_the_api_and_the_client_say_that_an_instance_is_down(dana, usable):
    job = down(dana, 30)
    shown = progress(job)
    assert shown["down"]["until"] is None
    assert shown["down"]["forecast"] == job.plan["downtime"]
    assert bar(shown).startswith("DOWN since ")


def test_what_a_migration_is_doing_does_not_move_its_etag(dana, usable):
    """Who stops a migration by If-Match would else be refused because a step became late meanwhile."""
    job = down(dana, 30)
    before = schemas.Job.read(job, dana)
    StepRun.objects.filter(job=job, ended_at=None).update(started_at=ago(900))
    assert schemas.Job.read(Job.objects.get(pk=job.pk), dana) == before


def test_a_step_that_took_longer_than_its_range_is_marked_late(dana, browser_of, usable):
    job = scenes.job(dana, "preparing")
    run = job.runs.get(step="relay_lv")
    StepRun.objects.filter(pk=run.pk).update(ended_at=run.started_at + dt.timedelta(seconds=167))
    page = browser_of(dana).get(job.get_absolute_url()).content.decode()
    assert "Later than forecast: Make a temporary volume on the relay" in page
    assert '<span class="late">late</span>' in page


def test_what_only_time_changes_differs_for_live_pages(dana, usable, monkeypatch):
    job = still(dana, 60)
    before, others = attention.marks()
    later = timezone.now() + dt.timedelta(seconds=60)
    monkeypatch.setattr(timezone, "now", lambda: later)
    after, same = attention.marks()
    assert before[job.pk] != after[job.pk]
    assert others == same


def quarantine(job):
    Hypervisor.objects.filter(name="cmp-lvm-08").update(quarantined_at=ago(60), quarantine_reason="key")


def unseen(job):
    Hypervisor.objects.filter(pk=job.relay_id).update(last_error="Tried to log in: refused.", seen_at=ago(4000))


def late(job):
    Hypervisor.objects.filter(pk=job.relay_id).update(tried_at=ago(4000))


def expiring(job):
    job.approvals.update(expires_at=timezone.now() + dt.timedelta(minutes=30))


def wrong_clock(job):
    Hypervisor.objects.filter(pk=job.relay_id).update(clock_off=-6.5)


def lost_process(job):
    a_process("web", started_at=ago(4000))


# What makes something of each kind appear.
APPEARS = {
    "quarantine": quarantine,
    "unseen": unseen,
    "late": late,
    "approvals": expiring,
    "clocks": wrong_clock,
    "processes": lost_process,
}


@pytest.mark.parametrize("kind", APPEARS)
def test_open_pages_are_updated_when_something_of_any_kind_appears(kind, dana, usable):
    Hypervisor.objects.update(tried_at=timezone.now())
    job, ada = scenes.job(dana, "awaiting_approval"), admin()
    scenes.approval(job)
    working = scenes.job(dana, "preparing")
    assert listed(ada) == []
    (_, before) = attention.marks()
    APPEARS[kind](working if kind in ("unseen", "late", "clocks") else job)
    assert listed(ada)
    assert attention.marks()[1] != before


def test_there_is_such_a_change_for_every_kind(dana):
    assert APPEARS.keys() == attention.present(dana, timezone.now()).keys() - {"jobs"}


def test_how_many_hypervisors_are_late_does_not_update_open_pages_but_whose_they_are_does(dana, usable):
    red, *others = Hypervisor.objects.exclude(host_key="").order_by("pk")
    Hypervisor.objects.update(tried_at=ago(4000))
    before = attention.marks()
    Hypervisor.objects.filter(pk=others[0].pk).update(tried_at=timezone.now())
    assert attention.marks() == before, "workers catch up: that would be with every refresh"
    Hypervisor.objects.filter(pk=red.pk).update(team=Team.objects.create(name="red"))
    assert attention.marks() != before
