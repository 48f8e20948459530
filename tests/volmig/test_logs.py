"""Log lines have their fields in both formats, and text from outside cannot begin one."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from django.core.exceptions import ImproperlyConfigured

from hosts.remote.host import Answer, Request
from jobs.worker.gateway import Door
from volmig import environment, logs

FORGED = "2026-11-30 12:00:00,000 INFO jobs.worker.tick [migration=7]: Step done"
HOSTILE = [
    f"no such volume\n{FORGED}",
    f"no such volume\r{FORGED}",
    f"\x1b[2K\x1b[1A{FORGED}",
    f"a\x0b{FORGED}\x0cb\x85c\u2028d\u2029e",
    "ends here\x00\x07\x08\x08\x08",
    "\u202egnihton\u202c",
    f'"}}\n{{"level": "info", "message": "{FORGED}"}}',
]


@pytest.fixture(params=[logs.Line, logs.Json])
def written(request):
    """A logger in one of the formats, and what it has written so far."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(request.param())
    logger = logging.Logger("test.logs")
    logger.addHandler(handler)
    return logger, out.getvalue


def raise_with(text):
    raise RuntimeError(text)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("way", ["message", "argument", "field", "traceback", "cause"])
def test_text_of_a_host_begins_no_line_and_moves_no_cursor(written, text, way):
    logger, lines = written
    if way == "message":
        logger.warning(text)
    elif way == "argument":
        logger.warning("Tried to log in: %s", text)
    elif way == "field":
        with logs.about(hypervisor=text):
            logger.warning("No answer")
    else:
        try:
            try:
                raise_with(text)
            except RuntimeError as error:
                if way == "traceback":
                    raise
                raise ValueError("in between") from error
        except (RuntimeError, ValueError):
            logger.exception("A fault")
    found = lines()
    assert found.endswith("\n")
    assert all(each.isprintable() for each in found.replace("\n", "")), "no control characters"
    first, *rest = found.removesuffix("\n").split("\n")
    assert re.match(r"\d{4}-|\{", first)
    assert all(line.startswith("  | ") for line in rest)
    assert not [line for line in rest if line.startswith(FORGED)]


def test_a_json_line_is_one_object_with_what_it_is_about():
    record = logging.LogRecord("jobs.worker.tick", logging.WARNING, __file__, 1, "It took %d s", (7,), None)
    with logs.about(migration=7, hypervisor="src"), logs.about(step="convert", direction="do", attempt=2):
        found = json.loads(logs.Json().format(record))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert isinstance(found.pop("pid"), int)
    about = {"migration": 7, "step": "convert", "direction": "do", "attempt": 2, "hypervisor": "src"}
    assert found == {"level": "warning", "logger": "jobs.worker.tick", "message": "It took 7 s", "part": "", **about}
    line = logs.Line().format(record)
    assert line.endswith(" WARNING jobs.worker.tick: It took 7 s"), "what it is about ended with its block"


def test_a_line_of_text_names_its_fields_before_the_message_where_no_message_can_forge_them():
    record = logging.LogRecord("jobs", logging.INFO, __file__, 1, "Step done [migration=9]", (), None)
    with logs.about(migration=7, step="swap"):
        assert logs.Line().format(record).endswith(" INFO jobs [migration=7 step=swap]: Step done [migration=9]")


def test_the_traceback_is_in_both_formats(written):
    logger, lines = written
    try:
        raise_with("a fault")
    except RuntimeError:
        logger.exception("It failed")
    assert "RuntimeError: a fault" in lines()
    assert "raise_with" in lines()


def test_a_message_without_end_is_cut(written):
    logger, lines = written
    logger.warning("x" * 10_000_000)
    assert len(lines()) < 20_000


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="host"), logs.about(host="src"):
        pass


def test_each_thread_has_what_it_is_about_and_those_that_it_starts_may_take_it_along():
    found = {}

    def look(name):
        found[name] = dict(logs.subject.get())

    with logs.about(migration=7):
        stranger = threading.Thread(target=look, args=("stranger",))
        stranger.start()
        stranger.join()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, look, "ours").result()
    assert found == {"stranger": {}, "ours": {"migration": 7}}


def test_a_call_to_a_host_names_step_attempt_and_hypervisor():
    class Host:
        def call(self, request, timeout):
            self.about = dict(logs.subject.get())
            return Answer("done")

    host, hypervisor = Host(), type("Hypervisor", (), {"name": "src"})()
    Door(None, "source", hypervisor, host).call(Request("source_facts", step="convert", direction="undo", attempt=3))
    assert host.about == {"hypervisor": "src", "step": "convert", "direction": "undo", "attempt": 3}


# Requests


def test_each_request_has_a_new_id_which_a_client_cannot_choose(client):
    first, second = (client.get("/healthz/live", headers={"X-Request-ID": "chosen-by-me"}) for _ in range(2))
    assert re.fullmatch(r"[0-9a-f]{16}", first["X-Request-ID"])
    assert first["X-Request-ID"] != second["X-Request-ID"]


@pytest.mark.parametrize(
    ("sent", "taken"), [("0af7651916cd43dd", True), ("short", False), ("x" * 65, False), ("a b c d e f g h", False)]
)
def test_behind_a_proxy_its_id_is_taken_when_it_is_one(client, settings, sent, taken):
    settings.BEHIND_PROXY = True
    assert (client.get("/healthz/live", headers={"X-Request-ID": sent})["X-Request-ID"] == sent) is taken


def test_a_fault_in_a_request_is_logged_under_its_id(client, db, monkeypatch):
    records = []
    monkeypatch.setattr(
        logging.getLogger("django.request"), "handle", lambda record: records.append(logs.Json().format(record))
    )
    client.get("/nothing-is-here-and-nobody-is-logged-in")
    [found] = map(json.loads, records)
    assert re.fullmatch(r"[0-9a-f]{16}", found["request"])
    assert "Not Found" in found["message"]


# The whole process


PROGRAM = """
import logging, django
django.setup()
import django_q.conf
for name in ("jobs.worker.tick", "django.request", "django-q", "uvicorn.error"):
    logging.getLogger(name).error("from a host:\\n%s", "second line")
try:
    raise RuntimeError("a\\nb")
except RuntimeError:
    logging.getLogger("uvicorn.error").exception("in the server")
"""


@pytest.mark.parametrize("form", ["line", "json"])
def test_every_library_writes_in_the_format_that_is_set(tmp_path, form):
    variables = {"VOLMIG_DATA": str(tmp_path), "VOLMIG_LOG_FORMAT": form, "DJANGO_SETTINGS_MODULE": "volmig.settings"}
    command = [sys.executable, "-c", f"import uvicorn; uvicorn.Config('x:y').configure_logging()\n{PROGRAM}"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    begun = [line for line in lines if not line.startswith("  | ")]
    assert len(begun) == 5, done.stderr
    assert all("second line" in line for line in begun[:4])
    if form == "json":
        assert len(lines) == 5
        assert [json.loads(line)["level"] for line in lines] == ["error"] * 5


def test_another_format_is_refused(monkeypatch):
    monkeypatch.setenv("VOLMIG_LOG_FORMAT", "xml")
    with pytest.raises(ImproperlyConfigured, match="must be line or json"):
        environment.choice("LOG_FORMAT", "line", "json")
