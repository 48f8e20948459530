"""What is rare on a host: a tool that prints nonsense, a name that vanishes between two questions, a full disk."""

import errno
import json
import os

import pytest

from hosts.remote.hostctl import __main__ as entry
from hosts.remote.hostctl import (
    commands,
    exports,
    facts,
    leftovers,
    lvm,
    mountpoints,
    mounts,
    nfs_server,
    openers,
    policy,
    request,
    store,
    version,
    virsh,
)
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Output
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.ssh import ANSWER_CAP

from .test_guards import ACTIVE, GROUP, JOB, OURS, THERE, lvs, nothing_mounted, scripted, vgs

__all__ = ["nothing_mounted"]  # a fixture
UUID = "c8d1a0b2-1111-4222-8333-944445555666"
READ = "virsh -r -c qemu:///system "


@pytest.mark.parametrize("text", ["Segmentation fault\n", "exportfs: /etc/exports: bad\n"])
def test_what_exportfs_prints_besides_exports_is_not_taken_for_none(text):
    with pytest.raises(Refused) as refused:
        exports.exports(scripted("leftovers", {"exportfs": Output(0, text)}))
    assert refused.value.code == "probe-failed"
    assert text.split()[0] in refused.value.found


@pytest.mark.parametrize("text", ["", "garbage\n", "LoadState=loaded\n", "ActiveState=active\n"])
def test_a_service_of_which_systemd_says_nothing_is_not_taken_for_one_that_is_off(text):
    with pytest.raises(Refused) as refused:
        nfs_server.unit_state(scripted("export", {"systemctl show": Output(0, text)}), "nfs-server")
    assert refused.value.code == "probe-failed"


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (ACTIVE, "active"),
        ("LoadState=loaded\nActiveState=failed\n", "inactive"),
        ("LoadState=masked\nActiveState=inactive\n", "masked"),
        ("LoadState=not-found\nActiveState=inactive\n", "missing"),
    ],
)
def test_the_state_of_a_service_is_what_systemd_says(text, state):
    assert nfs_server.unit_state(scripted("export", {"systemctl show": Output(0, text)}), "nfs-server") == state


@pytest.mark.parametrize(
    ("versions", "configured", "why"),
    [
        ("-2 +3 +4\n", "n", ""),
        ("-2 -3 +4\n", "", "/proc/fs/nfsd/versions says -2 -3 +4"),
        ("", "n\n", "vers3=n in nfs.conf"),
        ("", "y\n", ""),
        ("", "", ""),
    ],
)
def test_whether_nfs_version_3_is_served_is_asked_of_the_kernel_first(monkeypatch, tmp_path, versions, configured, why):
    (tmp_path / "versions").write_text(versions)
    monkeypatch.setattr(nfs_server, "VERSIONS", str(tmp_path / "versions"))
    monkeypatch.setattr(nfs_server, "find", lambda program: f"/usr/sbin/{program}")
    found = nfs_server.version_3(scripted("relay_facts", {"nfsconf": Output(0, configured)}))
    assert found == why.replace("/proc/fs/nfsd/versions", str(tmp_path / "versions"))


def test_of_a_server_that_was_stopped_its_configuration_decides(tmp_path, monkeypatch):
    (tmp_path / "versions").write_text("+3 +4 +4.1 +4.2\n")
    (tmp_path / "threads").write_text("0\n")
    monkeypatch.setattr(nfs_server, "VERSIONS", str(tmp_path / "versions"))
    monkeypatch.setattr(nfs_server, "THREADS", str(tmp_path / "threads"))
    monkeypatch.setattr(nfs_server, "find", lambda program: f"/usr/sbin/{program}")
    configured = {"nfsconf": Output(0, "n\n")}
    assert nfs_server.version_3(scripted("relay_facts", configured)) == "vers3=n in nfs.conf"
    (tmp_path / "threads").write_text("8\n")
    assert nfs_server.version_3(scripted("relay_facts", configured)) == "", "it runs, and serves version 3"


