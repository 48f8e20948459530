"""Every guard of the storage verbs refuses: tools answer as the test says, and no act may run."""

import errno
import json

import pytest

from hosts.remote.hostctl import lvm, mountpoints, mounts, nfs_server, virsh
from hosts.remote.hostctl.act import Failed, Refused
from hosts.remote.hostctl.commands import Memory, Output, Work
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.verbs import VERBS

JOB = "0f8fad5b-d9cb-469f-a165-70867728950e"
HEX = JOB.replace("-", "")
UUID = "AAAAAA-1111-2222-3333-4444-5555-BBBBBB"
RELAY, THERE = "/srv/volmig/" + HEX, "/mnt/volmig/" + HEX
OURS = {
    "vg_name": "vg",
    "lv_name": "lv",
    "lv_uuid": UUID,
    "lv_size": "8388608",
    "lv_attr": "-wi-a-----",
    "lv_tags": "volmig,volmig.job=" + JOB,
    "lv_device_open": "",
    "lv_kernel_major": "254",
    "lv_kernel_minor": "0",
    "lv_permissions": "writeable",
    "lv_active": "active",
    "lv_health_status": "",
    "pool_lv": "",
    "origin": "",
}
GROUP = {"vg_name": "vg", "vg_uuid": "u", "vg_size": "99999999", "vg_free": "99999999", "vg_extent_size": "4194304"}
GROUP |= {"vg_attr": "wz--n-", "vg_missing_pv_count": "0"}
ARGS = {
    "vg": "vg",
    "lv": "lv",
    "lv_uuid": UUID,
    "size": 8388608,
    "fs_uuid": JOB,
    "mountpoint": RELAY,
    "client": "10.0.0.1",
    "uid": 1,
    "gid": 1,
    "start": [],
    "address": "10.0.0.2",
    "export": RELAY,
    "instance": "i",
    "disk": "disk.local",
    "instances": "/i",
    "reason": "mine",
}
EXPORT = (
    "%s  10.0.0.1(sync,wdelay,hide,no_subtree_check,mountpoint,"
    "fsid=%s,anonuid=1,anongid=1,sec=sys,rw,secure,root_squash,all_squash)\n"
)


ACTIVE = "LoadState=loaded\nActiveState=active\n"


class Remembered(Memory):
    def __init__(self, **facts):
        self.facts = facts

    def recall(self, name):
        return self.facts.get(name, {})

    def remember(self, name, **facts):
        self.facts[name] = dict(self.recall(name), **facts)


class Scripted(Work):
    """Answers questions from a table; records acts without running any."""

    def __init__(self, verb, answers, memory=None, **args):
        self.answers, self.acted = answers, []
        super().__init__(dict(ARGS, **args), JOB, VERBS[verb].acts, Remembered(**(memory or {})))

    def _run(self, act, probe, how):
        if not probe:
            self.acted.append(act.text)
            return Output(0)
        answers = {"systemctl show": Output(0, ACTIVE), "vgs": vgs(GROUP), **self.answers}
        found = [answer for start, answer in answers.items() if act.text.startswith(start)]
        return found[0] if found else Output(0)

    def _call(self, act, function):
        self.acted.append(act.text)
        return Output(0)


def lvs(*rows):
    return Output(0, json.dumps({"report": [{"lv": list(rows)}]}))


def vgs(*rows):
    return Output(0, json.dumps({"report": [{"vg": list(rows)}]}))


def refuses(work, code, error=Refused):
    with pytest.raises(error) as refused:
        work.run(work)
    assert refused.value.code == code
    assert refused.value.found
    assert refused.value.next_step
    assert work.acted == []
    assert work.touched is False


def scripted(verb, answers, **more):
    work = Scripted(verb, answers, **more)
    work.run = VERBS[verb].run
    return work


@pytest.fixture(autouse=True)
def nothing_mounted(monkeypatch):
    rows: list[Mount] = []
    monkeypatch.setattr(mounts, "mounts", lambda: rows)
    monkeypatch.setattr(lvm, "openers", lambda device: [])
    monkeypatch.setattr(lvm, "kernel_children", lambda device: [])
    monkeypatch.setattr(lvm, "counters", lambda device: (1, 8))
    return rows


