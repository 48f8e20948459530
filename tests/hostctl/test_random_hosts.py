"""Verbs that destroy, on hosts in random states: whatever lies about, nothing that is not this job's is touched.

What is a job's own is known by marker and recorded identity together. The machine below keeps volumes, mounts and
contents and does what LVM, mkfs and umount do, sometimes only to say afterwards that it failed, or not at all.
"""

import os
import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from hosts.remote.hostctl import lvm, mountpoints, mounts
from hosts.remote.hostctl.act import Stop
from hosts.remote.hostctl.commands import Output, Work
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.verbs import VERBS
from tests.hostctl.conftest import qcow2
from tests.hostctl.test_guards import Remembered, lvs, vgs

JOB, OTHER = "0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7"
SIZE, EXTENT = 8 << 20, 4 << 20
FS = "9b2c3d4e-0000-4111-8222-933334444555"
NAME = "volmig_" + JOB[:8]
EVERY = ("lv_create", "lv_remove", "fs_create", "fs_remove", "lv_fence", "lv_unfence")
INSTANCE = "3f8df945-7cbd-46e0-8ad1-d51013cf706b"


@dataclass
class Volume:
    uuid: str
    name: str = NAME
    size: int = SIZE
    tags: frozenset[str] = frozenset()
    open: bool = False
    active: bool = True
    permission: str = "writeable"
    content: str = "tenant"

    def row(self, minor):
        return {
            **{"vg_name": "vg", "lv_name": self.name, "lv_uuid": self.uuid, "lv_size": str(self.size)},
            **{"lv_attr": f"-wi-{'a' if self.active else '-'}-----", "lv_tags": ",".join(sorted(self.tags))},
            **{"lv_device_open": "open" if self.open else "", "lv_permissions": self.permission},
            **{"lv_kernel_major": "254", "lv_kernel_minor": str(minor), "lv_active": "active" if self.active else ""},
            **{"lv_health_status": "", "pool_lv": "", "origin": ""},
        }


@dataclass
class Machine:
    """A hypervisor; `luck` decides which of its tools fail, and how."""

    luck: random.Random
    volumes: list[Volume] = field(default_factory=list)
    mounts: list[Mount] = field(default_factory=list)
    exported: bool = False

    def of(self, device):
        return next((each for each in self.volumes if device in (f"/dev/vg/{each.name}", f"vg/{each.name}")), None)

    def number(self, volume):
        return f"254:{self.volumes.index(volume)}"

    def answer(self, argv):
        program, text = argv[0], " ".join(argv)
        if program == "lvs":
            asked = [each for each in self.volumes if "-S" not in argv or f'lv_name="{each.name}"' in text]
            return lvs(*[each.row(self.volumes.index(each)) for each in asked])
        if program == "vgs":
            free = str(self.luck.choice([0, SIZE, 10 * SIZE]))
            figures = {"vg_size": str(99 * SIZE), "vg_free": free, "vg_extent_size": str(EXTENT)}
            return vgs({"vg_name": "vg", "vg_uuid": "u", "vg_attr": "wz--n-", "vg_missing_pv_count": "0", **figures})
        if program == "blkid":
            volume = self.of(argv[-1])
            content = volume.content if volume else ""
            found = {"": "", "tenant": "TYPE=xfs\nUUID=1\n", "ours": f"TYPE=ext4\nUUID={FS}\n"}[content]
            return Output(0 if found else 2, found)
        if program == "exportfs":
            return Output(0, f"/srv/{JOB} 10.0.0.1(rw)\n" if self.exported else "")
        return Output(0)

    def act(self, argv):
        program, volume = argv[0], self.of(argv[-1])
        if program == "lvcreate":
            tags = frozenset(argv[at + 1] for at, word in enumerate(argv) if word == "--addtag")
            self.volumes.append(Volume("made-now", argv[argv.index("-n") + 1], tags=tags, content=""))
        elif program == "lvremove":
            self.volumes = [each for each in self.volumes if not self.is_selected(each, argv[argv.index("-S") + 1])]
        elif program == "lvchange" and volume:
            self.change(volume, argv)
        elif program == "mkfs.ext4":
            volume.content = "ours" if argv[argv.index("-U") + 1] == FS else "strange"
        elif program == "mount":
            self.mounts.append(Mount(self.number(self.of(argv[-2])), "/", argv[-1], "ext4", argv[-2], "rw"))
        elif program == "umount":
            top = next((each for each in reversed(self.mounts) if each.target == argv[-1]), None)
            self.mounts = [each for each in self.mounts if each is not top]

    def change(self, volume, argv):
        for at, word in enumerate(argv):
            if word == "--addtag":
                volume.tags |= {argv[at + 1]}
            elif word == "--deltag":
                volume.tags -= {argv[at + 1]}
        volume.permission = {"-pr": "read-only", "-prw": "writeable"}.get(argv[1], volume.permission)
        volume.active = {"-an": False, "-ay": True}.get(argv[1], volume.active)

    def is_selected(self, volume, select):
        uuid, tags = select.split(" && ")
        return uuid == f'lv_uuid="{volume.uuid}"' and tags[len("lv_tags={") : -1].strip('"') in volume.tags


