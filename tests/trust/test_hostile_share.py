"""The owner of a share attacks whoever opens its files as root: what is answered, and that nothing else was read.

Real files of an unprivileged owner, hostctl's own verbs, the real qemu-img and blkid in their cage.
"""

import ctypes
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hosts.remote.hostctl import facts, mounts, virsh
from hosts.remote.hostctl.act import Refused
from hosts.remote.hostctl.commands import Work, find
from hosts.remote.hostctl.mounts import Mount
from hosts.remote.hostctl.request import Desk, guarded
from hosts.remote.hostctl.verbs import VERBS
from tests import policies
from tests.hostctl.conftest import FakeUnits, qcow2

from .amounts import amount, figure
from .watching import ACCESS, OPEN, Watch

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not find("qemu-img"), reason="root opens what another user made, with the real qemu-img"
)
OWNER, TENANT = 64055, 64056  # the share's owner, and whom another instance's disk belongs to
INSTANCE = "c8d1a0b2-1111-4222-8333-944445555666"
JOB = "4b737de9-abc8-4f0b-bf08-1d347f800fb9"
SOURCE = "filer:/vol"
SIZE = 16 << 20
SECRET = "tenant-b-secret"
GIB = 1 << 30
SLOWEST = 20.0


class Scene:
    """A share, and beside it what belongs to root and to another tenant."""

    def __init__(self, root: Path) -> None:
        self.root, self.share = root, root / "instances"
        self.home, self.place = self.share / INSTANCE, self.share / ".volmig" / JOB
        self.live, self.info = self.home / "disk", self.home / "disk.info"
        self.secrets = root / "secrets"
        self.shadow, self.rootdisk = self.secrets / "login.json", self.secrets / "disk.qcow2"
        self.raw = self.secrets / "disk.raw"
        self.other = self.share / "another-tenant" / "disk"
        root.chmod(0o711)
        for folder in (self.home, self.place, self.other.parent, self.share / "_base"):
            folder.mkdir(parents=True)
        self.secrets.mkdir(mode=0o700)
        self.shadow.write_text(json.dumps({"/password": SECRET}))
        self.raw.write_bytes(labelled(SECRET))
        image(self.rootdisk, self.raw)
        shutil.copy(self.rootdisk, self.other)
        image(self.share / "good.qcow2", None)
        for path in (self.shadow, self.raw, self.rootdisk, self.other):
            path.chmod(0o600)
        self.give()
        os.chown(self.other, TENANT, TENANT)

    def give(self) -> None:
        """All of the share to its owner but the other tenant's disk, whatever second names that has."""
        kept = self.other.stat().st_ino
        for path in (self.share, *self.share.rglob("*")):
            if path.lstat().st_ino != kept:
                os.chown(path, OWNER, OWNER, follow_symlinks=False)

    def fresh(self) -> None:
        """A sound disk, a kept one, a card and a disk.info; nothing of an earlier attack."""
        made = (self.home, *(self.share / name for name in (".volmig", "_base", "ready", "third-instance")))
        for path in made:
            removed(path)
        for folder in (self.home, self.place, self.share / "_base"):
            folder.mkdir(parents=True)
        for path in (self.live, self.place / "disk.old", self.place / "disk.new"):
            shutil.copy(self.share / "good.qcow2", path)
        self.info.write_text(json.dumps({str(self.live): "qcow2"}))
        (self.place / "card.json").write_text(json.dumps({"instance": INSTANCE}))
        self.give()


def labelled(label: str) -> bytes:
    """A raw disk with an ext4 superblock of that label, enough for blkid."""
    disk = bytearray(SIZE)
    struct.pack_into("<IIIIII", disk, 1024, 4096, 4096, 0, 0, 0, 1)
    struct.pack_into("<H", disk, 1024 + 56, 0xEF53)
    struct.pack_into("<I", disk, 1024 + 76, 1)
    struct.pack_into("<III", disk, 1024 + 92, 4, 0x40, 0)
    disk[1024 + 104 : 1024 + 120] = b"0123456789abcdef"
    disk[1024 + 120 : 1024 + 136] = label.encode()[:16].ljust(16, b"\0")
    return bytes(disk)