@pytest.mark.parametrize(
    ("row", "group", "size", "code"),
    [
        (dict(OURS, lv_tags=""), GROUP, 8388608, "foreign-volume"),
        (dict(OURS, lv_tags="volmig,volmig.job=other"), GROUP, 8388608, "foreign-volume"),
        (dict(OURS, lv_size="4194304"), GROUP, 8388608, "foreign-volume"),
        (None, None, 8388608, "no-volume-group"),
        (None, GROUP, 8388609, "size-not-extents"),
        (None, dict(GROUP, vg_free="4194304"), 8388608, "no-space"),
    ],
)
def test_lv_create_refuses(row, group, size, code):
    refuses(
        scripted("lv_create", {"lvs": lvs(*[row] if row else []), "vgs": vgs(*[group] if group else [])}, size=size),
        code,
    )


def test_lv_create_finds_its_own_volume_and_does_nothing():
    work = scripted("lv_create", {"lvs": lvs(OURS)})
    assert work.run(work)["already"]
    assert work.acted == []


@pytest.mark.parametrize(
    ("row", "made", "memory", "code"),
    [
        (OURS, {}, {}, "unknown-volume"),
        (dict(OURS, lv_tags="volmig"), {"lv_uuid": UUID}, {}, "foreign-volume"),
        (OURS, {"lv_uuid": "other"}, {}, "foreign-volume"),
        (dict(OURS, lv_size="1"), {"lv_uuid": UUID}, {}, "foreign-volume"),
        (dict(OURS, lv_device_open="open"), {"lv_uuid": UUID}, {}, "volume-open"),
        (dict(OURS, lv_tags=""), {}, {"lv": {"lv_uuid": UUID}}, "foreign-volume"),
    ],
)
def test_lv_remove_refuses(row, made, memory, code):
    refuses(scripted("lv_remove", {"lvs": lvs(row)}, memory=memory, made=made), code)


def test_lv_remove_of_nothing_succeeds():
    work = scripted("lv_remove", {"lvs": lvs()}, made={})
    assert work.run(work)["already"]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (None, "unknown-volume"),
        (dict(OURS, lv_uuid="other"), "unknown-volume"),
        (dict(OURS, lv_size="1"), "unknown-volume"),
        (dict(OURS, lv_device_open="open"), "volume-open"),
        (dict(OURS, lv_tags="volmig.src=other"), "foreign-fence"),
        (dict(OURS, lv_active="", lv_attr="-wi-------"), "volume-not-healthy"),
        (dict(OURS, lv_health_status="partial"), "volume-not-healthy"),
    ],
)
def test_lv_fence_refuses(row, code):
    refuses(scripted("lv_fence", {"lvs": lvs(*[row] if row else [])}), code)


def test_a_source_that_opens_while_it_is_fenced_is_given_back_at_once():
    work = scripted("lv_fence", {})
    rows = iter([OURS, dict(OURS, lv_device_open="open", lv_permissions="read-only")])
    work.answers = {}
    real = work._run
    work._run = lambda act, probe, how: (
        lvs(next(rows)) if probe and act.text.startswith("lvs") else real(act, probe, how)
    )
    with pytest.raises(Refused) as refused:
        work.run(work)
    assert refused.value.code == "volume-open"
    assert any("-prw" in text for text in work.acted)
    assert any("--deltag" in text for text in work.acted)


FENCED = dict(OURS, lv_tags="volmig,volmig.src=" + JOB, lv_permissions="read-only")


def test_a_source_is_not_given_back_while_its_holder_has_it_open(monkeypatch):
    monkeypatch.setattr(lvm, "openers", lambda device: [{"unit": lvm.holder(JOB) + ".service"}])
    monkeypatch.setattr(lvm, "_soon", lambda holds: holds())
    work = scripted("lv_unfence", {"lvs": lvs(FENCED)}, made={"was": "writeable"})
    with pytest.raises(Failed) as failed:
        work.run(work)
    assert failed.value.code == "still-held"
    assert work.acted == [f"systemctl stop -- {lvm.holder(JOB)}"]


def test_a_source_that_is_writeable_again_is_not_made_so_twice():
    work = scripted("lv_unfence", {}, made={"was": "writeable"})
    rows = iter([dict(FENCED, lv_permissions="writeable"), dict(OURS, lv_tags="")])
    real = work._run
    work._run = lambda act, probe, how: lvs(next(rows)) if probe else real(act, probe, how)
    assert work.run(work) == {"permission": "writeable"}
    assert not any("-prw" in text for text in work.acted)


