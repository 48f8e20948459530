"""What follows when an act did nothing, or something else than it said: the world is asked, never the exit status."""

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import (
    commands,
    direct_io,
    live_disk,
    lvm,
    mountpoints,
    mounts,
    nfs_mount,
    nfs_server,
    openers,
    qemu_img,
    untrusted,
    virsh,
)
from hosts.remote.hostctl.act import Failed, Refused
from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount

from .conftest import qcow2
from .test_guards import (
    ARGS,
    EXPORT,
    JOB,
    OURS,
    RELAY,
    THERE,
    UUID,
    libvirt,
    lvs,
    nothing_mounted,  # noqa: F401  - a fixture for every test
    refuses,
    scripted,
    with_virsh,  # noqa: F401
)

SIZE = 1 << 20
MINE = Mount("0:9", "/", THERE, "nfs", "10.0.0.2:" + RELAY, "rw,vers=3,hard")


def fails(work, code):
    with pytest.raises(Failed) as failed:
        work.run(work)
    assert failed.value.code == code
    assert failed.value.next_step
    return work.acted


def changing(work, start, *outputs):
    """A question whose answer changes from one asking to the next; the last one stays."""
    real, left = work._run, list(outputs)

    def run(act, probe, how):
        if probe and act.text.startswith(start):
            return left.pop(0) if len(left) > 1 else left[0]
        return real(act, probe, how)

    work._run = run
    return work


# Volumes