def image(path: Path, source: Path | None) -> None:
    words = ("convert", "-f", "raw", "-O", "qcow2", source, path) if source else ("create", "-f", "qcow2", path, SIZE)
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    root = Path(tempfile.mkdtemp(prefix="volmig-hostile-", dir="/var/tmp"))
    yield Scene(root)
    shutil.rmtree(root)


@pytest.fixture
def watch(scene, monkeypatch) -> Iterator[Watch]:
    """The share is mounted, everything on it is as it should be, and whoever reads the others' files is seen."""
    row = Mount("0:50", "/", str(scene.share), "nfs", SOURCE, "rw,vers=3,hard,acdirmax=5")
    monkeypatch.setattr(mounts, "mounts", lambda: [row])
    monkeypatch.setattr(virsh, "installed", lambda: False)
    scene.fresh()
    files = dict.fromkeys(
        (scene.shadow, scene.raw, scene.rootdisk), ACCESS | OPEN
    )  # the system's own have other readers
    watching = Watch({**files, scene.other: ACCESS})
    yield watching
    watching.close()


# What is asked of hostctl; each returns its answer as a document.


def ask(scene: Scene, verb: str, **args: Any) -> dict[str, Any]:
    rules = policies.reading("dst", "destination", shares=[SOURCE], directories=[str(scene.share)])
    desk = Desk(FakeUnits(), str(scene.root / "state"), str(scene.root / "run"), 0.2, lambda: rules)
    return desk.handle(json.dumps({"verb": verb, "job": JOB, "args": args}).encode())


def act(verb: str, **args: Any) -> dict[str, Any]:
    return guarded(VERBS[verb].run, Work(args, JOB, VERBS[verb].acts))


def destination(scene: Scene) -> dict[str, Any]:
    return ask(scene, "destination_facts", instance=INSTANCE, disk="disk", share_source=SOURCE)


def state(scene: Scene) -> dict[str, Any]:
    found = facts._live(str(scene.share), f"{scene.share}/{INSTANCE}/disk")
    return {"state": "done", "evidence": {"live": found or "nothing there"}, "commands": [], "error": None}


def rehearsal(scene: Scene) -> dict[str, Any]:
    given = {"instances": str(scene.share), "share_source": SOURCE, "recorded": {}}
    return act("rehearse", **given, backup_path=f"{scene.place}/disk.old")


def verification(scene: Scene) -> dict[str, Any]:
    size = (scene.share / "good.qcow2").stat().st_size
    given = {"instances": str(scene.share), "share_source": SOURCE, "sha256": "0" * 64}
    return act("stage_verify", **given, file_size=size, virtual_size=SIZE)


def listing(scene: Scene) -> dict[str, Any]:
    return ask(scene, "leftovers")


# What the owner does


def replaced(path: Path, make: Callable[[Path], Any]) -> None:
    removed(path)
    make(path)


def removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(where: str) -> Callable[[Scene], Callable[[Path], None]]:
    return lambda scene: lambda path: path.symlink_to(getattr(scene, where))


def fifo(scene: Scene) -> Callable[[Path], None]:
    return os.mkfifo


def unix_socket(scene: Scene) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        folder = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)

    return make


def device(kind: int, major: int, minor: int) -> Callable[[Scene], Callable[[Path], None]]:
    def make(path: Path) -> None:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
        path.chmod(0o666)

    return lambda scene: make


def folder(scene: Scene) -> Callable[[Path], None]:
    return Path.mkdir


def second_name(where: str) -> Callable[[Scene], Callable[[Path], None]]:
    return lambda scene: lambda path: path.hardlink_to(getattr(scene, where))


def sparse(size: int) -> Callable[[Scene], Callable[[Path], None]]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return lambda scene: make


