"""The SSH transport and discovery against the lab's machines."""

import dataclasses

import pytest

from hosts import tasks
from hosts.models import Hypervisor
from hosts.remote import hostctl, ssh
from hosts.remote.host import Address, HostKeyChanged, Request
from tests.hosts.conftest import KEY

pytestmark = pytest.mark.lab


@pytest.fixture
def root(lab):
    """How root enters src, with hostctl shipped there."""
    guest = lab.src
    return Address("127.0.0.1", guest.port, "root", guest.host_key, shipped=True, key_file=str(lab.key))


def test_hostctl_is_shipped_and_answers(lab, root):
    path = f"/var/lib/volmig/bin/hostctl-{hostctl.source_hash()}"
    lab.src.run(["rm", "-f", path])
    with ssh.connect(root) as host:
        answer = host.call(Request("hello"))
    assert (answer.state, answer.evidence["hostname"]) == ("done", "src")
    assert lab.src.run(["stat", "-c", "%U %a", path]).strip() in {"root 600", "root 700"}


def test_the_real_watch_beats(root):
    with ssh.connect(root) as host:
        host.call(Request("hello"))  # ships hostctl: a watch follows work, so something was called there before
        stream = host.watch()
        assert "beat" in next(line for line in stream if "beat" in line)


def test_a_machine_with_another_key_is_quarantined_and_gets_no_command(lab, root, db, settings):
    settings.SSH_KEY = root.key_file
    src = Hypervisor.objects.create(
        name="src", address=root.host, port=root.port, user="root", shipped=True, host_key=KEY
    )
    lab.src.run("rm -rf /var/lib/volmig/bin")
    with pytest.raises(HostKeyChanged):
        ssh.connect(dataclasses.replace(root, host_key=KEY))
    tasks.refresh(src.pk)
    src.refresh_from_db()
    assert "is pinned" in src.quarantine_reason
    assert lab.src.run("ls /var/lib/volmig/bin", check=False) == ""


def test_discovery_sees_the_lab_as_it_is(lab, db, settings):
    settings.SSH_KEY = str(lab.key)
    for guest in (lab.src, lab.jump, lab.dst, lab.src):  # all are on the network by which volmig enters
        host, _ = Hypervisor.objects.get_or_create(
            name=guest.name,
            defaults={"address": "127.0.0.1", "port": guest.port, "user": "root", "shipped": True},
        )
        tasks.offer_key(host.pk)
        host.refresh_from_db()
        assert host.offered_key == guest.host_key
        host.put(host_key=host.offered_key)
        tasks.refresh(host.pk)
        host.refresh_from_db()
        assert host.last_error == ""
    src, jump = Hypervisor.objects.get(name="src"), Hypervisor.objects.get(name="jump")
    assert "vg_nova0" in src.volume_groups.values_list("name", flat=True)
    assert jump.mounts.filter(path="/var/lib/nova/instances").exists()
    seen = dict(src.reaches.filter(port=2049).values_list("address", "state"))
    assert seen[lab.jump.address("data")] in {"open", "refused"}
    assert lab.jump.address("storage") not in seen, "the source has no address on that network"