class Doing(Work):
    """A verb at work on the machine."""

    def __init__(self, machine, verb, args, memory):
        self.machine = machine
        super().__init__(args, JOB, VERBS[verb].acts, Remembered(**memory))

    def _run(self, act, probe, how):
        luck = self.machine.luck.random()
        if probe:
            return Output(5, "", "no answer") if luck < 0.03 else self.machine.answer(act.argv)
        if luck > 0.05:
            self.machine.act(act.argv)
        return Output(1 if luck < 0.12 else 0)

    def _call(self, act, function):
        if not act.text.startswith("zero "):
            return super()._call(act, function)
        self.machine.of(act.text.split()[1].rstrip(",")).content = ""
        return Output(0)


def strangers(luck, known):
    """Volumes that are not this job's: each lacks its marker, or is not the one that was recorded."""
    marks = [
        set(),
        {"volmig"},
        {"volmig", f"volmig.job={OTHER}"},
        {"volmig", f"volmig.src={OTHER}"},
        {"volmig", f"volmig.src={JOB}"},
    ]
    if known:
        marks.append({"volmig", f"volmig.job={JOB}"})  # as a copied tag: the recorded UUID tells them apart
    for number in range(luck.randint(0, 3)):
        yield Volume(
            f"stranger-{number}",
            luck.choice([NAME, "other"]) if not number else f"other{number}",
            luck.choice([SIZE, 2 * SIZE]),
            frozenset(luck.choice(marks)),
            *(luck.random() < share for share in (0.3, 0.9)),
            luck.choice(["writeable", "read-only"]),
            luck.choice(["tenant", ""]),
        )


def machine(luck, mountpoint):
    """A host in a random state; the volume of this job, if there is one, and what was recorded of it."""
    known = luck.random() < 0.7
    host = Machine(luck, list(strangers(luck, known)), exported=luck.random() < 0.2)
    ours = Volume("ours", tags=frozenset({"volmig", f"volmig.job={JOB}"}), content=luck.choice(["", "ours", "tenant"]))
    if luck.random() < 0.6 and not any(each.name == NAME for each in host.volumes):
        host.volumes.append(replace(ours, open=luck.random() < 0.2, active=luck.random() < 0.9))
    for volume in host.volumes:
        if luck.random() < 0.3:
            target = luck.choice([mountpoint, "/srv/else"])
            kind = luck.choice(["ext4", "nfs4"])
            host.mounts.append(Mount(host.number(volume), "/", target, kind, f"/dev/vg/{volume.name}", "rw"))
    return host, "ours" if known else ""


def planned(host, luck):
    """The volume that a migration is to read: mostly one that stands there, as it was when that was planned."""
    volume = luck.choice(host.volumes) if host.volumes else Volume("gone", "gone")
    return {"vg": "vg", "lv": volume.name, "size": volume.size, "lv_uuid": luck.choice([volume.uuid, "was-another"])}


def arguments(luck, verb, host, uuid, mountpoint):
    args = {"vg": "vg", "lv": NAME, "size": SIZE, "lv_uuid": uuid, "fs_uuid": FS, "mountpoint": mountpoint}
    if verb in ("lv_fence", "lv_unfence"):
        args |= planned(host, luck)
    if luck.random() < 0.5:
        return args | {"made": {"lv_uuid": args["lv_uuid"], "fs_uuid": FS, "was": "writeable"} if uuid else {}}
    return args


