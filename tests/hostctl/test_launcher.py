"""The program that sshd and sudo start, in this process: which version it becomes, with which standard input."""

import io
import json
import os
import runpy
import sys
import uuid
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import launcher

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root installs hostctl")
OLD, NEW = "0" * 15 + "1", "0" * 15 + "2"
JOB = str(uuid.uuid4())


class Became(Exception):  # noqa: N818 - what exec does is no error
    """The process was replaced."""

    def __init__(self, argv, request):
        super().__init__(argv)
        self.argv, self.request = argv, request


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A hypervisor with two versions, the newer one current; its policy is there once `policy` is written."""
    directory, state, policy = tmp_path / "volmig-hostctl.d", tmp_path / "state", tmp_path / "hostctl.json"
    directory.mkdir(mode=0o755)
    state.mkdir()
    for digest, text in ((OLD, b"an old version"), (NEW, b"PK hostctl/policy.py")):
        (directory / f"hostctl-{digest}").write_bytes(text)
    (directory / "current").symlink_to(f"hostctl-{NEW}")
    monkeypatch.setattr(launcher, "DIRECTORY", str(directory))
    monkeypatch.setattr(launcher, "STATE", str(state))
    monkeypatch.setattr(launcher, "POLICY", str(policy))

    def execv(_program, argv):
        raise Became(argv, os.read(0, 1 << 21))

    monkeypatch.setattr(os, "execv", execv)
    standard_input = os.dup(0)
    yield SimpleNamespace(directory=directory, state=state, policy=policy)
    os.dup2(standard_input, 0)
    os.close(standard_input)


def become(monkeypatch, data=b"", *words):
    """What the process becomes: the words of its new program, and its standard input."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(Became) as became:
        launcher.main(list(words))
    return became.value


def version_of(became):
    return became.argv[2].rpartition("-")[2]


def began(host, digest, job=JOB, number=1):
    folder = host.state / job
    folder.mkdir(exist_ok=True)
    kept = folder / f"stage-do-{number}.request.json"
    kept.write_text(json.dumps({"verb": "stage", "hash": digest}))
    os.utime(kept, (number, number))
    return kept


@pytest.mark.parametrize("anonymous_file", ["memfd_create", "O_TMPFILE"])
def test_the_version_that_a_request_names_gets_it_byte_for_byte(host, monkeypatch, anonymous_file):
    if anonymous_file == "O_TMPFILE":
        monkeypatch.delattr(os, "memfd_create")
    request = json.dumps({"hash": OLD, "job": JOB, "args": {"x": "y" * 300_000}}).encode()
    became = become(monkeypatch, request)
    assert (version_of(became), became.request) == (OLD, request)
    assert became.argv == [sys.executable, "-I", f"{host.directory}/hostctl-{OLD}"]


@pytest.mark.parametrize(
    "request_", [b"", b"{", b"[]", b"\xff", b'{"hash": 5}', b'{"hash": "../../x"}', b'{"hash": "%s"}' % (b"f" * 16)]
)
def test_whatever_names_no_installed_version_reaches_the_current_one_as_it_came(host, monkeypatch, request_):
    became = become(monkeypatch, request_)
    assert (version_of(became), became.request) == (NEW, request_)


def test_no_more_is_read_than_a_request_may_have(host, monkeypatch):
    became = become(monkeypatch, b"x" * (launcher.INPUT_CAP + 10))
    assert len(became.request) == launcher.INPUT_CAP, "the version that refuses it has to see that it is too long"


def test_by_hand_a_migration_is_handled_by_the_version_of_its_last_request(host, monkeypatch):
    began(host, NEW)
    began(host, OLD, number=2)
    became = become(monkeypatch, b"", "status", JOB)
    assert (version_of(became), became.argv[3:]) == (OLD, ["status", JOB])
    assert version_of(become(monkeypatch, b"", "status", str(uuid.uuid4()))) == NEW, "one that is not known here"
    assert version_of(become(monkeypatch, b"", "install")) == NEW, "a word without a migration"


@pytest.mark.parametrize("spoil", ["no migration", "not JSON", "removed meanwhile", "not readable as text"])
def test_a_migration_whose_requests_cannot_be_read_names_no_version(host, spoil):
    kept = began(host, OLD)
    job = JOB
    if spoil == "no migration":
        job = 7
    elif spoil == "not JSON":
        kept.write_text("{")
    elif spoil == "removed meanwhile":
        kept.unlink()
    else:
        kept.write_bytes(b"\xff\xfe")
    assert not launcher.of_job(job)


def test_with_a_policy_a_version_that_knows_none_is_not_run_but_for_a_migration_that_began_with_it(host, monkeypatch):
    host.policy.write_text("{}")
    request = json.dumps({"hash": OLD, "job": JOB}).encode()
    assert version_of(become(monkeypatch, request)) == NEW
    began(host, OLD)
    assert version_of(become(monkeypatch, request)) == OLD
    assert version_of(become(monkeypatch, json.dumps({"hash": OLD, "job": str(uuid.uuid4())}).encode())) == NEW


@pytest.mark.parametrize("spoil", ["writable", "owner", "link", "directory", "directory gone", "no current", "empty"])
def test_no_program_is_run_that_anyone_but_root_could_have_written(host, monkeypatch, capsys, spoil):
    newest = host.directory / f"hostctl-{NEW}"
    if spoil == "writable":
        newest.chmod(0o775)
    elif spoil == "owner":
        os.chown(newest, 65534, 65534)
    elif spoil == "link":
        newest.rename(host.directory / "elsewhere")
        newest.symlink_to("elsewhere")
    elif spoil == "directory":
        host.directory.chmod(0o777)
    elif spoil == "directory gone":
        host.directory.rename(host.directory.with_name("aside"))
    elif spoil == "no current":
        (host.directory / "current").unlink()
    else:
        newest.unlink()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"{}")))
    assert launcher.main([]) == 127
    assert "no version found" in capsys.readouterr().err


def test_started_as_a_program_it_ends_with_the_status_of_what_it_found(monkeypatch, capsys):
    """As sshd does; beside the sources lies no version, so it finds none."""
    monkeypatch.setattr(sys, "argv", [launcher.__file__, "status", JOB])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(launcher.__file__, run_name="__main__")
    assert ended.value.code == 127
    assert "no version found" in capsys.readouterr().err
