"""The swap: link the live disk aside, rename the stage over it, and the same discipline back."""

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from . import bases, live_disk, openers, untrusted, virsh
from .act import Act, Args, Failed, Refused, reason, syscall
from .commands import Output, Work
from .job_directory import Place, check_share, directory, label, read_card, remove_place, write_card
from .privileges import as_user
from .qcow2 import check_hazards, check_header, header_of
from .untrusted import opened

READERS_WITHIN = 5.0  # seconds that the swap waits for others to close the disk


def live_path(args: Args) -> str:
    """The path of the instance's disk, as libvirt has it."""
    return "%s/%s/%s" % (args["instances"], args["instance"], args["disk"])


def _dress_act(args: Args, job: str) -> Act:
    return syscall("give %s/disk.new the owner, mode and label of the live disk, fsync" % directory(args, job))


def _exchange_acts(args: Args, job: str, incoming: str, aside: str) -> Tuple[Act, ...]:
    live, there = live_path(args), directory(args, job)
    return (
        syscall("link %s to %s/%s" % (live, there, aside)),
        syscall("fsync %s" % there),
        syscall("rename %s/%s to %s" % (there, incoming, live)),
        syscall("fsync %s and %s" % (live.rsplit("/", 1)[0], there)),
    )


def swap_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What the swap announces: second names of bases, owner and mode of the new disk, link and rename."""
    return (bases.keep_act(args, job), _dress_act(args, job), *_exchange_acts(args, job, "disk.new", "disk.old"))


def swap_back_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What the swap back announces: the same exchange, the new disk becomes disk.rejected."""
    return _exchange_acts(args, job, "disk.old", "disk.rejected")


def purge_acts(args: Args, job: str) -> Tuple[Act, ...]:
    """What the purge announces; the disk is named by its inode."""
    there = directory(args, job)
    return (
        syscall(
            "unlink the disk with inode %s in %s and the second names of its base files, then the directory"
            % (args["backup_inode"], there)
        ),
    )


class Names(NamedTuple):
    """An exchange: `incoming` becomes live, the live disk is kept as `aside`."""

    incoming: str
    aside: str


FORWARD = Names("disk.new", "disk.old")
BACK = Names("disk.old", "disk.rejected")


def state_of(live: Optional[int], incoming: Optional[int], aside: Optional[int], old: int, new: int) -> str:
    """Where an exchange stands, from inode numbers alone (None = no such file): never from an exit status."""
    table: Dict[Tuple[Optional[int], Optional[int], Optional[int]], str] = {
        (old, new, None): "not started",
        (old, new, old): "linked",
        (None, new, old): "nameless",
        (new, None, old): "done",
    }
    if old == new:
        return "unknown"
    if live == old and incoming != new:
        return "stage lost"
    return table.get((live, incoming, aside), "unknown")


class Field:
    """Both directories held open, and what lies in them."""

    def __init__(self, work: Work) -> None:
        args = work.args
        self.args, self.place = args, Place(args, work.job)
        try:
            self.home = self.place.share.folder(args["instance"])
        except FileNotFoundError:
            self.place.close()
            raise Refused(
                "unknown-instance",
                "open %s" % live_path(args),
                "there is no such directory",
                "Check where the instance is.",
            )
        except BaseException:
            self.place.close()
            raise

    def live(self) -> Optional[os.stat_result]:
        """The live disk as lstat(2) shows it now, None when there is none."""
        with self.place.mine():
            return untrusted.look(self.args["disk"], self.home)

    def state(self, names: Names, old: int, new: int) -> str:
        """Where the exchange stands, by inodes alone: one of the states of `state_of`."""
        with self.place.mine():
            live, incoming, aside = [
                one.st_ino if one else None
                for one in (self.live(), self.place.look(names.incoming), self.place.look(names.aside))
            ]
        return state_of(live, incoming, aside, old, new)

    def close(self) -> None:
        """Closes the instance's directory and that of the migration."""
        os.close(self.home)
        self.place.close()

    def __enter__(self) -> "Field":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _field(work: Work) -> Field:
    try:
        return Field(work)
    except FileNotFoundError:
        tried, found = "swap %s" % live_path(work.args), "there is no %s" % directory(work.args, work.job)
        raise Refused("stage-lost", tried, found, "Nothing was changed. Run the step stage again.")


