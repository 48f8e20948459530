"""The record is exported with the audit page's filters, whole and harmless, and that it was is recorded."""

import csv
import datetime as dt
import io
import json

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient

from volmig.record import export
from volmig.record.models import Event, sign

pytestmark = [pytest.mark.django_db, pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")]


@pytest.fixture
def auditor(client, person):
    client.force_login(person("aud", "auditor"))
    return client


@pytest.fixture
def five(person):
    ann = person("ann", "operator")
    return [Event.append("job.submit", actor=ann, job=n, object=f"Migration {n}", data={"n": n}) for n in range(1, 6)]


def text_of(response):
    assert response.status_code == 200
    return b"".join(response).decode()


def lines(response):
    return [json.loads(line) for line in text_of(response).splitlines()]


def rows_of(response):
    return list(csv.DictReader(io.StringIO(text_of(response), newline="")))


def test_json_lines_hold_every_event_from_the_oldest_on(auditor, five):
    found = lines(auditor.get("/audit/export.jsonl"))
    assert [event["seq"] for event in found] == [1, 2, 3, 4, 5, 6]
    assert found[2] | {"actor_name": "ann", "job": 3, "object": "Migration 3", "data": {"n": 3}} == found[2]


def test_whoever_has_the_key_can_check_an_export(auditor, five):
    for event in lines(auditor.get("/audit/export.jsonl")):
        values = [event[name] for name in export.SIGNED]
        values[1] = dt.datetime.fromisoformat(event["at"])
        assert sign(event["prev_hash"], values) == event["hash"]


def test_a_long_record_comes_in_pieces(auditor, five, monkeypatch):
    monkeypatch.setattr(export, "CHUNK", 2)
    pieces = list(auditor.get("/audit/export.jsonl"))
    assert [piece.count(b"\n") for piece in pieces if piece] == [2, 2, 2]


@pytest.mark.parametrize(
    ("query", "found"),
    [({"job": 3}, [3]), ({"who": "ann", "job": "2"}, [2]), ({"what": "export"}, [6]), ({"page": 9}, 6)],
)
def test_the_filters_of_the_page_hold(auditor, five, query, found):
    seqs = [event["seq"] for event in lines(auditor.get("/audit/export.jsonl", query))]
    assert seqs == (found if isinstance(found, list) else [1, 2, 3, 4, 5, 6])


def test_csv_has_the_same(auditor, five):
    response = auditor.get("/audit/export.csv")
    rows = rows_of(response)
    assert [row["seq"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert (rows[2]["object"], json.loads(rows[2]["data"])) == ("Migration 3", {"n": 3})
    assert response["Content-Disposition"].startswith('attachment; filename="volmig-audit-')


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula_for_a_spreadsheet(auditor, text):
    Event.append("job.submit", object=text)
    rows = rows_of(auditor.get("/audit/export.csv"))
    assert rows[0]["object"] == f"'{text}"


def test_an_export_is_recorded_with_its_filters(auditor):
    auditor.get("/audit/export.csv", {"who": "ann", "since": "2026-01-01T00:00"})
    event = Event.objects.get()
    assert (event.action, event.actor_name, event.address) == ("audit.export", "aud", "127.0.0.1")
    assert event.data == {"format": "csv", "filters": {"who": "ann", "since": "2026-01-01T00:00:00Z"}}


def test_a_filter_that_is_not_understood_exports_nothing_instead_of_everything(auditor, five):
    assert auditor.get("/audit/export.csv", {"job": "x"}).status_code == 400
    assert Event.objects.count() == 5


def test_an_unknown_format_is_not_there(auditor):
    assert auditor.get("/audit/export.xlsx").status_code == 404


@pytest.mark.parametrize("role", ["viewer", "operator", "approver"])
def test_only_auditors_and_administrators_export(client, person, role, five):
    client.force_login(person("eve", role))
    assert client.get("/audit/export.csv").status_code == 403
    client.logout()
    assert client.get("/audit/export.csv").status_code == 302
    assert Event.objects.count() == 5


def test_the_page_offers_what_it_shows(auditor, five):
    assert "/audit/export.csv?who=ann&amp;job=3" in auditor.get("/audit/?who=ann&job=3").content.decode()


@pytest.mark.django_db(transaction=True)
def test_the_web_server_streams_it_without_holding_it_all(person, five):
    client = AsyncClient()
    client.force_login(person("aud", "auditor"))

    async def fetch():
        response = await client.get("/audit/export.jsonl")
        assert response.is_async
        return [piece async for piece in response.streaming_content]

    assert sum(piece.count(b"\n") for piece in async_to_sync(fetch)()) == 6
