"""The command-line client against a running server, as people and scripts use it: what it prints, and how it ends."""

import ast
import http.server
import json
import os
import pty
import select
import signal
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import Client

from hosts.models import LogicalVolume
from jobs.engine import states
from jobs.models import Job
from tests.api.conftest import VERBS, letters_of
from tests.api.test_refusals import world
from tests.hostctl.test_pythons import FOUND
from tests.pages import scenes
from tests.shell import FILE, Shell
from volmig import client

WISH = (
    "--source cmp-lvm-07 --relay jump-02 --relay-vg vg_nova0 "
    f"--volume vg_nova0/{scenes.OLD}_disk.local --instance {scenes.NEW}"
).split()


@pytest.fixture
def shell_of(live_server, tmp_path):
    """A shell of a person, whose token may everything that they may."""
    return lambda user: Shell(live_server.url, letters_of(user, *VERBS), tmp_path)


@pytest.fixture
def hosts(transactional_db):
    return scenes.hypervisors()


@pytest.fixture
def dana(transactional_db, person):
    return person("dana", "operator")


@pytest.fixture
def shell(shell_of, dana, hosts):
    return shell_of(dana)


# What it shows


def test_hypervisors_volumes_and_instances_are_tables_for_people(shell):
    assert "jump-02" in shell.run("hosts")[1]
    assert f"{scenes.OLD}_disk.local" in shell.run("volumes", "--host", "cmp-lvm-07")[1]
    assert f"{scenes.OLD}_disk.local" in shell.run("volumes", scenes.OLD[:8])[1]
    assert scenes.NEW in shell.run("instances", "db-new")[1]


def test_everything_that_is_a_table_for_people_is_json_for_programs(shell, dana):
    scenes.job(dana, "done", instance_name="db-old")
    for words in (["hosts"], ["volumes"], ["instances"], ["history"]):
        assert isinstance(shell.json(*words), list), words
    assert shell.json("history", "db-old")[0]["status"] == "done"
    assert shell.json("whoami")["person"] == "dana"


def test_a_long_list_is_fetched_page_after_page(shell, dana, hosts):
    for _ in range(5):
        scenes.job(dana, "undone")
    letters = shell.environment["VOLMIG_TOKEN"]
    server = client.Server(shell.environment["VOLMIG_URL"], letters)
    assert len({each["number"] for each in server.items("/jobs", 100, limit=2)}) == 5
    assert len(server.items("/jobs", 3, limit=2)) == 3


def test_a_name_that_would_steer_the_terminal_is_printed_harmlessly(shell):
    LogicalVolume.objects.filter(name=f"{scenes.OLD}_disk.local").update(name="evil\x1b[2Jname")
    printed = shell.run("volumes")[1]
    assert "\x1b" not in printed
    assert "evil" in printed


# What it does


def test_a_migration_is_submitted_watched_and_approved_by_two_people(shell, shell_of, person, dana):
    made = shell.json("submit", *WISH, "--ticket", "OPS-1")
    job = Job.objects.get(pk=made["number"])
    assert (job.requester, job.ticket, job.start_when_checked) == (dana, "OPS-1", True)
    scenes.plan_for(job)
    job.put(status="awaiting_approval")
    asked = scenes.approval(job)
    code, _, said = shell.run("watch", str(job.pk))
    assert (code, "Another person has to approve the swap" in said) == (client.WAITING, True)
    kim = shell_of(person("kim", "approver"))
    code, printed, _ = kim.run("approve", str(job.pk), "--instance", job.instance_id[-6:], "--reason", "Agreed.")
    assert (code, asked.digest in printed) == (0, True)
    assert asked.decisions.get().person.username == "kim"


def test_the_same_key_submits_once(shell):
    numbers = {shell.json("submit", *WISH, "--key", "night-7")["number"] for _ in range(3)}
    assert numbers == {Job.objects.get().pk}


def test_evidence_becomes_a_file_and_overwrites_none(shell, dana, tmp_path):
    job = scenes.job(dana, "done")
    file = tmp_path / "evidence.zip"
    assert shell.run("evidence", str(job.pk), "--output", str(file))[0] == 0
    assert file.read_bytes().startswith(b"PK")
    assert shell.run("evidence", str(job.pk), "--output", str(file))[0] == client.USAGE