def swap(work: Work) -> Dict[str, Any]:
    """Make the stage the live disk. Every line is a condition, an act, or the proof of the line before."""
    args, names = work.args, FORWARD
    old, new = args["live"]["inode"], args["stage"]["inode"]
    check_share(args)
    with _field(work) as field:
        state = _tidied_state(work, field, names, old, new)
        if state == "done":
            return dict(_swapped(field, old, new), already=True)
        _demand_startable(work, field, state, names)
        _demand_off(work)
        with _as_owner_of(field.live(), field):
            _demand_unlocked(field.home, args["disk"])
            _demand_way_back(field)
        _demand_recorded("the live disk", field.live(), args["live"], 2 if state == "linked" else 1)
        _demand_recorded("the stage", field.place.look("disk.new"), args["stage"], 1)
        with field.place.mine(), opened("disk.new", field.place.fd, path=field.place.path + "/disk.new") as stage:
            check_header(stage, "disk.new", args["virtual_size"])
        # Before the link: a disk with two names is not read, so what it stands on is no longer known then.
        kept = {} if state == "linked" else {"bases": bases.keep(work, field.place)}
        with field.place.mine():
            write_card(field.place, dict(_card(work, field.place), **kept))
        work.must(_dress_act(args, work.job), lambda: _dress(field))
        _demand_no_reader(work)
        _demand_off(work)
        _exchange(work, field, names, old, new)
        return _swapped(field, old, new)


def _exchange(work: Work, field: Field, names: Names, old: int, new: int) -> None:
    """link, fsync, rename, fsync; what happened is read from the inodes, not from what the calls returned."""
    link, sync, rename, sync_both = _exchange_acts(work.args, work.job, *names)
    place, home, disk = field.place, field.home, work.args["disk"]
    with _as_owner_of(field.live(), field):
        if field.state(names, old, new) == "not started":
            output = work.do(
                link, lambda: os.link(disk, names.aside, src_dir_fd=home, dst_dir_fd=place.fd, follow_symlinks=False)
            )
            _demand_same_filesystem(output, link)
        _demand_state(field, names, old, new, "linked", link)
        work.must(sync, lambda: os.fsync(place.fd))
        work.do(rename, lambda: os.rename(names.incoming, disk, src_dir_fd=place.fd, dst_dir_fd=home))
        _demand_state(field, names, old, new, "done", rename)
        work.must(sync_both, lambda: _sync(home, place.fd))


def _demand_same_filesystem(output: Output, link: Act) -> None:
    """A filer draws edges within a share, as of a qtree or a nested dataset, over which no name can be given.

    Trying again would not help, so it is distinguished from a link whose outcome is unknown.
    """
    if output.exit == errno.EXDEV:
        raise Refused(
            "crosses-filesystems",
            link.tried,
            output.said(),
            "The instance's directory and .volmig are in different qtrees or filesystems of the filer, and disks "
            "cannot be exchanged between these. The live disk was not changed. Undo the migration.",
        )


def _readers(work: Work) -> List[str]:
    """Who on this host still has the disk open after READERS_WITHIN seconds.

    This host's NFS client puts a file that is open here aside before it renames another over it (nfs_rename in Linux,
    fs/nfs/dir.c): a crash in between would leave the live disk without a name until the next call.
    """
    path, deadline = live_path(work.args), time.monotonic() + READERS_WITHIN
    while True:
        readers = openers.of_file(path, work.args["instance"])
        if not readers or time.monotonic() > deadline:
            return readers
        time.sleep(0.05)


