"""The lab is what it claims to be: networks, power, links, speed, space, logins, and a clean slate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hosts.remote.hostctl.pack import bundle
from tests.lab import machine
from tests.lab.guest import HOSTCTL, CommandError
from tests.lab.image import Image
from tests.lab.lab import INSTANCES, Lab

pytestmark = pytest.mark.lab
UUID = "3f8df945-7cbd-46e0-8ad1-d51013cf706b"
LV = f"{UUID}_disk.local"
PROBE = "timeout {seconds} python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), {seconds})'"


def reaches(guest, address, port, seconds=3):
    return "yes" in guest.run(PROBE.format(address=address, port=port, seconds=seconds) + " && echo yes", check=False)


def test_the_relay_reaches_the_filer_and_the_source_does_not(lab):
    assert reaches(lab.jump, lab.filer.address("storage"), 2049)
    assert not reaches(lab.src, lab.filer.address("storage"), 2049)


def test_the_source_reaches_the_relay_on_the_data_network(lab):
    assert reaches(lab.src, lab.jump.address("data"), 22)


def test_relay_and_destination_see_the_same_share(clean_lab):
    clean_lab.jump.run(f"echo hello >{INSTANCES}/seen")
    assert clean_lab.dst.run(f"cat {INSTANCES}/seen") == "hello\n"


def test_the_share_belongs_to_nova(lab):
    assert lab.filer.run("stat -c %U /vol/nova") == "nova\n"


def test_root_may_write_on_the_share_until_the_filer_squashes_it(clean_lab):
    clean_lab.jump.run(f"touch {INSTANCES}/as-root")
    clean_lab.squash(True)
    with pytest.raises(CommandError, match="Permission denied"):
        clean_lab.jump.run(f"touch {INSTANCES}/as-nobody")
    clean_lab.jump.run(["setpriv", "--reuid=nova", "--regid=nova", "--clear-groups", "touch", f"{INSTANCES}/as-nova"])


def test_the_share_can_be_mounted_with_a_short_directory_cache(clean_lab):
    clean_lab.mount_share(acdirmax=2)
    assert "acdirmax=2," in clean_lab.dst.run(f"findmnt -no OPTIONS {INSTANCES}")


def test_only_the_filer_serves_files(clean_lab):
    states = [guest.run("systemctl is-active nfs-server", check=False).strip() for guest in clean_lab.guests.values()]
    assert dict(zip(clean_lab.guests, states, strict=True)) == {
        "src": "inactive", "jump": "inactive", "filer": "active", "dst": "inactive",
    }  # fmt: skip


def test_every_guest_has_its_own_host_key(lab):
    keys = {guest.host_key for guest in lab.guests.values()}
    assert len(keys) == 4
    assert all(key.startswith("ssh-ed25519 AAAA") for key in keys)


@pytest.mark.torture
def test_a_power_cut_keeps_volumes_and_host_key_and_loses_mounts(clean_lab):
    guest = clean_lab.src
    clean_lab.volume(guest, LV, 64 << 20, data_mb=4)
    guest.run(f"mount /dev/vg_nova0/{LV} /mnt")
    key, before = guest.host_key, guest.sha256("/mnt/data")

    clean_lab.power_cut(guest)
    assert not clean_lab.running(guest)
    clean_lab.boot(guest)

    assert guest.host_key == key
    assert "/mnt" not in guest.run("findmnt -rno TARGET").split()
    guest.run(f"mount -o ro /dev/vg_nova0/{LV} /mnt")
    assert guest.sha256("/mnt/data") == before
    guest.run("umount /mnt")


@pytest.mark.torture
def test_a_booted_hypervisor_mounts_the_share_again(clean_lab):
    clean_lab.power_cut(clean_lab.jump)
    clean_lab.boot(clean_lab.jump)
    assert clean_lab.jump.run(f"findmnt -no FSTYPE {INSTANCES}") == "nfs\n"


def test_a_cut_link_is_silent_until_it_heals(clean_lab):
    address = clean_lab.jump.address("data")
    clean_lab.link_cut(clean_lab.jump, "data")
    assert not reaches(clean_lab.src, address, 22)
    clean_lab.link_heal(clean_lab.jump, "data")
    clean_lab.src.wait(PROBE.format(address=address, port=22, seconds=3), seconds=20)


def seconds_to_send(sender, receiver, net, megabytes=8):
    """Time for `megabytes` MiB from one guest to the other over TCP, without SSH's own cost."""
    listen = "import socket; s = socket.create_server(('0.0.0.0', 9)); print(flush=True); c, _ = s.accept()\n"
    drain = "while c.recv(1 << 20): pass\nc.sendall(b'.')"
    send = f"import socket, time; c = socket.create_connection(('{receiver.address(net)}', 9)); t = time.monotonic()\n"
    send += f"c.sendall(bytes({megabytes} << 20)); c.shutdown(1); c.recv(1); print(time.monotonic() - t)"
    receiver.run(["systemd-run", "-q", "--unit=lab-sink", "python3", "-c", listen + drain])
    receiver.wait("grep -q ':0009 00000000:0000 0A' /proc/net/tcp")
    return float(sender.run(["python3", "-c", send]))


def test_bandwidth_holds_in_both_directions_and_is_lifted(clean_lab):
    src, jump = clean_lab.src, clean_lab.jump
    clean_lab.bandwidth(jump, "data", 20)
    held = seconds_to_send(src, jump, "data")
    assert held > 2.5  # 8 MiB at 20 Mbit/s: 3.4 s
    assert seconds_to_send(jump, src, "data") > 2.5
    clean_lab.bandwidth(jump, "data", None)
    assert seconds_to_send(src, jump, "data") < held


