"""Archives of evidence, checked by a stranger: the single-file verifier finds every change, without a secret."""

import base64
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.core.management import CommandError, call_command

from jobs.web.evidence import archive
from tests.hostctl.test_pythons import FOUND
from tests.pages import scenes
from tests.trust import mutations
from tests.trust.amounts import amount, figure
from volmig import verify_evidence
from volmig.record import key_file, signing
from volmig.record.apps import drop_triggers, make_triggers
from volmig.record.export import COLUMNS, json_line
from volmig.record.heads import publish
from volmig.record.models import Event

VERIFIER = Path(verify_evidence.__file__)


def minor_of(python):
    """The 11 of …/3.11.7/bin/python3 and of /usr/bin/python3.11."""
    return int(re.search(r"3\.(\d+)", str(python))[1])


@pytest.fixture(autouse=True)
def _own_files(settings, tmp_path, monkeypatch):
    settings.AUDIT_HEADS = tmp_path / "heads"
    monkeypatch.setenv("VOLMIG_DATA", str(tmp_path / "data"))


@pytest.fixture
def done(person):
    """Two migrations whose events stand between those of others, and are covered by several heads."""
    by = person("dana", "operator")
    one, other = scenes.job(by, "done"), scenes.job(by, "undone")
    signing.record_key()
    for number in range(12):
        Event.append("step.done", actor=by, job=one.pk, object=str(one), data={"n": number, "words": "größer – ✓"})
        Event.append("step.done", job=other.pk, data={"n": number / 3})
        Event.append("host.seen", object="cmp-lvm-07")
        if number % 4 == 3:
            publish()
    return one, other


@pytest.fixture
def files(done, tmp_path):
    """What a stranger has: an archive, the public keys, the heads, and an export of the whole audit log."""
    one, other = done
    (tmp_path / "one.zip").write_bytes(archive(one))
    (tmp_path / "other.zip").write_bytes(archive(other))
    (tmp_path / "keys.json").write_text(json.dumps(signing.published()))
    export(tmp_path / "export.jsonl")
    return tmp_path


def export(path, change=lambda rows: rows):
    rows = change(list(Event.objects.order_by("seq").values_list(*COLUMNS)))
    path.write_text("".join(map(json_line, rows)))


