"""Inputs from real sites that failed or produced misleading messages: each gives the right result or the right message.

What needs a real LVM or a real NFS server is in tests/lab_tests/test_field.py.
"""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from hosts.remote.hostctl import facts, lvm, mounts, nfs_server, virsh
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Output, Work
from hosts.remote.hostctl.mounts import Mount
from jobs.engine import checks
from tests.engine.sound import DESTINATION, MIGRATION, RELAY, case
from tests.hostctl.test_guards import GROUP, OURS, lvs, scripted, vgs

VG = dict(GROUP, vg_name="vg")


def failing(found):
    """The checks that do not pass, by name."""
    return {check.name: check for check in checks.look(found) if not check.ok}


def groups(out, status=0, err=""):
    return lvm.groups(scripted("hello", {"vgs": Output(status, out, err)}))


# LVM's report, whatever lvm.conf says


def prefixed(tool, output):
    """What LVM prints with log/command_names=1."""
    return "".join(f"{tool}  {line}\n" for line in json.dumps(json.loads(output.out), indent=4).splitlines())


def test_a_report_with_command_names_is_read():
    found = lvm.volumes(scripted("hello", {"lvs": Output(0, prefixed("lvs", lvs(OURS)))}))
    assert [(each.vg, each.lv) for each in found] == [("vg", "lv")]


def test_advice_amid_a_report_does_not_hide_the_rest():
    lines = json.dumps(json.loads(vgs(VG).out), indent=4).splitlines()
    lines.insert(2, "  Consider pruning vg VG archive with more then 6 MiB in 8206 files (see archiving settings).")
    assert groups("\n".join(lines)).named("vg")["free"] == 99999999


def test_a_report_that_is_none_is_refused_with_the_line_that_lvm_printed():
    with pytest.raises(Refused) as refused:
        groups("  Advice instead of a report.\n")
    assert refused.value.code == "unreadable-report"
    assert "Advice instead of a report" in refused.value.found
    assert "lvm.conf" in refused.value.next_step


def test_every_report_is_asked_for_with_the_settings_that_its_reader_needs():
    asked = []

    class Asking(Work):
        def _run(self, act, probe, how):
            asked.append(act.argv)
            return lvs() if act.argv[0] == "lvs" else vgs()

    work = Asking({}, "", lambda args, job: ())
    lvm.volumes(work)
    lvm.groups(work)
    assert [argv[:2] for argv in asked] == [("lvs", "--config"), ("vgs", "--config")]
    assert all("command_names=0" in argv[2] and "binary_values_as_numeric=0" in argv[2] for argv in asked)


@pytest.mark.parametrize(("value", "is_open"), [("", False), ("0", False), ("open", True), ("1", True)])
def test_open_and_closed_are_read_in_words_and_in_numbers(value, is_open):
    (found,) = lvm.volumes(scripted("hello", {"lvs": lvs(dict(OURS, lv_device_open=value))}))
    assert found.open is is_open


INACTIVE = {"lv_attr": "-wi-------", "lv_device_open": "unknown", "lv_permissions": "unknown", "lv_active": ""}


def test_a_volume_that_is_not_active_is_neither_open_nor_read_only_and_the_check_says_how_to_activate_it():
    (found,) = lvm.volumes(scripted("hello", {"lvs": lvs(dict(OURS, **INACTIVE))}))
    seen = facts._source_volume(found)
    assert (seen["open"], seen["active"], seen["permission"]) == (False, False, "writeable")
    failed = failing(case(volume__active=False, volume__attributes="-wi-------"))
    assert list(failed) == ["volume is readable"]
    assert f"lvchange -ay {MIGRATION.source_vg}/{MIGRATION.source_lv}" in failed["volume is readable"].sentence


SKIPPED = "  Skipping clustered volume group share1vg\n"
LOCKS = "  WARNING: global lock failed: check that global lockspace is started\n  Reading VG shared without a lock.\n"


def test_a_group_that_lvm_skips_takes_no_other_group_away_and_is_named():
    found = groups(vgs(VG).out, 5, SKIPPED)
    assert (found.named("vg")["free"], found.skipped) == (99999999, "Skipping clustered volume group share1vg")