def text(content: str | bytes) -> Callable[[Scene], Callable[[Path], None]]:
    data = content.encode() if isinstance(content, str) else content
    return lambda scene: lambda path: path.write_bytes(data)


def header(**fields: Any) -> Callable[[Scene], Callable[[Path], None]]:
    return lambda scene: lambda path: path.write_bytes(qcow2(SIZE, **fields))


def patched(at: int, form: str, value: int) -> Callable[[Scene], Callable[[Path], None]]:
    data = bytearray(qcow2(SIZE))
    struct.pack_into(form, data, at, value)
    return text(bytes(data))


def compressed(kind: int) -> Callable[[Scene], Callable[[Path], None]]:
    data = bytearray(qcow2(SIZE, incompatible=8))
    struct.pack_into(">IB", data, 100, 112, kind)
    return text(bytes(data))


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">II", kind, len(body)) + body + bytes(-len(body) % 8)


def data_file(where: str) -> Callable[[Scene], Callable[[Path], None]]:
    def made(scene: Scene) -> Callable[[Path], None]:
        named = extension(0x44415441, str(getattr(scene, where)).encode())
        return lambda path: path.write_bytes(qcow2(SIZE, incompatible=4, extensions=named))

    return made


def stands_on(name: str) -> Callable[[Scene], Callable[[Path], None]]:
    """A backing file; {…} are the scene's own paths."""

    def made(scene: Scene) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(qcow2(SIZE, base=name.format(**vars(scene)).encode()))

    return made


class Attack(NamedTuple):
    name: str
    where: str  # relative to the share
    make: Callable[[Scene], Callable[[Path], Any]]
    asked: Callable[[Scene], dict[str, Any]]
    says: str


LIVE, INFO = f"{INSTANCE}/disk", f"{INSTANCE}/disk.info"
OLD, NEW, CARD = (f".volmig/{JOB}/{name}" for name in ("disk.old", "disk.new", "card.json"))


def at(where: str, asked: Callable[[Scene], dict[str, Any]], **kinds: tuple[Any, str]) -> list[Attack]:
    return [Attack(f"{where.split('/')[-1]} {name}", where, make, asked, says) for name, (make, says) in kinds.items()]


def bases(*named: tuple[str, str]) -> list[Attack]:
    return [Attack(f"base {name!r}", LIVE, stands_on(name), destination, says) for name, says in named]