@pytest.fixture
def quiet(monkeypatch):
    """Time passes at once, and nothing of this very machine is looked at."""
    clock = SimpleNamespace(now=0.0)
    patient = SimpleNamespace(
        monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    for module in (mountpoints, lvm):
        monkeypatch.setattr(module, "time", patient)
    monkeypatch.setattr(lvm, "openers", lambda device: [])
    monkeypatch.setattr(lvm, "kernel_children", lambda device: [])
    monkeypatch.setattr(lvm, "counters", lambda device: (1, 8))


def try_verbs(trials, monkeypatch, tmp_path):
    """How many verbs came to an end, and how many stopped; raises AssertionError when a stranger was touched."""
    ended = {"done": 0, "stopped": 0}
    for seed in range(trials):
        luck, mountpoint = random.Random(seed), str(tmp_path / str(seed))
        host, uuid = machine(luck, mountpoint)
        monkeypatch.setattr(mounts, "mounts", lambda host=host: host.mounts)
        verb = luck.choice(EVERY)
        args = arguments(luck, verb, host, uuid, mountpoint)
        memory = {"lv": {"lv_uuid": uuid} if uuid else {"vg": "vg"}} if luck.random() < 0.5 else {}
        before = {each.uuid: replace(each) for each in host.volumes}
        foreign = [each for each in host.mounts if not is_ours(host, each, mountpoint)]
        if covered := any(each.target == mountpoint and mounted(host, each).uuid != "ours" for each in foreign):
            os.mkdir(mountpoint)
        try:
            VERBS[verb].run(Doing(host, verb, args, memory))
            ended["done"] += 1
        except Stop:
            ended["stopped"] += 1
        except OSError:  # of the mount point, which nothing is really mounted on
            ended["stopped"] += 1
        after = {each.uuid: each for each in host.volumes}
        for name, was in before.items():
            assert may_change(verb, was, args) or after.get(name) == was, (seed, verb, was, after.get(name))
            if was.content == "tenant" and not (name == "ours" and verb == "lv_remove"):
                assert after[name].content == "tenant", (seed, verb, was)
        assert [each for each in foreign if each not in host.mounts] == [], (seed, verb)
        assert not covered or os.listdir(mountpoint) == [], "something was written to somebody's filesystem"
    return ended


def may_change(verb, volume, args):
    """Whether this verb may change a volume as it was."""
    if verb == "lv_fence":
        return volume.uuid == args["lv_uuid"] and f"volmig.src={OTHER}" not in volume.tags
    if verb == "lv_unfence":
        recorded = args.get("made", {}).get("lv_uuid", volume.uuid)
        return f"volmig.src={JOB}" in volume.tags and recorded == volume.uuid
    return volume.uuid == "ours"


def is_ours(host, mount, mountpoint):
    """The filesystem that this job made, where it mounts it."""
    return mount.target == mountpoint and mount.fstype == "ext4" and mounted(host, mount).content == "ours"


def mounted(host, mount):
    return host.volumes[int(mount.device.split(":")[1])]


def test_no_verb_touches_a_volume_or_a_mount_that_is_not_its_own(quiet, monkeypatch, tmp_path):
    ended = try_verbs(2000, monkeypatch, tmp_path)
    assert min(ended.values()) > 60, "both ends have to be seen"


@pytest.mark.torture
def test_no_verb_touches_what_is_not_its_own_on_ten_thousand_hosts(quiet, monkeypatch, tmp_path):
    print(f"\n10,000 hosts in random states: {try_verbs(10_000, monkeypatch, tmp_path)}, nothing foreign touched")


# Files

NAMES = ("disk.new", "disk.old", "disk.rejected", "card.json", "README", "notes", "disk.new.bak")
PAPERS = {"card.json", "README", "card.json.tmp", "README.tmp"}


class Share:
    """A directory of instances with a live disk, and in the job's own place whatever luck has put there."""

    def __init__(self, root, luck):
        self.root, self.home, self.place = root, root / INSTANCE, root / ".volmig" / JOB
        self.home.mkdir(parents=True)
        self.place.mkdir(parents=True)
        self.live = self.home / "disk.local"
        self.live.write_bytes(qcow2(SIZE))
        for name in luck.sample(NAMES, luck.randint(0, 3)):
            self.put(luck, self.place / name)

    def put(self, luck, path):
        how = luck.random()
        others = [each for each in self.place.iterdir() if each.is_file() and not each.is_symlink()]
        if how < 0.1:
            os.link(self.live, path)
        elif how < 0.2 and others:
            os.link(luck.choice(others), path)
        elif how < 0.25:
            path.symlink_to(self.live)
        else:
            path.write_bytes(path.name.encode())

    def files(self):
        """Every name with the inode that it stands for."""
        found = [self.live, *self.place.iterdir()] if self.place.exists() else [self.live]
        return {path: os.lstat(path).st_ino for path in found if os.path.lexists(path)}


def lose(verb, path, inode, args, share, before):
    """Whether a verb may have taken this name away."""
    if path.name in PAPERS:
        return True
    names = [each for each, number in before.items() if number == inode]
    if verb == "unstage":
        return path.name == "disk.new" and len(names) == 1 and args.get("expect_inode", inode) == inode
    return inode == args["backup_inode"] != before[share.live] and len(names) == 1


def try_files(trials, tmp_path):
    removed = 0
    for seed in range(trials):
        luck = random.Random(seed)
        share = Share(tmp_path / str(seed), luck)
        before = share.files()
        inodes = [*before.values(), 999_999_999]
        args = {"instances": str(share.root), "instance": INSTANCE, "disk": "disk.local"}
        args |= {"backup_inode": luck.choice(inodes), "live_inode": luck.choice([before[share.live]] * 3 + inodes)}
        args |= {"expect_inode": luck.choice(inodes)} if luck.random() < 0.5 else {}
        verb = luck.choice(["unstage", "purge"])
        with suppress(Stop):
            VERBS[verb].run(Work(args, JOB, VERBS[verb].acts))
        after = share.files()
        for path, inode in before.items():
            gone = after.get(path) != inode
            assert not gone or lose(verb, path, inode, args, share, before), (seed, verb, path.name)
            removed += gone
    return removed


def test_no_verb_unlinks_a_file_that_is_not_its_own(tmp_path):
    assert try_files(300, tmp_path) > 30, "some of them have to go"


@pytest.mark.torture
def test_no_verb_unlinks_what_is_not_its_own_on_ten_thousand_shares(tmp_path):
    unlinked = try_files(10_000, tmp_path)
    print(f"\n10,000 shares in random states: {unlinked} names of the jobs' own were unlinked, no other")