def test_a_volume_is_not_taken_for_absent_while_lvm_skips_a_group():
    with pytest.raises(Refused) as refused:
        lvm.volume(scripted("hello", {"lvs": Output(5, lvs().out, LOCKS)}), "vg", "lv")
    assert refused.value.code == "volume-not-known"
    assert "global lock failed" in refused.value.found
    there = scripted("hello", {"lvs": Output(5, lvs(OURS).out, SKIPPED)})
    assert lvm.volume(there, "vg", "lv").uuid == OURS["lv_uuid"], "a row that was given is used"


def test_only_a_migration_that_needs_the_skipped_group_is_blocked():
    assert not failing(case(relay__skipped="Skipping clustered volume group share1vg"))
    needs = replace(RELAY, vg=None, skipped="Skipping clustered volume group vg_nova0")
    found = checks.look(replace(case(), facts=replace(case().facts, relay=needs)))
    failed = {check.name: check.sentence for check in found if not check.ok}
    assert "Skipping clustered volume group vg_nova0" in failed["relay has the volume group"]


def test_two_groups_of_one_name_block_and_say_how_to_tell_them_apart():
    rows = [dict(VG, vg_uuid="u1", vg_free="99"), dict(VG, vg_uuid="u2", vg_free="5")]
    problem = groups(vgs(*rows).out).named("vg")["problem"]
    assert "u1, u2" in problem
    assert "vgrename UUID NAME" in problem
    for role, name in (("group", "relay's volume group is whole"), ("source", "source volume group is whole")):
        fact = {"group__problem": problem} if role == "group" else {"source__vg": replace(RELAY.vg, problem=problem)}
        check = failing(case(**fact))[name]
        assert check.severity == checks.BLOCKS
        assert "u1, u2" in check.sentence
    with pytest.raises(Refused) as refused:
        lvm.volume(scripted("hello", {"lvs": lvs(OURS, dict(OURS, lv_uuid="other"))}), "vg", "lv")
    assert refused.value.code == "unknown-volume"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"vg_attr": "wz-pn-", "vg_missing_pv_count": "1"}, "lacks 1 physical volume"),
        ({"vg_attr": "wzx-n-"}, "is exported"),
        ({"vg_attr": "rz--n-"}, "is read-only"),
        ({"vg_attr": "wz--nc"}, "is clustered"),
    ],
)
@pytest.mark.parametrize("verb", ["lv_create", "lv_fence"])
def test_nothing_is_written_to_the_metadata_of_a_group_that_cannot_take_it(verb, row, why):
    source = dict(OURS, lv_tags="")
    work = scripted(verb, {"lvs": lvs(*[source] * (verb == "lv_fence")), "vgs": vgs(dict(VG, **row))})
    with pytest.raises(Refused) as refused:
        work.run(work)
    assert (refused.value.code, work.acted) == ("group-not-whole", [])
    assert why in refused.value.found


# What a tool printed

SAID = [
    (LOCKS, "global lock failed: check that global lockspace is started"),
    ("  lvs: unrecognized option '--reportformat'\n  Error during parsing of command line.\n", "'--reportformat'"),
    ("qemu-img: invalid option -- 'r'\nTry 'qemu-img --help' for more information\n", "invalid option -- 'r'"),
    ("error: Failed to start domain 'db7'\nerror: internal error: no such file\n", "no such file"),
]


@pytest.mark.parametrize(("err", "cause"), SAID)
def test_the_cause_is_in_what_is_quoted_of_a_tool_wherever_it_printed_it(err, cause):
    assert cause in Output(1, "", err).said()


def test_what_is_quoted_of_a_tool_is_one_line_and_short():
    said = Output(1, "", "\n".join(f"line {number} of many" for number in range(1000))).said()
    assert len(said) <= 400
    assert "\n" not in said
    assert said.startswith("line 0 of many; line 1")


# What a disk holds


@pytest.fixture
def raw(tmp_path):
    """A raw disk of 300 MiB that real tools are let loose on."""
    for tool in ("sfdisk", "blkid", "mkfs.ext4"):
        assert shutil.which(tool), f"{tool} is not installed"
    disk = tmp_path / "disk1.raw"
    disk.touch()
    os.truncate(disk, 300 << 20)
    return disk


def read(path, *readable):
    return facts.contents(Work({}, "", lambda args, job: ()), str(path), *readable)


