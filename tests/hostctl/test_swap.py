"""The swap with real links and renames: every state judged, every crash resumed, the live disk never absent or torn."""

import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import cli, live_disk, mounts, openers, swap, virsh
from hosts.remote.hostctl.act import Failed, Refused
from hosts.remote.hostctl.commands import Work
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.store import Store
from hosts.remote.hostctl.swap import state_of
from hosts.remote.hostctl.verbs import VERBS

from .conftest import qcow2

INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
SIZE = 1 << 20


class Crash(BaseException):
    """The process is killed here."""


class Fragile(Work):
    """Dies before or after the nth act, or reports failure of an act that was done."""

    def __init__(self, *args, at=None, how="before", **more):
        super().__init__(*args, **more)
        self.at, self.how, self.count = at, how, -1

    def do(self, act, function=None, **how):
        self.count += 1
        if self.count == self.at and self.how == "before":
            raise Crash
        output = super().do(act, function, **how)
        if self.count == self.at and self.how == "after":
            raise Crash
        return output._replace(exit=5) if self.count == self.at and self.how == "lies" else output


@pytest.fixture
def share(tmp_path, job, monkeypatch):
    """instances/ with a live disk and a stage; libvirt says what `share.state` says."""
    home, place = tmp_path / INSTANCE, tmp_path / ".volmig" / job
    home.mkdir()
    place.mkdir(parents=True)
    live, new = home / "disk.local", place / "disk.new"
    live.write_bytes(b"old" * 1000)
    live.chmod(0o640)
    new.write_bytes(qcow2(SIZE))
    share = SimpleNamespace(
        home=home,
        place=place,
        live=live,
        new=new,
        old=place / "disk.old",
        rejected=place / "disk.rejected",
        state="shut off",
        job=job,
    )
    share.args = {
        "instances": str(tmp_path),
        "instance": INSTANCE,
        "disk": "disk.local",
        "share_source": "filer:/vol",
        "virtual_size": SIZE,
        "live": live_disk.identity(live.stat()),
        "stage": live_disk.identity(new.stat()),
    }
    share.inodes = (live.stat().st_ino, new.stat().st_ino)
    monkeypatch.setattr(swap, "check_share", lambda args: None)
    monkeypatch.setattr(virsh, "state", lambda work, instance: share.state)
    return share


def work(share, verb="swap", made=None, at=None, how="before", **more):
    args = dict(share.args, **more, **({"made": made} if made else {}))
    return Fragile(args, share.job, VERBS[verb].acts, at=at, how=how)


def back(share, **more):
    old, new = share.inodes
    return swap.swap_back(work(share, "swap_back", made={"live_inode": new, "backup_inode": old}, **more))


def inode(path):
    return path.stat().st_ino if path.exists() else None


def layout(share):
    return tuple(inode(path) for path in (share.live, share.new, share.old, share.rejected))


def test_swap_makes_the_stage_live_and_keeps_the_former_disk(share):
    old, new = share.inodes
    evidence = swap.swap(work(share))
    assert layout(share) == (new, None, old, None)
    assert (evidence["live_inode"], evidence["backup_inode"]) == (new, old)
    assert stat.S_IMODE(share.live.stat().st_mode) == 0o640
    assert share.old.read_bytes() == b"old" * 1000


@pytest.fixture
def reader(share):
    """A process that has the live disk open until it is killed."""
    words = ["sleep", "infinity"]
    with share.live.open("rb") as disk, subprocess.Popen(words, stdin=disk) as process:
        yield process
        process.kill()


def test_a_swap_is_refused_unchanged_while_a_process_here_reads_the_disk(share, reader, monkeypatch):
    monkeypatch.setattr(swap, "READERS_WITHIN", 0)
    before = layout(share)
    with pytest.raises(Refused) as refused:
        swap.swap(work(share))
    assert (refused.value.code, layout(share)) == ("disk-in-use", before)
    assert f"sleep (process {reader.pid})" in refused.value.found


def test_a_swap_waits_for_a_process_here_that_closes_the_disk_in_time(share, reader):
    new = share.inodes[1]
    threading.Timer(0.2, reader.kill).start()
    swap.swap(work(share))
    assert inode(share.live) == new