NO_PATH, OUTSIDE = "is not a plain path", "leads to outside the share"
ATTACKS = [
    *at(
        LIVE,
        destination,
        link=(link("shadow"), "it is a symbolic link"),
        link_to_a_disk=(link("rootdisk"), "it is a symbolic link"),
        fifo=(fifo, "it is a named pipe"),
        socket=(unix_socket, "it is a socket"),
        character_device=(device(0o020000, 1, 5), "it is a character device"),
        block_device=(device(0o060000, 7, 0), "it is a block device"),
        directory=(folder, "it is a directory"),
        second_name_of_another_disk=(second_name("other"), "may not: permission denied"),
        second_name_of_roots_disk=(second_name("rootdisk"), "may not: permission denied"),
        second_name_of_a_readable_disk=(second_name("readable"), "it has 2 names (hard links)"),
        sparse_tebibytes=(sparse(1 << 43), '"format": "raw"'),
        data_file=(data_file("rootdisk"), "it names an external data file"),
        data_file_raw=(data_file("raw"), "it names an external data file"),
        data_file_without_bit=(header(extensions=extension(0x44415441, b"/etc/shadow")), "external data file"),
        data_file_without_name=(header(incompatible=4), "it names an external data file"),
        encryption_aes=(header(crypt=1), "it is encrypted (method 1)"),
        encryption_luks=(header(crypt=2), "it is encrypted (method 2)"),
        unknown_feature=(header(incompatible=32), "unknown incompatible features 0x20"),
        unknown_bit=(header(incompatible=1 << 63), "unknown incompatible features"),
        extended_l2=(header(incompatible=16), "it uses extended L2 entries"),
        unknown_compression=(compressed(9), "compressed in an unknown way (9)"),
        l1_table_1_gib=(patched(36, ">I", GIB // 8), "its L1 table would take 1073741824 bytes"),
        refcounts_1_gib=(patched(56, ">I", GIB >> 16), "its refcount table would take 1073741824 bytes"),
        snapshots_4_thousand_million=(header(snapshots=0xFFFFFFFF), "4294967295 internal snapshots"),
        bitmaps=(
            header(extensions=extension(0x23852875, struct.pack(">IIQQ", 0xFFFFFFFF, 0, GIB, 0))),
            "its bitmap directory would take 1073741824 bytes",
        ),
        huge_clusters=(patched(20, ">I", 63), "its clusters have 2^63 bytes"),
        tiny_clusters=(patched(20, ">I", 0), "its clusters have 2^0 bytes"),
        endless_header=(patched(100, ">I", 0xFFFFFFF8), "its header has 4294967288 bytes"),
        endless_extension=(header(extensions=struct.pack(">II", 0xE2792ACA, 0xFFFFFFF0)), "ends outside the header"),
        refcount_bits=(patched(96, ">I", 30), "its reference counts have 2^30 bits"),
        version_1=(header(version=1), "its version is 1"),
        version_9=(header(version=9), "its version is 9"),
        exbibytes=(patched(24, ">Q", 1 << 62), "its virtual size is"),
        long_base_name=(header(base=b"/" * 4000), "is outside the header"),
    ),
    *bases(
        ("{rootdisk}", OUTSIDE),
        ("/etc/shadow", OUTSIDE),
        ("../../secrets/disk.qcow2", OUTSIDE),
        ("../_base/../../secrets/disk.qcow2", "leads up and down again"),
        ('json:{{"driver":"file","filename":"{raw}"}}', NO_PATH),
        ("nbd://192.0.2.1/x", NO_PATH),
        ("nbd+unix:///x?socket=/run/x", NO_PATH),
        ("ssh://root@192.0.2.1/etc/shadow", NO_PATH),
        ("https://192.0.2.1/x", NO_PATH),
        ("ftp://192.0.2.1/x", NO_PATH),
        ("file:{rootdisk}", NO_PATH),
        ("host_device:/dev/vda", NO_PATH),
        ("rbd:pool/x", NO_PATH),
        ("iscsi://192.0.2.1/x/0", NO_PATH),
        ("fat:/etc", NO_PATH),
        ("blkdebug::{rootdisk}", NO_PATH),
        ("line\nfeed", "has no plain name"),
        ("\n{rootdisk}", "has no plain name"),
        ("disk", "it has more than 16 backing files"),
        ("../_base/none", "no such file"),
        ("../_base/link", "it is a symbolic link"),
        ("../_base/fifo", "it is a named pipe"),
        ("../_base/data", "it names an external data file"),
        ("../_base/folder/disk.qcow2", "is not a directory (not a directory)"),
        ("{other}", "may not: permission denied"),
    ),
    *at(
        INFO,
        destination,
        link=(link("shadow"), "it is a symbolic link"),
        fifo=(fifo, "it is a named pipe"),
        socket=(unix_socket, "it is a socket"),
        second_name=(second_name("shadow"), "may not: permission denied"),
        sparse_terabyte=(sparse(1 << 40), "at most 65536 are read"),
        deep=(text("[" * 60000), '"disk_info": null'),
        names_with_line_feeds=(text(json.dumps({"a\nb": "qcow2\n", "c": ["x"]})), '"disk_info": {"a\\nb": "qcow2\\n"}'),
    ),
    *at(
        INSTANCE,
        destination,
        link=(link("secrets"), "is not a directory ("),
        fifo=(fifo, "is not a directory ("),
    ),
    *at(LIVE, state, link=(link("shadow"), '"mode": 511'), fifo=(fifo, '"live": {'), socket=(unix_socket, '"live": {')),
    *at(
        OLD,
        rehearsal,
        link=(link("rootdisk"), "not a plain file"),
        fifo=(fifo, "not a plain file"),
        second_name=(second_name("other"), "not a plain file"),
        data_file=(data_file("rootdisk"), "it names an external data file"),
        base=(stands_on("{rootdisk}"), OUTSIDE),
        encryption=(header(crypt=2), "it is encrypted"),
    ),
    *at(
        CARD,
        rehearsal,
        link=(link("shadow"), "it is a symbolic link"),
        fifo=(fifo, "it is a named pipe"),
        sparse_terabyte=(sparse(1 << 40), "at most 65536 are read"),
    ),
    *at(
        NEW,
        verification,
        link=(link("rootdisk"), "it is a symbolic link"),
        fifo=(fifo, "it is a named pipe"),
        second_name=(second_name("other"), "it has 2 names (hard links)"),
        data_file=(data_file("rootdisk"), "it names an external data file"),
    ),
    *at(".volmig", verification, link=(link("secrets"), "is not a directory")),
    *at(
        ".volmig",
        listing,
        link=(link("secrets"), '"answered": false'),
        names_with_line_feeds=(lambda scene: lambda path: (path / "a\nb").mkdir(parents=True), '"answered": true'),
        many_names=(lambda scene: many, '"answered": false'),
    ),
]


def many(path: Path) -> None:
    path.mkdir()
    for number in range(10_001):
        (path / str(number)).touch()


def prepared(scene: Scene, attack: Attack) -> None:
    scene.readable = scene.share / "_base" / "readable"
    shutil.copy(scene.share / "good.qcow2", scene.readable)
    (scene.share / "_base/link").symlink_to(scene.rootdisk)
    os.mkfifo(scene.share / "_base/fifo")
    data_file("rootdisk")(scene)(scene.share / "_base/data")
    (scene.share / "_base/folder").symlink_to(scene.secrets)
    replaced(scene.share / attack.where, attack.make(scene))
    for path in (scene.share / attack.where, *(scene.share / "_base").iterdir()):
        if path.lstat().st_nlink == 1:
            os.chown(path, OWNER, OWNER, follow_symlinks=False)


RESULTS: dict[str, tuple[float, int]] = {}


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{each.asked.__name__}: {each.name}" for each in ATTACKS])
def test_an_attack_reads_nothing_of_others_hangs_nobody_and_has_its_message(scene, watch, attack):
    prepared(scene, attack)
    watch.seen()
    began = time.monotonic()
    said = json.dumps(attack.asked(scene))
    took, read = time.monotonic() - began, watch.seen()
    assert read == []
    assert SECRET not in said
    assert attack.says in said
    assert '"code": "bug"' not in said
    assert took < SLOWEST
    RESULTS[f"{attack.asked.__name__} {attack.name}"] = took, len(read)


def test_the_figure(scene):
    """Printed after the attacks, in whatever order they ran: with all of them, none is left out."""
    if len(RESULTS) == len(ATTACKS):
        slowest = max(took for took, _ in RESULTS.values())
        figure(
            f"{len(RESULTS)} attacks of a share's owner: 0 bytes of other files read, slowest answer {slowest:.1f} s"
        )


# Names that change between check and use

EXCHANGE, AT_FDCWD = 2, -100
FAST = 0.002  # seconds within which a name changes again


def pool(scene: Scene) -> list[tuple[Path, Path]]:
    """What the owner keeps ready, and the name that it is exchanged with."""
    ready = scene.share / "ready"
    removed(ready)
    ready.mkdir()
    made: list[tuple[str, Any, Path]] = [
        ("link", link("rootdisk"), scene.live),
        ("fifo", fifo, scene.live),
        ("data", data_file("rootdisk"), scene.live),
        ("base", stands_on("{rootdisk}"), scene.live),
        ("other", second_name("other"), scene.live),
        ("mine", second_name("mine"), scene.live),
        ("socket", unix_socket, scene.live),
        ("info", link("shadow"), scene.info),
        ("pipe", fifo, scene.info),
        ("home", link("secrets"), scene.home),
        ("empty", folder, scene.home),
    ]
    for name, make, _ in made:
        make(scene)(ready / name)
        if (ready / name).lstat().st_nlink == 1:
            os.chown(ready / name, OWNER, OWNER, follow_symlinks=False)
    os.chown(ready, OWNER, OWNER)
    return [(ready / name, target) for name, _, target in made]


def exchanging(pairs: list[tuple[Path, Path]], seed: int) -> int:
    """A process of the share's owner that exchanges names at random instants until it is ended."""
    child = os.fork()
    if child:
        return child
    try:
        libc, luck = ctypes.CDLL(None), random.Random(seed)
        os.setgroups([])
        os.setgid(OWNER)
        os.setuid(OWNER)
        while True:
            one, two = (os.fsencode(path) for path in luck.choice(pairs))
            libc.renameat2(AT_FDCWD, one, AT_FDCWD, two, EXCHANGE)
            time.sleep(luck.uniform(0, FAST))
            libc.renameat2(AT_FDCWD, one, AT_FDCWD, two, EXCHANGE)
            time.sleep(luck.uniform(0, FAST))
    finally:
        os._exit(1)


def outcome(scene: Scene) -> str:
    """What one look at the share comes to, in a word; nothing in it is of others."""
    work = Work({"instance": INSTANCE, "disk": "disk"}, JOB, VERBS["destination_facts"].acts)
    found: Any
    try:
        found = facts._on_share(work, str(scene.share))
    except Refused as stop:
        found = stop
    assert SECRET not in json.dumps([found.error(False) if isinstance(found, Refused) else found, work.commands])
    if isinstance(found, Refused):
        return found.found.split(" (")[0][:40]
    if found["disk"] is None:
        return "no disk"
    if found["disk"]["objections"]:
        return "objection"
    return "not readable" if found["contents"]["summary"] == "not readable" else "read"


def without_tools(work: Work, image: Any) -> dict[str, Any]:
    return facts._unread("no tool was asked")


def test_names_that_change_at_random_instants_lead_to_nothing_of_others(scene, watch, monkeypatch):
    scene.mine = scene.share / "third-instance"
    shutil.copy(scene.rootdisk, scene.mine)
    os.chown(scene.mine, OWNER, OWNER)
    also, seen, instants = Watch({scene.mine: ACCESS}), Counter[str](), amount(10_000, 300)
    with_tools = facts.image_contents
    watch.seen()
    owner, slowest, luck = exchanging(pool(scene), 7), 0.0, random.Random(8)
    try:
        for number in range(instants):
            # At one instant in ten qemu-img and blkid run as well; at the others the files are opened and judged.
            monkeypatch.setattr(facts, "image_contents", without_tools if number % 10 else with_tools)
            time.sleep(luck.uniform(0, FAST))
            began = time.monotonic()
            seen[outcome(scene)] += 1
            slowest = max(slowest, time.monotonic() - began)
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert watch.seen() + also.seen() == []
    also.close()
    assert len(seen) > 3, "the names did not change"
    assert slowest < SLOWEST
    told = ", ".join(f"{word}: {count}" for word, count in seen.most_common())
    figure(f"{instants} random instants: 0 bytes of other files read, slowest {slowest:.1f} s ({told})")


def test_a_file_that_somebody_holds_a_lease_on_is_not_waited_for(scene, watch):
    fd = os.open(scene.live, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        assert "it is no longer a regular file" in json.dumps(destination(scene))
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, signal.SIG_DFL)


def test_a_sound_disk_is_read_with_all_that_is_on_it(scene, watch):
    shutil.copy(scene.rootdisk, scene.live)
    scene.live.chmod(0o640)
    scene.give()
    found = destination(scene)["evidence"]
    assert (found["disk"]["objections"], found["disk"]["virtual_size"]) == ([], SIZE)
    assert SECRET in found["contents"]["summary"], "else nothing could have been read in an attack either"
    assert rehearsal(scene)["evidence"]["verdict"] == "ok"
