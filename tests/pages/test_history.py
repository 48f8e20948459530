"""The history and the audit page: words, filters, order, pages that do not shift, files, and how often they ask."""

import csv
import datetime as dt
import io
import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs.models import Job, Word
from tests.pages import scenes
from volmig.record.models import Event

pytestmark = pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")


def text(response):
    return response.content.decode()


def numbers(page):
    return [int(found) for found in re.findall(r'<td class="num"><a href="/migrations/(\d+)/">', page)]


def link(page, rel):
    found = re.search(rf'rel="{rel}" href="(\?[^"]*)"', page)
    return found and "/migrations/" + found.group(1).replace("&amp;", "&")


@pytest.fixture
def many(dana, hosts, monkeypatch):
    """Twelve migrations, three on a page."""
    monkeypatch.setattr("jobs.web.migrations.PAGE", 3)
    names = ["delta", "alpha", "echo", "bravo", "alpha", "charlie"] * 2
    return [
        scenes.job(dana, "undone", instance_name=f"{name}-{number}", source_size=(number % 4 + 1) * scenes.GIB).pk
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("newest", lambda job: -job.pk),
        ("oldest", lambda job: job.pk),
        ("name", lambda job: (job.instance_name, job.pk)),
        ("name-down", None),
        ("largest", lambda job: (-job.source_size, -job.pk)),
        ("smallest", lambda job: (job.source_size, job.pk)),
        ("ended", lambda job: (-job.ended_at.timestamp(), -job.pk)),
    ],
)
def test_pages_lead_through_all_of_them_in_order_and_back_again(many, dana, browser_of, sort, key):
    browser = browser_of(dana)
    rows = sorted(Job.objects.all(), key=key or (lambda job: (job.instance_name, job.pk)), reverse=key is None)
    wanted = [job.pk for job in rows]
    pages, path = [], f"/migrations/?sort={sort}"
    while path:
        page = text(browser.get(path))
        pages.append((numbers(page), path))
        path, back = link(page, "next"), link(page, "prev")
    assert [number for found, _ in pages for number in found] == wanted
    assert len(pages) == 4
    for found, _ in reversed(pages[:-1]):
        page = text(browser.get(back))
        assert numbers(page) == found
        back = link(page, "prev")
    assert back is None


def test_what_is_added_meanwhile_does_not_shift_the_next_page(many, dana, browser_of):
    browser = browser_of(dana)
    page = text(browser.get("/migrations/"))
    scenes.job(dana, "undone")
    assert numbers(text(browser.get(link(page, "next")))) == sorted(many, reverse=True)[3:6]


@pytest.mark.parametrize("edge", ["after=0", "before=0", "after=999999", "before=999999", "after=x", "before=-1"])
def test_an_edge_that_there_is_not_does_no_harm(many, dana, browser_of, edge):
    assert browser_of(dana).get(f"/migrations/?sort=name&{edge}").status_code == 200


def test_words_are_found_from_their_beginning_whatever_their_case(dana, hosts, browser_of):
    job = scenes.job(dana, "done", instance_name="Prod_DB7.eu-west", ticket="OPS-5519")
    scenes.job(dana, "done", instance_name="other", ticket="X-Y", source_lv="another", instance_id="f" * 36)
    browser = browser_of(dana)
    remembered = ["prod", "db7", "DB7.EU", "eu-west", "west", "ops-5519", "5519", job.instance_id, job.instance_id[:9]]
    remembered += [job.lv_uuid, job.source_lv, f"vg_nova0/{job.source_lv[:12]}", str(job.pk)]
    for words in remembered:
        assert numbers(text(browser.get("/migrations/", {"q": words}))) == [job.pk], words
    for words in ("b7", "est", "nonesuch", "%", "_", "\\", "'"):
        assert numbers(text(browser.get("/migrations/", {"q": words}))) == [], words


def test_a_migration_is_found_on_the_days_on_which_it_was_asked_for(dana, hosts, browser_of, settings):
    settings.TIME_ZONE = "UTC"
    noon = timezone.now().replace(hour=12) - dt.timedelta(days=3)
    jobs = [scenes.job(dana, "done", created_at=noon + dt.timedelta(days=day)).pk for day in range(3)]
    browser, day = browser_of(dana), (noon + dt.timedelta(days=1)).date()
    assert numbers(text(browser.get(f"/migrations/?since={day}&until={day}"))) == [jobs[1]]
    assert numbers(text(browser.get(f"/migrations/?since={day}"))) == [jobs[2], jobs[1]]
    assert numbers(text(browser.get(f"/migrations/?until={day}"))) == [jobs[1], jobs[0]]


def test_the_words_of_what_was_there_before_are_made_by_the_migration(dana, hosts, kim):
    from importlib import import_module

    from django.apps import apps

    job = scenes.job(dana, "done", instance_name="billing-db")
    scenes.decision(scenes.approval(job), kim)
    kept = set(map(bytes, Word.objects.values_list("text", flat=True)))
    Word.objects.all().delete()
    import_module("jobs.migrations.0004_history").fill(apps, None)
    assert set(map(bytes, Word.objects.values_list("text", flat=True))) == kept


