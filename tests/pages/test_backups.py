"""The pages of kept disks: what is listed for whom, what is due, and that nothing typed is lost."""

import datetime as dt

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.models import Rehearsal
from tests.pages import scenes
from volmig.accounts.models import Team


def text(response):
    return response.content.decode()


@pytest.fixture
def done(dana, hosts):
    job = scenes.job(dana, "done")
    scenes.kept(job)
    return job


def test_every_kept_disk_is_listed_with_its_share_size_clock_and_what_can_be_done(dana, browser_of, done):
    late, trial = scenes.job(dana, "rolled_back"), scenes.job(dana, "on_trial")
    scenes.kept(late, -2, "differs")
    scenes.kept(trial)
    page = text(browser_of(dana).get("/backups/"))
    rows = {job: page.split(f'<a href="/migrations/{job.pk}/">')[1].split("</tr>")[0] for job in (done, late, trial)}
    assert "515\u202f396\u202f075\u202f520 bytes" in rows[done]
    assert all(scenes.SHARE in row for row in rows.values())
    assert f"/migrations/{done.pk}/extend" in rows[done]
    assert f"/migrations/{done.pk}/#verb-rehearse" in rows[done]
    assert f"/migrations/{done.pk}/#verb-ask-purge" in rows[done]
    assert "<strong>differs</strong>" in rows[late]
    assert "Expired" in rows[late]
    assert "#verb-ask-rollback" in rows[trial]
    assert "not started" in rows[trial]
    assert "extend" not in rows[trial]
    assert page.index(f"/migrations/{late.pk}/") < page.index(f"/migrations/{done.pk}/"), "what is due comes first"
    assert "1.4 TiB" in page
    assert "in 3 backups" in page


def test_only_what_is_due_is_shown_when_that_is_asked_for(dana, browser_of, done):
    late = scenes.job(dana, "done")
    scenes.kept(late, -2)
    page = text(browser_of(dana).get("/backups/?due=1"))
    assert f"/migrations/{late.pk}/" in page
    assert f"/migrations/{done.pk}/" not in page
    overview = text(browser_of(dana).get("/"))
    assert "Expired backups" in overview
    assert f'<a href="/migrations/{late.pk}/">{late.pk} · db-new' in overview


def test_what_is_purged_is_not_listed_and_an_empty_list_says_what_it_is_for(dana, browser_of, done):
    done.footprints.update(state="gone")
    assert "No backups" in text(browser_of(dana).get("/backups/"))
    assert "No backup has expired" in text(browser_of(dana).get("/backups/?due=1"))


def test_another_teams_backups_are_not_seen(person, browser_of, done):
    Hypervisor.objects.update(team=Team.objects.create(name="blue"))
    page = text(browser_of(person("olga", "operator")).get("/backups/"))
    assert "No backups" in page
    assert scenes.SHARE not in page


def test_a_long_list_asks_as_few_questions_as_a_short_one_and_has_pages(dana, browser_of, done):
    def asked():
        with CaptureQueriesContext(
            connection,
        ) as queries:
            page = text(browser_of(dana).get("/backups/"))
        return len(queries), page

    short, _ = asked()
    for number in range(55):
        scenes.kept(scenes.job(dana, "done"), 20 + number)
    long, page = asked()
    assert long == short
    assert 'rel="next"' in page


def test_the_jobs_page_says_until_when_the_disk_is_kept_and_what_rehearsals_found(dana, browser_of, done):
    other = scenes.job(dana, "done")
    scenes.kept(other, -2, "differs")
    page = text(browser_of(dana).get(f"/migrations/{other.pk}/"))
    assert "Nothing is deleted automatically" in page
    assert "its mtime ns is 5, recorded 4" in page
    assert scenes.HOSTILE not in page
    Rehearsal.objects.create(job=done, number=1, by=dana)
    page = text(browser_of(dana).get(f"/migrations/{done.pk}/"))
    assert "running, requested by dana" in page
    assert "A rehearsal is running." in page


def test_a_date_and_a_reason_keep_a_disk_longer(dana, browser_of, done):
    day = (timezone.now() + dt.timedelta(days=40)).date()
    response = browser_of(dana).post(f"/migrations/{done.pk}/extend", {"day": day, "reason": "audit"})
    assert response.status_code == 302
    until = done.footprints.kept().get().keep_until
    assert (until.date(), until.hour, until.minute) == (day, 23, 59)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"day": "2020-01-01", "reason": "long ago"}, "in the future"),
        ({"day": "soon", "reason": "long ago"}, "valid date"),
        ({"day": "2999-01-01", "reason": "long ago"}, "At most a year"),
        ({"day": "9999-12-31", "reason": "long ago"}, "At most a year"),
        ({"day": "2020-01-01", "reason": ""}, "required"),
    ],
)
def test_what_is_refused_says_why_and_keeps_what_was_typed(sent, says, dana, browser_of, done):
    before = done.footprints.kept().get().keep_until
    response = browser_of(dana).post(f"/migrations/{done.pk}/extend", sent)
    assert response.status_code == 422
    assert says in text(response)
    assert sent["day"] in text(response)
    assert done.footprints.kept().get().keep_until == before


def test_a_rehearsal_is_asked_for_on_the_page(dana, kim, browser_of, done):
    assert browser_of(kim).post(f"/migrations/{done.pk}/rehearse").status_code == 403
    assert not done.rehearsals.exists()
    assert browser_of(dana).post(f"/migrations/{done.pk}/rehearse").status_code == 302
    assert done.rehearsals.get().by == dana


def test_a_kept_disk_names_the_files_that_it_stands_on_and_whether_they_are_kept(dana, browser_of, done):
    run = done.runs.get(step="swap", direction="do")
    run.evidence["bases"] = [
        {"path": "/i/_base/ephemeral_20_40d1d2c", "kept": "base.0", "why": ""},
        {"path": "/i/_base/0123", "kept": "", "why": "invalid cross-device link"},
    ]
    run.save()
    panel = text(browser_of(dana).get(f"/migrations/{done.pk}/")).split('id="backup"')[1].split("</section>")[0]
    assert "/i/_base/ephemeral_20_40d1d2c</code>, kept as <code>base.0</code>" in panel
    assert "<strong>not kept</strong> (invalid cross-device link)" in panel