def run(*arguments, alone=False):
    """Runs the verifier as a stranger does; `alone`: without any package that is installed."""
    flags = ["-I", "-S"] if alone else ["-I"]
    command = [sys.executable, *flags, str(VERIFIER), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={"PATH": os.environ["PATH"]}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def inside(path, keys, **more):
    known = verify_evidence.Keys()
    assert not verify_evidence.read_key(str(keys), known)
    return verify_evidence.verify(str(path), known, **{name: str(each) for name, each in more.items()})


@pytest.mark.parametrize("alone", [False, True], ids=["with cryptography", "alone"])
def test_a_stranger_verifies_an_archive_and_is_told_what_was_checked(files, done, alone):
    code, out, _ = run(files / "one.zip", "--key", files / "keys.json", alone=alone)
    assert code == 0, out
    assert f"The archive is of migration {done[0].pk} and signed with key {signing.current().id}." in out
    assert "12 of 12 events are covered by 3 signed heads, published " in out
    assert "Not checked: whether events of this migration were left out." in out
    assert out.endswith("No fault found.\n")


def test_with_heads_and_export_it_is_also_shown_that_no_event_was_left_out(files, done):
    with_all = ("--key", files / "keys.json", "--heads", files / "heads", "--export", files / "export.jsonl")
    code, out, _ = run(files / "one.zip", *with_all)
    assert code == 0, out
    assert "All 3 heads of the archive are in the file of published heads." in out
    count = Event.objects.count()
    assert f"{count} of {count} events are exactly those that the heads cover." in out
    assert f"The archive leaves out no event of migration {done[0].pk}" in out


def test_an_archive_signed_by_volmig_that_leaves_out_an_event_is_found_with_an_export(files, done):
    """Whoever has the key can sign anything; not what the heads that others keep do not cover."""
    members, _ = verify_evidence.unpack((files / "one.zip").read_bytes())
    contents = {name.partition("/")[2]: content for name, content in members[2:]}
    lines = contents["events.jsonl"].splitlines(True)
    contents["events.jsonl"] = b"".join(lines[:3] + lines[4:])
    key = signing.current()
    forged = files / "forged.zip"
    forged.write_bytes(verify_evidence.signed_archive(f"migration {done[0].pk}", contents, key.id, key.sign))
    assert not inside(forged, files / "keys.json").faults, "by itself it is as it was signed"
    found = inside(forged, files / "keys.json", heads=files / "heads", export=files / "export.jsonl")
    left_out = json.loads(lines[3])["seq"]
    assert found.faults == [f"The archive leaves out event {left_out} of its migration (1 in all)."]


def test_events_that_came_after_an_archive_was_made_are_counted(files, done):
    Event.append("step.done", job=done[0].pk)
    publish()
    export(files / "export.jsonl")
    with_all = ("--key", files / "keys.json", "--heads", files / "heads", "--export", files / "export.jsonl")
    code, out, _ = run(files / "one.zip", *with_all)
    assert code == 0, out
    assert f"The export has 1 later events of migration {done[0].pk}, the first is event {Event.objects.count()}" in out


def test_an_archive_signed_by_volmig_with_an_event_that_was_not_published_is_found(files, done):
    members, _ = verify_evidence.unpack((files / "one.zip").read_bytes())
    contents = {name.partition("/")[2]: content for name, content in members[2:]}
    contents["events.jsonl"] = contents["events.jsonl"].replace(b'"n": 5', b'"n": 6')
    key = signing.current()
    forged = files / "forged.zip"
    forged.write_bytes(verify_evidence.signed_archive(f"migration {done[0].pk}", contents, key.id, key.sign))
    (fault,) = inside(forged, files / "keys.json").faults
    assert fault.endswith("it is not the event that the published head covers.")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[:7] + rows[8:], "lacks event 8, which the head of event"),
        (lambda rows: [*rows[:7], (*rows[7][:8], "x", *rows[7][9:]), *rows[8:]], "one or more are not those"),
        (lambda rows: [*rows[:7], rows[8], rows[7], *rows[9:]], "event 8 comes after event 9"),
        (lambda rows: [*rows[:7], (*rows[7][:-1], "0" * 64), *rows[8:]], "one or more are not those"),
    ],
    ids=["an event is missing", "one was changed", "two changed places", "a hash was changed"],
)
def test_an_export_that_is_not_what_was_published_is_found(files, change, sentence):
    export(files / "export.jsonl", change)
    code, out, _ = run("--heads", files / "heads", "--export", files / "export.jsonl", "--key", files / "keys.json")
    assert code == 1
    assert sentence in out
    assert "FAULT: " in out


def without_events(files, number, kept):
    """The archive as whoever holds the key can make it: with the events that are kept, and heads of only these."""
    members, _ = verify_evidence.unpack((files / "one.zip").read_bytes())
    contents = {name.partition("/")[2]: content for name, content in members[2:]}
    lines = [line for line in contents["events.jsonl"].splitlines(True) if kept(json.loads(line)["seq"])]
    contents["events.jsonl"] = b"".join(lines)
    key = signing.current()
    forged = files / "forged.zip"
    forged.write_bytes(verify_evidence.signed_archive(f"migration {number}", contents, key.id, key.sign))
    return forged


def test_a_range_that_archive_and_export_both_lack_is_not_said_to_be_complete(files, done):
    """Both leave out all that the first head covers: no event contradicts another, and yet events are left out."""
    until = json.loads((files / "heads").read_bytes().splitlines()[0])["seq"]
    forged = without_events(files, done[0].pk, lambda seq: seq > until)
    export(files / "export.jsonl", lambda rows: [row for row in rows if row[0] > until])
    with_all = ("--key", files / "keys.json", "--heads", files / "heads", "--export", files / "export.jsonl")
    code, out, _ = run(forged, *with_all)
    assert code == 1
    assert f"lacks the events 1 to {until}, and has later ones: it is not the whole audit log." in out
    assert "leaves out no event" not in out
    assert f"Not checked: whether events of migration {done[0].pk} after event 0 were left out." in out