@pytest.mark.skipif(os.geteuid() != 0, reason="tools are found in directories that only root writes")
def test_a_label_is_read_as_the_guest_has_it(raw):
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", "Daten-ü€", str(raw)], check=True)
    found = read(raw)
    assert [each["label"] for each in found["filesystems"]] == ["Daten-ü€"]
    assert found["summary"] == "ext4 “Daten-ü€” on the whole disk"


@pytest.mark.skipif(os.geteuid() != 0, reason="tools are found in directories that only root writes")
def test_a_label_that_is_no_text_does_not_stop_the_facts(raw):
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", b"\xff\xfe\\x41", str(raw)], check=True)
    (found,) = read(raw)["filesystems"]
    assert found["label"].endswith("\\x41"), "a backslash of the guest's stays one"


CLOUD_IMAGE = "label: gpt\n1: start=227328\n14: start=2048,size=8192\n15: start=10240,size=40960\n"
LOGICAL = "label: dos\n1: start=2048,size=20480,type=83\n4: start=24576,type=5\n5: start=26624,size=20480,type=83\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="tools are found in directories that only root writes")
@pytest.mark.parametrize(("table", "numbers"), [(CLOUD_IMAGE, {1, 14, 15}), (LOGICAL, {1, 4, 5})])
@pytest.mark.parametrize("name", ["disk.raw", "disk1.raw", "nbd0", "sdp"])
def test_partitions_have_the_numbers_that_the_guest_calls_them_by(raw, table, numbers, name):
    disk = raw.rename(raw.with_name(name))
    subprocess.run(["sfdisk", "-q", str(disk)], input=table.encode(), check=True)
    assert {each["number"] for each in read(disk)["partitions"]} == numbers


@pytest.mark.skipif(os.geteuid() != 0, reason="tools are found in directories that only root writes")
def test_partitions_that_were_not_read_are_named_and_not_called_empty(raw):
    subprocess.run(["sfdisk", "-q", str(raw)], input=CLOUD_IMAGE.encode(), check=True)
    found = read(raw, 4 << 20)
    assert found["unread"] == [1, 15]
    assert found["summary"] == "GPT table with 3 partitions: partitions 1, 15 not read"
    failed = failing(case(destination__contents=replace(DESTINATION.contents, unread=(1, 15))))
    assert "partition 1, 15" in failed["filesystems keep their names"].sentence


# Names and mounts


def nfs_mount(target, options="rw,vers=3,hard", source="filer:/vol/nova"):
    return Mount("0:50", "/", target, "nfs", source, options)


def test_of_two_mounts_of_a_share_the_one_is_meant_under_which_the_disk_lies(monkeypatch):
    rows = [nfs_mount("/mnt/bkp", "ro,vers=3,hard"), nfs_mount("/var/lib/nova/instances")]
    monkeypatch.setattr(mounts, "mounts", lambda: rows)
    disk = "/var/lib/nova/instances/c8d1/disk.local"
    assert mounts.of_source("filer:/vol/nova", disk).target == "/var/lib/nova/instances"
    assert mounts.of_source("filer:/vol/nova").target == "/var/lib/nova/instances", "one that can be written"
    assert mounts.of_source("filer:/vol/nova", "/mnt/bkp/c8d1/disk.local").target == "/mnt/bkp"


@pytest.mark.parametrize("spelling", ["filer:/vol/nova/", "FILER:/vol/nova", "filer:/vol//nova", "filer:/vol/nova"])
def test_a_share_has_one_name_however_fstab_spells_it(spelling):
    row = mounts._row(f"36 25 0:50 / /i rw,relatime shared:1 - nfs {spelling} rw,vers=3\n")
    assert row.source == "filer:/vol/nova"
    assert mounts._row("36 25 0:50 / /i rw - nfs [fd00::1]:/vol/ rw\n").source == "[fd00::1]:/vol"
    assert mounts._row("36 25 254:1 / /i rw - ext4 /dev/mapper/A rw\n").source == "/dev/mapper/A"


@pytest.mark.parametrize("options", ["rw,vers=3,soft,timeo=50,retrans=2", "rw,vers=4.2,softerr"])
def test_a_share_that_is_mounted_soft_is_warned_of(options):
    check = failing(case(share__options=options))["share is mounted hard"]
    assert check.severity == checks.WARNS
    assert "jump" in check.sentence
    assert "share is mounted hard" not in failing(case(share__options="rw,vers=3,hard,softreval"))