def test_a_reader_does_not_keep_the_instance_from_its_old_disk(share, monkeypatch):
    old, _new = share.inodes
    swap.swap(work(share))
    monkeypatch.setattr(swap, "READERS_WITHIN", 0)
    with share.live.open("rb") as disk, subprocess.Popen(["sleep", "infinity"], stdin=disk) as process:
        back(share)
        process.kill()
    assert inode(share.live) == old


def test_the_guest_of_the_disk_is_no_reader(share):
    # Like QEMU's, its command line has the instance's UUID as one word (-uuid).
    guest = [sys.executable, "-c", "input()", "-uuid", INSTANCE]
    with (
        share.live.open("rb") as disk,
        subprocess.Popen(guest, stdin=subprocess.PIPE, pass_fds=[disk.fileno()]) as held,
    ):
        disk.close()
        assert openers.of_file(str(share.live), INSTANCE) == []
        assert [held.pid] == [int(word.split()[-1].rstrip(")")) for word in openers.of_file(str(share.live))]
        held.kill()


def test_what_ran_is_what_was_announced(share):
    doing = work(share)
    swap.swap(doing)
    keep, *others = [act.text for act in swap.swap_acts(share.args, share.job)]
    assert [entry["text"] for entry in doing.commands if not entry["probe"]] == others
    assert keep.startswith("link each file that"), "and this disk stands on none"


def test_swap_again_changes_nothing(share):
    swap.swap(work(share))
    before, doing = layout(share), work(share)
    assert swap.swap(doing)["already"]
    assert layout(share) == before
    assert doing.touched is False


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("at", range(5))
def test_killed_at_any_act_the_live_disk_is_whole_and_the_next_call_finishes(share, at, how):
    old, new = share.inodes
    with pytest.raises(Crash):
        swap.swap(work(share, at=at, how=how))
    assert inode(share.live) in share.inodes
    assert old in (inode(share.live), inode(share.old))
    swap.swap(work(share))
    assert layout(share) == (new, None, old, None)


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("at", range(5))
def test_killed_at_any_act_the_swap_can_be_taken_back(share, at, how):
    old, new = share.inodes
    with pytest.raises(Crash):
        swap.swap(work(share, at=at, how=how))
    back(share)
    assert inode(share.live) == old
    assert new in (inode(share.new), inode(share.rejected))
    assert share.live.stat().st_nlink == 1


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("at", range(4))
def test_a_rollback_killed_at_any_act_is_finished_by_the_next(share, at, how):
    swap.swap(work(share))
    old, new = share.inodes
    with pytest.raises(Crash):
        back(share, at=at, how=how)
    assert inode(share.live) in share.inodes
    back(share)
    assert layout(share) == (old, None, None, new)


def cut_off(share, aside):
    """A rename as an NFS client leaves it that dies amid one over an open file: what was to be replaced has no name."""
    os.link(share.live, aside)
    share.live.unlink()


def test_a_rename_that_left_the_live_disk_without_a_name_is_finished_by_the_next_call(share):
    old, new = share.inodes
    cut_off(share, share.old)
    swap.swap(work(share))
    assert layout(share) == (new, None, old, None)


def test_a_swap_that_left_the_live_disk_without_a_name_is_taken_back(share):
    old, new = share.inodes
    cut_off(share, share.old)
    back(share)
    assert (layout(share), share.live.stat().st_nlink) == ((old, new, None, None), 1)


def test_a_rollback_that_left_the_live_disk_without_a_name_is_finished_by_the_next_call(share):
    old, new = share.inodes
    swap.swap(work(share))
    cut_off(share, share.rejected)
    back(share)
    assert layout(share) == (old, None, None, new)


def put_aside(share, path):
    """What the client called it meanwhile, and would have removed, had its hypervisor not lost its power."""
    os.link(path, share.home / ".nfs0000000000a1b2c300000007")


def test_a_name_that_a_hypervisor_without_power_forgot_does_not_stay(share):
    old, new = share.inodes
    put_aside(share, share.live)
    cut_off(share, share.old)
    swap.swap(work(share))
    assert layout(share) == (new, None, old, None)
    assert (share.old.stat().st_nlink, os.listdir(share.home)) == (1, ["disk.local"])