def _demand_no_reader(work: Work) -> None:
    readers = _readers(work)
    if readers:
        raise Refused(
            "disk-in-use",
            "exchange %s" % live_path(work.args),
            "it is still open on this hypervisor in %s" % ", ".join(readers),
            "End what reads the disk (a backup or a scan of images), then resume.",
        )


def _tidied_state(work: Work, field: Field, names: Names, old: int, new: int) -> str:
    """Where an exchange stands once what an NFS client left half done, when it was cut off, is put right."""
    _give_back_its_name(work, field, names, old, new)
    state = field.state(names, old, new)
    if state == "linked":
        _forget_put_aside(work, field, old)
    return state


def _give_back_its_name(work: Work, field: Field, names: Names, old: int, new: int) -> None:
    """After a rename that was cut off half way: the live disk, which has its name aside, gets that of its own back.

    An NFS client that renames over a file which one of its own processes has open renames that one away first, to
    .nfs…; where it dies in between, nothing is left under the name (nfs_rename in Linux, fs/nfs/dir.c). link never
    replaces anything.
    """
    if field.state(names, old, new) != "nameless":
        return
    place, home, disk = field.place, field.home, work.args["disk"]
    act = syscall("link %s/%s to %s, where nothing is" % (directory(work.args, work.job), names.aside, disk))
    with _as_owner_of(place.look(names.aside), field):
        work.do(
            act,
            lambda: os.link(names.aside, disk, src_dir_fd=place.fd, dst_dir_fd=home, follow_symlinks=False),
            recovery=True,
        )
        work.must(syscall("fsync %s" % work.args["instance"]), lambda: os.fsync(home), recovery=True)
    _demand_state(field, names, old, new, "linked", act)


def _forget_put_aside(work: Work, field: Field, inode: int) -> None:
    """Unlink the .nfs… names of a disk that has others; one whose client lives goes once nobody there has it open."""
    with field.place.mine():
        aside = [name for name in untrusted.names(field.home) if name.startswith(".nfs")]
        found = {name: untrusted.look(name, field.home) for name in aside}
    for name in [name for name, one in found.items() if one is not None and one.st_ino == inode]:
        act = syscall("unlink %s/%s, which an NFS client put aside" % (work.args["instance"], name))
        with _as_owner_of(found[name], field):
            output = work.do(act, partial(os.unlink, name, dir_fd=field.home), recovery=True)
        if output.exit != 0:
            raise Refused(
                "disk-in-use",
                act.tried,
                output.said(),
                "Where it is busy, a process here has the disk open (fuser names it): wait until it ends. Then resume.",
            )


def _sync(*directories: int) -> None:
    for fd in directories:
        os.fsync(fd)


def _demand_state(field: Field, names: Names, old: int, new: int, wanted: str, act: Act) -> None:
    found = field.state(names, old, new)
    if found == wanted:
        return
    if found == "unknown":
        raise Refused(
            "unknown-state",
            act.tried,
            "the disks are in a state that the swap does not know",
            "Inspect both directories manually; change nothing yet.",
        )
    next_step = "Resume or undo: both continue from the current state."
    raise Failed("not-" + wanted, act.tried, "the state is still: %s" % found, next_step)


def _demand_startable(work: Work, field: Field, state: str, names: Names) -> None:
    if state in ("not started", "linked"):
        return
    with field.place.mine():
        seen = {
            "live": field.live(),
            names.incoming: field.place.look(names.incoming),
            names.aside: field.place.look(names.aside),
        }
    inodes = ", ".join(
        "%s %s" % (name, "inode %d" % found.st_ino if found else "absent") for name, found in seen.items()
    )
    code = "stage-lost" if state == "stage lost" else "unknown-state"
    raise Refused(
        code,
        "exchange %s" % live_path(work.args),
        inodes,
        "This call did not change the live disk. Inspect both directories manually.",
    )