def test_an_export_that_is_older_than_the_archive_vouches_only_for_what_it_has(files, done):
    until = json.loads((files / "heads").read_bytes().splitlines()[1])["seq"]
    forged = without_events(files, done[0].pk, lambda seq: seq <= until)
    export(files / "export.jsonl", lambda rows: [row for row in rows if row[0] <= until])
    with_all = ("--key", files / "keys.json", "--heads", files / "heads", "--export", files / "export.jsonl")
    code, out, _ = run(forged, *with_all)
    assert code == 0, out
    assert "events that the heads cover: they were not checked." in out
    assert f"The archive leaves out no event of migration {done[0].pk} up to event " in out


def test_heads_without_any_signature_vouch_for_no_export(files):
    """Anybody can write such lines, and an export to match."""
    heads = [json.loads(line) for line in (files / "heads").read_bytes().splitlines()]
    bare = [json.dumps({name: head[name] for name in ("seq", "hash", "at")}) + "\n" for head in heads]
    (files / "heads").write_text("".join(bare))
    export(files / "export.jsonl", lambda rows: [(*row[:-1], "0" * 64) for row in rows])
    with_all = ("--key", files / "keys.json", "--heads", files / "heads", "--export", files / "export.jsonl")
    code, out, _ = run(*with_all)
    assert code == 1
    assert "contains no signed head: anyone can write such a file." in out
    assert "No signed head covers events of " in out


def test_heads_that_the_archive_has_and_the_published_file_has_not_are_found(files):
    lines = (files / "heads").read_bytes().splitlines(True)
    (files / "heads").write_bytes(b"".join(lines[:1] + lines[2:]))
    code, out, _ = run(files / "one.zip", "--key", files / "keys.json", "--heads", files / "heads")
    assert code == 1
    assert "Line 2 of the heads file (byte " in out
    assert "lines between them are missing, or were added" in out
    assert "is not in the file of published heads" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["one.zip", "--key", "no key"],
        ["one.zip", "--key", "one.zip"],
        ["nowhere.zip", "--key", "keys.json"],
        ["--key", "keys.json"],
        ["one.zip", "--export", "export.jsonl", "--key", "keys.json"],
        ["one.zip"],
    ],
)
def test_what_cannot_be_checked_is_told_from_what_is_wrong(files, arguments):
    named = [str(files / each) if (files / each).exists() else each for each in arguments]
    code, _, error = run(*named)
    assert code == 2
    assert error


@pytest.mark.parametrize(
    "python", sorted(each for each in FOUND if minor_of(each) >= 8), ids=lambda each: each.parts[-3]
)
def test_it_runs_alone_under_every_python_from_3_8_on(files, python):
    command = [str(python), "-I", "-S", str(VERIFIER), str(files / "one.zip"), "--key", str(files / "keys.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("No fault found.\n")


def test_a_stranger_with_another_key_is_not_told_that_members_were_signed(files):
    code, out, _ = run(files / "one.zip", "--key", base64.b64encode(bytes(32)).decode())
    assert code == 1
    assert "members are those that the manifest names, for which nothing vouches" in out
    assert "that were signed" not in out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "manifest.json",
            b'{"format": "volmig evidence 1", "subject": "", "members": [{"name": [], "size": 1, "sha256": 1}]}',
        ),
        ("manifest.json", b"[" * 100_000),
        ("chain.json", b'{"proofs": [], "heads_error": ""}'),
        ("chain.json", b'{"proofs": {"3": 1}, "heads_error": {}}'),
        ("events.jsonl", b"[]\n1\n" + b"\xff"),
        ("heads.jsonl", b'{"v": 2}\n' + b"\0" * 9000),
    ],
)
def test_nonsense_in_an_archive_is_a_fault_and_no_traceback(files, name, content):
    members, _ = verify_evidence.unpack((files / "one.zip").read_bytes())
    changed = [(each, content if each.endswith("/" + name) else old) for each, old in members]
    (files / "one.zip").write_bytes(verify_evidence.pack(changed))
    assert run(files / "one.zip", "--key", files / "keys.json")[0] == 1


