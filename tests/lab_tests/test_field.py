"""Settings of real sites that changed what hostctl reads: real LVM, systemd and NFS mounts on the lab's guests."""

import json
from contextlib import contextmanager

import pytest

from hosts.remote.hostctl.pack import bundle
from tests import policies
from tests.lab.lab import SHARE

pytestmark = pytest.mark.lab

VOLUME = "3f8df945-7cbd-46e0-8ad1-d51013cf706b_disk.local"
LOCAL = "/etc/lvm/lvmlocal.conf"
# Each setting that changes what a report looks like, away from LVM's default (lvm.conf(5)).
CONFIGURATIONS = {
    "names of commands": 'log { command_names=1 prefix="~ " indent=1 }',
    "numbers for words": "report { binary_values_as_numeric=1 }",
    "another list separator": 'report { list_item_separator=";" }',
    "compact output": "report { compact_output=1 prefixes=1 quoted=0 columns_as_rows=1 headings=0 buffered=0 }",
    "a report of the commands": "log { report_command_log=1 }",
    "verbose": "log { verbose=2 }",
}


@pytest.fixture(scope="module")
def hostctl(lab):
    """Asks a guest's hostctl as root, and returns its evidence; the answer has to be `done`."""
    lab.reset()
    program = bundle()
    for guest in (lab.src, lab.jump, lab.dst):
        guest.write("/root/hostctl", program, "0700")
        guest.install_policy(policies.content(guest.name, **policies.LAB))

    def ask(guest, verb, **args):
        answer = json.loads(
            guest.run(["python3", "-I", "/root/hostctl"], stdin=json.dumps({"verb": verb, "args": args}))
        )
        assert answer["state"] == "done", answer["error"]
        return answer["evidence"]

    yield ask
    for guest in (lab.src, lab.jump, lab.dst):
        guest.run("rm -rf /root/hostctl /root/.hostctl-*")


@contextmanager
def configured(guest, text):
    before = guest.read(LOCAL)
    guest.write(LOCAL, text + "\n")
    try:
        yield
    finally:
        guest.write(LOCAL, before)


@pytest.fixture
def volume(lab, hostctl):
    lab.src.run(f"lvcreate -qy -Wn -L 16M -n {VOLUME} --addtag lab --addtag second vg_nova0")
    yield
    lab.src.run(f"lvremove -qfy vg_nova0/{VOLUME}")


def source(hostctl, lab):
    return hostctl(lab.src, "source_facts", vg="vg_nova0", lv=VOLUME, relay_address=lab.jump.address("data"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_report_reads_the_same_whatever_lvm_conf_says(lab, hostctl, volume, name):
    wanted = source(hostctl, lab)["volume"]
    assert (wanted["open"], wanted["active"], sorted(wanted["tags"])) == (False, True, ["lab", "second"])
    with configured(lab.src, CONFIGURATIONS[name]):
        assert source(hostctl, lab)["volume"] == wanted
        found = hostctl(lab.src, "inventory")
    assert [each["name"] for each in found["logical_volumes"]] == [VOLUME]
    assert [each["name"] for each in found["volume_groups"]] == ["vg_nova0"]


def test_a_volume_that_is_not_active_is_not_open(lab, hostctl, volume):
    lab.src.run(f"lvchange -an vg_nova0/{VOLUME}")
    found = source(hostctl, lab)["volume"]
    assert (found["active"], found["open"], found["permission"]) == (False, False, "writeable")


def test_a_relay_that_serves_version_4_only_is_known_as_such(lab, hostctl):
    share = {"vg": "vg_nova0", "relay_lv": "volmig_0f8fad5b", "share_source": SHARE}
    assert hostctl(lab.jump, "relay_facts", **share)["no_version_3"] == ""
    lab.jump.run("systemctl mask --now rpcbind.service rpcbind.socket rpc-statd.service")
    lab.jump.write("/etc/nfs.conf.d/lab.conf", "[nfsd]\nvers3=n\n")
    try:
        found = hostctl(lab.jump, "relay_facts", **share)
    finally:
        lab.jump.run("systemctl unmask rpcbind.service rpcbind.socket rpc-statd.service; rm /etc/nfs.conf.d/lab.conf")
        lab.jump.run("systemctl start rpcbind.socket")
    assert {found["nfs_server"][unit] for unit in ("rpcbind", "rpcbind.socket", "rpc-statd")} == {"masked"}
    assert found["no_version_3"] == "vers3=n in nfs.conf"