def _demand_off(work: Work) -> None:
    found = virsh.state(work, work.args["instance"])
    if found != "shut off":
        raise Refused(
            "not-shut-off",
            "exchange %s" % live_path(work.args),
            "libvirt reports %r" % (found or "no such domain"),
            "Someone started the instance. Stop it and find out who did.",
        )


def _demand_recorded(what: str, found: Optional[os.stat_result], recorded: Dict[str, Any], links: int) -> None:
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_nlink != links:
        raise Refused(
            "unknown-file",
            "use %s" % what,
            "it is %s" % ("absent" if found is None else "mode %o with %d names" % (found.st_mode, found.st_nlink)),
            "Inspect it manually.",
        )
    seen = live_disk.identity(found)
    wrong = [
        "%s %s, recorded %s" % (name, seen[name], recorded[name])
        for name in ("inode", "file_size", "mtime_ns", "uid", "gid", "mode")
        if name in recorded and seen[name] != recorded[name]
    ]
    # The swap itself gives the stage the live disk's owner: a repeated call finds it dressed already.
    if what == "the stage":
        wrong = [word for word in wrong if word.split()[0] in ("inode", "file_size", "mtime_ns")]
    if wrong:
        raise Refused(
            "changed",
            "use %s" % what,
            "; ".join(wrong),
            "It has changed since it was recorded: request approval again.",
        )


F_OFD_SETLK = 37
QEMU_LOCKS = (100, 200)  # permissions in use, permissions denied to others: eight bytes each


def _demand_way_back(field: Field) -> None:
    """The live disk becomes the way back: one that QEMU would follow to other files, or not open, is none."""
    path = live_path(field.args)
    with opened(field.args["disk"], field.home, path=path) as live:
        check_hazards(header_of(live), path)


def _demand_unlocked(home: int, disk: str) -> None:
    """Take and release QEMU's lock bytes; a refusal means that some client on the share has the disk open."""
    try:
        with opened(disk, home, os.O_RDWR) as fd:
            for start in QEMU_LOCKS:
                _take_and_release(fd, start, disk)
    except PermissionError as error:
        raise Refused(
            "not-ours-to-lock",
            "open %s for its lock bytes" % disk,
            reason(error),
            "The filer squashes root and another user owns the disk: give it to the share's owner, or undo.",
        )


def _take_and_release(fd: int, start: int, disk: str) -> None:
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, _lock(fcntl.F_WRLCK, start))
    except OSError as error:
        raise Refused(
            "disk-in-use",
            "lock bytes %d to %d of %s" % (start, start + 7, disk),
            reason(error),
            "A QEMU on some client has the disk open. Find it and stop it.",
        )
    fcntl.fcntl(fd, F_OFD_SETLK, _lock(fcntl.F_UNLCK, start))


def _lock(kind: int, start: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, 8, 0)


def _as_owner_of(live: Optional[os.stat_result], field: Field) -> Any:
    """The share's owner; root only where the live disk belongs to somebody else (then root was not squashed)."""
    owner = field.place.owner
    return as_user(owner.st_uid, owner.st_gid) if live is not None and live.st_uid == owner.st_uid else as_user(0, 0)


def _dress(field: Field) -> None:
    """Owner, mode and label of the live disk for the stage, before it is live; refused when they cannot be equal."""
    live = field.live()
    if live is None:
        raise Refused(
            "unknown-state", "read the live disk", "it is absent", "Inspect the instance's directory manually."
        )
    disk, there = field.args["disk"], field.place.fd
    with _as_owner_of(live, field), opened("disk.new", there) as new, opened(disk, field.home) as old:
        with contextlib.suppress(PermissionError):
            _imitate(new, live, label(old))
        os.fsync(new)
        seen = os.fstat(new)
        differs = [
            name
            for name, equal in (
                ("owner", (seen.st_uid, seen.st_gid) == (live.st_uid, live.st_gid)),
                ("mode", stat.S_IMODE(seen.st_mode) == stat.S_IMODE(live.st_mode)),
                ("label", label(new) == label(old)),
            )
            if not equal
        ]
    if differs:
        raise Refused(
            "attributes-differ",
            "copy the live disk's owner, mode and label to the stage",
            "%s cannot be made equal (%d:%d %o, wanted %d:%d %o)"
            % (
                ", ".join(differs),
                seen.st_uid,
                seen.st_gid,
                stat.S_IMODE(seen.st_mode),
                live.st_uid,
                live.st_gid,
                stat.S_IMODE(live.st_mode),
            ),
            "The filer squashes root and another user owns the live disk: give it to the share's owner, or undo.",
        )