def test_an_archive_of_before_says_that_it_is_not_signed(files, tmp_path):
    members, _ = verify_evidence.unpack((files / "one.zip").read_bytes())
    old = tmp_path / "old.zip"
    old.write_bytes(verify_evidence.pack(members[2:]))
    code, out, _ = run(old, "--key", files / "keys.json")
    assert code == 1
    assert "Archives of earlier versions of volmig have none" in out


# Mutations


@pytest.mark.usefixtures("unmeasured")
def test_every_mutation_of_an_archive_is_detected(files):
    totals, kinds = {}, {}
    for speed, count in (("fast", amount(9_700, 620)), ("pure", amount(300, 70))):
        keys = [str(files / name) for name in ("one.zip", "other.zip", "keys.json")]
        command = [sys.executable, "-I", mutations.__file__, str(VERIFIER), *keys, str(count), "7", speed]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["undetected"] == []
        assert told["strangers"] == [], "the verifier is imported alone"
        assert min(told["made"].values()) > 0
        totals[speed] = sum(told["made"].values())
        kinds = told["made"]
    figure(
        f"{sum(totals.values())} mutations of an archive of evidence, of {len(kinds)} kinds: 0 not detected by the "
        f"single-file verifier ({totals['pure']} of them by its own Ed25519)"
    )


def test_every_byte_of_an_archive_counts(files):
    good, keys = (files / "one.zip").read_bytes(), files / "keys.json"
    chance, scratch = random.Random(3), files / "scratch.zip"
    tried = (
        range(len(good)) if amount(1, 0) and len(good) < 40_000 else chance.sample(range(len(good)), amount(2_000, 60))
    )
    for at in tried:
        scratch.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert inside(scratch, keys).faults, f"byte {at}"


# Ed25519

VECTORS = [  # RFC 8032, section 7.1: public key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe246551"
        "41438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d"
        "291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027"
        "beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9a"
        "c94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9be"
        "f1177331a704",
    ),
]


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_its_own_ed25519_verifies_what_rfc_8032_signs_and_nothing_near_it(public, message, signature):
    public, message, signature = map(bytes.fromhex, (public, message, signature))
    assert verify_evidence.ed25519(public, message, signature)
    for bit in range(0, 512, 7):
        wrong = bytearray(signature)
        wrong[bit // 8] ^= 1 << bit % 8
        assert not verify_evidence.ed25519(public, message, bytes(wrong))
    assert not verify_evidence.ed25519(public, message + b"\0", signature)


@pytest.mark.usefixtures("unmeasured")
def test_its_own_ed25519_says_what_cryptography_says():
    chance = random.Random(11)
    agreed = 0
    for number in range(amount(1_000, 60)):
        private = Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))
        public, message = private.public_key().public_bytes_raw(), chance.randbytes(number)
        signature = bytearray(private.sign(message))
        if number % 3:  # broken in one of its parts
            signature[chance.randrange(64)] ^= 1 << chance.randrange(8)
        if number % 7 == 0:
            s = int.from_bytes(signature[32:], "little") + verify_evidence.L
            signature[32:] = (s % (1 << 256)).to_bytes(32, "little")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(bytes(signature), message)
            good = True
        except InvalidSignature:
            good = False
        assert verify_evidence.ed25519(public, message, bytes(signature)) is good
        agreed += 1
    figure(f"{agreed} signatures, good and broken: the verifier's own Ed25519 agrees with cryptography on each")


# Keys and their rotation


def test_the_key_is_made_once_and_named_in_the_audit_log(done):
    event = Event.objects.get(action="evidence.key")
    assert event.object == signing.current().id == verify_evidence.key_id(base64.b64decode(event.data["public"]))
    signing.record_key()
    assert Event.objects.filter(action="evidence.key").count() == 1


def test_after_a_rotation_old_heads_and_new_archives_verify_with_the_published_keys(files, done, capsys):
    before = signing.current().id
    call_command("rotate_evidence_key")
    after = signing.current().id
    assert f"Key {after} signs from now on; key {before} signed it." in capsys.readouterr().out
    Event.append("step.done", job=done[0].pk)
    publish()
    (files / "one.zip").write_bytes(archive(done[0]))
    (files / "keys.json").write_text(json.dumps(signing.published()))
    code, out, _ = run(files / "one.zip", "--key", files / "keys.json", "--heads", files / "heads")
    assert code == 0, out
    assert f"signed with key {after}." in out
    event = Event.objects.get(action="evidence.key-rotated")
    assert (event.object, event.data["signed_by"]) == (after, before)
    first, second = signing.published()["keys"]
    assert first["until"] == second["from"]
    call_command("verify_audit")