def test_a_volume_that_was_erased_before_the_power_went_is_only_removed():
    work = scripted("lv_remove", {}, memory={"lv": {"lv_uuid": UUID, "erased": UUID}}, made={"lv_uuid": UUID})
    changing(work, "lvs", lvs(OURS), lvs())
    assert work.run(work)["erased_bytes"] == 8388608
    assert [text.split()[0] for text in work.acted] == ["lvchange", "lvremove"]


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A file that the kernel calls the device of our volume; `zeroes` says whether it does as BLKZEROOUT tells it."""
    path = tmp_path / "device"
    path.write_bytes(b"x" * SIZE)
    told = SimpleNamespace(path=path, size=SIZE, uuid="LVM-" + "x" * 32 + UUID.replace("-", ""), zeroes=True)

    def ioctl(fd, what, data):
        if what == lvm.BLKGETSIZE64:
            return struct.pack("Q", told.size)
        start, length = struct.unpack("QQ", data)
        return os.pwrite(fd, bytes(length), start) if told.zeroes else 0

    monkeypatch.setattr(lvm, "device", lambda args: str(path))
    monkeypatch.setattr(lvm, "first_line", lambda name: told.uuid)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return told


def test_erasing_leaves_nothing_of_what_was_there(device):
    lvm.zero(scripted("lv_remove", {}, size=SIZE), UUID)
    assert device.path.read_bytes() == bytes(SIZE)


def test_a_device_that_keeps_its_bytes_is_not_erased(device):
    device.zeroes = False
    with pytest.raises(Failed) as failed:
        lvm.zero(scripted("lv_remove", {}, size=SIZE), UUID)
    assert failed.value.code == "not-erased"


@pytest.mark.parametrize("other", [{"size": SIZE + 512}, {"uuid": "LVM-" + "x" * 32 + "other"}, {"uuid": ""}])
def test_a_device_node_that_leads_elsewhere_is_not_erased(device, other):
    vars(device).update(other)
    with pytest.raises(Refused) as refused:
        lvm.zero(scripted("lv_remove", {}, size=SIZE), UUID)
    assert refused.value.code == "foreign-device"
    assert device.path.read_bytes() == b"x" * SIZE


FENCED = dict(OURS, lv_permissions="read-only", lv_tags="volmig,volmig.src=" + JOB)
HOLDER = [{"pid": 2, "name": "sleep", "unit": lvm.holder(JOB) + ".service"}]


def test_a_source_that_is_fenced_already_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(lvm, "openers", lambda number: HOLDER)
    work = scripted("lv_fence", {"lvs": lvs(FENCED)}, memory={"fence": {"was": "writeable"}})
    found = work.run(work)
    assert (found["already"], found["was"], found["writes"], work.acted) == (True, "writeable", 1, [])


def test_a_source_that_stays_writeable_is_given_back():
    acted = fails(scripted("lv_fence", {"lvs": lvs(OURS)}), "not-fenced")
    assert acted[-1].startswith("lvchange --deltag")
    assert not any("systemd-run" in text for text in acted)


def test_a_source_that_nobody_holds_open_is_given_back(monkeypatch):
    monkeypatch.setattr(lvm, "_soon", lambda holds: holds())
    work = changing(scripted("lv_fence", {}), "lvs", lvs(OURS), lvs(FENCED))
    acted = fails(work, "no-holder")
    assert [text.split()[1] for text in acted[-2:]] == ["-prw", "--deltag"]


@pytest.mark.parametrize("after", [[FENCED], [dict(OURS, lv_permissions="read-only")], []])
def test_a_source_that_was_not_given_back_is_told(after):
    work = changing(scripted("lv_unfence", {}), "lvs", lvs(FENCED), lvs(*after))
    fails(work, "not-released")


def test_a_process_that_ends_while_it_is_looked_at_has_nothing_open(monkeypatch):
    monkeypatch.undo()
    real = os.listdir
    monkeypatch.setattr(lvm.os, "listdir", lambda path: ["4194305", "self"] if path == "/proc" else real(path))
    assert lvm.openers("7:99") == []
    assert (lvm._rdev("/proc/4194305/fd/1"), lvm.first_line("/proc/4194305/comm")) == (-1, "")


def test_a_source_that_is_no_block_device_is_not_read(monkeypatch):
    monkeypatch.setattr(lvm, "device", lambda args: "/dev/null")
    with pytest.raises(Refused) as refused:
        lvm.Source(ARGS, JOB)
    assert refused.value.code == "not-a-volume"


# Exports and mounts


def test_an_export_that_does_not_come_about_is_told(monkeypatch):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    assert fails(scripted("export", {"exportfs": Output(0)}), "not-exported")[-1].startswith("exportfs -o")


def test_an_export_that_does_not_go_away_is_told():
    listed = Output(0, EXPORT % (RELAY, JOB))
    acted = fails(scripted("unexport", {"exportfs": listed}, made={"started": []}), "still-exported")
    assert [text.split()[1] for text in acted] == ["-u", "-f"]


def test_services_that_were_off_before_are_stopped_from_memory_alone():
    before = {"nfs-server": "inactive", "rpcbind": "active"}
    shown = Output(0, "LoadState=loaded\nActiveState=inactive\n")
    work = scripted("unexport", {"systemctl show": shown}, memory={"nfs": {"before": before}})
    assert work.run(work) == {"stopped": ["nfs-server"], "kept": [], "already": True}
    assert work.acted == ["systemctl stop -- nfs-server"]


def test_services_that_do_not_stop_are_told():
    shown = Output(0, "LoadState=loaded\nActiveState=active\n")
    memory = {"nfs": {"before": {"nfs-server": "inactive"}}}
    work = scripted("unexport", {"systemctl show": shown}, memory=memory, made={"started": ["nfs-server"]})
    fails(work, "services-left")


@pytest.mark.parametrize(
    "memory",
    [{"nfs": {"before": {"rpcbind": "active", "rpc-statd": "active", "nfs-server": "inactive"}}}, {}],
    ids=["they ran before", "nothing is remembered"],
)
def test_a_request_alone_stops_no_service_that_volmig_did_not_start(memory):
    """The SSH key is enough to send this request, so what it says was started may not decide."""
    shown = Output(0, "LoadState=loaded\nActiveState=inactive\n")
    asked = {"started": ["rpcbind", "rpc-statd", "nfs-server", "sshd"]}
    work = scripted("unexport", {"systemctl show": shown}, memory=memory, made=asked)
    wanted = ["nfs-server"] if memory else []
    assert work.run(work)["stopped"] == wanted
    assert work.acted == ["systemctl stop -- " + unit for unit in wanted]


def test_a_service_that_was_off_before_but_was_not_started_by_this_job_keeps_running():
    memory = {"nfs": {"before": {"rpcbind": "inactive", "nfs-server": "inactive"}}}
    shown = Output(0, "LoadState=loaded\nActiveState=inactive\n")
    work = scripted("unexport", {"systemctl show": shown}, memory=memory, made={"started": ["nfs-server"]})
    assert work.run(work)["stopped"] == ["nfs-server"]


@pytest.mark.parametrize(("remembered", "claimed"), [("writeable", "read-only"), ("read-only", "writeable")])
def test_a_source_is_given_back_as_this_host_remembers_it_whatever_the_request_says(remembered, claimed):
    volume = dict(OURS, lv_tags=f"volmig,volmig.src={JOB}", lv_permissions="read-only")
    memory = {"fence": {"was": remembered, "lv_uuid": OURS["lv_uuid"]}}
    work = scripted("lv_unfence", {"lvs": lvs(volume)}, memory=memory, made={"was": claimed})
    with contextlib.suppress(Failed):  # the scripted volume stays as it is
        work.run(work)
    assert any("-prw" in text for text in work.acted) is (remembered == "writeable")


def test_a_mount_that_does_not_come_about_is_told():
    assert len(fails(scripted("nfs_mount", {}, mountpoint=THERE), "not-mounted")) == 2


def test_what_is_mounted_as_planned_is_only_proved_again(monkeypatch):
    monkeypatch.setattr(mounts, "mounts", lambda: [MINE])
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    work = scripted("nfs_mount", {}, mountpoint=THERE)
    assert work.run(work) == {"options": MINE.options, "already": True}
    assert len(work.acted) == 1


def test_where_nothing_is_mounted_nothing_is_unmounted():
    work = scripted("nfs_unmount", {}, mountpoint=THERE)
    assert (work.run(work), work.acted) == ({"already": True}, [])


def test_a_network_that_changes_bytes_is_found_before_a_disk_is_sent_over_it(tmp_path, monkeypatch):
    nfs_mount._prove(str(tmp_path))
    monkeypatch.setattr(nfs_mount, "read_direct", lambda path: [b"other"])
    (tmp_path / ".probe").touch()  # left by a call that died
    with pytest.raises(Failed) as failed:
        nfs_mount._prove(str(tmp_path))
    assert failed.value.code == "mangled"
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_cannot_be_passed_by_it_is_dropped(tmp_path, monkeypatch):
    real = os.open

    def no_direct(path, flags, *mode, **where):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *mode, **where)

    (tmp_path / "disk").write_bytes(b"disk" * 1000)
    monkeypatch.setattr(nfs_server.os, "open", no_direct)
    fd = untrusted.open_direct(str(tmp_path / "disk"))
    assert b"".join(direct_io.read_direct(fd)) == b"disk" * 1000
    os.close(fd)


def test_a_mount_that_is_busy_is_tried_until_the_time_is_over(monkeypatch):
    monkeypatch.setattr(mounts, "mounts", lambda: [MINE])
    monkeypatch.setattr(mountpoints.time, "sleep", lambda seconds: None)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(mountpoints.time, "monotonic", lambda: next(clock))
    acted = fails(scripted("nfs_unmount", {}, mountpoint=THERE), "mount-busy")
    assert acted == ["umount -- " + THERE] * 4


def test_a_mount_that_stays_busy_names_who_uses_it(monkeypatch, tmp_path):
    place = tmp_path / "mounted"
    place.mkdir()
    monkeypatch.setattr(mounts, "at", lambda path: [MINE])

    def found():
        work = scripted("nfs_unmount", {}, mountpoint=str(place))
        with pytest.raises(Failed) as failed:
            mountpoints.unmount_patiently(work, nfs_mount.unmount_acts(work.args, JOB)[0], seconds=-1)
        return failed.value.found

    with subprocess.Popen(["sleep", "infinity"], cwd=place) as process:
        try:
            assert found().endswith(f"used by sleep (process {process.pid})")
            assert openers.under(str(tmp_path / "mount")) == [], "the beginning of a name is another directory"
        finally:
            process.kill()
    assert found().endswith("no process here has it open")


def test_locks_that_the_nfs_server_holds_are_dropped_where_it_keeps_the_filesystem_busy(monkeypatch, tmp_path):
    unlock, left = tmp_path / "unlock_filesystem", [MINE]
    unlock.write_text("")
    monkeypatch.setattr(mountpoints, "UNLOCK", str(unlock))
    monkeypatch.setattr(mounts, "mounts", lambda: [left.pop()] if left else [])
    monkeypatch.setattr(mountpoints.time, "sleep", lambda seconds: pytest.fail("nothing is waited for first"))
    work = scripted("nfs_unmount", {}, mountpoint=THERE)
    mountpoints.unmount_patiently(work, nfs_mount.unmount_acts(work.args, JOB)[0], served=True)
    assert work.acted == ["umount -- " + THERE, f"write {THERE} to {unlock}", "umount -- " + THERE]
    mountpoints._unlock(THERE)
    assert unlock.read_text() == THERE + "\n"


@pytest.mark.parametrize("spoil", ["a file in it", "a link"])
def test_a_mount_point_in_which_something_lies_is_not_covered(tmp_path, spoil):
    point = tmp_path / "volmig" / "job"
    mountpoints.make_mountpoint(str(point))
    mountpoints.make_mountpoint(str(point))
    if spoil == "a link":
        point.rename(tmp_path / "elsewhere")
        point.symlink_to(tmp_path / "elsewhere")
    else:
        (point / "file").touch()
    with pytest.raises(Refused) as refused:
        mountpoints.make_mountpoint(str(point))
    assert refused.value.code == "foreign-directory"


def test_a_filesystem_that_is_mounted_and_marked_is_left_as_it_is(tmp_path, monkeypatch):
    row = Mount("254:0", "/", str(tmp_path), "ext4", "/dev/vg/lv", "rw")
    monkeypatch.setattr(mounts, "mounts", lambda: [row])
    mountpoints.write_sentinel(str(tmp_path), JOB)
    work = scripted("fs_create", {"lvs": lvs(OURS)}, mountpoint=str(tmp_path))
    assert (work.run(work)["already"], work.acted) == (True, [])


# The instance


@pytest.mark.usefixtures("with_virsh")
class TestInstance:
    def test_a_libvirt_that_does_not_answer_is_no_state(self):
        silent = {"virsh -r -c qemu:///system domstate": Output(1, "", "error: failed to connect to the hypervisor")}
        for verb in ("instance_lock", "instance_stop", "instance_start"):
            refuses(scripted(verb, silent), "unknown-state")

    def test_a_mark_that_does_not_stay_is_told(self):
        fails(scripted("instance_lock", libvirt("running")), "not-marked")

    def test_a_mark_that_does_not_go_is_told(self):
        fails(scripted("instance_unlock", libvirt("running", "mine")), "still-marked")

    def test_what_carries_no_mark_is_not_unmarked(self):
        work = scripted("instance_unlock", libvirt("running"))
        assert (work.run(work), work.acted) == ({"already": True}, [])

    def test_a_domain_that_is_gone_cannot_be_marked_and_need_not_be_unmarked(self):
        gone = {"virsh -r -c qemu:///system domstate": Output(1, "", "error: failed to get domain 'i'")}
        refuses(scripted("instance_lock", gone), "no-domain")
        work = scripted("instance_unlock", gone)
        assert (work.run(work)["gone"], work.acted) == (True, [])

    def test_an_instance_that_is_off_is_not_stopped_and_one_that_runs_not_started(self):
        work = scripted("instance_stop", libvirt("shut off"))
        assert (work.run(work)["was"], work.acted) == ("shut off", [])
        work = scripted("instance_start", libvirt("running"))
        assert (work.run(work)["already"], work.acted) == (True, [])

    def test_a_guest_that_takes_its_time_is_waited_for(self, monkeypatch):
        monkeypatch.setattr(virsh.time, "sleep", lambda seconds: None)
        states = [Output(0, state + "\n") for state in ("running", "running", "running", "shut off")]
        work = changing(scripted("instance_stop", libvirt("running")), "virsh -r -c qemu:///system domstate", *states)
        assert work.run(work)["was"] == "running"

    def test_a_host_whose_domains_cannot_be_listed_tells_of_none(self):
        assert virsh.domains(scripted("hello", {"virsh -r -c qemu:///system list": Output(1)})) == []


def test_a_disk_that_root_may_not_open_is_looked_at_all_the_same(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "disk").touch()
    monkeypatch.setattr(untrusted, "open_file", denied)
    assert live_disk.live(str(tmp_path), str(tmp_path / "disk"))["inode"] == (tmp_path / "disk").stat().st_ino


# Copies


@pytest.fixture
def copying(tmp_path, monkeypatch):
    """A mounted directory for copies, and a source that is as it should be."""
    source = SimpleNamespace(check=lambda: None, check_counters=lambda: {"writes": 1, "sectors_written": 8})
    monkeypatch.setattr(lvm, "Source", lambda args, job: source)
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    monkeypatch.setattr(mounts, "at", lambda path: [MINE])
    part, whole = tmp_path / "disk.part", tmp_path / "disk.qcow2"

    def work(verb, **answers):
        return scripted(verb, answers, mountpoint=str(tmp_path), size=SIZE, rate=0)

    return SimpleNamespace(work=work, part=part, whole=whole)


@pytest.mark.parametrize("spoil", ["a link", "a second name", "a directory"])
def test_a_conversion_does_not_write_into_what_is_not_its_own(copying, tmp_path, spoil):
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    {
        "a link": lambda: copying.part.symlink_to(other),
        "a second name": lambda: copying.part.hardlink_to(other),
        "a directory": copying.part.mkdir,
    }[spoil]()
    refuses(copying.work("convert"), "foreign-file")
    assert other.read_bytes() == b"somebody's"


def test_a_conversion_begins_anew_over_its_own_part(copying):
    copying.part.write_bytes(qcow2(SIZE))
    work = copying.work("convert")
    assert work.run(work)["file_size"] == copying.part.stat().st_size
    assert work.acted[0].startswith("qemu-img convert")


def test_a_comparison_that_was_proved_is_not_made_again(copying):
    copying.whole.write_bytes(qcow2(SIZE))
    work = copying.work("compare")
    assert (work.run(work)["already"], work.acted) == (True, [])


def test_a_copy_that_qemu_describes_otherwise_is_not_compared(copying):
    copying.part.write_bytes(qcow2(SIZE))
    work = copying.work("compare", **{"qemu-img info": Output(0, '{"format": "raw", "virtual-size": 5}')})
    assert fails(work, "bad-image") == []
    work = copying.work("compare", **{"qemu-img info": Output(0, "[]")})
    assert fails(work, "bad-image") == []


def test_a_copy_whose_server_exports_it_no_more_is_left_to_the_erasure_of_the_relay(copying, monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", path)

    copying.part.write_bytes(qcow2(SIZE))
    monkeypatch.setattr(mounts.os, "stat", stale)
    work = copying.work("discard_copy")
    assert (work.run(work), work.acted) == ({"already": True}, [])


def test_discarding_takes_both_copies_and_then_nothing(copying, tmp_path):
    copying.part.touch()
    copying.whole.touch()
    work = copying.work("discard_copy")
    work._call = lambda act, function: Output(0, value=function())
    assert work.run(work) == {"already": False}
    assert list(tmp_path.iterdir()) == []
    again = copying.work("discard_copy")
    del again.args["fs_uuid"]
    assert (again.run(again), again.acted) == ({"already": True}, [])


def test_what_a_process_moved_is_what_the_kernel_counts_and_nothing_once_it_ended(tmp_path, monkeypatch):
    (tmp_path / "io").write_text("rchar: 9\nread_bytes: 4096\nwrite_bytes: 512\n")
    assert qemu_img.moved(4194305) == (0, 0)
    monkeypatch.setattr(qemu_img, "open", lambda path: (tmp_path / path.rpartition("/")[2]).open(), raising=False)
    assert qemu_img.moved(1) == (4096, 512)


def test_what_a_process_moves_becomes_progress_and_never_goes_back(monkeypatch):
    told = []
    work = commands.Work({}, "", lambda args, job: (), report=told.append)
    following = qemu_img.Following(work, 1000)
    moves = iter([(10, 5), (0, 0)])
    monkeypatch.setattr(qemu_img, "moved", lambda pid: next(moves))
    for text in (b"    (25.00/100%)\r", b""):
        work._reported = 0.0
        following(1, text)
    assert told == [
        {"done": 250, "total": 1000, "read": 10, "written": 5},
        {"done": 0, "total": 1000, "read": 10, "written": 5},
    ]


# Programs


def test_a_program_is_followed_by_its_number_and_what_it_said_last():
    followed = []
    work = commands.Work({}, "", lambda args, job: ())
    output = work.ask("/bin/sh", "-c", "echo $$", watch=lambda pid, text: followed.append((pid, text)))
    assert followed[-1] == (int(output.out), output.out.encode())


def test_a_program_that_cannot_be_ended_is_not_waited_for(monkeypatch):
    def hangs(self, timeout):
        raise subprocess.TimeoutExpired("umount", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", hangs)
    output = commands.Work({}, "", lambda args, job: ()).ask("/bin/true", good=None)
    assert (output.exit, "it does not end" in output.err) == (124, True)