def _imitate(new: int, live: os.stat_result, wanted: str) -> None:
    seen = os.fstat(new)
    if (seen.st_uid, seen.st_gid) != (live.st_uid, live.st_gid):
        os.fchown(new, live.st_uid, live.st_gid)
    if stat.S_IMODE(seen.st_mode) != stat.S_IMODE(live.st_mode):
        os.fchmod(new, stat.S_IMODE(live.st_mode))
    if wanted and label(new) != wanted:
        os.setxattr(new, "security.selinux", wanted.encode() + b"\0")


def _card(work: Work, place: Place) -> Dict[str, Any]:
    args = work.args
    return dict(
        read_card(place),
        instances=args["instances"],
        share_source=args["share_source"],
        instance=args["instance"],
        disk=args["disk"],
        live=args["live"],
        stage=args["stage"],
        virtual_size=args["virtual_size"],
        job=work.job,
    )


def _swapped(field: Field, old: int, new: int) -> Dict[str, Any]:
    return {
        "live_inode": new,
        "backup_inode": old,
        "backup_path": field.place.path + "/disk.old",
        "backup_bytes": _allocated(field, "disk.old"),
        "swapped_at": time.time(),
        "bases": _bases(field),
    }


def _bases(field: Field) -> List[Dict[str, str]]:
    """What the former disk stands on, from the card; others can write it, so only plain words are passed on."""
    listed = read_card(field.place).get("bases", [])
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return [
        {name: untrusted.plain(str(row.get(name, ""))) for name in ("path", "kept", "why")}
        for row in rows[: untrusted.CHAIN_CAP]
    ]


def swap_back(work: Work) -> Dict[str, Any]:
    """Make the backup live again; the new disk is kept as disk.rejected. Nothing swapped means nothing to do."""
    args, names = work.args, BACK
    check_share(args)
    try:
        field = Field(work)
    except FileNotFoundError:
        return _nothing_swapped(work)
    with field:
        new, old = _both(work, field)
        if _tidied_state(work, field, FORWARD, old, new) in ("not started", "linked"):
            return dict(_unlink_aside(work, field, old), already=True)
        state = _tidied_state(work, field, names, new, old)
        if state == "done":
            return dict(_swapped_back(field, old, new), already=True)
        _demand_startable(work, field, state, names)
        _demand_off(work)
        with _as_owner_of(field.live(), field):
            _demand_unlocked(field.home, args["disk"])
        recorded = args.get("stage", {}) if args.get("untouched") else {}
        _demand_recorded(
            "the new disk",
            field.live(),
            {name: recorded[name] for name in ("inode", "mtime_ns", "file_size") if name in recorded},
            2 if state == "linked" else 1,
        )
        _demand_recorded("the backup", field.place.look("disk.old"), {"inode": old}, 1)
        bases.demand(work, field.place, field.place.relative("disk.old"))
        _readers(work)  # waited for, but no reader keeps the instance from its old disk
        _exchange(work, field, names, new, old)
        return dict(_swapped_back(field, old, new), untouched=bool(recorded))


def _swapped_back(field: Field, old: int, new: int) -> Dict[str, Any]:
    return {"live_inode": old, "rejected_inode": new, "rejected_bytes": _allocated(field, "disk.rejected")}


def _allocated(field: Field, name: str) -> int:
    """Bytes that the kept disk holds on the share; 0 where it is not there."""
    found = field.place.look(name)
    return found.st_blocks * 512 if found else 0