@pytest.mark.parametrize("owner", [65534, 4294967294])
def test_a_share_whose_owner_is_not_mapped_blocks(owner):
    check = failing(case(share__owner_uid=owner))["share can be written"]
    assert check.severity == checks.BLOCKS
    assert "not mapped" in check.sentence


def test_the_two_names_of_the_first_ephemeral_disk_block_with_a_way_out():
    check = failing(case(migration={"disk": "disk.eph0"}))["same name"]
    assert "disk.local and disk.eph0" not in check.sentence.split("lvrename")[1]
    assert check.sentence.endswith(f"lvrename vg_nova0 {MIGRATION.source_lv} {MIGRATION.instance_id}_disk.eph0")
    assert "lvrename" not in failing(case(migration={"disk": "disk"}))["same name"].sentence


# What a host lacks


@pytest.mark.parametrize("unit", ["rpcbind", "rpc-statd", "nfs-mountd"])
@pytest.mark.parametrize("state", ["missing", "masked"])
def test_a_relay_that_lacks_a_part_of_nfs_version_3_blocks_and_names_it(unit, state):
    check = failing(case(relay__nfs_server={**dict.fromkeys(nfs_server.UNITS, "inactive"), unit: state}))[
        "relay can serve NFS"
    ]
    assert f"{unit} is {state}" in check.sentence


def test_a_relay_whose_configuration_forbids_version_3_blocks(tmp_path, monkeypatch):
    versions = tmp_path / "versions"
    versions.write_text("-2 -3 +4 +4.1 +4.2\n")
    monkeypatch.setattr(nfs_server, "VERSIONS", str(versions))
    why = nfs_server.version_3(scripted("hello", {}))
    assert "-3" in why
    assert why in failing(case(relay__no_version_3=why))["relay can serve NFS"].sentence
    versions.unlink()
    monkeypatch.setattr(nfs_server, "find", lambda program: "/usr/sbin/" + program)
    assert nfs_server.version_3(scripted("hello", {"nfsconf": Output(0, "n\n")})) == "vers3=n in nfs.conf"
    assert nfs_server.version_3(scripted("hello", {"nfsconf": Output(1)})) == "", "what is not set is allowed"


def test_a_masked_unit_is_told_from_one_that_is_not_installed():
    states = {"masked": "masked", "not-found": "missing"}
    for load, state in states.items():
        work = scripted("hello", {"systemctl show": Output(0, f"LoadState={load}\nActiveState=inactive\n")})
        assert nfs_server.unit_state(work, "rpcbind") == state


def test_a_host_without_virsh_is_not_said_to_have_no_instance(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: False)
    found, problem = facts._domain(scripted("destination_facts", {}, instance="c8d1"))
    assert found is None
    failed = failing(case(destination__domain=None, destination__domain_problem=problem))
    assert "virsh is not installed" in failed["instance is there"].sentence
    assert "has no instance" not in failed["instance is there"].sentence
    assert failing(case(source__virsh=False))["source's instances are known"].severity == checks.WARNS


def test_a_libvirt_that_does_not_answer_is_not_said_to_have_no_instance(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: True)
    broken = {"virsh": Output(1, "", "error: failed to connect to the hypervisor\n")}
    _found, problem = facts._domain(scripted("destination_facts", broken, instance="c8d1"))
    assert "failed to connect to the hypervisor" in problem


def test_a_domain_that_is_undefined_amid_the_list_takes_no_other_away(monkeypatch):
    monkeypatch.setattr(virsh, "installed", lambda: True)
    read = "virsh -r -c qemu:///system "
    gone = Output(1, "", "error: failed to get domain 'b'\nerror: Domain not found: no domain with matching uuid\n")
    answers = {
        **{
            read + "list": Output(0, "a\nb\n"),
            read + "dumpxml --domain a": Output(0, "<domain><name>i</name></domain>"),
        },
        **{
            read + "dumpxml --domain b": gone,
            read + "domstate --domain b": gone,
            read + "domstate": Output(0, "running\n"),
        },
    }
    assert [each["uuid"] for each in virsh.domains(scripted("inventory", answers))] == ["a"]