def test_a_client_that_is_killed_while_it_watches_changes_nothing(shell, dana):
    job = scenes.job(dana, "preparing")
    before = world()
    program = shell.start("watch", str(job.pk), "--every", "0.05")
    assert "convert" in program.stderr.readline()
    program.send_signal(signal.SIGKILL)
    program.communicate()
    assert world() == before
    assert shell.run("show", str(job.pk))[0] == 0


def test_watching_ends_when_what_is_watched_does(shell, dana):
    job = scenes.job(dana, "preparing")
    program = shell.start("watch", str(job.pk), "--every", "0.05")
    assert "62.4%" in program.stderr.readline()
    Job.objects.filter(pk=job.pk).update(status="done")
    assert program.wait(60) == 0
    program.communicate()


def read_until(terminal, words):
    """What a terminal shows until these words have come."""
    shown = b""
    while words not in shown:
        assert select.select([terminal], [], [], 20)[0], f"only {shown!r}"
        shown += os.read(terminal, 4096)
    return shown


def test_on_a_terminal_progress_is_one_line_that_moves(shell, dana):
    job = scenes.job(dana, "preparing")
    seen, terminal = pty.openpty()
    env = {**os.environ, **shell.environment}
    command = [sys.executable, FILE, "watch", str(job.pk), "--every", "0.05"]
    with subprocess.Popen(command, env=env, stderr=terminal, stdout=subprocess.DEVNULL) as program:
        os.close(terminal)
        try:
            shown = read_until(seen, b"62.4%")
            job.runs.filter(result="running").update(bytes_done=scenes.SIZE * 3 // 4)
            shown += read_until(seen, b"75.0%")
        finally:
            program.terminate()
            os.close(seen)
    lines = shown.decode().split("\r\033[K")
    assert "[#########" in lines[1]
    assert "94.0 MiB/s" in lines[1]
    assert "left" in lines[1]
    assert "\n" not in shown.decode().rpartition("75.0%")[0]


# How it ends


def halted(dana):
    return ["watch", str(scenes.halted(dana).pk)]


ENDS = {
    "done": (0, lambda dana: ["watch", str(scenes.job(dana, "done").pk)]),
    "a command that there is not": (client.USAGE, lambda dana: ["destroy"]),
    "a number that is none": (client.USAGE, lambda dana: ["watch", "all"]),
    "no terminal to type a reason on": (client.USAGE, lambda dana: ["reject", "1"]),
    "refused": (client.REFUSED, lambda dana: ["start", str(scenes.job(dana, "done").pk)]),
    "of another role": (client.REFUSED, lambda dana: ["events"]),
    "no such migration": (client.NOT_FOUND, lambda dana: ["show", "999"]),
    "no such hypervisor": (client.NOT_FOUND, lambda dana: ["volumes", "--host", "nowhere"]),
    "halted": (client.HALTED, halted),
    "undone": (client.UNDONE, lambda dana: ["watch", str(scenes.job(dana, "undone").pk)]),
    "rolled back": (client.UNDONE, lambda dana: ["watch", str(scenes.job(dana, "rolled_back").pk)]),
    "waits for a person": (client.WAITING, lambda dana: ["watch", str(scenes.job(dana, "planned").pk)]),
    "what it was to wait for": (0, lambda dana: ["watch", str(scenes.job(dana, "planned").pk), "--until", "planned"]),
}


@pytest.mark.parametrize("how", ENDS)
def test_each_end_has_a_code_of_its_own_and_is_explained(how, shell, dana):
    code, words = ENDS[how]
    found, printed, said = shell.run(*words(dana))
    assert (found, bool(said)) == (code, True), (printed, said)
    assert f"  {code}  {client.CODES[code]}" in shell.run("--help")[1]


def test_a_refusal_is_told_with_its_code_to_programs(shell, dana):
    code, printed, _ = shell.run("start", str(scenes.job(dana, "done").pk), "--json")
    assert (code, json.loads(printed)["code"]) == (client.REFUSED, "wrong-status")


# Tokens and where they go


def test_a_token_is_read_from_a_file_that_nobody_else_can_read(shell, tmp_path):
    file = tmp_path / "volmig" / "token"
    file.parent.mkdir()
    file.write_text(shell.environment["VOLMIG_TOKEN"] + "\n")
    file.chmod(0o644)
    code, _, said = shell.run("whoami", VOLMIG_TOKEN="")
    assert (code, "chmod 600" in said) == (client.TOKEN, True)
    file.chmod(0o600)
    assert shell.run("whoami", VOLMIG_TOKEN="")[0] == 0


@pytest.mark.parametrize("letters", ["", "volmig_nonsense"])
def test_without_a_token_that_counts_nothing_is_told(shell, letters):
    assert shell.run("hosts", VOLMIG_TOKEN=letters)[:2] == (client.TOKEN, "")


def test_what_is_no_token_is_not_printed(shell):
    code, printed, said = shell.run("hosts", VOLMIG_TOKEN="volmig_sec\nret")
    assert (code, "sec" in printed + said) == (client.TOKEN, False)


def test_certificates_that_are_not_there_are_not_passed_over(shell, tmp_path):
    code, _, said = shell.run("hosts", VOLMIG_CA_FILE=str(tmp_path / "none.pem"))
    assert (code, "VOLMIG_CA_FILE" in said) == (client.USAGE, True)


def test_a_file_that_cannot_be_written_is_a_sentence(shell, dana, tmp_path):
    number = str(scenes.job(dana, "done").pk)
    code, _, said = shell.run("evidence", number, "--output", str(tmp_path / "nowhere" / "evidence.zip"))
    assert (code, "nowhere" in said, "Traceback" in said) == (client.FAULT, True, False)


NOWHERE = ["", "volmig.example.org", "file:///etc/passwd", "https://volmig example", "https://volmig.example.org:x"]


@pytest.mark.parametrize("url", ["http://volmig.example.org", *NOWHERE])
def test_a_token_is_not_sent_without_encryption_or_to_nowhere(shell, url):
    assert shell.run("hosts", VOLMIG_URL=url)[0] == client.USAGE


class Fake:
    """A server that answers each request by the next of `answers`, the last for ever; remembers what came."""

    def __init__(self, *answers, context=None):
        self.came, outer = [], self
        left = list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.came.append(self.headers.get("Authorization"))
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if context:
            self.server.socket, scheme = context.wrap_socket(self.server.socket, server_side=True), "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


ME = {"person": "x", "roles": [], "scope": [], "token": "x", "expires_at": "2030-01-01T00:00:00Z"}
GOOD = (200, {"Content-Type": "application/json"}, json.dumps(ME).encode())
NOW = {
    "number": 1, "status": "done", "outcome": "", "halted": False, "sentence": "It is done.", "waiting_for": "",
    "running": None, "seconds_left": None, "steps": [], "wants": "",
}  # fmt: skip


def told(**now):
    return 200, {"Content-Type": "application/json"}, json.dumps({**NOW, **now}).encode()


@pytest.fixture
def alone(tmp_path):
    """A shell whose volmig is told with each command."""
    return Shell("http://127.0.0.1:1", "volmig_secret", tmp_path)


def test_a_server_that_is_away_is_unreachable(alone):
    code, _, said = alone.run("whoami")
    assert (code, "does not respond" in said) == (client.UNREACHABLE, True)


def test_watching_outlasts_a_restart_of_the_server(alone):
    busy = (503, {}, b"")
    with Fake(busy, busy, told()) as server:
        code, _, said = alone.run("watch", "1", VOLMIG_URL=server.url)
    assert (code, said.count("Retrying")) == (0, 2)


def test_what_is_refused_because_volmig_is_read_only_says_so_and_is_not_tried_again(alone):
    said_so = json.dumps({"detail": "Nothing was changed: volmig is read-only.", "errors": []}).encode()
    with Fake((503, {"Content-Type": "application/problem+json"}, said_so)) as server:
        code, _, said = alone.run("watch", "1", VOLMIG_URL=server.url)
    assert (code, "volmig is read-only" in said) == (client.REFUSED, True)


def test_an_answer_that_breaks_off_is_asked_for_again(alone):
    with Fake((200, {"Content-Length": "999"}, b'{"number": 1'), told()) as server:
        code, _, said = alone.run("watch", "1", VOLMIG_URL=server.url)
    assert (code, said.count("Retrying"), "Traceback" in said) == (0, 1, False)


@pytest.mark.parametrize("status", ["planned", "awaiting_approval", "on_trial"])
def test_what_a_person_has_just_done_is_not_waited_for_again(status, alone):
    with Fake(told(status=status), told(status=status, sentence="Now."), told()) as server:
        assert alone.run("watch", "1", "--every", "0.05", VOLMIG_URL=server.url)[0] == 0
    with Fake(told(status=status, wants="somebody")) as server:
        assert alone.run("watch", "1", VOLMIG_URL=server.url)[0] == client.WAITING


@pytest.mark.parametrize(("outcome", "code"), [("done", 0), ("rolled back", client.UNDONE), ("failed", client.UNDONE)])
def test_a_purge_does_not_change_how_it_came_out(outcome, code, alone):
    with Fake(told(status="purged", outcome=outcome)) as server:
        assert alone.run("watch", "1", VOLMIG_URL=server.url)[0] == code


@pytest.mark.parametrize("status", ["done", "rolled_back"])
def test_a_purge_is_waited_for_where_it_is_what_one_waits_for(status, alone):
    with Fake(told(status=status), told(status="purging"), told(status="purged")) as server:
        assert alone.run("watch", "1", "--until", "purged", "--every", "0.05", VOLMIG_URL=server.url)[0] == 0


def test_watching_knows_the_statuses_that_there_are(alone):
    assert set(client.STATUSES) == set(states.STATUSES)
    assert alone.run("watch", "1", "--until", "finished")[0] == client.USAGE


def test_watching_gives_up_when_its_patience_is_over(alone):
    assert alone.run("watch", "1", "--patience", "0")[0] == client.UNREACHABLE


def test_a_token_does_not_follow_to_another_server(alone):
    with Fake(GOOD) as thief, Fake((302, {"Location": f"{thief.url}/api/v1/me"}, b"")) as server:
        code = alone.run("whoami", VOLMIG_URL=server.url)[0]
        assert (code, len(server.came), thief.came) == (client.FAULT, 1, [])


def test_what_answers_in_another_way_is_a_fault(alone):
    with Fake((200, {}, b"<html>log in to the hotel</html>")) as server:
        assert alone.run("whoami", VOLMIG_URL=server.url)[0] == client.FAULT


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that only itself vouches for, with its key, in one file."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "volmig test")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    alt = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = made.add_extension(alt, critical=False).sign(key, hashes.SHA256())
    file = tmp_path / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return file


def test_a_server_that_cannot_prove_who_it_is_gets_no_token(alone, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Fake(GOOD, context=context) as server:
        code, _, said = alone.run("whoami", VOLMIG_URL=server.url)
        assert (code, "cannot prove its identity" in said, server.came) == (client.UNREACHABLE, True, [])
        assert alone.run("whoami", VOLMIG_URL=server.url, VOLMIG_CA_FILE=str(certificate))[0] == 0


# The file


def test_it_is_one_file_for_python_3_8_that_needs_nothing_else():
    tree = ast.parse(FILE.read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


@pytest.mark.parametrize("python", sorted(FOUND), ids=str)
def test_it_runs_under_every_python_that_is_found_here(python):
    minor = int(subprocess.check_output([str(python), "-c", "import sys; print(sys.version_info[1])"]))
    if minor >= 8:
        assert "exit codes:" in subprocess.check_output([str(python), "-I", str(FILE), "--help"], text=True)


def test_a_running_server_hands_it_out_to_everybody():
    response = Client().get("/api/client")
    assert b"".join(response.streaming_content) == FILE.read_bytes()


def test_bash_completes_commands_and_their_options(alone):
    script = alone.run("completion")[1]
    asks = 'COMP_WORDS=(volmig {0}); COMP_CWORD={1}; _volmig; echo "${{COMPREPLY[@]}}"'
    for typed, word, offered in (("sub", 1, "submit"), ("submit --rel", 2, "--relay --relay-vg")):
        told = subprocess.check_output(["bash", "-c", f"{script}\n{asks.format(typed, word)}"], text=True)
        assert told.strip() == offered