@pytest.mark.parametrize(
    ("row", "blkid", "code"),
    [
        (None, Output(2), "no-volume"),
        (dict(OURS, lv_uuid="other"), Output(2), "foreign-volume"),
        (OURS, Output(0, "TYPE=xfs\n"), "foreign-signature"),
        (OURS, Output(0, "TYPE=ext4\nUUID=other\n"), "foreign-signature"),
        (OURS, Output(0, "PTTYPE=gpt\n"), "foreign-signature"),
        (OURS, Output(8), "probe-failed"),
        (dict(OURS, lv_device_open="open"), Output(2), "volume-open"),
    ],
)
def test_mkfs_refuses_anything_but_our_own_blank_closed_volume(row, blkid, code):
    refuses(scripted("fs_create", {"lvs": lvs(*[row] if row else []), "blkid": blkid}), code)


@pytest.mark.parametrize(
    "rows",
    [
        [Mount("8:1", "/", RELAY, "ext4", "/dev/sda1", "rw")],
        [Mount("254:0", "/", "/elsewhere", "ext4", "/dev/vg/lv", "rw")],
        [Mount("254:0", "/", RELAY, "ext4", "/dev/vg/lv", "rw"), Mount("8:1", "/", RELAY, "ext4", "/dev/sda1", "rw")],
    ],
)
def test_fs_create_refuses_foreign_mounts(rows, nothing_mounted):
    nothing_mounted.extend(rows)
    refuses(scripted("fs_create", {"lvs": lvs(OURS)}), "foreign-mount")


@pytest.mark.parametrize(
    ("source", "blkid", "exports", "code"),
    [
        ("/dev/sda1", "UUID=other", "", "foreign-mount"),
        ("/dev/vg/lv", "UUID=" + JOB, EXPORT % (RELAY, JOB), "still-exported"),
    ],
)
def test_fs_remove_refuses(source, blkid, exports, code, nothing_mounted):
    nothing_mounted.append(Mount("254:0", "/", RELAY, "ext4", source, "rw"))
    refuses(
        scripted(
            "fs_remove", {"blkid": Output(0, blkid + "\n"), "exportfs": Output(0, exports)}, made={"fs_uuid": JOB}
        ),
        code,
    )


def test_export_refuses_a_directory_on_which_nothing_is_mounted():
    refuses(scripted("export", {}), "not-mounted")


@pytest.mark.parametrize(
    "listed",
    [
        EXPORT.replace("10.0.0.1", "*") % (RELAY, JOB),
        EXPORT % (RELAY, JOB) + EXPORT.replace("10.0.0.1", "10.0.0.9") % (RELAY, JOB),
        (EXPORT % (RELAY, JOB)).replace("all_squash", "no_all_squash"),
        (EXPORT % (RELAY, JOB)).replace("anonuid=1", "anonuid=0"),
    ],
)
def test_export_refuses_an_export_that_is_wider_or_other_than_planned(listed, monkeypatch):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    refuses(scripted("export", {"exportfs": Output(0, listed)}), "foreign-export")


def test_export_accepts_the_planned_one(monkeypatch):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    work = scripted("export", {"exportfs": Output(0, EXPORT % (RELAY, JOB))})
    assert work.run(work)["already"]


def test_an_export_that_is_listed_but_served_by_nobody_is_not_taken_for_done(monkeypatch):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    stopped = Output(0, "LoadState=loaded\nActiveState=inactive\n")
    listed = Output(0, EXPORT % (RELAY, JOB))
    work = scripted("export", {"exportfs": listed, "systemctl show": stopped}, start=["nfs-server"])
    with pytest.raises(Failed) as failed:
        work.run(work)
    assert failed.value.code == "nfs-not-running"
    assert work.acted == ["systemctl start -- nfs-server"]


def test_unexport_refuses_where_somebody_else_exports_it_too():
    listed = EXPORT.replace("10.0.0.1", "10.0.0.9") % (RELAY, JOB)
    refuses(scripted("unexport", {"exportfs": Output(0, listed)}, made={"started": []}), "foreign-export")


