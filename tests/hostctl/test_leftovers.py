"""What a host tells of everything that carries the marker: all of it, nothing else, and no dead share holds it up."""

import json
import os
import stat
import time

import pytest

from hosts.remote.hostctl import exports, leftovers, mounts, stage, store
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Output, Work
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.request import Desk, check_args
from hosts.remote.hostctl.verbs import VERBS
from tests.hostctl.test_guards import EXPORT, HEX, JOB, OURS, RELAY, THERE, lvs, scripted

OTHER = "11111111-2222-4333-8444-555555555555"
UNITS = (
    f"volmig-{HEX}-holder.service loaded active running volmig holds vg/lv open\n"
    f"● volmig-{HEX}-convert-do-2.service loaded failed failed volmig\n"
    "volmig-web.service loaded active running not ours\n"
)


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Nothing is mounted, remembered or listed but what a test puts there; every tool is installed."""
    rows: list[Mount] = []
    monkeypatch.setattr(mounts, "mounts", lambda: rows)
    monkeypatch.setattr(leftovers, "find", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(leftovers, "_mountpoints", lambda work: [])
    monkeypatch.setattr(leftovers, "LOOKS", tuple(leftovers.LOOKS[:-1]))
    monkeypatch.setattr(store, "STATE", str(tmp_path / "state"))
    return rows


@pytest.fixture(params=["in children", "in this process"])
def shares_asked(request, monkeypatch):
    """What children find is found here too, where it is measured."""
    if request.param == "in this process":
        monkeypatch.setattr(mounts, "apart", lambda asked, seconds: {name: ask() for name, ask in asked.items()})


def report(**answers):
    work = scripted("leftovers", {"lvs": lvs(), "exportfs": Output(0), "systemctl": Output(0), **answers})
    found = work.run(work)
    assert (work.acted, work.touched) == ([], False), "it only asks"
    json.dumps(found)
    return found


def seen(found):
    return {(each["kind"], each["name"], each["job"], each["identity"]) for each in found["things"]}


def a_share(tmp_path, rows, **disks):
    """A mounted share with these disks of the job, by the name of the file."""
    target = tmp_path / "instances"
    place = target / ".volmig" / JOB
    place.mkdir(parents=True)
    for name, text in disks.items():
        (place / name.replace("_", ".")).write_text(text)
    rows.append(Mount("0:50", "/", str(target), "nfs", "filer:/vol", "rw,hard"))
    return place


def test_a_host_without_anything_of_volmig_tells_of_nothing(host):
    found = report()
    assert (found["things"], found["missed"], found["more"], found["shares"]) == ([], [], 0, [])


def test_volumes_are_told_by_their_tags_with_their_uuid(host):
    source = dict(OURS, lv_name="disk", lv_uuid="S", lv_tags=f"volmig,volmig.src={JOB}")
    untagged = dict(OURS, lv_name="volmig_0f8fad5bd9cb", lv_uuid="U", lv_tags="")
    found = report(lvs=lvs(OURS, source, untagged))
    assert seen(found) == {
        ("lv", "vg/lv", JOB, OURS["lv_uuid"]),
        ("fence", "vg/disk", JOB, "S"),
        ("lv", "vg/volmig_0f8fad5bd9cb", "", "U"),
    }


def test_a_tag_that_only_looks_like_ours_names_no_job(host):
    found = report(lvs=lvs(dict(OURS, lv_tags=f"volmig,volmig.job={JOB}x,volmig.job=../..,xvolmig.src={JOB}")))
    assert [each["job"] for each in found["things"]] == [""]


def test_an_export_that_is_in_a_file_only_is_told_too(host, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "EXPORTS", str(tmp_path))
    (tmp_path / f"volmig-{HEX}.exports").write_text(f"{RELAY} 10.0.0.1(rw,sync)\n")
    (tmp_path / "site.exports").write_text("/home *(ro)\n")
    assert seen(report()) == {("export", RELAY, JOB, "10.0.0.1")}
    assert seen(report(exportfs=Output(0, EXPORT % (RELAY, JOB)))) == {("export", RELAY, JOB, "10.0.0.1")}, "once"


def test_mounts_exports_and_units_are_told_and_those_of_others_are_not(host):
    host.append(Mount("254:0", "/", RELAY, "ext4", "/dev/mapper/vg-lv", "rw"))
    host.append(Mount("0:44", "/", THERE, "nfs", "10.0.0.2:" + RELAY, "rw,hard"))
    host.append(Mount("0:45", "/", "/srv/other", "ext4", "/dev/sdb", "rw"))
    found = report(
        blkid=Output(0, f"UUID={JOB}\nTYPE=ext4\n"),
        exportfs=Output(0, EXPORT % (RELAY, JOB) + EXPORT % ("/srv/other", JOB)),
        systemctl=Output(0, UNITS),
    )
    assert seen(found) == {
        ("filesystem", RELAY, JOB, JOB),
        ("mount", THERE, JOB, "10.0.0.2:" + RELAY),
        ("export", RELAY, JOB, "10.0.0.1"),
        ("unit", f"volmig-{HEX}-holder", JOB, f"volmig-{HEX}-holder"),
        ("unit", f"volmig-{HEX}-convert-do-2", JOB, f"volmig-{HEX}-convert-do-2"),
    }


def test_what_a_host_remembers_is_told_by_the_names_of_jobs_alone(host, tmp_path):
    for name in (JOB, "bin", f"{JOB}x"):
        (tmp_path / "state" / name).mkdir(parents=True)
    found = report()
    assert [(each["kind"], each["job"]) for each in found["things"]] == [("memory", JOB)]


@pytest.mark.usefixtures("shares_asked")
def test_disks_on_a_share_are_told_by_inode_with_the_space_that_they_hold(host, tmp_path):
    place = a_share(tmp_path, host, disk_new="a" * 5000, disk_old="b")
    (place / "card.json").write_text("{}")
    found = report()
    new, old = os.stat(place / "disk.new"), os.stat(place / "disk.old")
    assert seen(found) == {
        ("stage", f".volmig/{JOB}/disk.new", JOB, str(new.st_ino)),
        ("backup", f".volmig/{JOB}/disk.old", JOB, str(old.st_ino)),
    }
    staged = next(each for each in found["things"] if each["kind"] == "stage")
    assert (staged["size"], staged["share"], staged["path"]) == (
        new.st_blocks * 512,
        "filer:/vol",
        str(place / "disk.new"),
    )
    assert found["shares"] == [{"source": "filer:/vol", "answered": True}]


@pytest.mark.usefixtures("shares_asked")
def test_a_directory_without_a_disk_is_told_as_one(host, tmp_path):
    place = a_share(tmp_path, host)
    assert seen(report()) == {("directory", f".volmig/{JOB}", JOB, str(os.stat(place).st_ino))}


@pytest.mark.usefixtures("shares_asked")
def test_a_link_that_is_called_like_a_disk_is_not_followed_and_has_no_identity(host, tmp_path):
    place, outside = a_share(tmp_path, host), tmp_path / "outside"
    outside.write_text("not ours")
    (place / "disk.old").symlink_to(outside)
    (place.parent / OTHER).symlink_to(tmp_path)
    assert seen(report()) == {
        ("backup", f".volmig/{JOB}/disk.old", JOB, ""),
        ("directory", f".volmig/{OTHER}", OTHER, ""),
    }


@pytest.mark.usefixtures("shares_asked")
def test_names_that_somebody_chose_to_confuse_come_as_printable_ascii(host, tmp_path):
    place = a_share(tmp_path, host)
    for name in ("<img src=x>", "a\nb", "\x1b[2J", "disk.new\n"):
        (place / name).write_text("")
        (place.parent / name).mkdir()
    host.append(Mount("0:44", "/", THERE, "nfs", "10.0.0.2:/srv/\x1b[2J\udc80", "rw,hard"))
    found = report()
    assert {each["kind"] for each in found["things"]} == {"directory", "mount"}
    assert all(each[name].isprintable() for each in found["things"] for name in ("name", "identity", "path"))


def test_a_dead_share_is_left_behind_in_time_and_the_others_are_told(host, tmp_path, monkeypatch):
    place = a_share(tmp_path, host, disk_new="x")
    dead = tmp_path / "dead"
    dead.mkdir()
    host.append(Mount("0:51", "/", str(dead), "nfs4", "gone:/vol", "rw,hard"))
    listing = leftovers._listing_of_share
    monkeypatch.setattr(leftovers, "SHARES_WITHIN", 1.0)
    monkeypatch.setattr(
        leftovers,
        "_listing_of_share",
        lambda target: (lambda: time.sleep(60)) if target == str(dead) else listing(target),
    )
    found = report()
    assert {each["source"]: each["answered"] for each in found["shares"]} == {"filer:/vol": True, "gone:/vol": False}
    assert [each["path"] for each in found["things"]] == [str(place / "disk.new")]


def test_no_path_below_a_mount_of_ours_is_touched(host, monkeypatch, tmp_path):
    host.append(Mount("0:44", "/", THERE, "nfs", "10.0.0.2:" + RELAY, "rw,hard"))

    def touched(*_, **__):
        raise AssertionError("a hung mount would hold it for ever")

    monkeypatch.setattr(leftovers, "open_directory", touched)
    monkeypatch.setattr(leftovers.os, "stat", touched)
    assert [each["kind"] for each in report()["things"]] == ["mount"]


def test_mount_points_are_told_unless_something_is_mounted_on_them(monkeypatch, tmp_path):
    import re

    (tmp_path / "srv" / HEX).mkdir(parents=True)
    (tmp_path / "srv" / HEX[::-1]).mkdir()
    monkeypatch.setattr(leftovers, "OWN_PATH", re.compile(rf"{tmp_path}/srv/([0-9a-f]{{32}})\Z"))
    covered = {str(tmp_path / "srv" / HEX)}
    listed = leftovers._listing(str(tmp_path / "srv"), covered)()
    assert [path for path, _ in listed] == [str(tmp_path / "srv" / HEX[::-1])]
    assert leftovers._listing(str(tmp_path / "none"), set())() == []


def test_what_cannot_be_listed_is_named_and_the_rest_is_told(host):
    found = report(
        lvs=Output(5, "", "lvs: no such device"), systemctl=Output(1), exportfs=Output(0, EXPORT % (RELAY, JOB))
    )
    assert found["missed"] == ["lv", "fence", "unit"]
    assert [each["kind"] for each in found["things"]] == ["export"]


def test_an_answer_is_capped_and_says_how_much_more_there_is(host, monkeypatch):
    monkeypatch.setattr(leftovers, "CAP", 3)
    rows = [dict(OURS, lv_name=f"lv{number}", lv_uuid=str(number)) for number in range(5)]
    found = report(lvs=lvs(*rows))
    assert (len(found["things"]), found["more"]) == (3, 2)


def test_a_share_is_capped_and_says_how_much_more_there_is(host, tmp_path, monkeypatch, shares_asked):
    """Or what it does not list would be taken for gone, were there nothing else on the hypervisor."""
    place = a_share(tmp_path, host, disk_old="old", disk_new="new").parent
    monkeypatch.setattr(leftovers, "CAP", 3)
    for number in range(4):
        (place / OTHER.replace("1", str(number + 2))).mkdir()
    found = report()
    assert (len(found["things"]), found["more"]) == (3, 3)


def test_the_desk_answers_it_without_a_job_and_keeps_nothing(desk: Desk, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "STATE", str(tmp_path / "none"))
    answer = desk.handle(b'{"verb": "leftovers"}')
    assert answer["state"] == "done"
    assert not (tmp_path / "state").exists()


def test_children_that_ask_apart_answer_fail_or_are_left_alone():
    questions = {
        "good": lambda: [1],
        "bad": lambda: 1 / 0,
        "long": lambda: "x" * (2 << 20),
        "dead": lambda: time.sleep(60),
    }
    assert mounts.apart(questions, 2) == {"good": [1], "bad": None, "long": None, "dead": None}
    assert mounts.apart({}, 1) == {}


def test_unstage_refuses_another_inode_than_the_one_it_is_told(tmp_path, monkeypatch):
    target = tmp_path / "instances"
    place = target / ".volmig" / JOB
    place.mkdir(parents=True)
    (place / "disk.new").write_text("not ours")
    inode = os.stat(place / "disk.new").st_ino
    args = check_args("unstage", {"instances": str(target), "expect_inode": inode + 1}, JOB)
    work = Work(args, JOB, VERBS["unstage"].acts)
    with pytest.raises(Refused) as refused:
        stage.unstage(work)
    assert (refused.value.code, work.touched) == ("foreign-file", False)
    assert stat.S_ISREG(os.stat(place / "disk.new").st_mode)
    right = Work(dict(args, expect_inode=inode), JOB, VERBS["unstage"].acts)
    assert stage.unstage(right) == {"already": False}
    assert not place.exists()