def _nothing_swapped(work: Work) -> Dict[str, Any]:
    """Without the job's directory there is no backup: good only if the live disk is the former one."""
    found = live_disk.live(work.args["instances"], live_path(work.args))["inode"]
    if found != work.args.get("live", {}).get("inode", found):
        raise Refused(
            "unknown-inode",
            "swap back %s" % live_path(work.args),
            "the job's directory is gone and the live disk has inode %d" % found,
            "Inspect both directories manually.",
        )
    return {"live_inode": found, "already": True}


def _both(work: Work, field: Field) -> Tuple[int, int]:
    """Inodes of the new and of the former disk, as recorded by the swap (request, or the card on the share)."""
    args, card = work.args, read_card(field.place)
    new = work.made.get("live_inode") or args.get("stage", {}).get("inode") or card.get("stage", {}).get("inode")
    old = work.made.get("backup_inode") or args.get("live", {}).get("inode") or card.get("live", {}).get("inode")
    if not new or not old:
        raise Refused(
            "unknown-identity",
            "swap back %s" % live_path(args),
            "no inode numbers are recorded",
            "Inspect both directories manually.",
        )
    return int(new), int(old)


def _unlink_aside(work: Work, field: Field, old: int) -> Dict[str, Any]:
    """Undo of a swap that died after the link: the live disk's second name goes, the live disk itself stays."""
    with _as_owner_of(field.live(), field):
        aside, live = field.place.look("disk.old"), field.live()
        if aside is not None and live is not None and aside.st_ino == live.st_ino == old and live.st_nlink == 2:
            work.must(
                syscall("unlink %s/disk.old (a second name of the live disk)" % field.place.path),
                lambda: os.unlink("disk.old", dir_fd=field.place.fd),
                recovery=True,
            )
    bases.release(work, field.place, "%(instance)s/%(disk)s" % work.args)
    return {"live_inode": old}


def purge(work: Work) -> Dict[str, Any]:
    """Remove the disk that is not in use any more; irreversible, so everything about it must be as recorded."""
    args = work.args
    try:
        field = Field(work)
    except FileNotFoundError:
        return {"already": True}
    with field:
        live = field.live()
        if live is None or live.st_ino != args["live_inode"]:
            raise Refused(
                "unknown-inode",
                "delete the unused disk",
                "the live disk has inode %s, recorded %d" % (live and live.st_ino, args["live_inode"]),
                "The live disk is another file than the swap left there, as after a resize or a rebuild. "
                "If the instance has its data, delete %s by hand." % field.place.path,
            )
        _forget_put_aside(work, field, args["backup_inode"])
        unused = _unused(field, args["backup_inode"])
        second = bases.kept_names(field.place)
        bases.release(work, field.place, "%(instance)s/%(disk)s" % args)
        with _as_owner_of(live, field):
            for name in unused:
                _demand_unlocked(field.place.fd, name)
            work.must(
                purge_acts(args, work.job)[0], lambda: remove_place(field.place, work.job, unused + _papers(field))
            )
    return {"purged": unused + second}


def _unused(field: Field, inode: int) -> List[str]:
    """The one backup of the recorded inode; refuses anything else that lies there."""
    with field.place.mine():
        disks = [name for name in untrusted.names(field.place.fd) if name.startswith("disk.")]
        found = {name: field.place.look(name) for name in disks}
    strange = [
        name
        for name, one in found.items()
        if one is None or one.st_ino != inode or one.st_nlink != 1 or not stat.S_ISREG(one.st_mode)
    ]
    if strange:
        raise Refused(
            "unknown-files",
            "purge %s" % field.place.path,
            "not the recorded backup: %s" % ", ".join(strange),
            "Inspect it manually.",
        )
    return disks


def _papers(field: Field) -> List[str]:
    return [
        name
        for name in untrusted.names(field.place.fd)
        if name in ("card.json", "README", "card.json.tmp", "README.tmp")
    ]