def test_a_server_that_does_not_run_has_no_versions_to_say(monkeypatch):
    monkeypatch.setattr(nfs_server, "VERSIONS", "/nowhere")
    monkeypatch.setattr(nfs_server, "find", lambda program: "")
    assert nfs_server.version_3(scripted("relay_facts", {})) == ""


def test_a_volume_is_not_taken_for_missing_when_lvm_did_not_read_everything():
    partly = Output(lvm.SOME_FAILED, lvs().out, "Couldn't find device with uuid X")
    with pytest.raises(Refused) as refused:
        lvm.volume(scripted("lv_create", {"lvs": partly}), "vg", "lv")
    assert refused.value.code == "volume-not-known"


def test_of_two_volumes_of_one_name_none_is_taken():
    with pytest.raises(Refused) as refused:
        lvm.volume(scripted("lv_create", {"lvs": lvs(OURS, dict(OURS, lv_uuid="other"))}), "vg", "lv")
    assert refused.value.code == "unknown-volume"


def test_an_inventory_says_what_lvm_left_out(monkeypatch):
    monkeypatch.setattr(facts, "find", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(virsh, "installed", lambda: False)
    partly = Output(lvm.SOME_FAILED, vgs(GROUP).out, "Couldn't find device with uuid X")
    answers = {"vgs": partly, "lvs": lvs(OURS), "ip ": Output(0, "[]"), "exportfs": Output(0)}
    found = facts.inventory(scripted("inventory", answers))
    assert found["warnings"][0] == "LVM's report is incomplete: Couldn't find device with uuid X"
    assert [each["name"] for each in found["logical_volumes"]] == ["lv"]


def test_an_inventory_of_500_instances_and_1000_volumes_fits_into_an_answer(monkeypatch):
    domain = "<domain><name>instance-00000007</name><devices>%s</devices></domain>"
    disk = "<disk device='disk'><driver type='qcow2'/><source file='/var/lib/nova/i/disk'/><target dev='vda'/></disk>"
    said = {
        "list": "\n".join(f"0f8fad5b-d9cb-469f-a165-{number:012}" for number in range(500)),
        "dumpxml": domain % (disk + "<!-- %s -->" % ("x" * 9000)),
        "domstate": "running\n",
        "lvs": lvs(*(dict(OURS, lv_name=f"{number:036}_disk.local") for number in range(1000))).out,
        "vgs": vgs(GROUP).out,
        "ip": "[]",
        "show": ACTIVE,
    }

    def execute(argv, **how):
        return Output(0, next((text for word, text in said.items() if word in argv[0].split("/") or word in argv), ""))

    monkeypatch.setattr(commands, "find", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(facts, "find", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(virsh, "installed", lambda: True)
    monkeypatch.setattr(commands, "_execute", execute)
    work = commands.Work({}, "", lambda args, job: ())
    answer = request.answer("done", facts.inventory(work), work)
    assert (len(answer["evidence"]["domains"]), len(answer["evidence"]["logical_volumes"])) == (500, 1000)
    assert len(json.dumps(answer)) < ANSWER_CAP / 2


# Names that vanish between two questions


def test_a_domain_that_was_undefined_since_it_was_listed_is_none(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: True)
    gone = Output(1, "", "error: failed to get domain")
    answers = {READ + "list": Output(0, UUID + "\n"), READ + "dumpxml": gone, READ + "domstate": gone}
    assert virsh.domains(scripted("inventory", answers)) == []


def test_a_domain_that_libvirt_does_not_describe_although_it_is_there_is_refused(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: True)
    answers = {
        READ + "list": Output(0, UUID + "\n"),
        READ + "dumpxml": Output(1, "", "error: internal error"),
        READ + "domstate": Output(0, "running\n"),
    }
    with pytest.raises(Refused, match="internal error"):
        virsh.domains(scripted("inventory", answers))


def test_a_process_that_ended_since_it_was_listed_has_nothing_open():
    nobody = str(1 << 30)
    assert not openers._has_open(nobody, "/share/disk", "/share/")
    assert not openers._runs(nobody, UUID)


def test_a_descriptor_that_is_closed_since_it_was_listed_hides_no_other(monkeypatch, tmp_path):
    (tmp_path / "disk").touch()
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["999999", *listed(path)])
    with (tmp_path / "disk").open():
        assert openers._has_open("self", f"{tmp_path}/disk", f"{tmp_path}/")
        assert openers._is_in("self", str(tmp_path))


def test_a_host_on_which_nothing_was_ever_done_remembers_no_migrations(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "STATE", str(tmp_path / "state"))
    assert (store.forgotten(store.STATE), leftovers._memories(scripted("leftovers", {}))) == ([], [])
    (tmp_path / "state" / JOB).mkdir(parents=True)
    (tmp_path / "state/owner.json").touch()
    assert [each["job"] for each in leftovers._memories(scripted("leftovers", {}))] == [JOB]


def test_a_version_that_runs_from_a_place_that_is_gone_names_itself(monkeypatch):
    monkeypatch.setattr(version.sys, "argv", ["/nowhere/hostctl"])
    assert version.installed() == [version.source_hash()]


# A full disk, and mounts that are not ours


def test_a_sentinel_that_was_written_in_part_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(OSError, match="only a part") as failed:
        mountpoints.write_sentinel(str(tmp_path), JOB)
    assert failed.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("rows", "own", "sentinel"),
    [
        ([], True, JOB),
        (["ours", "another"], True, JOB),
        (["ours"], False, JOB),
        (["ours"], True, "another"),
        (["ours"], True, ""),
    ],
)
def test_nothing_is_copied_to_where_not_exactly_the_jobs_filesystem_is_mounted(monkeypatch, rows, own, sentinel):
    """Else a copy of hundreds of GiB would fill the hypervisor's own disk."""
    monkeypatch.setattr(mounts, "at", lambda path: [Mount("0:5", "/", path, "nfs", name, "rw") for name in rows])
    monkeypatch.setattr(mounts, "is_own_filesystem", lambda path: own)
    monkeypatch.setattr(mountpoints, "sentinel", lambda path: sentinel)
    with pytest.raises(Refused) as refused:
        mountpoints.check_target({"mountpoint": THERE, "fs_uuid": JOB}, JOB)
    assert refused.value.code == "not-mounted"


# The policy, and the ways in


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ELOOP])
@pytest.mark.parametrize("call", ["open", "read"])
def test_a_policy_that_cannot_be_read_allows_nothing(tmp_path, monkeypatch, number, call):
    path = tmp_path / "hostctl.json"
    path.write_text("{}")
    path.chmod(0o600)
    monkeypatch.setattr(policy, "_only_roots", lambda found: True)
    real = os.open

    def fails(*given, **how):
        if call == "read" or str(given[0]) == str(path):
            raise OSError(number, os.strerror(number))
        return real(*given, **how)

    monkeypatch.setattr(os, call, fails)
    reading = policy.read(str(path))
    assert reading.policy is None
    assert reading.fault.code == "policy-unsafe"
    assert os.strerror(number) in reading.fault.found


@pytest.mark.parametrize("address", ["", "example.org", "10.0.0.300", "fe80::1%eth0"])
def test_what_is_no_address_lies_in_no_network(address):
    assert not policy._lies_in(address, "0.0.0.0/0")


def test_installing_is_refused_where_this_is_no_archive(monkeypatch, capsys, tmp_path):
    mask = os.umask(0o022)
    monkeypatch.chdir(tmp_path)
    try:
        assert entry.main(["install"]) == 2
    finally:
        os.umask(mask)
    assert "run the file itself, as root" in capsys.readouterr().err
