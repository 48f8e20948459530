"""The facts that checks and approvals stand on: what is there, what is not, and what cannot be told."""

import errno
import json
import os
import select
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import facts, lvm, mounts, nfs_mount, virsh
from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount

from .conftest import qcow2
from .test_guards import GROUP, JOB, OURS, lvs, scripted, vgs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images in use are looked into under /run/volmig")
INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 1 << 30
READ = "virsh -r -c qemu:///system "
XML = (
    "<domain><name>instance-00000007</name><devices><disk device='disk'><driver type='qcow2'/>"
    "<source file='%s'/><target dev='vdb'/></disk></devices></domain>"
)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A share with one live disk at `host`; every tool is installed, and nothing listens."""
    instances = tmp_path / "instances"
    (instances / INSTANCE).mkdir(parents=True)
    live = instances / INSTANCE / "disk.local"
    live.write_bytes(qcow2(SIZE))
    row = Mount("0:50", "/", str(instances), "nfs", "filer:/vol", "rw,vers=3,hard,acdirmax=5")
    monkeypatch.setattr(mounts, "mounts", lambda: [row])
    monkeypatch.setattr(facts, "find", lambda program: "/usr/sbin/" + program)
    monkeypatch.setattr(virsh, "installed", lambda: True)
    return live


def destination(live, **answers):
    known = {
        READ + "domstate": Output(0, "running\n"),
        READ + "dumpxml": Output(0, XML % live),
        "blkid": Output(0, "ID_FS_TYPE=ext4\nID_FS_LABEL_ENC=data\nID_FS_UUID_ENC=1111\n"),
        **answers,
    }
    work = scripted("destination_facts", known, instance=INSTANCE, disk="disk.local", share_source="filer:/vol")
    ask = work._run

    def copied_out(act, probe, how):
        output = ask(act, probe, how)
        if act.argv[:2] == ("qemu-img", "dd") and not output.exit:
            Path(act.argv[-1].partition("=")[2]).touch()
        return output

    work._run = copied_out
    found = work.run(work)
    assert (work.acted, work.touched) == ([], False), "it only asks"
    json.dumps(found)
    return found


# The destination


def test_the_live_disk_is_described_as_it_lies_there(host):
    found = destination(host)
    seen = host.stat()
    disk = found["disk"]
    assert (disk["inode"], disk["file_size"], disk["mtime_ns"]) == (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    assert (disk["format"], disk["virtual_size"], disk["backing"]) == ("qcow2", SIZE, [])
    assert (found["domain"]["state"], found["domain"]["driver"], found["acdirmax"]) == ("running", "qcow2", 5)
    assert found["contents"]["summary"] == "ext4 “data” on the whole disk"
    assert (found["stage"], found["leftovers"]) == (None, [])


def test_a_raw_disk_is_as_large_as_its_file_and_its_contents_are_not_read(host):
    host.write_bytes(bytes(4096))
    found = destination(host)
    assert (found["disk"]["format"], found["disk"]["virtual_size"], found["contents"]) == ("raw", 4096, None)


def test_where_there_is_no_disk_and_no_share_that_is_said(host, monkeypatch):
    host.unlink()
    found = destination(host)
    assert (found["disk"], found["contents"]) == (None, None)
    monkeypatch.setattr(mounts, "mounts", list)
    found = destination(host)
    assert (found["share"], found["instances"], found["disk"], found["disk_info"]) == (None, "", None, None)


def test_an_image_that_cannot_be_read_is_not_taken_for_an_empty_one(host):
    found = destination(host, **{"qemu-img dd": Output(1, "", "Image is not in qcow2 format")})
    assert found["contents"] == {
        "table": "",
        "partitions": [],
        "filesystems": [],
        "unread": [],
        "summary": "not readable",
    }


def test_a_chain_on_the_share_is_told(host):
    bases = host.parents[1] / "_base"
    bases.mkdir()
    (bases / "0123").write_bytes(qcow2(SIZE, base=b"4567"))
    (bases / "4567").write_bytes(b"raw")
    host.write_bytes(qcow2(SIZE, base=str(bases / "0123").encode()))
    disk = destination(host)["disk"]
    assert (disk["backing"], disk["relative_bases"]) == ([str(bases / "0123"), "4567"], ["4567"])
    assert disk["objections"] == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/shadow", "outside the share"),
        ("../../etc/shadow", "outside the share"),
        ("nbd://elsewhere", "not a plain path"),
        ("../_base/none", "no such file"),
        ("_base/../../x", "up and down"),
    ],
)
def test_to_a_base_that_is_no_file_on_the_share_there_is_an_objection_and_no_tool_opens_the_disk(host, name, why):
    host.write_bytes(qcow2(SIZE, base=name.encode()))
    found = destination(host, **{"qemu-img": Output(1, "", "not to be started")})
    (objection,) = found["disk"]["objections"]
    assert name in objection
    assert why in objection
    assert found["contents"]["summary"] == "not read: " + objection


@pytest.mark.parametrize(
    ("text", "told"), [('{"/a": "qcow2"}', {"/a": "qcow2"}), ("[1]", None), ("{", None), (None, None)]
)
def test_what_nova_wrote_about_the_formats_is_told_when_it_can_be_read(host, text, told):
    if text is not None:
        (host.parent / "disk.info").write_text(text)
    assert destination(host)["disk_info"] == told


@pytest.mark.parametrize(
    "answers",
    [
        {READ + "domstate": Output(1, "", "error: failed to get domain 'x'")},
        {READ + "domstate": Output(1, "", "error: failed to connect to the hypervisor")},
    ],
)
def test_a_domain_that_libvirt_does_not_tell_of_is_none(host, answers):
    assert destination(host, **answers)["domain"] is None


def test_a_domain_on_another_disk_does_not_use_this_one(host):
    found = destination(host, **{READ + "dumpxml": Output(0, XML % "/elsewhere")})["domain"]
    assert (found["name"], found["driver"], found["source"]) == ("instance-00000007", None, None)


def test_what_earlier_migrations_left_and_the_own_stage_are_told_apart(host):
    place = host.parents[1] / ".volmig" / JOB
    place.mkdir(parents=True)
    assert destination(host)["stage"] is None
    (place / "disk.new").write_bytes(b"copy")
    found = destination(host)
    assert found["stage"]["inode"] == (place / "disk.new").stat().st_ino
    assert found["leftovers"] == [str(place)]


@pytest.mark.parametrize(("uid", "mode", "squashes"), [(0, 0o755, None), (64055, 0o757, None), (64055, 0o755, False)])
def test_whether_root_is_kept_out_is_only_told_where_it_can_be_known(host, uid, mode, squashes):
    os.chown(host.parents[1], uid, uid)
    host.parents[1].chmod(mode)
    assert facts.share("filer:/vol")["squashes_root"] is squashes


# One instance


def test_the_state_of_an_instance_comes_with_its_disk(host):
    args = {"instance": INSTANCE, "instances": str(host.parents[1]), "disk": "disk.local"}
    known = {READ + "domstate": Output(0, "shut off\n"), READ + "dumpxml": Output(0, XML % host)}
    work = scripted("instance_state", known, **args)
    found = work.run(work)
    assert (found["state"], found["live"]["inode"]) == ("shut off", host.stat().st_ino)
    host.unlink()
    assert work.run(work)["live"] is None


def test_of_an_instance_that_libvirt_does_not_know_the_state_is_unknown(host):
    work = scripted("instance_state", {READ + "domstate": Output(1, "", "error: Domain not found")})
    del work.args["disk"]
    found = work.run(work)
    assert (found["state"], found["disks"], found["live"], found["runs"]) == ("unknown", [], None, None)


# The host, its disks and its network


def test_a_version_that_is_not_understood_is_not_taken_for_a_missing_tool(host):
    work = scripted("hello", {"qemu-img": Output(0, "qemu-img version 7.2.0 (Debian)"), "lvm": Output(0, "unreadable")})
    tools = work.run(work)["tools"]
    assert (tools["qemu_img"], tools["lvm"]) == ("7.2.0", "?")


def test_only_addresses_that_others_can_reach_are_told(host):
    listed = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
        {"ifname": "eth1", "addr_info": [{"local": "10.77.1.11", "prefixlen": 24, "scope": "global"}]},
        {"ifname": "eth2"},
    ]
    work = scripted("inventory", {"ip": Output(0, json.dumps(listed))})
    assert facts._addresses(work) == [{"interface": "eth1", "address": "10.77.1.11", "prefix": 24}]


def test_of_a_mount_that_does_not_answer_the_space_is_not_known(host):
    host.unlink()
    assert facts._space(str(host)) == (None, None)
    assert facts._space(str(host.parent))[0] > 0


def test_a_port_is_open_refused_or_silent():
    with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
        port = server.getsockname()[1]
        asked = scripted("reach", {}, targets=[{"address": "127.0.0.1", "port": port}])
        assert [each["state"] for each in asked.run(asked)["results"]] == ["open"]
    assert [each["state"] for each in asked.run(asked)["results"]] == ["refused"]


class Silent:
    """`socket`, `select` and `time` of a network on which some addresses never answer; waiting passes the time."""

    def __init__(self, monkeypatch, **codes):
        self.codes, self.now, self.open, self.most = codes, 1000.0, {}, 0
        self.socket = SimpleNamespace(**{name: getattr(socket, name) for name in dir(socket) if name.isupper()})
        self.socket.socket = self.begin
        self.full = None  # how many sockets this process may have
        monkeypatch.setattr(facts, "socket", self.socket)
        monkeypatch.setattr(facts, "select", SimpleNamespace(POLLOUT=select.POLLOUT, poll=lambda: self))
        monkeypatch.setattr(facts, "time", SimpleNamespace(monotonic=lambda: self.now))

    def begin(self, family, kind):
        if self.full is not None and len(self.open) >= self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        end = Knock(self, 3 + len(self.open))
        self.open[end.number] = end
        self.most = max(self.most, len(self.open))
        return end

    def register(self, end, events):
        pass

    def unregister(self, number):
        pass

    def poll(self, milliseconds):
        """What is to be known later is known after half a second."""
        ready = [(end.number, select.POLLOUT) for end in self.open.values() if end.code not in (None, 0)]
        self.now += min(0.5, milliseconds / 1000) if ready else milliseconds / 1000
        return ready


class Knock:
    def __init__(self, network, number):
        self.network, self.number, self.code = network, number, None

    def connect_ex(self, to):
        self.code = self.network.codes.get(to[0])
        return errno.EINPROGRESS

    def fileno(self):
        return self.number

    def setblocking(self, flag):
        assert flag is False, "it would wait for each"

    def getsockopt(self, level, option):
        return self.code

    def close(self):
        self.network.open.pop(self.number, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ports(*addresses):
    return [{"address": address, "port": port} for address in addresses for port in facts.RELAY_PORTS]


def test_ports_that_never_answer_take_one_patience_together(monkeypatch):
    network = Silent(monkeypatch)
    targets = ports(*(f"10.20.0.{number}" for number in range(1, 22)))
    found = facts.knock(targets, 2.0)
    assert [each["state"] for each in found] == ["filtered"] * 63
    assert network.now - 1000 == pytest.approx(2, abs=0.01), "they add up"
    assert (network.most, network.open) == (63, {}), "all at once, and none is left open"


def test_an_unreachable_port_is_distinguished_from_one_that_is_refused(monkeypatch):
    codes = {"10.0.0.2": errno.ECONNREFUSED, "10.0.0.3": errno.EHOSTUNREACH, "10.0.0.4": errno.ETIMEDOUT}
    Silent(monkeypatch, **codes)
    found = facts.knock([{"address": address, "port": 2049} for address in (*codes, "10.0.0.5")], 2.0)
    assert [each["state"] for each in found] == ["refused", "unreachable", "filtered", "filtered"]
    assert [each["address"] for each in found] == [*codes, "10.0.0.5"], "in the order in which they were asked for"


def test_where_time_is_too_short_what_answered_counts_and_the_rest_is_called_untried(monkeypatch):
    network = Silent(monkeypatch, **{"10.0.0.2": errno.ECONNREFUSED})
    work = scripted("reach", {}, targets=ports("10.0.0.2", "10.0.0.3"))
    work.until = network.now + 1
    found = work.run(work)
    assert [(each["address"], each["state"]) for each in found["results"]] == [("10.0.0.2", "refused")] * 3
    assert found["untried"] == ports("10.0.0.3"), "nobody knows whether they would have answered in time"


def test_a_process_that_may_open_no_more_sockets_says_so_of_the_rest(monkeypatch):
    Silent(monkeypatch, **{"10.0.0.2": errno.ECONNREFUSED}).full = 2
    found = facts.knock(ports("10.0.0.2"), 2.0)
    assert [each["state"] for each in found] == ["refused", "refused", "untried"]


def test_an_address_that_cannot_be_reached_has_no_source_address(monkeypatch):
    def barred(self, address):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(socket.socket, "connect", barred)
    assert nfs_mount.source_address("10.0.0.2") == ""


def test_the_address_that_the_relay_sees_is_that_of_the_way_there():
    assert nfs_mount.source_address("127.0.0.1") == "127.0.0.1"
    assert nfs_mount.source_address("::1") in ("::1", "")


GPT = {
    "label": "gpt",
    "sectorsize": 512,
    "partitions": [{"node": "/dev/vg/lv1", "start": 2048, "size": 8, "type": "L"}],
}


@pytest.mark.parametrize(
    ("table", "summary"),
    [
        (Output(0, json.dumps({"partitiontable": GPT})), "GPT table with 1 partition: ext4"),
        (Output(1, "", "cannot open"), "GPT table with 0 partitions: no known filesystem"),
        (Output(0, "{}"), "GPT table with 0 partitions: no known filesystem"),
    ],
)
def test_a_partition_table_is_told_with_what_is_on_it(host, table, summary):
    gpt, ext4 = Output(0, "ID_PART_TABLE_TYPE=gpt\n"), Output(0, "ID_FS_TYPE=ext4\n")
    answers = {"blkid -p -O": ext4, "blkid": gpt, "sfdisk": table}
    assert facts.contents(scripted("hello", answers), "/dev/vg/lv")["summary"] == summary


def test_without_sfdisk_a_table_has_no_partitions_that_are_known(host, monkeypatch):
    monkeypatch.setattr(facts, "find", lambda program: "")
    found = facts.contents(scripted("hello", {"blkid": Output(0, "ID_PART_TABLE_TYPE=dos\n")}), "/dev/vg/lv")
    assert (found["table"], found["partitions"]) == ("dos", [])


def test_a_disk_with_nothing_on_it_says_so(host):
    found = facts.contents(scripted("hello", {"blkid": Output(2)}), "/dev/vg/lv")
    assert found["summary"] == "no partition table and no known filesystem"


# Source and relay


def test_a_source_that_is_gone_or_inactive_is_not_looked_into(host, monkeypatch):
    monkeypatch.setattr(facts, "_knocks", lambda address: [])
    for rows, volume in (([], None), ([dict(OURS, lv_active="")], False)):
        work = scripted("source_facts", {"lvs": lvs(*rows)}, relay_address="127.0.0.1")
        found = work.run(work)
        assert (found["volume"] and found["volume"]["active"], found["contents"]) == (volume, None)


def test_a_source_that_an_instance_uses_names_it(host, monkeypatch, tmp_path):
    device = os.stat("/dev/null")
    monkeypatch.setattr(facts, "_knocks", lambda address: [])
    monkeypatch.setattr(lvm, "counters", lambda number: (1, 8))
    monkeypatch.setattr(facts, "_is_crypt", lambda found: False)
    monkeypatch.setattr(facts.os, "makedev", lambda major, minor: device.st_rdev)
    monkeypatch.setattr(facts.stat, "S_ISBLK", lambda mode: mode == device.st_mode)
    known = {"lvs": lvs(OURS), READ + "list": Output(0, INSTANCE + "\n"), READ + "domstate": Output(0, "running\n")}
    for source, user in (("/dev/null", INSTANCE), ("/dev/zero", None), (str(tmp_path / "none"), None)):
        if source == "/dev/zero":
            monkeypatch.setattr(facts.os, "makedev", lambda major, minor: -1)
        work = scripted("source_facts", {**known, READ + "dumpxml": Output(0, XML % source)}, relay_address="127.0.0.1")
        monkeypatch.setattr(lvm, "holders", lambda found: [])
        found = work.run(work)["instance_running"]
        assert (found and found["uuid"]) == user


def test_encryption_on_top_of_the_source_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(facts.os, "listdir", lambda path: ["dm-7"])
    monkeypatch.setattr(lvm, "first_line", lambda path: "CRYPT-LUKS2-0123" if path.endswith("dm-7/dm/uuid") else "")
    found = lvm._volume(OURS)
    assert facts._is_crypt(found)
    assert not facts._is_crypt(found._replace(active=False))
    monkeypatch.setattr(lvm, "first_line", lambda path: "LVM-0123")
    assert not facts._is_crypt(found)


def test_the_relay_tells_what_already_carries_the_jobs_name(host):
    group = dict(GROUP, vg_size="99", vg_free="9", vg_extent_size="4")
    known = {"lvs": lvs(dict(OURS, lv_name="volmig_0f8fad5b")), "vgs": vgs(group)}
    work = scripted("relay_facts", known, relay_lv="volmig_0f8fad5b", share_source="filer:/vol")
    found = work.run(work)
    assert (found["vg"]["free"], found["leftovers"]) == (9, ["vg/volmig_0f8fad5b"])
    work = scripted("relay_facts", {**known, "vgs": vgs()}, relay_lv="volmig_other", share_source="filer:/none")
    found = work.run(work)
    assert (found["vg"], found["leftovers"], found["share"]) == (None, [], None)


# What this host put on top of a volume


class Stack:
    """The devices that the kernel says lie on others: {device: [(name, UUID of the device mapper, device), …]}."""

    OWN = "LVM-" + "o" * 32 + "v" * 32

    def __init__(self, monkeypatch, **children):
        self.children = children
        monkeypatch.setattr(lvm, "first_line", lambda path: self.OWN if path.endswith("dm/uuid") else "")
        monkeypatch.setattr(lvm, "kernel_children", lambda at: [lvm.Child(*row) for row in children.get(at, ())])


INNER = "AbCdEf0123012301230123012345GhIj"
NAMED = "AbCdEf-0123-0123-0123-0123-0123-45GhIj"


def test_a_group_that_this_host_activated_inside_a_volume_is_named_with_the_way_to_deactivate_it(monkeypatch):
    rows = [(f"vg--guest-{name}", "LVM-" + INNER + "w" * 32, "253:8") for name in ("root", "swap--1")]
    Stack(monkeypatch, **{"253:3": rows})
    (said,) = lvm.stacked("253:3")
    assert "the volume group vg-guest, which lies inside it" in said
    assert "(vg-guest/root, vg-guest/swap-1)" in said
    assert f"vgchange -an --config devices/scan_lvs=1 --select vg_uuid={NAMED}." in said
    assert "devices/global_filter" in said


def test_a_group_in_a_partition_of_the_volume_is_found_too(monkeypatch):
    partition = ("vg_nova0-disk1", "part1-" + Stack.OWN, "253:4")
    Stack(monkeypatch, **{"253:3": [partition], "253:4": [("vg-root", "LVM-" + INNER + "w" * 32, "253:5")]})
    first, second = lvm.stacked("253:3")
    assert "the volume group vg, which lies inside it" in second
    assert first == "device vg_nova0-disk1 on top of it"


def test_what_lvm_itself_stacks_on_a_volume_is_no_group_inside_it(monkeypatch):
    Stack(monkeypatch, **{"253:3": [("vg_nova0-snap", "LVM-" + "o" * 32 + "s" * 32 + "-cow", "253:4")]})
    assert lvm.stacked("253:3") == ["device vg_nova0-snap on top of it"]


@pytest.mark.parametrize(
    "names", [("vg", "lv"), ("vg-a", "lv"), ("vg", "lv-b"), ("a-b-c", "d-e-f"), ("vg-", "lv"), ("a--b", "c")]
)
def test_names_of_the_device_mapper_are_read_as_lvm_writes_them(names):
    assert lvm.mapped("-".join(name.replace("-", "--") for name in names)) == names
