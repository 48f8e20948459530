"""What is shown is what runs: builders give exact argument vectors, and nothing unannounced may run."""

import re
import subprocess
from pathlib import Path

import pytest

from hosts.remote import hostctl
from hosts.remote.hostctl.act import command, syscall
from hosts.remote.hostctl.commands import Work
from hosts.remote.hostctl.verbs import VERBS

JOB = "0f8fad5b-d9cb-469f-a165-70867728950e"
HEX = JOB.replace("-", "")
SOURCE = {"vg": "vg_nova0", "lv": "3f8d_disk.local", "lv_uuid": "U", "size": 536870912}
EVERYTHING = dict(
    SOURCE,
    mountpoint="/srv/volmig/" + HEX,
    fs_uuid=JOB,
    client="10.0.0.1",
    uid=64060,
    gid=64061,
    start=["nfs-server", "rpcbind"],
    address="10.0.0.2",
    export="/srv/volmig/" + HEX,
    rate=0,
    writes=1,
    sectors_written=8,
    instances="/var/lib/nova/instances",
    share_source="filer:/vol",
    sha256="0" * 64,
    file_size=1,
    virtual_size=2,
    instance="i",
    disk="disk.local",
    reason="volmig",
    live={"inode": 1},
    stage={"inode": 2},
    backup_inode=1,
    live_inode=2,
    targets=[],
    relay_address="10.0.0.2",
    relay_lv="l",
    deadline=1,
)


def texts(verb, **more):
    return [act.text for act in hostctl.acts(verb, dict(EVERYTHING, **more), JOB)]


def test_a_temporary_volume_is_made_with_tags_and_without_questions():
    assert hostctl.acts("lv_create", EVERYTHING, JOB)[0].argv == (
        "lvcreate",
        "--yes",
        "-Wy",
        "-Zy",
        "-n",
        "3f8d_disk.local",
        "-L",
        "536870912b",
        "--addtag",
        "volmig",
        "--addtag",
        "volmig.job=" + JOB,
        "--",
        "vg_nova0",
    )


def test_a_temporary_volume_is_erased_before_it_is_selected_by_uuid_and_tag_and_removed():
    assert texts("lv_remove", made={"lv_uuid": "abc"}) == [
        "zero /dev/vg_nova0/3f8d_disk.local, 536870912 bytes (BLKZEROOUT)",
        "lvchange -an -- vg_nova0/3f8d_disk.local",
        'lvremove --yes -S \'lv_uuid="abc" && lv_tags={"volmig.job=' + JOB + "\"}' -- vg_nova0",
    ]


def test_convert_names_both_formats_bypasses_both_caches_and_ends_its_options():
    assert hostctl.acts("convert", dict(EVERYTHING, rate=1000), JOB)[0].argv == (
        "qemu-img",
        "convert",
        "-p",
        "-r",
        "1000",
        "-t",
        "none",
        "-T",
        "none",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compat=1.1",
        "--",
        "/dev/vg_nova0/3f8d_disk.local",
        f"/srv/volmig/{HEX}/disk.part",
    )


def test_no_rate_means_no_rate_option():
    assert "-r" not in hostctl.acts("convert", EVERYTHING, JOB)[0].argv


def test_services_start_in_order_and_stop_in_reverse():
    assert texts("export")[:2] == ["systemctl start -- rpcbind", "systemctl start -- nfs-server"]
    assert texts("unexport", made={"started": ["rpcbind", "nfs-server"]})[3:] == [
        "systemctl stop -- nfs-server",
        "systemctl stop -- rpcbind",
    ]


def test_one_client_is_exported_to_with_everybody_squashed_to_the_owner():
    assert texts("export")[-1] == (
        f"exportfs -o rw,sync,no_subtree_check,mp,fsid={JOB},all_squash,anonuid=64060,anongid=64061 "
        f"10.0.0.1:/srv/volmig/{HEX}"
    )


def test_a_source_found_read_only_is_not_made_writeable():
    assert not any("-prw" in text for text in texts("lv_unfence", made={"was": "read-only"}))
    assert any("-prw" in text for text in texts("lv_unfence", made={"was": "writeable"}))


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_placeholders_pass_through_every_builder(verb):
    args = dict.fromkeys(EVERYTHING, "«later»")
    for act in hostctl.acts(verb, dict(args, made={}, rate=0)):
        assert act.kind in ("command", "syscall")
        assert act.text


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_no_builder_uses_what_is_forbidden(verb):
    for act in hostctl.acts(verb, EVERYTHING, JOB):
        assert (
            not {
                "--salvage",
                "-n",
                "-F" if act.argv[:1] == ("mkfs.ext4",) else "",
                "-l",
                "-f" if act.argv[:1] != ("qemu-img",) and act.argv != ("exportfs", "-f") else "",
                "destroy",
            }
            - {""}
            & set(act.argv)
            or act.argv[0] == "lvcreate"
        )
        assert not re.search(r"exportfs -(ra|r)\b", act.text)


def test_shell_characters_are_quoted_for_people_and_placeholders_are_not():
    assert command("a", "b c", "«x»").text == "a 'b c' «x»"


def test_an_act_that_was_not_announced_does_not_run(tmp_path):
    work = Work({}, JOB, lambda args, job: (syscall("first"), syscall("second")))
    work.do(syscall("second"))
    for late in (syscall("first"), command("touch", str(tmp_path / "x"))):
        with pytest.raises(RuntimeError):
            work.do(late)
    assert not (tmp_path / "x").exists()


def test_only_commands_starts_programs():
    package = Path(hostctl.__file__).parent
    users = subprocess.run(
        ["grep", "-lE", "import subprocess|os\\.(system|popen|exec)", *map(str, package.glob("*.py"))],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    # The launcher replaces itself by the version of hostctl that a request names; it starts nothing else.
    assert sorted(Path(user).name for user in users) == ["commands.py", "launcher.py"]