def test_a_key_that_the_stranger_does_not_know_is_named(files, done):
    old = signing.published()["keys"][0]["public"]
    call_command("rotate_evidence_key")
    (files / "one.zip").write_bytes(archive(done[0]))
    code, out, _ = run(files / "one.zip", "--key", old)
    assert code == 1
    assert f"is signed with key {signing.current().id}, which is not one of the given keys" in out


def test_a_head_dated_after_its_key_was_replaced_is_a_fault(files):
    old = signing.current()
    call_command("rotate_evidence_key")
    head = verify_evidence.parse_head((files / "heads").read_bytes().splitlines()[-1])
    value = {"seq": head.seq + 1, "first": head.seq + 1, "hash": "0" * 64, "root": "0" * 64, "prev": head.digest}
    late = verify_evidence.head_line({**value, "at": "2100-01-01T00:00:00+00:00"}, old.id, old.sign)
    with (files / "heads").open("ab") as file:
        file.write(late + b"\n")
    (files / "keys.json").write_text(json.dumps(signing.published()))
    code, out, _ = run("--heads", files / "heads", "--key", files / "keys.json")
    assert code == 1
    assert f"is dated 2100-01-01T00:00:00+00:00, when key {old.id} was not valid" in out


def test_a_new_key_in_keys_json_that_the_old_one_did_not_sign_is_a_fault(files):
    call_command("rotate_evidence_key")
    published = signing.published()
    stranger = key_file.entry(Ed25519PrivateKey.generate(), published["keys"][1]["from"])
    forged = stranger | {"signed_by": published["keys"][0]["id"], "signature": published["keys"][1]["signature"]}
    (files / "keys.json").write_text(json.dumps({"keys": [published["keys"][0], forged]}))
    code, out, _ = run(files / "one.zip", "--key", files / "keys.json")
    assert code == 1
    assert f"Key {forged['id']} in keys.json is not signed by the key before it." in out


def test_the_private_key_is_readable_for_volmig_alone_and_is_in_no_archive(files):
    kept = Path(os.environ["VOLMIG_DATA"], "evidence_key")
    assert kept.stat().st_mode & 0o777 == 0o600
    private = json.loads(kept.read_text())["private"]
    assert private.encode() not in (files / "one.zip").read_bytes()
    assert private not in (files / "keys.json").read_text()


# Where strangers get what they need


def test_anybody_gets_the_keys_and_the_verifier_and_auditors_the_heads(files, client, person):
    assert json.loads(client.get("/evidence/keys.json").content) == signing.published()
    assert b"".join(client.get("/evidence/verify_evidence.py").streaming_content) == VERIFIER.read_bytes()
    client.force_login(person("ann", "auditor"))
    assert b"".join(client.get("/evidence/heads.jsonl").streaming_content) == (files / "heads").read_bytes()
    page = client.get("/evidence/").content.decode()
    assert signing.published()["keys"][0]["public"] in page
    assert "keys.json" in page


def test_the_server_checks_the_signature_of_an_archive_too(files, capsys):
    call_command("verify_audit", bundle=files / "one.zip")
    assert "12 events are unchanged events of this audit log" in capsys.readouterr().out
    data = (files / "one.zip").read_bytes()
    (files / "one.zip").write_bytes(data.replace(b"OPS-5519", b"OPS-5518"))
    with pytest.raises(CommandError, match="was changed: it is not what was signed"):
        call_command("verify_audit", bundle=files / "one.zip")


def test_an_event_that_was_changed_in_the_database_is_not_proved_by_the_archive(files, done):
    drop_triggers()
    Event.objects.filter(job=done[0].pk, data__n=5).update(object="nothing happened")
    make_triggers()
    (files / "one.zip").write_bytes(archive(done[0]))
    code, out, _ = run(files / "one.zip", "--key", files / "keys.json")
    assert code == 1
    assert "FAULT: When volmig made this archive, the events " in out
    assert " in its database were not those published at " in out