def test_what_the_filters_show_is_exported_and_that_is_recorded(dana, hosts, browser_of):
    wanted = scenes.job(dana, "done", instance_name="=cmd", ticket="OPS-1")
    scenes.job(dana, "undone")
    response = browser_of(dana).get("/migrations/export.csv?status=done")
    rows = list(csv.DictReader(io.StringIO(b"".join(response).decode(), newline="")))
    assert [row["number"] for row in rows] == [str(wanted.pk)]
    assert rows[0]["instance"] == "'=cmd", "a spreadsheet does not take it for a formula"
    assert (rows[0]["source"], rows[0]["ticket"], rows[0]["requester"]) == ("cmp-lvm-07", "OPS-1", "dana")
    assert Event.objects.get(action="history.export").data == {"filters": {"status": "done"}}


def test_a_long_history_is_exported_in_pieces(many, dana, browser_of, monkeypatch):
    monkeypatch.setattr("jobs.web.history.CHUNK", 5)
    pieces = list(browser_of(dana).get("/migrations/export.csv"))
    assert [piece.count(b"\n") for piece in pieces] == [1, 5, 5, 2]


def test_a_filter_that_cannot_be_understood_exports_nothing(dana, browser_of):
    assert browser_of(dana).get("/migrations/export.csv?since=nonsense").status_code == 400
    assert not Event.objects.filter(action="history.export").exists()


QUERIES = [
    "",
    "q=db",
    "q=1",
    "person=dana",
    "host={host}",
    "status=done",
    "status=halted",
    "since=2020-01-01",
    "sort=name",
]


@pytest.mark.parametrize("query", QUERIES)
def test_the_history_asks_the_same_number_of_times_whatever_it_lists(dana, hosts, browser_of, query):
    path, browser = f"/migrations/?{query.format(host=hosts['jump-02'].pk)}", browser_of(dana)
    counts = []
    for _ in range(2):
        for _ in range(8):
            scenes.job(dana, "done", halt_reason="x")
        browser.get(path)
        with CaptureQueriesContext(connection) as asked:
            assert len(numbers(text(browser.get(path)))) > 0
        counts.append(len(asked))
    assert counts[0] == counts[1] < 15


@pytest.mark.parametrize("query", ["", "who=dana", "what=sub", "on=x", "job=1", "since=2020-01-01T00:00"])
def test_the_audit_page_asks_the_same_number_of_times_whatever_it_lists(dana, person, browser_of, query):
    browser, counts = browser_of(person("aud", "auditor")), []
    for _ in range(2):
        for _ in range(20):
            Event.append("job.submit", actor=dana, job=1, object="x")
        browser.get(f"/audit/?{query}")
        with CaptureQueriesContext(connection) as asked:
            assert len(browser.get(f"/audit/?{query}").context["page"]) >= 20
        counts.append(len(asked))
    assert counts[0] == counts[1] < 15


def test_pages_of_the_audit_go_on_and_back(dana, person, browser_of):
    for _ in range(150):
        Event.append("job.submit", actor=dana, job=1, object="x")
    browser = browser_of(person("aud", "auditor"))
    first = browser.get("/audit/?who=dana")
    assert [event.seq for event in first.context["page"]] == list(range(150, 50, -1))
    second = browser.get("/audit/?" + first.context["page"].later)
    assert [event.seq for event in second.context["page"]] == list(range(50, 0, -1))
    again = browser.get("/audit/?" + second.context["page"].earlier)
    assert [event.seq for event in again.context["page"]] == list(range(150, 50, -1))


def test_events_are_found_by_how_what_they_are_on_begins(dana, person, browser_of):
    for name in ("cmp-1", "cmp-10", "cmp-2", "Cmp-1"):
        Event.append("hypervisor.pin", object=name)
    browser = browser_of(person("aud", "auditor"))
    for wanted, found in {"cmp-1": ["cmp-1"], "cmp": ["cmp-2", "cmp-10", "cmp-1"], "mp": []}.items():
        page = browser.get("/audit/", {"on": wanted}).context["page"]
        assert [event.object for event in page] == found


@pytest.mark.parametrize("few", [0, 100])
def test_words_that_many_have_and_words_that_few_have_are_found_alike(many, dana, browser_of, monkeypatch, few):
    monkeypatch.setattr("jobs.web.history.MANY", few)
    monkeypatch.setattr("jobs.web.migrations.PAGE", 50)
    browser = browser_of(dana)
    assert numbers(text(browser.get("/migrations/?q=vg_nova0"))) == sorted(many, reverse=True)
    assert len(numbers(text(browser.get("/migrations/?q=alpha")))) == 4
    assert numbers(text(browser.get(f"/migrations/?q={many[0]}&status=undone")))[-1] == many[0]