def test_services_stay_up_while_anything_else_is_exported():
    memory = {"nfs": {"before": {"nfs-server": "inactive"}}}
    work = scripted("unexport", {"exportfs": Output(0, EXPORT % ("/other", JOB))}, memory=memory)
    assert work.run(work)["kept"] == ["/other to 10.0.0.1"]
    assert work.acted == []


@pytest.mark.parametrize("said", [Output(1), Output(124), Output(0, "%PDF-1.4")], ids=["fails", "hangs", "rubbish"])
@pytest.mark.parametrize("verb", ["unexport", "fs_remove", "export"])
def test_what_exportfs_does_not_say_is_not_taken_for_nothing_exported(verb, said, monkeypatch, nothing_mounted):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    nothing_mounted.append(Mount("254:0", "/", RELAY, "ext4", "/dev/vg/lv", "rw"))
    answers = {"exportfs": said, "blkid": Output(0, f"UUID={JOB}\n")}
    refuses(scripted(verb, answers, made={"fs_uuid": JOB, "started": ["nfs-server"]}), "probe-failed")


@pytest.mark.parametrize("said", [Output(1), Output(124), Output(0, "%PDF-1.4")], ids=["fails", "hangs", "rubbish"])
def test_a_service_of_which_systemd_says_nothing_is_not_started(said, monkeypatch):
    monkeypatch.setattr(mountpoints, "check_target", lambda args, job: None)
    refuses(scripted("export", {"systemctl show": said}, start=["nfs-server"]), "probe-failed")


@pytest.mark.parametrize(
    "row",
    [
        Mount("0:9", "/", THERE, "nfs", "10.0.0.3:" + RELAY, "rw,vers=3,hard"),
        Mount("0:9", "/", THERE, "nfs", "10.0.0.2:" + RELAY, "rw,vers=3,soft"),
        Mount("0:9", "/", THERE, "nfs4", "10.0.0.2:" + RELAY, "rw,vers=4.2,hard"),
        Mount("8:1", "/", THERE, "ext4", "/dev/sda1", "rw"),
    ],
)
def test_nfs_mount_refuses_another_mount_there(row, nothing_mounted):
    nothing_mounted.append(row)
    refuses(scripted("nfs_mount", {}, mountpoint=THERE), "foreign-mount")


def test_nfs_unmount_refuses_what_is_not_the_jobs_mount(nothing_mounted):
    nothing_mounted.append(Mount("0:9", "/", THERE, "nfs", "10.0.0.2:/other", "rw"))
    refuses(scripted("nfs_unmount", {}, mountpoint=THERE), "foreign-mount")


def test_convert_refuses_where_nothing_is_mounted(monkeypatch):
    monkeypatch.setattr(lvm, "Source", lambda args, job: type("S", (), {"check": lambda self: None})())
    refuses(scripted("convert", {}, rate=0), "not-mounted")


def test_convert_refuses_a_mount_whose_server_does_not_export_it_any_more(monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(lvm, "Source", lambda args, job: type("S", (), {"check": lambda self: None})())
    monkeypatch.setattr(mounts, "at", lambda target: ["the relay's"])
    monkeypatch.setattr(mounts, "is_own_filesystem", stale)
    refuses(scripted("convert", {}, rate=0), "not-mounted")


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"dm/uuid": "LVM-" + "x" * 32 + "other"}, "unknown-volume"),
        ({"size": "8"}, "unknown-volume"),
        ({"ro": "0"}, "not-fenced"),
        ({"openers": [{"pid": 1, "name": "qemu", "unit": "machine.scope"}]}, "source-open"),
        ({"openers": []}, "no-holder"),
    ],
)
def test_the_source_is_read_only_as_recorded_fenced_held_and_alone(facts, code, monkeypatch):
    held = [{"pid": 2, "name": "sleep", "unit": lvm.holder(JOB) + ".service"}]
    seen = {"dm/uuid": "LVM-" + "x" * 32 + UUID.replace("-", ""), "size": "16384", "ro": "1", "openers": held, **facts}
    source = lvm.Source.__new__(lvm.Source)
    source.args, source.job, source.path, source.device = ARGS, JOB, "/dev/vg/lv", "254:0"
    source._sys = seen.__getitem__
    monkeypatch.setattr(lvm, "openers", lambda device: seen["openers"])
    with pytest.raises(Refused) as refused:
        source.check()
    assert refused.value.code == code


