"""The real tools say what the fake ones say: the scenes of tests/contract.py on the lab's guests."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts.remote.hostctl.commands import ENVIRONMENT, Output
from tests import contract

pytestmark = pytest.mark.lab

INSTANCE = "c0517ac7-1111-4222-8333-944445555666"
PLAYER = """
import json, subprocess, sys
environment, listed = json.load(sys.stdin)
told = []
for words in listed:
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    told.append((done.returncode, done.stdout, done.stderr))
json.dump(told, sys.stdout)
"""


def played_on(guest):
    """Runs words on a guest, all in one session."""

    def play(listed):
        said = guest.run(["python3", "-c", PLAYER], stdin=json.dumps([ENVIRONMENT, listed]))
        return [Output(*each) for each in json.loads(said)]

    return play


def test_the_tools_of_hypervisors_say_what_the_fake_ones_say(clean_lab):
    lab = clean_lab
    lab.instance(INSTANCE, "db-contract", disk_bytes=16 * contract.MIB)
    scenes = {
        lab.src: contract.volumes(),
        lab.jump: contract.relaying(lab.jump.address("data")),
        lab.dst: contract.instance(INSTANCE),
    }
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(contract.differences, scenes.values(), map(played_on, scenes)))
    assert found == [[], [], []]
