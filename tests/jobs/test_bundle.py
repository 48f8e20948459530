"""The archive of a migration's evidence: whole, the same each time, without secrets, and provably of the record."""

import hashlib
import hmac
import io
import json
import zipfile
from pathlib import Path

import pytest
from django.conf import settings as present
from django.core.management import CommandError, call_command
from django.test import Client

from jobs.web.evidence import archive
from tests.factories import operator, viewer
from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.heads import publish
from volmig.record.models import Event


@pytest.fixture
def done(drive, settings, tmp_path):
    settings.AUDIT_HEADS = tmp_path / "heads"
    job = drive.done()
    publish()
    return job


def opened(packed):
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        return {name.split("/", 1)[1]: file.read(name).decode() for name in file.namelist()}


def test_it_holds_what_was_asked_decided_run_and_measured(done):
    files = opened(archive(done))
    assert json.loads(files["job.json"])["asked"]["source_lv"] == done.source_lv
    swap = json.loads(files["approvals.json"])[0]
    assert (swap["kind"], swap["digest"]) == ("swap", done.approvals.get().digest)
    assert (
        swap["decisions"][0] | {"person": "pavel", "verdict": "approve", "reason": "as agreed"} == swap["decisions"][0]
    )
    commands = [json.loads(line) for line in files["commands.jsonl"].splitlines()]
    assert all(command["exit"] == 0 for command in commands)
    assert any("qemu-img convert" in command["text"] for command in commands)
    measured = {run["step"]: run["evidence"] for run in json.loads(files["evidence.json"])}
    assert measured["stage_verify"]["sha256"] == "ab" * 32
    assert (measured["compare"]["check"], measured["compare"]["compare"]) == (0, 0)
    steps = [run["step"] for run in json.loads(files["timeline.json"])]
    assert steps[0] == "relay_lv"
    assert "swap" in steps
    assert json.loads(files["versions.json"])["hostctl_bound"]
    assert json.loads(files["plan.json"])["steps"]


def test_the_same_rows_give_the_same_bytes_whatever_else_happens(done):
    first = archive(done)
    Event.append("person.login", object="somebody")
    publish()
    assert archive(done) == first


def test_whoever_downloads_it_is_recorded_and_changes_nothing_in_it(done, client):
    client.force_login(viewer())
    first = client.get(f"/migrations/{done.pk}/evidence.zip")
    assert first["Content-Type"] == "application/zip"
    assert client.get(f"/migrations/{done.pk}/evidence.zip").content == first.content
    assert Event.objects.filter(action="evidence.export", actor=viewer()).count() == 2


def test_the_page_of_a_migration_leads_to_it(done, client):
    client.force_login(viewer())
    assert f'href="/migrations/{done.pk}/evidence.zip"' in client.get(f"/migrations/{done.pk}/").content.decode()


def test_its_sums_are_those_of_its_files(done):
    files = opened(archive(done))
    sums = dict(reversed(line.split("  ")) for line in files.pop("SHA256SUMS").splitlines())
    named = {name: content for name, content in files.items() if not name.startswith("manifest.")}
    assert sums == {name: hashlib.sha256(content.encode()).hexdigest() for name, content in named.items()}


def test_its_events_can_be_checked_by_hand_as_its_readme_says(done):
    files = opened(archive(done))
    checked = 0
    for line in files["events.jsonl"].splitlines():
        event = json.loads(line)
        before, found = event.pop("prev_hash"), event.pop("hash")
        text = json.dumps(event, sort_keys=True, separators=(",", ":"))
        assert hmac.new(present.AUDIT_KEY.encode(), f"{before}\n{text}".encode(), hashlib.sha256).hexdigest() == found
        checked += 1
    assert checked == Event.objects.of_job(done.pk).count() > 20
    assert "hmac.new(key, (before + " in files["README.txt"]


def test_its_chain_names_a_head_that_was_published_after_it(done):
    chain = json.loads(opened(archive(done))["chain.json"])
    assert chain["published_head"]["seq"] >= chain["events"][-1]["seq"]
    assert chain["published_head"]["hash"] == Event.objects.get(seq=chain["published_head"]["seq"]).hash


@pytest.fixture
def file(done, tmp_path):
    path = tmp_path / "evidence.zip"
    path.write_bytes(archive(done))
    return path


def test_the_command_finds_its_events_in_the_record(file, capsys):
    call_command("verify_audit", bundle=file)
    assert "are unchanged events of this audit log" in capsys.readouterr().out


def rewritten(file, old, new):
    lines = opened(file.read_bytes())["events.jsonl"]
    assert old in lines
    changed = file.with_name("events.jsonl")
    changed.write_text(lines.replace(old, new, 1))
    return changed


def test_the_command_names_the_event_that_was_changed(file, done):
    changed = rewritten(file, '"reason": "as agreed"', '"reason": "by nobody"')
    seq = Event.objects.get(action="approval.approve").seq
    with pytest.raises(CommandError, match=f"Event {seq} was changed"):
        call_command("verify_audit", bundle=changed)


def test_the_command_names_the_event_that_is_not_in_the_record(file, done):
    seq = Event.objects.of_job(done.pk).order_by("-seq").first().seq
    drop_triggers()
    Event.objects.filter(seq=seq).delete()
    make_triggers()
    with pytest.raises(CommandError, match=f"Event {seq} is not in this audit log"):
        call_command("verify_audit", bundle=file)


@pytest.mark.parametrize("content", [b"{}\n", b"nonsense", b"\xff\xfe"])
def test_the_command_refuses_what_is_no_bundle(db, tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="cannot be read"):
        call_command("verify_audit", bundle=path)


def test_no_secret_is_in_it(done, client):
    client.force_login(operator())
    files = "".join(opened(archive(done)).values())
    secrets = [path.read_text().strip() for path in Path(present.DATA).iterdir() if path.name in SECRETS]
    hashes = [user.password for user in (operator(), viewer())]
    for secret in (*secrets, *hashes, client.session.session_key, "correct horse battery", "PRIVATE KEY"):
        assert secret not in files


SECRETS = {"secret_key", "audit_key", "ssh_key"}


def test_somebody_of_another_team_does_not_get_it(done):
    from hosts.models import Hypervisor
    from volmig.accounts.models import Team

    Hypervisor.objects.update(team=Team.objects.create(name="eu"))
    stranger = Client()
    stranger.force_login(viewer())
    assert stranger.get(f"/migrations/{done.pk}/evidence.zip").status_code == 404