def test_a_write_during_the_copy_trips_the_wire():
    source = lvm.Source.__new__(lvm.Source)
    source.args, source.path, source.device = dict(ARGS, writes=1, sectors_written=9), "/dev/vg/lv", "254:0"
    with pytest.raises(Refused) as refused:
        source.check_counters()
    assert refused.value.code == "source-written"


DISK = (
    "<domain><devices><disk device='disk'><driver type='qcow2'/>"
    "<source file='%s'/><target dev='vdb'/></disk></devices></domain>"
)


NO_MARK = "error: metadata not found: Requested metadata element is not present"


def libvirt(state, mark="", path="/i/i/disk.local"):
    read = "virsh -r -c qemu:///system "
    return {
        read + "domstate": Output(0, state + "\n"),
        read + "dumpxml": Output(0, DISK % path),
        "virsh -c qemu:///system metadata": Output(0, f"<lock reason='{mark}'/>") if mark else Output(1, "", NO_MARK),
    }


@pytest.fixture
def with_virsh(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: True)
    monkeypatch.setattr(virsh, "live", lambda instances, path: {"inode": 7})


@pytest.mark.usefixtures("with_virsh")
@pytest.mark.parametrize(
    ("verb", "answers", "args", "code"),
    [
        ("instance_lock", libvirt("running", "other"), {}, "foreign-lock"),
        ("instance_unlock", libvirt("running", "other"), {}, "foreign-lock"),
        ("instance_stop", libvirt("paused"), {}, "unknown-state"),
        ("instance_stop", libvirt("running", path="/other"), {}, "unknown-disk"),
        ("instance_start", libvirt("crashed"), {}, "unknown-state"),
        ("instance_start", libvirt("shut off", path="/other"), {}, "unknown-disk"),
        ("instance_start", libvirt("shut off"), {"expect_inode": 8}, "unknown-inode"),
    ],
)
def test_the_instance_verbs_refuse(verb, answers, args, code):
    refuses(scripted(verb, answers, **args), code)


@pytest.mark.usefixtures("with_virsh")
@pytest.mark.parametrize("verb", ["instance_lock", "instance_unlock"])
@pytest.mark.parametrize("said", [Output(1, "", "error: failed to connect to the hypervisor"), Output(124)])
def test_a_mark_that_libvirt_does_not_tell_is_not_taken_for_none(verb, said):
    refuses(scripted(verb, libvirt("running") | {"virsh -c qemu:///system metadata": said}), "probe-failed")


@pytest.mark.usefixtures("with_virsh")
def test_a_guest_that_does_not_stop_is_left_running_and_never_destroyed(monkeypatch):
    monkeypatch.setattr(virsh, "_becomes", lambda work, wanted, seconds: False)
    work = scripted("instance_stop", libvirt("running"), deadline=1)
    with pytest.raises(Failed) as failed:
        work.run(work)
    assert failed.value.code == "stop-deadline"
    assert work.acted == ["virsh -c qemu:///system shutdown --domain i"]


@pytest.mark.usefixtures("with_virsh")
def test_a_start_that_never_ran_says_so(monkeypatch):
    monkeypatch.setattr(virsh, "_becomes", lambda work, wanted, seconds: False)
    work = scripted("instance_start", libvirt("shut off"), expect_inode=7)
    real = work._run
    work._run = lambda act, probe, how: real(act, probe, how) if probe else Output(1, "", "error: cannot open disk")
    with pytest.raises(Failed) as failed:
        work.run(work)
    assert failed.value.evidence == {"ever_ran": False}


@pytest.mark.usefixtures("with_virsh")
@pytest.mark.parametrize(
    ("made", "memory", "starts"),
    [
        ({"was": "running"}, {}, True),
        ({"was": "shut off"}, {}, False),
        ({}, {}, False),
        ({}, {"stop": {"was": "running"}}, True),
    ],
)
def test_undo_of_a_stop_starts_only_what_we_stopped(made, memory, starts, monkeypatch):
    monkeypatch.setattr(virsh, "_becomes", lambda work, wanted, seconds: True)
    work = scripted("instance_start", libvirt("shut off"), memory=memory, made=made)
    work.run(work)
    assert bool(work.acted) == starts


def test_without_libvirt_nothing_is_assumed(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: False)
    refuses(scripted("instance_stop", {}), "no-libvirt")
    assert nfs_server.UNITS[-1] == "nfs-server"