def test_a_filled_file_system_has_exactly_what_was_left(clean_lab):
    clean_lab.fill(clean_lab.filer, "/vol/nova", leave_bytes=10 << 20)
    with pytest.raises(CommandError, match="No space left"):
        clean_lab.filer.run("fallocate -l 20M /vol/nova/too-much")
    clean_lab.unfill(clean_lab.filer, "/vol/nova")
    clean_lab.filer.run("fallocate -l 20M /vol/nova/fits")


def test_an_installed_hostctl_is_all_that_its_key_can_run(clean_lab, tmp_path):
    guest = clean_lab.filer  # which no other test gives a hostctl
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    before = guest.run("cat /home/volmig/.ssh/authorized_keys")
    guest.install_hostctl(bundle(), (tmp_path / "key.pub").read_text())
    argv = ["ssh", "-F", "none", "-i", str(tmp_path / "key"), "-p", str(guest.port), "-o", "BatchMode=yes"]
    argv += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    request = json.dumps({"verb": "hello", "args": {}}).encode()
    said = subprocess.run(
        [*argv, "volmig@127.0.0.1", "cat /etc/shadow"], input=request, capture_output=True, timeout=30
    )
    guest.write("/home/volmig/.ssh/authorized_keys", before, "0600")
    guest.run("chown volmig: /home/volmig/.ssh/authorized_keys; rm -f /etc/sudoers.d/volmig")
    guest.run(f"rm -rf {HOSTCTL} {HOSTCTL}.d")
    answer = json.loads(said.stdout)  # nothing but hostctl's answer: it ran as root, and no shell ran
    assert (answer["state"], answer["error"]) == ("done", None)
    assert guest.run(f"test -e {HOSTCTL}.d; echo $?").strip() == "1"


PLANTED = {
    "jump: lv vg_nova0/volmig_abc": "lvcreate -qy -L 8M -n volmig_abc --addtag volmig.job=abc vg_nova0",
    "jump: mount /srv/volmig/abc": "mkdir -p /srv/volmig/abc && mount -t tmpfs none /srv/volmig/abc",
    "jump: unit volmig-abc-holder.service": "systemd-run -q --unit volmig-abc-holder sleep infinity",
    "jump: unit volmig-abc-convert-do-1.service": "systemd-run -q --unit volmig-abc-convert-do-1 false",
    "jump: path /var/lib/volmig/abc": "mkdir -p /var/lib/volmig/abc",
    "jump: path /run/volmig/abc": "mkdir -p /run/volmig/abc",
    "filer: share abc/disk.new": f"mkdir -p {INSTANCES}/.volmig/abc && touch {INSTANCES}/.volmig/abc/disk.new",
    "jump: fence vg_nova0/fenced": "lvcreate -qy -L 8M -n fenced vg_nova0 && lvchange -qpr vg_nova0/fenced",
    "jump: export /srv/volmig/abc": "systemctl start nfs-server && exportfs -o fsid=7 10.77.1.11:/srv/volmig/abc",
}


def test_everything_that_volmig_can_leave_is_found_and_then_cleaned(clean_lab):
    assert clean_lab.leftovers() == []
    for plant in PLANTED.values():
        clean_lab.jump.run(plant)
    found = "\n".join(clean_lab.leftovers())
    assert [kind for kind in PLANTED if kind not in found] == []

    clean_lab.reset()
    assert clean_lab.leftovers() == []
    assert clean_lab.jump.run("lvs --noheadings vg_nova0") == ""
    assert clean_lab.jump.run("systemctl is-active nfs-server", check=False) == "inactive\n"


@pytest.mark.torture
def test_a_reset_boots_what_is_off(clean_lab):
    clean_lab.power_cut(clean_lab.src)
    clean_lab.reset()
    assert clean_lab.src.run("hostname") == "src\n"


def test_extents_read_as_zeros_after_a_reset(clean_lab):
    clean_lab.volume(clean_lab.jump, "first", 32 << 20, data_mb=16)
    clean_lab.reset()
    clean_lab.jump.run("lvcreate -qy -Wn -Zn -L 32M -n second vg_nova0")
    clean_lab.jump.run("cmp -n 33554432 /dev/vg_nova0/second /dev/zero")


def test_two_checkouts_share_neither_name_nor_ports(lab, tmp_path):
    other = Lab(tmp_path)
    assert other.name != lab.name
    assert {guest.port for guest in other.guests.values()}.isdisjoint(guest.port for guest in lab.guests.values())


def test_what_a_killed_lab_left_is_cleared_down_to_the_last_process(lab, tmp_path):
    other = Lab(tmp_path)
    other.folder.mkdir(parents=True)
    other._prepare(Image(Path(lab._state()["image"])))
    other._power_on(other.src)
    assert machine.processes(other.name)

    Lab(tmp_path).down()
    assert machine.processes(other.name) == []
    assert not other.network.exists()
    assert not other.sockets.exists()
    assert [path.name for path in other.folder.iterdir()] == ["lock"]


def test_a_session_keeps_the_lab_to_itself(lab):
    code = "from tests.lab.lab import Lab\nwith Lab().held(): print('mine')"
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "waiting" in second.stderr.readline()
    second.kill()
    assert second.communicate()[0] == ""


def test_nothing_listens_outside_loopback(lab):
    listening = subprocess.run(["ss", "-Htlnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    ours = [line.split()[3] for line in listening if any(f":{guest.port} " in line for guest in lab.guests.values())]
    assert len(ours) == 4
    assert all(address.startswith("127.0.0.1:") for address in ours)