def test_a_name_that_was_forgotten_after_the_swap_goes_with_the_backup(share):
    swap.swap(work(share))
    put_aside(share, share.old)
    (share.home / ".nfs0000000000a1b2c400000008").write_bytes(b"of another file")
    purge(share)
    assert sorted(os.listdir(share.home)) == [".nfs0000000000a1b2c400000008", "disk.local"]


def test_a_disk_that_somebody_here_has_open_yet_is_waited_for(share, monkeypatch):
    put_aside(share, share.live)
    cut_off(share, share.old)

    def busy(path, **how):
        raise OSError(errno.EBUSY, "Device or resource busy", path)

    for call in (lambda: swap.swap(work(share)), lambda: back(share)):
        with monkeypatch.context() as nfs:
            nfs.setattr(os, "unlink", busy)
            with pytest.raises(Refused) as refused:
                call()
        assert (refused.value.code, inode(share.live)) == ("disk-in-use", share.inodes[0])
    swap.swap(work(share))
    assert layout(share)[0] == share.inodes[1]


def test_a_forgotten_name_does_not_keep_the_swap_from_being_taken_back(share):
    put_aside(share, share.live)
    cut_off(share, share.old)
    back(share)
    assert (share.live.stat().st_nlink, share.old.exists()) == (1, False)


def test_a_name_that_is_missing_for_another_reason_is_left_for_a_person(share):
    share.old.write_bytes(b"some other disk")
    share.live.unlink()
    with pytest.raises(Refused) as refused:
        swap.swap(work(share))
    assert (refused.value.code, share.live.exists()) == ("unknown-state", False)


@pytest.mark.parametrize("at", [1, 3])
def test_an_act_that_was_done_but_reported_as_failed_counts_as_done(share, at):
    old, new = share.inodes
    swap.swap(work(share, at=at, how="lies"))
    assert layout(share) == (new, None, old, None)


@pytest.mark.parametrize("call", ["link", "rename"])
def test_an_act_that_really_failed_leaves_the_old_disk_live(share, call, monkeypatch):
    def broken(*args, **more):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, broken) if call == "link" else monkeypatch.setattr(
        os, call, lambda *args, real=os.rename, **more: real(*args, **more) if ".tmp" in str(args[0]) else broken()
    )
    with pytest.raises(Failed):
        swap.swap(work(share))
    assert inode(share.live) == share.inodes[0]


def test_rollback_keeps_both_disks_and_repeats(share):
    swap.swap(work(share))
    back(share, untouched=True)
    old, new = share.inodes
    assert layout(share) == (old, None, None, new)
    assert back(share)["already"]


def test_rollback_of_nothing_does_nothing(share):
    before = layout(share)
    assert back(share)["already"]
    assert layout(share) == before


def test_rollback_without_consent_refuses_a_disk_that_was_written(share):
    swap.swap(work(share))
    os.utime(share.live, ns=(1, 1))
    with pytest.raises(Refused) as refused:
        back(share, untouched=True)
    assert refused.value.code == "changed"
    back(share)
    assert inode(share.live) == share.inodes[0]


STATES = [None, 1, 2, 3]


@pytest.mark.parametrize(("live", "new", "old"), itertools.product(STATES, repeat=3))
def test_the_table_of_states_allows_an_act_only_where_it_is_safe(live, new, old):
    expected = {(1, 2, None): "not started", (1, 2, 1): "linked", (None, 2, 1): "nameless", (2, None, 1): "done"}
    if live == 1 and new != 2:
        assert state_of(live, new, old, 1, 2) == "stage lost"
    else:
        assert state_of(live, new, old, 1, 2) == expected.get((live, new, old), "unknown")


