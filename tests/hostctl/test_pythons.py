"""The bundle runs under every Python that is found here, the oldest supported included."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hosts.remote import hostctl
from hosts.remote.hostctl import pack

FOUND = {
    Path(path).resolve()
    for path in (shutil.which(f"python3.{minor}") for minor in range(6, 15))
    if path and "shims" not in path
}
FOUND |= {path.resolve() for path in Path.home().glob(".pyenv/versions/3.*/bin/python3")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "hostctl"
    path.write_bytes(pack.bundle())
    return path


def ask(python, bundle, data):
    done = subprocess.run([str(python), "-I", str(bundle)], input=data, capture_output=True, timeout=60, check=False)
    assert done.stderr == b""
    return json.loads(done.stdout)


@pytest.mark.parametrize("python", sorted(FOUND), ids=str)
def test_hello_answers_and_garbage_is_refused(python, bundle):
    answer = ask(python, bundle, json.dumps({"hash": hostctl.source_hash(), "verb": "hello", "args": {}}).encode())
    assert answer["state"] == "done", answer["error"]
    assert answer["hash"] == hostctl.source_hash()
    assert ask(python, bundle, b"\xff{")["error"]["code"] == "bad-request"
    assert ask(python, bundle, b"[" * 200000)["error"]["code"] == "bad-request"


def test_the_bundle_is_the_same_every_time():
    assert pack.bundle() == pack.bundle()
    assert pack.bundle().startswith(b"#!/usr/bin/python3 -I\n")


def test_by_hand_a_bad_job_name_is_told_and_not_a_traceback(bundle):
    done = subprocess.run(
        [str(sorted(FOUND)[0]), "-I", str(bundle), "status", "../x"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