def spoil(share, how):
    stranger = share.home / "stranger"
    stranger.write_bytes(qcow2(SIZE))
    {
        "running": lambda: setattr(share, "state", "running"),
        "gone": lambda: setattr(share, "state", ""),
        "live replaced": lambda: stranger.rename(share.live),
        "live changed": lambda: share.live.write_bytes(b"x"),
        "live touched": lambda: os.utime(share.live, ns=(1, 1)),
        "live has another name": lambda: os.link(share.live, share.home / "again"),
        "live is a link": lambda: (share.live.rename(share.home / "real"), share.live.symlink_to("real")),
        "live mode changed": lambda: share.live.chmod(0o666),
        "stage replaced": lambda: stranger.rename(share.new),
        "stage changed": lambda: share.new.write_bytes(b"x" * 65536),
        "stage touched": lambda: os.utime(share.new, ns=(1, 1)),
        "stage has another name": lambda: os.link(share.new, share.place / "again"),
        "stage gone": share.new.unlink,
        "backup foreign": lambda: stranger.rename(share.old),
        "size": lambda: share.args.update(virtual_size=5),
    }[how]()


@pytest.mark.parametrize(
    "how",
    [
        "running",
        "gone",
        "live replaced",
        "live changed",
        "live touched",
        "live has another name",
        "live is a link",
        "live mode changed",
        "stage replaced",
        "stage changed",
        "stage touched",
        "stage has another name",
        "stage gone",
        "backup foreign",
        "size",
    ],
)
def test_swap_refuses_and_touches_nothing_when_anything_is_not_as_recorded(share, how):
    spoil(share, how)
    before, doing = layout(share), work(share)
    with pytest.raises(Refused):
        swap.swap(doing)
    assert layout(share) == before
    assert doing.touched is False


def test_swap_refuses_where_there_is_no_libvirt(share, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(swap, "check_share", lambda args: None)
    monkeypatch.setattr(virsh, "installed", lambda: False)
    with pytest.raises(Refused) as refused:
        swap.swap(work(share))
    assert refused.value.code == "no-libvirt"


@pytest.mark.parametrize("start", swap.QEMU_LOCKS)
def test_swap_refuses_a_disk_whose_lock_bytes_somebody_holds(share, start):
    import subprocess
    import sys

    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_SH, 1, int(sys.argv[2]));"
            "print(flush=True); sys.stdin.read()",
            str(share.live),
            str(start + 3),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        with pytest.raises(Refused) as refused:
            swap.swap(work(share))
    finally:
        holder.communicate()
    assert refused.value.code == "disk-in-use"


def test_another_share_than_planned_is_refused(share, monkeypatch):
    from hosts.remote.hostctl.job_directory import check_share

    with pytest.raises(Refused) as refused:
        check_share(share.args)
    assert refused.value.code == "unknown-share"


def purge(share, **more):
    return swap.purge(
        work(
            share,
            "purge",
            backup_inode=more.pop("backup", share.inodes[0]),
            live_inode=more.pop("now", share.inodes[1]),
        )
    )


def test_purge_removes_exactly_the_recorded_backup(share):
    swap.swap(work(share))
    purge(share)
    assert layout(share)[:3] == (share.inodes[1], None, None)
    assert not share.place.exists()
    assert purge(share)["already"]


@pytest.mark.parametrize("wrong", ["backup", "now"])
def test_purge_refuses_any_other_inode(share, wrong):
    swap.swap(work(share))
    before = layout(share)
    with pytest.raises(Refused):
        purge(share, **{wrong: 5})
    assert layout(share) == before


def test_the_former_disk_outlives_its_instance_and_is_then_not_purged(share):
    swap.swap(work(share))
    shutil.rmtree(share.home)  # as Nova does once a resize is confirmed, or the instance deleted
    with pytest.raises(Refused):
        purge(share)
    assert (inode(share.old), share.old.read_bytes()) == (share.inodes[0], b"old" * 1000)


def test_purge_refuses_before_the_swap(share):
    with pytest.raises(Refused):
        purge(share)
    assert share.new.exists()


# What else may stand in the way


def refused_with(code, act, error=Refused):
    with pytest.raises(error) as refused:
        act()
    assert refused.value.code == code


def test_one_inode_cannot_be_both_disks():
    assert state_of(7, 7, None, 7, 7) == "unknown"


@pytest.mark.parametrize(("gone", "code"), [("home", "unknown-instance"), ("place", "stage-lost")])
def test_without_one_of_the_directories_nothing_is_swapped(share, gone, code):
    directory = getattr(share, gone)
    directory.rename(directory.with_name("elsewhere"))
    refused_with(code, lambda: swap.swap(work(share)))
    assert len(list(directory.with_name("elsewhere").iterdir())) == 1


def test_a_link_in_place_of_the_instances_directory_is_not_followed(share, tmp_path):
    share.home.rename(tmp_path / "elsewhere")
    share.home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="is not a directory"):
        swap.swap(work(share))
    assert inode(tmp_path / "elsewhere/disk.local") == share.inodes[0]


def test_disks_that_change_between_link_and_rename_are_left_for_a_person(share, monkeypatch):
    real = os.link

    def link(*names, **where):
        real(*names, **where)
        (share.place / "somebody's").write_bytes(b"somebody's")  # beside the other, so that it has an inode of its own
        (share.place / "somebody's").rename(share.new)
        share.live.unlink()

    monkeypatch.setattr(swap.os, "link", link)
    refused_with("unknown-state", lambda: swap.swap(work(share)))
    assert (inode(share.old), share.new.read_bytes()) == (share.inodes[0], b"somebody's")


def test_a_rename_that_does_nothing_is_told(share, monkeypatch):
    def nothing(*names, **where):
        if names[1] == "disk.local":
            return None
        return real(*names, **where)

    real = os.rename
    monkeypatch.setattr(swap.os, "rename", nothing)
    refused_with("not-done", lambda: swap.swap(work(share)), Failed)
    assert inode(share.live) == share.inodes[0]


def test_a_disk_that_may_not_be_opened_for_its_locks_is_not_exchanged(share, monkeypatch):
    real = os.open

    def squashed(name, flags, *mode, **where):
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(name, flags, *mode, **where)

    before = layout(share)
    monkeypatch.setattr(swap.os, "open", squashed)
    refused_with("not-ours-to-lock", lambda: swap.swap(work(share)))
    assert layout(share) == before


@pytest.mark.parametrize("way", ["chmod", "chown"])
def test_a_stage_that_cannot_be_dressed_as_the_live_disk_is_not_put_in_its_place(share, monkeypatch, way):
    def squashed(*_):
        raise PermissionError(1, "Operation not permitted")

    if way == "chown":
        os.chown(share.new, 65534, 65534)
    monkeypatch.setattr(swap.os, "fchmod", squashed)
    monkeypatch.setattr(swap.os, "fchown", squashed)
    share.new.chmod(0o600)
    share.args["stage"] = live_disk.identity(share.new.stat())
    before = layout(share)
    refused_with("attributes-differ", lambda: swap.swap(work(share)))
    assert layout(share) == before


def test_the_label_of_the_live_disk_is_given_to_the_stage(share, monkeypatch):
    labels = {share.inodes[0]: "system_u:object_r:svirt_image_t:s0", share.inodes[1]: ""}

    def put(fd, name, value):
        labels[os.fstat(fd).st_ino] = value.decode().rstrip("\0")

    monkeypatch.setattr(swap, "label", lambda fd: labels[os.fstat(fd).st_ino])
    monkeypatch.setattr(swap.os, "setxattr", put)
    swap.swap(work(share))
    assert labels[share.inodes[1]] == labels[share.inodes[0]]


LABEL = b"system_u:object_r:svirt_image_t:s0:c12,c34\0"


def test_a_label_in_the_file_itself_is_given_to_the_stage(share):
    """As a kernel with SELinux stores it; one without stores it as well, and enforces nothing."""
    os.setxattr(share.live, "security.selinux", LABEL)
    swap.swap(work(share))
    assert os.getxattr(share.live, "security.selinux") == os.getxattr(share.old, "security.selinux") == LABEL


def test_a_label_that_the_filer_does_not_store_is_refused_before_anything_is_exchanged(share, monkeypatch):
    os.setxattr(share.live, "security.selinux", LABEL)

    def not_permitted(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(swap.os, "setxattr", not_permitted)
    before = layout(share)
    refused_with("attributes-differ", lambda: swap.swap(work(share)))
    assert layout(share) == before


def test_a_link_that_the_filer_refuses_at_the_edge_of_a_qtree_is_told_and_changes_nothing(share, monkeypatch):
    def refused_at_the_edge(*_, **__):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    before = layout(share)
    with monkeypatch.context() as edge:
        edge.setattr(swap.os, "link", refused_at_the_edge)
        refused_with("crosses-filesystems", lambda: swap.swap(work(share)))
    assert layout(share) == before
    assert back(share)["already"] is True, "there is nothing to take back"
    assert layout(share) == before


def test_a_swap_that_left_no_directory_was_none_or_is_a_riddle(share):
    share.new.unlink()
    share.place.rmdir()
    assert back(share) == {"live_inode": share.inodes[0], "already": True}
    share.live.rename(share.home / "moved")
    share.live.write_bytes(b"another")
    refused_with("unknown-inode", lambda: back(share))


def test_without_recorded_inodes_nothing_is_swapped_back(share):
    swap.swap(work(share))
    (share.place / "card.json").unlink()
    for name in ("live", "stage"):
        del share.args[name]
    before = layout(share)
    refused_with("unknown-identity", lambda: swap.swap_back(work(share, "swap_back")))
    assert layout(share) == before


# By hand, while volmig is down


@pytest.fixture
def by_hand(share, tmp_path, monkeypatch, capsys):
    """What `hostctl rollback JOB` prints and leaves; the share is mounted where it lies, beside two other things."""
    other = tmp_path / "other"
    other.mkdir()
    table = [("ext4", "/dev/sda1", "/"), ("nfs", "filer:/other", str(other)), ("nfs4", "filer:/vol", str(tmp_path))]
    rows = [Mount("0:9", "/", target, fstype, source, "rw") for fstype, source, target in table]
    monkeypatch.setattr(mounts, "mounts", lambda: rows)
    monkeypatch.setattr(
        cli, "Store", lambda job: Store(job, str(tmp_path / "memory"), str(tmp_path / "memory/progress"))
    )

    def rollback():
        status = cli.main("rollback", share.job)
        return status, json.loads(capsys.readouterr().out)

    return SimpleNamespace(rollback=rollback, rows=rows, kept=cli.Store(share.job))


def test_by_hand_the_old_disk_comes_back_from_what_the_card_says_and_once(share, by_hand):
    swap.swap(work(share))
    old, new = share.inodes
    status, answer = by_hand.rollback()
    assert (status, answer["state"], answer["evidence"]["live_inode"]) == (0, "done", old)
    assert (inode(share.live), inode(share.rejected), share.old.exists()) == (old, new, False)
    status, answer = by_hand.rollback()
    assert (status, answer["evidence"]["already"], inode(share.live)) == (0, True, old)


def test_by_hand_nothing_is_exchanged_under_an_instance_that_runs(share, by_hand):
    swap.swap(work(share))
    share.state = "running"
    before = layout(share)
    status, answer = by_hand.rollback()
    assert (status, answer["state"], answer["error"]["code"]) == (1, "refused", "not-shut-off")
    assert layout(share) == before


@pytest.mark.parametrize("spoilt", ["no swap", "no share", "not JSON", "a list", "a link", "another path"])
def test_by_hand_a_card_that_cannot_be_believed_moves_nothing(share, by_hand, spoilt):
    if spoilt != "no swap":
        swap.swap(work(share))
    card = share.place / "card.json"
    if spoilt == "no share":
        del by_hand.rows[2]
    elif spoilt == "a link":
        card.rename(share.place / "elsewhere")
        card.symlink_to(share.place / "elsewhere")
    elif spoilt == "another path":
        card.write_text(json.dumps(json.loads(card.read_text()) | {"disk": "../../etc/shadow"}))
    elif spoilt != "no swap":
        card.write_text({"not JSON": "{", "a list": "[1]"}[spoilt])
    before = layout(share)
    status, answer = by_hand.rollback()
    code = "bad-request" if spoilt == "another path" else "no-card"
    assert (status, answer["state"], answer["error"]["code"]) == (1, "refused", code)
    assert layout(share) == before


def test_by_hand_a_step_that_is_at_work_is_not_disturbed(share, by_hand, monkeypatch):
    swap.swap(work(share))
    before = layout(share)
    monkeypatch.setattr(cli, "LOCK_WITHIN", 0.1)
    by_hand.kept.open()
    with by_hand.kept.locked("lock", 1):
        status, answer = by_hand.rollback()
    assert (status, answer["state"]) == (1, "busy")
    assert layout(share) == before
